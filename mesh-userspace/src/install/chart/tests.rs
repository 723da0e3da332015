use std::collections::BTreeSet;

use serde_json::json;

use super::*;

/// The values of `meshctl install`.
fn rendered(sets: &[&str]) -> Result<Rendered, ChartError> {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    let values = Values::new(crate::install::own_values(), &[], &sets)?;
    render(&values, &Target::default())
}

/// Written anew with MESH_UPDATE=1.
#[test]
fn the_plain_manifests_are_what_the_chart_renders() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/mesh.yaml");
    let expected = crate::install::manifests(&rendered(&[]).unwrap());
    if std::env::var_os("MESH_UPDATE").is_some() {
        std::fs::write(path, &expected).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == expected,
        "deploy/mesh.yaml is not what the chart renders: run this test with MESH_UPDATE=1"
    );
}

fn names(rendered: &Rendered) -> BTreeSet<String> {
    rendered.manifests.iter().map(|manifest| format!("{}/{}", manifest.kind(), manifest.name())).collect()
}

#[test]
fn values_change_what_they_say() {
    let plain = rendered(&[]).unwrap();
    assert_eq!(plain.manifests[0].kind(), "Namespace");
    assert_eq!(plain.manifests.last().unwrap().kind(), "DaemonSet");
    let agent = |sets: &[&str]| {
        let rendered = rendered(sets).unwrap();
        rendered.manifests.into_iter().find(|manifest| manifest.kind() == "DaemonSet").unwrap().object
    };
    let pod = |sets: &[&str]| agent(sets)["spec"]["template"]["spec"].clone();
    let args = |sets: &[&str]| pod(sets)["containers"][0]["args"].clone();
    let has = |sets: &[&str], arg: &str| args(sets).as_array().unwrap().contains(&json!(arg));
    assert!(has(&[], "--kube-proxy-replacement=auto"));
    assert!(has(&["kubeProxyReplacement=true"], "--kube-proxy-replacement=true"));
    assert!(has(&["agent.workers=3"], "--workers=3") && !has(&[], "--workers=0"));
    assert!(has(&["agent.metrics.address=::"], "--metrics-addr=[::]:15020"));
    assert!(has(&["trustDomainAliases={a.b,c.d}"], "--trust-domain-aliases=a.b,c.d"));
    assert!(has(
        &["ca.enabled=false", "ca.address=istiod.istio-system.svc:15012"],
        "--ca-addr=istiod.istio-system.svc:15012"
    ));
    assert_eq!(pod(&["agent.drainSeconds=60"])["terminationGracePeriodSeconds"], 75);
    assert_eq!(
        pod(&["image.digest=sha256:".to_owned() + &"a".repeat(64)].each_ref().map(String::as_str))["containers"]
            [0]["image"],
        format!("mesh@sha256:{}", "a".repeat(64))
    );
    let env = pod(&["kubernetes.host=10.0.0.1"])["containers"][0]["env"].clone();
    assert!(
        env.as_array().unwrap().contains(&json!({"name": "KUBERNETES_SERVICE_PORT", "value": "6443"})),
        "{env}"
    );
    let without: BTreeSet<String> = names(&plain)
        .difference(&names(&rendered(&["ca.networkPolicy.enabled=false"]).unwrap()))
        .cloned()
        .collect();
    assert_eq!(without, BTreeSet::from(["NetworkPolicy/mesh-ca".to_owned()]));
    let own = rendered(&["ca.existingSecret=cacerts"]).unwrap();
    assert!(!names(&own).contains("Secret/mesh-ca"));
    let role = own.manifests.iter().find(|manifest| manifest.kind() == "Role").unwrap();
    assert_eq!(
        role.object["rules"][0],
        json!({"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["cacerts"], "verbs": ["get"]})
    );
    assert!(names(&rendered(&["podMonitor.enabled=true"]).unwrap()).contains("PodMonitor/mesh-agent"));
    let error = rendered(&["ca.enabled=false"]).unwrap_err();
    assert!(
        std::error::Error::source(&error).unwrap().to_string().contains("say with ca.address"),
        "{error:?}"
    );
    assert!(plain.notes.contains("istio.io/dataplane-mode=ambient"));
}

#[test]
fn older_api_servers_get_what_they_know() {
    let values = Values::new(json!({}), &[], &[]).unwrap();
    let render =
        |minor| render(&values, &Target { kubernetes: (1, minor), ..Target::default() }).unwrap().yaml();
    assert!(render(30).contains("appArmorProfile") && !render(30).contains("container.apparmor"));
    assert!(!render(29).contains("appArmorProfile") && render(29).contains("container.apparmor"));
}
