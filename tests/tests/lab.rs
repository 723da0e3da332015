//! The lab itself: without agents, nodes and pods reach each other as a cluster network would have it.

use anyhow::Result;
use mesh_tests::{Lab, PodSpec};

#[test]
fn pods_reach_each_other_over_both_families_and_leave_nothing_behind() -> Result<()> {
    let lab = Lab::unique()?;
    let (folder, cgroup) = (lab.folder().to_owned(), lab.cgroup().to_owned());
    let (a, b) = (lab.node("node-a")?, lab.node("node-b")?);
    let client = a.pod(PodSpec::new("client"))?;
    let near = a.pod(PodSpec::new("near"))?;
    let far = b.pod(PodSpec::new("far"))?;
    let wire = lab.wire()?;
    for server in [&near, &far] {
        let process = server.serve(&["--listen", "[::]:8080"])?;
        for target in [format!("{}:8080", server.v4), format!("[{}]:8080", server.v6)] {
            let summary = client.connect(&[
                &target,
                "--count",
                "20",
                "--concurrency",
                "4",
                "--marker",
                "seen-on-the-wire",
            ])?;
            assert_eq!((summary.ok, summary.failed), (20, 0), "{target}: {summary:?}");
            assert_eq!(summary.by_name.get(&server.spec.name), Some(&20), "{target}");
            assert_eq!(summary.getpeername.keys().collect::<Vec<_>>(), [&target], "{target}");
            assert_eq!(summary.peers_seen, summary.locals, "{target}");
        }
        let mapped = client.connect(&[&format!("{}:8080", server.v4), "--source-v6-mapped"])?;
        assert_eq!(mapped.ok, 1, "{mapped:?}");
        process.kill()?;
    }
    assert!(wire.count("seen-on-the-wire") >= 40, "{}", wire.len());
    assert_eq!(client.connect(&[&format!("{}:8080", near.v4)])?.errors.get("refused"), Some(&1));
    drop(lab);
    assert!(!folder.exists() && !cgroup.exists() && !client.netns().path().exists());
    Ok(())
}

#[test]
fn every_mode_of_the_peer_holds_against_itself() -> Result<()> {
    let lab = Lab::unique()?;
    let (a, b) = (lab.node("node-a")?, lab.node("node-b")?);
    let client = a.pod(PodSpec::new("client"))?;
    let server = b.pod(PodSpec::new("server"))?;
    let modes = ["http", "echo", "discard", "source", "reset", "half-close"];
    for (mode, port) in modes.into_iter().zip(9000..) {
        server.serve(&["--listen", &format!("[::]:{port}"), "--mode", mode])?;
        let target = format!("{}:{port}", server.v4);
        let summary = client.connect(&[
            &target,
            "--mode",
            mode,
            "--bytes",
            "300001",
            "--count",
            "8",
            "--concurrency",
            "4",
        ])?;
        assert_eq!((summary.ok, summary.failed), (8, 0), "{mode}: {summary:?}");
    }
    let echo = format!("{}:9001", server.v4);
    assert_eq!(client.connect(&[&echo, "--mode", "abort"])?.ok, 1);
    let kept =
        client.connect(&[&echo, "--mode", "echo", "--count", "200", "--concurrency", "200", "--keep"])?;
    assert_eq!((kept.ok, kept.failed), (200, 0), "{kept:?}");
    let load = client.load(&[&echo, "--mode", "echo", "--keep", "--concurrency", "4"])?;
    let summary = mesh_tests::peer::Summary::end(&load)?;
    assert!(summary.ok > 0 && summary.failed == 0, "{summary:?}");
    server.serve(&["--udp", "--listen", "[::]:53"])?;
    for flags in [&["--fresh"][..], &["--unconnected"], &["--source-v6-mapped"]] {
        let target = format!("{}:53", server.v4);
        let summary = client.udp(&[&[target.as_str(), "--count", "5"], flags].concat())?;
        assert_eq!((summary.ok, summary.failed), (5, 0), "{flags:?}: {summary:?}");
        assert_eq!(summary.replies_from.get(&target), Some(&5), "{flags:?}");
    }
    Ok(())
}
