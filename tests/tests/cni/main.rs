//! The CNI plugin as a kubelet's runtime calls it, with real agents: environment and stdin in, result and exit status out.
//!
//! The lab is the plugin before it in the chain: it makes each pod's namespace and gives it its addresses. What the agents
//! know of the pods is what an API server has at that moment: a UID, a node, and no address.

mod api;
mod runtime;

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::{Lab, Pod, PodSpec, SECONDS_10, SECONDS_30, binary, eventually};
use serde_json::{Value, json};

use runtime::{
    PORT, Runtime, STRICT, container, is_enrolled, known, namespace, object, result, running, start,
    state_of, uid,
};

#[test]
fn a_pod_is_enrolled_before_its_first_packet() -> Result<()> {
    let lab = Lab::unique()?;
    let (a, b) = (lab.node("node-a")?, lab.node("node-b")?);
    let far = b.pod(PodSpec::new("far"))?;
    let outside = b.pod(PodSpec::new("outside").label("istio.io/dataplane-mode", "none"))?;
    let manifests = lab.manifests();
    manifests.apply("namespace.yaml", &namespace("default", true))?;
    manifests.apply("strict.yaml", STRICT)?;
    manifests.apply("pods.yaml", &[&far, &outside].map(Pod::manifest).join("---\n"))?;
    let (agent_a, agent_b) = (start(&a)?, start(&b)?);
    agent_b.wait_enrolled(&[&far])?;
    far.serve(&["--listen", &format!("[::]:{PORT}")])?;
    let runtime = Runtime::new(&a, 30);
    let wire = lab.wire()?;
    for name in ["first", "second", "third"] {
        let pod = a.pod(PodSpec::new(name))?;
        // The kubelet starts the sandbox once it has seen the pod; the agent's watch may be later than that.
        let add = thread::spawn({
            let (runtime, pod) = (runtime.clone(), pod.clone());
            move || runtime.added(&pod)
        });
        eventually(SECONDS_10, "the agent was told", || {
            a.state_dir()
                .join("cni")
                .read_dir()
                .ok()?
                .any(|entry| {
                    entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with(&container(&pod)))
                })
                .then_some(())
        })?;
        assert!(!add.is_finished(), "ADD must wait for the pod's labels");
        manifests.apply(&format!("{name}.yaml"), &object(&pod))?;
        add.join().expect("it does not panic")?;
        // The first instructions of the pod: to a strict destination, by the mesh and by nothing else.
        let summary =
            pod.connect(&[&format!("{}:{PORT}", far.v4), "--count", "3", "--marker", "not-in-plaintext"])?;
        assert_eq!((summary.ok, summary.failed), (3, 0), "{summary:?}");
        let over6 = pod.connect(&[&format!("[{}]:{PORT}", far.v6), "--marker", "not-in-plaintext"])?;
        assert_eq!(over6.ok, 1, "{over6:?}");
        // And nobody comes to it in plaintext.
        pod.serve(&["--listen", &format!("[::]:{PORT}")])?;
        let plain = outside.connect(&[&format!("{}:{PORT}", pod.v4), "--count", "3"])?;
        assert_eq!((plain.ok, plain.failed), (0, 3), "{plain:?}");
        let identity = format!("spiffe://cluster.local/ns/default/sa/{name}");
        agent_b.wait_flows(4, "the pod's identity is known at the other end", |flow| {
            flow["source"]["identity"] == *identity && flow["security"] == "mutual_tls"
        })?;
        // Its status comes, with the addresses the other way round: nothing changes.
        let since = state_of(&agent_a, &pod).context("the pod's state")?["since"].clone();
        let generation = agent_a.metric("mesh_config_generation", &[])?;
        manifests.apply(&format!("{name}.yaml"), &running(&pod))?;
        eventually(SECONDS_10, "the status is in force", || {
            (agent_a.status().ok()?["generation"].as_f64()? > generation).then_some(())
        })?;
        let after = state_of(&agent_a, &pod).context("the pod's state")?;
        assert_eq!((&after["state"], &after["since"]), (&json!("enrolled"), &since), "{after}");
    }
    assert_eq!(wire.count("not-in-plaintext"), 0);
    assert!(!wire.is_empty());
    Ok(())
}

#[test]
fn whoever_is_not_in_the_mesh_passes() -> Result<()> {
    let lab = Lab::unique()?;
    let a = lab.node("node-a")?;
    let manifests = lab.manifests();
    manifests.apply("namespaces.yaml", &[namespace("default", true), namespace("other", false)].concat())?;
    let out = a.pod(PodSpec::new("out").label("istio.io/dataplane-mode", "none"))?;
    let other = a.pod(PodSpec::new("other").namespace("other"))?;
    let opted =
        a.pod(PodSpec::new("opted").namespace("other").label("istio.io/dataplane-mode", "ambient"))?;
    manifests.apply("pods.yaml", &[&out, &other, &opted].map(object).concat())?;
    let agent = start(&a)?;
    let runtime = Runtime::new(&a, 30);
    for pod in [&out, &other, &opted] {
        runtime.added(pod)?;
    }
    agent.wait_enrolled(&[&opted])?;
    for pod in [&out, &other] {
        assert!(runtime.call("CHECK", Some(pod), &[("prevResult", result(pod))])?.ok, "{}", pod.uid());
    }
    // The node's own namespace is no pod's.
    let env = json!({"CNI_NETNS": "/proc/self/ns/net"});
    let refused = Command::new("ip")
        .args([
            "netns",
            "exec",
            a.netns().name(),
            "env",
            "CNI_COMMAND=ADD",
            "CNI_CONTAINERID=x",
            "CNI_IFNAME=eth0",
        ])
        .arg(format!("CNI_NETNS={}", env["CNI_NETNS"].as_str().unwrap_or_default()))
        .args([binary("meshd")?.as_os_str(), "cni".as_ref()])
        .stdin(Stdio::null())
        .output()?;
    assert!(!refused.status.success());
    Ok(())
}

#[test]
fn without_an_agent_add_waits_and_then_goes_by_what_is_remembered() -> Result<()> {
    let lab = Lab::unique()?;
    let a = lab.node("node-a")?;
    let manifests = lab.manifests();
    manifests.apply("namespaces.yaml", &[namespace("shop", true), namespace("other", false)].concat())?;
    let web = a.pod(PodSpec::new("web").namespace("shop"))?;
    let out = a.pod(PodSpec::new("out").namespace("shop").label("istio.io/dataplane-mode", "none"))?;
    let other = a.pod(PodSpec::new("other").namespace("other"))?;
    manifests.apply("pods.yaml", &[&web, &out, &other].map(object).concat())?;
    let short = Runtime::new(&a, 1);
    // No agent has ever been here.
    assert!(short.added(&web)?.took >= Duration::from_millis(700));
    let agent = start(&a)?;
    eventually(SECONDS_10, "it is remembered who is in the mesh", || {
        std::fs::read_to_string(known(&a)).ok()?.contains("uid-of-out").then_some(())
    })?;
    agent.terminate(SECONDS_30)?;
    let failed = short.add(&web)?;
    assert_eq!(failed.code(), Some(11), "{failed:?}");
    assert!(failed.took >= Duration::from_millis(700), "{failed:?}");
    short.added(&out)?;
    short.added(&other)?;
    let status = short.call("STATUS", None, &[])?;
    assert!(status.ok, "a node is not given up while its agent is away: {status:?}");
    for _ in 0..2 {
        assert!(short.call("DEL", Some(&web), &[])?.ok);
    }
    // It comes back while the runtime waits.
    let add = thread::spawn({
        let (runtime, web) = (Runtime::new(&a, 60), web.clone());
        move || runtime.added(&web)
    });
    eventually(SECONDS_10, "the plugin has begun", || {
        std::fs::read_to_string(a.state_dir().join("mesh-cni.log")).ok()?.contains("DEL").then_some(())
    })?;
    let agent = agent.restart()?;
    add.join().expect("it does not panic")?;
    assert!(is_enrolled(&agent, &web), "{:#}", agent.status()?);
    assert!(short.call("STATUS", None, &[])?.ok);
    Ok(())
}

#[test]
fn what_was_added_is_checked_collected_and_taken_down() -> Result<()> {
    let lab = Lab::unique()?;
    let a = lab.node("node-a")?;
    let manifests = lab.manifests();
    manifests.apply("namespace.yaml", &namespace("default", true))?;
    let (one, two) = (a.pod(PodSpec::new("one"))?, a.pod(PodSpec::new("two"))?);
    manifests.apply("pods.yaml", &[&one, &two].map(running).concat())?;
    let agent = start(&a)?;
    let runtime = Runtime::new(&a, 30);
    let check = |pod: &Pod| runtime.call("CHECK", Some(pod), &[("prevResult", result(pod))]);
    let unknown = check(&one)?;
    assert_eq!(unknown.code(), Some(101), "{unknown:?}");
    for pod in [&one, &two, &one] {
        runtime.added(pod)?;
    }
    for pod in [&one, &two] {
        let checked = check(pod)?;
        assert!(checked.ok && checked.stdout.is_empty(), "{checked:?}");
    }
    let valid = json!([{"containerID": container(&one), "ifname": "eth0"}]);
    let collected = runtime.call("GC", None, &[("cni.dev/valid-attachments", valid)])?;
    assert!(collected.ok, "{collected:?}");
    agent.wait_enrolled(&[&one])?;
    assert_eq!(check(&two)?.code(), Some(101));
    for _ in 0..2 {
        let gone = runtime.call("DEL", Some(&one), &[])?;
        assert!(gone.ok && gone.stdout.is_empty(), "{gone:?}");
    }
    agent.wait_enrolled(&[])?;
    assert_eq!(check(&one)?.code(), Some(101));
    // The sandbox is made anew: the same pod, with another address.
    let again = a.pod(PodSpec { netns: "again".to_owned(), ..PodSpec::new("one") })?;
    assert_ne!(again.v4, one.v4);
    runtime.added(&again)?;
    let state = state_of(&agent, &again).context("the pod's state")?;
    assert_eq!(state["addresses"], json!([again.v4, again.v6]), "{state}");
    Ok(())
}

#[test]
fn an_agent_that_starts_before_the_pods_status_is_there_keeps_the_pod() -> Result<()> {
    let lab = Lab::unique()?;
    let a = lab.node("node-a")?;
    let manifests = lab.manifests();
    manifests.apply("namespace.yaml", &namespace("default", true))?;
    let pod = a.pod(PodSpec::new("web"))?;
    manifests.apply("pod.yaml", &object(&pod))?;
    let agent = start(&a)?;
    Runtime::new(&a, 30).added(&pod)?;
    agent.kill()?;
    let agent = agent.restart()?;
    agent.wait_enrolled(&[&pod])?;
    assert!(!agent.log().contains("no longer wanted"), "{}", agent.log());
    // One whose namespace went while no agent was there is not waited for.
    agent.kill()?;
    pod.netns().ip("link set eth0 down\n")?;
    let name = pod.netns().name().to_owned();
    ensure!(Command::new("ip").args(["netns", "del", &name]).status()?.success(), "ip netns del");
    let agent = agent.restart()?;
    agent.wait_enrolled(&[])?;
    Ok(())
}

#[test]
fn a_pod_that_is_deleted_meanwhile_is_not_waited_for_without_end() -> Result<()> {
    let lab = Lab::unique()?;
    let a = lab.node("node-a")?;
    let manifests = lab.manifests();
    manifests.apply("namespace.yaml", &namespace("default", true))?;
    let agent = start(&a)?;
    // Its predecessor of the same name is all that the agent knows.
    let pod = a.pod(PodSpec::new("web"))?;
    manifests.apply("pod.yaml", &object(&pod).replace(&uid(&pod), "uid-of-another"))?;
    let failed = Runtime::new(&a, 2).add(&pod)?;
    assert_eq!(failed.code(), Some(11), "{failed:?}");
    assert!(Runtime::new(&a, 2).call("DEL", Some(&pod), &[])?.ok);
    // Taken down while ADD waits: the runtime has given up.
    let add = thread::spawn({
        let (runtime, pod) = (Runtime::new(&a, 60), pod.clone());
        move || runtime.add(&pod)
    });
    let attached = a.state_dir().join("cni").join(format!("{}.eth0.json", container(&pod)));
    eventually(SECONDS_10, "the agent was told", || attached.exists().then_some(()))?;
    manifests.delete("pod.yaml")?;
    assert!(Runtime::new(&a, 2).call("DEL", Some(&pod), &[])?.ok);
    let refused = add.join().expect("it does not panic")?;
    assert_eq!(refused.code(), Some(100), "{refused:?}");
    agent.wait_enrolled(&[])?;
    Ok(())
}

#[test]
fn fifty_pods_at_once() -> Result<()> {
    let lab = Lab::unique()?;
    let a = lab.node("node-a")?;
    let manifests = lab.manifests();
    manifests.apply("namespace.yaml", &namespace("default", true))?;
    let agent = start(&a)?;
    let pods =
        (0..50).map(|number| a.pod(PodSpec::new(&format!("pod-{number}")))).collect::<Result<Vec<Pod>>>()?;
    let adds: Vec<_> = pods
        .iter()
        .map(|pod| {
            let (runtime, pod) = (Runtime::new(&a, 90), pod.clone());
            thread::spawn(move || runtime.added(&pod))
        })
        .collect();
    manifests.apply("pods.yaml", &pods.iter().map(object).collect::<String>())?;
    for add in adds {
        add.join().expect("it does not panic")?;
    }
    assert!(pods.iter().all(|pod| is_enrolled(&agent, pod)), "{:#}", agent.status()?);
    Ok(())
}

#[test]
fn the_installed_plugin_is_what_the_runtime_calls() -> Result<()> {
    let lab = Lab::unique()?;
    let a = lab.node("node-a")?;
    let manifests = lab.manifests();
    manifests.apply("namespace.yaml", &namespace("default", true))?;
    let pod = a.pod(PodSpec::new("web"))?;
    manifests.apply("pod.yaml", &object(&pod))?;
    let (conf, bin) = (lab.folder().join("net.d"), lab.folder().join("bin"));
    std::fs::create_dir(&conf)?;
    std::fs::create_dir(&bin)?;
    let primary = conf.join("10-lab.conflist");
    let list = r#"{"cniVersion":"1.1.0","name":"lab","plugins":[{"type":"bridge"}]}"#;
    let text = |path: &Path| path.display().to_string();
    let flags =
        ["--cni-conf-dir", &text(&conf), "--cni-bin-dir", &text(&bin), "--cni-state", &text(&known(&a))]
            .map(str::to_owned);
    let agent = flags.chunks(2).fold(a.agent(), |agent, pair| agent.flag(&pair[0], &pair[1])).start()?;
    eventually(SECONDS_10, "it waits for the network", || {
        agent.problems().ok()?.iter().any(|problem| problem.contains("waiting for one")).then_some(())
    })?;
    std::fs::write(&primary, list)?;
    let own = conf.join("00-mesh.conflist");
    let installed: Value = eventually(SECONDS_30, "the configuration is there", || {
        serde_json::from_slice(&std::fs::read(&own).ok()?).ok()
    })?;
    eventually(SECONDS_10, "and all is well", || agent.problems().ok()?.is_empty().then_some(()))?;
    // What libcni makes of the plugin's part.
    let mut config = installed["plugins"][1].clone();
    config["cniVersion"] = installed["cniVersion"].clone();
    config["name"] = installed["name"].clone();
    let runtime = Runtime { node: a.clone(), config };
    let plugin = text(&bin.join("mesh-cni"));
    let called = runtime.call_as(&[&plugin], "ADD", Some(&pod), &[("prevResult", result(&pod))])?;
    assert!(called.ok && is_enrolled(&agent, &pod), "{called:?}");
    assert!(runtime.call_as(&[&plugin], "VERSION", None, &[])?.stdout.contains("\"1.1.0\""));
    // Stopped, the agent leaves it: until it is back, pods of the mesh do not start.
    agent.terminate(SECONDS_30)?;
    assert!(own.exists() && bin.join("mesh-cni").exists());
    let uninstall = |more: &[String]| {
        let places = [
            "uninstall".to_owned(),
            "--bpffs".to_owned(),
            text(&a.bpffs()),
            "--state-dir".to_owned(),
            text(&a.state_dir()),
        ];
        let meshd = text(&binary("meshd")?);
        let argv: Vec<&str> =
            [meshd.as_str()].into_iter().chain(places.iter().chain(more).map(String::as_str)).collect();
        a.spawn(&argv)?.wait(SECONDS_30)
    };
    let done = uninstall(&flags)?;
    assert!(done.status.success(), "{}", done.stderr);
    let left = |folder: &Path| -> Result<Vec<String>> {
        Ok(folder
            .read_dir()?
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect())
    };
    assert_eq!((left(&conf)?, left(&bin)?), (vec!["10-lab.conflist".to_owned()], Vec::new()));
    assert_eq!(std::fs::read_to_string(&primary)?, list);
    assert!(!known(&a).exists() && !a.state_dir().exists(), "{:?}", left(&a.state_dir()));
    Ok(())
}
