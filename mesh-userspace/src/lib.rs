//! The node agent of the mesh, as a library.
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::panic,
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::float_cmp,
        reason = "a test fails by panicking"
    )
)]

pub mod admin;
pub mod cli;
pub mod identity;
pub mod model;
pub mod telemetry;
