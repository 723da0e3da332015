//! PEM (RFC 7468) of certificates and requests, as the protocol carries them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

const CERTIFICATE: &str = "CERTIFICATE";
const REQUEST: &str = "CERTIFICATE REQUEST";
/// Characters a line (RFC 7468, section 2).
const LINE: usize = 64;

/// A certificate.
pub(crate) fn certificate(der: &[u8]) -> String {
    encode(CERTIFICATE, der)
}

/// A request for one.
pub(super) fn request(der: &[u8]) -> String {
    encode(REQUEST, der)
}

fn encode(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(LINE));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str("-----END ");
    pem.push_str(label);
    pem.push_str("-----\n");
    pem
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;

    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for length in [0, 1, 47, 48, 49, 96, 1000] {
            let der: Vec<u8> = (0..length).map(|byte: usize| byte as u8).collect();
            let pem = certificate(&der);
            assert!(pem.lines().all(|line| line.len() <= LINE), "{pem}");
            assert_eq!(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().as_ref(), der);
        }
    }
}
