//! The same with an API server as the source: what the plugin waits for comes by a watch, and what it goes by without an agent
//! was learnt there.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_tests::{
    Agent, ApiServer, Driver, Lab, LaidOut, Node, Pod, PodSpec, SECONDS_10, SECONDS_30, eventually,
};
use serde_json::json;

use crate::runtime::{
    PORT, Runtime, STRICT, container, is_enrolled, known, namespace, object, result, running, state_of,
};

fn api(lab: &Lab) -> Result<ApiServer> {
    let api = lab.api_server()?;
    api.install_crds(&["security.istio.io"])?;
    api.apply(&(namespace("istio-system", false) + "---\n" + STRICT))?;
    Ok(api)
}

fn start(node: &Node, api: &ApiServer) -> Result<Agent> {
    node.agent().kubernetes(api)?.flag("--cni-state", &known(node).to_string_lossy()).start()
}

fn told(node: &Node, pod: &Pod) -> Result<()> {
    let file = node.state_dir().join("cni").join(format!("{}.eth0.json", container(pod)));
    eventually(SECONDS_10, "the agent was told", || file.exists().then_some(()))
}

#[test]
fn a_pod_of_the_api_server_is_enrolled_before_its_first_packet() -> Result<()> {
    let lab = Lab::unique()?;
    let (a, b) = (lab.node("node-a")?, lab.node("node-b")?);
    let api = api(&lab)?;
    let far = b.pod(PodSpec::new("far"))?;
    let outside = b.pod(PodSpec::new("outside").namespace("other"))?;
    api.apply(&(namespace("default", true) + &namespace("other", false)))?;
    api.apply(&(object(&far) + &object(&outside)))?;
    let (agent_a, agent_b) = (start(&a, &api)?, start(&b, &api)?);
    let (runtime_a, runtime_b) = (Runtime::new(&a, 30), Runtime::new(&b, 30));
    // One that the agent knows already, and one that is not to be in the mesh.
    runtime_b.added(&far)?;
    runtime_b.added(&outside)?;
    assert!(is_enrolled(&agent_b, &far) && state_of(&agent_b, &outside).is_none());
    api.apply(&running(&far))?;
    far.serve(&["--listen", &format!("[::]:{PORT}")])?;
    agent_a.wait_for("workloads", "the far pod's address is known", |workloads| {
        workloads.to_string().contains(&far.v4.to_string())
    })?;
    let wire = lab.wire()?;
    let pod = a.pod(PodSpec::new("first"))?;
    let add = thread::spawn({
        let (runtime, pod) = (runtime_a.clone(), pod.clone());
        move || runtime.added(&pod)
    });
    told(&a, &pod)?;
    assert!(!add.is_finished(), "ADD must wait for the pod's labels");
    api.apply(&object(&pod))?;
    add.join().expect("it does not panic")?;
    // The first instructions of the pod: to a strict destination, by the mesh and by nothing else.
    let marked = ["--count", "3", "--marker", "not-in-plaintext"];
    let summary = pod.connect(&[&[&*format!("{}:{PORT}", far.v4)], &marked[..]].concat())?;
    assert_eq!((summary.ok, summary.failed), (3, 0), "{summary:?}");
    pod.serve(&["--listen", &format!("[::]:{PORT}")])?;
    let plain = outside.connect(&[&format!("{}:{PORT}", pod.v4), "--count", "3"])?;
    assert_eq!((plain.ok, plain.failed), (0, 3), "{plain:?}");
    agent_b.wait_flows(3, "the pod's identity is known at the other end", |flow| {
        flow["source"]["identity"] == "spiffe://cluster.local/ns/default/sa/first"
            && flow["security"] == "mutual_tls"
    })?;
    assert_eq!(wire.count("not-in-plaintext"), 0);
    assert!(!wire.is_empty());
    Ok(())
}

#[test]
fn without_an_agent_add_goes_by_what_the_api_server_said_last() -> Result<()> {
    let lab = Lab::unique()?;
    let a = lab.node("node-a")?;
    let api = api(&lab)?;
    api.apply(&(namespace("shop", true) + &namespace("other", false)))?;
    let web = a.pod(PodSpec::new("web").namespace("shop"))?;
    let out = a.pod(PodSpec::new("out").namespace("shop").label("istio.io/dataplane-mode", "none"))?;
    let other = a.pod(PodSpec::new("other").namespace("other"))?;
    let opted =
        a.pod(PodSpec::new("opted").namespace("other").label("istio.io/dataplane-mode", "ambient"))?;
    api.apply(&[&web, &out, &other, &opted].map(object).concat())?;
    let agent = start(&a, &api)?;
    eventually(SECONDS_10, "it is remembered who is in the mesh", || {
        let text = std::fs::read_to_string(known(&a)).ok()?;
        (text.contains("uid-of-out") && text.contains("other/opted")).then_some(())
    })?;
    agent.terminate(SECONDS_30)?;
    let short = Runtime::new(&a, 1);
    for pod in [&web, &opted] {
        let failed = short.add(pod)?;
        assert_eq!(failed.code(), Some(11), "{}: {failed:?}", pod.uid());
        assert!(failed.took >= Duration::from_millis(700), "it has waited: {failed:?}");
    }
    short.added(&out)?;
    short.added(&other)?;
    // Made anew under the same name it is another pod: nobody has said that this one opts out.
    let mut again = out.clone();
    again.spec.kubelet = Some(LaidOut::new(7, Driver::Systemd));
    let failed = short.add(&again)?;
    assert_eq!(failed.code(), Some(11), "{failed:?}");
    // The agent comes back while the runtime waits, with the API server away: it goes by the state that it has kept.
    api.stop();
    let add = thread::spawn({
        let (runtime, web) = (Runtime::new(&a, 60), web.clone());
        move || runtime.added(&web)
    });
    let agent = a
        .agent()
        .kubernetes(&api)?
        .flag("--cni-state", &known(&a).to_string_lossy())
        .flag("--source-wait", "1s")
        .start()?;
    add.join().expect("it does not panic")?;
    assert!(is_enrolled(&agent, &web), "{:#}", agent.status()?);
    Ok(())
}

#[test]
fn check_finds_what_is_broken_until_it_is_mended() -> Result<()> {
    let lab = Lab::unique()?;
    let a = lab.node("node-a")?;
    let api = api(&lab)?;
    api.apply(&namespace("default", true))?;
    let pod = a.pod(PodSpec::new("web"))?;
    api.apply(&object(&pod))?;
    let agent = start(&a, &api)?;
    let runtime = Runtime::new(&a, 30);
    runtime.added(&pod)?;
    let check = || runtime.call("CHECK", Some(&pod), &[("prevResult", result(&pod))]);
    let well = || -> Result<()> {
        let checked = check()?;
        assert!(checked.ok && checked.stdout.is_empty(), "{checked:?}");
        Ok(())
    };
    let broken = |what: &str| -> Result<()> {
        let checked = check()?;
        assert_eq!(checked.code(), Some(101), "{what}: {checked:?}");
        let error: serde_json::Value = serde_json::from_str(&checked.stdout)?;
        assert_eq!(error["cniVersion"], "1.1.0");
        assert!(error["msg"].as_str().is_some_and(|text| !text.is_empty()), "{error}");
        assert!(error["details"].as_str().is_some_and(|text| !text.is_empty()), "{error}");
        Ok(())
    };
    let mended = |what: &str| {
        eventually(SECONDS_10, &format!("{what} is mended"), || check().ok()?.ok.then_some(()))
            .with_context(|| agent.log())
    };
    well()?;
    // Without `lo` there are no routes to the agent, and none can be laid.
    pod.netns().ip("link set lo down\n")?;
    broken("routes")?;
    broken("routes, still")?;
    pod.netns().ip("link set lo up\n")?;
    mended("routes")?;
    // An address that is the pod's and is not there.
    pod.netns().ip(&format!("addr del {}/24 dev eth0\n", pod.v4))?;
    broken("address")?;
    pod.netns().ip(&format!("addr add {}/24 dev eth0\nroute replace default via 10.244.1.1\n", pod.v4))?;
    mended("address")?;
    // What the agent can mend it mends, by itself or because it was asked: CHECK never passes what is not there.
    let link = || -> Result<std::path::PathBuf> {
        let mut all = std::fs::read_dir(a.bpffs().join("pods"))?.flatten();
        Ok(all.next().context("a link")?.path())
    };
    let gone = link()?;
    for (what, kind) in [("link", "link"), ("rule", "rules")] {
        let before = agent.metric("mesh_pod_mends_total", &[&format!("what=\"{kind}\"")])?;
        if what == "link" {
            std::fs::remove_file(&gone)?;
        } else {
            pod.netns().ip("rule del pref 20\n")?;
        }
        mended(what)?;
        let after = agent.metric("mesh_pod_mends_total", &[&format!("what=\"{kind}\"")])?;
        assert!(after > before, "{what}: CHECK passed and nothing was mended");
    }
    assert_eq!(link()?, gone);
    well()?;
    assert_eq!(state_of(&agent, &pod).context("its state")?["state"], json!("enrolled"));
    Ok(())
}
