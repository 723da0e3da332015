//! Endpoints that are left out, and that come back: in the log, in the metrics, and as an Event on their pod.

use std::sync::Arc;

use super::events::Events;
use crate::balance::{Change, Event};
use crate::proxy::Shared;

/// Tells from now on of what the balancers do, and has endpoints come back for as long as it is polled.
pub(super) async fn tell(shared: Arc<Shared>, events: Events) {
    let told = Arc::downgrade(&shared);
    shared.balancers.on_change(move |change| {
        // Without it there is nobody left to be told.
        if let Some(shared) = told.upgrade() {
            say(&shared, &events, change);
        }
    });
    let counted = Arc::downgrade(&shared);
    shared.telemetry.metrics().on_scrape(move |metrics| {
        if let Some(shared) = counted.upgrade() {
            metrics.balance().set_ejected(shared.balancers.ejected());
        }
    });
    shared.balancers.run(&shared.snapshot).await;
}

fn say(shared: &Shared, events: &Events, change: &Change) {
    let (destination, metrics) = (&change.destination, shared.telemetry.metrics().balance());
    let (dst, pod) = (change.address, change.workload.as_ref().map(ToString::to_string));
    let note = match change.event {
        Event::Ejected { reason, lasts, times } => {
            let reason = reason.as_str();
            metrics.ejected(destination, reason);
            let lasts_ms = u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX);
            tracing::warn!(%destination, dst.addr = %dst, pod, reason, lasts_ms, times, "endpoint ejected");
            format!("{dst} gets no new connections to {destination} from this node for {lasts:?}: {reason}")
        }
        Event::Spared { reason } => {
            let reason = reason.as_str();
            metrics.spared(destination, reason);
            // Each row again, for as long as it fails: the metric counts them.
            tracing::debug!(%destination, dst.addr = %dst, pod, reason, "endpoint fails, but as many are ejected as may be");
            return;
        }
        Event::Returned => {
            metrics.returned(destination);
            tracing::info!(%destination, dst.addr = %dst, pod, "endpoint returned");
            format!("{dst} gets connections to {destination} from this node again")
        }
    };
    let snapshot = shared.snapshot.load();
    let workload = change.workload.as_ref().and_then(|uid| snapshot.workloads.get(uid));
    // What is no pod has nobody who looks at its events.
    let Some(workload) = workload.filter(|workload| workload.pod_uid.is_some()) else { return };
    if matches!(change.event, Event::Returned) {
        events.returned(workload, &note);
    } else {
        events.ejected(workload, &note);
    }
}
