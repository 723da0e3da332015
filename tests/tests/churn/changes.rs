//! Changes: endpoints that come and go, services that do.

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use mesh_tests::peer::monotonic_us;

use crate::history::{History, Revision};
use crate::stage::{ENDPOINTS, SERVICES, Stage, manifest};

/// Services that nobody connects to, and that come and go.
const PASSING: u8 = 20;
/// Endpoints that a service has at most.
const MOST: usize = 3;

/// The one that changes the manifests.
pub(crate) struct Changes<'a> {
    stage: &'a Stage,
    history: &'a Mutex<History>,
    random: fastrand::Rng,
    revisions: Vec<Revision>,
    passing: Vec<bool>,
}

impl<'a> Changes<'a> {
    /// Writes the first revision of all.
    pub(crate) fn begin(stage: &'a Stage, history: &'a Mutex<History>) -> Result<Self> {
        let seed = fastrand::u64(..);
        eprintln!("seed {seed}");
        let random = fastrand::Rng::with_seed(seed);
        let (revisions, passing) = (vec![0; SERVICES.into()], vec![false; PASSING.into()]);
        let mut changes = Self { stage, history, random, revisions, passing };
        (0..SERVICES).try_for_each(|service| changes.write(service))?;
        Ok(changes)
    }

    /// Makes so many changes, so many a second.
    pub(crate) fn make(&mut self, count: u32, rate: u32) -> Result<()> {
        let begun = Instant::now();
        for number in 0..count {
            // Pace, not synchronisation: one that is late makes up for it.
            thread::sleep(
                (begun + Duration::from_secs(1) * number / rate).saturating_duration_since(Instant::now()),
            );
            if self.random.u8(..5) == 0 {
                self.come_or_go()?;
            } else {
                let service = self.random.u8(..SERVICES);
                self.write(service)?;
            }
        }
        Ok(())
    }

    /// Gives a service other endpoints; it always has one.
    fn write(&mut self, service: u8) -> Result<()> {
        let mut endpoints: Vec<u8> = (0..ENDPOINTS).collect();
        self.random.shuffle(&mut endpoints);
        endpoints.truncate(self.random.usize(1..=MOST));
        let revision = &mut self.revisions[usize::from(service)];
        *revision += 1;
        let text = manifest(service, *revision, &endpoints);
        // Before it can be read.
        let mut history = self.history.lock().map_err(|_poisoned| anyhow!("a thread panicked"))?;
        history.wish(service, monotonic_us(), *revision, endpoints);
        drop(history);
        self.stage.lab.manifests().apply(&format!("s{service}.yaml"), &text)
    }

    fn come_or_go(&mut self) -> Result<()> {
        let number = self.random.u8(..PASSING);
        let there = &mut self.passing[usize::from(number)];
        *there = !*there;
        let (file, manifests) = (format!("passing{number}.yaml"), self.stage.lab.manifests());
        // Numbers above those that are connected to.
        if *there {
            manifests.apply(&file, &manifest(SERVICES + number, 1, &[0, 1]))
        } else {
            manifests.delete(&file)
        }
    }
}
