//! The mesh on the real kernel: real agents, real pods, one lab a test.

mod services;
mod world;
