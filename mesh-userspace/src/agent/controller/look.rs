//! What is looked at again and again: the programs in force, what each pod should have, and a test connection through it.

use std::collections::BTreeMap;
use std::time::SystemTime;

use tokio::time::Instant;

use super::pods::{Enrolled, Mend};
use super::{Controller, chain};
use crate::node::probe;
use crate::proxy::Canary;

/// Test connections that may fail in a row before the rest waits for the next round: each takes its time.
const FAILURES: usize = 3;
/// Every pod is looked at in full once in so many looks, whatever its namespace has told.
const ROUNDS: u64 = 30;

impl Controller {
    /// Compares what should be with what is, and mends it; the metrics hear of both.
    pub(super) fn mend(&mut self, all: bool) {
        self.mend_programs();
        self.looks = self.looks.wrapping_add(1);
        self.mend_pods(all, |_| true);
    }

    /// The same of these pods alone.
    pub(super) fn mend_pods(&mut self, all: bool, which: impl Fn(&Enrolled) -> bool) {
        let listening = self.datapath.listening();
        let mut opened = Vec::new();
        for pod in self.pods.values_mut().filter(|pod| which(pod)) {
            let full = all || pod.enrolment.cookie % ROUNDS == self.looks % ROUNDS;
            let mended =
                self.enroller.mend(&mut self.datapath, &mut pod.enrolment, &pod.modes, &listening, full);
            let broken: Vec<String> = mended.broken.iter().map(|error| chain(error)).collect();
            for problem in broken.iter().filter(|problem| !pod.broken.contains(problem)) {
                tracing::error!(pod = %pod.enrolment.uid, problem, "what a pod needs is not as it should be");
            }
            pod.broken = broken;
            opened.extend(
                mended.opened.into_iter().map(|listener| (std::sync::Arc::clone(&pod.pod), listener)),
            );
            if mended.done.is_empty() {
                continue;
            }
            let mut kinds: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
            for (kind, what) in mended.done {
                kinds.entry(kind).or_default().push(what);
            }
            for kind in kinds.keys() {
                self.shared.telemetry.metrics().pod_mended(kind);
            }
            let what = kinds.into_values().flatten().collect::<Vec<_>>().join("; ");
            // Somebody may take it away again and again.
            if self.told.is_news(&format!("mended {}", pod.enrolment.uid), &what) {
                tracing::warn!(pod = %pod.enrolment.uid, what, "mended");
            }
            self.events.mended(&pod.workload, &what);
            pod.mended = Some(Mend { when: SystemTime::now(), what });
        }
        for (pod, listener) in opened {
            self.workers.listen(&pod, listener.role, listener.socket);
        }
    }

    /// The metrics hear what the kernel says of the programs; one that was taken off is put in force again.
    fn mend_programs(&mut self) {
        let attachments = self.datapath.attachments();
        for attachment in &attachments {
            self.shared.telemetry.metrics().set_attached(attachment.program, attachment.attached);
        }
        let off: Vec<&str> =
            attachments.iter().filter(|one| !one.attached).map(|attachment| attachment.program).collect();
        if off.is_empty() {
            return;
        }
        let programs = off.join(" ");
        match self.datapath.reattach() {
            Ok(()) => {
                if self.told.is_news("programs", &programs) {
                    tracing::warn!(programs, "mended: programs were not in force");
                }
                self.shared.telemetry.metrics().pod_mended("programs");
            }
            Err(error) => {
                let error = chain(&error);
                if self.told.is_news("programs", &error) {
                    tracing::error!(programs, error, "programs cannot be put in force");
                }
            }
        }
    }

    /// A test connection through these pods.
    pub(super) fn test_pods(&mut self, which: impl Fn(&Enrolled) -> bool) {
        self.test_some(usize::MAX, which);
    }

    /// The same, through so many of them at most.
    pub(super) fn test_some(&mut self, most: usize, which: impl Fn(&Enrolled) -> bool) {
        let mut failures = 0;
        for pod in self.pods.values_mut().filter(|pod| which(pod)).take(most) {
            let token: [u8; 16] = fastrand::u128(..).to_ne_bytes();
            self.shared.canary.expect(token);
            let address = Canary::address(pod.enrolment.addresses[0]);
            let result = probe::run(&self.datapath, pod.pod.netns(), address, token);
            let is_new = pod.canary.as_ref() != Some(&result);
            pod.canary = Some(result.clone());
            pod.tested = Instant::now();
            if let Err(reason) = result {
                if is_new {
                    tracing::warn!(pod = %pod.enrolment.uid, reason, "the test connection did not arrive");
                }
                failures += 1;
                if failures == FAILURES {
                    return;
                }
            }
        }
    }
}
