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
