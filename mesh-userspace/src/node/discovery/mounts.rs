//! Where a kubelet's cgroups may be on this machine: which hierarchies there are, and the roots of pods in them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::layout::{Kind, kind};

/// How deep roots of pods are looked for: `system.slice/docker-ID.scope/kubelet.slice/kubelet-kubepods.slice`.
const DEEPEST: usize = 4;
/// Folders that are looked into at most.
const MOST_FOLDERS: usize = 2048;
/// Hierarchies of cgroup v1 that every runtime puts its containers into, the one to be believed first.
const V1: [&str; 4] = ["name=systemd", "pids", "memory", "cpu"];

/// The hierarchies in which pods are looked for: the one of cgroup v2 first, then those of v1 that are mounted.
pub(super) fn hierarchies(cgroup2: &Path, mounts: &str) -> Vec<PathBuf> {
    let mut all = vec![cgroup2.to_owned()];
    for wanted in V1 {
        all.extend(mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (path, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
            let is_wanted = kind == "cgroup" && options.split(',').any(|option| option == wanted);
            is_wanted.then(|| PathBuf::from(path))
        }));
    }
    all
}

/// What a walk through a hierarchy has found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Roots of kubelets' pods.
    pub(super) roots: BTreeSet<PathBuf>,
    /// Folders in which one may appear.
    pub(super) others: Vec<PathBuf>,
}

/// Walks a hierarchy from its root, the shallow folders first, as far as roots of pods may be.
pub(super) fn walk(root: &Path) -> Found {
    let mut found = Found::default();
    let mut level = vec![root.to_owned()];
    if name(root).is_some_and(|name| kind("", name) == Kind::Pods) {
        found.roots.insert(root.to_owned());
        return found;
    }
    for _depth in 0..=DEEPEST {
        let mut next = Vec::new();
        for folder in level {
            if found.others.len() == MOST_FOLDERS {
                return found;
            }
            let parent = name(&folder).unwrap_or_default().to_owned();
            for below in folders(&folder) {
                match name(&below).map_or(Kind::Other, |name| kind(&parent, name)) {
                    Kind::Pods => drop(found.roots.insert(below)),
                    // Beside its kubelet's root, by a runtime of another mind: the folder holds pods directly.
                    Kind::Pod(_) => drop(found.roots.insert(folder.clone())),
                    Kind::Monitor => {}
                    Kind::Other => next.push(below),
                }
            }
            found.others.push(folder);
        }
        level = next;
    }
    found
}

/// The folders in a folder; none of one that is gone.
pub(super) fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let own = nix::unistd::geteuid().as_raw();
    entries
        // A cgroup that was delegated to somebody is named by that somebody: a kubelet's are root's.
        .filter(|entry| entry.metadata().is_ok_and(|found| found.is_dir() && found.uid() == own))
        .map(|entry| entry.path())
        .collect()
}

/// The last part of a path.
pub(super) fn name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_pure_and_hybrid_machines() {
        let v2 = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        assert_eq!(hierarchies(Path::new("/sys/fs/cgroup"), v2), [PathBuf::from("/sys/fs/cgroup")]);
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
                      cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n\
                      cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n\
                      cgroup /sys/fs/cgroup/systemd cgroup rw,xattr,name=systemd 0 0\n";
        let expected = ["unified", "systemd", "memory", "cpu,cpuacct"]
            .map(|name| Path::new("/sys/fs/cgroup").join(name));
        assert_eq!(hierarchies(Path::new("/sys/fs/cgroup/unified"), hybrid), expected);
    }

    #[test]
    fn roots_of_pods_wherever_they_are_nested() {
        let uid = "0c3dd5a1-7b1e-4f6e-9a53-2f6c1d9b8e70";
        let cases = [
            ("kubepods/burstable", vec!["kubepods"]),
            ("kubepods.slice/kubepods-burstable.slice", vec!["kubepods.slice"]),
            ("kubelet/kubepods/besteffort", vec!["kubelet/kubepods"]),
            (
                "system.slice/docker-1.scope/kubelet.slice/kubelet-kubepods.slice",
                vec!["system.slice/docker-1.scope/kubelet.slice/kubelet-kubepods.slice"],
            ),
            ("user.slice/user-1000.slice/session-1.scope", vec![]),
            ("a/b/c/d/e/f/kubepods", vec![]),
        ];
        for (made, expected) in cases {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir_all(root.path().join(made)).unwrap();
            let expected: BTreeSet<PathBuf> = expected.iter().map(|path| root.path().join(path)).collect();
            assert_eq!(walk(root.path()).roots, expected, "{made}");
        }
        let root = tempfile::tempdir().unwrap();
        let beside = root.path().join("system.slice/containerd.service");
        let name = format!("kubepods-pod{}.slice:cri-containerd:1", uid.replace('-', "_"));
        fs::create_dir_all(beside.join(name)).unwrap();
        assert_eq!(walk(root.path()).roots, BTreeSet::from([beside]));
    }
}
