//! The feed over real files and inotify, in a folder that each test makes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::model::WorkloadUid;

/// Well above the 50 ms that an unfinished file is waited for and below the second that is promised.
const SOON: Duration = Duration::from_millis(900);

fn pod(name: &str, address: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\nstatus: {{podIP: {address}}}\n"
    )
}

fn begin(paths: Vec<PathBuf>) -> Source {
    Source::begin(Input::Manifests(paths)).unwrap()
}

struct Watched {
    feed: Feed,
    folder: TempDir,
}

impl Watched {
    async fn new(path: &str, prepare: impl FnOnce(&Path)) -> Self {
        let folder = TempDir::new().unwrap();
        prepare(folder.path());
        let paths = vec![folder.path().join(path)];
        let feed = run(begin(paths), MeshConfig::default(), std::future::pending()).await.unwrap();
        Self { feed, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Waits for exactly these pods, as `NAME=ADDRESS`.
    async fn expect(&mut self, wanted: &[&str]) {
        let matches = |snapshot: &Arc<Snapshot>| pods(snapshot) == wanted;
        let found = tokio::time::timeout(SOON, self.feed.snapshot.wait_for(matches)).await;
        assert!(found.is_ok(), "{:?} instead of {wanted:?}", pods(&self.feed.current.load()));
    }

    /// Waits until the problems are these, by what their texts contain.
    async fn expect_problems(&mut self, wanted: &[&str]) -> Arc<Reports> {
        let matches = |reports: &Arc<Reports>| {
            reports.problems.len() == wanted.len()
                && reports
                    .problems
                    .iter()
                    .zip(wanted)
                    .all(|(problem, text)| problem.to_string().contains(text))
        };
        let found = tokio::time::timeout(SOON, self.feed.reports.wait_for(matches)).await;
        let found = found.map(|reports| Arc::clone(&reports.unwrap()));
        found.unwrap_or_else(|_| panic!("{:?} instead of {wanted:?}", self.feed.reports.borrow().problems))
    }
}

fn pods(snapshot: &Snapshot) -> Vec<String> {
    let name = |uid: &WorkloadUid| uid.as_str().trim_start_matches("shop/").to_owned();
    snapshot.workloads.iter().map(|(uid, pod)| format!("{}={}", name(uid), pod.addresses[0])).collect()
}

#[tokio::test]
async fn a_folder_is_followed() {
    let mut watched = Watched::new("", |folder| {
        fs::write(folder.join("a.yaml"), pod("a", "10.0.0.1")).unwrap();
        fs::write(folder.join(".hidden.yaml"), pod("hidden", "10.0.0.9")).unwrap();
        fs::write(folder.join("notes.txt"), pod("notes", "10.0.0.8")).unwrap();
    })
    .await;
    assert_eq!(pods(&watched.feed.current.load()), ["a=10.0.0.1"], "the first state is there at once");
    watched.write("a.yaml", &pod("a", "10.0.0.2"));
    watched.expect(&["a=10.0.0.2"]).await;
    watched.write("b.yml", &pod("b", "10.0.0.3"));
    watched.expect(&["a=10.0.0.2", "b=10.0.0.3"]).await;
    fs::create_dir(watched.path("more")).unwrap();
    watched.write("more/c.json", r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "c", "namespace": "shop"}, "status": {"podIP": "10.0.0.4"}}"#);
    watched.expect(&["a=10.0.0.2", "b=10.0.0.3", "c=10.0.0.4"]).await;
    fs::remove_file(watched.path("b.yml")).unwrap();
    watched.expect(&["a=10.0.0.2", "c=10.0.0.4"]).await;
    // As editors and `kubectl cp` write: aside, then renamed.
    watched.write("new", &pod("a", "10.0.0.5"));
    fs::rename(watched.path("new"), watched.path("a.yaml")).unwrap();
    watched.expect(&["a=10.0.0.5", "c=10.0.0.4"]).await;
    fs::remove_dir_all(watched.path("more")).unwrap();
    watched.expect(&["a=10.0.0.5"]).await;
}

#[tokio::test]
async fn a_path_that_comes_goes_and_comes_back() {
    let mut watched = Watched::new("deep/mesh.yaml", |_| {}).await;
    watched.expect_problems(&["No such file"]).await;
    for address in ["10.0.0.1", "10.0.0.2"] {
        fs::create_dir(watched.path("deep")).unwrap();
        watched.write("deep/mesh.yaml", &pod("a", address));
        watched.expect(&[&format!("a={address}")]).await;
        watched.expect_problems(&[]).await;
        fs::remove_dir_all(watched.path("deep")).unwrap();
        watched.expect(&[]).await;
    }
}

#[tokio::test]
async fn a_config_map_is_swapped() {
    let version = |folder: &Path, name: &str, address: &str| {
        fs::create_dir(folder.join(name)).unwrap();
        fs::write(folder.join(name).join("a.yaml"), pod("a", address)).unwrap();
        symlink(name, folder.join("..data_tmp")).unwrap();
        fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    };
    let mut watched = Watched::new("", |folder| {
        version(folder, "..1", "10.0.0.1");
        symlink("..data/a.yaml", folder.join("a.yaml")).unwrap();
    })
    .await;
    watched.expect(&["a=10.0.0.1"]).await;
    version(watched.folder.path(), "..2", "10.0.0.2");
    watched.expect(&["a=10.0.0.2"]).await;
}

/// As many editors do: what was there goes aside, and for a moment there is no such file.
#[tokio::test]
async fn a_file_that_is_saved_is_never_gone() {
    let mut watched = Watched::new("", |folder| {
        fs::write(folder.join("a.yaml"), pod("a", "10.0.0.1")).unwrap();
    })
    .await;
    for last in 2..30 {
        let address = format!("10.0.0.{last}");
        fs::rename(watched.path("a.yaml"), watched.path("a.yaml~")).unwrap();
        let mut file = fs::File::create(watched.path("a.yaml")).unwrap();
        for part in pod("a", &address).as_bytes().chunks(16) {
            std::io::Write::write_all(&mut file, part).unwrap();
        }
        drop(file);
        fs::remove_file(watched.path("a.yaml~")).unwrap();
        let change = tokio::time::timeout(SOON, watched.feed.snapshot.changed()).await;
        change.unwrap().unwrap();
        // One snapshot, and nothing half written: the file was read once it was complete.
        assert_eq!(pods(&watched.feed.snapshot.borrow_and_update()), [format!("a={address}")]);
        assert_eq!(watched.feed.reports.borrow().problems, []);
    }
}

/// More files than processors, some of which hold the same object.
#[tokio::test]
async fn many_files_are_read_in_their_order() {
    let mut watched = Watched::new("", |folder| {
        for file in 0..40 {
            let own = pod(&format!("p{file:02}"), &format!("10.0.0.{file}"));
            let shared = pod("shared", &format!("10.0.1.{file}"));
            fs::write(folder.join(format!("{file:02}.yaml")), own + &shared).unwrap();
        }
    })
    .await;
    let mut wanted: Vec<String> = (0..40).map(|file| format!("p{file:02}=10.0.0.{file}")).collect();
    wanted.push("shared=10.0.1.0".to_owned());
    assert_eq!(pods(&watched.feed.current.load()), wanted);
    let texts: Vec<String> =
        (1..40).map(|file| format!("{file:02}.yaml:7: Pod shop/shared: defined in")).collect();
    watched.expect_problems(&texts.iter().map(String::as_str).collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn the_last_good_state_stays() {
    let good = pod("a", "10.0.0.1") + &pod("b", "10.0.0.2");
    let mut watched = Watched::new("", |folder| fs::write(folder.join("a.yaml"), &good).unwrap()).await;

    watched.write("a.yaml", &(pod("a", "10.0.0.999") + &pod("b", "10.0.0.3")));
    watched.expect(&["a=10.0.0.1", "b=10.0.0.3"]).await;
    let reports = watched.expect_problems(&["a.yaml:5: Pod shop/a: status.podIP"]).await;
    let since = reports.problems[0].since;

    // Further down in the file it is still the same problem; the object that is no longer written goes.
    watched.write("a.yaml", &format!("# moved\n{}", pod("a", "10.0.0.999")));
    watched.expect(&["a=10.0.0.1"]).await;
    let reports = watched.expect_problems(&["a.yaml:6: Pod shop/a: status.podIP"]).await;
    assert_eq!(reports.problems[0].since, since);

    // Which object a broken document was nobody knows: nothing of the file goes.
    watched.write("a.yaml", &format!("a: [\n{}", pod("c", "10.0.0.7")));
    watched.expect(&["a=10.0.0.1", "c=10.0.0.7"]).await;
    watched.expect_problems(&["not YAML"]).await;

    watched.write("a.yaml", &pod("c", "10.0.0.7"));
    watched.expect(&["c=10.0.0.7"]).await;
    watched.expect_problems(&[]).await;
}

#[tokio::test]
async fn two_definitions() {
    let mut watched = Watched::new("", |folder| {
        fs::write(folder.join("a.yaml"), pod("x", "10.0.0.1")).unwrap();
        fs::write(folder.join("b.yaml"), pod("x", "10.0.0.2")).unwrap();
    })
    .await;
    watched.expect(&["x=10.0.0.1"]).await;
    watched.expect_problems(&["b.yaml:2: Pod shop/x: defined in"]).await;
    fs::remove_file(watched.path("a.yaml")).unwrap();
    watched.expect(&["x=10.0.0.2"]).await;
    watched.expect_problems(&[]).await;
}

#[tokio::test]
async fn the_feed_ends_with_its_shutdown() {
    let folder = TempDir::new().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async { drop(stopped.await) };
    let paths = vec![folder.path().to_path_buf()];
    let mut feed = run(begin(paths), MeshConfig::default(), shutdown).await.unwrap();
    drop(stop);
    assert!(feed.snapshot.changed().await.is_err());
}

#[tokio::test]
async fn the_demo_has_no_problems_but_its_variants() {
    let demo = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/demo"));
    let files = [
        "namespace.yaml",
        "bookinfo.yaml",
        "destination-rule-reviews.yaml",
        "reviews-50-50.yaml",
        "strict.yaml",
    ];
    let paths = files.iter().map(|file| demo.join(file)).collect();
    let feed = run(begin(paths), MeshConfig::default(), std::future::pending()).await.unwrap();
    assert_eq!(**feed.reports.borrow(), Reports::default());
    assert_eq!(feed.current.load().services.len(), 4);
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
    )
}

/// Policies in force, as `NAME ACTION SCOPE RULES`.
fn policies(snapshot: &Snapshot) -> Vec<String> {
    let mut all: Vec<String> = snapshot
        .policies
        .iter()
        .map(|policy| {
            format!("{} {:?} {} {}", policy.name.name, policy.action, policy.scope, policy.rules.len())
        })
        .collect();
    all.sort();
    all
}

#[tokio::test]
async fn a_policy_that_cannot_be_read_at_the_start_allows_nothing() {
    let broken =
        "{selector: {matchLabels: {app: web}}, action: DENY, rules: [{to: [{operation: {ports: [80]}}]}]}";
    let peer = "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: shop}\nspec: {mtls: {mode: STRCT}}\n";
    let first = policy("a", broken)
        + &policy("b", "{selector: 7, rules: [{}]}")
        + &policy("audit", &broken.replace("DENY", "AUDIT"))
        + &policy("good", "{rules: [{}]}")
        + peer;
    let mut watched = Watched::new("", |folder| fs::write(folder.join("a.yaml"), &first).unwrap()).await;
    let held = ["a Allow selector app=web 0", "b Allow namespace 0", "good Allow namespace 1"];
    assert_eq!(policies(&watched.feed.current.load()), held);
    let modes: Vec<_> = watched.feed.current.load().peer_policies.values().map(|peer| peer.mode).collect();
    assert_eq!(modes, [Some(crate::model::Mode::Strict)]);
    let nothing = "until it is mended nothing is allowed where it applies";
    watched.expect_problems(&[nothing, nothing, "NOT in force", "until it is mended STRICT"]).await;
    // Mended one by one; what is new and wrong once the agent runs has no effect.
    let second = policy("a", "{action: DENY}") + &policy("b", "{selector: 7}") + &policy("new", broken);
    watched.write("a.yaml", &second);
    watched.expect_problems(&[nothing, "NOT in force"]).await;
    assert_eq!(policies(&watched.feed.current.load()), ["a Deny namespace 0", "b Allow namespace 0"]);
    watched.write("a.yaml", &(policy("a", "{action: 7}")));
    watched.expect_problems(&["its last good state is in force"]).await;
    assert_eq!(policies(&watched.feed.current.load()), ["a Deny namespace 0"]);
}

#[tokio::test]
async fn text_that_is_no_yaml_and_seems_to_be_a_policy_closes_its_namespace() {
    let broken = policy("a", "{rules: [{}]}").replace("spec:", "\tspec: [");
    let flow = "---\nkind: PeerAuthentication\nmetadata: {namespace: other, name: p\nspec: {}\n";
    let first = pod("web", "10.0.0.1") + &broken + flow;
    let watched = Watched::new("", |folder| fs::write(folder.join("a.yaml"), &first).unwrap()).await;
    let snapshot = watched.feed.current.load_full();
    assert_eq!(policies(&snapshot), ["a Allow namespace 0"]);
    let peers: Vec<_> = snapshot.peer_policies.values().map(|peer| (&*peer.namespace, peer.mode)).collect();
    assert_eq!(peers, [("other", Some(crate::model::Mode::Strict))]);
    assert_eq!(pods(&snapshot), ["web=10.0.0.1"]);
}
