//! `meshctl` inspects the mesh agent of this node.

use std::path::Path;
use std::process::ExitCode;

use mesh_userspace::{agent, cli, datapath};

fn main() -> ExitCode {
    let check = |items: &mut Vec<_>| {
        let cgroup = datapath::check::cgroup2_mount().unwrap_or_else(|_missing| "/sys/fs/cgroup".into());
        items.extend(agent::needs(Path::new("/sys/fs/bpf/mesh"), &cgroup));
    };
    cli::main(cli::Local {
        check,
        explain: agent::explain_manifests,
        policies: agent::policies_of_manifests,
        analyze: |scope, mesh| Box::pin(agent::analyze(scope, mesh)),
    })
}
