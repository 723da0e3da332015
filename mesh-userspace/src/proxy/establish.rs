//! A connection to a service, established: an endpoint tried, another where it fails and nothing of the client's has been sent.
//!
//! One record, whatever the number of tries. Who the client is, and how an endpoint is reached from where it is, is the
//! [`Client`]'s business: pods of this node and clients from outside differ in that alone. Which endpoint it is, and whether there is
//! room for one more connection, is said by [`crate::balance`].
//!
//! The target of the route is drawn once; another try is at another endpoint of it, so that a split keeps its shares and what fails in one
//! part of it does not vanish in another. The first retry goes to another endpoint at once, since most of what fails says so at
//! once; those after it wait. Retries have a budget. A refusal by policy is never retried.
//!
//! All of it has an end, with or without a `timeout` of the route: there are at most [`Retries::MOST`] tries after the first, a try
//! lasts for `connectTimeout` (10 s), and before a retry there are waits of at most 31 × `backoff`: ten for itself, 21 for its room
//! in the budget. Whoever calls ends it as soon as the client has reset.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::ask::Ask;
use super::bounds::Held;
use super::copy::NoTap;
use super::forward::{CONNECT_DEADLINE, Upstream, UpstreamError, carry, note_failure};
use super::mirror::Mirrors;
use super::worker::Worker;
use crate::balance::{Failure, Looked, Picked, Place, Retrying, backoff, target};
use crate::datapath::{Stay, Stayer};
use crate::model::{Endpoint, Retries, Route, RouteTarget};
use crate::telemetry::{ConnectionRecord, Outcome, RetryResult};

/// Times that a retry looks for room in the budget.
const BUDGET_TRIES: u32 = 4;

/// Whom a connection is established for.
pub(crate) trait Client {
    /// Who stays with an endpoint where the service has session affinity.
    fn stayer(&self) -> Stayer;

    /// Connects to an endpoint, once; it may take so long.
    async fn connect(&self, endpoint: &Endpoint, within: Duration) -> Result<Upstream, UpstreamError>;

    /// Opens the connection's record: with the service as a whole where there is no endpoint, and without an upstream where
    /// none was had.
    fn open(&self, endpoint: Option<&Endpoint>, upstream: Option<&Upstream>) -> ConnectionRecord;
}

/// A connection that is to be established.
pub(crate) struct Establish<'a, C> {
    /// Who carries it.
    pub(crate) worker: &'a Worker,
    /// Whom it is for.
    pub(crate) client: &'a C,
    /// What was asked for.
    pub(crate) ask: &'a Ask<'a>,
    /// Where it goes.
    pub(crate) route: &'a Route,
    /// What was asked for, as an address.
    pub(crate) asked: SocketAddr,
    /// The client.
    pub(crate) source: SocketAddr,
}

/// A connection that stands.
pub(crate) struct Established {
    /// The way to the endpoint.
    pub(crate) upstream: Upstream,
    /// The connection's record.
    pub(crate) record: Box<ConnectionRecord>,
    /// The endpoint.
    pub(crate) endpoint: SocketAddr,
    /// Its place among those of its destination.
    pub(crate) held: Held,
}

impl Established {
    /// Carries the connection to its end, or until its endpoint is gone or a bound is reached. What is dropped while it carries is
    /// reset on both sides. `mirrors` get copies of what the client sends.
    pub(crate) async fn carry(
        self,
        worker: &Worker,
        client: &TcpStream,
        asked: SocketAddr,
        mirrors: Option<Mirrors>,
    ) {
        let Self { upstream, record, endpoint, held } = self;
        let carried = worker.carried.enter(asked, endpoint);
        let gone = carried.gone(&worker.shared.snapshot.load());
        // Most connections have no bounds, and nothing to hold for them for as long as they last.
        let bounds: LocalBoxFuture<'_, Outcome> = if held.is_bounded() {
            Box::pin(held.bounds(record.bytes()))
        } else {
            Box::pin(std::future::pending())
        };
        let ends = async {
            tokio::select! {
                () = gone => Outcome::Withdrawn,
                outcome = bounds => outcome,
            }
        };
        let outcome = match mirrors {
            None => carry(worker, client, upstream, &record, ends, &NoTap).await,
            Some(mirrors) => Box::pin(carry(worker, client, upstream, &record, ends, &mirrors)).await,
        };
        held.ended(outcome, record.bytes());
        record.finish(outcome);
    }
}

/// What has come of the tries so far.
#[derive(Default)]
struct Tries {
    /// Endpoints that were tried and have failed.
    failed: Vec<SocketAddr>,
    /// Retries that were made.
    retries: u32,
    /// The one that is running.
    retrying: Option<Retrying>,
}

impl<C: Client> Establish<'_, C> {
    /// Connects to an endpoint; `None` where all that were tried have failed, which the record tells.
    pub(crate) async fn run(&self) -> Option<Established> {
        let stay = self.stay();
        let kept = stay.as_ref().and_then(Stay::backend).filter(|kept| self.may_be_given(*kept));
        let (looked, kept) = self.destination(kept)?;
        let mut place = match looked.admit() {
            Ok(place) => place,
            Err(overflow) => {
                self.worker.shared.telemetry.metrics().balance().refused(looked.key(), overflow.as_str());
                self.fail(&UpstreamError::Overflow { service: self.ask.service.name.to_string(), overflow });
                return None;
            }
        };
        let deadline = self.route.actions.timeout.map(|timeout| Instant::now() + timeout);
        let mut tries = Tries::default();
        let mut next = kept.and_then(|kept| looked.member(kept)).or_else(|| self.pick(&looked, &[]));
        loop {
            let Some(picked) = next else {
                self.fail(&UpstreamError::NoEndpoint(self.ask.service.name.to_string()));
                return None;
            };
            let error = match self.attempt(&looked, &mut place, picked, deadline).await {
                Ok(upstream) => {
                    self.note_retry(&mut tries, RetryResult::Succeeded);
                    if let Some(Err(error)) = stay.map(|stay| stay.keep(picked.endpoint.address)) {
                        tracing::debug!(%error, orig_dst = %self.asked, "client's affinity not kept");
                    }
                    let record = Box::new(self.client.open(Some(picked.endpoint), Some(&upstream)));
                    let held = Held::new(place, looked.settings());
                    return Some(Established { upstream, record, endpoint: picked.endpoint.address, held });
                }
                Err(error) => error,
            };
            self.note_retry(&mut tries, RetryResult::Failed);
            place.leave_endpoint();
            if !tries.failed.contains(&picked.endpoint.address) {
                tries.failed.push(picked.endpoint.address);
            }
            next = self.another(&looked, &mut tries, &error, deadline).await;
            let again = next.is_some();
            tracing::debug!(
                %error, orig_dst = %self.asked, dst.addr = %picked.endpoint.address, again, "upstream failed"
            );
            // Who was refused for who they are is told of, whoever served the client in their place.
            if !again || error.outcome() == Outcome::TlsFailed {
                let mut record = self.client.open(Some(picked.endpoint), None);
                if tries.retries > 0 {
                    record.note_retries();
                }
                record.fail(error.outcome(), &error);
            }
            if !again {
                return None;
            }
        }
    }

    /// The destination that the connection goes to, with the endpoint that the client stays with if it is one of its.
    fn destination(&self, kept: Option<SocketAddr>) -> Option<(Looked, Option<SocketAddr>)> {
        let balancers = &self.worker.shared.balancers;
        let has = |target: &&RouteTarget| {
            target.weight > 0 && target.endpoints.iter().any(|endpoint| Some(endpoint.address) == kept)
        };
        if let Some(looked) = self.route.targets.iter().find(has).map(|target| balancers.look(target))
            && kept.is_some_and(|kept| looked.member(kept).is_some())
        {
            return Some((looked, kept));
        }
        let drawn = target(self.route, fastrand::u64(..));
        if drawn.is_none() {
            self.fail(&UpstreamError::NoEndpoint(self.ask.service.name.to_string()));
        }
        let drawn = drawn?;
        Some((balancers.look(drawn), self.own(drawn)))
    }

    /// The endpoint that the client has for its own by the table that the kernel has as well (`consistentHash`). Where it is left out
    /// or has failed, the balancer finds another.
    fn own(&self, drawn: &RouteTarget) -> Option<SocketAddr> {
        let index = self.route.targets.iter().position(|target| std::ptr::eq(target, drawn))?;
        let set = self.route.backends(self.asked.ip());
        let backend = set.in_table(set.table_of(index)?, self.ask.client?)?;
        backend.endpoint.as_ref().map(|endpoint| endpoint.address)
    }

    /// Whether an endpoint is one that the route leads to now.
    fn may_be_given(&self, address: SocketAddr) -> bool {
        let mut backends = self.route.backends(self.asked.ip()).backends().iter();
        backends.any(|backend| backend.endpoint.as_ref().is_some_and(|endpoint| endpoint.address == address))
    }

    fn pick<'a>(&self, looked: &'a Looked, avoid: &[SocketAddr]) -> Option<Picked<'a>> {
        looked.pick(self.asked.is_ipv4(), self.source.ip(), avoid)
    }

    /// Tries an endpoint once.
    async fn attempt(
        &self,
        looked: &Looked,
        place: &mut Place,
        picked: Picked<'_>,
        deadline: Option<Instant>,
    ) -> Result<Upstream, UpstreamError> {
        let settings = looked.settings();
        let per_try = self.route.actions.retries.and_then(|retries| retries.per_try);
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let within = settings.limits.connect_timeout.unwrap_or(CONNECT_DEADLINE);
        let own = per_try.map_or(within, |per_try| per_try.min(within));
        let within = left.map_or(own, |left| left.min(own));
        place.at(picked);
        let began = Instant::now();
        let result = self.client.connect(picked.endpoint, within).await;
        match &result {
            Ok(upstream) => {
                place.established();
                if let Some(keepalive) = &settings.limits.keepalive {
                    upstream.keep_alive(keepalive);
                }
            }
            Err(error) => {
                note_failure(self.worker, error);
                let failure = error.failure();
                if let Some(failure) =
                    failure.filter(|&failure| is_its_own(failure, own, left, began.elapsed()))
                {
                    place.failed(failure);
                }
            }
        }
        result
    }

    /// The endpoint that is tried next, once it is time to; `None`: the connection is given up.
    async fn another<'l>(
        &self,
        looked: &'l Looked,
        tries: &mut Tries,
        error: &UpstreamError,
        deadline: Option<Instant>,
    ) -> Option<Picked<'l>> {
        let written = self.route.actions.retries;
        let Retries { attempts, backoff: base, .. } = written.unwrap_or_default();
        if !error.is_retryable() || tries.retries >= attempts {
            return None;
        }
        let is_late = |wait: Duration| deadline.is_some_and(|deadline| Instant::now() + wait >= deadline);
        let has_other = looked.has_other(self.asked.is_ipv4(), self.source.ip(), &tries.failed);
        // Where nobody has asked for retries, one that has just failed is not asked again.
        if is_late(Duration::ZERO) || (!has_other && written.is_none()) {
            return None;
        }
        let nth = tries.retries + 1;
        let wait = match (nth, has_other) {
            (1, true) => Duration::ZERO,
            (nth, true) => backoff(nth - 1, base, fastrand::u64(..)),
            (nth, false) => backoff(nth, base, fastrand::u64(..)),
        };
        if is_late(wait) {
            return None;
        }
        if wait > Duration::ZERO {
            sleep(wait).await;
        }
        tries.retrying = self.room(looked, base, is_late).await;
        if tries.retrying.is_none() {
            self.worker.shared.telemetry.metrics().balance().retried(looked.key(), RetryResult::OverBudget);
            return None;
        }
        tries.retries = nth;
        self.pick(looked, &tries.failed).or_else(|| written.and_then(|_| self.pick(looked, &[])))
    }

    /// A place in the budget of retries. Those that are running end soon, unless there is an outage: it is looked for a few times.
    async fn room(
        &self,
        looked: &Looked,
        base: Duration,
        is_late: impl Fn(Duration) -> bool,
    ) -> Option<Retrying> {
        for look in 1..=BUDGET_TRIES {
            if let Some(retrying) = looked.retry() {
                return Some(retrying);
            }
            let wait = backoff(look, base, fastrand::u64(..));
            if is_late(wait) {
                return None;
            }
            sleep(wait).await;
        }
        looked.retry()
    }

    /// What has become of the retry, if it was one.
    fn note_retry(&self, tries: &mut Tries, result: RetryResult) {
        if let Some(retrying) = tries.retrying.take() {
            self.worker.shared.telemetry.metrics().balance().retried(retrying.key(), result);
        }
    }

    /// Where the client stays with an endpoint of the service (`sessionAffinity`), as the kernel keeps it too.
    fn stay(&self) -> Option<Stay<'_>> {
        self.ask.service.affinity_seconds?;
        let affinities = &self.worker.handles.affinities;
        affinities.of(self.ask.frontend, self.asked.is_ipv4(), self.client.stayer())
    }

    /// The connection goes to no endpoint.
    pub(crate) fn fail(&self, error: &UpstreamError) {
        self.client.open(None, None).fail(error.outcome(), error);
    }
}

/// Whether a failure of a try says something of the endpoint: one that took less time than it has (`own`) did not fail where
/// nothing was `left` of the route's `timeout`.
fn is_its_own(failure: Failure, own: Duration, left: Option<Duration>, took: Duration) -> bool {
    failure != Failure::Timeout || left.is_none_or(|left| left >= own || took < left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_the_routes_timeout_is_not_the_endpoints_fault() {
        let seconds = Duration::from_secs;
        for (name, failure, left, took, expected) in [
            ("no timeout of the route's", Failure::Timeout, None, 10, true),
            ("enough was left", Failure::Timeout, Some(10), 10, true),
            ("less was left", Failure::Timeout, Some(1), 1, false),
            ("nothing was left", Failure::Timeout, Some(0), 0, false),
            ("it was out of time before", Failure::Timeout, Some(7), 5, true),
            ("it said no", Failure::Connect, Some(1), 1, true),
        ] {
            let is_its_own = is_its_own(failure, seconds(10), left.map(seconds), seconds(took));
            assert_eq!(is_its_own, expected, "{name}");
        }
    }
}
