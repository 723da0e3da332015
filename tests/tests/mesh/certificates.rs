//! Whose certificate is taken, and what becomes of connections when it is renewed.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use mesh_tests::peer::Summary;
use mesh_tests::{NetNs, Node, SECONDS_10, SECONDS_30, eventually};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, ServerConfig, ServerConnection, SignatureScheme,
};
use time::OffsetDateTime;

use crate::world::{PORT, World, namespace, v4};

const HBONE: u16 = 15008;

/// A certificate and its key.
pub(crate) struct Leaf {
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

impl Leaf {
    fn key(&self) -> Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::try_from(self.key.clone()).map_err(|error| anyhow::anyhow!("{error}"))
    }
}

/// A proper workload certificate for a SPIFFE ID, spoilt by `spoil`; signed by the lab's authority, or by itself.
pub(crate) fn leaf(
    node: &Node,
    uri: Option<&str>,
    authority: bool,
    spoil: impl FnOnce(&mut CertificateParams),
) -> Result<Leaf> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.not_before = OffsetDateTime::now_utc() - time::Duration::minutes(2);
    params.not_after = OffsetDateTime::now_utc() + time::Duration::hours(1);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    if let Some(uri) = uri {
        params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    }
    spoil(&mut params);
    let certificate = if authority {
        let read =
            |file: &str| std::fs::read_to_string(node.ca_dir().join(file)).with_context(|| file.to_owned());
        let issuer =
            Issuer::from_ca_cert_pem(&read("ca-cert.pem")?, KeyPair::from_pem(&read("ca-key.pem")?)?)?;
        params.signed_by(&key, &issuer)?
    } else {
        params.self_signed(&key)?
    };
    Ok(Leaf { chain: vec![certificate.der().clone()], key: key.serialize_der() })
}

/// Takes every server: it is the server's judgement that is tested.
#[derive(Debug)]
struct AnyServer(CryptoProvider);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A client's configuration with this certificate, which takes every server.
pub(crate) fn client_config(leaf: Option<Leaf>) -> Result<ClientConfig> {
    let provider = aws_lc_rs::default_provider();
    let builder = ClientConfig::builder_with_provider(Arc::new(provider.clone()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)));
    let mut config = match leaf {
        Some(leaf) => builder.with_client_auth_cert(leaf.chain.clone(), leaf.key()?)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Whether the HBONE server at `to` takes a client with this certificate: it then sends its HTTP/2 settings.
fn is_taken(netns: &NetNs, to: IpAddr, leaf: Option<Leaf>) -> Result<bool> {
    let config = client_config(leaf)?;
    netns.run(move || -> Result<bool> {
        let mut socket = TcpStream::connect_timeout(&SocketAddr::new(to, HBONE), SECONDS_10)?;
        socket.set_read_timeout(Some(SECONDS_10))?;
        let mut tls = ClientConnection::new(Arc::new(config), ServerName::IpAddress(to.into()))?;
        let mut stream = rustls::Stream::new(&mut tls, &mut socket);
        // TLS 1.3: the client has finished before it hears that its certificate was refused.
        let result = stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
            .and_then(|()| stream.read(&mut [0; 64]));
        match result {
            Ok(length) => Ok(length > 0),
            Err(error)
                if [
                    ErrorKind::InvalidData,
                    ErrorKind::ConnectionReset,
                    ErrorKind::BrokenPipe,
                    ErrorKind::UnexpectedEof,
                ]
                .contains(&error.kind()) =>
            {
                Ok(false)
            }
            Err(error) => bail!("neither taken nor refused: {error}"),
        }
    })?
}

/// What a server answers to a client that knows TLS 1.2 and nothing newer.
fn offer_tls12(netns: &NetNs, to: IpAddr) -> Result<Vec<u8>> {
    let extensions: &[u8] = &[
        0x00, 0x0a, 0x00, 0x06, 0x00, 0x04, 0x00, 0x1d, 0x00, 0x17, // groups: x25519, P-256
        0x00, 0x0b, 0x00, 0x02, 0x01, 0x00, // points: uncompressed
        0x00, 0x0d, 0x00, 0x08, 0x00, 0x06, 0x04, 0x03, 0x08, 0x04, 0x04,
        0x01, // signatures: ECDSA P-256, RSA
        0x00, 0x10, 0x00, 0x05, 0x00, 0x03, 0x02, b'h', b'2', // ALPN
        0x00, 0x17, 0x00, 0x00, // extended master secret
    ];
    let mut body = vec![0x03, 0x03];
    body.extend([7; 32]);
    body.extend([0x00, 0x00, 0x04, 0xc0, 0x2b, 0xc0, 0x2f, 0x01, 0x00]);
    body.extend(u16::try_from(extensions.len())?.to_be_bytes());
    body.extend(extensions);
    let mut record = vec![0x16, 0x03, 0x01];
    record.extend(u16::try_from(body.len() + 4)?.to_be_bytes());
    record.push(0x01);
    record.extend(&u32::try_from(body.len())?.to_be_bytes()[1..]);
    record.extend(body);
    netns.run(move || -> Result<Vec<u8>> {
        let mut socket = TcpStream::connect_timeout(&SocketAddr::new(to, HBONE), SECONDS_10)?;
        socket.set_read_timeout(Some(SECONDS_10))?;
        socket.write_all(&record)?;
        let mut answer = vec![0; 7];
        socket.read_exact(&mut answer)?;
        Ok(answer)
    })?
}

#[test]
fn clients_with_wrong_certificates_are_refused_and_counted_by_reason() -> Result<()> {
    let world = World::start(true)?;
    let (node, netns) = (&world.b, world.outside.netns());
    let uri = "spiffe://cluster.local/ns/default/sa/outside";
    let other = "spiffe://elsewhere.example/ns/default/sa/outside";
    let long_ago = |params: &mut CertificateParams| {
        params.not_before = OffsetDateTime::now_utc() - time::Duration::hours(2);
        params.not_after = OffsetDateTime::now_utc() - time::Duration::hours(1);
    };
    let server_only = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    };
    let cases = [
        ("wrong_trust_domain", Some(leaf(node, Some(other), true, |_| ())?)),
        ("expired", Some(leaf(node, Some(uri), true, long_ago)?)),
        ("unknown_issuer", Some(leaf(node, Some(uri), false, |_| ())?)),
        ("bad_san", Some(leaf(node, None, true, |_| ())?)),
        ("wrong_usage", Some(leaf(node, Some(uri), true, server_only)?)),
        ("no_certificate", None),
    ];
    let count = |reason: &str| {
        world.agent_b.metric(
            "mesh_tls_handshake_failures_total",
            &["side=\"server\"", &format!("reason=\"{reason}\"")],
        )
    };
    let counted = |reason: &str| {
        let once = || count(reason).ok().filter(|count| (count - 1.0).abs() < 0.5);
        eventually(SECONDS_10, &format!("{reason} is counted once"), once).with_context(|| {
            world
                .agent_b
                .metrics()
                .unwrap_or_default()
                .lines()
                .filter(|line| line.contains("handshake"))
                .collect::<Vec<_>>()
                .join("\n")
        })
    };
    for to in [IpAddr::from(world.far.v4), IpAddr::from(world.far.v6)] {
        assert!(
            is_taken(netns, to, Some(leaf(node, Some(uri), true, |_| ())?))?,
            "{to}: the one that is right"
        );
    }
    for (reason, leaf) in cases {
        assert!(!is_taken(netns, world.far.v4.into(), leaf)?, "{reason} was taken");
        counted(reason)?;
    }
    let answer = offer_tls12(netns, world.far.v4.into())?;
    assert_eq!((answer[0], answer[5], answer[6]), (0x15, 2, 70), "fatal alert protocol_version: {answer:?}");
    counted("protocol_version")?;
    let flows = world
        .agent_b
        .wait_flows(7, "failed handshakes leave a record", |flow| flow["outcome"] == "tls_failed")?;
    let named = |flow: &serde_json::Value| flow["error"].as_str().is_some_and(|error| error.contains(other));
    assert_eq!(flows.iter().filter(|flow| named(flow)).count(), 1, "who is known is named: {flows:#?}");
    Ok(())
}

#[test]
fn an_alias_of_the_trust_domain_is_taken() -> Result<()> {
    let world = World::start_with(true, &[("--trust-domain-aliases", "former.example,older.example")])?;
    let taken = |domain: &str| {
        let uri = format!("spiffe://{domain}/ns/default/sa/outside");
        is_taken(world.outside.netns(), world.far.v4.into(), Some(leaf(&world.b, Some(&uri), true, |_| ())?))
    };
    for (domain, wanted) in
        [("cluster.local", true), ("former.example", true), ("older.example", true), ("other.example", false)]
    {
        assert_eq!(taken(domain)?, wanted, "{domain}");
    }
    Ok(())
}

#[test]
fn a_server_with_another_identity_is_refused() -> Result<()> {
    let world = World::start(true)?;
    world.serve("http")?;
    assert_eq!(world.client.connect(&[&v4("far")])?.ok, 1);
    // In the place of node-b's agent stands a server with a good certificate, of somebody else.
    world.enrol(false)?;
    world.agent_b.terminate(SECONDS_30)?;
    world.lab.manifests().apply("namespace.yaml", &namespace("default", true))?;
    let agent_a = &world.agent_a;
    agent_a.wait_enrolled(&[&world.client, &world.near])?;
    let leaf = leaf(&world.b, Some("spiffe://cluster.local/ns/default/sa/twin"), true, |_| ())?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(leaf.chain.clone(), leaf.key()?)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let config = Arc::new(config);
    let listener = world.far.netns().run(|| TcpListener::bind(("0.0.0.0", HBONE)))??;
    std::thread::spawn(move || {
        while let Ok((mut socket, _)) = listener.accept() {
            let _bounded = socket.set_read_timeout(Some(SECONDS_10));
            if let Ok(mut tls) = ServerConnection::new(Arc::clone(&config)) {
                // It is the client that ends this.
                let _refused = rustls::Stream::new(&mut tls, &mut socket).read(&mut [0; 64]);
            }
        }
    });
    let summary = world.client.connect(&[&format!("{}:{PORT}", world.far.v4), "--count", "3"])?;
    assert_eq!((summary.ok, summary.failed), (0, 3), "{summary:?}");
    let refused = || {
        let count = agent_a
            .metric("mesh_tls_handshake_failures_total", &["side=\"client\"", "reason=\"wrong_identity\""])
            .ok()?;
        (count >= 1.0).then_some(())
    };
    eventually(SECONDS_10, "it is counted", refused).with_context(|| format!("{:#?}", agent_a.flows()))?;
    let flows = agent_a.wait_flows(3, "each leaves a record", |flow| flow["outcome"] == "tls_failed")?;
    for flow in &flows {
        let error = flow["error"].as_str().unwrap_or_default();
        assert!(
            error.contains("peer is spiffe://cluster.local/ns/default/sa/twin, which is not"),
            "{flow:#}"
        );
        assert_eq!(
            flow["destination"]["identity"],
            serde_json::Value::Null,
            "nobody proved to be that: {flow:#}"
        );
    }
    Ok(())
}

#[test]
fn renewed_certificates_leave_open_connections_alone() -> Result<()> {
    let world = World::start_with(true, &[("--cert-ttl", "4s")])?;
    world.serve("echo")?;
    let kept = world.client.load(&[&v4("far"), "--mode", "echo", "--keep", "--concurrency", "4"])?;
    let new = world.client.load(&[&v4("both"), "--mode", "echo", "--concurrency", "1"])?;
    let serial = |agent: &mesh_tests::Agent, account: &str| -> Option<String> {
        let certs = agent.json("/v1/certs").ok()?;
        let is = |cert: &&serde_json::Value| {
            cert["identity"].as_str().is_some_and(|identity| identity.ends_with(account))
        };
        certs.as_array()?.iter().find(is)?["serial"].as_str().map(str::to_owned)
    };
    for _renewal in 0..3 {
        for (agent, account) in [(&world.agent_a, "/client"), (&world.agent_b, "/far")] {
            let before = eventually(SECONDS_10, "there is a certificate", || serial(agent, account))?;
            eventually(SECONDS_10, "it is renewed", || serial(agent, account).filter(|now| *now != before))?;
        }
    }
    for load in [kept, new] {
        let summary = Summary::end(&load)?;
        assert_eq!(summary.failed, 0, "{summary:?}");
        assert!(summary.elapsed_ms > 4000, "{summary:?}");
    }
    let failures = world.agent_b.metric("mesh_tls_handshake_failures_total", &[])?;
    assert!(failures < 0.5, "{failures}");
    Ok(())
}
