//! Who else is shown what a client sends.

/// Is shown what goes from the client to the server, once the server's side has taken it or is about to. Never waits.
pub(crate) trait Tap {
    /// Whether somebody still wants to see it. While nobody does, bytes need not come through the agent.
    fn is_open(&self) -> bool;

    /// The client sent this.
    fn show(&self, bytes: &[u8]);

    /// It sent so many bytes that nobody was shown.
    fn skip(&self, count: u64);

    /// It sent its FIN.
    fn finish(&self);
}

/// Nobody.
pub(crate) struct NoTap;

impl Tap for NoTap {
    fn is_open(&self) -> bool {
        false
    }

    fn show(&self, _bytes: &[u8]) {}

    fn skip(&self, _count: u64) {}

    fn finish(&self) {}
}
