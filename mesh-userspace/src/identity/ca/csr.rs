//! What a certificate signing request must be for the authority to sign it.
//!
//! It proves that the caller has the private key, and brings the public one; nothing else in it is ever copied. A
//! request that asks for something else is refused all the same: who sends it expects what will not come.

use rcgen::CertificateSigningRequestParams;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{ExtendedKeyUsage, GeneralName, KeyUsage, ParsedExtension};
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_SIG_ECDSA_WITH_SHA256,
    OID_SIG_ECDSA_WITH_SHA384, OID_X509_ORGANIZATION_NAME,
};
use x509_parser::prelude::FromDer;
use x509_parser::x509::{SubjectPublicKeyInfo, X509Name};

use crate::model::Identity;

/// Longest request that is read, in bytes of PEM.
pub const MAX_LENGTH: usize = 16 << 10;

const BEGIN: &str = "-----BEGIN CERTIFICATE REQUEST-----";
const END: &str = "-----END CERTIFICATE REQUEST-----";

/// Why a request is not signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Longer than [`MAX_LENGTH`].
    #[error("the CSR is {0} bytes long, at most {MAX_LENGTH} are taken")]
    TooLong(usize),
    /// No PEM block of the right kind, or more than one.
    #[error("the CSR is not one PEM block of type CERTIFICATE REQUEST")]
    Pem,
    /// Not PKCS#10.
    #[error("the CSR is no PKCS#10 request in DER")]
    Malformed,
    /// Another kind of key.
    #[error("the CSR's key is not ECDSA P-256 or P-384, which alone are signed")]
    KeyType,
    /// Another hash than goes with the curve.
    #[error("the CSR is not signed with SHA-256 for P-256, or SHA-384 for P-384")]
    SignatureAlgorithm,
    /// Whoever made it does not have the key.
    #[error("the CSR's signature is not by the key that it carries")]
    Signature,
    /// A name in the subject.
    #[error("the CSR names a subject; it must be empty, the identity goes into the URI name")]
    Subject,
    /// An alternative name other than the identity.
    #[error("the CSR asks for a name other than the one SPIFFE ID that the certificate is for")]
    Name,
    /// basicConstraints, or the right to sign certificates.
    #[error("the CSR asks for a certificate authority's rights")]
    Authority,
    /// Anything else.
    #[error(
        "the CSR asks for an extension or has an attribute that is not granted: leave all but the URI name away"
    )]
    Extension,
}

impl CsrError {
    /// Bounded label.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::TooLong(_) => "csr_too_long",
            Self::Pem | Self::Malformed => "csr_malformed",
            Self::KeyType | Self::SignatureAlgorithm => "csr_key",
            Self::Signature => "csr_signature",
            Self::Subject | Self::Name => "csr_name",
            Self::Authority | Self::Extension => "csr_extension",
        }
    }
}

/// Reads a request in PEM and checks that it asks for a certificate of `identity` and for nothing else.
///
/// Whatever the text is, this returns.
///
/// # Errors
/// See [`CsrError`].
pub fn check(pem: &str, identity: &Identity) -> Result<CertificateSigningRequestDer<'static>, CsrError> {
    if pem.len() > MAX_LENGTH {
        return Err(CsrError::TooLong(pem.len()));
    }
    let text = pem.trim();
    let is_one = text.starts_with(BEGIN) && text.ends_with(END) && text.matches("-----BEGIN").count() == 1;
    if !is_one {
        return Err(CsrError::Pem);
    }
    let der =
        CertificateSigningRequestDer::from_pem_slice(text.as_bytes()).map_err(|_error| CsrError::Pem)?;
    check_der(&der, identity)?;
    Ok(der)
}

fn check_der(der: &CertificateSigningRequestDer<'_>, identity: &Identity) -> Result<(), CsrError> {
    let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_error| CsrError::Malformed)?;
    if !rest.is_empty() {
        return Err(CsrError::Malformed);
    }
    let info = &request.certification_request_info;
    let signed_with = &request.signature_algorithm.algorithm;
    let hash = match curve(&info.subject_pki)? {
        Curve::P256 => OID_SIG_ECDSA_WITH_SHA256,
        Curve::P384 => OID_SIG_ECDSA_WITH_SHA384,
    };
    if *signed_with != hash {
        return Err(CsrError::SignatureAlgorithm);
    }
    check_subject(&info.subject)?;
    check_attributes(&request, identity)?;
    // Verifies the signature. What it cannot parse has been refused above.
    CertificateSigningRequestParams::from_der(der).map(drop).map_err(|error| match error {
        rcgen::Error::InvalidCertificationRequestSignature => CsrError::Signature,
        rcgen::Error::UnsupportedExtension => CsrError::Extension,
        _ => CsrError::Malformed,
    })
}

enum Curve {
    P256,
    P384,
}

/// The key's curve, if it is one that is signed and the point is written in full.
fn curve(key: &SubjectPublicKeyInfo<'_>) -> Result<Curve, CsrError> {
    if key.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY {
        return Err(CsrError::KeyType);
    }
    let named = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    let (curve, coordinate) = match named {
        Some(oid) if oid == OID_EC_P256 => (Curve::P256, 32),
        Some(oid) if oid == OID_NIST_EC_P384 => (Curve::P384, 48),
        _ => return Err(CsrError::KeyType),
    };
    let point = &key.subject_public_key.data;
    // SEC 1, section 2.3.3: 4, then both coordinates.
    let is_whole = point.first() == Some(&4) && point.len() == 1 + 2 * coordinate;
    if is_whole { Ok(curve) } else { Err(CsrError::KeyType) }
}

/// ztunnel sends no subject; Istio's sidecar agent one organisation that is the empty text.
fn check_subject(subject: &X509Name<'_>) -> Result<(), CsrError> {
    let mut names = subject.iter_attributes();
    let is_empty = |name: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        *name.attr_type() == OID_X509_ORGANIZATION_NAME && name.as_slice().is_empty()
    };
    let allowed = names.next().is_none_or(is_empty) && names.next().is_none();
    if allowed { Ok(()) } else { Err(CsrError::Subject) }
}

/// At most one attribute, a request for extensions, of which the names must be the identity.
fn check_attributes(request: &X509CertificationRequest<'_>, identity: &Identity) -> Result<(), CsrError> {
    let mut attributes = request.certification_request_info.iter_attributes();
    let Some(attribute) = attributes.next() else { return Ok(()) };
    let ParsedCriAttribute::ExtensionRequest(wanted) = attribute.parsed_attribute() else {
        return Err(CsrError::Extension);
    };
    if attributes.next().is_some() {
        return Err(CsrError::Extension);
    }
    let mut named = false;
    for extension in &wanted.extensions {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => {
                let uri = identity.to_string();
                let is_it =
                    matches!(names.general_names.as_slice(), [GeneralName::URI(name)] if *name == uri);
                if named || !is_it {
                    return Err(CsrError::Name);
                }
                named = true;
            }
            ParsedExtension::KeyUsage(usage) => check_usage(*usage)?,
            ParsedExtension::ExtendedKeyUsage(usage) if is_for_tls(usage) => {}
            ParsedExtension::BasicConstraints(_) => return Err(CsrError::Authority),
            _ => return Err(CsrError::Extension),
        }
    }
    Ok(())
}

fn check_usage(usage: KeyUsage) -> Result<(), CsrError> {
    if usage.key_cert_sign() || usage.crl_sign() { Err(CsrError::Authority) } else { Ok(()) }
}

fn is_for_tls(usage: &ExtendedKeyUsage<'_>) -> bool {
    let others = usage.any
        || usage.code_signing
        || usage.email_protection
        || usage.time_stamping
        || usage.ocsp_signing;
    !others && usage.other.is_empty()
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
        ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType, SignatureAlgorithm,
    };

    use super::*;
    use crate::identity::ca::pem;
    use crate::identity::testing::identity;

    fn params(uri: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params
    }

    fn made(
        algorithm: &'static SignatureAlgorithm,
        spoil: impl FnOnce(&mut CertificateParams),
    ) -> CertificateSigningRequestDer<'static> {
        let mut params = params(&identity("web").to_string());
        spoil(&mut params);
        let key = KeyPair::generate_for(algorithm).unwrap();
        params.serialize_request(&key).unwrap().der().clone()
    }

    fn checked(der: &[u8]) -> Result<(), CsrError> {
        check(&pem::request(der), &identity("web")).map(drop)
    }

    #[test]
    fn what_agents_send_is_taken() {
        let p256 = &rcgen::PKCS_ECDSA_P256_SHA256;
        assert_eq!(checked(&made(p256, |_| {})), Ok(()));
        assert_eq!(checked(&made(&rcgen::PKCS_ECDSA_P384_SHA384, |_| {})), Ok(()));
        assert_eq!(checked(&made(p256, |params| params.subject_alt_names.clear())), Ok(()), "no name at all");
        let sidecar = made(p256, |params| params.distinguished_name.push(DnType::OrganizationName, ""));
        assert_eq!(checked(&sidecar), Ok(()), "Istio's sidecar agent");
        let usages = made(p256, |params| {
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages =
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        });
        assert_eq!(checked(&usages), Ok(()));
    }

    #[test]
    fn what_asks_for_more_is_refused() {
        type Spoil = fn(&mut CertificateParams);
        let cases: [(&str, Spoil, CsrError); 10] = [
            (
                "another identity",
                |params| *params = self::params(&identity("other").to_string()),
                CsrError::Name,
            ),
            (
                "a second identity",
                |params| {
                    let other = identity("other").to_string();
                    params.subject_alt_names.push(SanType::URI(other.try_into().unwrap()));
                },
                CsrError::Name,
            ),
            (
                "a DNS name",
                |params| {
                    params.subject_alt_names = vec![SanType::DnsName("a.example".try_into().unwrap())];
                },
                CsrError::Name,
            ),
            (
                "a common name",
                |params| params.distinguished_name.push(DnType::CommonName, "root"),
                CsrError::Subject,
            ),
            (
                "an organisation",
                |params| params.distinguished_name.push(DnType::OrganizationName, "system:masters"),
                CsrError::Subject,
            ),
            (
                "an authority",
                |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
                CsrError::Authority,
            ),
            ("expressly none", |params| params.is_ca = IsCa::ExplicitNoCa, CsrError::Authority),
            (
                "the right to sign",
                |params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign],
                CsrError::Authority,
            ),
            (
                "code signing",
                |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning],
                CsrError::Extension,
            ),
            (
                "an extension that nobody knows",
                |params| {
                    params.custom_extensions =
                        vec![CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 1, 1], vec![5, 0])];
                },
                CsrError::Extension,
            ),
        ];
        for (name, spoil, error) in cases {
            let der = made(&rcgen::PKCS_ECDSA_P256_SHA256, spoil);
            assert_eq!(checked(&der), Err(error), "{name}");
        }
    }

    #[test]
    fn keys_of_other_kinds_are_refused() {
        for algorithm in [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P521_SHA512, &rcgen::PKCS_RSA_SHA256] {
            assert_eq!(checked(&made(algorithm, |_| {})), Err(CsrError::KeyType), "{algorithm:?}");
        }
        // rcgen would take the curve from the signature's algorithm.
        let mut mixed = made(&rcgen::PKCS_ECDSA_P256_SHA256, |_| {}).to_vec();
        let ecdsa_with_sha256 = [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
        let at = mixed.windows(8).position(|eight| eight == ecdsa_with_sha256).unwrap();
        mixed[at + 7] = 3;
        assert_eq!(checked(&mixed), Err(CsrError::SignatureAlgorithm));
    }

    #[test]
    fn a_signature_of_another_key_is_refused() {
        let mut der = made(&rcgen::PKCS_ECDSA_P256_SHA256, |_| {}).to_vec();
        *der.last_mut().unwrap() ^= 1;
        assert_eq!(checked(&der), Err(CsrError::Signature));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let good = pem::request(&made(&rcgen::PKCS_ECDSA_P256_SHA256, |_| {}));
        let check = |text: &str| check(text, &identity("web")).map(drop);
        assert_eq!(check(&format!("\n {good}\n")), Ok(()));
        assert_eq!(check(""), Err(CsrError::Pem));
        assert_eq!(check("hello"), Err(CsrError::Pem));
        assert_eq!(check(&format!("{good}{good}")), Err(CsrError::Pem));
        assert_eq!(check(&format!("hello\n{good}")), Err(CsrError::Pem));
        assert_eq!(check(&good.replace("CERTIFICATE REQUEST", "CERTIFICATE")), Err(CsrError::Pem));
        assert_eq!(check(&pem::request(b"hello")), Err(CsrError::Malformed));
        let der = made(&rcgen::PKCS_ECDSA_P256_SHA256, |_| {});
        assert_eq!(checked(&[&der, &b"more"[..]].concat()), Err(CsrError::Malformed));
        let long = good.repeat(100);
        assert_eq!(check(&long), Err(CsrError::TooLong(long.len())));
    }

    proptest::proptest! {
        /// But where the change is in how the signature is encoded alone, which says nothing else (unused bits, say).
        #[test]
        fn a_request_that_was_changed_is_refused(at in 0_usize..400, flip in 1_u8.., cut in 0_usize..3) {
            let good = made(&rcgen::PKCS_ECDSA_P256_SHA256, |_| {}).to_vec();
            let mut der = good.clone();
            let at = at % der.len();
            der[at] ^= flip;
            der.truncate(der.len() - cut);
            if checked(&der).is_ok() {
                let [signed, changed] = [&good, &der].map(|der| {
                    X509CertificationRequest::from_der(der).unwrap().1.certification_request_info.raw
                });
                proptest::prop_assert_eq!(signed, changed);
            }
        }
    }
}
