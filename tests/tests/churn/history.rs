//! What was wished and what was in force, when; and what that says of a connection.
//!
//! A connection to a service may reach the endpoints of the newest revision that was known to be in force before it began,
//! and of every later one that had been wished before it was there. Nothing is said about how long a revision takes: it is
//! the agent that tells when one is in force. While there is no agent, nothing is.

use std::collections::{BTreeMap, BTreeSet};

use mesh_tests::peer::{Attempt, Outcome};

use crate::stage::{ENDPOINTS, endpoint_at, targets};

/// A service by number.
pub(crate) type Service = u8;
/// Of one service, from 1.
pub(crate) type Revision = u64;

/// A revision of a service.
#[derive(Clone, Debug)]
struct Wish {
    at_us: u64,
    revision: Revision,
    endpoints: BTreeSet<u8>,
}

/// All revisions, and when each was known to be in force.
#[derive(Debug, Default)]
pub(crate) struct History {
    wishes: BTreeMap<Service, Vec<Wish>>,
    confirmed: BTreeMap<Service, Vec<(u64, Revision)>>,
}

impl History {
    /// From now on the agent may read it.
    pub(crate) fn wish(&mut self, service: Service, at_us: u64, revision: Revision, endpoints: Vec<u8>) {
        let endpoints = endpoints.into_iter().collect();
        self.wishes.entry(service).or_default().push(Wish { at_us, revision, endpoints });
    }

    /// From now on this revision is in force, or a later one.
    pub(crate) fn confirm(&mut self, service: Service, at_us: u64, revision: Revision) {
        self.confirmed.entry(service).or_default().push((at_us, revision));
    }

    /// How often it was known what is in force.
    pub(crate) fn confirmations(&self) -> usize {
        self.confirmed.values().map(Vec::len).min().unwrap_or(0)
    }

    /// The revisions that may have served a connection.
    fn window(&self, service: Service, begun_us: u64, connected_us: u64) -> &[Wish] {
        let confirmed = self.confirmed.get(&service).map_or(&[][..], Vec::as_slice);
        let known = confirmed[..confirmed.partition_point(|(at, _)| *at <= begun_us)].last();
        let oldest = known.map_or(0, |(_, revision)| *revision);
        let wishes = self.wishes.get(&service).map_or(&[][..], Vec::as_slice);
        let from = wishes.partition_point(|wish| wish.revision < oldest);
        let to = wishes.partition_point(|wish| wish.at_us <= connected_us);
        &wishes[from..to.max(from)]
    }
}

/// What is to be said of all connections.
#[derive(Debug, Default)]
pub(crate) struct Verdicts {
    /// Those that should not have been, in words.
    pub(crate) wrong: Vec<String>,
    right: u64,
    cut: u64,
    allowed: u64,
}

impl Verdicts {
    pub(crate) fn of(attempts: &[Attempt], history: &History) -> Self {
        let services: Vec<Service> = targets().map(|(service, _)| service).collect();
        let mut verdicts = Self::default();
        for attempt in attempts {
            verdicts.add(services[attempt.target], attempt, history);
        }
        verdicts
    }

    fn add(&mut self, service: Service, attempt: &Attempt, history: &History) {
        let window = history.window(service, attempt.begun_us, attempt.connected_us);
        let allowed: BTreeSet<u8> = window.iter().flat_map(|wish| &wish.endpoints).copied().collect();
        match &attempt.outcome {
            Outcome::Reached(address)
                if endpoint_at(*address).is_some_and(|reached| allowed.contains(&reached)) =>
            {
                self.right += 1;
                self.allowed += allowed.len() as u64;
            }
            // Its endpoint went, and the agent ends what is connected to one that has: an endpoint of one revision is
            // missing from a later one.
            Outcome::Cut(how) if how == "reset" || how == "ConnectionAborted" => {
                let later = history.window(service, attempt.begun_us, attempt.ended_us);
                if later.windows(2).any(|pair| !pair[0].endpoints.is_subset(&pair[1].endpoints)) {
                    self.cut += 1;
                } else {
                    self.wrong.push(format!("service {service}: {attempt:?}, but no endpoint went"));
                }
            }
            _ => self
                .wrong
                .push(format!("service {service}: {attempt:?}, valid were {allowed:?} of {window:?}")),
        }
    }

    /// A few of those that were wrong.
    pub(crate) fn first(&self) -> &[String] {
        &self.wrong[..self.wrong.len().min(5)]
    }

    /// Which share of all endpoints a connection must not have reached, on average.
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    pub(crate) fn excluded(&self) -> f64 {
        1.0 - self.allowed as f64 / (self.right.max(1) * u64::from(ENDPOINTS)) as f64
    }

    /// A line for whoever looks at the output.
    pub(crate) fn tell(&self) {
        eprintln!(
            "{} right, {} cut as their endpoint went, {} wrong; {:.0} % of the endpoints were not to be reached",
            self.right,
            self.cut,
            self.wrong.len(),
            self.excluded() * 100.0
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_judged_by_what_was_wished_and_what_was_in_force() {
        let mut history = History::default();
        history.wish(0, 50, 1, vec![0]);
        history.confirm(0, 100, 1);
        history.wish(0, 200, 2, vec![1]);
        history.confirm(0, 300, 2);
        history.wish(0, 400, 3, vec![1, 2]);
        let reached = |endpoint: u8| Outcome::Reached(crate::stage::address_of(endpoint));
        let (failed, reset) = (Outcome::Failed("refused".to_owned()), Outcome::Cut("reset".to_owned()));
        let cases = [
            (110, 120, 120, reached(0), true, "the first is in force"),
            (110, 120, 250, reached(1), false, "the second was not wished yet"),
            (110, 210, 210, reached(1), true, "the second was wished meanwhile"),
            (210, 220, 220, reached(0), true, "the second is not known to be in force"),
            (290, 350, 350, reached(0), true, "it may have connected before the second was"),
            (310, 320, 320, reached(0), false, "the second is in force"),
            (310, 320, 320, reached(1), true, "the second is in force"),
            (310, 320, 320, reached(9), false, "it has never been an endpoint"),
            (310, 320, 320, failed, false, "none may fail"),
            (110, 120, 250, reset.clone(), true, "its endpoint went"),
            (310, 320, 500, reset, false, "one came, none went"),
        ];
        for (begun_us, connected_us, ended_us, outcome, right, why) in cases {
            let attempt = Attempt { target: 0, begun_us, connected_us, ended_us, outcome };
            let verdicts = Verdicts::of(std::slice::from_ref(&attempt), &history);
            assert_eq!(verdicts.wrong.is_empty(), right, "{why}: {attempt:?}");
        }
    }
}
