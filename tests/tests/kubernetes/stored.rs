//! The state that is kept on disk: what an agent has that starts while the API server is away.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    ApiServer, Driver, Lab, LaidOut, Pod, PodSpec, SECONDS_10, SECONDS_30, Shows, binary, eventually,
};
use mesh_userspace::model::Snapshot;
use mesh_userspace::source::{self, Feed, Phase, Reports, StateFile};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::{
    CRDS, MINUTE, RULES, SHOP, begin_with, block, has, mesh, meshctl, pod, selector, until, until_api,
};

/// A feed that can be ended as an agent ends it.
struct Ends {
    feed: Feed,
    stop: oneshot::Sender<()>,
}

impl Ends {
    async fn end(self) -> Result<()> {
        let state = self.feed.api.clone().context("an API server")?;
        drop((self.stop, self.feed));
        timeout(MINUTE, state.ended()).await.context("its thread ends")
    }
}

fn file(folder: &Path) -> StateFile {
    StateFile { path: folder.join("made/state"), patience: Duration::from_millis(500) }
}

async fn follow(api: &ApiServer, file: StateFile) -> Result<Ends> {
    let source = begin_with(&api.kubeconfig(api.admin_token())?, Some(file)).await?;
    let (stop, stopped) = oneshot::channel();
    let shutdown = async { drop(stopped.await) };
    let feed = timeout(MINUTE, source::run(source, mesh(), shutdown)).await.context("no first state")??;
    Ok(Ends { feed, stop })
}

fn same(one: &Snapshot, other: &Snapshot) {
    assert_eq!(one.services, other.services);
    assert_eq!(one.workloads, other.workloads);
    assert_eq!(one.namespaces, other.namespaces);
    assert_eq!(one.node, other.node);
    assert_eq!(one.peer_policies, other.peer_policies);
    assert!(one.policies.iter().eq(other.policies.iter()));
    assert_eq!(one.routes, other.routes);
}

fn cluster() -> Result<ApiServer> {
    let api = ApiServer::start()?;
    api.install_crds(&CRDS)?;
    let pods = pod("web", "node-a", "10.244.1.2") + &pod("web2", "node-b", "10.244.2.2");
    api.apply(&format!("{SHOP}{pods}{RULES}"))?;
    Ok(api)
}

#[test]
fn it_is_in_force_while_the_api_server_is_away_and_until_it_is_back() -> Result<()> {
    let (api, folder) = (cluster()?, tempfile::tempdir()?);
    block(async {
        let first = follow(&api, file(folder.path())).await?;
        let state = first.feed.api.clone().context("an API server")?;
        until_api(&state, "the state is written", |status| status.kept.as_of.is_some()).await?;
        assert!(state.status().stored.is_none(), "{:?}", state.status());
        let path = file(folder.path()).path;
        let mode = |path: &Path| Ok::<_, anyhow::Error>(fs::metadata(path)?.permissions().mode() & 0o777);
        assert_eq!((mode(&path)?, mode(path.parent().context("a folder")?)?), (0o600, 0o700));
        // What comes within the pause is written at the end.
        let mut feed = first.feed.clone();
        api.apply(&pod("late", "node-a", "10.244.1.9"))?;
        until(&mut feed, "the late pod", |now| has(now, "late")).await?;
        let before = feed.current.load_full();
        drop(feed);
        first.end().await?;
        assert_eq!(fs::read_dir(path.parent().context("a folder")?)?.count(), 1, "nothing is left beside it");

        api.stop();
        api.apply(&pod("new", "node-b", "10.244.2.3"))?;
        api.delete("Pod", "shop", "web2")?;
        api.delete("PeerAuthentication", "shop", "strict")?;
        // A policy that is spoilt meanwhile keeps the state that it had.
        let spoilt = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: friends, namespace: shop}\nspec: {rules: 7}\n";
        api.apply(spoilt)?;
        api.forget_history();
        let mut second = follow(&api, file(folder.path())).await?;
        let now = second.feed.current.load_full();
        same(&before, &now);
        let state = second.feed.api.clone().context("an API server")?;
        let status = state.status();
        assert!(
            !status.connected && status.kinds.iter().all(|kind| kind.phase == Phase::Stored),
            "{status:?}"
        );
        assert!(status.stored.is_some() && status.as_of == status.stored, "{status:?}");
        assert!(status.as_of.is_some_and(|as_of| as_of <= SystemTime::now()) && state.waits_for().is_empty());
        assert_eq!(status.kept.as_of, None, "what was read is not written again");

        api.restart()?;
        let feed = &mut second.feed;
        until(feed, "the changes", |now| {
            has(now, "new") && !has(now, "web2") && has(now, "late") && now.peer_policies.is_empty()
        })
        .await?;
        until_api(&state, "connected", |status| status.connected && status.stored.is_none()).await?;
        let policies = |snapshot: &Snapshot| snapshot.policies.iter().cloned().collect::<Vec<_>>();
        assert_eq!(policies(&feed.current.load()), policies(&before), "its last good state");
        let is_told = |reports: &Arc<Reports>| match &reports.problems[..] {
            [problem] => problem.to_string().contains("last good state is in force"),
            _ => false,
        };
        let mut reports = feed.reports.clone();
        let told = timeout(SECONDS_30, reports.wait_for(is_told)).await;
        told.context("the object that cannot be read is told")??;
        until_api(&state, "written again", |status| status.kept.as_of.is_some()).await?;
        second.end().await
    })
}

#[test]
fn an_api_server_that_is_silent_is_one_that_is_away() -> Result<()> {
    let (api, folder) = (cluster()?, tempfile::tempdir()?);
    block(async {
        follow(&api, file(folder.path())).await?.end().await?;
        // It takes connections and answers nothing; or it is another one.
        for fault in ["silent", "another"] {
            match fault {
                "silent" => api.hang(true),
                _ => api.show(Shows::UnknownIssuer)?,
            }
            let mut again = follow(&api, file(folder.path())).await?;
            let state = again.feed.api.clone().context("an API server")?;
            assert!(state.status().stored.is_some(), "{fault}: {:?}", state.status());
            assert!(has(&again.feed.current.load(), "web"), "{fault}");
            match fault {
                "silent" => api.hang(false),
                _ => api.show(Shows::Right)?,
            }
            api.cut();
            api.apply(&pod(fault, "node-b", "10.244.2.3"))?;
            until(&mut again.feed, fault, |now| has(now, fault)).await?;
            until_api(&state, "connected", |status| status.connected && status.stored.is_none()).await?;
            again.end().await?;
        }
        Ok(())
    })
}

#[test]
fn what_is_spoilt_or_anothers_is_not_taken() -> Result<()> {
    let (api, folder) = (cluster()?, tempfile::tempdir()?);
    let path = file(folder.path()).path;
    block(async {
        follow(&api, file(folder.path())).await?.end().await?;
        let good = fs::read(&path)?;
        for what in ["spoilt", "truncated", "public", "missing"] {
            match what {
                "spoilt" => {
                    let mut bad = good.clone();
                    let middle = bad.len() / 2;
                    bad[middle] ^= 1;
                    fs::write(&path, bad)?;
                }
                "truncated" => fs::write(&path, &good[..good.len() - 9])?,
                "public" => {
                    fs::write(&path, &good)?;
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
                }
                _ => fs::remove_file(&path)?,
            }
            api.stop();
            let source = begin_with(&api.kubeconfig(api.admin_token())?, Some(file(folder.path()))).await?;
            let state = source.api().context("an API server")?;
            let waiting = tokio::spawn(source::run(source, mesh(), std::future::pending()));
            // Well past its patience: every kind has failed for longer.
            until_api(&state, "it has been away for long", |status| {
                status.kinds.iter().all(|kind| {
                    let failing = kind.failing_since.and_then(|since| since.elapsed().ok());
                    failing.is_some_and(|failing| failing > Duration::from_secs(2))
                })
            })
            .await?;
            assert!(!waiting.is_finished(), "{what}: nothing is in force");
            assert!(state.status().stored.is_none() && !state.waits_for().is_empty(), "{what}");
            api.restart()?;
            let feed = timeout(MINUTE, waiting).await???;
            assert!(has(&feed.current.load(), "web"), "{what}");
            until_api(&state, "it is written anew", |status| status.kept.as_of.is_some()).await?;
            let mode = fs::metadata(&path)?.permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{what}");
            drop(feed);
        }
        Ok(())
    })
}

#[test]
fn an_agent_that_boots_without_its_api_server_serves_and_refuses_as_before() -> Result<()> {
    let lab = Lab::unique()?;
    let a = lab.node("node-a")?;
    let api = lab.api_server()?;
    api.install_crds(&CRDS)?;
    let laid = |name: &str, number| a.pod(PodSpec::new(name).kubelet(LaidOut::new(number, Driver::Systemd)));
    let (client, server, late) = (laid("client", 1)?, laid("server", 2)?, laid("late", 3)?);
    let outside = a.pod(
        PodSpec::new("outside")
            .label("istio.io/dataplane-mode", "none")
            .kubelet(LaidOut::new(4, Driver::Cgroupfs)),
    )?;
    server.serve(&["--listen", "[::]:8080"])?;
    let strict = "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: default}\nspec: {mtls: {mode: STRICT}}\n";
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: server, namespace: default}\n\
        spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], selector: {app: server}, ports: [{port: 80, targetPort: 8080}]}\n";
    api.apply(&format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: default, labels: {{istio.io/dataplane-mode: ambient}}}}\n---\n{}{strict}{}",
        [&client, &server, &outside].map(Pod::manifest).join("---\n"),
        service.replace("app: server", &selector(&server.manifest())),
    ))?;
    let builder = a.agent().kubernetes(&api)?.flag("--source-wait", "1s");
    let agent = builder.start()?;
    agent.wait_enrolled(&[&client, &server])?;
    let kept = || Some(agent.metric("mesh_source_kept_size_bytes", &[]).ok()?).filter(|size| *size > 0.0);
    eventually(SECONDS_10, "the state is kept", kept)?;
    agent.terminate(SECONDS_30)?;
    // As after a reboot: nothing in the kernel, nothing in the pods, no state folder.
    let text = |path: &Path| path.display().to_string();
    let argv = [
        &*text(&binary("meshd")?),
        "uninstall",
        "--bpffs",
        &text(&a.bpffs()),
        "--state-dir",
        &text(&a.state_dir()),
    ];
    let unused = text(&lab.folder().join("unused"));
    let done = a.spawn(&[&argv[..], &["--source-state", &unused]].concat())?.wait(SECONDS_30)?;
    ensure!(done.status.success(), "{}", done.stderr);
    let target = format!("{}:8080", server.v4);
    assert_eq!(outside.connect(&[&target])?.ok, 1, "nothing is in force");
    assert!(a.source_state().exists());

    api.stop();
    let agent = builder.start()?;
    agent.wait_enrolled(&[&client, &server])?;
    let plain = outside.connect(&[&target, "--count", "3"])?;
    assert_eq!((plain.ok, plain.failed), (0, 3), "STRICT: {plain:?}");
    let served = client.connect(&["10.96.0.10:80", "--count", "10"])?;
    assert_eq!((served.ok, served.failed), (10, 0), "{served:?}");
    let told = meshctl(&a, &["status"])?;
    assert!(told.contains("KEPT ON DISK") && told.contains("the state kept on disk is in force"), "{told}");
    assert_eq!(agent.metric("mesh_source_stored", &[])?.to_string(), "1");
    assert_eq!(agent.metric("mesh_source_connected", &[])?.to_string(), "0");
    let said = agent.log();
    assert_eq!(said.matches("what was kept on disk is in force").count(), 1, "{said}");

    // Back, with changes.
    api.apply(&late.manifest())?;
    api.delete("PeerAuthentication", "default", "default")?;
    api.restart()?;
    agent.wait_enrolled(&[&client, &server, &late])?;
    eventually(SECONDS_10, "plaintext is let in again", || {
        (outside.connect(&[&target]).ok()?.ok == 1).then_some(())
    })?;
    eventually(SECONDS_30, "it is told", || {
        let told = meshctl(&a, &["status"]).ok()?;
        (told.contains("connected for") && !told.contains("KEPT ON DISK")).then_some(())
    })?;
    assert_eq!(agent.metric("mesh_source_stored", &[])?.to_string(), "0");
    // Taken off the node, the state goes too.
    agent.terminate(SECONDS_30)?;
    let own = text(&a.source_state());
    let done = a.spawn(&[&argv[..], &["--source-state", &own]].concat())?.wait(SECONDS_30)?;
    ensure!(done.status.success(), "{}", done.stderr);
    assert!(!a.source_state().exists());
    Ok(())
}
