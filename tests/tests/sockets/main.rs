//! Socket calls in all their forms: to a service, an application sees what it sees without the mesh when it calls the pod.

mod again;
mod connect;
mod datagrams;
mod errors;
mod fast_open;
mod large;
mod many;
mod mptcp;
mod ports;
mod settings;
mod untouched;
mod uring;
mod world;
