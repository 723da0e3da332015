//! The kernel plane as an operator sees it: `meshctl services`, `maps` and `explain`, kube-proxy's ports and metrics, and
//! who may run beside whom.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use mesh_tests::{Agent, Lab, Node, SECONDS_10, binary, eventually};
use serde_json::Value;

use crate::world::{PORT, UDP_PORT, World, service, service_ips, split, subsets, v4, v6};

/// What `meshctl ARGS` came to: exit code, standard output, standard error.
pub(crate) fn meshctl(agent: &Agent, args: &[&str]) -> Result<(i32, String, String)> {
    let mut command = Command::new(binary("meshctl")?);
    let output = command.arg("--socket").arg(agent.socket()).args(args).output()?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok((output.status.code().context("a signal")?, text(output.stdout), text(output.stderr)))
}

/// The document that `meshctl ARGS -o json` prints.
pub(crate) fn document(agent: &Agent, args: &[&str]) -> Result<(i32, Value)> {
    let (code, stdout, stderr) = meshctl(agent, &[args, &["-o", "json"]].concat())?;
    let value = serde_json::from_str(&stdout).with_context(|| format!("{args:?}: {stdout}{stderr}"))?;
    Ok((code, value))
}

/// An answer over HTTP from inside the node's namespace: status and body.
fn get(node: &Node, port: u16, path: &str) -> Result<(u16, String)> {
    let path = path.to_owned();
    node.netns().run(move || {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut stream = TcpStream::connect_timeout(&address, SECONDS_10)?;
        stream.set_read_timeout(Some(SECONDS_10))?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nhost: x\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("a head")?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.context("a status")?, body.to_owned()))
    })?
}

#[test]
fn maps_are_shown_as_the_kernel_has_them() -> Result<()> {
    let world = World::start(true)?;
    world.serve("http")?;
    assert_eq!(world.outside.connect(&[&v4("far"), "--count", "3"])?.ok, 3);
    let agent = &world.agent_a;
    let (code, maps) = document(agent, &["maps"])?;
    assert_eq!(code, 0);
    let all: Vec<&str> =
        maps.as_array().into_iter().flatten().filter_map(|map| map["name"].as_str()).collect();
    assert_eq!(all, mesh_common::names::map::ALL);
    for name in all {
        let (code, map) = document(agent, &["maps", &name.to_lowercase(), "--limit", "100000"])?;
        let map = &map[0];
        assert_eq!(code, 0, "{name}");
        assert!(map["max_entries"].as_u64() > Some(0), "{map:#}");
        // What the kernel counts is what it lists (connections of the world's own come and go).
        let rows = map["rows"].as_array().map(Vec::len);
        if !["EVENTS", "OPEN_FLOWS", "ADMITTED", "UDP_PEERS", "UDP_SOCKETS"].contains(&name) {
            assert_eq!(map["entries"].as_u64(), rows.map(|rows| rows as u64), "{name}: {map:#}");
        }
    }
    let (_, services) = document(agent, &["maps", "SERVICES", "-n", "1000"])?;
    let rows = services[0]["rows"].as_array().context("rows")?;
    // Six services of two ports at two addresses.
    assert_eq!(rows.len(), 24, "{services:#}");
    let far = rows.iter().find(|row| {
        row["key"]["address"] == service_ips("far").0.to_string() && row["key"]["protocol"] == "TCP"
    });
    let far = far.context("the service far")?;
    assert_eq!((&far["key"]["port"], &far["value"]["slots"]), (&PORT.into(), &1.into()), "{far:#}");
    assert_eq!(far["value"]["flags"], serde_json::json!(["capture"]), "{far:#}");
    let (_, few) = document(agent, &["maps", "SERVICES", "-n", "2"])?;
    assert_eq!((few[0]["rows"].as_array().map(Vec::len), &few[0]["entries"]), (Some(2), &24.into()));
    let (_, table, _) = meshctl(agent, &["maps", "SERVICES", "-n", "2"])?;
    assert!(table.contains("(22 more: raise --limit)") && table.contains("flags="), "{table}");
    let (code, _, error) = meshctl(agent, &["maps", "NOTHING"])?;
    assert_eq!((code, error.as_str()), (1, "meshctl: there is no map NOTHING: `meshctl maps` lists them\n"));
    // And in the metrics, once they have been counted.
    let counted = || agent.metric("mesh_map_entries", &["map=\"SERVICES\""]).ok().filter(|held| *held > 23.5);
    eventually(mesh_tests::SECONDS_30, "the entries are in the metrics", counted)?;
    assert!(agent.metric("mesh_map_max_entries", &["map=\"SERVICES\""])? > 1000.0);
    Ok(())
}

#[test]
fn a_service_shows_its_backends_and_what_they_got() -> Result<()> {
    let world = World::start(false)?;
    world.serve("http")?;
    let manifests = world.lab.manifests();
    manifests.apply("subsets.yaml", &subsets())?;
    manifests.apply("split.yaml", &split(75, 25))?;
    let has_rule = |services: &Value| {
        services.as_array().into_iter().flatten().any(|service| service["ports"][0]["rule"].is_string())
    };
    world.agent_a.wait_for("services", "the split is known", has_rule)?;
    let got = || -> Result<BTreeMap<String, (u64, u64)>> {
        let (_, services) = document(&world.agent_a, &["services", "default/both"])?;
        let port = &services[0]["ports"][0];
        let backends = port["backends"].as_array().context("backends")?;
        let entry = |backend: &Value| {
            let number = |field: &str| backend[field].as_u64().unwrap_or(u64::MAX);
            let workload = backend["workload"].as_str().unwrap_or("").to_owned();
            ensure!(backend["state"] == "ready" && backend["node"] == "node-b", "{backend:#}");
            let is_v4 = backend["address"].as_str().is_some_and(|address| address.starts_with("10."));
            Ok((
                format!("{workload} {}", if is_v4 { 4 } else { 6 }),
                (number("weight"), number("connections")),
            ))
        };
        backends.iter().map(entry).collect()
    };
    for (target, count) in [(v4("both"), "40"), (v6("both"), "20")] {
        let summary = world.client.connect(&[&target, "--count", count])?;
        assert_eq!(summary.failed, 0, "{summary:?}");
    }
    let backends = got()?;
    let sum = |family: &str| {
        let of_family = backends.iter().filter(|(name, _)| name.ends_with(family));
        of_family.fold((0, 0), |(weight, count), (_, own)| (weight + own.0, count + own.1))
    };
    assert_eq!((sum("4"), sum("6")), ((100, 40), (100, 20)), "{backends:?}");
    assert_eq!(backends["default/twin 4"].0, 75, "{backends:?}");
    let (code, table, _) = meshctl(&world.agent_a, &["services", "both"])?;
    assert_eq!(code, 0);
    for part in ["Policies", "CONNECTIONS", "75.00%", "ready", "routed by default/both"] {
        assert!(table.contains(part), "{part} not in {table}");
    }
    Ok(())
}

#[test]
fn an_explanation_says_where_a_connection_goes_and_why() -> Result<()> {
    let world = World::start(true)?;
    let agent = &world.agent_a;
    let (far, nobody) = (service_ips("far"), service_ips("nobody").0);
    let (far4, far6) = (v4("far"), v6("far"));
    let (udp, closed) = (format!("{}:{UDP_PORT}", far.0), format!("{}:1", far.0));
    let nobody = format!("{nobody}:{PORT}");
    let pod = format!("{}:{PORT}", world.far.v4);
    let outside = world.outside.v4.to_string();
    let cases: [(&[&str], &str, i32, &str); 11] = [
        (&["default/outside", &far4], "translated", 0, "internalTrafficPolicy Cluster"),
        (&[&outside, &far6], "translated", 0, "cluster address of default/far"),
        (&["default/outside", &udp, "--udp"], "translated", 0, "socket's cookie"),
        (&["node", "default/far:8080"], "translated", 0, "network namespace"),
        (&["default/client", &far4], "captured", 0, "enrolled"),
        (&["default/client", &udp, "--udp"], "translated", 0, "default/far"),
        (&["default/client", &pod], "captured", 0, "both ends are enrolled"),
        (&["default/outside", &pod], "passed", 0, "no service has this address"),
        (&["default/outside", &nobody], "refused", 0, "nothing serves"),
        (&["default/outside", &closed], "refused", 0, "no service has this port"),
        (&["outside", &pod], "passed", 0, "no service has this address"),
    ];
    for (args, verdict, code, part) in cases {
        let args = [&["explain"], args].concat();
        let (held, report) = document(agent, &args)?;
        assert_eq!((report["verdict"].as_str(), held), (Some(verdict), code), "{args:?}: {report:#}");
        assert_eq!(report["differences"], serde_json::json!([]), "{args:?}: {report:#}");
        let (_, table, _) = meshctl(agent, &args)?;
        assert!(table.contains(part) && table.contains(verdict), "{args:?}: {part} not in {table}");
        if verdict == "translated" {
            assert_eq!(report["backends"].as_array().map(Vec::len), Some(1), "{args:?}: {report:#}");
            assert_eq!(report["backends"][0]["workload"], "default/far", "{args:?}: {report:#}");
            assert_eq!(report["backends"][0]["share_ppm"], 1_000_000, "{args:?}: {report:#}");
        }
    }
    for (args, code, message) in [
        (["default/none", &far4], 1, "no pod default/none is known"),
        (
            ["default/far", &far4],
            1,
            "pod default/far is on node-b: that node's agent knows where its connections go",
        ),
        (
            ["nobody", &far4],
            2,
            "`nobody` is nobody who connects: write NAMESPACE/POD, an address, `node` or `outside`",
        ),
        (
            ["node", "10.96.0.1"],
            2,
            "`10.96.0.1` is no destination: write ADDRESS:PORT, NAME.NAMESPACE:PORT or NAMESPACE/NAME:PORT",
        ),
        (["node", "default/none:80"], 1, "no service and no pod default/none is known"),
    ] {
        let (held, _, error) = meshctl(agent, &["explain", args[0], args[1]])?;
        assert_eq!((held, error), (code, format!("meshctl: {message}\n")), "{args:?}");
    }
    Ok(())
}

/// A lab with one node, without pods, and a service without a selector.
fn bare() -> Result<(Lab, Node)> {
    let lab = Lab::unique()?;
    let node = lab.node("node-a")?;
    lab.manifests().apply("services.yaml", &service("far", "app: far"))?;
    Ok((lab, node))
}

/// A process that is called like kube-proxy: `sleep` under its name.
fn impostor(lab: &Lab) -> Result<PathBuf> {
    let path = lab.folder().join("kube-proxy");
    std::fs::copy("/bin/sleep", &path).context("copy sleep")?;
    Ok(path)
}

fn translates(agent: &Agent) -> Result<bool> {
    let (_, state) = document(agent, &["maps", "STATE"])?;
    Ok(state[0]["rows"][0]["value"]["flags"] == serde_json::json!(["translate"]))
}

#[test]
fn services_are_left_to_a_kube_proxy_that_runs_here() -> Result<()> {
    let (lab, node) = bare()?;
    let path = impostor(&lab)?;
    let path = path.to_string_lossy();
    let proxy = node.spawn(&[&path, "300"])?;
    let named = || {
        let comm = std::fs::read_to_string(format!("/proc/{}/comm", proxy.pid())).ok()?;
        (comm.trim_end() == "kube-proxy").then_some(())
    };
    eventually(SECONDS_10, "the process has its name", named)?;
    let agent = node.agent().start()?;
    assert!(!translates(&agent)?);
    let evidence = format!("process {} is kube-proxy", proxy.pid());
    let log = agent.log();
    assert!(log.contains(&evidence) && log.contains("services are left to kube-proxy"), "{log}");
    assert!(get(&node, 10256, "/healthz").is_err() && get(&node, 10249, "/metrics").is_err());
    assert!(!agent.metrics()?.contains("kubeproxy_"));
    agent.terminate(mesh_tests::SECONDS_30)?;
    // Told to, the agent does it all the same, and warns.
    let agent = node.agent().arg("--kube-proxy-replacement=true").start()?;
    assert!(translates(&agent)?);
    assert!(agent.log().contains("kube-proxy is there as well"), "{}", agent.log());
    agent.terminate(mesh_tests::SECONDS_30)?;
    proxy.kill()?;
    // One in another network is another node's.
    let pod = node.pod(mesh_tests::PodSpec::new("elsewhere"))?;
    let _other = pod.spawn(&[&path, "300"])?;
    let agent = node.agent().start()?;
    assert!(translates(&agent)?);
    assert!(agent.log().contains("no kube-proxy found"), "{}", agent.log());
    agent.terminate(mesh_tests::SECONDS_30)?;
    let agent = node.agent().arg("--kube-proxy-replacement=false").start()?;
    assert!(!translates(&agent)?);
    Ok(())
}

#[test]
fn kube_proxys_ports_answer_as_it_does() -> Result<()> {
    let (lab, node) = bare()?;
    let agent = node.agent().start()?;
    let (status, body) = get(&node, 10256, "/healthz")?;
    let health: Value = serde_json::from_str(&body)?;
    assert_eq!(
        (status, &health["nodeEligible"], &health["healthy"]),
        (200, &true.into(), &true.into()),
        "{health:#}"
    );
    let is_time =
        |value: &Value| value.as_str().is_some_and(|time| time.starts_with("20") && time.ends_with('Z'));
    assert!(is_time(&health["lastUpdated"]) && is_time(&health["currentTime"]), "{health:#}");
    let (status, body) = get(&node, 10256, "/livez")?;
    assert!(status == 200 && !body.contains("nodeEligible"), "{body}");
    assert_eq!(get(&node, 10249, "/proxyMode")?, (200, "ebpf".to_owned()));
    assert_eq!(get(&node, 10249, "/healthz")?.0, 200);
    // The values are those of what happens: one service comes, with endpoints that say when they changed.
    let changes = agent.metric("kubeproxy_sync_proxy_rules_service_changes_total", &[])?;
    let now =
        String::from_utf8(Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%S.%NZ"]).output()?.stdout)?;
    let slice = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: far-1\n  namespace: default\n  \
         labels: {{kubernetes.io/service-name: bare}}\n  annotations:\n    \
         endpoints.kubernetes.io/last-change-trigger-time: \"{}\"\naddressType: IPv4\nendpoints:\n\
         - addresses: [10.244.9.9]\n  conditions: {{ready: true}}\nports:\n- {{name: http, port: 80, protocol: TCP}}\n",
        now.trim()
    );
    let bare = "apiVersion: v1\nkind: Service\nmetadata:\n  name: bare\n  namespace: default\nspec:\n  \
                clusterIP: 10.96.0.77\n  ports:\n  - {name: http, port: 80, protocol: TCP}\n";
    lab.manifests().apply("bare.yaml", &format!("{bare}---\n{slice}"))?;
    let programmed = || {
        let name = "kubeproxy_network_programming_duration_seconds_count";
        agent.metric(name, &["ip_family=\"IPv4\""]).ok().filter(|count| *count > 0.5)
    };
    assert!((eventually(SECONDS_10, "the change is in force", programmed)? - 1.0).abs() < 0.5);
    let metric = |name: &str| agent.metric(&format!("kubeproxy_sync_proxy_rules_{name}"), &[]);
    assert!((metric("service_changes_total")? - changes - 1.0).abs() < 0.5);
    assert!(metric("endpoint_changes_total")? > 0.5);
    assert!(
        metric("endpoint_changes_pending")?.abs() < 0.5 && metric("service_changes_pending")?.abs() < 0.5
    );
    assert!(metric("last_timestamp_seconds")? >= metric("last_queued_timestamp_seconds")?);
    let (_, text) = get(&node, 10249, "/metrics")?;
    for name in [
        "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.001\"",
        "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"} 1",
        "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}",
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"internal\"} 0",
        "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
        "kubeproxy_proxy_livez_total{code=\"200\"} 1",
    ] {
        assert!(text.contains(name), "{name} not in {text}");
    }
    assert!(agent.metric("mesh_sync_duration_seconds_count", &[])? > 1.5);
    Ok(())
}

#[test]
fn a_port_that_is_taken_is_named_with_its_flag() -> Result<()> {
    let (_lab, node) = bare()?;
    let taken = node.netns().run(|| std::net::TcpListener::bind("0.0.0.0:10256"))??;
    let ended = node.agent().spawn()?.wait(SECONDS_10)?;
    assert!(!ended.status.success());
    let line = ended.stderr.lines().last().unwrap_or_default();
    for part in ["meshd: cannot listen on 0.0.0.0:10256", "--healthz-bind-address", "in use"] {
        assert!(line.contains(part), "{part} not in {}", ended.stderr);
    }
    let agent = node.agent().arg("--healthz-bind-address=").arg("--proxy-metrics-bind-address=").start()?;
    assert!(get(&node, 10249, "/proxyMode").is_err());
    drop((agent, taken));
    Ok(())
}

#[test]
fn a_second_agent_is_refused_whatever_it_shares_with_the_first() -> Result<()> {
    let (lab, node) = bare()?;
    let agent = node.agent().start()?;
    let elsewhere = lab.folder().join("elsewhere");
    let elsewhere = elsewhere.to_string_lossy();
    let pins = node.bpffs().with_file_name("elsewhere");
    let (pins, own) = (pins.to_string_lossy(), node.bpffs());
    let cgroup = node.cgroup().join("elsewhere");
    std::fs::create_dir(&cgroup)?;
    let pid = agent.process().pid();
    for (builder, what, path) in [
        (node.agent(), "state folder", node.state_dir()),
        (node.agent().flag("--state-dir", &elsewhere), "folder for pins", own),
        (
            node.agent().flag("--state-dir", &elsewhere).flag("--bpffs", &pins),
            "cgroup",
            node.cgroup().to_owned(),
        ),
        (
            node.agent()
                .flag("--state-dir", &elsewhere)
                .flag("--bpffs", &pins)
                .flag("--cgroup", &cgroup.to_string_lossy()),
            "network namespace",
            PathBuf::from("/proc/thread-self/ns/net"),
        ),
    ] {
        let second = builder.spawn()?.wait(SECONDS_10)?;
        assert!(!second.status.success(), "{what}");
        let line = second.stderr.lines().last().unwrap_or_default();
        let expected = format!(
            "meshd: another agent (pid {pid}) runs with the {what} {}: one agent a node; stop it first",
            path.display()
        );
        assert_eq!(line, expected, "{}", second.stderr);
    }
    let (own_state, own_pins) = (node.state_dir(), node.bpffs());
    let (own_state, own_pins) = (own_state.to_string_lossy(), own_pins.to_string_lossy());
    for (state_dir, bpffs) in [(&own_state, &own_pins), (&elsewhere, &own_pins), (&elsewhere, &pins)] {
        let meshd = binary("meshd")?;
        let argv = [&*meshd.to_string_lossy(), "uninstall", "--bpffs", bpffs, "--state-dir", state_dir];
        let uninstall = node.spawn(&argv)?.wait(SECONDS_10)?;
        let said = uninstall.stderr;
        assert!(!uninstall.status.success() && said.contains("another agent"), "{said}");
    }
    assert!(agent.status().is_ok());
    std::fs::remove_dir(&cgroup)?;
    Ok(())
}

#[test]
fn an_agent_that_its_own_programs_do_not_see_says_so() -> Result<()> {
    let (_lab, node) = bare()?;
    let cgroup = node.cgroup().join("elsewhere");
    std::fs::create_dir(&cgroup)?;
    let agent = node.agent().flag("--cgroup", &cgroup.to_string_lossy()).start()?;
    let problems = agent.problems()?;
    assert!(
        problems.iter().any(|problem| problem.starts_with("the agent is in no cgroup")),
        "{:#}",
        agent.json("/v1/check")?
    );
    agent.terminate(SECONDS_10)?;
    std::fs::remove_dir(&cgroup)?;
    Ok(())
}

#[test]
fn a_node_that_leaves_is_unhealthy_to_load_balancers_and_alive() -> Result<()> {
    let (lab, node) = bare()?;
    let agent = node.agent().start()?;
    let with = |taints: &str| {
        format!("apiVersion: v1\nkind: Node\nmetadata:\n  name: node-a\nspec:\n  taints: [{taints}]\n")
    };
    for (taints, status) in [
        ("{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}", 503),
        ("{key: other, effect: NoSchedule}", 200),
    ] {
        lab.manifests().apply("node.yaml", &with(taints))?;
        let told = || get(&node, 10256, "/healthz").ok().filter(|(held, _)| *held == status);
        let (_, body) = eventually(SECONDS_10, "the node's taint is told", told)?;
        assert!(body.contains(&format!("\"nodeEligible\":{}", status == 200)), "{body}");
        assert_eq!(get(&node, 10256, "/livez")?.0, 200);
    }
    assert!(agent.metric("kubeproxy_proxy_healthz_total", &["code=\"503\""])? > 0.5);
    Ok(())
}

#[test]
fn policies_and_affinity_are_explained() -> Result<()> {
    let world = World::start(false)?;
    world.serve("http")?;
    let agent = &world.agent_a;
    let local = service("local", "app: far").replace("spec:\n", "spec:\n  internalTrafficPolicy: Local\n");
    let sticky = service("sticky", "both: \"yes\"")
        .replace("10.96.0.", "10.96.1.")
        .replace("fd00:96::", "fd00:96::1:")
        .replace("spec:\n", "spec:\n  sessionAffinity: ClientIP\n");
    world.lab.manifests().apply("policies.yaml", &format!("{local}---\n{sticky}"))?;
    let explain = |from: &str, to: &str| document(agent, &["explain", from, to]);
    let has_both = || {
        let (_, report) = explain("node", "default/sticky:8080").ok()?;
        (report["verdict"] == "translated" && report["backends"].as_array()?.len() == 2).then_some(())
    };
    eventually(SECONDS_10, "the services are in the kernel", has_both)?;
    let step = |report: &Value, what: &str| {
        let steps = report["steps"].as_array().into_iter().flatten();
        steps.filter(|step| step["what"] == what).map(|step| step["found"].to_string()).collect::<String>()
    };
    let (code, report) = explain("default/client", "default/local:8080")?;
    assert_eq!((code, &report["verdict"]), (0, &"refused".into()), "{report:#}");
    assert!(step(&report, "policy").contains("Local: endpoints of this node alone"), "{report:#}");
    assert!(step(&report, "topology").contains("0 of them on this node"), "{report:#}");
    for (family, policy, count) in
        [("IPv4", "internal", 1.0), ("IPv6", "internal", 1.0), ("IPv4", "external", 0.0)]
    {
        let labels = [format!("ip_family=\"{family}\""), format!("traffic_policy=\"{policy}\"")];
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let held = agent.metric("kubeproxy_sync_proxy_rules_no_local_endpoints_total", &labels)?;
        assert!((held - count).abs() < 0.5, "{family} {policy}: {held}");
    }
    let (_, report) = explain("default/client", "default/sticky:8080")?;
    assert!(step(&report, "affinity").contains("no entry yet"), "{report:#}");
    let (_, services) = document(agent, &["services", "default/sticky"])?;
    let address = services[0]["addresses"][0].as_str().context("an address")?.to_owned();
    let summary = world.client.connect(&[&format!("{address}:{PORT}"), "--count", "5"])?;
    assert_eq!((summary.ok, summary.by_name.len()), (5, 1), "{summary:?}");
    let (_, report) = explain("default/client", "default/sticky:8080")?;
    let kept = step(&report, "affinity");
    let backend = if summary.by_name.contains_key("far") { &world.far } else { &world.twin };
    assert!(
        kept.contains("where it stays") && kept.contains(&format!("{}:{PORT}", backend.v4)),
        "{report:#}"
    );
    // It is the pod that stays, not the others of its node.
    let (_, report) = explain("default/near", "default/sticky:8080")?;
    assert!(step(&report, "affinity").contains("no entry yet"), "{report:#}");
    Ok(())
}

#[test]
fn rules_that_kube_proxy_left_are_found() -> Result<()> {
    let (_lab, node) = bare()?;
    let run = |program: &str, args: &[&str]| -> Result<()> {
        let netns = format!("--net={}", node.netns().path().display());
        let status = Command::new("nsenter").arg(netns).arg(program).args(args).status()?;
        ensure!(status.success(), "{program} {args:?}");
        Ok(())
    };
    for (program, add, remove, evidence) in [
        (
            "nft",
            &["add", "table", "ip", "kube-proxy"][..],
            &["delete", "table", "ip", "kube-proxy"][..],
            "the nftables table kube-proxy is there",
        ),
        (
            "iptables-nft",
            &["-t", "nat", "-N", "KUBE-SERVICES"],
            &["-t", "nat", "-X", "KUBE-SERVICES"],
            "the iptables chain KUBE-SERVICES is there",
        ),
    ] {
        run(program, add)?;
        let agent = node.agent().start()?;
        assert!(!translates(&agent)?);
        assert!(agent.log().contains(evidence), "{}", agent.log());
        agent.terminate(mesh_tests::SECONDS_30)?;
        run(program, remove)?;
    }
    let agent = node.agent().start()?;
    assert!(translates(&agent)?, "{}", agent.log());
    Ok(())
}
