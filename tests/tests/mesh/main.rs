//! The mesh on the real kernel: real agents, real pods, one lab a test.

mod authority;
mod authorization;
mod carry;
mod certificates;
mod choice;
mod ending;
mod explain;
mod external;
mod gateway;
mod held;
mod hostile;
mod kubelet;
mod limits;
mod mending;
mod observe;
mod plane;
mod policy;
mod reload;
mod rotation;
mod services;
mod standby;
mod traffic_destinations;
mod world;
