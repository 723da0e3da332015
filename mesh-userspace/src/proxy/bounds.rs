//! What bounds a connection that stands (`idleTimeout`, `maxConnectionDuration`), and what its end says of its endpoint.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::balance::{Failure, Place};
use crate::model::TrafficSettings;
use crate::telemetry::{ByteCounters, End, Outcome};

/// Looks at the byte counters within an idle timeout: a connection ends by a quarter of it too late at most.
const LOOKS: u32 = 4;

/// A connection's place among those of its destination, and what the destination's rules ask of it.
pub(crate) struct Held {
    place: Place,
    settings: Arc<TrafficSettings>,
}

impl Held {
    pub(super) fn new(place: Place, settings: &Arc<TrafficSettings>) -> Self {
        Self { place, settings: Arc::clone(settings) }
    }

    /// Whether there is anything that [`Self::bounds`] waits for.
    pub(crate) fn is_bounded(&self) -> bool {
        let limits = &self.settings.limits;
        limits.idle_timeout.is_some() || limits.max_duration.is_some() || self.settings.outliers.is_some()
    }

    /// Returns once the connection has reached a bound; nothing is done per byte for it.
    pub(crate) async fn bounds(&self, bytes: &ByteCounters) -> Outcome {
        let limits = &self.settings.limits;
        tokio::select! {
            () = idle(limits.idle_timeout, bytes) => Outcome::IdleTimeout,
            () = lasted(limits.max_duration) => Outcome::MaxDuration,
            outcome = self.hear(bytes) => match outcome {},
        }
    }

    /// Notes the first byte of an answer, where failures are counted; never returns.
    async fn hear(&self, bytes: &ByteCounters) -> Infallible {
        if self.settings.outliers.is_some() {
            bytes.answered().await;
            self.place.answered();
        }
        std::future::pending().await
    }

    /// The connection ended so.
    pub(crate) fn ended(&self, outcome: Outcome, bytes: &ByteCounters) {
        match verdict(outcome, bytes.totals(), bytes.first_end()) {
            Some(Ok(())) => self.place.answered(),
            Some(Err(failure)) => self.place.failed(failure),
            None => {}
        }
    }
}

async fn lasted(limit: Option<Duration>) {
    match limit {
        Some(limit) => sleep(limit).await,
        None => std::future::pending().await,
    }
}

/// Returns once no byte has moved in either direction for so long.
async fn idle(limit: Option<Duration>, bytes: &ByteCounters) {
    let Some(limit) = limit else { return std::future::pending().await };
    let (mut seen, mut looks) = (bytes.totals(), 0);
    while looks < LOOKS {
        sleep(limit / LOOKS).await;
        let now = bytes.totals();
        looks = if now == seen { looks + 1 } else { 0 };
        seen = now;
    }
}

/// What a connection's end says of its endpoint: it has answered, it has failed, or nothing. Who closes before the server has said a word may
/// never have wanted an answer.
fn verdict(
    outcome: Outcome,
    (to_server, to_client): (u64, u64),
    first_end: Option<End>,
) -> Option<Result<(), Failure>> {
    match outcome {
        _ if to_client > 0 => Some(Ok(())),
        Outcome::ResetByServer => Some(Err(Failure::NoAnswer)),
        Outcome::Closed if first_end == Some(End::Server) => Some(Err(Failure::NoAnswer)),
        Outcome::IdleTimeout if to_server > 0 => Some(Err(Failure::Timeout)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::poll;
    use tokio::time::{Instant, advance};

    use super::*;

    #[test]
    fn an_end_tells_of_the_endpoint_what_it_can() {
        use Failure::{NoAnswer, Timeout};
        let (client, server) = (Some(End::Client), Some(End::Server));
        for (name, outcome, bytes, first, expected) in [
            ("answered", Outcome::Closed, (5, 5), client, Some(Ok(()))),
            ("answered, then reset", Outcome::ResetByServer, (5, 5), None, Some(Ok(()))),
            ("reset before an answer", Outcome::ResetByServer, (5, 0), None, Some(Err(NoAnswer))),
            ("closed before an answer", Outcome::Closed, (5, 0), server, Some(Err(NoAnswer))),
            ("closed at once", Outcome::Closed, (0, 0), server, Some(Err(NoAnswer))),
            ("no answer wanted", Outcome::Closed, (5, 0), client, None),
            ("silent", Outcome::IdleTimeout, (5, 0), None, Some(Err(Timeout))),
            ("nothing asked", Outcome::IdleTimeout, (0, 0), None, None),
            ("the client gave up", Outcome::ResetByClient, (5, 0), None, None),
            ("withdrawn", Outcome::Withdrawn, (5, 0), None, None),
            ("lasted as long as it may", Outcome::MaxDuration, (5, 0), None, None),
        ] {
            assert_eq!(verdict(outcome, bytes, first), expected, "{name}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn idle_is_without_a_byte_either_way() {
        let (bytes, limit) = (ByteCounters::default(), Duration::from_mins(1));
        let began = Instant::now();
        let mut waiting = pin!(idle(Some(limit), &bytes));
        for step in 0..20 {
            assert!(poll!(&mut waiting).is_pending(), "{step}");
            if step % 2 == 0 {
                bytes.add_to_client(1);
            } else {
                bytes.add_to_server(1);
            }
            advance(limit / 2).await;
        }
        waiting.await;
        let last = limit / 2 * 19;
        let after = began.elapsed().saturating_sub(last);
        assert!(after >= limit && after <= limit + limit / LOOKS * 2, "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nothing_ends() {
        let bytes = ByteCounters::default();
        let (mut waiting, mut lasting) = (pin!(idle(None, &bytes)), pin!(lasted(None)));
        advance(Duration::from_hours(1000)).await;
        assert!(poll!(&mut waiting).is_pending() && poll!(&mut lasting).is_pending());
        let began = Instant::now();
        lasted(Some(Duration::from_secs(5))).await;
        assert_eq!(began.elapsed(), Duration::from_secs(5));
    }
}
