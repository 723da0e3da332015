//! The server's certificates, right and wrong.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};
use tokio_rustls::TlsAcceptor;

/// What the server shows of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shows {
    /// A certificate that its clients can trust.
    Right,
    /// One that an authority has signed which nobody knows.
    UnknownIssuer,
    /// One for another name.
    OtherName,
    /// One that has expired.
    Expired,
}

/// Its authorities.
#[derive(Debug)]
pub(super) struct Authority {
    trusted: CertifiedIssuer<'static, KeyPair>,
    unknown: CertifiedIssuer<'static, KeyPair>,
    addresses: Vec<IpAddr>,
}

impl Authority {
    /// For a server at this address.
    pub(super) fn new(address: IpAddr) -> Result<Self> {
        let addresses = vec![address, Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        Ok(Self { trusted: issuer("kubernetes")?, unknown: issuer("somebody else")?, addresses })
    }

    /// What its clients trust.
    pub(super) fn pem(&self) -> String {
        self.trusted.pem()
    }

    /// What new connections get to see.
    pub(super) fn acceptor(&self, shows: Shows) -> Result<TlsAcceptor> {
        let mut params = CertificateParams::new(vec![]).context("a certificate")?;
        let names: &[&str] = &["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"];
        let names = if shows == Shows::OtherName { &["elsewhere.example"][..] } else { names };
        for name in names {
            params.subject_alt_names.push(SanType::DnsName((*name).try_into().context("a name")?));
        }
        if shows != Shows::OtherName {
            let addresses = self.addresses.iter().map(|address| SanType::IpAddress(*address));
            params.subject_alt_names.extend(addresses);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        let now = OffsetDateTime::now_utc();
        let ends = if shows == Shows::Expired { -Duration::HOUR } else { Duration::DAY };
        (params.not_before, params.not_after) = (now - Duration::DAY, now + ends);
        let key = KeyPair::generate().context("a key")?;
        let issuer = if shows == Shows::UnknownIssuer { &self.unknown } else { &self.trusted };
        let certificate = params.signed_by(&key, issuer).context("sign a certificate")?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("TLS")?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .context("TLS")?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

fn issuer(name: &str) -> Result<CertifiedIssuer<'static, KeyPair>> {
    let mut params = CertificateParams::new(vec![]).context("a certificate")?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, name);
    let now = OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - Duration::DAY, now + Duration::DAY);
    CertifiedIssuer::self_signed(params, KeyPair::generate().context("a key")?).context("an authority")
}
