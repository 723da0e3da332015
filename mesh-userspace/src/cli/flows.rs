//! Flows, a line each: a table that never ends cannot know how wide its columns will be.

use std::fmt::Write as _;

use crate::telemetry::{FlowRecord, Party, Security};

/// Column titles.
pub(super) fn header(wide: bool) -> String {
    let mut line = format!(
        "{:<12} {:<8} {:<44} {:<44} {:<5} {:>10} {:>10} {:>9}  {}",
        "TIME", "WAY", "SOURCE", "DESTINATION", "TLS", "SENT", "RECEIVED", "DURATION", "OUTCOME"
    );
    if wide {
        line.push_str("  DETAILS");
    }
    line.push('\n');
    line
}

/// One flow.
pub(super) fn row(flow: &FlowRecord, wide: bool) -> String {
    let destination = match &flow.service {
        Some(at) => format!("{}/{}:{} > {}", at.namespace, at.name, at.port, name(&flow.destination)),
        None => name(&flow.destination),
    };
    let tls = if flow.security == Security::MutualTls { "mtls" } else { "-" };
    let mut line = format!(
        "{:<12} {:<8} {:<44} {:<44} {:<5} {:>10} {:>10} {:>9}  {}",
        time_of_day(flow.start),
        flow.direction.as_str(),
        name(&flow.source),
        destination,
        tls,
        bytes(flow.bytes_sent),
        bytes(flow.bytes_received),
        duration(flow.duration_ms),
        flow.outcome,
    );
    if let Some(error) = &flow.error {
        let _ = write!(line, " ({error})");
    }
    if wide {
        details(flow, &mut line);
    }
    line.push('\n');
    line
}

fn details(flow: &FlowRecord, line: &mut String) {
    let _ = write!(line, "  id={} flags={}", flow.id, flow.response_flags);
    let addresses = [
        ("src", flow.source.address),
        ("orig_dst", flow.original_destination),
        ("dst", flow.destination.address),
    ];
    for (name, address) in addresses {
        if let Some(address) = address {
            let _ = write!(line, " {name}={address}");
        }
    }
    for (name, party) in [("src", &flow.source), ("dst", &flow.destination)] {
        if let Some(identity) = &party.identity {
            let _ = write!(line, " {name}.identity={identity}");
        }
    }
    if let Some(mark) = &flow.policy {
        let audited = mark.audited.join(", ");
        let audited = (!audited.is_empty()).then_some(&audited);
        let marks = [
            ("allowed_by", mark.allowed_by.as_ref()),
            ("dry_run", mark.dry_run.as_ref()),
            ("audited", audited),
        ];
        for (name, mark) in marks {
            if let Some(mark) = mark {
                let _ = write!(line, " {name}=\"{mark}\"");
            }
        }
    }
    if let Some(srtt) = flow.srtt_us {
        let _ = write!(line, " srtt={srtt}us");
    }
    if let Some(retransmits) = flow.retransmits {
        let _ = write!(line, " retransmits={retransmits}");
    }
}

/// The pod, or what is known in its place.
fn name(party: &Party) -> String {
    match (&party.pod, &party.workload, &party.namespace, party.address) {
        (Some(pod), ..) => pod.to_string(),
        (None, Some(workload), Some(namespace), _) => format!("{namespace}/{workload}"),
        (None, _, _, Some(address)) => address.to_string(),
        _ => "-".to_owned(),
    }
}

/// `HH:MM:SS.mmm` in UTC.
fn time_of_day(unix_ms: u64) -> String {
    let (seconds, millis) = (unix_ms / 1000, unix_ms % 1000);
    let (hours, minutes, seconds) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{hours:02}:{minutes:02}:{seconds:02}.{millis:03}")
}

/// With binary units and one decimal.
fn bytes(count: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, shift) in units {
        if count >> shift > 0 {
            let tenths = (count >> (shift - 10)) * 10 / 1024;
            return format!("{}.{}{unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{count}B")
}

fn duration(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms}ms"),
        1000..60_000 => format!("{}.{}s", ms / 1000, ms % 1000 / 100),
        _ => super::table::span(ms / 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::example;

    #[test]
    fn a_flow_is_one_line() {
        let row = row(&example(), false);
        assert_eq!(row.matches('\n').count(), 1);
        for part in [
            "22:13:20.000",
            "default/productpage-1",
            "default/reviews:80 > default/reviews-v2",
            "mtls",
            "10B",
            "12ms",
            "closed",
        ] {
            assert!(row.contains(part), "{part} not in {row}");
        }
        let wide = super::row(&example(), true);
        assert!(wide.contains("orig_dst=10.96.0.1:80") && wide.contains("flags=-"), "{wide}");
    }

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0, "0B"),
            (1023, "1023B"),
            (1536, "1.5KiB"),
            (5 << 20, "5.0MiB"),
            (u64::MAX, "17179869183.9GiB"),
        ];
        for (count, text) in cases {
            assert_eq!(bytes(count), text);
        }
        let cases = [(999, "999ms"), (1500, "1.5s"), (61_000, "1m1s")];
        for (ms, text) in cases {
            assert_eq!(duration(ms), text);
        }
    }
}
