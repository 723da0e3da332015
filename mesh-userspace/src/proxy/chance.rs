//! The random numbers that decide which connections get a fault or a copy.
//!
//! Each worker has its own stream for each of the two, from which nothing else draws: with a seed (`--seed`) the n-th
//! connection of a worker is decided alike in every run, whatever else went on.

use std::cell::RefCell;

use fastrand::Rng;

/// One worker's streams.
#[derive(Debug)]
pub(crate) struct Chance {
    faults: RefCell<Rng>,
    mirrors: RefCell<Rng>,
}

impl Chance {
    /// Those of the worker with this number; without a seed they are different each time.
    pub(super) fn new(seed: Option<u64>, worker: usize) -> Self {
        let Some(seed) = seed else {
            return Self { faults: RefCell::new(Rng::new()), mirrors: RefCell::new(Rng::new()) };
        };
        let mut root = Rng::with_seed(seed);
        for _ in 0..2 * worker {
            let _another = root.fork();
        }
        Self { faults: RefCell::new(root.fork()), mirrors: RefCell::new(root.fork()) }
    }

    /// For the next connection's faults: its delay, its abort.
    pub(super) fn fault(&self) -> [u64; 2] {
        let mut faults = self.faults.borrow_mut();
        [faults.u64(..), faults.u64(..)]
    }

    /// For the next mirror.
    pub(super) fn mirror(&self) -> u64 {
        self.mirrors.borrow_mut().u64(..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_each_worker_its_own_streams_which_do_not_disturb_each_other() {
        let draws = |seed, worker| {
            let chance = Chance::new(seed, worker);
            let _between = [chance.mirror(), chance.mirror()];
            [chance.fault(), chance.fault()]
        };
        let undisturbed = Chance::new(Some(7), 1);
        assert_eq!(draws(Some(7), 1), [undisturbed.fault(), undisturbed.fault()]);
        assert_ne!(draws(Some(7), 1), draws(Some(7), 0));
        assert_ne!(draws(Some(7), 1), draws(Some(8), 1));
        assert_ne!(draws(None, 0), draws(None, 0));
        let chance = Chance::new(Some(7), 0);
        assert_ne!(chance.fault()[0], chance.mirror());
    }
}
