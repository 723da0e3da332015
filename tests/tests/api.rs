//! The tests' own API server, against the kube client that the agent uses and against kubectl.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Service};
use kube::api::{
    Api, AttachParams, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchEvent,
    WatchParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::watcher::{self, watcher};
use kube::{Client, Config, ResourceExt as _};
use mesh_tests::{Account, ApiServer, Asked, ExecResult, Shows};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(20);

fn block<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { timeout(Duration::from_mins(1), work).await.context("took a minute")? })
}

async fn client(api: &ApiServer, token: &str) -> Result<Client> {
    let file = Kubeconfig::read_from(api.kubeconfig(token)?)?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

async fn admin(api: &ApiServer) -> Result<Client> {
    client(api, api.admin_token()).await
}

fn pod(name: &str, node: &str, phase: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": name, "tier": "web"}},
        "spec": {"nodeName": node, "containers": [{"name": "app", "image": "app"}]}, "status": {"phase": phase},
    })
}

fn refusal<T>(answer: kube::Result<T>) -> Result<(u16, String, String)> {
    match answer {
        Ok(_) => bail!("it is not refused"),
        Err(kube::Error::Api(status)) => Ok((status.code, status.reason.clone(), status.message.clone())),
        Err(other) => bail!("no status: {other:?}"),
    }
}

async fn next<T, E>(events: &mut (impl Stream<Item = Result<T, E>> + Unpin)) -> Result<T>
where
    E: std::error::Error + Send + Sync + 'static,
{
    timeout(SOON, events.try_next()).await.context("no event")??.context("the watch is over")
}

#[test]
fn lists_come_in_pages_of_one_revision_and_by_selectors() -> Result<()> {
    let api = ApiServer::start()?;
    for number in 0..25 {
        let node = if number % 2 == 0 { "node-a" } else { "node-b" };
        api.put(pod(&format!("p{number:02}"), node, if number < 5 { "Pending" } else { "Running" }))?;
    }
    block(async {
        let pods: Api<Pod> = Api::all(admin(&api).await?);
        let first = pods.list(&ListParams::default().limit(10)).await?;
        assert_eq!(first.items.len(), 10);
        let at = first.metadata.resource_version.clone().context("a revision")?;
        // What happens between two pages is not in them.
        api.delete("Pod", "default", "p20")?;
        api.put(pod("p21a", "node-a", "Running"))?;
        api.edit("Pod", "default", "p22", |pod| pod["metadata"]["labels"]["app"] = "changed".into())?;
        let mut names: Vec<String> = first.items.iter().map(kube::ResourceExt::name_any).collect();
        let mut token = first.metadata.continue_;
        while let Some(more) = token.filter(|token| !token.is_empty()) {
            let page = pods.list(&ListParams::default().limit(10).continue_token(&more)).await?;
            assert_eq!(page.metadata.resource_version.as_ref(), Some(&at));
            assert!(page.items.iter().all(|pod| pod.labels()["app"] == pod.name_any()));
            names.extend(page.items.iter().map(kube::ResourceExt::name_any));
            token = page.metadata.continue_;
        }
        let wanted: Vec<String> = (0..25).map(|number| format!("p{number:02}")).collect();
        assert_eq!(names, wanted);
        for (labels, fields, count) in [
            ("", "spec.nodeName=node-a", 13),
            ("", "spec.nodeName!=node-a", 12),
            ("", "spec.nodeName=node-a,status.phase!=Pending", 10),
            ("", "metadata.name=p03", 1),
            ("app in (p01, p02),tier=web", "", 2),
            ("app notin (p01,p02)", "", 23),
            ("app!=p01,tier", "", 24),
            ("!tier", "", 0),
        ] {
            let found = pods.list(&ListParams::default().labels(labels).fields(fields)).await?.items.len();
            assert_eq!(found, count, "{labels} {fields}");
        }
        let refused = pods.list(&ListParams::default().fields("spec.magic=1")).await;
        assert_eq!(refusal(refused)?.0, 400);
        // A page of a list that the server has forgotten the revision of.
        let first = pods.list(&ListParams::default().limit(10)).await?;
        api.put(pod("later", "node-a", "Running"))?;
        api.forget_history();
        let token = first.metadata.continue_.context("more")?;
        let gone = pods.list(&ListParams::default().limit(10).continue_token(&token)).await;
        let (code, reason, _) = refusal(gone)?;
        assert_eq!((code, reason.as_str()), (410, "Expired"));
        Ok(())
    })
}

#[test]
fn watches_tell_every_change_bookmarks_and_that_the_past_is_gone() -> Result<()> {
    let api = ApiServer::start()?;
    api.bookmark_every(Duration::from_millis(100));
    api.put(pod("a", "node-a", "Running"))?;
    block(async {
        let pods: Api<Pod> = Api::namespaced(admin(&api).await?, "default");
        let old = api.revision().to_string();
        let only = WatchParams::default().fields("spec.nodeName=node-a");
        let mut events = pin!(pods.watch(&only, &old).await?);
        api.put(pod("b", "node-b", "Running"))?;
        api.put(pod("c", "node-a", "Running"))?;
        api.edit("Pod", "default", "a", |pod| pod["metadata"]["labels"]["new"] = "1".into())?;
        // It leaves what the watch is about, and is deleted where nobody looks.
        api.edit("Pod", "default", "c", |pod| pod["spec"]["nodeName"] = "node-b".into())?;
        api.delete("Pod", "default", "c")?;
        api.delete("Pod", "default", "a")?;
        let mut seen = Vec::new();
        loop {
            match next(&mut events).await? {
                WatchEvent::Added(pod) => seen.push(format!("+{}", pod.name_any())),
                WatchEvent::Modified(pod) => seen.push(format!("~{}", pod.name_any())),
                WatchEvent::Deleted(pod) => seen.push(format!("-{}", pod.name_any())),
                WatchEvent::Bookmark(mark) => {
                    if mark.metadata.resource_version == api.revision().to_string() {
                        break;
                    }
                }
                WatchEvent::Error(status) => bail!("{status:?}"),
            }
        }
        assert_eq!(seen, ["+c", "~a", "-c", "-a"]);
        // A watch that is there does not mind; one from the past does, in either way.
        api.forget_history();
        let mut late = pin!(pods.watch(&only, &old).await?);
        let WatchEvent::Error(status) = next(&mut late).await? else { bail!("no error") };
        assert_eq!((status.code, status.reason.as_str()), (410, "Expired"));
        api.gone_as_status(true);
        let refused = pods.watch(&only, &old).await;
        assert_eq!(refusal(refused)?.0, 410);
        Ok(())
    })
}

#[test]
fn a_watcher_follows_through_cuts_stops_and_lost_history() -> Result<()> {
    let api = ApiServer::start()?;
    api.put(pod("a", "node-a", "Running"))?;
    block(async {
        let pods: Api<Pod> = Api::all(admin(&api).await?);
        let config = watcher::Config::default().page_size(2);
        let mut events = pin!(watcher(pods, config));
        let mut known = BTreeMap::new();
        let mut listed = BTreeMap::new();
        let mut step = 0;
        loop {
            let event = timeout(SOON, events.next()).await.context("no event")?.context("an end")?;
            match event {
                Ok(watcher::Event::Init) => listed.clear(),
                Ok(watcher::Event::InitApply(pod)) => drop(listed.insert(pod.name_any(), pod)),
                Ok(watcher::Event::InitDone) => known = std::mem::take(&mut listed),
                Ok(watcher::Event::Apply(pod)) => drop(known.insert(pod.name_any(), pod)),
                Ok(watcher::Event::Delete(pod)) => drop(known.remove(&pod.name_any())),
                Err(_away) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
            let names: Vec<&str> = known.keys().map(String::as_str).collect();
            match (step, names.as_slice()) {
                (0, ["a"]) => {
                    api.cut();
                    api.put(pod("b", "node-a", "Running"))?;
                }
                (1, ["a", "b"]) => {
                    api.stop();
                    api.put(pod("c", "node-a", "Running"))?;
                    api.delete("Pod", "default", "a")?;
                    api.restart()?;
                }
                (2, ["b", "c"]) => {
                    api.stop();
                    api.delete("Pod", "default", "b")?;
                    api.forget_history();
                    api.restart()?;
                }
                (3, ["c"]) => return Ok(()),
                _ => continue,
            }
            step += 1;
        }
    })
}

#[test]
fn writes_keep_versions_generations_and_the_two_halves_of_an_object() -> Result<()> {
    let api = ApiServer::start()?;
    block(async {
        let client = admin(&api).await?;
        let services: Api<Service> = Api::namespaced(client.clone(), "default");
        let service = json!({"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}});
        let made = services.create(&PostParams::default(), &serde_json::from_value(service)?).await?;
        assert!(made.uid().is_some() && made.creation_timestamp().is_some());
        let again = services.create(&PostParams::default(), &made).await;
        assert_eq!(refusal(again)?.0, 400, "it has a resourceVersion");
        let mut bare = made.clone();
        bare.metadata.resource_version = None;
        let again = services.create(&PostParams::default(), &bare).await;
        assert_eq!(refusal(again)?, (409, "AlreadyExists".into(), "services \"web\" already exists".into()));
        let mut changed = made.clone();
        changed.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into());
        let kept = services.replace("web", &PostParams::default(), &changed).await?;
        assert_eq!(kept.uid(), made.uid());
        let conflict = services.replace("web", &PostParams::default(), &changed).await;
        assert_eq!(refusal(conflict)?.0, 409);
        let same = services.replace("web", &PostParams::default(), &kept).await?;
        assert_eq!(same.resource_version(), kept.resource_version(), "nothing has changed");
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        services.replace("web", &dry, &made_over(&kept)).await?;
        assert_eq!(services.get("web").await?.labels().get("dry"), None);

        let nowhere: Api<ConfigMap> = Api::namespaced(client.clone(), "nowhere");
        let map: ConfigMap = serde_json::from_value(json!({"metadata": {"generateName": "map-"}}))?;
        let refused = nowhere.create(&PostParams::default(), &map).await;
        assert_eq!(refusal(refused)?, (404, "NotFound".into(), "namespaces \"nowhere\" not found".into()));
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
        let map = maps.create(&PostParams::default(), &map).await?;
        assert!(map.name_any().starts_with("map-") && map.name_any().len() == 9);
        let merge = json!({"data": {"a": "1", "b": "2"}});
        maps.patch(&map.name_any(), &PatchParams::default(), &Patch::Merge(&merge)).await?;
        let drop_a = json!({"data": {"a": null}});
        let map = maps.patch(&map.name_any(), &PatchParams::default(), &Patch::Merge(&drop_a)).await?;
        assert_eq!(map.data.context("data")?.into_iter().collect::<Vec<_>>(), [("b".into(), "2".into())]);

        let daemons: Api<DynamicObject> =
            Api::namespaced_with(client.clone(), "default", &resource("apps", "v1", "DaemonSet"));
        let daemon = json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "d"},
            "spec": {"template": {"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}}},
            "status": {"numberReady": 7},
        });
        let made = daemons.create(&PostParams::default(), &serde_json::from_value(daemon)?).await?;
        assert!(made.data["status"].is_null(), "status has a path of its own");
        assert_eq!(made.metadata.generation, Some(1));
        let status = json!({"status": {"numberReady": 1}, "spec": {"template": null}});
        let made = daemons.patch_status("d", &PatchParams::default(), &Patch::Merge(&status)).await?;
        assert_eq!((&made.data["status"]["numberReady"], made.metadata.generation), (&json!(1), Some(1)));
        let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "b", "image": "2"}]}}}});
        let made = daemons.patch("d", &PatchParams::default(), &Patch::Strategic(&image)).await?;
        let images = &made.data["spec"]["template"]["spec"]["containers"];
        assert_eq!((&images[0]["image"], &images[1]["image"]), (&json!("1"), &json!("2")));
        assert_eq!((&made.data["status"]["numberReady"], made.metadata.generation), (&json!(1), Some(2)));

        // Finalizers hold; a namespace takes what is in it along.
        let hold = json!({"metadata": {"finalizers": ["mesh.dev/hold"]}});
        services.patch("web", &PatchParams::default(), &Patch::Merge(&hold)).await?;
        let held = services.delete("web", &DeleteParams::default()).await?.left().context("is marked")?;
        assert!(held.metadata.deletion_timestamp.is_some());
        let release = json!({"metadata": {"finalizers": null}});
        services.patch("web", &PatchParams::default(), &Patch::Merge(&release)).await?;
        assert_eq!(services.get_opt("web").await?.map(|held| held.name_any()), None);
        let namespaces: Api<Namespace> = Api::all(client);
        namespaces.delete("default", &DeleteParams::default()).await?;
        assert_eq!((api.count("DaemonSet"), api.object("Namespace", "", "default")), (0, None));
        Ok(())
    })
}

fn made_over(service: &Service) -> Service {
    let mut service = service.clone();
    service.metadata.labels = Some([("dry".to_owned(), "run".to_owned())].into());
    service
}

fn resource(group: &str, version: &str, kind: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

#[test]
fn server_side_apply_keeps_to_the_fields_of_each_manager() -> Result<()> {
    let api = ApiServer::start()?;
    block(async {
        let daemons: Api<DynamicObject> =
            Api::namespaced_with(admin(&api).await?, "default", &resource("apps", "v1", "DaemonSet"));
        let apply = |manager: &str, force: bool, image: &str, label: Option<&str>| {
            let daemons = daemons.clone();
            let mut params = PatchParams::apply(manager);
            params.force = force;
            let labels = label.map(|label| json!({label: "x"})).unwrap_or(json!({}));
            let daemon = json!({
                "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "d", "labels": labels},
                "spec": {"template": {"spec": {"containers": [{"name": "a", "image": image}]}}},
            });
            async move { daemons.patch("d", &params, &Patch::Apply(&daemon)).await }
        };
        let made = apply("meshctl", false, "1", Some("first")).await?;
        let fields = made.metadata.managed_fields.context("managed fields")?;
        assert_eq!(
            (fields[0].manager.as_deref(), fields[0].operation.as_deref()),
            (Some("meshctl"), Some("Apply"))
        );
        let same = apply("meshctl", false, "1", Some("first")).await?;
        assert_eq!(same.metadata.resource_version, made.metadata.resource_version, "nothing has changed");
        // Another manager's container is its own; its label too.
        let other = json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "d", "labels": {"other": "y"}},
            "spec": {"template": {"spec": {"containers": [{"name": "side", "image": "s"}]}}},
        });
        daemons.patch("d", &PatchParams::apply("other"), &Patch::Apply(&other)).await?;
        let made = apply("meshctl", false, "2", Some("second")).await?;
        let labels: Vec<&String> = made.labels().keys().collect();
        assert_eq!(labels, ["other", "second"]);
        assert_eq!(made.data["spec"]["template"]["spec"]["containers"].as_array().map(Vec::len), Some(2));
        let conflict = apply("third", false, "3", None).await;
        let (code, _, message) = refusal(conflict)?;
        assert_eq!(code, 409);
        assert!(
            message.contains("conflict with \"meshctl\": .spec.template.spec.containers[name="),
            "{message}"
        );
        apply("third", true, "3", None).await?;
        let conflict = apply("meshctl", false, "2", Some("second")).await;
        assert_eq!(refusal(conflict)?.0, 409, "the field has another owner now");
        // Who updates has the field as well.
        let merge = json!({"metadata": {"labels": {"second": "z"}}});
        daemons
            .patch(
                "d",
                &PatchParams { field_manager: Some("kubectl".into()), ..Default::default() },
                &Patch::Merge(&merge),
            )
            .await?;
        let conflict = apply("meshctl", false, "3", Some("second")).await;
        assert!(refusal(conflict)?.2.contains("conflict with \"kubectl\" using apps/v1 at"));
        Ok(())
    })
}

#[test]
fn tokens_are_known_revoked_reviewed_and_limited_by_roles() -> Result<()> {
    let api = ApiServer::start()?;
    let account =
        || Account::service("mesh-system", "mesh-agent").node("node-a").pod("mesh-agent-x", "uid-x");
    let token = api.issue(account());
    let for_ca = api.issue(account().audiences(&["istio-ca"]));
    let expired = api.issue(account().expires_in(Duration::ZERO));
    block(async {
        let agent = client(&api, &token).await?;
        let pods: Api<Pod> = Api::all(agent.clone());
        pods.list(&ListParams::default()).await?;
        api.enforce(
            "{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: agent}, rules: [\
               {apiGroups: [''], resources: [pods, pods/exec], verbs: [get, list]},\
               {apiGroups: ['authentication.k8s.io'], resources: [tokenreviews], verbs: [create]}]}\n---\n\
             {apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: agent},\
               roleRef: {kind: ClusterRole, name: agent}, subjects: [\
               {kind: ServiceAccount, name: mesh-agent, namespace: mesh-system}]}\n",
        )?;
        pods.list(&ListParams::default()).await?;
        let refused = pods.watch(&WatchParams::default(), "0").await;
        assert_eq!(
            refusal(refused)?,
            (
                403,
                "Forbidden".into(),
                "pods is forbidden: User \"system:serviceaccount:mesh-system:mesh-agent\" cannot watch resource \"pods\" in API \
                 group \"\" at the cluster scope"
                    .into()
            )
        );
        let maps: Api<ConfigMap> = Api::namespaced(agent.clone(), "default");
        let (_, _, message) = refusal(maps.get("x").await)?;
        assert!(
            message.starts_with("configmaps \"x\" is forbidden: ")
                && message.ends_with("in the namespace \"default\""),
            "{message}"
        );
        let asked = Asked {
            user: "system:serviceaccount:mesh-system:mesh-agent".into(),
            verb: "list".into(),
            group: String::new(),
            resource: "pods".into(),
            subresource: String::new(),
        };
        assert_eq!(api.requests().get(&asked), Some(&2));

        let reviews: Api<TokenReview> = Api::all(agent.clone());
        for (token, audiences, user) in [
            (&for_ca, Some(vec!["istio-ca".to_owned()]), true),
            (&for_ca, None, false),
            (&token, Some(vec!["istio-ca".to_owned()]), false),
            (&token, None, true),
            (&expired, None, false),
            (&"nobody's".to_owned(), None, false),
        ] {
            let spec = TokenReviewSpec { token: Some(token.clone()), audiences };
            let review = TokenReview { spec, ..TokenReview::default() };
            let status = reviews.create(&PostParams::default(), &review).await?.status.context("a status")?;
            assert_eq!(status.authenticated.unwrap_or_default(), user, "{status:?}");
            assert_eq!(status.error.is_some(), !user, "{status:?}");
            if user {
                let user = status.user.context("a user")?;
                assert_eq!(user.username.as_deref(), Some("system:serviceaccount:mesh-system:mesh-agent"));
                let extra = user.extra.context("what it is bound to")?;
                assert_eq!(extra["authentication.kubernetes.io/node-name"], ["node-a"]);
            }
        }
        for token in [&for_ca, &expired, &"nobody's".to_owned()] {
            let stranger: Api<Pod> = Api::all(client(&api, token).await?);
            let refused = stranger.list(&ListParams::default()).await;
            assert_eq!(refusal(refused)?, (401, "Unauthorized".into(), "Unauthorized".into()));
        }
        api.revoke(&token);
        assert_eq!(refusal(pods.list(&ListParams::default()).await)?.0, 401);
        Ok(())
    })
}

#[test]
fn commands_run_in_pods_by_what_the_test_says() -> Result<()> {
    let api = ApiServer::start()?;
    api.put(pod("a", "node-a", "Running"))?;
    api.on_exec(|call| ExecResult {
        stdout: format!("{}/{} {:?} {:?}", call.namespace, call.pod, call.container, call.argv).into_bytes(),
        stderr: vec![b'e'; 100_000],
        code: i32::from(call.argv[0] == "false") * 3,
    });
    block(async {
        let pods: Api<Pod> = Api::namespaced(admin(&api).await?, "default");
        for (command, status) in [("true", "Success"), ("false", "Failure")] {
            let params = AttachParams::default().container("app").stderr(true);
            let mut attached = pods.exec("a", [command, "--a b&c"], &params).await?;
            let (mut out, mut err) = (String::new(), String::new());
            let (stdout, stderr) = (attached.stdout(), attached.stderr());
            let ended = attached.take_status().context("a status")?;
            let (a, b) = tokio::join!(
                async {
                    stdout.context("stdout")?.read_to_string(&mut out).await.map_err(anyhow::Error::from)
                },
                async {
                    stderr.context("stderr")?.read_to_string(&mut err).await.map_err(anyhow::Error::from)
                },
            );
            a?;
            b?;
            assert_eq!(out, format!("default/a Some(\"app\") [{command:?}, \"--a b&c\"]"));
            assert_eq!(err.len(), 100_000);
            let ended = ended.await.context("an end")?;
            assert_eq!(ended.status.as_deref(), Some(status));
            if command == "false" {
                let causes = ended.details.and_then(|details| details.causes).context("causes")?;
                assert_eq!(causes[0].message.as_deref(), Some("3"));
            }
        }
        ensure!(pods.exec("b", ["true"], &AttachParams::default()).await.is_err());
        Ok(())
    })
}

#[test]
fn definitions_bring_resources_and_take_them_along() -> Result<()> {
    let api = ApiServer::start()?;
    block(async {
        let routes: Api<DynamicObject> =
            Api::all_with(admin(&api).await?, &resource("networking.istio.io", "v1", "VirtualService"));
        let missing = routes.list(&ListParams::default()).await;
        assert_eq!(refusal(missing)?.0, 404);
        api.install_crds(&["networking.istio.io", "podmonitors.monitoring.coreos.com"])?;
        api.apply(
            "{apiVersion: networking.istio.io/v1beta1, kind: VirtualService, metadata: {name: a}, spec: {}}",
        )?;
        let found = routes.list(&ListParams::default()).await?;
        assert_eq!(
            found.items[0].types.as_ref().map(|types| types.api_version.as_str()),
            Some("networking.istio.io/v1")
        );
        api.delete("CustomResourceDefinition", "", "virtualservices.networking.istio.io")?;
        assert_eq!(refusal(routes.list(&ListParams::default()).await)?.0, 404);
        ensure!(api.install_crds(&["nothing.example"]).is_err());
        Ok(())
    })
}

#[test]
fn it_fails_as_it_is_told_to() -> Result<()> {
    let api = ApiServer::start()?;
    block(async {
        let pods: Api<Pod> = Api::all(admin(&api).await?);
        api.fail_next(1, 500)?;
        assert_eq!(refusal(pods.list(&ListParams::default()).await)?.0, 500);
        api.hang(true);
        let silent = timeout(Duration::from_millis(200), pods.list(&ListParams::default())).await;
        ensure!(silent.is_err());
        api.hang(false);
        pods.list(&ListParams::default()).await?;
        for shows in [Shows::UnknownIssuer, Shows::OtherName, Shows::Expired] {
            api.show(shows)?;
            let pods: Api<Pod> = Api::all(admin(&api).await?);
            ensure!(pods.list(&ListParams::default()).await.is_err(), "{shows:?}");
        }
        api.show(Shows::Right)?;
        let pods: Api<Pod> = Api::all(admin(&api).await?);
        pods.list(&ListParams::default()).await?;
        api.stop();
        ensure!(pods.list(&ListParams::default()).await.is_err());
        api.restart()?;
        pods.list(&ListParams::default()).await?;
        Ok(())
    })
}

#[test]
fn kubectl_works_against_it() -> Result<()> {
    if Command::new("kubectl").arg("version").arg("--client").output().is_err() {
        ensure!(std::env::var_os("MESH_REQUIRE_PRIVILEGED").is_none(), "kubectl is not installed");
        return Ok(());
    }
    let api = ApiServer::start()?;
    api.install_crds(&["security.istio.io"])?;
    let config = api.kubeconfig(api.admin_token())?;
    let home = tempfile::tempdir()?;
    let kubectl = |args: &[&str], input: &str| -> Result<String> {
        use std::io::Write as _;
        let mut child = Command::new("kubectl")
            .env("KUBECONFIG", &config)
            .env("HOME", home.path())
            .args(args)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()?;
        child.stdin.take().context("stdin")?.write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        ensure!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        Ok(text(&output.stdout))
    };
    let policy = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: default}\nspec: {mtls: {mode: STRICT}}\n";
    kubectl(&["apply", "--server-side", "--validate=false", "-f", "-"], policy)?;
    assert!(kubectl(&["get", "peerauthentications", "-A", "-o", "name"], "")?.contains("/strict"));
    let config_map =
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m, namespace: default}\ndata: {a: '1'}\n";
    for (data, said) in [(config_map.to_owned(), "created"), (config_map.replace("'1'", "'2'"), "configured")]
    {
        let out = kubectl(&["apply", "--validate=false", "-f", "-"], &data)?;
        assert!(out.contains(said), "{out}");
    }
    assert_eq!(kubectl(&["get", "cm", "m", "-o", "jsonpath={.data.a}"], "")?, "2");
    kubectl(&["label", "namespace", "default", "istio.io/dataplane-mode=ambient"], "")?;
    let namespace = api.object("Namespace", "", "default").context("a namespace")?;
    assert_eq!(namespace["metadata"]["labels"]["istio.io/dataplane-mode"], "ambient");
    kubectl(&["delete", "configmap", "m"], "")?;
    kubectl(&["api-resources"], "")?;
    Ok(())
}
