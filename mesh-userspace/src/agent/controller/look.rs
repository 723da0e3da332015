//! What is looked at again and again: the programs in force, and a test connection through each pod.

use tokio::time::Instant;

use super::Controller;
use super::pods::Enrolled;
use crate::node::probe;
use crate::proxy::Canary;

/// Test connections that may fail in a row before the rest waits for the next round: each takes its time.
const FAILURES: usize = 3;

impl Controller {
    /// The metrics hear what the kernel says of the programs.
    pub(super) fn tell_attachments(&self) {
        for attachment in self.datapath.attachments() {
            self.shared.telemetry.metrics().set_attached(attachment.program, attachment.attached);
        }
    }

    /// A test connection through these pods, and a look at all that should be there. What is missing is told, not mended.
    pub(super) fn test_pods(&mut self, which: impl Fn(&Enrolled) -> bool) {
        let mut failures = 0;
        for pod in self.pods.values_mut().filter(|pod| which(pod)) {
            pod.missing = self.enroller.missing(&self.datapath, &pod.enrolment);
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
