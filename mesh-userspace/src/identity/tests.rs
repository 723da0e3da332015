//! Handshakes in memory: every wrong certificate is refused, for its own reason.

use std::sync::Arc;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, SanType};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::testing::{TestAuthority, identity, trust_domain};
use super::*;
use crate::model::{Identity, TrustDomain};

type Spoil = fn(&mut CertificateParams);

fn no_change(_params: &mut CertificateParams) {}

fn certificate(authority: &TestAuthority, identity: Identity) -> WorkloadCertificate {
    let key = KeyPair::generate().unwrap();
    let chain = vec![authority.leaf(&identity, &key, no_change)];
    let signed = SignedChain { chain, roots: vec![authority.root.clone()] };
    WorkloadCertificate::new(identity, signed, key.serialized_der()).unwrap()
}

/// A certificate as no store would keep it.
fn spoiled(authority: &TestAuthority, named: &Identity, spoil: Spoil) -> Arc<CertifiedKey> {
    let key = KeyPair::generate().unwrap();
    let leaf = authority.leaf(named, &key, spoil);
    certified(leaf, &key)
}

fn certified(leaf: CertificateDer<'static>, key: &KeyPair) -> Arc<CertifiedKey> {
    let der = PrivatePkcs8KeyDer::from(key.serialized_der()).into();
    let signing = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&der).unwrap();
    Arc::new(CertifiedKey::new(vec![leaf], signing))
}

/// A client that presents this key and takes any server of the authority.
fn client_with(authority: &TestAuthority, presented: Option<Arc<CertifiedKey>>) -> Arc<ClientConfig> {
    let expected = Expected::trust_domain(trust_domain());
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PeerVerifier::new(roots(authority), expected)));
    let mut config = match presented {
        Some(key) => builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    Arc::new(config)
}

fn server_with(authority: &TestAuthority, presented: Arc<CertifiedKey>) -> Arc<ServerConfig> {
    let expected = Expected::trust_domain(trust_domain());
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(PeerVerifier::new(roots(authority), expected)))
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(presented)));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    Arc::new(config)
}

fn roots(authority: &TestAuthority) -> TrustedRoots {
    TrustedRoots::new(Arc::new(Roots::new(std::slice::from_ref(&authority.root)).unwrap()))
}

/// What each end makes of the handshake: the peer's identity, or the reason of its failure.
async fn handshake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> (Result<String, &'static str>, Result<String, &'static str>) {
    let (near, far) = tokio::io::duplex(1 << 16);
    let name = ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
    let connecting = async {
        let mut stream = TlsConnector::from(client).connect(name, near).await?;
        // The server's verdict on the client's certificate comes after the client's part is done.
        stream.write_all(b"hello").await?;
        stream.flush().await?;
        stream.read_u8().await?;
        Ok(named(stream.get_ref().1.peer_certificates()))
    };
    let accepting = async {
        let mut stream = TlsAcceptor::from(server).accept(far).await?;
        let mut hello = [0; 5];
        stream.read_exact(&mut hello).await?;
        stream.write_u8(1).await?;
        stream.flush().await?;
        Ok(named(stream.get_ref().1.peer_certificates()))
    };
    let (client, server): (std::io::Result<String>, std::io::Result<String>) =
        tokio::join!(connecting, accepting);
    (client.map_err(|error| handshake_reason(&error)), server.map_err(|error| handshake_reason(&error)))
}

fn named(chain: Option<&[CertificateDer<'_>]>) -> String {
    peer_identity(chain.unwrap()).unwrap().to_string()
}

#[tokio::test]
async fn the_right_certificates_pass() {
    let authority = TestAuthority::new();
    let (a, b) = (certificate(&authority, identity("a")), certificate(&authority, identity("b")));
    let expected = Expected::identity(identity("b"));
    let (client, server) = handshake(client_config(&a, &expected).unwrap(), server_config(&b).unwrap()).await;
    assert_eq!(client, Ok(identity("b").to_string()));
    assert_eq!(server, Ok(identity("a").to_string()));
}

/// What a client's certificate is to a server's, where both take other trust domains for their own.
#[tokio::test]
async fn an_alias_stands_for_its_trust_domain() {
    let authority = TestAuthority::new();
    let alias = other_domain();
    let strict = certificate(&authority, identity("b"));
    let lenient =
        || certificate(&authority, identity("b")).accepting(std::slice::from_ref(&alias.trust_domain));
    let former = certificate(&authority, alias.clone());

    // A server takes clients of the alias if it knows it.
    let expected = Expected::identity(identity("b"));
    let client = || client_with(&authority, Some(Arc::clone(former.certified_key())));
    let (_, server) = handshake(client(), server_config(&lenient()).unwrap()).await;
    assert_eq!(server, Ok(alias.to_string()));
    let (_, server) = handshake(client(), server_config(&strict).unwrap()).await;
    assert_eq!(server, Err("wrong_trust_domain"));

    // A client takes the account that it wants, under either name, and no other.
    let other_account = Identity { service_account: "c".into(), ..alias.clone() };
    let other_account = certificate(&authority, other_account);
    let to = |named: &WorkloadCertificate| server_with(&authority, Arc::clone(named.certified_key()));
    let a = lenient();
    let wanted = || client_config(&a, &expected).unwrap();
    assert_eq!(handshake(wanted(), to(&former)).await.0, Ok(alias.to_string()));
    assert_eq!(handshake(wanted(), to(&other_account)).await.0, Err("wrong_identity"));
    let unaware = client_config(&strict, &expected).unwrap();
    assert_eq!(handshake(unaware, to(&former)).await.0, Err("wrong_trust_domain"));
}

#[test]
fn a_refused_peer_is_named() {
    let error: rustls::Error = PeerError::WrongIdentity(identity("c")).into();
    let error = std::io::Error::new(std::io::ErrorKind::InvalidData, error);
    assert_eq!(handshake_peer(&error), Some(&identity("c")));
    assert!(
        error.to_string().contains("peer is spiffe://cluster.local/ns/default/sa/c, which is not"),
        "{error}"
    );
    let error: rustls::Error = PeerError::UriNames(2).into();
    assert_eq!(handshake_peer(&std::io::Error::other(error)), None);
}

/// Verifiers that are in use already use the roots that a certificate is given.
#[tokio::test]
async fn roots_are_replaced_under_a_configuration() {
    let (old, new) = (TestAuthority::new(), TestAuthority::new());
    let both = Arc::new(Roots::new(&[old.root.clone(), new.root.clone()]).unwrap());
    let only_new = Arc::new(Roots::new(std::slice::from_ref(&new.root)).unwrap());
    let b = certificate(&new, identity("b"));
    let server = server_config(&b).unwrap();
    let client = || {
        let key = KeyPair::generate().unwrap();
        let leaf = old.leaf(&identity("a"), &key, no_change);
        client_with(&new, Some(certified(leaf, &key)))
    };
    let taken = async || handshake(client(), Arc::clone(&server)).await.1;
    assert_eq!(taken().await, Err("unknown_issuer"));
    b.adopt(&both);
    assert_eq!(taken().await, Ok(identity("a").to_string()));
    b.adopt(&only_new);
    assert_eq!(taken().await, Err("unknown_issuer"));
    // Not those that its own chain does not lead to.
    b.adopt(&Arc::new(Roots::new(std::slice::from_ref(&old.root)).unwrap()));
    assert_eq!(b.trusted().current(), only_new);
}

fn other_domain() -> Identity {
    Identity::new(TrustDomain::new("other.example").unwrap(), "default", "b").unwrap()
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.to_owned().try_into().unwrap())
}

/// Certificates that the authority signed and nobody may take.
fn wrong_certificates() -> Vec<(&'static str, Spoil, &'static str)> {
    vec![
        (
            "another trust domain",
            |params| params.subject_alt_names = vec![uri(&other_domain().to_string())],
            "wrong_trust_domain",
        ),
        (
            "expired",
            |params| params.not_after = OffsetDateTime::now_utc() - time::Duration::seconds(30),
            "expired",
        ),
        (
            "not yet valid",
            |params| params.not_before = OffsetDateTime::now_utc() + time::Duration::minutes(30),
            "not_yet_valid",
        ),
        (
            "for signing code",
            |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning],
            "wrong_usage",
        ),
        (
            "two identities",
            |params| params.subject_alt_names.push(uri("spiffe://cluster.local/ns/default/sa/admin")),
            "bad_san",
        ),
        (
            "a DNS name alone",
            |params| params.subject_alt_names = vec![SanType::DnsName("b.default.svc".try_into().unwrap())],
            "bad_san",
        ),
        ("no name", |params| params.subject_alt_names = Vec::new(), "bad_san"),
        (
            "a URI that is no identity",
            |params| params.subject_alt_names = vec![uri("https://cluster.local/ns/default/sa/b")],
            "bad_san",
        ),
    ]
}

#[tokio::test]
async fn a_wrong_server_is_refused() {
    let authority = TestAuthority::new();
    let a = certificate(&authority, identity("a"));
    let expected = Expected::identity(identity("b"));
    for (name, spoil, reason) in wrong_certificates() {
        let server = server_with(&authority, spoiled(&authority, &identity("b"), spoil));
        let (client, server) = handshake(client_config(&a, &expected).unwrap(), server).await;
        assert_eq!(client, Err(reason), "{name}");
        assert!(server.is_err(), "{name}");
    }
    let server = server_config(&certificate(&authority, identity("c"))).unwrap();
    let (client, _) = handshake(client_config(&a, &expected).unwrap(), server).await;
    assert_eq!(client, Err("wrong_identity"), "another service account");
}

#[tokio::test]
async fn a_wrong_client_is_refused() {
    let authority = TestAuthority::new();
    let server = server_config(&certificate(&authority, identity("b"))).unwrap();
    for (name, spoil, reason) in wrong_certificates() {
        let client = client_with(&authority, Some(spoiled(&authority, &identity("a"), spoil)));
        let (client, refused) = handshake(client, Arc::clone(&server)).await;
        assert_eq!(refused, Err(reason), "{name}");
        assert!(client.is_err(), "{name}");
    }
    let (client, refused) = handshake(client_with(&authority, None), server).await;
    assert_eq!((client, refused), (Err("no_certificate"), Err("no_certificate")), "no certificate");
}

#[tokio::test]
async fn who_signed_it_matters() {
    let authority = TestAuthority::new();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri(&identity("b").to_string())];
    let self_signed = certified(params.self_signed(&key).unwrap().der().clone(), &key);
    let stranger = spoiled(&TestAuthority::new(), &identity("b"), no_change);
    let a = certificate(&authority, identity("a"));
    let b = certificate(&authority, identity("b"));
    for (name, presented) in [("self-signed", self_signed), ("another root", stranger)] {
        let expected = Expected::identity(identity("b"));
        let server = server_with(&authority, Arc::clone(&presented));
        let (client, _) = handshake(client_config(&a, &expected).unwrap(), server).await;
        assert!(matches!(client, Err("unknown_issuer" | "bad_signature")), "{name}: {client:?}");
        let client = client_with(&authority, Some(presented));
        let (_, server) = handshake(client, server_config(&b).unwrap()).await;
        assert!(matches!(server, Err("unknown_issuer" | "bad_signature")), "{name}: {server:?}");
    }
}

/// A `ClientHello` of TLS 1.2 with ECDHE-ECDSA-AES128-GCM and the extensions that go with it.
fn tls12_hello() -> Vec<u8> {
    let extensions: [&[u8]; 3] = [
        // supported_groups: secp256r1
        &[0x00, 0x0a, 0x00, 0x04, 0x00, 0x02, 0x00, 0x17],
        // ec_point_formats: uncompressed
        &[0x00, 0x0b, 0x00, 0x02, 0x01, 0x00],
        // signature_algorithms: ecdsa_secp256r1_sha256
        &[0x00, 0x0d, 0x00, 0x04, 0x00, 0x02, 0x04, 0x03],
    ];
    let extensions = extensions.concat();
    let mut body = vec![0x03, 0x03];
    body.extend([7; 32]);
    body.extend([0x00, 0x00, 0x02, 0xc0, 0x2b, 0x01, 0x00]);
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(extensions);
    let mut message = vec![0x01, 0x00];
    message.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    message.extend(body);
    let mut record = vec![0x16, 0x03, 0x01];
    record.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
    record.extend(message);
    record
}

#[test]
fn tls_1_2_is_refused() {
    let authority = TestAuthority::new();
    let config = server_config(&certificate(&authority, identity("b"))).unwrap();
    let mut server = ServerConnection::new(config).unwrap();
    server.read_tls(&mut tls12_hello().as_slice()).unwrap();
    let error = server.process_new_packets().unwrap_err();
    assert_eq!(handshake_error_reason(&error), "protocol_version", "{error}");
    let mut answer = Vec::new();
    server.write_tls(&mut answer).unwrap();
    // Fatal alert 70, protocol_version.
    assert_eq!(&answer[answer.len() - 2..], [2, 70]);
}

#[test]
fn configurations_are_made_once() {
    let authority = TestAuthority::new();
    let a = certificate(&authority, identity("a"));
    assert!(Arc::ptr_eq(&server_config(&a).unwrap(), &server_config(&a).unwrap()));
    let b = Expected::identity(identity("b"));
    let first = client_config(&a, &b).unwrap();
    assert!(Arc::ptr_eq(&first, &client_config(&a, &b).unwrap()));
    assert!(!Arc::ptr_eq(&first, &client_config(&a, &Expected::identity(identity("c"))).unwrap()));
}

#[test]
fn the_hello_names_nobody() {
    let authority = TestAuthority::new();
    let a = certificate(&authority, identity("a"));
    let config = client_config(&a, &Expected::identity(identity("b"))).unwrap();
    let name = ServerName::try_from("b.default.svc.cluster.local").unwrap();
    let mut client = ClientConnection::new(config, name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    assert!(!hello.windows(9).any(|window| window == b"b.default"));
}

#[test]
fn debug_shows_no_key() {
    let authority = TestAuthority::new();
    let shown = format!("{:?}", certificate(&authority, identity("a")));
    assert!(shown.contains("serial") && !shown.to_lowercase().contains("key"), "{shown}");
}
