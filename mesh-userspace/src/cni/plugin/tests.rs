//! The plugin as a runtime calls it: environment and stdin in, result out, with an agent that the test plays.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::cni::Known;

/// Answers one after the other, the last again and again; `None`: nobody is there.
struct Played {
    answers: RefCell<VecDeque<Option<CniAnswer>>>,
    asked: RefCell<Vec<CniRequest>>,
    known: Result<Option<Known>, ()>,
}

impl Played {
    fn new(answers: impl IntoIterator<Item = Option<CniAnswer>>) -> Self {
        let answers = RefCell::new(answers.into_iter().collect());
        Self { answers, asked: RefCell::default(), known: Ok(None) }
    }
}

fn away() -> AwayError {
    AwayError::NoAgent { path: "/run/mesh/meshd.sock".into(), source: io::ErrorKind::NotFound.into() }
}

impl Surroundings for &Played {
    async fn ask(&self, request: &CniRequest) -> Result<CniAnswer, AwayError> {
        self.asked.borrow_mut().push(request.clone());
        let answer = {
            let mut answers = self.answers.borrow_mut();
            let next = if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() };
            next.flatten()
        };
        if let (Some(CniAnswer::Pending { .. }), CniRequest::Add { wait_ms, .. }) = (&answer, request) {
            sleep(Duration::from_millis((*wait_ms).min(4000))).await;
        }
        answer.ok_or_else(away)
    }

    async fn health(&self) -> Result<(), AwayError> {
        self.ask(&CniRequest::Gc { network: String::new(), valid: Vec::new() }).await.map(drop)
    }

    fn known(&self) -> io::Result<Option<Known>> {
        self.known.clone().map_err(|()| io::Error::other("no JSON"))
    }
}

const RESULT: &str = r#"{"cniVersion":"1.0.0","big":123456789012345678901234567890,"f":1.10,
  "interfaces":[{"name":"cni0"},{"name":"veth1","sandbox":""},{"name":"eth0","mac":"aa","sandbox":"/n"}],
  "ips":[{"address":"10.244.1.5/24","gateway":"10.244.1.1","interface":2},{"address":"10.9.9.9/24","interface":0},
         {"address":"fd00::5/64","interface":2}],"routes":[{"dst":"0.0.0.0/0","advmss":1}],"dns":{},"unknown":[null]}"#;

const ARGS: &str =
    "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u-1";

type Vars = HashMap<String, OsString>;

fn vars(verb: &str) -> Vars {
    let all = [
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/dev/null"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", ARGS),
        ("CNI_PATH", "/opt/cni/bin"),
    ];
    all.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect()
}

fn config(version: &str, more: &str) -> String {
    format!(r#"{{"cniVersion":"{version}","name":"net","type":"mesh-cni"{more}}}"#)
}

fn with_result(version: &str) -> String {
    config(version, &format!(r#","prevResult":{RESULT}"#))
}

async fn run(vars: &Vars, stdin: &[u8], agent: &Played) -> Outcome {
    call(&|name: &str| vars.get(name).cloned(), stdin, |_| agent).await
}

fn code(outcome: &Outcome) -> Option<u64> {
    assert_eq!(outcome.said.is_err(), outcome.stdout.starts_with(b"{") && field(outcome, "code").is_u64());
    field(outcome, "code").as_u64()
}

fn field(outcome: &Outcome, name: &str) -> Value {
    serde_json::from_slice::<Value>(&outcome.stdout).map(|result| result[name].clone()).unwrap_or_default()
}

#[expect(clippy::unnecessary_wraps, reason = "as the answers are written in the tables")]
fn pending(may_pass: bool) -> Option<CniAnswer> {
    Some(CniAnswer::Pending { reason: "the pod is not known".to_owned(), may_pass })
}

#[tokio::test(start_paused = true)]
async fn add_passes_the_result_on_as_it_came() {
    for version in VERSIONS {
        for answer in [CniAnswer::Enrolled, CniAnswer::Passed] {
            let agent = Played::new([Some(answer)]);
            let outcome = run(&vars("ADD"), with_result(version).as_bytes(), &agent).await;
            assert!(outcome.said.is_ok(), "{outcome:?}");
            assert_eq!(String::from_utf8(outcome.stdout).unwrap(), RESULT);
            let asked = agent.asked.borrow();
            let [CniRequest::Add { attachment, .. }] = &asked[..] else { panic!("{asked:?}") };
            assert_eq!(attachment.addresses, ["10.244.1.5", "fd00::5"].map(|a| a.parse::<IpAddr>().unwrap()));
            assert_eq!((&*attachment.pod.namespace, &*attachment.pod.name), ("shop", "web-0"));
            assert_eq!((&*attachment.pod.uid, &*attachment.network), ("u-1", "net"));
            assert_eq!((&*attachment.id.container_id, &*attachment.id.ifname), ("c1", "eth0"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_mistake_has_its_code() {
    let good = with_result("1.1.0");
    let set = |verb: &str, name: &str, value: Option<&str>| {
        let mut vars = vars(verb);
        vars.remove(name);
        vars.extend(value.map(|value| (name.to_owned(), value.into())));
        vars
    };
    let mut not_utf8 = vars("ADD");
    not_utf8.insert("CNI_ARGS".into(), OsString::from_vec(vec![0xFF, b'=']));
    let own = set("ADD", "CNI_NETNS", Some("/proc/self/ns/net"));
    let result = |result: &str| config("1.0.0", &format!(r#","prevResult":{result}"#));
    let cases: Vec<(&str, Vars, String, u64)> = vec![
        ("no command", set("ADD", "CNI_COMMAND", None), good.clone(), 4),
        ("unknown command", vars("add"), good.clone(), 4),
        ("no container", set("ADD", "CNI_CONTAINERID", None), good.clone(), 4),
        ("bad container", set("ADD", "CNI_CONTAINERID", Some("../../etc")), good.clone(), 4),
        ("bad container of DEL", set("DEL", "CNI_CONTAINERID", Some("-x")), good.clone(), 4),
        ("no interface", set("ADD", "CNI_IFNAME", Some("")), good.clone(), 4),
        ("bad interface", set("ADD", "CNI_IFNAME", Some("a/b")), good.clone(), 4),
        ("long interface", set("ADD", "CNI_IFNAME", Some("a234567890123456")), good.clone(), 4),
        ("no netns", set("ADD", "CNI_NETNS", None), good.clone(), 4),
        ("no netns for CHECK", set("CHECK", "CNI_NETNS", None), good.clone(), 4),
        ("netns that is not there", set("ADD", "CNI_NETNS", Some("/none")), good.clone(), 4),
        ("the node's netns", own, good.clone(), 4),
        ("args without =", set("ADD", "CNI_ARGS", Some("K8S_POD_NAME")), good.clone(), 4),
        (
            "args without UID",
            set("ADD", "CNI_ARGS", Some("K8S_POD_NAMESPACE=a;K8S_POD_NAME=b")),
            good.clone(),
            4,
        ),
        (
            "args without name",
            set("ADD", "CNI_ARGS", Some("K8S_POD_NAMESPACE=a;K8S_POD_UID=b")),
            good.clone(),
            4,
        ),
        (
            "args with a path",
            set("ADD", "CNI_ARGS", Some("K8S_POD_NAMESPACE=a;K8S_POD_NAME=../b;K8S_POD_UID=c")),
            good.clone(),
            4,
        ),
        ("args that are no text", not_utf8, good.clone(), 4),
        ("no stdin", vars("ADD"), String::new(), 6),
        ("no JSON", vars("DEL"), "{".to_owned(), 6),
        ("no object", vars("GC"), "[]".to_owned(), 7),
        ("no version", vars("ADD"), "{}".to_owned(), 1),
        ("old version", vars("ADD"), with_result("0.2.0"), 1),
        ("new version", vars("STATUS"), config("2.0.0", ""), 1),
        ("CHECK too early", vars("CHECK"), with_result("0.3.1"), 1),
        ("GC too early", vars("GC"), config("1.0.0", r#","cni.dev/valid-attachments":[]"#), 1),
        ("STATUS too early", vars("STATUS"), config("1.0.0", ""), 1),
        ("no name", vars("DEL"), r#"{"cniVersion":"1.0.0","type":"mesh-cni"}"#.to_owned(), 7),
        ("bad name", vars("DEL"), r#"{"cniVersion":"1.0.0","name":"a b"}"#.to_owned(), 7),
        ("bad field", vars("DEL"), config("1.0.0", r#","timeoutSeconds":"30""#), 7),
        ("no time", vars("DEL"), config("1.0.0", r#","timeoutSeconds":0"#), 7),
        ("too much time", vars("DEL"), config("1.0.0", r#","timeoutSeconds":1000"#), 7),
        ("no prevResult", vars("ADD"), config("1.0.0", ""), 7),
        ("null prevResult", vars("ADD"), result("null"), 7),
        ("no prevResult for CHECK", vars("CHECK"), config("1.0.0", ""), 7),
        ("prevResult that is none", vars("ADD"), result("7"), 7),
        ("no address", vars("ADD"), result(r#"{"ips":[{"address":"ten"}]}"#), 7),
        ("no such interface", vars("ADD"), result(r#"{"ips":[{"address":"10.0.0.1/8","interface":3}]}"#), 7),
        ("GC of what", vars("GC"), config("1.1.0", ""), 7),
        ("GC of nonsense", vars("GC"), config("1.1.0", r#","cni.dev/valid-attachments":7"#), 7),
    ];
    for (name, vars, stdin, wanted) in cases {
        let agent = Played::new([Some(CniAnswer::Enrolled)]);
        let outcome = run(&vars, stdin.as_bytes(), &agent).await;
        assert_eq!(code(&outcome), Some(wanted), "{name}: {outcome:?}");
        assert!(agent.asked.borrow().is_empty(), "{name}");
        let version = field(&outcome, "cniVersion");
        assert!(VERSIONS.contains(&version.as_str().unwrap()), "{name}: {version}");
        assert!(field(&outcome, "msg").is_string(), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn add_waits_and_then_decides() {
    type Case = (&'static str, Vec<Option<CniAnswer>>, Result<Option<Known>, ()>, Option<u64>, (u64, u64));
    let known = |namespace: &str| Known {
        enrolled_namespaces: [namespace.to_owned()].into_iter().collect(),
        ..Known::default()
    };
    let refused = || Some(CniAnswer::Refused { reason: "no".to_owned() });
    let cases: Vec<Case> = vec![
        ("back in time", vec![None, None, Some(CniAnswer::Enrolled)], Ok(None), None, (0, 1)),
        (
            "known late",
            vec![pending(false), pending(true), Some(CniAnswer::Enrolled)],
            Ok(None),
            None,
            (8, 9),
        ),
        ("never known, enrolled namespace", vec![pending(false)], Ok(None), Some(11), (29, 30)),
        ("never known, other namespace", vec![pending(true)], Ok(Some(known("shop"))), None, (29, 30)),
        ("away, enrolled namespace", vec![None], Ok(Some(known("shop"))), Some(11), (29, 30)),
        ("away, other namespace", vec![None], Ok(Some(known("other"))), None, (29, 30)),
        ("never here", vec![None], Ok(None), None, (29, 30)),
        ("away, file broken", vec![None], Err(()), Some(11), (29, 30)),
        ("refused", vec![pending(true), refused()], Ok(None), Some(100), (4, 5)),
    ];
    for (name, answers, known, wanted, (from, to)) in cases {
        let mut agent = Played::new(answers);
        agent.known = known;
        let started = Instant::now();
        let outcome = run(&vars("ADD"), with_result("1.0.0").as_bytes(), &agent).await;
        assert_eq!(outcome.said.is_err().then(|| code(&outcome)).flatten(), wanted, "{name}: {outcome:?}");
        if wanted.is_none() {
            assert_eq!(outcome.stdout, RESULT.as_bytes(), "{name}");
        }
        let took = started.elapsed();
        assert!((Duration::from_secs(from)..=Duration::from_secs(to)).contains(&took), "{name}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_other_commands() {
    let gc = r#","cni.dev/valid-attachments":[{"containerID":"c1","ifname":"eth0"}]"#;
    let refused = Some(CniAnswer::Refused { reason: "broken".to_owned() });
    let done = Some(CniAnswer::Done);
    let cases: Vec<(&str, &str, String, Option<CniAnswer>, Option<u64>)> = vec![
        ("DEL", "DEL", config("0.3.0", ""), done.clone(), None),
        ("DEL without agent", "DEL", with_result("1.1.0"), None, None),
        ("CHECK", "CHECK", with_result("0.4.0"), done.clone(), None),
        ("CHECK of a broken one", "CHECK", with_result("1.0.0"), refused, Some(101)),
        ("CHECK without agent", "CHECK", with_result("1.0.0"), None, Some(11)),
        ("GC", "GC", config("1.1.0", gc), done.clone(), None),
        ("GC of all", "GC", config("1.1.0", r#","cni.dev/valid-attachments":null"#), done.clone(), None),
        ("GC without agent", "GC", config("1.1.0", gc), None, Some(11)),
        ("STATUS", "STATUS", config("1.1.0", ""), done, None),
        ("STATUS without agent", "STATUS", config("1.1.0", ""), None, None),
    ];
    for (name, verb, stdin, answer, wanted) in cases {
        let agent = Played::new([answer]);
        let outcome = run(&vars(verb), stdin.as_bytes(), &agent).await;
        match wanted {
            None => assert_eq!((outcome.stdout, outcome.said.is_ok()), (Vec::new(), true), "{name}"),
            Some(wanted) => assert_eq!(code(&outcome), Some(wanted), "{name}: {outcome:?}"),
        }
    }
    // Without an agent and without what it knew, ADD cannot decide.
    let agent = Played { known: Err(()), ..Played::new([None]) };
    let outcome = run(&vars("STATUS"), config("1.1.0", "").as_bytes(), &agent).await;
    assert_eq!(code(&outcome), Some(50), "{outcome:?}");
    // DEL comes without a namespace, and its arguments are nobody's business.
    let mut bare = vars("DEL");
    bare.remove("CNI_NETNS");
    bare.insert("CNI_ARGS".into(), "K8S_POD_NAMESPACE=a".into());
    let agent = Played::new([Some(CniAnswer::Done)]);
    assert!(run(&bare, config("1.0.0", "").as_bytes(), &agent).await.said.is_ok());
    let id = AttachmentId { container_id: "c1".into(), ifname: "eth0".into() };
    assert_eq!(*agent.asked.borrow(), [CniRequest::Del(id)]);
}

#[tokio::test(start_paused = true)]
async fn versions_are_told_to_everybody() {
    for (stdin, version) in
        [(r#"{"cniVersion":"1.0.0"}"#, "1.0.0"), (r#"{"cniVersion":"0.1.0"}"#, "0.1.0"), ("", "1.1.0")]
    {
        let agent = Played::new([None]);
        let only: Vars = [("CNI_COMMAND".to_owned(), "VERSION".into())].into();
        let outcome = run(&only, stdin.as_bytes(), &agent).await;
        assert_eq!(field(&outcome, "cniVersion"), version);
        assert_eq!(field(&outcome, "supportedVersions"), serde_json::json!(VERSIONS));
        assert!(outcome.said.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_pod_of_kubernetes_passes() {
    let agent = Played::new([None]);
    for args in ["", "IgnoreUnknown=1", "FOO=bar;;MAC=aa"] {
        let mut vars = vars("ADD");
        vars.insert("CNI_ARGS".into(), args.into());
        let outcome = run(&vars, with_result("0.3.1").as_bytes(), &agent).await;
        assert_eq!(outcome.stdout, RESULT.as_bytes(), "{args}");
        vars.insert("CNI_COMMAND".into(), "CHECK".into());
        assert!(run(&vars, with_result("0.4.0").as_bytes(), &agent).await.said.is_ok());
    }
    assert!(agent.asked.borrow().is_empty());
}

#[test]
fn the_plugin_is_known_by_its_name() {
    for (argv0, is) in [
        ("mesh-cni", true),
        ("/opt/cni/bin/mesh-cni", true),
        ("meshd", false),
        ("", false),
        ("mesh-cni2", false),
    ] {
        assert_eq!(is_plugin(Some(OsStr::new(argv0))), is, "{argv0}");
    }
    assert!(!is_plugin(None));
}

/// JSON that resembles a configuration, and worse.
fn stdin() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        Just(Value::from("1.1.0")),
        Just(Value::from("10.0.0.1/24")),
    ];
    let value = leaf.prop_recursive(4, 32, 6, |inner| {
        let key = prop_oneof![
            Just("prevResult".to_owned()),
            Just("ips".to_owned()),
            Just("interfaces".to_owned()),
            Just("interface".to_owned()),
            Just("address".to_owned()),
            Just("name".to_owned()),
            Just("containerID".to_owned()),
            ".{0,8}",
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::hash_map(key, inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    });
    let config = (value.clone(), value.clone(), value.clone()).prop_map(|(result, attachments, other)| {
        let config = serde_json::json!({
            "cniVersion": "1.1.0", "name": "net", "prevResult": result, "x": other,
            "cni.dev/valid-attachments": attachments,
        });
        config.to_string().into_bytes()
    });
    prop_oneof![
        config,
        value.prop_map(|value| value.to_string().into_bytes()),
        prop::collection::vec(any::<u8>(), 0..200),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_panics_and_every_failure_is_an_error_result(
        verb in prop_oneof![
            Just("ADD"), Just("DEL"), Just("CHECK"), Just("GC"), Just("STATUS"), Just("VERSION"), Just("")
        ],
        args in prop::collection::vec(any::<u8>(), 0..60),
        container in ".{0,20}",
        good in any::<bool>(),
        stdin in stdin(),
    ) {
        let mut vars = vars(verb);
        if !good {
            vars.insert("CNI_ARGS".into(), OsString::from_vec(args));
            vars.insert("CNI_CONTAINERID".into(), container.into());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let agent = Played::new([Some(CniAnswer::Enrolled)]);
        let outcome = runtime.block_on(run(&vars, &stdin, &agent));
        match &outcome.said {
            Ok(_) if verb == "ADD" => {
                // What was passed on is what came.
                let came: Value = serde_json::from_slice(&stdin).unwrap();
                prop_assert_eq!(serde_json::from_slice::<Value>(&outcome.stdout).unwrap(), came["prevResult"].clone());
            }
            Ok(_) => {}
            Err(_) => prop_assert!(code(&outcome).is_some_and(|code| code > 0)),
        }
    }
}
