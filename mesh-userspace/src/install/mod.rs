//! The mesh on a cluster: what is installed, how it comes there, whether it is there as it should be, how it goes.
//!
//! All of it comes from the chart in deploy/chart/mesh, which is embedded. What was installed with which values is kept in
//! the `ConfigMap` `mesh-install`, so that a later look knows what to expect. Each command can be ended at any point and
//! given again: it goes on with what it finds.

mod apply;
mod args;
pub mod chart;
mod cluster;
mod compare;
mod error;
mod pods;
mod record;
mod routes;
mod uninstall;
mod verify;

use std::io::Write;

use serde_json::{Value, json};

use self::chart::{NAMESPACE, Rendered, Target, Values, render};
use self::cluster::Cluster;
#[cfg(test)]
use self::compare::differences;

pub use self::args::{ClusterArgs, InstallArgs, UninstallArgs, ValueArgs, VerifyArgs};
pub use self::error::InstallError;
pub use self::verify::{NodeFinding, ObjectFinding, ObjectState, VerifyReport};

/// Who writes what is applied, as the API server keeps it with each field.
const FIELD_MANAGER: &str = "meshctl";
/// What has all of a mesh's objects, and nothing else.
const SELECTOR: &str = "app.kubernetes.io/part-of=mesh,app.kubernetes.io/instance=mesh";
/// The agents.
const AGENT: &str = "mesh-agent";
/// The authority.
const CA: &str = "mesh-ca";

/// What `meshctl install` sets before anybody else: unlike Helm it keeps nothing in the namespace, so that it can make it.
pub fn own_values() -> Value {
    json!({"namespace": {"create": true}})
}

/// The manifests as a file for `kubectl apply`.
pub fn manifests(rendered: &Rendered) -> String {
    format!(
        "# Rendered from deploy/chart/mesh; `meshctl install --dry-run` prints the same. Do not edit: change the chart.\n{}",
        rendered.yaml()
    )
}

fn values(given: &ValueArgs) -> Result<Values, InstallError> {
    Ok(Values::new(own_values(), &given.values, &given.set)?)
}

/// `meshctl install`: returns whether all of it came up in time.
///
/// # Errors
/// The values are wrong, or the API server refuses something.
pub async fn install(args: &InstallArgs, out: &mut dyn Write) -> Result<bool, InstallError> {
    let values = values(&args.values)?;
    let target = Target { namespace: args.cluster.namespace().to_owned(), ..Target::default() };
    if args.dry_run {
        // What is wrong with the values shows here as it does there.
        out.write_all(manifests(&render(&values, &target)?).as_bytes())?;
        return Ok(true);
    }
    let cluster = Cluster::connect(&args.cluster).await?;
    let target = Target { kubernetes: cluster.version().await?, ..target };
    let rendered = render(&values, &target)?;
    record::refuse_other_cni(&cluster, &values).await?;
    if let Some(warning) = unreachable(&values) {
        writeln!(out, "warning: {warning}")?;
    }
    apply::install(&cluster, &rendered, &values, args, out).await
}

/// What the agents might wait for in vain.
fn unreachable(values: &Values) -> Option<&'static str> {
    let values = values.document();
    let alone = values["kubeProxyReplacement"] == true && values["kubernetes"]["host"] == "";
    alone.then_some(
        "kubeProxyReplacement=true without kubernetes.host: where no kube-proxy runs, agents cannot reach the API server at its \
         service's address before they serve it",
    )
}

/// `meshctl verify-install`.
///
/// # Errors
/// The API server cannot be asked.
pub async fn verify(args: &VerifyArgs) -> Result<VerifyReport, InstallError> {
    let cluster = Cluster::connect(&args.cluster).await?;
    let (values, service) = record::values(&cluster, &args.values).await?;
    let target =
        Target { kubernetes: cluster.version().await?, namespace: cluster.namespace().to_owned(), service };
    verify::verify(&cluster, &render(&values, &target)?, args.timeout).await
}

/// `meshctl uninstall`: returns whether nothing is left.
///
/// # Errors
/// The API server refuses something.
pub async fn uninstall(args: &UninstallArgs, out: &mut dyn Write) -> Result<bool, InstallError> {
    let cluster = Cluster::connect(&args.cluster).await?;
    uninstall::uninstall(&cluster, args, out).await
}
