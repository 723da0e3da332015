//! `meshctl` inspects the mesh agent of this node.

use std::process::ExitCode;

use mesh_userspace::cli;

fn main() -> ExitCode {
    // The kernel plane's own checks are added where the data path is.
    cli::main(|_items| {})
}
