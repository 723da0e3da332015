//! Memory of the kernel, and of maps and programs.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

/// Bytes that the kernel holds for itself now: slab, per-CPU and vmalloc memory, of the whole machine.
pub(super) fn kernel() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    ["Slab:", "Percpu:", "VmallocUsed:"].into_iter().map(|field| bytes(&text, field)).sum()
}

fn bytes(meminfo: &str, field: &str) -> Result<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(field));
    let value = line.with_context(|| format!("no {field} in /proc/meminfo"))?;
    let kib: u64 = value.trim().trim_end_matches("kB").trim().parse().context("a size in /proc/meminfo")?;
    Ok(kib * 1024)
}

/// Bytes of the eBPF maps and programs that a process has open, as the kernel charges them (`memlock` of fdinfo).
pub(super) fn ebpf(pid: u32) -> Result<u64> {
    let folder = format!("/proc/{pid}/fdinfo");
    let mut sizes = BTreeMap::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("process {pid} has ended"))? {
        // A descriptor may be closed meanwhile.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        if let Some((object, size)) = charged(&text) {
            sizes.insert(object, size);
        }
    }
    Ok(sizes.values().sum())
}

/// A map's or program's id, and its size.
fn charged(fdinfo: &str) -> Option<(String, u64)> {
    let id = fdinfo.lines().find(|line| line.starts_with("map_id:") || line.starts_with("prog_id:"))?;
    let size = fdinfo.lines().find_map(|line| line.strip_prefix("memlock:"))?;
    Some((id.to_owned(), size.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_are_read_as_the_kernel_writes_them() {
        let map = "pos:\t0\nmap_type:\t1\nmap_id:\t7\nmemlock:\t4096\nfrozen:\t0\n";
        assert_eq!(super::charged(map), Some(("map_id:\t7".to_owned(), 4096)));
        assert_eq!(super::charged("pos:\t0\nflags:\t02\n"), None);
        assert_eq!(super::bytes("MemTotal: 1 kB\nSlab:   12 kB\n", "Slab:").expect("a size"), 12 * 1024);
        assert!(super::bytes("MemTotal: 1 kB\n", "Slab:").is_err());
    }
}
