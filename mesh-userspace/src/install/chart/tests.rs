use std::collections::BTreeSet;

use serde_json::json;

use super::*;

/// The values of `meshctl install`.
fn rendered(sets: &[&str]) -> Result<Rendered, ChartError> {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    let values = Values::new(crate::install::own_values(), &[], &sets)?;
    render(&values, &Target::default())
}

/// Written anew with `MESH_UPDATE=1`.
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
    assert!(has(&[], "--kube-proxy-replacement=false"));
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
    let is_it = |kind: &str, name: &str| kind == "Role" && name == "mesh-ca";
    let role = own.manifests.iter().find(|manifest| is_it(manifest.kind(), manifest.name())).unwrap();
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

#[test]
fn a_cluster_that_is_too_old_is_refused_in_a_line() {
    let values = Values::new(json!({}), &[], &[]).unwrap();
    let on = |minor| render(&values, &Target { kubernetes: (1, minor), ..Target::default() });
    let error = on(24).unwrap_err().to_string();
    assert!(
        error.starts_with("the API server is Kubernetes 1.24, and the mesh needs 1.25 or later"),
        "{error}"
    );
    on(25).unwrap();
    // Helm has it from the chart.
    assert!(CHART.contains(&format!("kubeVersion: \">={}.{}.0-0\"", OLDEST.0, OLDEST.1)));
}

/// What the code asks for and what the shipped roles allow are one list.
#[test]
fn the_roles_allow_what_is_asked_for_and_nothing_else() {
    use crate::kubernetes::permissions::{Where, Who, permissions};
    let rendered = rendered(&[]).unwrap();
    let roles = [
        (Who::Agent, Where::Cluster, "ClusterRole", "mesh-agent"),
        (Who::Agent, Where::Own, "Role", "mesh-agent"),
        (Who::Ca, Where::Cluster, "ClusterRole", "mesh-ca"),
    ];
    for (who, place, kind, name) in roles {
        let role = rendered.manifests.iter().find(|one| one.kind() == kind && one.name() == name).unwrap();
        let words = |rule: &Value, key: &str| -> Vec<String> {
            rule[key].as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
        };
        let mut allowed = BTreeSet::new();
        for rule in role.object["rules"].as_array().unwrap() {
            for (group, resource) in words(rule, "apiGroups")
                .iter()
                .flat_map(|group| words(rule, "resources").into_iter().map(move |one| (group.clone(), one)))
            {
                allowed.extend(
                    words(rule, "verbs").into_iter().map(|verb| (group.clone(), resource.clone(), verb)),
                );
            }
        }
        let asked: BTreeSet<_> = permissions()
            .iter()
            .filter(|one| one.who == who && one.place == place)
            .flat_map(|one| {
                one.verbs
                    .iter()
                    .map(|verb| (one.group.to_owned(), one.resource.to_owned(), (*verb).to_owned()))
            })
            .collect();
        assert_eq!(allowed, asked, "{kind} {name}");
    }
}

/// Every object is one of the Kubernetes API's own type, without a field that the type does not have.
#[test]
fn every_object_is_of_its_type() {
    use k8s_openapi::api::{
        apps::v1 as apps, core::v1 as core, networking::v1 as networking, rbac::v1 as rbac,
    };
    fn same<T: serde::de::DeserializeOwned + serde::Serialize>(object: &Value) -> Vec<String> {
        let typed: T = serde_json::from_value(object.clone()).unwrap();
        let again = serde_json::to_value(typed).unwrap();
        crate::install::differences(object, &again)
    }
    let variants: [&[&str]; 3] = [
        &[],
        &[
            "ca.existingSecret=cacerts,kubernetes.host=10.0.0.1,image.pullSecrets={a},agent.resources.limits.memory=1Gi",
        ],
        &[
            "cni.enabled=false,agent.workers=2,agent.podLabels.a=b,agent.podAnnotations.c=d,ca.podAnnotations.e=f",
        ],
    ];
    for sets in variants {
        for Manifest { object, .. } in rendered(sets).unwrap().manifests {
            let different = match object["kind"].as_str().unwrap() {
                "Namespace" => same::<core::Namespace>(&object),
                "ServiceAccount" => same::<core::ServiceAccount>(&object),
                "Secret" => same::<core::Secret>(&object),
                "ConfigMap" => same::<core::ConfigMap>(&object),
                "Service" => same::<core::Service>(&object),
                "Deployment" => same::<apps::Deployment>(&object),
                "DaemonSet" => same::<apps::DaemonSet>(&object),
                "NetworkPolicy" => same::<networking::NetworkPolicy>(&object),
                "ClusterRole" => same::<rbac::ClusterRole>(&object),
                "ClusterRoleBinding" => same::<rbac::ClusterRoleBinding>(&object),
                "Role" => same::<rbac::Role>(&object),
                "RoleBinding" => same::<rbac::RoleBinding>(&object),
                other => panic!("{other} has no type here"),
            };
            assert_eq!(different, Vec::<String>::new(), "{} {}", object["kind"], object["metadata"]["name"]);
        }
    }
}
