//! How kubelets and container runtimes name cgroups: what a folder's name says of itself.
//!
//! ```text
//! systemd    kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID_WITH_UNDERSCORES.slice/cri-containerd-ID.scope
//! cgroupfs   kubepods/burstable/podUID/ID
//! kind       kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podUID.slice/cri-containerd-ID.scope
//! containerd system.slice/containerd.service/kubepods-burstable-podUID.slice:cri-containerd:ID    drivers that do not agree
//! ```
//!
//! Pods of the guaranteed class have no folder of their class. A static pod's UID is the hash of its file, without dashes.

/// What a folder of cgroupfs is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The root of a kubelet's pods, or one of its classes: pods are below.
    Pods,
    /// A pod; containers are below.
    Pod(String),
    /// A process of the runtime that has the node's network, whatever its pod has.
    Monitor,
    /// Anything else: a container below a pod, elsewhere nothing of Kubernetes.
    Other,
}

/// What the folder `name` in a folder called `parent` is.
pub(super) fn kind(parent: &str, name: &str) -> Kind {
    // A container that stands beside its pod's folder instead of in it.
    let slice = name.split_once(".slice:").map(|(slice, _container)| slice);
    if let Some(slice) = slice.or_else(|| name.strip_suffix(".slice")) {
        return systemd(slice);
    }
    match name {
        "kubepods" => Kind::Pods,
        "burstable" | "besteffort" | "guaranteed" if parent == "kubepods" => Kind::Pods,
        _ if is_monitor(name) => Kind::Monitor,
        _ => match name.strip_prefix("pod").and_then(uid) {
            Some(uid) if is_class(parent) => Kind::Pod(uid),
            _ => Kind::Other,
        },
    }
}

/// A slice, `PREFIX-kubepods[-CLASS][-podUID]` without its ending.
fn systemd(slice: &str) -> Kind {
    let Some(start) = slice.rfind("kubepods") else { return Kind::Other };
    if start > 0 && !slice[..start].ends_with('-') {
        return Kind::Other;
    }
    let rest = &slice[start + "kubepods".len()..];
    if matches!(rest, "" | "-burstable" | "-besteffort" | "-guaranteed") {
        return Kind::Pods;
    }
    let rest = ["-burstable", "-besteffort", "-guaranteed"]
        .iter()
        .find_map(|class| rest.strip_prefix(class))
        .unwrap_or(rest);
    rest.strip_prefix("-pod").and_then(uid).map_or(Kind::Other, Kind::Pod)
}

fn is_class(name: &str) -> bool {
    matches!(name, "kubepods" | "burstable" | "besteffort" | "guaranteed")
}

/// CRI-O's conmon, in whichever folder it is put; podman's as well.
fn is_monitor(name: &str) -> bool {
    name.starts_with("crio-conmon-") || name.starts_with("libpod-conmon-") || name == "conmon"
}

/// A pod's UID as the API has it: a UUID, or the hash of a static pod's file.
fn uid(text: &str) -> Option<String> {
    let uid = text.replace('_', "-");
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    let lengths: Vec<usize> = uid.split('-').map(str::len).collect();
    let is_uid = matches!(lengths[..], [8, 4, 4, 4, 12] | [32]) && uid.split('-').all(is_hex);
    is_uid.then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0c3dd5a1-7b1e-4f6e-9a53-2f6c1d9b8e70";
    const STATIC: &str = "4b4c9cbd2f9d0b1d4d7d3b1f5f0a9c11";

    #[test]
    fn what_kubelets_and_runtimes_name_their_folders() {
        let pod = || Kind::Pod(UID.to_owned());
        let cases = [
            // systemd's driver: containerd, CRI-O, cri-dockerd; each class; kind's and minikube's nesting.
            ("/", "kubepods.slice", Kind::Pods),
            ("kubepods.slice", "kubepods-burstable.slice", Kind::Pods),
            ("kubepods.slice", "kubepods-besteffort.slice", Kind::Pods),
            ("kubepods.slice", "kubepods-pod0c3dd5a1_7b1e_4f6e_9a53_2f6c1d9b8e70.slice", pod()),
            (
                "kubepods-burstable.slice",
                "kubepods-burstable-pod0c3dd5a1_7b1e_4f6e_9a53_2f6c1d9b8e70.slice",
                pod(),
            ),
            (
                "kubepods-besteffort.slice",
                "kubepods-besteffort-pod0c3dd5a1_7b1e_4f6e_9a53_2f6c1d9b8e70.slice",
                pod(),
            ),
            ("kubelet.slice", "kubelet-kubepods.slice", Kind::Pods),
            ("kubelet-kubepods.slice", "kubelet-kubepods-besteffort.slice", Kind::Pods),
            (
                "kubelet-kubepods-besteffort.slice",
                "kubelet-kubepods-besteffort-pod0c3dd5a1_7b1e_4f6e_9a53_2f6c1d9b8e70.slice",
                pod(),
            ),
            (
                "kubepods-burstable.slice",
                "kubepods-burstable-pod4b4c9cbd2f9d0b1d4d7d3b1f5f0a9c11.slice",
                Kind::Pod(STATIC.to_owned()),
            ),
            // The container's and the monitor's scopes.
            ("a-pod.slice", "cri-containerd-3f1e8f.scope", Kind::Other),
            ("a-pod.slice", "crio-3f1e8f.scope", Kind::Other),
            ("a-pod.slice", "docker-3f1e8f.scope", Kind::Other),
            ("a-pod.slice", "crio-conmon-3f1e8f.scope", Kind::Monitor),
            // cgroupfs's driver, k3s's default, kind's `/kubelet`.
            ("/", "kubepods", Kind::Pods),
            ("kubelet", "kubepods", Kind::Pods),
            ("kubepods", "burstable", Kind::Pods),
            ("kubepods", "besteffort", Kind::Pods),
            ("kubepods", "pod0c3dd5a1-7b1e-4f6e-9a53-2f6c1d9b8e70", pod()),
            ("burstable", "pod0c3dd5a1-7b1e-4f6e-9a53-2f6c1d9b8e70", pod()),
            ("besteffort", "pod4b4c9cbd2f9d0b1d4d7d3b1f5f0a9c11", Kind::Pod(STATIC.to_owned())),
            // A kubelet with systemd's driver over a containerd with cgroupfs's.
            (
                "containerd.service",
                "kubepods-burstable-pod0c3dd5a1_7b1e_4f6e_9a53_2f6c1d9b8e70.slice:cri-containerd:3f1e8f",
                pod(),
            ),
            // Nothing of Kubernetes, or not what it seems.
            ("/", "system.slice", Kind::Other),
            ("system.slice", "burstable", Kind::Other),
            ("system.slice", "pod0c3dd5a1-7b1e-4f6e-9a53-2f6c1d9b8e70", Kind::Other),
            ("/", "notkubepods.slice", Kind::Other),
            ("burstable", "pod0c3dd5a1-7b1e-4f6e-9a53", Kind::Other),
            ("burstable", "pod../../etc", Kind::Other),
            ("burstable", "podZZZZZZZZ-7b1e-4f6e-9a53-2f6c1d9b8e70", Kind::Other),
            ("kubepods.slice", "kubepods-burstable-pod.slice", Kind::Other),
        ];
        for (parent, name, expected) in cases {
            assert_eq!(kind(parent, name), expected, "{parent}/{name}");
        }
    }
}
