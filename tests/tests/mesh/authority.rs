//! Certificates from an authority elsewhere: `meshd ca` as a real process, asked by real agents and by whoever should
//! not get any.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::peer::Summary;
use mesh_tests::{Agent, Ca, Lab, Node, Pod, PodSpec, SECONDS_10, SECONDS_30, eventually};
use mesh_userspace::identity::ca::{CaClient, CaClientConfig};
use mesh_userspace::identity::{SignError, Signer, SigningRequest};
use mesh_userspace::model::{Identity, TrustDomain};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType, SignatureAlgorithm};
use rustls::pki_types::CertificateSigningRequestDer;
use serde_json::Value;

use crate::world::{PORT, namespace};

const A: &str = "a-0123456789abcdef0123456789abcdef";
const B: &str = "b-0123456789abcdef0123456789abcdef";
const POD: &str = "pod-0123456789abcdef0123456789abcdef";
const OLD: &str = "old-0123456789abcdef0123456789abcdef";
const OTHERS: &str = "others-0123456789abcdef0123456789abcdef";

fn tokens() -> String {
    format!(
        "node-a mesh-system/meshd {A}\nnode-b mesh-system/meshd {B}\nnode-a default/client {POD}\n\
         node-a mesh-system/meshd {OLD} 2020-01-01T00:00:00Z\nnode-a mesh-system/meshd {OTHERS} vault\n"
    )
}

/// An authority on a node of its own; `client` on node-a and `far` on node-b.
struct World {
    client: Pod,
    far: Pod,
    a: Node,
    b: Node,
    ca: Ca,
    lab: Lab,
}

impl World {
    fn start() -> Result<Self> {
        let lab = Lab::unique()?;
        let (a, b, c) = (lab.node("node-a")?, lab.node("node-b")?, lab.node("node-c")?);
        let (client, far) = (a.pod(PodSpec::new("client"))?, b.pod(PodSpec::new("far"))?);
        let manifests = lab.manifests();
        manifests.apply("pods.yaml", &[&client, &far].map(Pod::manifest).join("---\n"))?;
        manifests.apply("namespace.yaml", &namespace("default", true))?;
        let ca = Ca::start(&lab, &c, &tokens(), &[])?;
        Ok(Self { client, far, a, b, ca, lab })
    }

    /// An agent that takes its certificates from the authority.
    fn agent(&self, node: &Node, token: &str, flags: &[(&str, &str)]) -> Result<Agent> {
        let agent = node
            .agent()
            .flag("--ca-addr", &self.ca.address().to_string())
            .flag("--ca-token", &self.token(node.name(), token)?.to_string_lossy());
        let root = self.ca.root();
        let agent = if flags.iter().any(|(flag, _)| *flag == "--ca-root-cert") {
            agent
        } else {
            agent.flag("--ca-root-cert", &root.to_string_lossy())
        };
        flags.iter().fold(agent, |agent, (flag, value)| agent.flag(flag, value)).start()
    }

    fn agents(&self, flags: &[(&str, &str)]) -> Result<(Agent, Agent)> {
        let (a, b) = (self.agent(&self.a, A, flags)?, self.agent(&self.b, B, flags)?);
        a.wait_enrolled(&[&self.client])?;
        b.wait_enrolled(&[&self.far])?;
        for agent in [&a, &b] {
            agent.wait_for("workloads", "both pods are enrolled", |workloads| {
                let all = workloads.as_array().into_iter().flatten();
                all.filter(|workload| workload["enrolled"] == true).count() == 2
            })?;
        }
        Ok((a, b))
    }

    fn token(&self, name: &str, token: &str) -> Result<PathBuf> {
        let path = self.lab.folder().join(format!("token-{name}"));
        std::fs::write(&path, token)?;
        Ok(path)
    }

    /// Asks for a certificate from node-a, as the agent would.
    fn ask(&self, token: &str, identity: &Identity, csr: Vec<u8>) -> Result<Result<(), SignError>> {
        self.ask_from(&self.a, token, identity, csr)
    }

    fn ask_from(
        &self,
        node: &Node,
        token: &str,
        identity: &Identity,
        csr: Vec<u8>,
    ) -> Result<Result<(), SignError>> {
        let config = CaClientConfig {
            address: self.ca.address().to_string().parse().map_err(anyhow::Error::msg)?,
            roots: self.ca.root(),
            server_name: None,
            token: Some(self.token("asking", token)?),
            certificate: None,
            cluster: "Kubernetes".to_owned(),
            own: account("mesh-system", "meshd")?,
        };
        let identity = identity.clone();
        node.netns().run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let client = CaClient::new(config)?;
            let csr = CertificateSigningRequestDer::from(csr);
            let request =
                SigningRequest { identity: &identity, csr: &csr, validity: Duration::from_hours(1) };
            Ok(runtime.block_on(client.sign(request)).map(drop))
        })?
    }

    /// The last line of the audit log, once there are so many.
    fn line(&self, count: usize) -> Result<Value> {
        let line = || self.ca.audit().ok().filter(|lines| lines.len() >= count)?.pop();
        eventually(SECONDS_10, "the audit log has its line", line)
    }
}

fn account(namespace: &str, name: &str) -> Result<Identity> {
    Ok(Identity::new(TrustDomain::new("cluster.local")?, namespace, name)?)
}

fn csr(identity: &Identity, algorithm: &'static SignatureAlgorithm) -> Result<Vec<u8>> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    Ok(params.serialize_request(&KeyPair::generate_for(algorithm)?)?.der().to_vec())
}

fn far(world: &World) -> String {
    format!("{}:{PORT}", world.far.v4)
}

/// In kube-proxy's place nobody else translates what the agent itself asks for.
#[test]
fn an_authority_is_reached_at_its_services_address() -> Result<()> {
    let world = World::start()?;
    let ca = world.ca.address();
    world.lab.manifests().apply(
        "ca.yaml",
        &format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: mesh-ca, namespace: mesh-system}}\nspec: {{clusterIP: 10.96.7.7, \
             ports: [{{name: grpc, port: 15012}}]}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: mesh-ca-1, namespace: mesh-system, labels: {{kubernetes.io/service-name: mesh-ca}}}}\n\
             addressType: IPv4\nports: [{{name: grpc, port: {}, protocol: TCP}}]\nendpoints: [{{addresses: [{}]}}]\n",
            ca.port(),
            ca.ip()
        ),
    )?;
    let builder = world
        .a
        .agent()
        .flag("--ca-addr", "10.96.7.7:15012")
        .flag("--ca-server-name", &ca.ip().to_string())
        .flag("--ca-root-cert", &world.ca.root().to_string_lossy())
        .flag("--ca-token", &world.token("node-a", A)?.to_string_lossy());
    let (a, b) = (builder.start()?, world.agent(&world.b, B, &[])?);
    a.wait_enrolled(&[&world.client])?;
    b.wait_enrolled(&[&world.far])?;
    world.far.serve(&["--listen", &format!("[::]:{PORT}")])?;
    let target = format!("{}:{PORT}", world.far.v4);
    eventually(SECONDS_30, "the client has a certificate, and connects", || {
        (world.client.connect(&[&target, "--count", "5"]).ok()?.ok == 5).then_some(())
    })
    .with_context(|| a.log())?;
    a.wait_flows(5, "over mutual TLS", |flow| flow["security"] == "mutual_tls")?;
    Ok(())
}

#[test]
fn two_nodes_speak_mutual_tls_with_certificates_of_one_authority() -> Result<()> {
    let world = World::start()?;
    let (agent_a, _agent_b) = world.agents(&[])?;
    world.far.serve(&["--listen", &format!("[::]:{PORT}"), "--mode", "http"])?;
    assert_eq!(world.client.connect(&[&far(&world), "--count", "5"])?.ok, 5);
    let flows = agent_a.wait_flows(5, "flows over mutual TLS", |flow| {
        flow["security"] == "mutual_tls" && flow["reporter"] == "source"
    });
    flows.with_context(|| format!("{:#?}", agent_a.flows()))?;
    let lines = world.ca.audit()?;
    for (node, identity) in [("node-a", "client"), ("node-b", "far")] {
        let uri = format!("spiffe://cluster.local/ns/default/sa/{identity}");
        let granted =
            lines.iter().find(|line| line["identity"] == *uri).with_context(|| format!("{lines:#?}"))?;
        assert_eq!((&granted["outcome"], &granted["node"]), (&"granted".into(), &node.into()), "{granted:#}");
        assert_eq!(granted["impersonated"], *uri);
        assert_eq!(granted["caller"], "mesh-system/meshd");
    }
    // The agent shows the very certificate that the log tells of.
    let certs = agent_a.json("/v1/certs")?;
    let serials: Vec<&Value> = lines.iter().map(|line| &line["serial"]).collect();
    assert!(
        certs.as_array().into_iter().flatten().all(|cert| serials.contains(&&cert["serial"])),
        "{certs:#}"
    );
    assert!(world.ca.metrics()?.contains("mesh_ca_requests_total{outcome=\"granted\",reason=\"granted\"}"));
    let ended = world.ca.terminate()?;
    ensure!(ended.status.success(), "{ended:?}");
    Ok(())
}

#[test]
fn whoever_should_not_have_a_certificate_is_refused_and_leaves_a_line() -> Result<()> {
    let world = World::start()?;
    let (agent, client, stranger) =
        (account("mesh-system", "meshd")?, account("default", "client")?, account("default", "far")?);
    let ecdsa = &rcgen::PKCS_ECDSA_P256_SHA256;
    let spoilt = {
        let mut csr = csr(&client, ecdsa)?;
        *csr.last_mut().context("a request")? ^= 1;
        csr
    };
    let cases = [
        (A, &agent, csr(&agent, ecdsa)?, "granted"),
        (A, &client, csr(&client, ecdsa)?, "granted"),
        (A, &client, csr(&client, &rcgen::PKCS_ECDSA_P384_SHA384)?, "granted"),
        (A, &stranger, csr(&stranger, ecdsa)?, "not_on_node"),
        (B, &client, csr(&client, ecdsa)?, "not_on_node"),
        (POD, &stranger, csr(&stranger, ecdsa)?, "not_a_node_account"),
        (A, &client, csr(&stranger, ecdsa)?, "csr_name"),
        ("wrong", &client, csr(&client, ecdsa)?, "unknown_token"),
        (OLD, &client, csr(&client, ecdsa)?, "expired_token"),
        (OTHERS, &client, csr(&client, ecdsa)?, "wrong_audience"),
        (A, &client, spoilt, "csr_signature"),
        (A, &client, csr(&client, &rcgen::PKCS_RSA_SHA256)?, "csr_key"),
        (A, &client, csr(&client, &rcgen::PKCS_ED25519)?, "csr_key"),
        (A, &client, vec![0x30; 10 << 20], "too_large"),
        (A, &client, vec![0x30; 20 << 10], "csr_too_long"),
        (A, &client, b"garbage".to_vec(), "csr_malformed"),
    ];
    for (number, (token, identity, csr, reason)) in cases.into_iter().enumerate() {
        let answer = world.ask(token, identity, csr)?;
        assert_eq!(answer.is_ok(), reason == "granted", "{reason}: {answer:?}");
        let line = world.line(number + 1)?;
        assert_eq!(line["reason"], reason, "{line:#}");
        assert!(line["peer"].as_str().is_some_and(|peer| peer.starts_with("172.30.0.1:")), "{line:#}");
        let is_told = matches!(&answer, Err(SignError::Refused { reason, .. }) if reason.len() > 20);
        assert!(is_told || ["granted", "too_large"].contains(&reason), "{answer:?}");
    }
    let log = format!("{:?}{}", world.ca.audit()?, world.ca.log());
    assert!([A, B, POD, OLD, OTHERS].iter().all(|token| !log.contains(token)), "{log}");
    // A pod that is moved to the node may be had, and a token that is taken out of the file is worth nothing.
    let moved = world.far.manifest().replace("nodeName: node-b", "nodeName: node-a");
    world.lab.manifests().apply("pods.yaml", &format!("{}---\n{moved}", world.client.manifest()))?;
    let given = || world.ask(A, &stranger, csr(&stranger, ecdsa).ok()?).ok()?.ok();
    eventually(SECONDS_30, "the moved pod's identity is given", given)?;
    std::fs::write(world.ca.tokens(), tokens().replace(A, "z-0123456789abcdef0123456789abcdef"))?;
    let answer = world.ask(A, &client, csr(&client, ecdsa)?)?;
    assert!(matches!(answer, Err(SignError::Refused { .. })), "{answer:?}");
    Ok(())
}

#[test]
fn garbage_and_slow_peers_do_not_keep_others_from_their_certificates() -> Result<()> {
    let world = World::start()?;
    let address = world.ca.address();
    // A connection that says something and is then ended by the other side.
    let ended = |words: &'static [u8]| {
        world.a.netns().run(move || -> Result<Duration> {
            let begun = Instant::now();
            let mut stream = TcpStream::connect_timeout(&address, SECONDS_10)?;
            stream.set_read_timeout(Some(SECONDS_30))?;
            stream.write_all(words)?;
            let mut rest = Vec::new();
            match stream.read_to_end(&mut rest) {
                Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => Err(error.into()),
                _ => Ok(begun.elapsed()),
            }
        })?
    };
    assert!(ended(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")? < SECONDS_10);
    assert!(ended(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")? < SECONDS_10);
    // As many as one address may have, each with the first bytes of a handshake that does not go on.
    let slow = world.a.netns().run(move || -> Result<Vec<TcpStream>> {
        let connect = |_| {
            let mut stream = TcpStream::connect_timeout(&address, SECONDS_10)?;
            // The last of them are closed at once.
            let _ = stream.write_all(&[0x16, 0x03, 0x01]);
            Ok(stream)
        };
        (0..80).map(connect).collect()
    })??;
    let client = account("default", "client")?;
    let other = || {
        let csr = csr(&client, &rcgen::PKCS_ECDSA_P256_SHA256).ok()?;
        world.ask(A, &client, csr).ok()?.ok()
    };
    // From another address at once; from this one as soon as those have had their time.
    let far = account("default", "far")?;
    let csr_far = csr(&far, &rcgen::PKCS_ECDSA_P256_SHA256)?;
    assert!(world.ask_from(&world.b, B, &far, csr_far)?.is_ok());
    eventually(SECONDS_30, "the address is served again", other)?;
    drop(slow);
    let text = world.ca.metrics()?;
    for reason in ["too_many_of_address", "timeout", "other"] {
        let name = format!("mesh_ca_connections_refused_total{{reason=\"{reason}\"}} ");
        let count =
            text.lines().find_map(|line| line.strip_prefix(&name)).and_then(|count| count.parse().ok());
        assert!(count > Some(0), "{reason}: {text}");
    }
    let said = world.ca.log().lines().filter(|line| line.contains("connection without a request")).count();
    assert!((1..=40).contains(&said), "{said} lines");
    Ok(())
}

#[test]
fn an_authority_that_is_away_for_half_a_life_costs_no_connection() -> Result<()> {
    let world = World::start()?;
    let (agent_a, agent_b) = world.agents(&[("--cert-ttl", "16s")])?;
    world.far.serve(&["--listen", &format!("[::]:{PORT}"), "--mode", "echo"])?;
    let kept = world.client.load(&[&far(&world), "--mode", "echo", "--keep", "--concurrency", "2"])?;
    let new = world.client.load(&[&far(&world), "--mode", "echo", "--concurrency", "1"])?;
    let cert = |agent: &Agent, account: &str| -> Option<Value> {
        let certs = agent.json("/v1/certs").ok()?;
        let is = |cert: &&Value| cert["identity"].as_str().is_some_and(|name| name.ends_with(account));
        certs.as_array()?.iter().find(is).cloned()
    };
    let both = [(&agent_a, "/client"), (&agent_b, "/far")];
    let serials = |what: &str, is: &dyn Fn(&Value) -> bool| -> Result<Vec<Value>> {
        let one = |(agent, account): &(&Agent, &str)| {
            let found = || cert(agent, account).filter(|cert| is(cert));
            Ok(eventually(SECONDS_30, what, found).with_context(|| agent.log())?["serial"].clone())
        };
        both.iter().map(one).collect()
    };
    let first = serials("there is a certificate", &|cert| cert["serial"].is_string())?;
    serials("it is renewed", &|cert| !first.contains(&cert["serial"]))?;
    world.ca.process().kill()?;
    let before = serials("its renewal fails", &|cert| cert["state"] == "renewal_failing")?;
    let ca = world.ca.restart()?;
    serials("it is renewed once the authority is back", &|cert| {
        cert["state"] == "valid" && !before.contains(&cert["serial"])
    })?;
    for load in [kept, new] {
        let summary = Summary::end(&load)?;
        assert_eq!(summary.failed, 0, "{summary:?}");
        assert!(summary.elapsed_ms > 8000, "{summary:?}");
    }
    let failed = agent_a.metric("mesh_certificate_failures_total", &["reason=\"unavailable\""])?;
    assert!(failed >= 1.0, "{failed}");
    ensure!(ca.audit()?.iter().all(|line| line["outcome"] == "granted"), "{:#?}", ca.audit());
    Ok(())
}

#[test]
fn a_root_is_replaced_under_agents_that_have_the_old_one_in_a_file_of_their_own() -> Result<()> {
    const LIFE: &str = "6s";
    let world = World::start()?;
    // What an operator has copied to the nodes, once.
    let copy = world.lab.folder().join("copied-root.pem");
    std::fs::copy(world.ca.root(), &copy)?;
    let copied = copy.to_string_lossy().into_owned();
    let (a, b) = world.agents(&[("--cert-ttl", LIFE), ("--ca-root-cert", &copied)])?;
    world.far.serve(&["--listen", &format!("[::]:{PORT}"), "--mode", "echo"])?;
    let load = world.client.load(&[&far(&world), "--mode", "echo", "--concurrency", "2"])?;
    let rotate = |step: &str| -> Result<()> {
        let output = std::process::Command::new(mesh_tests::binary("meshd")?)
            .args(["rotate-root", "--cert-ttl", LIFE, "--now", "--ca-dir"])
            .arg(world.ca.root().parent().context("the authority's folder")?)
            .arg(step)
            .output()?;
        ensure!(output.status.success(), "{step}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    let roots = |agent: &Agent| -> Option<(std::collections::BTreeSet<String>, Vec<usize>)> {
        let certs = agent.json("/v1/certs").ok()?;
        let all = certs.as_array()?;
        let issuers = all.iter().map(|cert| cert["root_fingerprint"].to_string()).collect();
        Some((issuers, all.iter().filter_map(|cert| Some(cert["trusted_roots"].as_array()?.len())).collect()))
    };
    let wait = |what: &str,
                is: &dyn Fn(&std::collections::BTreeSet<String>, &[usize]) -> bool|
     -> Result<()> {
        for agent in [&a, &b] {
            eventually(SECONDS_30, what, || roots(agent).filter(|(issuers, trusted)| is(issuers, trusted)))
                .with_context(|| agent.log())?;
        }
        Ok(())
    };
    let (old, _) = roots(&a).context("certificates")?;
    rotate("add")?;
    wait("both roots are trusted", &|_, trusted| trusted.iter().all(|count| *count == 2))?;
    rotate("switch")?;
    // Its connections are gone, and it shows a certificate from the new root, which is not in the file.
    world.ca.terminate()?;
    let ca = world.ca.restart()?;
    wait("all certificates are from the new root", &|issuers, _| issuers.is_disjoint(&old))?;
    rotate("drop")?;
    wait("the old root is gone", &|_, trusted| trusted.iter().all(|count| *count == 1))?;
    let summary = Summary::end(&load)?;
    assert!(summary.failed == 0 && summary.ok > 20, "{summary:?}");
    drop(ca);
    Ok(())
}
