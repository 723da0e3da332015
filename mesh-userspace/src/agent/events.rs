//! Events on pods: what `kubectl describe pod` tells of one that cannot be enrolled, and of one that can again; of one that
//! outlier detection leaves out, and that comes back.
//!
//! The controller never waits for the API server: an event goes into a short queue and is dropped where that is full; it is in the
//! log and in `meshctl status` all the same. The same of the same pod is said once in a while, all of it so many times a minute.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::chain;
use crate::model::Workload;

/// Events that may wait.
const QUEUE: usize = 256;
/// How long the same reason of the same pod is not said again; a mend's is longer: it is over.
const AGAIN: Duration = Duration::from_mins(10);
const MENDED_AGAIN: Duration = Duration::from_hours(1);
/// Events that are said at once, and how often one more may be.
const BURST: u32 = 32;
const REFILL: Duration = Duration::from_secs(2);
/// How long the API server may take for one.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a note (events.k8s.io/v1: at most 1 kB).
const LONGEST_NOTE: usize = 1000;
/// Bytes of who reports (the same); a node's name may be longer.
const LONGEST_INSTANCE: usize = 128;
/// Pods and reasons that are remembered.
const REMEMBERED: usize = 4096;

/// Where the controller tells them. Without an API server nobody listens.
#[derive(Clone, Debug, Default)]
pub(super) struct Events(Option<mpsc::Sender<Told>>);

/// An event that is to be said.
#[derive(Debug)]
struct Told {
    pod: ObjectReference,
    reason: &'static str,
    note: String,
    type_: EventType,
}

impl Told {
    /// What was done or tried (events.k8s.io/v1).
    fn action(&self) -> &'static str {
        if self.reason.starts_with("MeshEndpoint") { "Balance" } else { "Enrol" }
    }
}

impl Events {
    /// Says them to the API server, on the runtime that this is called on, as the agent of `node`.
    pub(super) fn to(client: Client, node: &str) -> Self {
        let (events, queue) = mpsc::channel(QUEUE);
        let instance = Some(cut(node, LONGEST_INSTANCE));
        let reporter = Reporter { controller: "mesh-agent".to_owned(), instance };
        tokio::spawn(say(queue, Recorder::new(client, reporter)));
        Self(Some(events))
    }

    /// The pod cannot be enrolled.
    pub(super) fn failed(&self, workload: &Workload, reason: &str) {
        self.tell(workload, EventType::Warning, "MeshEnrolmentFailed", reason);
    }

    /// The pod could not be enrolled, and is now.
    pub(super) fn recovered(&self, workload: &Workload) {
        self.tell(workload, EventType::Normal, "MeshEnrolled", "the pod is in the mesh now");
    }

    /// Something of the pod was mended.
    pub(super) fn mended(&self, workload: &Workload, what: &str) {
        self.tell(workload, EventType::Normal, MENDED, what);
    }

    /// An endpoint of the pod gets no new connections.
    pub(super) fn ejected(&self, workload: &Workload, note: &str) {
        self.tell(workload, EventType::Warning, "MeshEndpointEjected", note);
    }

    /// It gets connections again.
    pub(super) fn returned(&self, workload: &Workload, note: &str) {
        self.tell(workload, EventType::Normal, "MeshEndpointReturned", note);
    }

    fn tell(&self, workload: &Workload, type_: EventType, reason: &'static str, note: &str) {
        let Some(events) = &self.0 else { return };
        let pod = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(workload.namespace.to_string()),
            name: Some(workload.name.to_string()),
            uid: workload.pod_uid.as_ref().map(ToString::to_string),
            ..ObjectReference::default()
        };
        // The queue is full: it is in the log.
        let _ = events.try_send(Told { pod, reason, note: cut(note, LONGEST_NOTE), type_ });
    }
}

const MENDED: &str = "MeshMended";

async fn say(mut queue: mpsc::Receiver<Told>, recorder: Recorder) {
    let mut limit = Limit::new(Instant::now());
    let mut is_failing = false;
    while let Some(told) = queue.recv().await {
        if !limit.admits(&told, Instant::now()) {
            continue;
        }
        let action = told.action().to_owned();
        let event = Event {
            type_: told.type_,
            reason: told.reason.to_owned(),
            note: Some(told.note),
            action,
            secondary: None,
        };
        let said = tokio::time::timeout(PATIENCE, recorder.publish(&event, &told.pod)).await;
        let failure = match said {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(chain(&error)),
            Err(_late) => Some(format!("no answer in {PATIENCE:?}")),
        };
        if let Some(error) = &failure
            && !is_failing
        {
            tracing::warn!(error, "events on pods cannot be written");
        }
        is_failing = failure.is_some();
    }
}

/// What was said lately.
struct Limit {
    said: HashMap<(Arc<str>, &'static str), (String, Instant)>,
    left: u32,
    refilled: Instant,
}

impl Limit {
    fn new(now: Instant) -> Self {
        Self { said: HashMap::new(), left: BURST, refilled: now }
    }

    fn admits(&mut self, told: &Told, now: Instant) -> bool {
        let refills = u32::try_from((now - self.refilled).as_millis() / REFILL.as_millis()).unwrap_or(BURST);
        if refills > 0 {
            (self.left, self.refilled) = (self.left.saturating_add(refills).min(BURST), now);
        }
        let again = if told.reason == MENDED { MENDED_AGAIN } else { AGAIN };
        let pod = [&told.pod.namespace, &told.pod.name, &told.pod.uid]
            .map(|part| part.as_deref().unwrap_or_default());
        let key = (Arc::from(pod.join("/")), told.reason);
        if let Some((note, when)) = self.said.get(&key)
            && now - *when < again
            && (*note == told.note || told.reason == MENDED)
        {
            return false;
        }
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        if self.said.len() >= REMEMBERED {
            self.said.retain(|_, (_, when)| now - *when < AGAIN);
        }
        if self.said.len() < REMEMBERED {
            self.said.insert(key, (told.note.clone(), now));
        }
        true
    }
}

/// As much of a text as an event may have, in bytes.
fn cut(text: &str, longest: usize) -> String {
    text.chars()
        .scan(0, |length, one| {
            *length += one.len_utf8();
            (*length <= longest).then_some(one)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(name: &str, reason: &'static str, note: &str) -> Told {
        let pod = ObjectReference { name: Some(name.to_owned()), ..ObjectReference::default() };
        Told { pod, reason, note: note.to_owned(), type_: EventType::Warning }
    }

    #[test]
    fn the_same_is_said_once_in_a_while() {
        let start = Instant::now();
        let mut limit = Limit::new(start);
        let failed = "MeshEnrolmentFailed";
        assert!(limit.admits(&told("a", failed, "x"), start));
        assert!(!limit.admits(&told("a", failed, "x"), start));
        assert!(limit.admits(&told("a", failed, "y"), start), "another reason");
        assert!(limit.admits(&told("b", failed, "x"), start), "another pod");
        assert!(limit.admits(&told("a", failed, "y"), start + AGAIN));
        assert!(limit.admits(&told("a", MENDED, "x"), start));
        assert!(!limit.admits(&told("a", MENDED, "y"), start + AGAIN), "mends are rarely said");
    }

    #[test]
    fn a_storm_is_cut_to_so_many_a_minute() {
        let start = Instant::now();
        let mut limit = Limit::new(start);
        let storm = |limit: &mut Limit, from: u32, now| {
            (from..from + 100).filter(|number| limit.admits(&told(&number.to_string(), "x", ""), now)).count()
        };
        assert_eq!(storm(&mut limit, 0, start), 32);
        assert_eq!(storm(&mut limit, 100, start + REFILL * 3), 3);
    }

    #[test]
    fn a_note_is_cut_between_characters() {
        assert_eq!(cut("short", LONGEST_NOTE), "short");
        assert_eq!(cut(&"ü".repeat(LONGEST_NOTE), LONGEST_NOTE).len(), LONGEST_NOTE);
        assert_eq!(cut("aü", 2), "a");
    }
}
