//! PING: a peer that vanished without a word is noticed.

use std::time::Duration;

use h2::{Ping, PingPong};

const INTERVAL: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(20);

/// Returns once the peer has not answered in time, or the connection has ended.
pub(super) async fn until_dead(mut ping: PingPong) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        if !matches!(tokio::time::timeout(PATIENCE, ping.ping(Ping::opaque())).await, Ok(Ok(_))) {
            return;
        }
    }
}
