//! The node agent of the mesh, as a library. Layers, each knowing those below it only, are listed in
//! docs/ARCHITECTURE.md.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::panic,
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::float_cmp,
        clippy::type_complexity,
        clippy::too_many_lines,
        clippy::needless_pass_by_value,
        clippy::format_collect,
        reason = "a test fails by panicking, its casts are of small numbers, and its table of cases is long"
    )
)]

pub mod admin;
pub mod agent;
pub mod balance;
pub mod ca;
pub mod cli;
pub mod cni;
pub mod datapath;
pub mod external;
mod file;
#[doc(hidden)]
pub mod fuzzing;
pub mod identity;
pub mod install;
pub mod kubernetes;
mod memory;
pub mod model;
pub mod node;
pub mod policy;
pub mod proxy;
pub mod resources;
mod socket;
pub mod sockets;
pub mod source;
mod sysctls;
pub mod telemetry;
