//! The step that shows who may connect to whom.

use anyhow::{Context, Result, ensure};
use mesh_tests::{SECONDS_10, eventually, peer::Summary};

use super::commands;
use super::play::{A_FEW, DETAILS, at};
use super::stage::Stage;

/// The client that no policy names.
const OTHER: &str = "ratings-v1";

pub(super) fn authorization(stage: &Stage, _name: &str) -> Result<()> {
    let target = at(DETAILS);
    let from = |pod: &str| -> Result<Summary> {
        commands::connect(&stage.screen, &stage.within, pod, &target, &A_FEW)
    };
    stage.apply("details-viewer-dry-run.yaml", "details-viewer.yaml")?;
    commands::all_served(&from(OTHER)?, 20)?;
    let [_, details] = &stage.agents;
    let marked = |flow: &serde_json::Value| flow["policy"]["dry_run"].is_string();
    details.wait_flows(20, "flows that the policy would have refused", marked)?;
    stage
        .screen
        .good("a dry run: ratings are served, and 20 flows say that the policy would have refused them");

    stage.apply("details-viewer.yaml", "details-viewer.yaml")?;
    let refused = from(OTHER)?;
    ensure!(refused.ok == 0, "ratings should be refused, and: {}", commands::told(&refused));
    commands::all_served(&from("productpage-v1")?, 20)?;
    stage.screen.good("in force: the product page is served, ratings are refused");
    let flow = eventually(SECONDS_10, "the refusal is recorded", || {
        let flows = details.flows().ok()?;
        flows.into_iter().find(|flow| flow["outcome"] == "refused_policy")
    })?;
    let error = flow["error"].as_str().context("a refusal has its reason")?;
    stage.screen.good(format!("and the flow says why: {error}"));
    stage.delete("details-viewer.yaml")
}
