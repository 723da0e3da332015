//! The lab: nodes and pods made of network namespaces and cgroups on the machine at hand, with real agents on them.
//!
//! ```no_run
//! use mesh_tests::{Lab, PodSpec, SECONDS_30};
//!
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::new("mesh-demo")?; // or Lab::unique(): many at a time
//! let (a, b) = (lab.node("node-a")?, lab.node("node-b")?);
//! let web = a.pod(PodSpec::new("web"))?;
//! let api = b.pod(PodSpec::new("api"))?;
//! lab.manifests().apply("pods.yaml", &format!("{}---\n{}", web.manifest(), api.manifest()))?;
//! let agent = a.agent().start()?;
//! let _server = api.serve(&["--listen", "[::]:80"])?;
//! let summary = web.connect(&[&format!("{}:80", api.v4), "--count", "10"])?;
//! assert_eq!(summary.ok, 10);
//! # Ok(())
//! # }
//! ```
//!
//! Everything that a lab makes carries its prefix and goes when the [`Lab`] is dropped, on a panic as well; what a killed
//! run has left is removed by the next lab. It runs `ip` (iproute2), the agent as `meshd`, and `mesh-peer` inside pods, both from
//! beside the running executable. Nothing here depends on the agent's library.

mod agent;
mod api;
mod ca;
mod capture;
mod lab;
mod machine;
mod manifests;
mod netns;
mod node;
pub mod peer;
mod process;
mod wait;

pub use self::agent::{Agent, AgentBuilder};
pub use self::api::{API_AUDIENCE, Account, ApiServer, Asked, ExecCall, ExecResult, Request, Shows};
pub use self::ca::Ca;
pub use self::capture::Capture;
pub use self::lab::Lab;
pub use self::machine::Machine;
pub use self::manifests::Manifests;
pub use self::netns::NetNs;
pub use self::node::{Driver, Kubelet, Node, Pod, PodSpec};
pub use self::process::{Finished, Process, binary};
pub use self::wait::{SECONDS_10, SECONDS_30, eventually};
