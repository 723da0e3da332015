//! The programs that run inside the pods of a lab: servers and clients that print what they saw as lines of JSON.

mod address;
mod attempts;
mod client;
mod datagram;
mod exchange;
mod mode;
mod server;
mod stream;
mod tally;
mod tls;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::attempts::Attempts;
use crate::client::Connect;
use crate::datagram::Udp;
use crate::server::Serve;

/// Servers and clients for a pod of the lab.
#[derive(Debug, Parser)]
#[command(name = "mesh-peer")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until killed.
    Serve(Serve),
    /// Make a number of connections, and print what they came to.
    Connect(Connect),
    /// Make connections until standard input closes, and print what they came to.
    Loop(Connect),
    /// Connect to one target after the other without a pause until standard input closes, and print a line about each.
    Attempts(Attempts),
    /// Send datagrams to an echo server (`serve --udp`), and print what they came to.
    Udp(Udp),
}

#[tokio::main]
async fn main() -> ExitCode {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Where it stays as it is, many connections fail and say so.
        let _limited = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let result = match Cli::parse().command {
        Command::Serve(args) if args.udp => server::serve_udp(args).await,
        Command::Serve(args) => server::serve(args).await,
        Command::Connect(args) => client::connect(args).await,
        Command::Loop(args) => client::load(args).await,
        Command::Attempts(args) => attempts::attempts(&args),
        Command::Udp(args) => datagram::udp(&args).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-peer: {error}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "this is what it is for")]
pub(crate) fn print(line: &impl serde::Serialize) {
    println!("{}", serde_json::to_string(line).expect("maps with text as keys"));
}
