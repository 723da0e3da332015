//! What the fuzz targets run, for any bytes: `cargo xtask fuzz` feeds them new ones, a test those of the corpus.
//!
//! Each body panics where something does not hold; nothing of it is used by the agent.

mod policy;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

pub use self::policy::policy;

use crate::identity::ca::csr;
use crate::identity::peer_identity;
use crate::model::{Identity, TrustDomain};
use crate::proxy::sni::{FirstBytes, first_bytes};

/// What a target does with an input.
pub type Body = fn(&[u8]);

/// The targets, by the names of their corpora in `fuzz/corpus/`.
pub const TARGETS: [(&str, Body); 5] = [
    ("spiffe", spiffe),
    ("policy", policy),
    ("csr", request),
    ("certificate", certificate),
    ("client_hello", client_hello),
];

/// A SPIFFE ID that is read is the one that is written, and has no way into another.
pub fn spiffe(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // A trust domain by itself is read by its own rules.
    if let Ok(domain) = TrustDomain::new(text) {
        assert_eq!(domain.as_str(), text);
    }
    let Ok(identity) = text.parse::<Identity>() else { return };
    is_whole(&identity);
    assert_eq!(identity.to_string(), text);
}

/// Whatever is sent as a request is refused with a reason, or asks for the identity that it is checked against.
pub fn request(data: &[u8]) {
    let identity: Identity =
        "spiffe://cluster.local/ns/shop/sa/web".parse().expect("it is a SPIFFE ID of the form that is read");
    if let Ok(text) = std::str::from_utf8(data) {
        look_at(text, &identity);
    }
    // The same bytes as what is inside the PEM: a mutation of Base64 rarely is a mutation of DER.
    let pem = format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
        STANDARD.encode(data)
    );
    look_at(&pem, &identity);
}

fn look_at(pem: &str, identity: &Identity) {
    match csr::check(pem, identity) {
        Ok(der) => {
            assert!(pem.len() <= csr::MAX_LENGTH);
            let other = Identity { service_account: "other".into(), ..identity.clone() };
            let uri = identity.to_string();
            let names_it = der.windows(uri.len()).any(|window| window == uri.as_bytes());
            // One that names its identity is no request for another.
            assert_eq!(csr::check(pem, &other).is_err(), names_it);
        }
        Err(error) => assert!(!error.reason().is_empty()),
    }
}

/// Whatever a peer shows is refused with a reason, or names one identity.
pub fn certificate(data: &[u8]) {
    let shown =
        CertificateDer::from_pem_slice(data).unwrap_or_else(|_no_pem| CertificateDer::from(data.to_vec()));
    match peer_identity(&[shown]) {
        Ok(identity) => is_whole(&identity),
        Err(error) => assert!(!error.reason().is_empty()),
    }
}

/// Whatever a client sends first names one server or none, however much of it has come: what was told to be nameless stays
/// so, and no second name follows.
pub fn client_hello(data: &[u8]) {
    let whole = first_bytes(data);
    if let FirstBytes::Named(name) = &whole {
        assert!(!name.is_empty() && name.len() <= 253 && name.is_ascii(), "{name}");
        assert!(!name.chars().any(|each| each.is_ascii_uppercase() || each.is_ascii_control()), "{name}");
    }
    let lengths = (0..usize::BITS).map(|power| 1 << power).take_while(|&length| length < data.len());
    for part in lengths.chain([data.len().saturating_sub(1)]).map(|length| first_bytes(&data[..length])) {
        match part {
            FirstBytes::Partial => {}
            FirstBytes::Nameless => assert_eq!(whole, FirstBytes::Nameless),
            // Garbage in the same flight makes one that is not understood.
            FirstBytes::Named(_) => assert!(whole == part || whole == FirstBytes::Nameless),
        }
    }
}

fn is_whole(identity: &Identity) {
    let text = identity.to_string();
    assert_eq!(text.parse().as_ref(), Ok(identity));
    assert_eq!(text.matches('/').count(), 6, "{text}");
    assert!(text.len() <= 2048 && text.is_ascii(), "{text}");
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn the_corpus_holds() {
        for (target, body) in TARGETS {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
            let mut inputs: Vec<_> =
                fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
            inputs.sort();
            assert!(inputs.len() > 3, "{target} has no corpus");
            for input in inputs {
                // The name of the one that fails is the last that is printed.
                eprintln!("{}", input.display());
                body(&fs::read(&input).unwrap());
            }
        }
    }
}
