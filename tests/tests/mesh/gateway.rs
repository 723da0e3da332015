//! Gateway API routes of a Service, in both planes.

use anyhow::Result;
use serde_json::Value;

use crate::world::{PORT, World, v4, v6};

/// A route of the service `both` to backends with weights.
fn route(backends: &[(&str, u32)]) -> String {
    let backends =
        backends.iter().map(|(name, weight)| format!("{{name: {name}, port: {PORT}, weight: {weight}}}"));
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: TCPRoute\nmetadata: {{name: split, namespace: default}}\nspec:\n  \
         parentRefs: [{{group: \"\", kind: Service, name: both}}]\n  rules: [{{backendRefs: [{}]}}]\n",
        backends.collect::<Vec<_>>().join(", ")
    )
}

fn splits(enrolled: bool) -> Result<()> {
    let world = World::start(enrolled)?;
    world.serve("http")?;
    let manifests = world.lab.manifests();
    manifests.apply("route.yaml", &route(&[("near", 3), ("far", 1)]))?;
    let targets = |count: usize| {
        move |services: &Value| {
            let mut services = services.as_array().into_iter().flatten();
            services.any(|service| {
                service["ports"][0]["rule"] == "default/split"
                    && service["ports"][0]["targets"].as_array().map(Vec::len) == Some(count)
            })
        }
    };
    world.agent_a.wait_for("services", "the split is known", targets(2))?;
    for target in [v4("both"), v6("both")] {
        let summary = world.client.connect(&[&target, "--count", "200"])?;
        let near = summary.by_name.get("near").copied().unwrap_or_default();
        // Six standard deviations: what is not behind the service otherwise gets three quarters of it.
        assert!(summary.failed == 0 && (113..=187).contains(&near), "{target}: {summary:?}");
        assert_eq!(summary.by_name.get("far"), Some(&(200 - near)), "{target}: {summary:?}");
    }
    manifests.apply("route.yaml", &route(&[("near", 1), ("far", 0), ("gone", 1)]))?;
    world.agent_a.wait_for("services", "a third backend is known", targets(3))?;
    let summary = world.client.connect(&[&v4("both"), "--count", "200"])?;
    // The kernel refuses; the agent has accepted by then, and resets.
    let error = if enrolled { "reset" } else { "refused" };
    let refused = summary.errors.get(error).copied().unwrap_or_default();
    assert!((58..=142).contains(&refused), "half of the connections are refused: {summary:?}");
    assert_eq!(summary.by_name.get("near"), Some(&(200 - refused)), "{summary:?}");
    Ok(())
}

#[test]
fn a_tcp_route_splits_the_connections_of_enrolled_clients() -> Result<()> {
    splits(true)
}

#[test]
fn a_tcp_route_splits_the_connections_of_everybody_else() -> Result<()> {
    splits(false)
}
