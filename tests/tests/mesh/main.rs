//! The mesh on the real kernel: real agents, real pods, one lab a test.

mod carry;
mod policy;
mod services;
mod world;
