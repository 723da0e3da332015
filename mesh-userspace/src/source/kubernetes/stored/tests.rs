use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::resources::{Kind, decode_json};

/// One object of each watch's kind, with as much in it as is read.
const EXAMPLES: [(usize, &str, &str); 16] = [
    (0, "v1", r#"{"metadata":{"name":"shop","labels":{"istio.io/dataplane-mode":"ambient"}}}"#),
    (
        1,
        "v1",
        r#"{"metadata":{"name":"n","labels":{"topology.kubernetes.io/zone":"z"}},"spec":{"taints":[{"key":"k","effect":"NoExecute"}]},
        "status":{"addresses":[{"type":"InternalIP","address":"10.1.0.1"}]}}"#,
    ),
    (
        2,
        "v1",
        r#"{"metadata":{"name":"web","namespace":"shop","uid":"u","labels":{"app":"web"},"ownerReferences":[{"kind":"ReplicaSet","name":"web-7","apiVersion":"apps/v1","uid":"x","controller":true}]},
        "spec":{"nodeName":"n","serviceAccountName":"web","containers":[{"name":"c","ports":[{"name":"http","containerPort":80}]}]},
        "status":{"podIPs":[{"ip":"10.0.0.1"},{"ip":"fd00::1"}],"conditions":[{"type":"Ready","status":"True"}]}}"#,
    ),
    (
        3,
        "v1",
        r#"{"metadata":{"name":"other","namespace":"shop"},"spec":{"nodeName":"m","hostNetwork":true}}"#,
    ),
    (
        4,
        "v1",
        r#"{"metadata":{"name":"web","namespace":"shop"},"spec":{"type":"LoadBalancer","clusterIP":"10.96.0.1","clusterIPs":["10.96.0.1"],"ipFamilies":["IPv4"],
        "selector":{"app":"web"},"trafficDistribution":"PreferClose","externalTrafficPolicy":"Local","internalTrafficPolicy":"Local","healthCheckNodePort":30001,
        "sessionAffinity":"ClientIP","loadBalancerSourceRanges":["10.0.0.0/8"],"externalIPs":["192.0.2.1"],
        "ports":[{"name":"http","port":80,"targetPort":"http","nodePort":30000},{"name":"b","port":81,"protocol":"SCTP"},{"name":"c","port":82,"targetPort":8082}]},
        "status":{"loadBalancer":{"ingress":[{"ip":"192.0.2.2"}]}}}"#,
    ),
    (
        5,
        "discovery.k8s.io/v1",
        r#"{"metadata":{"name":"web-1","namespace":"shop","labels":{"kubernetes.io/service-name":"web"},"annotations":{"endpoints.kubernetes.io/last-change-trigger-time":"2026-01-01T00:00:00.5Z"}},
        "addressType":"IPv4","ports":[{"name":"http","port":80}],"endpoints":[{"addresses":["10.0.0.1"],"nodeName":"n","zone":"z",
        "conditions":{"ready":false,"serving":true,"terminating":true},"targetRef":{"kind":"Pod","name":"web","namespace":"shop"},"hints":{"forZones":[{"name":"z"}]}}]}"#,
    ),
    (
        6,
        "security.istio.io/v1",
        r#"{"metadata":{"name":"p","namespace":"shop"},"spec":{"selector":{"matchLabels":{"app":"web"}},"mtls":{"mode":"STRICT"},"portLevelMtls":{"80":{"mode":"PERMISSIVE"}}}}"#,
    ),
    (
        7,
        "security.istio.io/v1",
        r#"{"metadata":{"name":"a","namespace":"shop"},"spec":{"action":"DENY","rules":[{"from":[{"source":{"principals":["a"],"notIpBlocks":["10.0.0.0/8"]}}],
        "to":[{"operation":{"ports":["80"],"methods":["GET"]}}],"when":[{"key":"source.ip","values":["10.0.0.1"]}]}]}}"#,
    ),
    (
        8,
        "networking.istio.io/v1",
        r#"{"metadata":{"name":"d","namespace":"shop"},"spec":{"host":"web","subsets":[{"name":"one","labels":{"app":"web"}}],"trafficPolicy":{"tls":{"mode":"SIMPLE"},"loadBalancer":{"simple":"LEAST_REQUEST","warmup":{"duration":"30s","aggression":1.5},"localityLbSetting":{"distribute":[{"from":"r/*","to":{"r/*":100}}]}},
        "connectionPool":{"tcp":{"maxConnections":7,"connectTimeout":"0.250s","idleTimeout":"0s","tcpKeepalive":{"time":"7200s"}},"http":{"http1MaxPendingRequests":3}},
        "outlierDetection":{"consecutive5xxErrors":3,"interval":"1m","baseEjectionTime":"1h30m"},"portLevelSettings":[{"port":{"number":80},"loadBalancer":{"consistentHash":{"useSourceIp":true}}}]}}}"#,
    ),
    (
        9,
        "networking.istio.io/v1",
        r#"{"metadata":{"name":"v","namespace":"shop","creationTimestamp":"2026-01-01T00:00:00Z"},"spec":{"hosts":["web"],"tcp":[{"match":[{"port":80}],"route":[{"destination":{"host":"web","subset":"one","port":{"number":80}},"weight":9}]}],
        "tls":[{"match":[{"sniHosts":["web"],"port":443,"sourceLabels":{"app":"a"},"destinationSubnets":["10.0.0.0/8"]}],"route":[{"destination":{"host":"web"}}]}],
        "http":[{"match":[{"sourceNamespace":"shop"}],"timeout":"1.5s","retries":{"attempts":3,"perTryTimeout":"250ms","backoff":"30ms"},"fault":{"delay":{"percentage":{"value":12.5},"fixedDelay":"2s"},"abort":{"percentage":{"value":1},"httpStatus":503}},
        "mirrors":[{"destination":{"host":"web","subset":"one"},"percentage":{"value":10}}],"route":[{"destination":{"host":"web"}}]}]}}"#,
    ),
    (
        10,
        "networking.istio.io/v1",
        r#"{"metadata":{"name":"s","namespace":"shop"},"spec":{"hosts":["a.example"],"addresses":["192.0.2.9"],"location":"MESH_INTERNAL","resolution":"STATIC","exportTo":["."],
        "ports":[{"number":443,"name":"https","protocol":"HTTPS","targetPort":8443}],"endpoints":[{"address":"10.20.0.7","ports":{"https":9443},"labels":{"app":"a"},"locality":"r/z","weight":3,"serviceAccount":"a"}]}}"#,
    ),
    (
        11,
        "networking.istio.io/v1",
        r#"{"metadata":{"name":"w","namespace":"shop"},"spec":{"address":"10.20.0.8","ports":{"http":8080},"labels":{"app":"w"},"locality":"r/z/s","weight":2,"serviceAccount":"w"}}"#,
    ),
    (12, "networking.istio.io/v1", r#"{"metadata":{"name":"g","namespace":"shop"},"spec":{}}"#),
    (
        13,
        "gateway.networking.k8s.io/v1alpha2",
        r#"{"metadata":{"name":"t","namespace":"shop","generation":3},"spec":{"parentRefs":[{"group":"","kind":"Service","name":"web","port":80}],
        "rules":[{"name":"r","backendRefs":[{"name":"web","port":80,"weight":2}]}]},"status":{"parents":[{"controllerName":"x","extra":[1.5]}]}}"#,
    ),
    (
        14,
        "gateway.networking.k8s.io/v1alpha2",
        r#"{"metadata":{"name":"l","namespace":"shop"},"spec":{"parentRefs":[{"name":"gw"}],"hostnames":["a.example"],"rules":[{"backendRefs":[{"name":"web","port":80}]}]}}"#,
    ),
    (
        15,
        "gateway.networking.k8s.io/v1beta1",
        r#"{"metadata":{"name":"r","namespace":"shop"},"spec":{"from":[{"group":"gateway.networking.k8s.io","kind":"TCPRoute","namespace":"a"}],"to":[{"group":"","kind":"Service"}]}}"#,
    ),
];

fn examples() -> Vec<Told> {
    EXAMPLES
        .iter()
        .map(|(watch, version, text)| {
            // As `kube` hands them over.
            let kind = Kind::from(WATCHED[*watch].kind.to_owned());
            (*watch, decode_json(version, &kind, text).unwrap())
        })
        .collect()
}

fn owner() -> Owner {
    Owner::new(&NodeName::new("n"), "https://api:6443", Some(&[b"one".to_vec(), b"two".to_vec()]))
}

/// So long ago, in whole seconds of the clock.
fn ago(time: Duration) -> SystemTime {
    let since = (SystemTime::now() - time).duration_since(UNIX_EPOCH).unwrap();
    UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

fn minute_ago() -> SystemTime {
    ago(Duration::from_mins(1))
}

#[test]
fn every_kind_is_read_as_it_was_written() {
    assert!(EXAMPLES.iter().map(|(watch, ..)| *watch).eq(0..WATCHED.len()), "one of each");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made/state");
    assert!(read(&path, &owner()).unwrap().is_none());
    let objects = examples();
    let as_of = minute_ago();
    for _ in 0..2 {
        let size = write(&path, &owner(), as_of, &objects).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.len(), metadata.permissions().mode() & 0o777), (size, 0o600));
    }
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    let stored = read(&path, &owner()).unwrap().unwrap();
    assert_eq!((stored.as_of, stored.objects), (as_of, objects));
}

/// The lines as this version writes them. Where they differ, [`FORMAT`] counts up; `MESH_BLESS=1` writes them.
#[test]
fn the_format_counts_up_where_an_object_is_written_otherwise() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/source/kubernetes/stored/layout.jsonl");
    let mut text = format!("{FORMAT}\n");
    for (watch, object) in examples() {
        text.push_str(&serde_json::to_string(&Line::Object(watch, object)).unwrap());
        text.push('\n');
    }
    if std::env::var_os("MESH_BLESS").is_some() {
        fs::write(&file, &text).unwrap();
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), text, "count FORMAT up, and run with MESH_BLESS=1");
}

#[test]
fn nothing_is_taken_of_a_file_that_is_not_whole_or_not_ones_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    write(&path, &owner(), minute_ago(), &examples()).unwrap();
    let good = fs::read(&path).unwrap();
    let refused = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        read(&path, &owner()).unwrap_err().to_string()
    };
    for length in 0..good.len() {
        let error = refused(&good[..length]);
        assert!(error.starts_with("is spoilt"), "{length}: {error}");
    }
    for byte in 0..good.len() {
        let mut bad = good.clone();
        bad[byte] ^= 0x10;
        fs::write(&path, &bad).unwrap();
        // In gzip's head, and in deflate's blocks, there are bits that mean nothing: what is read is what was written, or nothing is.
        if let Ok(stored) = read(&path, &owner()) {
            assert_eq!(stored.unwrap().objects, examples(), "{byte}");
        }
    }
    let lines = |lines: &[String]| {
        let mut text = GzEncoder::new(Vec::new(), Compression::fast());
        text.write_all(lines.concat().as_bytes()).unwrap();
        text.finish().unwrap()
    };
    let as_of = minute_ago().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let head = serde_json::to_string(&Head { owner: owner(), as_of }).unwrap() + "\n";
    let object = serde_json::to_string(&Line::Object(0, examples().remove(0).1)).unwrap() + "\n";
    let end = |count| serde_json::to_string(&Line::End(count)).unwrap() + "\n";
    let cases = [
        (vec![head.clone(), object.clone()], "breaks off"),
        (vec![head.clone(), object.clone(), end(2)], "does not have all"),
        (vec![head.clone(), end(0), object.clone()], "goes on after its end"),
        (vec![head.clone(), object.replacen(":[0,", ":[99,", 1), end(1)], "a watch too many"),
        (vec![head.clone(), "{}\n".to_owned(), end(0)], "expected value"),
        (vec![head.clone(), "x".repeat(5 << 20)], "a line without an end"),
        (vec!["{}\n".to_owned()], "missing field"),
    ];
    for (text, wanted) in cases {
        let error = refused(&lines(&text));
        assert!(error.contains(wanted), "{wanted}: {error}");
    }
    fs::write(&path, &good).unwrap();
    let of = |change: fn(&mut Owner)| {
        let mut other = owner();
        change(&mut other);
        read(&path, &other).unwrap_err().to_string()
    };
    assert_eq!(of(|owner| owner.format += 1), "is of another version of the agent");
    assert_eq!(of(|owner| owner.agent.push('x')), "is of another version of the agent");
    assert_eq!(of(|owner| owner.node.push('x')), "is of another node");
    assert_eq!(of(|owner| owner.api_server.push('x')), "is of another API server");
    assert_eq!(of(|owner| owner.roots.clear()), "is of another API server by its certificate authority");
    assert_eq!(of(|owner| owner.watches.truncate(3)), "is of another build of the agent");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o620)).unwrap();
    assert!(matches!(read(&path, &owner()), Err(StoredError::Public)));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(MAX_FILE + 1).unwrap();
    assert!(matches!(read(&path, &owner()), Err(StoredError::TooLarge)));
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
    assert!(matches!(read(&path, &owner()), Err(StoredError::Read(_))), "no link is followed");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(matches!(read(&path, &owner()), Err(StoredError::Public)));
}

#[test]
fn what_is_older_than_a_day_is_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    write(&path, &owner(), ago(Duration::from_hours(23)), &examples()).unwrap();
    assert!(read(&path, &owner()).unwrap().is_some());
    write(&path, &owner(), SystemTime::now() + Duration::from_hours(1), &examples()).unwrap();
    assert!(read(&path, &owner()).unwrap().is_some(), "a clock that was put back");
    write(&path, &owner(), ago(Duration::from_hours(25)), &examples()).unwrap();
    assert_eq!(read(&path, &owner()).unwrap_err().to_string(), "is too old: 25 hours");
}

#[test]
fn a_cluster_is_told_by_the_roots_of_its_api_server() {
    let of = |roots: Option<&[&str]>| {
        let roots: Option<Vec<_>> =
            roots.map(|roots| roots.iter().map(|root| root.as_bytes().to_vec()).collect());
        Owner::new(&NodeName::new("n"), "https://api:6443", roots.as_deref())
    };
    assert_eq!(of(Some(&["two", "one", "two"])), owner());
    for other in [None, Some(&["one"] as &[_]), Some(&["onetwo"]), Some(&["one", "two", "three"])] {
        assert_ne!(of(other), owner(), "{other:?}");
    }
}

/// What keeping a large cluster costs. Run with `cargo test --release -p mesh-userspace -- --ignored --nocapture the_cost_of`.
#[test]
#[ignore = "a measurement, not a check"]
fn the_cost_of_fifty_thousand_pods() {
    let read_as = |watch: usize, version: &str, text: &str| {
        let kind = Kind::from(WATCHED[watch].kind.to_owned());
        (watch, decode_json(version, &kind, text).unwrap())
    };
    let mut objects = Vec::new();
    for pod in 0..50_000 {
        let (service, high, low) = (pod % 10_000, pod >> 8, pod & 255);
        let text = format!(
            r#"{{"metadata":{{"name":"svc-{service}-7f9c6d5b8d-{pod:05}","namespace":"ns-{}","uid":"{pod:08x}-0000-4000-8000-{pod:012x}",
            "labels":{{"app":"svc-{service}","pod-template-hash":"7f9c6d5b8d"}}}},"spec":{{"nodeName":"node-{}","serviceAccountName":"svc-{service}",
            "containers":[{{"name":"c","ports":[{{"name":"http","containerPort":8080}}]}}]}},
            "status":{{"podIPs":[{{"ip":"10.{}.{}.{low}"}}],"conditions":[{{"type":"Ready","status":"True"}}]}}}}"#,
            service % 100,
            pod % 500,
            128 + (high >> 8),
            high & 255,
        );
        objects.push(read_as(3, "v1", &text));
    }
    for service in 0..10_000 {
        let text = format!(
            r#"{{"metadata":{{"name":"svc-{service}","namespace":"ns-{}"}},"spec":{{"clusterIP":"10.96.{}.{}","clusterIPs":["10.96.{}.{}"],
            "selector":{{"app":"svc-{service}"}},"ports":[{{"name":"http","port":80,"targetPort":8080}}]}}}}"#,
            service % 100,
            service >> 8,
            service & 255,
            service >> 8,
            service & 255,
        );
        objects.push(read_as(4, "v1", &text));
        let endpoints: Vec<String> = (0..5)
            .map(|number| {
                let pod = service + number * 10_000;
                format!(
                    r#"{{"addresses":["10.{}.{}.{}"],"conditions":{{"ready":true}},"nodeName":"node-{}","zone":"z",
                    "targetRef":{{"kind":"Pod","name":"svc-{service}-7f9c6d5b8d-{pod:05}","namespace":"ns-{}"}}}}"#,
                    128 + (pod >> 16),
                    (pod >> 8) & 255,
                    pod & 255,
                    pod % 500,
                    service % 100,
                )
            })
            .collect();
        let text = format!(
            r#"{{"metadata":{{"name":"svc-{service}-x","namespace":"ns-{}","labels":{{"kubernetes.io/service-name":"svc-{service}"}}}},
            "addressType":"IPv4","ports":[{{"name":"http","port":8080}}],"endpoints":[{}]}}"#,
            service % 100,
            endpoints.join(","),
        );
        objects.push(read_as(5, "discovery.k8s.io/v1", &text));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let begun = std::time::Instant::now();
    let size = write(&path, &owner(), minute_ago(), &objects).unwrap();
    let (written, begun) = (begun.elapsed(), std::time::Instant::now());
    let stored = read(&path, &owner()).unwrap().unwrap();
    let took = begun.elapsed();
    assert_eq!(stored.objects.len(), objects.len());
    eprintln!("{} objects: {size} bytes, written in {written:?}, read in {took:?}", objects.len());
}
