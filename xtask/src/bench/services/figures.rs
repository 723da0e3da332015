//! What is measured, and what came out.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;

use super::mode::Mode;
use super::site::{Programmed, Site};
use crate::bench::usage::machine_busy;

/// One figure of a mode with so many services. Times are µs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Figure {
    /// `connect()` to the last service, from a pod: median.
    Connect,
    /// 99th percentile of that.
    ConnectP99,
    /// Connections made and closed a second, one client.
    Rate,
    /// The same, four clients.
    Rate4,
    /// CPU time of the client for each, softirqs in its context included.
    ClientCpu,
    /// CPU time of the agent for each.
    AgentCpu,
    /// CPU time of the whole machine for each.
    MachineCpu,
    /// `connect()` to the last service from the node itself: median.
    FromNode,
    /// `connect()` straight to the pod, with everything loaded: median.
    Straight,
    /// Request and answer on a kept connection: median.
    Ask,
    /// Gbit/s, one stream.
    Throughput,
    /// Datagram and answer on a kept socket: median.
    Datagram,
    /// The same, a new socket each.
    FreshDatagram,
    /// A changed endpoint until a connection reaches it, ms.
    Change,
    /// By the agent's own account, ms.
    OwnChange,
}

/// Samples of all figures (one a round), and what was measured once.
#[derive(Default)]
pub(super) struct Results {
    /// How busy the machine was when the run began, as the kernel tells.
    pub(super) load_average: String,
    pub(super) samples: BTreeMap<(usize, Mode, Figure), Vec<f64>>,
    pub(super) programmed: BTreeMap<(usize, Mode), Programmed>,
    /// Why a mode has no figures, or none of all rounds.
    pub(super) failed: BTreeMap<(usize, Mode), String>,
}

impl Results {
    /// The median of a figure's samples.
    pub(super) fn median(&self, services: usize, mode: Mode, figure: Figure) -> Option<f64> {
        median(self.samples.get(&(services, mode, figure))?.clone())
    }

    /// The median over the rounds of the ratio to the direct path in the same round: what slows a round down slows both.
    pub(super) fn ratio(&self, services: usize, mode: Mode, figure: Figure) -> Option<f64> {
        let samples = self.samples.get(&(services, mode, figure))?;
        let bases = self.samples.get(&(services, Mode::Direct, base(figure)))?;
        median(samples.iter().zip(bases).map(|(sample, base)| sample / base).collect())
    }

    /// Notes why a mode is left out.
    pub(super) fn fail(&mut self, services: usize, mode: Mode, error: &anyhow::Error) {
        // The first line; a client's backtrace may follow.
        let reason = format!("{error:#}");
        let reason = reason.lines().next().unwrap_or_default();
        eprintln!("{services} services, {}: {reason}", mode.name());
        self.failed.insert((services, mode), reason.to_owned());
    }

    /// One round of all figures at a site.
    pub(super) fn round(&mut self, services: usize, site: &mut Site, seconds: f64) -> Result<()> {
        let mode = site.mode;
        let mut add = |figure, value| self.samples.entry((services, mode, figure)).or_default().push(value);
        let (last, ask, datagrams, pod) = (site.last(), site.ask(), site.datagrams(), site.pod());

        let (busy, agent) = (machine_busy()?, site.agent_cpu()?);
        let result = site.measure(false, &["connect", &last], seconds)?;
        let (busy, count) = (machine_busy()? - busy, number(&result, "count")?);
        add(Figure::Connect, number(&result, "p50_us")?);
        add(Figure::ConnectP99, number(&result, "p99_us")?);
        add(Figure::Rate, count / number(&result, "seconds")?);
        add(Figure::ClientCpu, number(&result, "cpu_seconds")? * 1e6 / count);
        add(Figure::MachineCpu, busy * 1e6 / count);
        if let Some((before, after)) = agent.zip(site.agent_cpu()?) {
            add(Figure::AgentCpu, (after - before) * 1e6 / count);
        }
        if mode != Mode::Direct {
            let result = site.measure(false, &["connect", &pod], seconds)?;
            add(Figure::Straight, number(&result, "p50_us")?);
        }
        let result = site.measure(false, &["connect", &last, "--clients", "4"], seconds)?;
        add(Figure::Rate4, number(&result, "count")? / number(&result, "seconds")?);
        let result = site.measure(true, &["connect", &last], seconds)?;
        add(Figure::FromNode, number(&result, "p50_us")?);

        let result = site.measure(false, &["ask", &ask], seconds)?;
        add(Figure::Ask, number(&result, "p50_us")?);
        let result = site.measure(false, &["throughput", &ask], seconds)?;
        add(Figure::Throughput, number(&result, "bytes")? * 8.0 / 1e9 / number(&result, "seconds")?);
        let result = site.measure(false, &["udp-ask", &datagrams], seconds)?;
        add(Figure::Datagram, number(&result, "p50_us")?);
        let result = site.measure(false, &["udp-ask", &datagrams, "--fresh"], seconds)?;
        add(Figure::FreshDatagram, number(&result, "p50_us")?);

        if let Some(changed) = site.change()? {
            add(Figure::Change, changed.seconds * 1e3);
            if let Some(own) = changed.own_seconds {
                add(Figure::OwnChange, own * 1e3);
            }
        }
        Ok(())
    }
}

/// What the ratio of a figure is taken to, of the direct path.
const fn base(figure: Figure) -> Figure {
    match figure {
        Figure::Straight => Figure::Connect,
        other => other,
    }
}

fn median(mut samples: Vec<f64>) -> Option<f64> {
    samples.sort_by(f64::total_cmp);
    let middle = samples.len() / 2;
    let upper = *samples.get(middle)?;
    Some(if samples.len().is_multiple_of(2) { f64::midpoint(samples[middle - 1], upper) } else { upper })
}

fn number(result: &Value, field: &str) -> Result<f64> {
    result[field].as_f64().with_context(|| format!("the client tells no {field}: {result}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_taken_round_by_round() {
        let mut results = Results::default();
        let mut set =
            |mode, figure, samples: &[f64]| results.samples.insert((1, mode, figure), samples.to_vec());
        // The machine was half as fast in the second round, and in the third.
        set(Mode::Direct, Figure::Connect, &[40.0, 80.0, 80.0]);
        set(Mode::Mesh, Figure::Connect, &[44.0, 88.0, 88.0]);
        set(Mode::Mesh, Figure::Straight, &[40.0, 88.0]);
        let ratio = |figure| results.ratio(1, Mode::Mesh, figure).expect("a ratio");
        assert!((ratio(Figure::Connect) - 1.1).abs() < 1e-9);
        assert!(
            (ratio(Figure::Straight) - 1.05).abs() < 1e-9,
            "to the direct path's connect, of two rounds the mean"
        );
        assert_eq!(results.median(1, Mode::Mesh, Figure::Connect), Some(88.0));
        assert_eq!(results.ratio(1, Mode::Nftables, Figure::Connect), None);
        assert_eq!(results.ratio(2, Mode::Mesh, Figure::Connect), None);
    }
}
