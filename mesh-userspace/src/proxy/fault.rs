//! Faults that a route asks for (`fault.delay`, `fault.abort`): before anything is connected, so that no server sees them.
//!
//! Both may hit one connection, each by its own draw, the delay first, as in Envoy. While a connection is delayed nothing of
//! the mesh's state is held for it but its place among those that wait, of which there are [`MOST_DELAYED`] in an agent and
//! [`MOST_OF_POD`] for the clients of one pod; beyond those connections are not delayed (Envoy's `max_active_faults`), which is counted.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::chance::Chance;
use super::copy::broke;
use super::worker::Worker;
use crate::model::RouteActions;
use crate::telemetry::{ActionMetrics, Outcome};

/// Connections of an agent that may be delayed at once.
const MOST_DELAYED: usize = 16 * 1024;
/// Of these those of one pod: no tenant's rule takes them all.
const MOST_OF_POD: usize = MOST_DELAYED / 4;

/// Places for connections that are delayed.
#[derive(Debug)]
pub(super) struct Delays(Semaphore);

impl Default for Delays {
    fn default() -> Self {
        Self(Semaphore::new(MOST_DELAYED))
    }
}

impl Delays {
    /// Those of a pod's clients.
    pub(super) fn of_pod() -> Self {
        Self(Semaphore::new(MOST_OF_POD))
    }

    fn take<'a>(&'a self, of_pod: &'a Self, metrics: &'a ActionMetrics) -> Option<Place<'a>> {
        let permits = [of_pod.0.try_acquire().ok()?, self.0.try_acquire().ok()?];
        metrics.delays().inc();
        Some(Place { metrics, _permits: permits })
    }
}

/// A place, until it is dropped.
struct Place<'a> {
    metrics: &'a ActionMetrics,
    _permits: [SemaphorePermit<'a>; 2],
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.metrics.delays().dec();
    }
}

/// What is done to one connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fault {
    /// It waits for so long first.
    delay: Option<Duration>,
    /// It is reset.
    abort: bool,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Injected {
    /// Whether the connection was delayed.
    pub(super) delayed: bool,
    /// Why it ends here; `None`: it goes on.
    pub(super) end: Option<Ended>,
}

/// Why a connection ends before it is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Ended {
    /// As the route asks.
    #[error("aborted, as the route's fault says")]
    Aborted,
    /// The client reset it.
    #[error("the client left during the delay that the route's fault says")]
    ClientLeft,
    /// The client closed it in order, and nothing that it sent is left to be asked.
    #[error("the client closed it, with nothing sent, during the delay that the route's fault says")]
    ClientClosed,
    /// The agent, or the pod's enrolment, ended.
    #[error("the agent ended it during the delay that the route's fault says")]
    Cut,
}

impl Ended {
    /// What the record says.
    pub(super) const fn outcome(self) -> Outcome {
        match self {
            Self::Aborted => Outcome::FaultAborted,
            Self::ClientLeft => Outcome::ResetByClient,
            Self::ClientClosed => Outcome::Closed,
            Self::Cut => Outcome::AgentShutdown,
        }
    }
}

impl Fault {
    /// What the next connection with these actions gets. Only those draw that may get something: so a seed decides on them
    /// alike, whatever else there is.
    pub(super) fn of(actions: &RouteActions, chance: &Chance) -> Self {
        if actions.delay.is_none() && actions.abort.is_none() {
            return Self::default();
        }
        Self::decide(actions, chance.fault())
    }

    /// What these random numbers give a connection.
    fn decide(actions: &RouteActions, [delay, abort]: [u64; 2]) -> Self {
        Self {
            delay: actions.delay.filter(|(share, _)| share.takes(delay)).map(|(_, duration)| duration),
            abort: actions.abort.is_some_and(|share| share.takes(abort)),
        }
    }

    /// Whether nothing is done.
    pub(super) fn is_none(self) -> bool {
        self == Self::default()
    }

    /// Does it, to a connection of a pod's client. A client that resets is gone, and so is one that has closed in order with
    /// nothing sent; one that has sent something first may be waiting for an answer, for all that anyone can tell, and is
    /// connected when its time has come. `cut` is the end of everything.
    pub(super) async fn inject(
        self,
        worker: &Worker,
        of_pod: &Delays,
        client: &TcpStream,
        cut: impl Future<Output = ()>,
    ) -> Injected {
        let shared = &worker.shared;
        self.inject_within([&shared.delays, of_pod], shared.telemetry.metrics().actions(), client, cut).await
    }

    async fn inject_within(
        self,
        [delays, of_pod]: [&Delays; 2],
        metrics: &ActionMetrics,
        client: &TcpStream,
        cut: impl Future<Output = ()>,
    ) -> Injected {
        let mut delayed = false;
        if let Some(delay) = self.delay {
            if let Some(_place) = delays.take(of_pod, metrics) {
                delayed = true;
                metrics.fault_injected("delay");
                let end = tokio::select! {
                    () = tokio::time::sleep(delay) => None,
                    () = broke(client) => Some(Ended::ClientLeft),
                    end = closed(client) => Some(end),
                    () = cut => Some(Ended::Cut),
                };
                if end.is_some() {
                    return Injected { delayed, end };
                }
            } else {
                metrics.fault_skipped("too_many_delayed");
            }
        }
        if self.abort {
            metrics.fault_injected("abort");
        }
        Injected { delayed, end: self.abort.then_some(Ended::Aborted) }
    }
}

/// Returns once the client has closed in order and nothing that it sent is unread.
async fn closed(client: &TcpStream) -> Ended {
    match client.peek(&mut [0]).await {
        Ok(0) => Ended::ClientClosed,
        // It stays there while nobody reads, and a FIN after it is no end.
        Ok(_) => std::future::pending().await,
        // Who has read the error leaves nothing of it for [`broke`].
        Err(_) => Ended::ClientLeft,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::net::TcpListener;

    use super::*;
    use crate::model::Share;
    use crate::proxy::copy::finish;
    use crate::socket::reset_on_close;

    const HOUR: Duration = Duration::from_hours(1);

    proptest! {
        #[test]
        fn each_draw_decides_on_its_own_fault(
            delay in proptest::option::of(0.0..=100.0_f64),
            abort in proptest::option::of(0.0..=100.0_f64),
            draws in any::<[u64; 2]>(),
        ) {
            let (delay, abort) = (delay.map(Share::percent), abort.map(Share::percent));
            let actions =
                RouteActions { delay: delay.map(|share| (share, HOUR)), abort, ..RouteActions::default() };
            let fault = Fault::decide(&actions, draws);
            prop_assert_eq!(fault.delay.is_some(), delay.is_some_and(|share| share.takes(draws[0])));
            prop_assert_eq!(fault.abort, abort.is_some_and(|share| share.takes(draws[1])));
        }
    }

    #[test]
    fn shares_are_kept_over_many_connections_and_independent_of_each_other() {
        let actions = RouteActions {
            delay: Some((Share::percent(30.0), HOUR)),
            abort: Some(Share::percent(20.0)),
            ..RouteActions::default()
        };
        let chance = Chance::new(Some(1), 0);
        let mut counts = [0_i32; 4];
        for _ in 0..100_000 {
            let fault = Fault::decide(&actions, chance.fault());
            counts[usize::from(fault.delay.is_some()) + 2 * usize::from(fault.abort)] += 1;
        }
        for (count, expected) in counts.iter().zip([56_000, 24_000, 14_000, 6_000]) {
            // Five times the standard deviation at most; the seed makes it the same each time.
            assert!((count - expected).abs() < 800, "{counts:?}");
        }
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    async fn inject(fault: Fault, delays: &Delays, server: &TcpStream, cut: bool) -> Injected {
        let cut = async {
            if !cut {
                std::future::pending::<()>().await;
            }
        };
        fault.inject_within([delays, &Delays::of_pod()], &ActionMetrics::default(), server, cut).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_waits_and_goes_on_or_is_aborted() {
        let (_client, server) = pair().await;
        for (delay, abort, end) in [
            (None, false, None),
            (None, true, Some(Ended::Aborted)),
            (Some(HOUR), false, None),
            (Some(HOUR), true, Some(Ended::Aborted)),
        ] {
            let began = tokio::time::Instant::now();
            let injected = inject(Fault { delay, abort }, &Delays::default(), &server, false).await;
            assert_eq!(injected, Injected { delayed: delay.is_some(), end }, "{delay:?} {abort}");
            assert_eq!(began.elapsed() >= HOUR, delay.is_some());
        }
    }

    #[tokio::test]
    async fn a_client_that_resets_or_an_agent_that_ends_is_not_waited_for() {
        let fault = Fault { delay: Some(HOUR), abort: false };
        let (client, server) = pair().await;
        let cut = inject(fault, &Delays::default(), &server, true).await;
        assert_eq!(cut, Injected { delayed: true, end: Some(Ended::Cut) });
        reset_on_close(&client);
        drop(client);
        let left = inject(fault, &Delays::default(), &server, false).await;
        assert_eq!(left, Injected { delayed: true, end: Some(Ended::ClientLeft) });
    }

    #[tokio::test]
    async fn a_client_that_closed_is_waited_for_only_with_what_it_sent() {
        let fault = Fault { delay: Some(HOUR), abort: false };
        let (client, server) = pair().await;
        drop(client);
        let closed = inject(fault, &Delays::default(), &server, false).await;
        assert_eq!(closed, Injected { delayed: true, end: Some(Ended::ClientClosed) });
        let (client, server) = pair().await;
        client.writable().await.unwrap();
        client.try_write(b"?").unwrap();
        finish(&client);
        let asked = Fault { delay: Some(Duration::from_millis(200)), abort: false };
        let goes_on = inject(asked, &Delays::default(), &server, false).await;
        assert_eq!(goes_on, Injected { delayed: true, end: None });
    }

    #[tokio::test]
    async fn beyond_the_bound_nobody_is_delayed() {
        let (_client, server) = pair().await;
        let delays = Delays(Semaphore::new(1));
        let metrics = ActionMetrics::default();
        let fault = Fault { delay: Some(HOUR), abort: false };
        let of_pod = Delays::of_pod();
        let place = delays.take(&of_pod, &metrics);
        assert_eq!(inject(fault, &delays, &server, false).await, Injected::default());
        drop(place);
        let cut = inject(fault, &delays, &server, true).await;
        assert_eq!(cut, Injected { delayed: true, end: Some(Ended::Cut) }, "the place is free again");
        let (all, of_pod) = (Delays::default(), Delays(Semaphore::new(1)));
        let place = all.take(&of_pod, &metrics);
        assert!(all.take(&of_pod, &metrics).is_none(), "one pod does not take them all");
        assert!(all.take(&Delays::of_pod(), &metrics).is_some(), "another pod's are left");
        drop(place);
        assert!(all.take(&of_pod, &metrics).is_some());
    }
}
