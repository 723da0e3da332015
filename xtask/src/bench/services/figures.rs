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
    pub(super) samples: BTreeMap<(usize, Mode, Figure), Vec<f64>>,
    pub(super) programmed: BTreeMap<(usize, Mode), Programmed>,
    /// Why a mode has no figures.
    pub(super) failed: BTreeMap<(usize, Mode), String>,
}

impl Results {
    /// The median of a figure's samples.
    pub(super) fn median(&self, services: usize, mode: Mode, figure: Figure) -> Option<f64> {
        let mut samples = self.samples.get(&(services, mode, figure))?.clone();
        samples.sort_by(f64::total_cmp);
        Some(samples[samples.len() / 2])
    }

    /// The same as a ratio to the direct path, both of the same run.
    pub(super) fn ratio(&self, services: usize, mode: Mode, figure: Figure) -> Option<f64> {
        let base = self.median(services, Mode::Direct, base(figure)).filter(|base| *base > 0.0)?;
        Some(self.median(services, mode, figure)? / base)
    }

    /// One round of all figures at a site.
    pub(super) fn round(&mut self, services: usize, site: &mut Site, seconds: f64) -> Result<()> {
        let mode = site.mode;
        let mut add = |figure, value| self.samples.entry((services, mode, figure)).or_default().push(value);
        let (last, ask, datagrams, pod) = (site.last(), site.ask(), site.datagrams(), site.pod());

        let busy = machine_busy()?;
        let result = site.measure(false, &["connect", &last], seconds)?;
        let (busy, count) = (machine_busy()? - busy, number(&result, "count")?);
        add(Figure::Connect, number(&result, "p50_us")?);
        add(Figure::ConnectP99, number(&result, "p99_us")?);
        add(Figure::Rate, count / number(&result, "seconds")?);
        add(Figure::ClientCpu, number(&result, "cpu_seconds")? * 1e6 / count);
        add(Figure::MachineCpu, busy * 1e6 / count);
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

fn number(result: &Value, field: &str) -> Result<f64> {
    result[field].as_f64().with_context(|| format!("the client tells no {field}: {result}"))
}
