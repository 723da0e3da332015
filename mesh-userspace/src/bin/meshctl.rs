//! `meshctl` inspects the mesh agent of this node.

use std::path::Path;
use std::process::ExitCode;

use mesh_userspace::{agent, cli, datapath};

fn main() -> ExitCode {
    cli::main(|items| {
        let cgroup = datapath::check::cgroup2_mount().unwrap_or_else(|_missing| "/sys/fs/cgroup".into());
        items.extend(agent::needs(Path::new("/sys/fs/bpf/mesh"), &cgroup));
    })
}
