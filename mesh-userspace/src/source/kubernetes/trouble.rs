//! What is wrong between this and the API server, told in one line.

use std::error::Error as StdError;
use std::io;

use kube::core::Status;
use kube::runtime::watcher;

/// Why a kind cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// One of a closed set, the label of a metric.
    pub(super) reason: &'static str,
    /// For a human.
    pub(super) message: String,
}

/// An answer, or a part of one, that did not come in time.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {} s", .0.as_secs())]
pub(super) struct TimedOut(pub(super) std::time::Duration);

impl Trouble {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// The kind is not served in this version.
    pub(super) fn is_not_found(&self) -> bool {
        self.reason == "not_found"
    }

    /// What was known is too old to go on from: it is listed anew.
    pub(super) fn is_gone(&self) -> bool {
        self.reason == "gone"
    }

    /// What ended a listing or a watch.
    pub(super) fn of_watch(error: &watcher::Error) -> Self {
        match error {
            watcher::Error::InitialListFailed(error)
            | watcher::Error::WatchStartFailed(error)
            | watcher::Error::WatchFailed(error) => Self::of(error),
            watcher::Error::WatchError(status) => Self::of_status(status),
            watcher::Error::NoResourceVersion => {
                Self::new("protocol", "the API server sent an object without a resourceVersion")
            }
        }
    }

    /// What a request ended with.
    pub(super) fn of(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::of_status(status),
            kube::Error::SerdeError(error) => {
                Self::new("protocol", format!("the API server's answer makes no sense: {error}"))
            }
            kube::Error::Auth(error) => {
                Self::new("credentials", format!("the credentials cannot be had: {}", root(error)))
            }
            error => Self::of_transport(error),
        }
    }

    fn of_status(status: &Status) -> Self {
        let said = if status.message.is_empty() { &status.reason } else { &status.message };
        match status.code {
            401 => Self::new(
                "unauthorized",
                "the API server does not know this agent's token or certificate (401): see that the service account exists \
                 and its token is valid",
            ),
            403 => Self::new(
                "forbidden",
                format!("the API server forbids it (403): {said}: see the agent's ClusterRole"),
            ),
            404 => Self::new("not_found", "the API server does not serve it (404)"),
            410 => Self::new("gone", format!("what was known is too old (410): {said}")),
            429 => Self::new("throttled", format!("the API server asks to wait (429): {said}")),
            code => Self::new("server", format!("the API server failed ({code}): {said}")),
        }
    }

    fn of_transport(error: &(dyn StdError + 'static)) -> Self {
        let (mut reason, mut at) = ("unreachable", Some(error));
        while let Some(error) = at {
            match () {
                () if error.is::<rustls::Error>() => reason = "tls",
                () if error.is::<TimedOut>() => reason = "timeout",
                () => {}
            }
            at = cause(error);
        }
        let why = root(error);
        match reason {
            "tls" => Self::new(
                reason,
                format!("the API server's certificate is not accepted, or ours not by it: {why}"),
            ),
            "timeout" => Self::new(reason, format!("the API server is slow or away: {why}")),
            _ => Self::new(reason, format!("the API server cannot be reached: {why}")),
        }
    }
}

/// What an error is about. One of `io` that wraps another does not name it as its source.
fn cause<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}

/// The innermost cause, which says most.
fn root(error: &(dyn StdError + 'static)) -> String {
    let mut last = error;
    while let Some(next) = cause(last) {
        last = next;
    }
    last.to_string()
}
