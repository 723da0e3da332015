//! Direct flows of the kernel, as flow records.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;

use crate::datapath::{DirectFlow, FlowEvents};
use crate::model::{Protocol, Snapshot};
use crate::proxy::record::{party, service_at};
use crate::sockets::Ended;
use crate::telemetry::{Direction, FlowRecord, Outcome, Reporter, Security, Telemetry};

/// Records direct flows until the ring buffer fails.
pub(super) async fn record(
    mut events: FlowEvents,
    snapshot: Arc<ArcSwap<Snapshot>>,
    ended: Arc<Ended>,
    telemetry: Telemetry,
) {
    loop {
        match events.next().await {
            Ok(flows) => {
                let snapshot = snapshot.load();
                for flow in flows {
                    telemetry.record_direct(flow_record(&snapshot, &ended, &flow));
                }
            }
            Err(error) => return tracing::error!(%error, "flows of the kernel can no longer be read"),
        }
    }
}

fn flow_record(snapshot: &Snapshot, ended: &Ended, flow: &DirectFlow) -> FlowRecord {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let milliseconds =
        |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let outcome = match (flow.established, flow.graceful, flow.aborted) {
        (_, false, _) if ended.take(flow.netns_cookie, flow.source, flow.peer) => Outcome::Withdrawn,
        (false, _, _) => Outcome::ConnectFailed,
        (true, true, _) => Outcome::Closed,
        (true, false, true) => Outcome::ResetByClient,
        (true, false, false) => Outcome::ResetByServer,
    };
    let workload = |ip| snapshot.workload_at(ip).map(|workload| &**workload);
    // Plaintext proves nobody: what the addresses suggest is named, no identity is claimed.
    let unproven = |address: std::net::SocketAddr| {
        let mut party = party(address, workload(address.ip()), None);
        party.identity = None;
        party
    };
    let service = flow.to_service.then(|| snapshot.service_at(flow.asked, Protocol::Tcp)).flatten();
    FlowRecord {
        id: 0,
        start: milliseconds(now.saturating_sub(flow.duration)),
        duration_ms: milliseconds(flow.duration),
        reporter: Reporter::Kernel,
        direction: Direction::Direct,
        source: unproven(flow.source),
        destination: unproven(flow.peer),
        original_destination: Some(flow.asked),
        service: service.map(|(service, port)| service_at(service, port.port)),
        bytes_sent: flow.sent,
        bytes_received: flow.received,
        security: Security::None,
        outcome,
        response_flags: outcome.flags().into(),
        error: None,
        policy: None,
        srtt_us: Some(u32::try_from(flow.srtt.as_micros()).unwrap_or(u32::MAX)),
        retransmits: Some(flow.retransmits),
    }
}
