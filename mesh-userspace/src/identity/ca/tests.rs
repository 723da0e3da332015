//! The authority's server and the agent's client, one against the other over loopback.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::future::BoxFuture;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use serde_json::Value as Json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tonic::Code;

use super::proto::IstioCertificateRequest;
use super::serving::Serving;
use super::*;
use crate::identity::testing::{TempDir, identity, trust_domain};
use crate::identity::{Authority, SignError, Signer, SigningRequest};
use crate::model::{Identity, NodeName};

const AGENT: &str = "agent-0123456789abcdef0123456789abcdef";
const POD: &str = "pod-0123456789abcdef0123456789abcdef";
const OTHERS: &str = "others-0123456789abcdef0123456789abcdef";
const OLD: &str = "old-0123456789abcdef0123456789abcdef";
const NOWHERE: &str = "nowhere-0123456789abcdef0123456789abcdef";

/// `default/web` runs on node-a, unless nobody can say so.
#[derive(Default)]
struct Pods {
    away: AtomicBool,
    stuck: AtomicBool,
    asked: tokio::sync::Notify,
}

impl Placement for Pods {
    fn runs<'a>(
        &'a self,
        account: &'a Account,
        node: &'a NodeName,
    ) -> BoxFuture<'a, Result<bool, PlacementError>> {
        let found = account.to_string() == "default/web" && node.as_str() == "node-a";
        let (away, stuck) = (self.away.load(Ordering::Relaxed), self.stuck.load(Ordering::Relaxed));
        Box::pin(async move {
            self.asked.notify_one();
            if stuck {
                std::future::pending::<()>().await;
            }
            if away { Err(PlacementError("away".to_owned())) } else { Ok(found) }
        })
    }
}

struct World {
    dir: TempDir,
    address: SocketAddr,
    pods: Arc<Pods>,
    metrics: Arc<CaMetrics>,
    authority: Arc<Authority>,
    stop: watch::Sender<bool>,
    served: tokio::task::JoinHandle<()>,
    written: Option<JoinHandle<()>>,
}

impl World {
    async fn start(limits: Limits) -> Self {
        Self::start_with(limits, false).await
    }

    async fn start_with(limits: Limits, client_certificates: bool) -> Self {
        let dir = TempDir::new();
        let tokens = dir.path().join("tokens");
        std::fs::write(
            &tokens,
            format!(
                "node-a mesh-system/meshd {AGENT}\nnode-a default/web {POD}\nnode-a mesh-system/meshd {OTHERS} vault\n\
                 node-a mesh-system/meshd {OLD} 2020-01-01T00:00:00Z\nnode-b mesh-system/meshd {NOWHERE}\n"
            ),
        )
        .unwrap();
        std::fs::set_permissions(&tokens, std::fs::Permissions::from_mode(0o600)).unwrap();
        let authority = Arc::new(Authority::open(&dir.path().join("ca"), &trust_domain()).unwrap());
        let metrics = Arc::new(CaMetrics::new("1"));
        let names = ServingConfig {
            names: vec!["127.0.0.1".to_owned(), "localhost".to_owned()],
            client_roots: client_certificates.then(|| dir.path().join("ca/root-cert.pem")),
        };
        let serving = Arc::new(Serving::open(Arc::clone(&authority), &names, Arc::clone(&metrics)).unwrap());
        let tokens = NodeTokens::open(&tokens).unwrap();
        let pods = Arc::new(Pods::default());
        let (audit, written) = Audit::open(Some(&dir.path().join("audit"))).unwrap();
        let placements: Vec<Arc<dyn Placement>> = vec![Arc::<Pods>::clone(&pods)];
        let accounts = ["mesh-system/meshd".parse().unwrap()];
        let server = Server::new(ServerConfig {
            callers: Callers::new(trust_domain(), Some(tokens), None, client_certificates).unwrap(),
            authoriser: Authoriser::new(trust_domain(), accounts, placements),
            signer: Arc::<Authority>::clone(&authority),
            audit,
            metrics: Arc::clone(&metrics),
            serving,
            max_life: Duration::from_hours(2),
            limits,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, mut stopped) = watch::channel(false);
        let served = tokio::spawn(async move {
            server
                .run(listener, async move {
                    let _ = stopped.wait_for(|stop| *stop).await;
                })
                .await;
        });
        Self { dir, address, pods, metrics, authority, stop, served, written: Some(written) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn client(&self, token: &str) -> CaClient {
        self.client_with(|config| {
            let path = self.path("token");
            std::fs::write(&path, format!("{token}\n")).unwrap();
            config.token = Some(path);
        })
    }

    fn client_with(&self, change: impl FnOnce(&mut CaClientConfig)) -> CaClient {
        let mut config = CaClientConfig {
            address: self.address.to_string().parse().unwrap(),
            roots: self.path("ca/root-cert.pem"),
            server_name: None,
            token: None,
            certificate: None,
            cluster: "Kubernetes".to_owned(),
            own: agent(),
        };
        change(&mut config);
        CaClient::new(config).unwrap()
    }

    /// Ends the server, and says what it has written.
    async fn audit(mut self) -> Vec<Json> {
        self.stop.send_replace(true);
        (&mut self.served).await.unwrap();
        let written = self.written.take().unwrap();
        tokio::task::spawn_blocking(move || written.join().unwrap()).await.unwrap();
        lines(&self.path("audit"))
    }
}

fn lines(path: &Path) -> Vec<Json> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn agent() -> Identity {
    Identity::new(trust_domain(), "mesh-system", "meshd").unwrap()
}

fn csr(identity: &Identity) -> rcgen::CertificateSigningRequest {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into().unwrap())];
    let key = KeyPair::generate().unwrap();
    params.serialize_request(&key).unwrap()
}

async fn sign(client: &CaClient, identity: &Identity) -> Result<crate::identity::SignedChain, SignError> {
    let csr = csr(identity);
    let validity = Duration::from_hours(1);
    client.sign(SigningRequest { identity, csr: csr.der(), validity }).await
}

fn message(csr: &str, impersonated: Option<Kind>) -> IstioCertificateRequest {
    let fields = impersonated.map(|kind| ("ImpersonatedIdentity".to_owned(), Value { kind: Some(kind) }));
    IstioCertificateRequest {
        csr: csr.to_owned(),
        validity_duration: 0,
        metadata: fields.map(|field| Struct { fields: [field].into() }),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "it is what a message takes")]
fn text(text: impl Into<String>) -> Option<Kind> {
    Some(Kind::StringValue(text.into()))
}

#[tokio::test]
async fn an_agent_gets_certificates_for_itself_and_for_the_pods_of_its_node() {
    let world = World::start(Limits::default()).await;
    let client = world.client(AGENT);
    let (own, web) = (agent(), identity("web"));
    for wanted in [&own, &web] {
        let signed = sign(&client, wanted).await.unwrap();
        assert_eq!(crate::identity::peer_identity(&signed.chain), Ok(wanted.clone()));
        assert_eq!(signed.roots, world.authority.roots());
    }
    let text = world.metrics.render();
    assert!(text.contains("mesh_ca_requests_total{outcome=\"granted\",reason=\"granted\"} 2"), "{text}");
    let lines = world.audit().await;
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0].get("impersonated"), None);
    assert_eq!(lines[0]["identity"], own.to_string());
    let line = &lines[1];
    for (field, value) in [
        ("outcome", "granted"),
        ("auth", "node_token"),
        ("caller", "mesh-system/meshd"),
        ("node", "node-a"),
        ("impersonated", &web.to_string()),
        ("identity", &web.to_string()),
    ] {
        assert_eq!(line[field], value, "{line}");
    }
    assert_eq!(line["serial"].as_str().map(str::len), Some(32));
    assert!(line["not_after"].as_str().is_some_and(|time| time.ends_with('Z')), "{line}");
    let all = format!("{lines:?}");
    assert!(!all.contains(AGENT) && !all.contains("PRIVATE") && !all.contains("CERTIFICATE"), "{all}");
}

#[tokio::test]
async fn a_life_is_as_long_as_allowed() {
    let world = World::start(Limits::default()).await;
    let client = world.client(AGENT);
    let own = agent();
    for (asked, given) in [(3600, Some(3600)), (0, Some(7200)), (i64::MAX, Some(7200)), (-1, None)] {
        let message = IstioCertificateRequest {
            csr: pem::request(csr(&own).der()),
            validity_duration: asked,
            metadata: None,
        };
        let answered = client.send(message, Some(&format!("Bearer {AGENT}"))).await;
        let life = answered.ok().map(|response| {
            let (_, pem) = x509_parser::pem::parse_x509_pem(response.cert_chain[0].as_bytes()).unwrap();
            let validity = pem.parse_x509().unwrap().validity().clone();
            validity.not_after.timestamp() - validity.not_before.timestamp() - 120
        });
        assert_eq!(life, given, "{asked}");
    }
}

#[tokio::test]
async fn what_is_not_allowed_is_refused_with_its_reason_and_leaves_a_line() {
    let world = World::start(Limits::default()).await;
    let client = world.client(AGENT);
    let bearer = |token: &str| Some(format!("Bearer {token}"));
    let (own, web, other) = (agent(), identity("web"), identity("other"));
    let pem = |identity: &Identity| pem::request(csr(identity).der());
    let good = pem(&own);
    let spoilt = {
        let mut der = csr(&own).der().to_vec();
        *der.last_mut().unwrap() ^= 1;
        pem::request(&der)
    };
    let elsewhere = "spiffe://elsewhere/ns/default/sa/web";
    let cases = [
        (None, message(&good, None), Code::Unauthenticated, "no_credentials"),
        (Some("Basic abc".to_owned()), message(&good, None), Code::Unauthenticated, "malformed_token"),
        (bearer("nobody"), message(&good, None), Code::Unauthenticated, "unknown_token"),
        (bearer(OTHERS), message(&good, None), Code::Unauthenticated, "wrong_audience"),
        (bearer(OLD), message(&good, None), Code::Unauthenticated, "expired_token"),
        (
            bearer(AGENT),
            message(&pem(&other), text(other.to_string())),
            Code::PermissionDenied,
            "not_on_node",
        ),
        (bearer(NOWHERE), message(&pem(&web), text(web.to_string())), Code::PermissionDenied, "not_on_node"),
        (bearer(POD), message(&good, text(own.to_string())), Code::PermissionDenied, "not_a_node_account"),
        (bearer(AGENT), message(&good, text(elsewhere)), Code::PermissionDenied, "wrong_trust_domain"),
        (bearer(AGENT), message(&good, text("hello")), Code::InvalidArgument, "bad_identity"),
        (bearer(AGENT), message(&good, Some(Kind::NumberValue(1.0))), Code::InvalidArgument, "bad_identity"),
        (bearer(AGENT), message(&pem(&web), None), Code::InvalidArgument, "csr_name"),
        (bearer(POD), message(&pem(&other), None), Code::InvalidArgument, "csr_name"),
        (bearer(AGENT), message(&spoilt, None), Code::InvalidArgument, "csr_signature"),
        (bearer(AGENT), message("hello", None), Code::InvalidArgument, "csr_malformed"),
        (bearer(AGENT), message("", None), Code::InvalidArgument, "csr_malformed"),
        (bearer(AGENT), message(&"a".repeat(20_000), None), Code::InvalidArgument, "csr_too_long"),
        (bearer(AGENT), message(&"a".repeat(10 << 20), None), Code::ResourceExhausted, "too_large"),
    ];
    let mut expected = Vec::new();
    for (header, message, code, reason) in cases {
        let status = client.send(message, header.as_deref()).await.unwrap_err();
        assert_eq!(status.code(), code, "{reason}: {status:?}");
        assert!(!status.message().is_empty() && !status.message().contains(AGENT), "{status:?}");
        expected.push(reason);
    }
    world.pods.away.store(true, Ordering::Relaxed);
    let status = client.send(message(&pem(&web), text(web.to_string())), bearer(AGENT).as_deref()).await;
    let status = status.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(!status.message().contains("away"), "its details are the operator's: {status:?}");
    expected.push("placement_unavailable");
    let lines = world.audit().await;
    let reasons: Vec<_> = lines.iter().map(|line| line["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, expected);
    assert!(lines.iter().all(|line| line["outcome"] == "refused" && line["detail"].is_string()));
    assert!(lines.last().unwrap()["detail"].as_str().unwrap().ends_with("away"));
    let all = format!("{lines:?}");
    assert!([AGENT, POD, OTHERS, OLD].iter().all(|token| !all.contains(token)), "{all}");
}

#[tokio::test]
async fn a_client_certificate_names_caller_and_node() {
    let world = World::start_with(Limits::default(), true).await;
    let made = |uri: &str, names: &[&str]| {
        let issuer = rcgen::Issuer::from_ca_cert_pem(
            &std::fs::read_to_string(world.path("ca/ca-cert.pem")).unwrap(),
            KeyPair::from_pem(&std::fs::read_to_string(world.path("ca/ca-key.pem")).unwrap()).unwrap(),
        );
        let mut params =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &issuer.unwrap()).unwrap();
        let paths = (world.path("client.pem"), world.path("client.key"));
        std::fs::write(&paths.0, leaf.pem()).unwrap();
        std::fs::write(&paths.1, key.serialize_pem()).unwrap();
        std::fs::set_permissions(&paths.1, std::fs::Permissions::from_mode(0o600)).unwrap();
        world.client_with(|config| config.certificate = Some(paths))
    };
    let (own, web) = (agent().to_string(), identity("web"));
    let workload = web.to_string();
    let client = made(&own, &["node-a"]);
    assert!(sign(&client, &agent()).await.is_ok());
    assert!(sign(&client, &web).await.is_ok());
    let mut expected = vec!["granted", "granted"];
    let refused = [
        (own.as_str(), &[][..], "no_node"),
        (&own, &["node-a", "node-b"], "bad_client_certificate"),
        ("spiffe://elsewhere/ns/mesh-system/sa/meshd", &["node-a"], "wrong_trust_domain"),
        ("https://example.org/", &["node-a"], "bad_client_certificate"),
        // Not even its own identity: whoever has stolen a workload's certificate would renew it for ever.
        (&workload, &["node-a"], "not_a_node_account"),
    ];
    for (uri, names, reason) in refused {
        let client = made(uri, names);
        assert!(matches!(sign(&client, &web).await, Err(SignError::Refused { .. })), "{uri} {names:?}");
        expected.push(reason);
    }
    // A certificate does not help who shows a token that is wrong.
    let message = message(&pem::request(csr(&agent()).der()), None);
    let client = made(&own, &["node-a"]);
    assert_eq!(client.send(message, Some("Bearer wrong")).await.unwrap_err().code(), Code::Unauthenticated);
    expected.push("unknown_token");
    let lines = world.audit().await;
    let reasons: Vec<_> = lines.iter().map(|line| line["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, expected);
    assert_eq!((&lines[1]["auth"], &lines[1]["node"]), (&"client_certificate".into(), &"node-a".into()));
}

#[tokio::test]
async fn a_token_and_the_roots_are_read_again() {
    let world = World::start(Limits::default()).await;
    let path = world.path("token");
    let roots = world.path("roots");
    std::fs::copy(world.path("ca/root-cert.pem"), &roots).unwrap();
    let client = world.client_with(|config| {
        config.token = Some(path.clone());
        config.roots.clone_from(&roots);
    });
    assert!(matches!(sign(&client, &agent()).await, Err(SignError::Credentials(_))), "no token yet");
    std::fs::write(&path, "wrong").unwrap();
    assert!(matches!(sign(&client, &agent()).await, Err(SignError::Refused { .. })));
    std::fs::write(&path, AGENT).unwrap();
    assert!(sign(&client, &agent()).await.is_ok());
    // Another authority's root: the server is no longer believed.
    let other = TempDir::new();
    Authority::open(&other.path().join("ca"), &trust_domain()).unwrap();
    std::fs::copy(other.path().join("ca/root-cert.pem"), &roots).unwrap();
    let error = sign(&client, &agent()).await.unwrap_err();
    assert!(
        matches!(&error, SignError::Unavailable(why) if why.contains("invalid peer certificate")),
        "{error}"
    );
    std::fs::copy(world.path("ca/root-cert.pem"), &roots).unwrap();
    assert!(sign(&client, &agent()).await.is_ok());
    // A name that the server's certificate does not have.
    let client = world.client_with(|config| {
        config.token = Some(path.clone());
        config.server_name = Some("istiod.istio-system.svc".to_owned());
    });
    let error = sign(&client, &agent()).await.unwrap_err();
    assert!(
        matches!(&error, SignError::Unavailable(why) if why.contains("istiod.istio-system.svc")),
        "{error}"
    );
}

#[tokio::test]
async fn an_authority_that_is_away_or_silent_is_unavailable_in_time() {
    let world = World::start(Limits::default()).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (here, nobody) = (silent.local_addr().unwrap(), "127.0.0.1:1");
    for address in [here.to_string(), nobody.to_owned()] {
        let client = world.client_with(|config| config.address = address.parse().unwrap());
        let begun = std::time::Instant::now();
        let error = sign(&client, &agent()).await.unwrap_err();
        assert!(matches!(error, SignError::Unavailable(_)), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn garbage_and_slow_peers_are_ended_and_counted() {
    let limits = Limits {
        handshake: Duration::from_millis(200),
        idle: Duration::from_millis(300),
        per_address: 3,
        ..Limits::default()
    };
    let world = World::start(limits).await;
    let closed = |mut stream: TcpStream| async move {
        // An alert may come first.
        let mut rest = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await;
        end.expect("the server ends it").ok();
    };
    let mut garbage = TcpStream::connect(world.address).await.unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    closed(garbage).await;
    closed(TcpStream::connect(world.address).await.unwrap()).await;
    // Behind TLS: nothing at all, and what is no HTTP/2.
    for words in [&b""[..], b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"] {
        let mut tls = tls(&world).await;
        tls.write_all(words).await.unwrap();
        let mut rest = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(10), tls.read_to_end(&mut rest)).await;
        assert!(end.is_ok(), "the server ends it");
    }
    // A byte now and then keeps nobody here.
    let mut dripping = tls(&world).await;
    let drip = async {
        for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".iter().cycle() {
            dripping.write_all(&[*byte]).await?;
            dripping.flush().await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok::<(), std::io::Error>(())
    };
    assert!(tokio::time::timeout(Duration::from_secs(10), drip).await.expect("it ends").is_err());
    let counted = |reason: &str| {
        let text = world.metrics.render();
        let name = format!("mesh_ca_connections_refused_total{{reason=\"{reason}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |count| count.parse().unwrap())
    };
    assert_eq!((counted("timeout"), counted("no_request")), (1, 3));
    // More than its share.
    let held: Vec<TcpStream> = futures_util::future::join_all(
        (0..3).map(async |_| TcpStream::connect(world.address).await.unwrap()),
    )
    .await;
    closed(TcpStream::connect(world.address).await.unwrap()).await;
    assert!(counted("too_many_of_address") >= 1);
    drop(held);
    // And honest callers are served.
    let client = world.client(AGENT);
    let mut signed = sign(&client, &agent()).await;
    for _ in 0..50 {
        if signed.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        signed = sign(&client, &agent()).await;
    }
    assert!(signed.is_ok(), "{signed:?}");
    assert_eq!(world.audit().await.len(), 1);
}

/// A connection with its handshake made.
async fn tls(world: &World) -> tokio_rustls::client::TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    for root in world.authority.roots() {
        roots.add(root.clone()).unwrap();
    }
    let mut config = rustls::ClientConfig::builder_with_provider(crate::identity::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(world.address).await.unwrap();
    let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

#[tokio::test]
async fn what_is_no_request_for_a_certificate_leaves_a_line_as_well() {
    let world = World::start(Limits { request: Duration::from_secs(1), ..Limits::default() }).await;
    let (mut sender, connection) = h2::client::handshake(tls(&world).await).await.unwrap();
    let driven = tokio::spawn(connection);
    let path = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
    let uri = |path: &str| format!("https://localhost{path}");
    let post = |path: &str| {
        let request = http::Request::post(uri(path)).header("content-type", "application/grpc");
        request.body(()).unwrap()
    };
    // Another method, then a body that is no message, and one that never comes.
    let (answer, _) = sender.send_request(post("/grpc.health.v1.Health/Check"), true).unwrap();
    assert_eq!(answer.await.unwrap().headers()["grpc-status"], "12");
    let (answer, mut body) = sender.send_request(post(path), false).unwrap();
    body.send_data(bytes::Bytes::from_static(b"\0\0\0\0\x04\xff\xff\xff\xff"), true).unwrap();
    assert_eq!(answer.await.unwrap().headers()["grpc-status"], "3");
    let (answer, body) = sender.send_request(post(path), false).unwrap();
    assert_eq!(answer.await.unwrap().headers()["grpc-status"], "14");
    drop(body);
    driven.abort();
    // Gone while it is being decided.
    world.pods.stuck.store(true, Ordering::Relaxed);
    let client = world.client(AGENT);
    let web = identity("web");
    let asked = message(&pem::request(csr(&web).der()), text(web.to_string()));
    let header = format!("Bearer {AGENT}");
    tokio::select! {
        answer = client.send(asked, Some(&header)) => panic!("{answer:?}"),
        () = world.pods.asked.notified() => {}
    }
    let counted = async {
        while !world.metrics.render().contains("reason=\"cancelled\"} 1") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), counted).await.unwrap();
    let lines = world.audit().await;
    let reasons: Vec<_> = lines.iter().map(|line| line["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["unknown_method", "malformed", "timeout", "cancelled"]);
}

#[tokio::test]
async fn who_sends_slowly_takes_nobodys_place() {
    let world = World::start(Limits { requests: 1, ..Limits::default() }).await;
    let (mut sender, connection) = h2::client::handshake(tls(&world).await).await.unwrap();
    let driven = tokio::spawn(connection);
    let uri = "https://localhost/istio.v1.auth.IstioCertificateService/CreateCertificate";
    let mut slow = Vec::new();
    for _ in 0..5 {
        sender = sender.ready().await.unwrap();
        let request = http::Request::post(uri).header("content-type", "application/grpc").body(()).unwrap();
        slow.push(sender.send_request(request, false).unwrap());
    }
    let client = world.client(AGENT);
    assert!(sign(&client, &agent()).await.is_ok());
    // One that is being decided does.
    world.pods.stuck.store(true, Ordering::Relaxed);
    let (own, web) = (agent(), identity("web"));
    tokio::select! {
        answer = sign(&client, &web) => panic!("{answer:?}"),
        answer = async {
            world.pods.asked.notified().await;
            sign(&client, &own).await
        } => assert!(matches!(&answer, Err(SignError::Unavailable(why)) if why.contains("at once")), "{answer:?}"),
    }
    drop(slow);
    driven.abort();
    let text = world.metrics.render();
    assert!(text.contains("mesh_ca_requests_total{outcome=\"refused\",reason=\"overloaded\"} 1"), "{text}");
}

#[tokio::test]
async fn no_certificate_without_a_line_in_the_audit_log() {
    let world = World::start(Limits::default()).await;
    let client = world.client(AGENT);
    // A folder in its place: it was moved away, and cannot be made again.
    std::fs::rename(world.path("audit"), world.path("audit.1")).unwrap();
    std::fs::create_dir(world.path("audit")).unwrap();
    let message = || message(&pem::request(csr(&agent()).der()), None);
    let status = client.send(message(), Some(&format!("Bearer {AGENT}"))).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal, "{status:?}");
    assert!(status.message().contains("audit"), "{status:?}");
    std::fs::remove_dir(world.path("audit")).unwrap();
    assert!(client.send(message(), Some(&format!("Bearer {AGENT}"))).await.is_ok());
    assert_eq!(world.audit().await.len(), 1);
}

#[tokio::test]
async fn many_at_once_share_a_connection() {
    let world = World::start(Limits::default()).await;
    let client = world.client(AGENT);
    let own = agent();
    let signed = futures_util::future::join_all((0..40).map(|_| sign(&client, &own))).await;
    assert!(signed.iter().all(Result::is_ok), "{signed:?}");
    let lines = world.audit().await;
    let peers: BTreeSet<_> = lines.iter().map(|line| line["peer"].to_string()).collect();
    let serials: BTreeSet<_> = lines.iter().map(|line| line["serial"].to_string()).collect();
    assert!(peers.len() <= 4, "{peers:?}");
    assert_eq!(serials.len(), 40);
}
