//! Who may connect to whom, and how.
//!
//! Pure functions over the model: they are given what is configured and decide; they read nothing and keep nothing.

pub mod authorization;
pub mod peer_authentication;
