//! Who of the agents writes the status of routes: whoever holds a Lease, for as long as there is something to write.
//!
//! Clocks of nodes need not agree: a holder counts as gone when its lease has not changed for the lease's duration by the
//! clock of whoever looks. Two that try at once are told apart by the API server, which takes an update of the version that
//! was read and no other.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::Instant;

/// The lease, in the agents' namespace.
const NAME: &str = "mesh-route-status";
/// After so long without a change a holder is gone.
const DURATION: Duration = Duration::from_secs(15);
/// After so long without a renewal a holder takes itself for one no more: earlier than others do.
const RENEW_WITHIN: Duration = Duration::from_secs(10);
/// So often a holder renews.
const RENEW_EVERY: Duration = Duration::from_secs(4);

/// One agent's part in it.
pub(super) struct Candidate {
    leases: Api<Lease>,
    identity: String,
    seen: Seen,
    /// When the renewal that was last successful was begun.
    held: Option<Instant>,
}

/// The lease as it was when it was last seen to change.
#[derive(Debug, Default)]
struct Seen {
    version: Option<String>,
    since: Option<Instant>,
}

/// What to do about a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Create,
    Renew,
    TakeOver,
    Wait,
}

impl Candidate {
    pub(super) fn new(client: Client, namespace: &str, identity: String) -> Self {
        Self { leases: Api::namespaced(client, namespace), identity, seen: Seen::default(), held: None }
    }

    /// Whether this agent may write now.
    pub(super) fn holds(&self) -> bool {
        self.held.is_some_and(|since| since.elapsed() < RENEW_WITHIN)
    }

    /// Tries to get the lease, or to keep it; asks nobody while it was renewed a moment ago.
    ///
    /// # Errors
    /// The API server does not answer as it should; whether the lease is held is as before.
    pub(super) async fn hold(&mut self) -> Result<bool, kube::Error> {
        if self.held.is_some_and(|since| since.elapsed() < RENEW_EVERY) {
            return Ok(true);
        }
        let begun = Instant::now();
        let lease = self.leases.get_opt(NAME).await?;
        let step = self.seen.step(lease.as_ref(), &self.identity, begun);
        let written = match (step, lease) {
            (Step::Wait, _) => {
                self.held = None;
                return Ok(false);
            }
            (Step::Create, _) | (_, None) => {
                self.leases.create(&PostParams::default(), &self.lease(None, true)).await
            }
            (Step::Renew | Step::TakeOver, Some(old)) => {
                let lease = self.lease(Some(old), step == Step::TakeOver);
                self.leases.replace(NAME, &PostParams::default(), &lease).await
            }
        };
        match written {
            Ok(_) => {
                self.held = Some(begun);
                Ok(true)
            }
            // Another was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                self.held = None;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Gives it back, so that the next need not wait for it to run out.
    pub(super) async fn release(&mut self) -> Result<(), kube::Error> {
        if self.held.take().is_none() {
            return Ok(());
        }
        let Some(mut lease) = self.leases.get_opt(NAME).await? else { return Ok(()) };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(&self.identity) {
            return Ok(());
        }
        spec.holder_identity = Some(String::new());
        match self.leases.replace(NAME, &PostParams::default(), &lease).await {
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            other => other.map(drop),
        }
    }

    fn lease(&self, old: Option<Lease>, taken: bool) -> Lease {
        let now = MicroTime(Timestamp::now());
        let mut lease = old.unwrap_or_else(|| Lease {
            metadata: ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() },
            spec: None,
        });
        let spec: &mut LeaseSpec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(self.identity.clone());
        spec.lease_duration_seconds = i32::try_from(DURATION.as_secs()).ok();
        spec.renew_time = Some(now.clone());
        if taken {
            spec.acquire_time = Some(now);
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or_default().saturating_add(1));
        }
        lease
    }
}

impl Seen {
    fn step(&mut self, lease: Option<&Lease>, identity: &str, now: Instant) -> Step {
        let Some(lease) = lease else { return Step::Create };
        if self.since.is_none() || self.version != lease.metadata.resource_version {
            self.version.clone_from(&lease.metadata.resource_version);
            self.since = Some(now);
        }
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
        let unchanged = self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        if holder == identity {
            Step::Renew
        } else if holder.is_empty() || unchanged >= DURATION {
            Step::TakeOver
        } else {
            Step::Wait
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, version: &str) -> Lease {
        Lease {
            metadata: ObjectMeta { resource_version: Some(version.to_owned()), ..ObjectMeta::default() },
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.to_owned()),
                // By the holder's clock, which is wrong by years.
                renew_time: Some(MicroTime(Timestamp::UNIX_EPOCH)),
                ..LeaseSpec::default()
            }),
        }
    }

    #[test]
    fn a_holder_is_gone_when_its_lease_stays_the_same_for_us() {
        let (mut seen, start) = (Seen::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(seen.step(None, "a", start), Step::Create);
        assert_eq!(seen.step(Some(&lease("b", "1")), "a", after(100)), Step::Wait, "seen for the first time");
        assert_eq!(seen.step(Some(&lease("b", "1")), "a", after(114)), Step::Wait);
        assert_eq!(seen.step(Some(&lease("b", "2")), "a", after(116)), Step::Wait, "it was renewed");
        assert_eq!(seen.step(Some(&lease("b", "2")), "a", after(130)), Step::Wait);
        assert_eq!(seen.step(Some(&lease("b", "2")), "a", after(131)), Step::TakeOver);
        assert_eq!(seen.step(Some(&lease("a", "3")), "a", after(132)), Step::Renew);
        assert_eq!(seen.step(Some(&lease("", "4")), "a", after(133)), Step::TakeOver, "it was given back");
    }

    #[test]
    fn who_loses_it_knows_before_others_take_it() {
        assert!(RENEW_EVERY * 2 < RENEW_WITHIN && RENEW_WITHIN < DURATION);
    }
}
