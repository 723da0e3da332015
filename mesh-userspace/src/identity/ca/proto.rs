//! What `build.rs` makes of `proto/ca.proto`.

#![allow(
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    clippy::clone_on_ref_ptr,
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    reason = "generated"
)]

tonic::include_proto!("istio.v1.auth");
