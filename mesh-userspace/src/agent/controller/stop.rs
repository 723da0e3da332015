//! The controller's end: capture ends, connections get their time, everything in the kernel stays in force.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::status::connections;
use super::{Controller, Request, TICK};
use crate::external::External;
use crate::proxy::Stop;

/// How long connections that are cut may take to notice.
const CUT: Duration = Duration::from_secs(1);

impl Controller {
    /// Ends capture, lets connections end by themselves for a while, and leaves everything in the kernel in force.
    pub(super) async fn stop(&mut self, requests: &mut mpsc::Receiver<Request>) {
        self.datapath.stop_capture();
        for pod in self.pods.values_mut() {
            pod.enrolment.close_listeners();
            pod.stop.send_replace(Stop::Draining);
        }
        if let Some(external) = &self.external {
            external.stop(Stop::Draining);
        }
        let deadline = Instant::now() + self.drain;
        let mut tick = tokio::time::interval(TICK);
        while self.open() > 0 && Instant::now() < deadline {
            tokio::select! {
                _ = tick.tick() => self.finish_leaving(),
                request = requests.recv() => match request {
                    Some(Request::Status(answer) | Request::Check(answer)) => drop(answer.send(self.status())),
                    // Whoever asks is told that there is no answer.
                    Some(Request::Connections(_unanswered)) => {}
                    Some(Request::Stop(_told_again)) => break,
                    None => break,
                },
            }
        }
        for pod in self.pods.values() {
            pod.stop.send_replace(Stop::Cut);
        }
        if let Some(external) = &self.external {
            external.stop(Stop::Cut);
        }
        // What is cut is reset by its own task.
        let deadline = Instant::now() + CUT;
        while self.workers.connections() > 0 && Instant::now() < deadline {
            tick.tick().await;
        }
        for leaving in std::mem::take(&mut self.leaving) {
            self.leave(leaving.enrolled);
        }
    }

    /// Connections that are worth waiting for.
    pub(super) fn open(&self) -> usize {
        let pods: usize = self.pods.values().map(|pod| connections(&pod.pod)).sum();
        pods + self.external.as_ref().map_or(0, External::connections)
    }
}
