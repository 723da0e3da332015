//! What `meshctl` is: its arguments, the client of the node's API, and what it prints.
//!
//! It asks the agent on its own node, or manifests alone, and changes nothing. One line says what is wrong; the exit code says whose fault
//! it is: 0 fine, 1 unhealthy or not found, 2 usage, 3 no agent to ask.

mod analyze;
mod args;
mod client;
mod explain;
mod flows;
mod install;
mod plane;
mod policies;
mod print;
mod run;
mod services;
mod table;

pub use args::Cli;
pub use run::{Analysed, Local, main};
