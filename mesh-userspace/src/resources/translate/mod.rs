//! From checked objects to the model: pure functions, each told what it needs. `store` decides what is called when.

pub(super) mod actions;
pub(super) mod authorization;
pub(super) mod destination;
pub(super) mod endpoints;
pub(super) mod entry;
pub(super) mod external;
pub(super) mod gateway;
pub(super) mod hosts;
pub(super) mod matching;
pub(super) mod node;
pub(super) mod route;
pub(super) mod service;
pub(super) mod settings;
pub(super) mod spread;
pub(super) mod topology;
pub(super) mod visibility;
pub(super) mod workload;
