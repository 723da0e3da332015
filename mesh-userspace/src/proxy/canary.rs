//! The self-test's far end: a connection to an address that nobody has (RFC 5737, RFC 3849), answered by the agent itself
//! when it arrives as captured. The near end is in `node`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Mutex;
use std::sync::PoisonError;

use tokio::net::TcpStream;

use super::Pod;

/// Port of the canary.
const PORT: u16 = 15099;

/// Tokens that are expected, one at a time.
#[derive(Debug, Default)]
pub struct Canary {
    token: Mutex<Option<[u8; 16]>>,
}

impl Canary {
    /// Where a canary connects to, in the family of the pod's address.
    pub const fn address(pod: IpAddr) -> SocketAddr {
        match pod {
            IpAddr::V4(_) => SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 77)), PORT),
            IpAddr::V6(_) => {
                SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x77)), PORT)
            }
        }
    }

    /// What the next canary must read.
    pub fn expect(&self, token: [u8; 16]) {
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token);
    }

    /// Answers a canary. False: the connection is an application's.
    pub(super) fn answer(&self, pod: &Pod, asked: SocketAddr, client: &TcpStream) -> bool {
        if asked != Self::address(asked.ip()) {
            return false;
        }
        if let Some(token) = *self.token.lock().unwrap_or_else(PoisonError::into_inner) {
            // 16 bytes fit every empty send buffer; a canary that is gone has failed already.
            let _ = client.try_write(&token);
        }
        tracing::trace!(pod = %pod.uid(), "canary answered");
        true
    }
}
