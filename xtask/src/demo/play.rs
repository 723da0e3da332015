//! The play: seven steps, each of which is wrong or right.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use mesh_tests::{Capture, peer::Summary};

use super::{
    Args, NAME, commands,
    policy::authorization,
    programs,
    stage::{PORT, Stage, namespaces},
};
use crate::repo;

const STEPS: usize = 7;
/// A step, told the name that everything begins with.
type Step = fn(&Stage, &str) -> Result<()>;
/// How many connections, and how many of them at a time, where counts are what is shown.
const MANY: [&str; 4] = ["--count", "1000", "--concurrency", "16"];
pub(super) const A_FEW: [&str; 2] = ["--count", "20"];

/// Addresses of the services, as in `deploy/demo/bookinfo.yaml`.
pub(super) const DETAILS: &str = "10.96.0.12";
const REVIEWS: &str = "10.96.0.13";
const REVIEWS_V6: &str = "fd00:96::13";
const RATINGS: &str = "10.96.0.14";

/// Plays, and says in one line what went wrong.
pub(super) fn run(args: &Args) -> Result<()> {
    // What the process that watches keeps to itself is not to be handed on.
    nix::sys::signal::SigSet::all().thread_unblock().context("unblock signals")?;
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)
        .context("tie this process to its parent")?;
    let started = Instant::now();
    println!("demo: two nodes, seven pods and two agents, made of network namespaces and cgroups...");
    let stage =
        Stage::set(&args.name, &programs(args.release)).map_err(|error| one_line(&error, &args.name))?;
    if let Err(error) = steps(&stage, &args.name, started) {
        let error = one_line(&error, &args.name);
        if args.keep {
            stage.lab.keep();
        }
        return Err(error);
    }
    let took = started.elapsed().as_secs_f64();
    stage.screen.end(format!("demo: all {STEPS} steps came out as they should, in {took:.1} s"));
    if args.keep {
        hints(&stage, args);
        stage.lab.keep();
    }
    Ok(())
}

/// The causes in one line; the agents' logs are put where they outlive the demo.
fn one_line(error: &anyhow::Error, name: &str) -> anyhow::Error {
    let mut causes: Vec<String> = Vec::new();
    // A cause of several lines is somebody's output, given along: that is in the logs.
    for cause in error.chain().map(ToString::to_string).filter(|cause| !cause.trim_end().contains('\n')) {
        if !cause.is_empty() && !causes.contains(&cause) {
            causes.push(cause);
        }
    }
    let text = causes.join(": ");
    match keep_logs(&Path::new("/run").join(name)) {
        Ok(folder) => anyhow!("demo: {text} (the agents' logs are {folder}/demo-*.log)"),
        Err(_) => anyhow!("demo: {text}"),
    }
}

fn keep_logs(folder: &Path) -> Result<String> {
    for entry in fs::read_dir(folder)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(agent) = name.strip_suffix(".meshd.err") {
            fs::copy(entry.path(), repo::log(&format!("demo-{agent}"))?)?;
        }
    }
    Ok("target/xtask-logs".to_owned())
}

fn steps(stage: &Stage, name: &str, started: Instant) -> Result<()> {
    let kernel = nix::sys::utsname::uname().context("ask for the kernel's name")?;
    stage.screen.say(format!(
        "set up in {:.1} s on Linux {}",
        started.elapsed().as_secs_f64(),
        kernel.release().to_string_lossy()
    ));
    stage.screen.say(picture());
    let all: [(&str, Step); STEPS] = [
        ("Services without kube-proxy, without one iptables or nftables rule", services),
        ("Routes: a VirtualService file is the whole roll-out", routes),
        ("Mutual TLS between the nodes, once the namespace is enrolled", encryption),
        ("STRICT: a client outside the mesh is refused at once", strict),
        ("Who may: an AuthorizationPolicy, tried out before it is in force", authorization),
        ("The agent of a node is killed, and comes back", crash),
        ("What the agents know", inspect),
    ];
    for (index, (title, step)) in all.into_iter().enumerate() {
        stage.screen.step(index + 1, STEPS, title);
        step(stage, name).with_context(|| format!("step {}", index + 1))?;
    }
    Ok(())
}

const fn picture() -> &'static str {
    "\n\
     node-a (172.30.0.1)                      node-b (172.30.0.2)\n\
     ├─ productpage-v1  10.244.1.10           ├─ details-v1  10.244.2.10\n\
     ├─ ratings-v1      10.244.1.11    wire   ├─ reviews-v2  10.244.2.11\n\
     ├─ reviews-v1      10.244.1.12  ◀──────▶ └─ reviews-v3  10.244.2.12\n\
     └─ outsider        10.244.1.99  (in no manifest)"
}

fn from_productpage(stage: &Stage, target: &str, args: &[&str]) -> Result<Summary> {
    commands::connect(&stage.screen, &stage.within, "productpage-v1", target, args)
}

pub(super) fn at(address: &str) -> String {
    if address.contains(':') { format!("[{address}]:{PORT}") } else { format!("{address}:{PORT}") }
}

fn services(stage: &Stage, name: &str) -> Result<()> {
    for (address, servers) in [
        (DETAILS, &["details-v1"][..]),
        (RATINGS, &["ratings-v1"]),
        (REVIEWS, &["reviews-v1", "reviews-v2", "reviews-v3"]),
        (REVIEWS_V6, &["reviews-v1", "reviews-v2", "reviews-v3"]),
    ] {
        let target = at(address);
        let summary = from_productpage(stage, &target, &A_FEW)?;
        commands::all_served(&summary, 20)?;
        let stranger = summary.by_name.keys().find(|server| !servers.contains(&server.as_str()));
        ensure!(stranger.is_none(), "{servers:?} serve {address}, and not {stranger:?}");
        let asked = summary.getpeername.keys().all(|peer| *peer == target);
        ensure!(asked, "getpeername should say {target}, and says {:?}", summary.getpeername);
    }
    stage.screen.good(
        "every service address leads to its pods, and getpeername() says what the application asked for",
    );
    let mut counted = Vec::new();
    let namespaces = namespaces(name)?;
    for (tool, args) in [("iptables-save", &[][..]), ("ip6tables-save", &[]), ("nft", &["list", "ruleset"])] {
        let Some(program) = repo::find_program(tool) else {
            stage.screen.say(format!("({tool} is not on the PATH, so it was not asked)"));
            continue;
        };
        let mut rules = 0;
        for namespace in &namespaces {
            let inside = format!("--net=/var/run/netns/{namespace}");
            let program = program.to_string_lossy();
            let output = commands::answer(&[&["nsenter", &inside, &program], args].concat())?;
            ensure!(
                output.status.success(),
                "{tool} failed in {namespace}: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            rules += if tool == "nft" {
                text.lines().count()
            } else {
                text.lines().filter(|line| line.starts_with("-A")).count()
            };
        }
        let (command, pattern) =
            ([&[tool], args].concat().join(" "), if tool == "nft" { "''" } else { "^-A" });
        stage.screen.command(format!(
            "for ns in /var/run/netns/{name}-*; do nsenter --net=$ns {command}; done | grep -c {pattern}"
        ));
        stage.screen.output(&rules.to_string());
        ensure!(rules == 0, "{command} should find no rule in the demo's namespaces, and finds {rules}");
        counted.push(tool);
    }
    ensure!(!counted.is_empty(), "no rule was counted: install iptables or nftables");
    stage.screen.good(format!("no rule in any of the {} network namespaces", namespaces.len()));
    Ok(())
}

fn routes(stage: &Stage, _name: &str) -> Result<()> {
    let target = at(REVIEWS);
    for (file, expected, text) in [
        ("reviews-v1.yaml", &[("reviews-v1", 1.0)][..], "all of it goes to v1"),
        (
            "reviews-50-50.yaml",
            &[("reviews-v1", 0.5), ("reviews-v3", 0.5)],
            "half to v1, half to v3, none to v2",
        ),
        (
            "reviews-90-10.yaml",
            &[("reviews-v1", 0.9), ("reviews-v2", 0.1)],
            "nine in ten to v1, one to the canary v2",
        ),
    ] {
        stage.apply(file, "reviews.yaml")?;
        let summary = from_productpage(stage, &target, &MANY)?;
        commands::all_served(&summary, 1000)?;
        commands::shares(&summary, expected)?;
        stage.screen.good(text);
    }
    stage.screen.say("All of that in the connect() hook: no agent was in the way, no packet was touched.");
    Ok(())
}

fn encryption(stage: &Stage, _name: &str) -> Result<()> {
    let (target, args) = (at(DETAILS), |marker| [&A_FEW[..], &["--marker", marker]].concat());
    stage.screen.say("An AF_PACKET socket sees every frame between the nodes.");
    let wire = stage.lab.wire()?;
    commands::all_served(&from_productpage(stage, &target, &args("a-secret-in-the-clear"))?, 20)?;
    let seen = settled(&wire, "a-secret-in-the-clear");
    ensure!(seen > 0, "before enrolment the requests should be readable on the wire, and none is");
    stage.screen.good(format!("not enrolled: \"a-secret-in-the-clear\" was read on the wire {seen} times"));
    drop(wire);

    stage.apply("enrol.yaml", "namespace.yaml")?;
    for node in 0..2 {
        stage.wait_enrolled(node)?;
    }
    stage.screen.good("six pods enrolled, and none of them restarted");
    sealed(stage, &target, "a-secret-that-is-kept")?;
    let summary = from_productpage(stage, &at(REVIEWS), &MANY)?;
    commands::all_served(&summary, 1000)?;
    commands::shares(&summary, &[("reviews-v1", 0.9), ("reviews-v2", 0.1)])?;
    stage.screen.good("the route of before holds for them too, nine to one");
    Ok(())
}

/// Requests that cross the wire, and cannot be read there.
fn sealed(stage: &Stage, target: &str, marker: &str) -> Result<()> {
    let wire = stage.lab.wire()?;
    let summary = from_productpage(stage, target, &[&A_FEW[..], &["--marker", marker]].concat())?;
    commands::all_served(&summary, 20)?;
    let seen = settled(&wire, marker);
    ensure!(
        seen == 0,
        "an enrolled pod's requests should be encrypted, and {marker:?} was read on the wire {seen} times"
    );
    ensure!(!wire.is_empty(), "nothing at all passed on the wire, so that nothing is shown by it");
    stage
        .screen
        .good(format!("{} KiB on the wire, TLS: \"{marker}\" was read there 0 times", wire.len() >> 10));
    Ok(())
}

/// Counts once the capture has read all that there is.
fn settled(wire: &Capture, marker: &str) -> usize {
    loop {
        let before = wire.len();
        std::thread::sleep(Duration::from_millis(100));
        if wire.len() == before {
            return wire.count(marker);
        }
    }
}

fn strict(stage: &Stage, _name: &str) -> Result<()> {
    let target = at(DETAILS);
    let outside = || commands::connect(&stage.screen, &stage.within, "outsider", &target, &A_FEW);
    commands::all_served(&outside()?, 20)?;
    stage.screen.good("PERMISSIVE, the default: plaintext from outside is served");
    stage.apply("strict.yaml", "peer-authentication.yaml")?;
    let summary = outside()?;
    ensure!(
        summary.ok == 0,
        "STRICT should serve no client outside the mesh, and: {}",
        commands::told(&summary)
    );
    let refused = |(kind, _): (&String, &u64)| kind == "refused" || kind == "reset";
    ensure!(
        summary.errors.iter().all(refused),
        "clients should be refused, and: {}",
        commands::told(&summary)
    );
    ensure!(
        summary.failed_max_ms < 1000,
        "a refusal should take no second, and took {} ms",
        summary.failed_max_ms
    );
    stage
        .screen
        .good(format!("STRICT: refused, each within {} ms; no timeout", summary.failed_max_ms.max(1)));
    let summary = from_productpage(stage, &target, &MANY)?;
    commands::all_served(&summary, 1000)?;
    stage.screen.good("and an enrolled client is served");
    Ok(())
}

fn crash(stage: &Stage, _name: &str) -> Result<()> {
    stage.apply("permissive.yaml", "peer-authentication.yaml")?;
    let [agent, _] = &stage.agents;
    stage.screen.command(format!("kill -9 {}", agent.process().pid()));
    agent.kill()?;
    let status =
        commands::run(&stage.screen, &[&stage.within.to_string_lossy(), "node-a", "meshctl", "status"])?;
    stage.screen.output(String::from_utf8_lossy(&status.stderr).trim());
    ensure!(
        status.status.code() == Some(3),
        "meshctl should end with 3 where there is no agent, and: {}",
        status.status
    );
    for address in [DETAILS, REVIEWS] {
        commands::all_served(&from_productpage(stage, &at(address), &MANY)?, 1000)?;
    }
    stage
        .screen
        .good("no agent on node-a: 2,000 connections, 0 failures (in plaintext, as PERMISSIVE allows)");
    stage.screen.say("The same command starts the agent again.");
    let started = Instant::now();
    let _started = agent.restart()?;
    stage.wait_enrolled(0)?;
    stage.screen.good(format!("back, with its pods, after {:.1} s", started.elapsed().as_secs_f64()));
    sealed(stage, &at(DETAILS), "a-secret-after-the-crash")
}

fn inspect(stage: &Stage, _name: &str) -> Result<()> {
    let within = stage.within.to_string_lossy();
    for node in &stage.nodes {
        for (args, expected) in
            [(&["status"][..], "enrolled"), (&["services"], "reviews"), (&["flows", "--limit", "6"], "mtls")]
        {
            let text =
                commands::succeed(&stage.screen, &[&[&*within, node.name(), "meshctl"], args].concat())?;
            stage.screen.output(&text);
            if !text.contains(expected) {
                bail!(
                    "`meshctl {}` on {} should tell of {expected:?}, and does not",
                    args.join(" "),
                    node.name()
                );
            }
        }
    }
    stage.screen.good("both agents are healthy, and their flows say mtls");
    Ok(())
}

fn hints(stage: &Stage, args: &Args) {
    let (within, folder) = (stage.within.display(), stage.lab.manifests().folder().display());
    let name = &args.name;
    let down = if name == NAME { String::new() } else { format!(" --name {name}") };
    stage.screen.say(format!(
        "The mesh stays up. To try:\n\
         \x20 {within} productpage-v1 curl -s http://{}/\n\
         \x20 {within} node-b meshctl flows --follow\n\
         \x20 {within} node-a meshctl services bookinfo/reviews\n\
         \x20 cp deploy/demo/reviews-50-50.yaml {folder}/reviews.yaml\n\
         \x20 nsenter --net=/var/run/netns/{name}-node-b tcpdump -i eth0 port 15008\n\
         `in` enters the pod's cgroup and its network namespace. By hand it is nsenter --net=/var/run/netns/NAME, never\n\
         `ip netns exec`: that mounts another /sys, which hides cgroups and bpffs.\n\
         To take it down: cargo xtask demo --down{down}",
        at(REVIEWS)
    ));
}
