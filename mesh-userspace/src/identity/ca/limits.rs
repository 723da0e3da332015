//! How many connections there may be, in total and from one address, and how often what is wrong with them is logged.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Places for connections.
#[derive(Debug)]
pub(super) struct Places {
    total: usize,
    per_address: usize,
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// A place that is taken until this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    address: IpAddr,
}

impl Places {
    pub(super) fn new(total: usize, per_address: usize) -> Arc<Self> {
        Arc::new(Self { total, per_address, taken: Mutex::default() })
    }

    /// A place for a connection from there, or which limit has been reached.
    pub(super) fn take(self: &Arc<Self>, address: IpAddr) -> Result<Place, &'static str> {
        let address = site(address);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.values().sum::<usize>() >= self.total {
            return Err("too_many");
        }
        let own = taken.entry(address).or_default();
        if *own >= self.per_address {
            return Err("too_many_of_address");
        }
        *own += 1;
        Ok(Place { places: Arc::clone(self), address })
    }
}

/// An IPv4 address, or the /64 of an IPv6 one: whoever has one address there has them all.
fn site(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

/// Lets so many lines pass in a while and counts those that it does not.
#[derive(Debug)]
pub(super) struct Quiet {
    lines: u64,
    every: Duration,
    state: Mutex<(Option<Instant>, u64)>,
}

impl Quiet {
    pub(super) const fn new(lines: u64, every: Duration) -> Self {
        Self { lines, every, state: Mutex::new((None, 0)) }
    }

    /// Whether a line may be logged now; if so, how many have not been since the last while began.
    pub(super) fn pass(&self) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (begun, count) = *state;
        if begun.is_none_or(|begun| begun.elapsed() >= self.every) {
            *state = (Some(Instant::now()), 1);
            return Some(count.saturating_sub(self.lines));
        }
        state.1 += 1;
        (state.1 <= self.lines).then_some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_given_back() {
        let places = Places::new(3, 2);
        let (a, b): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        let first = places.take(a).unwrap();
        let second = places.take(mapped).unwrap();
        assert_eq!(places.take(a).unwrap_err(), "too_many_of_address");
        let third = places.take(b).unwrap();
        assert_eq!(places.take(b).unwrap_err(), "too_many");
        drop((first, second, third));
        assert!(places.taken.lock().unwrap().is_empty());
        assert!(places.take(a).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_storm_is_few_lines() {
        let quiet = Quiet::new(2, Duration::from_secs(10));
        assert_eq!([(); 5].map(|()| quiet.pass()), [Some(0), Some(0), None, None, None]);
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(quiet.pass(), Some(3));
    }
}
