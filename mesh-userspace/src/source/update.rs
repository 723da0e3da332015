//! What a source yields, whichever it is.

use crate::resources::{Change, Kind, ObjectRef, Problem, guards};

/// What became different since the update before.
#[derive(Clone, Debug, Default)]
pub(super) struct Update {
    /// Changes to objects; in the first update, all of them.
    pub(super) changes: Vec<Change>,
    /// All problems there are now.
    pub(super) problems: Vec<Problem>,
    /// Objects of kinds that are no concern of a mesh, now.
    pub(super) ignored: usize,
}

/// What becomes of an object that cannot be read, where that is not its last good state.
pub(super) fn instead(object: &ObjectRef, is_stand_in: bool, is_known: bool) -> &'static str {
    let is_peer = object.kind == Kind::PeerAuthentication;
    match (is_stand_in, is_peer) {
        _ if !guards(&object.kind) => "",
        (true, true) => "; until it is mended STRICT is in force where it applies",
        (true, false) => "; until it is mended nothing is allowed where it applies",
        (false, _) if is_known => "; its last good state is in force",
        (false, true) => "; it is NOT in force, and an agent that starts with it takes it for STRICT",
        (false, false) => "; it is NOT in force, and an agent that starts with it allows nothing",
    }
}
