//! CPU time and memory of processes, from /proc.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// CPU seconds that some processes have used together.
pub(super) struct Cpu(f64);

impl Cpu {
    pub(super) fn of(pids: &[u64]) -> Result<Self> {
        // /proc counts in USER_HZ, which is 100 on every architecture.
        let ticks: u64 = pids.iter().map(|pid| ticks(*pid)).sum::<Result<u64>>()?;
        Ok(Self(f64::from(u32::try_from(ticks)?) / 100.0))
    }

    /// Seconds used since an earlier reading.
    pub(super) fn since(&self, earlier: &Self) -> f64 {
        self.0 - earlier.0
    }
}

/// CPU seconds that the threads of a process which still run have used, by the scheduler's own account.
pub(super) fn scheduled(pid: u32) -> Result<f64> {
    let tasks = format!("/proc/{pid}/task");
    let mut nanoseconds = 0_u64;
    for task in fs::read_dir(&tasks).with_context(|| format!("process {pid} has ended"))? {
        // A thread may end meanwhile.
        let Ok(schedstat) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        nanoseconds += schedstat.split(' ').next().context("read schedstat")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanoseconds).as_secs_f64())
}

/// CPU seconds that the whole machine has been busy.
pub(super) fn machine_busy() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let line = stat.lines().next().and_then(|line| line.strip_prefix("cpu ")).context("read /proc/stat")?;
    let fields: Vec<u32> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    // user, nice, system, then idle and iowait, then irq and softirq.
    let busy = [0, 1, 2, 5, 6].into_iter().filter_map(|index| fields.get(index)).copied();
    Ok(busy.map(f64::from).sum::<f64>() / 100.0)
}

fn ticks(pid: u64) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid} has ended"))?;
    // The name, in parentheses, may hold spaces; utime and stime are the 12th and 13th field after it.
    let (_, rest) = stat.rsplit_once(')').context("read /proc/PID/stat")?;
    let fields: Vec<u64> =
        rest.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(fields.iter().sum())
}

/// Resident memory in bytes.
pub(super) fn resident(pid: u64) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} has ended"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no VmRSS in /proc/PID/status")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}
