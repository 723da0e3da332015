//! What an authority signs, with what it read from its folder at one moment.

use std::path::Path;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::error::AuthorityError;
use crate::identity::roots::hex;
use crate::identity::{Roots, SignError, SignedChain, SigningRequest, provider};
use crate::model::Identity;
#[cfg(test)]
use crate::model::TrustDomain;

/// Life of a root made here.
const ROOT_VALIDITY: time::Duration = time::Duration::days(3650);
/// Life of a certificate that is signed to try an authority, and thrown away.
const TRIAL: Duration = Duration::from_mins(1);
/// How far in the past a certificate begins, for clocks that disagree.
const BACKDATE: time::Duration = time::Duration::minutes(2);

/// One state of an authority: key, certificate, and whom its peers trust. Immutable.
pub(super) struct Issuing {
    key: Zeroizing<KeyPair>,
    pub(super) certificate: CertificateDer<'static>,
    pub(super) not_before: OffsetDateTime,
    pub(super) not_after: OffsetDateTime,
    /// What follows the leaf in a chain: the authority's certificate unless it is a root, and its own issuers.
    intermediates: Vec<CertificateDer<'static>>,
    pub(super) roots: Vec<CertificateDer<'static>>,
}

impl Issuing {
    /// Joins what was read from a folder, if peers that trust the roots would take what it signs. The certificate belongs
    /// to the key; `path` is where it is from.
    pub(super) fn new(
        key: Zeroizing<KeyPair>,
        certificate: CertificateDer<'static>,
        path: &Path,
        chain: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, AuthorityError> {
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate)
            .map_err(|_error| AuthorityError::Content { path: path.into(), expected: "X.509 certificate" })?;
        if !parsed.is_ca() {
            return Err(AuthorityError::NotAnAuthority { path: path.into() });
        }
        let not_before = parsed.validity().not_before.to_datetime();
        let not_after = parsed.validity().not_after.to_datetime();
        if not_after <= OffsetDateTime::now_utc() {
            return Err(AuthorityError::Expired { path: path.into(), not_after });
        }
        let mut intermediates = Vec::new();
        if !roots.contains(&certificate) {
            intermediates.push(certificate.clone());
            let between = |issuer: &CertificateDer<'_>| *issuer != certificate && !roots.contains(issuer);
            intermediates.extend(chain.into_iter().filter(between));
        }
        let issuing = Self { key, certificate, not_before, not_after, intermediates, roots };
        issuing.try_out(path)?;
        Ok(issuing)
    }

    /// Signs a certificate and verifies it as a peer would: whatever may be wrong with a chain shows here.
    fn try_out(&self, path: &Path) -> Result<(), AuthorityError> {
        let untrusted = || AuthorityError::Untrusted { cert: path.into() };
        let roots = Roots::new(&self.roots).map_err(|_error| untrusted())?;
        let key = KeyPair::generate().map_err(AuthorityError::Generate)?;
        let signed = self.serving_chain(&[], &key, TRIAL).map_err(|error| match error {
            SignError::Signing(error) => AuthorityError::Generate(error),
            _ => untrusted(),
        })?;
        roots.issuer_of(&signed.chain).map(drop).ok_or_else(untrusted)
    }

    /// The chain that the authority's own server shows: its names, for the server's end of a connection alone.
    pub(super) fn serving_chain(
        &self,
        names: &[SanType],
        public_key: &impl PublicKeyData,
        validity: Duration,
    ) -> Result<SignedChain, SignError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names.to_vec();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        Ok(self.with_chain(self.issue(params, public_key, validity)?))
    }

    fn with_chain(&self, leaf: CertificateDer<'static>) -> SignedChain {
        let mut chain = vec![leaf];
        chain.extend_from_slice(&self.intermediates);
        SignedChain { chain, roots: self.roots.clone() }
    }

    pub(super) fn sign(&self, request: SigningRequest<'_>) -> Result<SignedChain, SignError> {
        // The request proves possession of the key; what else it asks for does not count.
        let csr = CertificateSigningRequestParams::from_der(request.csr).map_err(SignError::Signing)?;
        Ok(self.with_chain(self.leaf(request.identity, &csr.public_key, request.validity)?))
    }

    /// A leaf for `identity` with this public key, valid from shortly before now, never beyond the authority itself.
    pub(super) fn leaf(
        &self,
        identity: &Identity,
        public_key: &impl PublicKeyData,
        validity: Duration,
    ) -> Result<CertificateDer<'static>, SignError> {
        self.issue(leaf_params(identity).map_err(SignError::Signing)?, public_key, validity)
    }

    fn issue(
        &self,
        mut params: CertificateParams,
        public_key: &impl PublicKeyData,
        validity: Duration,
    ) -> Result<CertificateDer<'static>, SignError> {
        let now = OffsetDateTime::now_utc();
        if now >= self.not_after {
            return Err(SignError::AuthorityExpired);
        }
        params.serial_number = Some(
            random_serial().map_err(|_error| SignError::Unavailable(AuthorityError::Random.to_string()))?,
        );
        params.not_before = now - BACKDATE;
        params.not_after = (now + validity).min(self.not_after);
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &*self.key).map_err(SignError::Signing)?;
        let leaf = params.signed_by(public_key, &issuer).map_err(SignError::Signing)?;
        Ok(leaf.der().clone())
    }
}

/// A root for `organization` with its key, both in PEM.
pub(super) fn make_root(organization: &str) -> Result<(String, Zeroizing<String>), AuthorityError> {
    let key = Zeroizing::new(
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(AuthorityError::Generate)?,
    );
    let root = root_of(organization)?.self_signed(&*key).map_err(AuthorityError::Generate)?;
    Ok((root.pem(), Zeroizing::new(key.serialize_pem())))
}

/// What every leaf has: one URI SAN, for both ends of a TLS connection.
pub(in crate::identity) fn leaf_params(identity: &Identity) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// What a root made here has.
#[cfg(test)]
pub(in crate::identity) fn root_params(
    trust_domain: &TrustDomain,
) -> Result<CertificateParams, AuthorityError> {
    root_of(trust_domain.as_str())
}

fn root_of(organization: &str) -> Result<CertificateParams, AuthorityError> {
    let now = OffsetDateTime::now_utc();
    let serial = random_serial()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, organization);
    // Two roots that are trusted at once have names of their own.
    let mark = hex(serial.as_ref().get(..4).unwrap_or_default());
    params.distinguished_name.push(DnType::CommonName, format!("mesh root {mark}"));
    params.serial_number = Some(serial);
    params.not_before = now - BACKDATE;
    params.not_after = now + ROOT_VALIDITY;
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ok(params)
}

/// 127 random bits, positive as RFC 5280, section 4.1.2.2 wants.
fn random_serial() -> Result<SerialNumber, AuthorityError> {
    let mut bytes = [0_u8; 16];
    provider().secure_random.fill(&mut bytes).map_err(|_error| AuthorityError::Random)?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}
