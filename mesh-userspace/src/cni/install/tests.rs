//! The installer on real folders, with a file that stands for the binary.

use std::os::unix::fs::PermissionsExt;

use serde_json::Value;
use tempfile::TempDir;

use super::*;

const LIST: &str = r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge"}]}"#;

struct Host {
    folder: TempDir,
    state: Arc<InstallState>,
}

impl Host {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        fs::create_dir(folder.path().join("net.d")).unwrap();
        fs::create_dir(folder.path().join("bin")).unwrap();
        fs::write(folder.path().join("meshd"), "the binary").unwrap();
        Self { folder, state: Arc::default() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start(&self) -> Installer {
        let plugin = PluginConfig {
            socket: "/run/mesh/meshd.sock".into(),
            timeout: Duration::from_secs(30),
            log_file: None,
            state_file: "/var/lib/mesh/cni.json".into(),
        };
        let config = InstallConfig { conf_dir: self.path("net.d"), bin_dir: self.path("bin"), plugin };
        start(config, self.path("meshd"), Arc::clone(&self.state)).unwrap()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path("net.d").join(name), text).unwrap();
    }

    fn own(&self) -> Option<Value> {
        serde_json::from_slice(&fs::read(self.path("net.d").join(OWN)).ok()?).ok()
    }

    /// Waits until the configuration has these plugins, or is not there.
    fn expect(&self, what: &str, name: Option<&str>) {
        self.until(what, || self.own().map(|own| own["name"].clone()) == name.map(Into::into));
    }

    fn until(&self, what: &str, is: impl Fn() -> bool) {
        let started = Instant::now();
        while !is() {
            assert!(
                started.elapsed() < Duration::from_secs(20),
                "{what}: {:?} {:?}",
                self.own(),
                self.state.problem()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn listing(&self) -> Vec<(String, Vec<u8>)> {
        let mut all: Vec<_> = ["net.d", "bin"]
            .iter()
            .flat_map(|folder| fs::read_dir(self.path(folder)).unwrap())
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.display().to_string(), fs::read(path).unwrap()))
            .collect();
        all.sort();
        all
    }
}

#[test]
fn who_takes_it_away_again_and_again_is_told_of_and_not_fought_at_full_speed() {
    let host = Host::new();
    host.write("10-net.conflist", LIST);
    let installer = host.start();
    let own = host.path("net.d").join(OWN);
    let mut by = [None, Some("{}"), None].into_iter();
    for takes in 1..=3 {
        host.expect("it is there", Some("net"));
        match by.next().flatten() {
            Some(text) => fs::write(&own, text).unwrap(),
            None => fs::remove_file(&own).unwrap(),
        }
        host.until("it is put back", || host.state.mends() == takes);
    }
    let problem = host.state.problem().expect("it is told");
    assert!(problem.contains("again and again") && problem.contains("cni.exclusive"), "{problem}");
    // The network's own still counts at once.
    host.write("10-net.conflist", &LIST.replace("\"net\"", "\"other\""));
    host.expect("the network's new one", Some("other"));
    assert_eq!(host.state.mends(), 3);
    drop(installer);
}

#[test]
fn the_configuration_follows_the_networks() {
    let host = Host::new();
    let installer = host.start();
    host.until("it waits", || host.state.problem().is_some_and(|problem| problem.contains("waiting")));
    host.write("10-net.conflist", LIST);
    host.expect("made once there is a network", Some("net"));
    host.until("all is well", || host.state.problem().is_none());
    let mode = |path: &str| fs::metadata(host.path(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("bin/mesh-cni"), mode("net.d/00-mesh.conflist")), (0o755, 0o600));
    assert_eq!(fs::read(host.path("bin/mesh-cni")).unwrap(), b"the binary");
    assert_eq!(fs::read_to_string(host.path("net.d/10-net.conflist")).unwrap(), LIST);

    host.write("10-net.conflist", &LIST.replace("net", "other"));
    host.expect("follows a rewrite", Some("other"));
    host.write(OWN, "{\"name\": \"edited\"}");
    host.expect("mended after an edit", Some("other"));
    fs::remove_file(host.path("net.d").join(OWN)).unwrap();
    host.expect("mended after a removal", Some("other"));
    host.write("05-first.conf", r#"{"cniVersion":"1.0.0","name":"first","type":"ptp"}"#);
    host.expect("the runtime's choice is another now", Some("first"));
    fs::remove_file(host.path("net.d/05-first.conf")).unwrap();
    host.expect("and is again the one before", Some("other"));
    drop(installer);
}

#[test]
fn what_is_being_replaced_is_waited_for() {
    let host = Host::new();
    host.write("10-net.conflist", LIST);
    host.write("20-spare.conflist", &LIST.replace("net", "spare"));
    let installer = host.start();
    host.expect("made", Some("net"));
    // Half written: ours is as it was for a while, and the other is taken where it stays so.
    host.write("10-net.conflist", &LIST[..20]);
    let seen = Instant::now();
    while seen.elapsed() < SETTLE / 2 {
        assert_eq!(host.own().unwrap()["name"], "net");
        thread::sleep(Duration::from_millis(10));
    }
    host.expect("it stays broken", Some("spare"));
    host.write("10-net.conflist", LIST);
    host.expect("whole again", Some("net"));
    // Gone and back within a moment, as some networks replace theirs: ours is there all the time.
    fs::remove_file(host.path("net.d/20-spare.conflist")).unwrap();
    fs::remove_file(host.path("net.d/10-net.conflist")).unwrap();
    thread::sleep(SETTLE / 4);
    assert_eq!(host.own().unwrap()["name"], "net");
    host.write("10-net.conflist", &LIST.replace("net", "back"));
    host.expect("back", Some("back"));
    fs::remove_file(host.path("net.d/10-net.conflist")).unwrap();
    host.expect("a list without its network is gone", None);
    host.write("10-net.conflist", LIST);
    host.expect("the network is back", Some("net"));
    drop(installer);
}

#[test]
fn a_stopped_agent_leaves_it_and_uninstall_leaves_the_folders_as_they_were() {
    let host = Host::new();
    host.write("10-net.conflist", LIST);
    host.write("99-loopback.conf", r#"{"cniVersion":"1.0.0","name":"lo","type":"loopback"}"#);
    let before = host.listing();
    let installer = host.start();
    host.expect("made", Some("net"));
    drop(installer);
    assert!(host.own().is_some());
    // Another version of the agent.
    fs::write(host.path("meshd"), "a newer binary").unwrap();
    let installer = host.start();
    host.until("the binary is replaced", || {
        fs::read(host.path("bin/mesh-cni")).is_ok_and(|binary| binary == b"a newer binary")
    });
    let inode = fs::metadata(host.path("bin/mesh-cni")).unwrap().ino();
    drop(installer);
    let installer = host.start();
    host.until("all is well", || host.state.problem().is_none() && host.own().is_some());
    assert_eq!(fs::metadata(host.path("bin/mesh-cni")).unwrap().ino(), inode, "an equal one stays");
    drop(installer);
    for _ in 0..2 {
        uninstall(&host.path("net.d"), &host.path("bin")).unwrap();
        assert_eq!(host.listing(), before);
    }
}

#[test]
fn folders_that_are_not_there_yet_are_waited_for() {
    let host = Host::new();
    fs::remove_dir(host.path("net.d")).unwrap();
    let installer = host.start();
    host.until("it says so", || host.state.problem().is_some_and(|problem| problem.contains("net.d")));
    fs::create_dir(host.path("net.d")).unwrap();
    host.write("10-net.conflist", LIST);
    host.expect("made", Some("net"));
    drop(installer);
}
