//! Bytes of a TCP connection as the application sees them, from the counters of the kernel's socket.
//!
//! `tcp_sock.bytes_acked` and `bytes_received` count sequence numbers (RFC 4898), in which SYN and FIN have one each.

/// TCP states as `sock_ops` reports them (`include/net/tcp_states.h`).
pub mod state {
    /// Open.
    pub const ESTABLISHED: u32 = 1;
    /// The peer's FIN came, ours is not sent.
    pub const CLOSE_WAIT: u32 = 8;
    /// Closed.
    pub const CLOSE: u32 = 7;
    /// Our FIN is acknowledged, the peer's has not come.
    pub const FIN_WAIT2: u32 = 5;
    /// The peer's FIN came, ours is sent.
    pub const LAST_ACK: u32 = 9;
    /// Both FINs are sent, ours is not acknowledged.
    pub const CLOSING: u32 = 11;
}

/// What a connection carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// Bytes sent and acknowledged.
    pub sent: u64,
    /// Bytes received.
    pub received: u64,
    /// Both sides closed in order.
    pub graceful: bool,
    /// It was still open when the application let go of it: the kernel answered with RST (unread bytes, `SO_LINGER` 0).
    pub aborted: bool,
}

/// What a connection carried, seen at its step from `old_state` to closed.
///
/// `acked_before` is `bytes_acked` right after the handshake, `released` whether the application has closed its socket.
#[inline(always)]
pub const fn carried(
    old_state: u32,
    bytes_acked: u64,
    bytes_received: u64,
    acked_before: u64,
    released: bool,
) -> Carried {
    let graceful = matches!(old_state, state::FIN_WAIT2 | state::LAST_ACK | state::CLOSING);
    let fin = graceful as u64;
    Carried {
        sent: bytes_acked.saturating_sub(acked_before).saturating_sub(fin),
        received: bytes_received.saturating_sub(fin),
        graceful,
        aborted: released && matches!(old_state, state::ESTABLISHED | state::CLOSE_WAIT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fins_are_not_bytes() {
        let both = Carried { sent: 10, received: 20, graceful: true, aborted: false };
        assert_eq!(carried(state::LAST_ACK, 12, 21, 1, true), both);
        assert_eq!(carried(state::FIN_WAIT2, 12, 21, 1, true), both);
    }

    #[test]
    fn a_reset_has_no_fin() {
        let cut = Carried { sent: 10, received: 20, graceful: false, aborted: false };
        assert_eq!(carried(state::ESTABLISHED, 11, 20, 1, false), cut);
        assert_eq!(carried(state::ESTABLISHED, 11, 20, 1, true), Carried { aborted: true, ..cut });
    }

    #[test]
    fn a_refused_connect_carried_nothing() {
        let nothing = Carried { sent: 0, received: 0, graceful: false, aborted: false };
        assert_eq!(carried(2, 0, 0, 0, true), nothing);
    }
}
