//! Makes the socket calls that a script names, inside a pod of a lab, and prints what the application saw of each.
//!
//! A script is one call a line (or between semicolons), in the order in which they are made:
//!
//! ```text
//! socket udp; connect udp.a; send hello; recvmsg
//! y: socket tcp; y: bind self=x; y: connect tcp.b
//! ```
//!
//! Addresses go by the names given with `--name`, in what is printed as well, and ports that the kernel chose by the order
//! in which they appeared (`self:p1`). So the same script to a service and to the pods behind it prints the same lines, as
//! long as the application cannot tell the two apart.

mod echo;
mod message;
mod names;
mod options;
mod script;
mod sockaddr;
mod sockets;
mod stream;
mod uring;

use std::process::ExitCode;

use clap::Parser;

use crate::names::{Name, Names};
use crate::sockaddr::Family;
use crate::sockets::Sockets;

/// Makes the socket calls of a script and prints what came of them, as a JSON array of text.
#[derive(Debug, Parser)]
#[command(name = "mesh-sockets")]
struct Cli {
    /// Kind of sockets.
    #[arg(long, value_enum, default_value_t = Family::V4)]
    family: Family,
    /// An address and what it is called, `NAME=ADDRESS:PORT`; `self=ADDRESS:0` (and `self6`) is the pod's own.
    #[arg(long = "name")]
    names: Vec<Name>,
    /// What to do.
    script: String,
}

#[expect(clippy::print_stdout, reason = "this is what it is for")]
fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut sockets = Sockets::new(cli.family, Names::new(cli.names));
    let mut lines = Vec::new();
    for statement in script::statements(&cli.script) {
        match sockets.call(&statement) {
            Ok(outcome) => lines.push(format!("{statement} = {outcome}")),
            Err(error) => {
                eprintln!("mesh-sockets: {statement}: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    println!("{}", serde_json::to_string(&lines).expect("text"));
    ExitCode::SUCCESS
}
