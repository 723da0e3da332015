//! The API server as the source: what a mesh makes of it, and that nothing which happens to it changes what is in force.

mod stored;

use std::fs;
use std::future::Future;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use kube::Config;
use kube::config::{KubeConfigOptions, Kubeconfig};
use mesh_tests::{ApiServer, Driver, Lab, LaidOut, Node, PodSpec, SECONDS_10, SECONDS_30, Shows, eventually};
use mesh_userspace::model::{MeshConfig, NodeName, Snapshot};
use mesh_userspace::source::{self, ApiState, Feed, Input, Source, StateFile};
use tokio::time::timeout;

const MINUTE: Duration = Duration::from_mins(1);
const CRDS: [&str; 3] = ["networking.istio.io", "security.istio.io", "gateway.networking.k8s.io"];

fn block<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

fn mesh() -> MeshConfig {
    MeshConfig { node: Some(NodeName::new("node-a")), ..MeshConfig::default() }
}

async fn begin(kubeconfig: &Path) -> Result<Source> {
    begin_with(kubeconfig, None).await
}

async fn begin_with(kubeconfig: &Path, state: Option<StateFile>) -> Result<Source> {
    let file = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(Source::begin(Input::Kubernetes(Box::new(config), NodeName::new("node-a"), state))?)
}

async fn feed(api: &ApiServer) -> Result<Feed> {
    let source = begin(&api.kubeconfig(api.admin_token())?).await?;
    Ok(timeout(MINUTE, source::run(source, mesh(), std::future::pending()))
        .await
        .context("no first state")??)
}

/// Waits until the snapshot is as wanted.
async fn until(feed: &mut Feed, what: &str, is: impl Fn(&Snapshot) -> bool) -> Result<()> {
    let found = timeout(MINUTE, feed.snapshot.wait_for(|snapshot| is(snapshot))).await;
    found.with_context(|| format!("not within a minute: {what}"))?.map(drop).context("the feed ended")
}

async fn until_api(api: &ApiState, what: &str, is: impl Fn(&source::ApiStatus) -> bool) -> Result<()> {
    let found = timeout(MINUTE, async {
        while !is(&api.status()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    found.await.with_context(|| format!("not within a minute: {what}: {:?}", api.status()))
}

fn pod(name: &str, node: &str, address: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}\n\
         spec: {{nodeName: {node}, serviceAccountName: {name}, containers: [{{name: a, ports: [{{name: http, containerPort: 8080}}]}}]}}\n\
         status: {{phase: Running, podIP: {address}, podIPs: [{{ip: {address}}}]}}\n"
    )
}

fn has(snapshot: &Snapshot, name: &str) -> bool {
    snapshot.workloads.values().any(|workload| &*workload.name == name)
}

const SHOP: &str =
    "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}\n";

const RULES: &str = "---
apiVersion: v1
kind: Node
metadata: {name: node-a, labels: {topology.kubernetes.io/zone: z1}}
status: {addresses: [{type: InternalIP, address: 172.30.0.1}], images: [{names: [x]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-x, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints:
- {addresses: [10.244.1.2], nodeName: node-a, zone: z1, conditions: {ready: true}, targetRef: {kind: Pod, name: web, namespace: shop}}
- {addresses: [10.244.2.2], nodeName: node-b, conditions: {ready: true}, targetRef: {kind: Pod, name: web2, namespace: shop}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec: {host: web, subsets: [{name: one, labels: {app: web}}, {name: two, labels: {app: web2}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec: {hosts: [web], tcp: [{route: [{destination: {host: web, subset: one}, weight: 90}, {destination: {host: web, subset: two}, weight: 10}]}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: friends, namespace: shop}
spec: {rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]}
";

#[test]
fn the_same_comes_of_it_as_of_manifests() -> Result<()> {
    let api = ApiServer::start()?;
    api.install_crds(&CRDS)?;
    let text =
        format!("{SHOP}{}{}{RULES}", pod("web", "node-a", "10.244.1.2"), pod("web2", "node-b", "10.244.2.2"));
    api.apply(&text)?;
    let folder = tempfile::tempdir()?;
    // The names that every API server has.
    let others = ["default", "kube-system", "kube-public", "kube-node-lease"];
    let others =
        others.map(|name| format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n"));
    fs::write(folder.path().join("a.yaml"), format!("{text}{}", others.concat()))?;
    block(async {
        let of_api = feed(&api).await?;
        let manifests = Source::begin(Input::Manifests(vec![folder.path().to_owned()]))?;
        let of_files = source::run(manifests, mesh(), std::future::pending()).await?;
        let (api, files) = (of_api.current.load_full(), of_files.current.load_full());
        assert_eq!(api.services, files.services);
        assert_eq!(api.node, files.node);
        assert_eq!(api.peer_policies.len(), 1);
        assert!(api.policies.iter().eq(files.policies.iter()));
        assert_eq!(api.workloads.len(), 2);
        for (own, other) in api.workloads.values().zip(files.workloads.values()) {
            // The API server gives each a UID.
            let mut own = (**own).clone();
            assert!(own.pod_uid.take().is_some());
            assert_eq!(own, **other);
        }
        assert_eq!(of_api.reports.borrow().problems, []);
        assert_eq!(of_api.reports.borrow().notices, of_files.reports.borrow().notices);
        Ok(())
    })
}

#[test]
fn what_happened_while_it_was_away_is_found_and_nothing_is_lost_before() -> Result<()> {
    let api = ApiServer::start()?;
    api.install_crds(&CRDS)?;
    api.apply(
        &(SHOP.to_owned() + &pod("stays", "node-a", "10.244.1.2") + &pod("goes", "node-b", "10.244.2.2")),
    )?;
    block(async {
        let mut feed = feed(&api).await?;
        let state = feed.api.clone().context("an API server")?;
        assert!(state.status().connected, "{:?}", state.status());
        // Gone, and its past with it: 410, a listing anew.
        api.stop();
        api.apply(&pod("comes", "node-a", "10.244.1.3"))?;
        api.delete("Pod", "shop", "goes")?;
        api.forget_history();
        until_api(&state, "it is told", |status| !status.connected && status.error.is_some()).await?;
        let status = state.status();
        assert!(status.as_of.is_some_and(|as_of| as_of <= std::time::SystemTime::now()), "{status:?}");
        assert!(status.error.is_some_and(|error| error.contains("cannot be reached")));
        let snapshot = feed.current.load_full();
        assert!(has(&snapshot, "stays") && has(&snapshot, "goes"), "the last state stays in force");
        api.restart()?;
        until(&mut feed, "the changes", |now| has(now, "comes") && !has(now, "goes") && has(now, "stays"))
            .await?;
        until_api(&state, "it is connected again", |status| status.connected).await?;
        // Connections that are cut and answers that fail lose nothing either.
        for (name, address) in [("one", "10.244.2.11"), ("two", "10.244.2.12"), ("three", "10.244.2.13")] {
            api.cut();
            api.fail_next(3, 503)?;
            api.apply(&pod(name, "node-b", address))?;
            until(&mut feed, name, |now| has(now, name)).await?;
        }
        // A whole namespace.
        api.delete("Namespace", "", "shop")?;
        until(&mut feed, "the namespace's end", |now| now.workloads.is_empty()).await?;
        Ok(())
    })
}

#[test]
fn what_is_followed_ahead_is_known_when_it_is_wanted() -> Result<()> {
    let api = ApiServer::start()?;
    api.install_crds(&CRDS)?;
    api.apply(
        &(SHOP.to_owned() + &pod("web", "node-a", "10.244.1.2") + &pod("old", "node-a", "10.244.1.3")),
    )?;
    let folder = tempfile::tempdir()?;
    block(async {
        let file = Kubeconfig::read_from(api.kubeconfig(api.admin_token())?)?;
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        let ahead = Source::ahead(config, NodeName::new("node-a"))?;
        let state = ahead.api();
        let known = timeout(MINUTE, ahead.known()).await.context("it is not known")??;
        let pods = |status: &source::ApiStatus, count| {
            status.kinds.iter().any(|kind| kind.label.starts_with("Pod") && kind.objects == count)
        };
        api.delete("Pod", "shop", "old")?;
        until_api(&state, "the old one is gone", |status| pods(status, 1)).await?;
        api.apply(&pod("new", "node-a", "10.244.1.4"))?;
        until_api(&state, "the new one is known", |status| pods(status, 2)).await?;
        api.stop();
        // Without the API server there is nothing but what was known before.
        let kept = folder.path().join("state");
        let run = source::run(known.follow(kept.clone()), mesh(), std::future::pending());
        let mut feed = timeout(MINUTE, run).await.context("no first state")??;
        let now = feed.current.load_full();
        assert!(has(&now, "web") && !has(&now, "old"), "{:?}", now.workloads);
        until(&mut feed, "the new one", |now| has(now, "new")).await?;
        timeout(MINUTE, async {
            while !kept.exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .context("it is not kept")
    })
}

#[test]
fn kinds_that_are_installed_later_are_followed_then() -> Result<()> {
    let api = ApiServer::start()?;
    api.apply(&(SHOP.to_owned() + &pod("web", "node-a", "10.244.1.2")))?;
    block(async {
        let mut feed = feed(&api).await?;
        let state = feed.api.clone().context("an API server")?;
        let is = |status: &source::ApiStatus, kind: &str, phase| {
            status.kinds.iter().any(|own| own.label == kind && own.phase == phase)
        };
        assert!(is(&state.status(), "PeerAuthentication", source::Phase::Absent), "{:?}", state.status());
        assert!(state.status().connected, "what is not installed is no failure");
        api.install_crds(&CRDS)?;
        api.apply(RULES)?;
        until(&mut feed, "STRICT", |now| now.peer_policies.len() == 1).await?;
        until_api(&state, "all kinds", |status| {
            ["PeerAuthentication", "TCPRoute", "ReferenceGrant"]
                .iter()
                .all(|kind| is(status, kind, source::Phase::Synced))
        })
        .await?;
        // And no longer, when they are taken out.
        api.delete("CustomResourceDefinition", "", "peerauthentications.security.istio.io")?;
        until(&mut feed, "no STRICT", |now| now.peer_policies.is_empty()).await?;
        until_api(&state, "absent", |status| is(status, "PeerAuthentication", source::Phase::Absent)).await
    })
}

#[test]
fn a_path_that_is_not_there_at_the_start_is_no_kind_that_is_not_installed() -> Result<()> {
    let api = ApiServer::start()?;
    api.install_crds(&["security.istio.io"])?;
    let policies = RULES.split("---\n").filter(|document| document.contains("security.istio.io"));
    api.apply(&format!("{SHOP}---\n{}", policies.collect::<Vec<_>>().join("---\n")))?;
    let troubled = |kind: &'static str, why: &'static str| {
        move |status: &source::ApiStatus| {
            let own = status.kinds.iter().find(|own| own.label == kind);
            let error =
                own.filter(|own| own.phase == source::Phase::Waiting).and_then(|own| own.error.as_ref());
            error.is_some_and(|error| error.contains(why))
        }
    };
    block(async {
        // Neither the policies' path nor what is installed can be had.
        api.lose(&["/peerauthentications", "/apis"]);
        let source = begin(&api.kubeconfig(api.admin_token())?).await?;
        let state: Arc<ApiState> = source.api().context("an API server")?;
        let waiting = tokio::spawn(source::run(source, mesh(), std::future::pending()));
        until_api(&state, "nobody knows", troubled("PeerAuthentication", "404")).await?;
        until_api(&state, "nor of these", troubled("VirtualService", "404")).await?;
        // What is installed can be: it says that the policies are.
        api.lose(&["/peerauthentications"]);
        until_api(&state, "they are served", troubled("PeerAuthentication", "says that it serves them"))
            .await?;
        until_api(&state, "these are not installed", |status| {
            let absent = status.kinds.iter().filter(|own| own.phase == source::Phase::Absent);
            absent.count() == 8
        })
        .await?;
        assert!(!waiting.is_finished(), "nothing is put in force without the policies");
        let missing = state.waits_for();
        assert!(missing.len() == 1 && missing[0].starts_with("PeerAuthentication ("), "{missing:?}");
        api.lose(&[]);
        let feed = timeout(MINUTE, waiting).await???;
        assert_eq!(feed.current.load().peer_policies.len(), 1, "STRICT is in force from the first state on");
        until_api(&state, "connected", |status| status.connected).await
    })
}

#[test]
fn an_object_that_cannot_be_read_costs_no_other_and_a_policy_is_stood_in_for() -> Result<()> {
    let api = ApiServer::start()?;
    api.install_crds(&CRDS)?;
    let broken = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: deny, namespace: shop}\n\
                  spec: {action: DENY, rules: [{to: [{operation: {ports: [80]}}]}]}\n";
    api.apply(
        &(SHOP.to_owned()
            + &pod("good", "node-b", "10.244.2.2")
            + &pod("bad", "node-b", "10.244.2.999")
            + broken),
    )?;
    block(async {
        let mut feed = feed(&api).await?;
        let snapshot = feed.current.load_full();
        assert!(has(&snapshot, "good") && !has(&snapshot, "bad"));
        assert_eq!(snapshot.policies.iter().count(), 1, "it allows nothing until it is mended");
        let problems: Vec<String> = feed.reports.borrow().problems.iter().map(ToString::to_string).collect();
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(
            problems.iter().any(|problem| problem.starts_with("API server: Pod shop/bad: status.podIP")),
            "{problems:?}"
        );
        assert!(
            problems.iter().any(|problem| problem.contains("nothing is allowed where it applies")),
            "{problems:?}"
        );
        // The last good state stays.
        api.apply(&pod("good", "node-b", "10.244.2.999"))?;
        let mut reports = feed.reports.clone();
        timeout(MINUTE, reports.wait_for(|reports| reports.problems.len() == 5)).await??;
        assert!(has(&feed.current.load(), "good"));
        // Mended.
        api.apply(&(pod("good", "node-b", "10.244.2.3") + &pod("bad", "node-b", "10.244.2.4")))?;
        api.delete("AuthorizationPolicy", "shop", "deny")?;
        until(&mut feed, "mended", |now| has(now, "bad") && now.policies.iter().count() == 0).await?;
        timeout(MINUTE, reports.wait_for(|reports| reports.problems.is_empty())).await??;
        Ok(())
    })
}

#[test]
fn a_token_that_is_revoked_is_told_and_the_next_one_taken() -> Result<()> {
    let api = ApiServer::start()?;
    api.apply(&(SHOP.to_owned() + &pod("web", "node-a", "10.244.1.2")))?;
    let folder = tempfile::tempdir()?;
    let (kubeconfig, file) = (folder.path().join("kubeconfig"), folder.path().join("token"));
    let token = api.issue(mesh_tests::Account::admin());
    fs::write(&file, &token)?;
    fs::write(
        &kubeconfig,
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{{name: a, cluster: {{server: '{}', certificate-authority: {}}}}}]\n\
             users: [{{name: a, user: {{tokenFile: {}}}}}]\ncontexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n",
            api.url(),
            api.ca_file().display(),
            file.display()
        ),
    )?;
    block(async {
        let mut feed =
            timeout(MINUTE, source::run(begin(&kubeconfig).await?, mesh(), std::future::pending())).await??;
        let state = feed.api.clone().context("an API server")?;
        api.revoke(&token);
        api.cut();
        until_api(&state, "401", |status| status.error.as_ref().is_some_and(|error| error.contains("401")))
            .await?;
        assert!(has(&feed.current.load(), "web"), "the last state stays in force");
        fs::write(&file, api.issue(mesh_tests::Account::admin()))?;
        api.apply(&pod("new", "node-a", "10.244.1.3"))?;
        until(&mut feed, "the pod that came meanwhile", |now| has(now, "new")).await?;
        until_api(&state, "connected", |status| status.connected).await
    })
}

#[test]
fn a_certificate_that_is_not_the_servers_is_refused_and_waited_out() -> Result<()> {
    let api = ApiServer::start()?;
    api.apply(&(SHOP.to_owned() + &pod("web", "node-a", "10.244.1.2")))?;
    api.show(Shows::UnknownIssuer)?;
    block(async {
        let source = begin(&api.kubeconfig(api.admin_token())?).await?;
        let state: Arc<ApiState> = source.api().context("an API server")?;
        let waiting = tokio::spawn(source::run(source, mesh(), std::future::pending()));
        until_api(&state, "TLS", |status| {
            status.error.as_ref().is_some_and(|error| error.contains("certificate is not accepted"))
        })
        .await?;
        assert!(!waiting.is_finished() && state.waits_for().iter().any(|kind| kind.starts_with("Pod")));
        api.show(Shows::Right)?;
        let feed = timeout(MINUTE, waiting).await???;
        assert!(has(&feed.current.load(), "web"));
        Ok(())
    })
}

/// What `meshctl` says of a node's agent.
fn meshctl(node: &Node, words: &[&str]) -> Result<String> {
    let mut meshctl = Command::new(mesh_tests::binary("meshctl")?);
    let output = meshctl.arg("--socket").arg(node.state_dir().join("meshd.sock")).args(words).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

#[test]
fn an_agent_serves_what_it_says_and_goes_on_without_it() -> Result<()> {
    let lab = Lab::unique()?;
    let a = lab.node("node-a")?;
    let api = lab.api_server()?;
    api.install_crds(&CRDS)?;
    let laid = |number| LaidOut::new(number, Driver::Systemd);
    let client = a.pod(PodSpec::new("client").kubelet(laid(1)))?;
    let server = a.pod(PodSpec::new("server").kubelet(laid(2)))?;
    // Its manifest says where its namespace is: who makes a pod in a cluster is not believed.
    let liar = a.pod(PodSpec::new("liar"))?;
    server.serve(&["--listen", "[::]:8080"])?;
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: server, namespace: default}\n\
        spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], selector: {app: server}, ports: [{port: 80, targetPort: 8080}]}\n";
    let ambient = "apiVersion: v1\nkind: Namespace\nmetadata: {name: default, labels: {istio.io/dataplane-mode: ambient}}\n---\n";
    let pods = format!("{}---\n{}---\n{}", client.manifest(), server.manifest(), liar.manifest());
    let labelled = pods.replace("  labels:\n", "  labels:\n    role: test\n");
    api.apply(&format!(
        "{ambient}{labelled}{}",
        service.replace("app: server", &selector(&server.manifest()))
    ))?;
    // The API server is away: the agent waits, says so, and is not healthy.
    api.stop();
    let builder = a.agent().kubernetes(&api)?;
    let process = builder.spawn()?;
    let meshctl = |words: &[&str]| meshctl(&a, words);
    eventually(SECONDS_30, "the agent says what it waits for", || {
        let told = meshctl(&["status"]).ok()?;
        (told.contains("waits for the API server") && told.contains("NOT followed")).then_some(())
    })?;
    let told = meshctl(&["services"])?;
    assert!(told.contains("waits for the API server"), "{told}");
    assert!(process.is_running());
    api.restart()?;
    let connects =
        || client.connect(&["10.96.0.10:80", "--count", "10"]).ok().filter(|summary| summary.ok == 10);
    eventually(SECONDS_30, "the service is served", connects)?;
    eventually(SECONDS_10, "the client is enrolled, and the liar waits", || {
        let told = meshctl(&["status"]).ok()?;
        let is = |pod: &str, state: &str| {
            told.lines().any(|line| line.starts_with(pod) && line.split_whitespace().nth(1) == Some(state))
        };
        (is("default/client", "enrolled") && is("default/liar", "waiting") && told.contains("connected for"))
            .then_some(())
    })?;
    // Away again: traffic goes on, and the age is told.
    api.stop();
    eventually(SECONDS_30, "it is told", || {
        meshctl(&["status"]).ok().filter(|told| told.contains("the last state stays in force"))
    })?;
    assert!(connects().is_some());
    let metrics = meshctl(&["status", "-o", "json"])?;
    assert!(metrics.contains("\"connected\": false"), "{metrics}");
    Ok(())
}

/// The roles that are shipped, and to whom they are given.
fn shipped_roles() -> Result<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/mesh.yaml");
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let roles = text.split("\n---\n").filter(|document| document.contains("rbac.authorization.k8s.io"));
    Ok(roles.collect::<Vec<_>>().join("\n---\n"))
}

#[test]
fn the_shipped_roles_let_the_agent_say_what_fails_and_what_became_of_routes() -> Result<()> {
    let lab = Lab::unique()?;
    let a = lab.node("node-a")?;
    let api = lab.api_server()?;
    api.install_crds(&CRDS)?;
    api.enforce(&shipped_roles()?)?;
    let laid = |name: &str, number| a.pod(PodSpec::new(name).kubelet(LaidOut::new(number, Driver::Systemd)));
    let (good, bad) = (laid("good", 1)?, laid("bad", 2)?);
    // An address that the pod's namespace does not have.
    let address = bad.v4.to_string();
    let wrong = bad.manifest().replace(&address, "10.244.1.200");
    api.apply(&format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: default, labels: {{istio.io/dataplane-mode: ambient}}}}\n---\n\
         apiVersion: v1\nkind: Namespace\nmetadata: {{name: mesh-system}}\n---\n\
         {}---\n{wrong}---\n\
         apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: default}}\n\
         spec: {{clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], selector: {{app: good}}, ports: [{{port: 80}}]}}\n---\n\
         apiVersion: gateway.networking.k8s.io/v1alpha2\nkind: TCPRoute\nmetadata: {{name: web, namespace: default, generation: 1}}\n\
         spec: {{parentRefs: [{{group: '', kind: Service, name: web}}], rules: [{{backendRefs: [{{name: web, port: 80}}]}}]}}\n",
        good.manifest(),
    ))?;
    let agent = a.agent().kubernetes(&api)?.start()?;
    let event = |reason: &str| {
        eventually(SECONDS_30, reason, || api.events().into_iter().find(|event| event["reason"] == reason))
            .with_context(|| format!("{:#?}\n{}", api.events(), agent.log()))
    };
    let failed = event("MeshEnrolmentFailed")?;
    assert_eq!((&failed["type"], &failed["reportingController"]), (&"Warning".into(), &"mesh-agent".into()));
    let regarding = &failed["regarding"];
    assert_eq!(
        (&regarding["namespace"], &regarding["name"]),
        (&"default".into(), &"bad".into()),
        "{failed:#}"
    );
    assert_eq!(regarding["uid"], api.object("Pod", "default", "bad").context("a pod")?["metadata"]["uid"]);
    assert_eq!(failed["metadata"]["namespace"], "default", "where the pod is");
    assert!(failed["note"].as_str().is_some_and(|note| note.contains("10.244.1.200")), "{failed:#}");
    let told = eventually(SECONDS_10, "meshctl tells it", || {
        let told = meshctl(&a, &["status"]).ok()?;
        let line = told.lines().find(|line| line.contains("default/bad"))?.to_owned();
        line.contains("failed").then_some(line)
    })?;
    assert!(told.contains("10.244.1.200"), "{told}");
    assert!(!api.events().iter().any(|event| event["regarding"]["name"] == "good"), "{:#?}", api.events());
    // Mended, which is told as well.
    api.apply(&bad.manifest())?;
    agent.wait_enrolled(&[&good, &bad])?;
    assert_eq!(event("MeshEnrolled")?["regarding"]["name"], "bad");
    let accepted = || {
        let route = api.object("TCPRoute", "default", "web")?;
        let conditions = route["status"]["parents"][0]["conditions"].as_array()?.clone();
        conditions.iter().any(|one| one["type"] == "Accepted" && one["status"] == "True").then_some(())
    };
    eventually(MINUTE, "the route's status", accepted).with_context(|| agent.log())?;
    assert!(api.object("Lease", "mesh-system", "mesh-route-status").is_some(), "whose word it is");
    let log = api.log();
    let refused: Vec<_> = log.iter().filter(|request| matches!(request.code, 401 | 403)).collect();
    assert!(refused.is_empty(), "{refused:#?}");
    let asked = |group: &str| log.iter().any(|request| request.asked.group == group && request.code < 300);
    assert!(asked("events.k8s.io") && asked("coordination.k8s.io"), "{log:#?}");
    Ok(())
}

#[test]
fn an_endpoint_that_is_ejected_is_told_on_its_pod() -> Result<()> {
    let lab = Lab::unique()?;
    let a = lab.node("node-a")?;
    let api = lab.api_server()?;
    api.install_crds(&CRDS)?;
    api.enforce(&shipped_roles()?)?;
    let laid = |name: &str, number| {
        a.pod(PodSpec::new(name).label("group", "web").kubelet(LaidOut::new(number, Driver::Systemd)))
    };
    let (well, ill) = (laid("well", 1)?, laid("ill", 2)?);
    let client = a.pod(PodSpec::new("client").kubelet(LaidOut::new(3, Driver::Systemd)))?;
    well.serve(&["--listen", "[::]:8080"])?;
    let resets = ill.serve(&["--listen", "[::]:8080", "--mode", "reset"])?;
    api.apply(&format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: default, labels: {{istio.io/dataplane-mode: ambient}}}}\n---\n\
         {}---\n{}---\n{}---\n\
         apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: default}}\n\
         spec: {{clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], selector: {{group: web}}, ports: [{{port: 80, targetPort: 8080}}]}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web, namespace: default}}\n\
         spec: {{host: web, trafficPolicy: {{outlierDetection: {{consecutive5xxErrors: 3, interval: 500ms, baseEjectionTime: 2s, \
         maxEjectionPercent: 100}}}}}}\n",
        client.manifest(),
        well.manifest(),
        ill.manifest(),
    ))?;
    let agent = a.agent().kubernetes(&api)?.start()?;
    agent.wait_enrolled(&[&client, &well, &ill])?;
    let event = |reason: &str| {
        eventually(SECONDS_30, reason, || {
            client.connect(&["10.96.0.10:80", "--count", "10"]).ok()?;
            api.events().into_iter().find(|event| event["reason"] == reason)
        })
        .with_context(|| format!("{:#?}\n{}", api.events(), agent.log()))
    };
    let ejected = event("MeshEndpointEjected")?;
    assert_eq!((&ejected["type"], &ejected["regarding"]["name"]), (&"Warning".into(), &"ill".into()));
    assert_eq!(ejected["action"], "Balance", "{ejected:#}");
    let note = ejected["note"].as_str().unwrap_or_default();
    assert!(note.contains("default/web") && note.contains(&ill.v4.to_string()), "{ejected:#}");
    resets.kill()?;
    ill.serve(&["--listen", "[::]:8080"])?;
    let returned = event("MeshEndpointReturned")?;
    assert_eq!((&returned["type"], &returned["regarding"]["name"]), (&"Normal".into(), &"ill".into()));
    assert!(!api.events().iter().any(|event| event["regarding"]["name"] == "well"), "{:#?}", api.events());
    Ok(())
}

/// The first label of a pod's manifest, as a selector.
fn selector(manifest: &str) -> String {
    let labels = manifest.split("labels:\n").nth(1).unwrap_or_default();
    labels.lines().next().unwrap_or_default().trim().to_owned()
}
