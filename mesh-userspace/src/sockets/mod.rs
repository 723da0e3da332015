//! The ends of sockets whose backend went.
//!
//! A socket that was translated when it connected stays with its backend whatever happens to that. Once the endpoint is no
//! longer listed a TCP connection to it is ended; a connected UDP socket, which would go on sending into nothing, as soon as
//! its endpoint no longer serves. Ended are sockets that came through a service address alone, in whatever network namespace
//! of the node; nothing here waits on the data path's side, nor does anything there or in the controller wait for this.

mod doomed;
mod ended;
mod namespaces;
mod pass;
mod reaper;
mod sock_diag;

pub use self::ended::Ended;
pub use self::reaper::{OnPass, Reaper};
