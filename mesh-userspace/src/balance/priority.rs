//! Failover: how connections are shared between priorities by how much of each is well (Envoy's `LoadBalancerBase`, priority levels
//! and panic threshold).

/// A priority of which less than this part is well spills over to the next, in per cent: 100 / 140 (Envoy's
/// `overprovisioning_factor` as it is by default).
const OVERPROVISIONING: u64 = 140;

/// How many of a priority's endpoints there are, and how many take connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Health {
    pub(super) well: usize,
    pub(super) total: usize,
}

impl Health {
    /// What it can take, in per cent of everything.
    pub(super) fn availability(self) -> u64 {
        match self.total {
            0 => 0,
            total => (OVERPROVISIONING * self.well as u64 / total as u64).min(100),
        }
    }

    /// Whether so few are well that all are taken for it.
    fn panics(self, threshold: u32) -> bool {
        (self.well as u64) * 100 < u64::from(threshold) * self.total.max(1) as u64
    }
}

/// What a priority gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    /// Of all connections, in per cent.
    pub(super) percent: u64,
    /// Whether nobody is left out there.
    pub(super) panic: bool,
}

/// What each priority gets; 100 together, unless there is nobody at all. `threshold`: in per cent, 0 for no panic.
pub(super) fn loads(priorities: &[Health], threshold: u32) -> Vec<Load> {
    let available: Vec<u64> = priorities.iter().map(|health| health.availability()).collect();
    let all = available.iter().sum::<u64>().min(100);
    let panics = |health: &Health| all < 100 && health.panics(threshold);
    if !priorities.is_empty() && priorities.iter().all(panics) {
        return by_number(priorities);
    }
    let mut left = 100;
    let mut loads: Vec<Load> = priorities
        .iter()
        .zip(&available)
        .map(|(health, available)| {
            let percent = (available * 100).checked_div(all).unwrap_or(0).min(left);
            left -= percent;
            Load { percent, panic: panics(health) }
        })
        .collect();
    // What rounding has left goes to the first that can take it.
    if let Some(first) = available.iter().position(|&available| available > 0) {
        loads[first].percent += left;
    }
    loads
}

/// All are in panic: each priority gets its share of the endpoints.
fn by_number(priorities: &[Health]) -> Vec<Load> {
    let all: u64 = priorities.iter().map(|health| health.total as u64).sum();
    let mut left = if all == 0 { 0 } else { 100 };
    let mut loads: Vec<Load> = priorities
        .iter()
        .map(|health| {
            let percent = (100 * health.total as u64).checked_div(all).unwrap_or(0);
            left -= percent;
            Load { percent, panic: true }
        })
        .collect();
    if let Some(first) = priorities.iter().position(|health| health.total > 0) {
        loads[first].percent += left;
    }
    loads
}

/// The priority that a random number falls into.
pub(super) fn draw(loads: &[Load], random: u64) -> Option<usize> {
    let all: u64 = loads.iter().map(|load| load.percent).sum();
    let mut slot = u64::try_from((u128::from(random) * u128::from(all)) >> 64).unwrap_or(0);
    loads.iter().position(|load| match slot.checked_sub(load.percent) {
        Some(rest) => {
            slot = rest;
            false
        }
        None => true,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn percents(health: &[(usize, usize)], threshold: u32) -> Vec<u64> {
        let health: Vec<_> = health.iter().map(|&(well, total)| Health { well, total }).collect();
        loads(&health, threshold).iter().map(|load| load.percent).collect()
    }

    #[test]
    fn two_and_three_priorities_as_in_envoys_documentation() {
        // docs/root/intro/arch_overview/upstream/load_balancing/priority.rst
        for (health, expected) in [
            (vec![(100, 100), (100, 100)], vec![100, 0]),
            (vec![(72, 100), (100, 100)], vec![100, 0]),
            (vec![(71, 100), (100, 100)], vec![99, 1]),
            (vec![(50, 100), (100, 100)], vec![70, 30]),
            (vec![(25, 100), (100, 100)], vec![35, 65]),
            (vec![(0, 100), (100, 100)], vec![0, 100]),
            (vec![(25, 100), (25, 100)], vec![50, 50]),
            (vec![(20, 100), (20, 100), (10, 100)], vec![40, 40, 20]),
            (vec![(0, 100), (0, 100)], vec![0, 0]),
            (vec![(0, 0), (1, 1)], vec![0, 100]),
        ] {
            assert_eq!(percents(&health, 0), expected, "{health:?}");
        }
    }

    #[test]
    fn in_panic_nobody_is_left_out() {
        let of = |well, total| Health { well, total };
        let panics = |health: &[Health], threshold| -> Vec<bool> {
            loads(health, threshold).iter().map(|load| load.panic).collect()
        };
        assert_eq!(panics(&[of(1, 4)], 50), [true]);
        assert_eq!(panics(&[of(2, 4)], 50), [false]);
        assert_eq!(panics(&[of(0, 4)], 0), [false], "0 is off");
        // The second can take all of it.
        assert_eq!(panics(&[of(0, 4), of(4, 4)], 50), [false, false]);
        assert_eq!(percents(&[(0, 3), (0, 1)], 50), [75, 25], "all in panic: by number");
        assert_eq!(panics(&[of(0, 3), of(0, 1)], 50), [true, true]);
    }

    proptest! {
        #[test]
        fn what_is_above_takes_all_that_it_can(
            health in prop::collection::vec((0_usize..20, 0_usize..20), 1..6)
        ) {
            let health: Vec<(usize, usize)> = health.into_iter().map(|(a, b)| (a.min(b), a.max(b))).collect();
            let can: Vec<u64> = health
                .iter()
                .map(|&(well, total)| if total == 0 { 0 } else { (140 * well as u64 / total as u64).min(100) })
                .collect();
            let loads = percents(&health, 0);
            let all: u64 = can.iter().sum();
            prop_assert_eq!(loads.iter().sum::<u64>(), if all == 0 { 0 } else { 100 });
            let mut above = 0;
            for (&can, &load) in can.iter().zip(&loads) {
                if all >= 100 {
                    prop_assert_eq!(load, can.min(100_u64.saturating_sub(above)));
                } else if all > 0 {
                    // Nobody can take all: each in proportion, rounded down but for the first.
                    prop_assert!(load * all <= can * 100 + loads.len() as u64 * all);
                    prop_assert!((load + 1) * all > can * 100);
                }
                above += can;
            }
        }

        #[test]
        fn draws_follow_the_loads(health in prop::collection::vec(0_usize..10, 1..5)) {
            let health: Vec<_> = health.into_iter().map(|well| Health { well, total: 10 }).collect();
            let loads = loads(&health, 0);
            let mut counts = vec![0_u64; loads.len()];
            // One number in the middle of each hundredth.
            let hundredth = u64::MAX / 100;
            for number in 0..100 {
                if let Some(index) = draw(&loads, number * hundredth + hundredth / 2) {
                    counts[index] += 1;
                }
            }
            prop_assert_eq!(counts, loads.iter().map(|load| load.percent).collect::<Vec<_>>());
        }
    }
}
