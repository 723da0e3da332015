//! Who is told of what becomes of endpoints.

use std::fmt;
use std::sync::OnceLock;

use tokio::sync::Notify;

use super::outlier::Change;

type Listener = Box<dyn Fn(&Change) + Send + Sync>;

/// See the module.
#[derive(Default)]
pub(super) struct Teller {
    listener: OnceLock<Listener>,
    /// Somebody was left out: when to look at them has to be thought of anew.
    pub(super) ejected: Notify,
}

impl fmt::Debug for Teller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Teller").finish_non_exhaustive()
    }
}

impl Teller {
    /// Tells this listener from now on; whether it is the first.
    pub(super) fn set(&self, listener: Listener) -> bool {
        self.listener.set(listener).is_ok()
    }

    pub(super) fn tell(&self, changes: &[Change]) {
        if let Some(listener) = self.listener.get() {
            changes.iter().for_each(listener);
        }
    }
}
