//! The machine that a figure is from.

use std::fs;

/// Cores, CPU and kernel in one line.
pub(super) fn describe() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let value =
            cpu.lines().find_map(|line| line.strip_prefix(name)?.split_once(": ").map(|(_, value)| value));
        value.unwrap_or("?").to_owned()
    };
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{cores} cores of {} (family {}, model {}), Linux {}",
        field("model name"),
        field("cpu family"),
        // "model" alone is the beginning of "model name" as well.
        field("model\t"),
        kernel.trim()
    )
}
