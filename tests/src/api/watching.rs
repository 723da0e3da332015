//! Watch: an answer without end, an event a line.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::time::Instant;

use super::failure::Failure;
use super::kinds::Kind;
use super::selector::Selector;
use super::state::State;
use super::store::Stored;

/// Bytes that are sent at once.
const CHUNK: usize = 256 * 1024;

/// A watch that goes on.
pub(super) struct Watch {
    state: Arc<State>,
    kind: Arc<Kind>,
    version: String,
    selector: Selector,
    revision: u64,
    initial: VecDeque<Arc<Stored>>,
    /// Whether the client is to be told that the initial objects are through.
    tells_initial: bool,
    bookmarks: bool,
    ends: Instant,
    next_bookmark: Instant,
    is_over: bool,
    changes: tokio::sync::watch::Receiver<u64>,
}

/// What a watch is asked for.
pub(super) struct Asked {
    /// From here on; none: from now, with what there is first.
    pub(super) revision: Option<u64>,
    pub(super) bookmarks: bool,
    pub(super) initial: bool,
    pub(super) timeout: Duration,
}

impl Watch {
    pub(super) fn new(
        state: &Arc<State>,
        kind: &Arc<Kind>,
        version: &str,
        selector: Selector,
        asked: &Asked,
    ) -> Self {
        let store = state.store();
        let changes = store.changes();
        let shelf = store.shelf(kind);
        let everything = asked.initial || asked.revision.is_none();
        let initial = shelf
            .filter(|_shelf| everything)
            .map(|shelf| {
                shelf
                    .all(selector.namespace())
                    .filter(|object| selector.matches(object))
                    .map(Arc::clone)
                    .collect()
            })
            .unwrap_or_default();
        let revision = if everything { store.revision() } else { asked.revision.unwrap_or_default() };
        let now = Instant::now();
        drop(store);
        Self {
            state: Arc::clone(state),
            kind: Arc::clone(kind),
            version: version.to_owned(),
            selector,
            revision,
            initial,
            tells_initial: asked.initial,
            bookmarks: asked.bookmarks,
            ends: now + asked.timeout,
            next_bookmark: now + state.faults().bookmarks,
            is_over: false,
            changes,
        }
    }

    /// The next events, when there are any; none at the end.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.is_over {
                return None;
            }
            self.state.unfrozen().await;
            self.changes.borrow_and_update();
            let events = self.ready();
            if !events.is_empty() {
                return Some(events.into());
            }
            if self.is_over {
                return None;
            }
            let wake = if self.bookmarks { self.next_bookmark.min(self.ends) } else { self.ends };
            tokio::select! {
                changed = self.changes.changed() => self.is_over |= changed.is_err(),
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    fn ready(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        let api_version = self.kind.api_version(&self.version);
        let types = (self.kind.kind.as_str(), api_version.as_str());
        while let Some(object) = self.initial.pop_front() {
            event("ADDED", types, &object, &mut out);
            if out.len() > CHUNK {
                return out;
            }
        }
        if std::mem::take(&mut self.tells_initial) {
            bookmark(types, self.revision, true, &mut out);
        }
        let store = self.state.store();
        let Some(shelf) = store.shelf(&self.kind) else {
            self.is_over = true;
            return out;
        };
        let Some(changes) = shelf.since(self.revision) else {
            let why = format!("too old resource version: {} ({})", self.revision, shelf.forgotten);
            let status = Failure::expired(why).status();
            out.extend_from_slice(json!({"type": "ERROR", "object": status}).to_string().as_bytes());
            out.push(b'\n');
            self.is_over = true;
            return out;
        };
        for change in changes {
            let was = change.old.as_ref().is_some_and(|old| self.selector.matches(old));
            let is = change.new.as_ref().is_some_and(|new| self.selector.matches(new));
            match (was, is) {
                (false, true) => event("ADDED", types, &change.seen, &mut out),
                (true, true) => event("MODIFIED", types, &change.seen, &mut out),
                (true, false) => event("DELETED", types, &change.seen, &mut out),
                (false, false) => {}
            }
            self.revision = change.revision;
            if out.len() > CHUNK {
                return out;
            }
        }
        // Everything up to here is known, also what this watch is not about.
        self.revision = self.revision.max(store.revision());
        let now = Instant::now();
        self.is_over = now >= self.ends;
        if self.bookmarks && (self.is_over || now >= self.next_bookmark) {
            bookmark(types, self.revision, false, &mut out);
            self.next_bookmark = now + self.state.faults().bookmarks;
        }
        out
    }
}

fn event(what: &str, types: (&str, &str), object: &Stored, out: &mut Vec<u8>) {
    out.extend_from_slice(format!(r#"{{"type":"{what}","object":"#).as_bytes());
    object.write(Some(types), out);
    out.extend_from_slice(b"}\n");
}

fn bookmark((kind, api_version): (&str, &str), revision: u64, initial: bool, out: &mut Vec<u8>) {
    let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
    if initial {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    let object = json!({"kind": kind, "apiVersion": api_version, "metadata": metadata});
    out.extend_from_slice(json!({"type": "BOOKMARK", "object": object}).to_string().as_bytes());
    out.push(b'\n');
}
