//! The hosts that rules name: short names, full ones, and patterns.
//!
//! Sources: `ResolveShortnameToFQDN` (pkg/config/host, Istio), `Name.Matches`, `Name.SubsetOf` and `MostSpecificHostMatch` there: of
//! several hosts that match, one without a wildcard goes first, then the longest.

use std::fmt;
use std::sync::Arc;

use crate::model::{MeshConfig, ServiceName};

/// The service that a host in a rule of `namespace` names: `NAME`, `NAME.NS`, `NAME.NS.svc` or the full host.
pub(in crate::resources) fn resolve_host(
    host: &str,
    namespace: &str,
    mesh: &MeshConfig,
) -> Option<ServiceName> {
    let host = bare(host);
    let full = host.strip_suffix(&*mesh.cluster_domain).and_then(|rest| rest.strip_suffix(".svc."));
    let service_host = full.or_else(|| host.strip_suffix(".svc"));
    let parts: Vec<&str> = service_host.unwrap_or(host).split('.').collect();
    match parts[..] {
        _ if host.contains('*') || parts.iter().any(|part| part.is_empty()) => None,
        [name] if service_host.is_none() => Some(ServiceName::new(namespace, name)),
        [name, namespace] => Some(ServiceName::new(namespace, name)),
        _ => None,
    }
}

/// The host without a dot at its end.
pub(in crate::resources) fn bare(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

/// The host as an entry may have it: one without a dot is a Kubernetes service's short name.
pub(in crate::resources) fn entry_host_of(host: &str) -> Option<&str> {
    Some(bare(host)).filter(|host| host.contains('.') && !host.contains('*'))
}

/// What stands for whatever entries have a host: who looked it up depends on that.
pub(in crate::resources) fn any_entry(host: &str) -> ServiceName {
    ServiceName::new("", bare(host))
}

/// Whether a name is no service's, but that of [`any_entry`].
pub(in crate::resources) fn is_any_entry(name: &ServiceName) -> bool {
    name.namespace.is_empty()
}

/// What a host of a rule is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::resources) enum RuleHost {
    /// A service of the cluster.
    Service(ServiceName),
    /// A name that is none of the cluster's.
    Foreign(Arc<str>),
    /// Every host that ends so.
    Pattern(HostPattern),
}

impl RuleHost {
    /// What `host`, in a rule of `namespace`, is.
    pub(in crate::resources) fn of(host: &str, namespace: &str, mesh: &MeshConfig) -> Self {
        if let Some(pattern) = HostPattern::of(host) {
            return Self::Pattern(pattern);
        }
        match resolve_host(host, namespace, mesh) {
            Some(service) => Self::Service(service),
            None => Self::Foreign(host.trim_end_matches('.').to_ascii_lowercase().into()),
        }
    }
}

/// `*` and the end of a host, mostly `*.` and a domain. Orders the most specific first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::resources) struct HostPattern(Arc<str>);

impl HostPattern {
    /// A host with a wildcard.
    pub(in crate::resources) fn of(host: &str) -> Option<Self> {
        Some(Self(host.strip_prefix('*')?.to_ascii_lowercase().into()))
    }

    /// Whether a host is one of those meant.
    pub(in crate::resources) fn matches(&self, host: &str) -> bool {
        host.len() > self.0.len() && host.to_ascii_lowercase().ends_with(&*self.0)
    }
}

impl PartialOrd for HostPattern {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for HostPattern {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.0.len().cmp(&self.0.len()).then_with(|| self.0.cmp(&other.0))
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "*{}", self.0)
    }
}

/// Whether every host that `one` means is one that `other` means (Istio's `Name.SubsetOf`); both as they are written.
pub(in crate::resources) fn is_covered(one: &str, other: &str) -> bool {
    let (one, other) = (one.to_ascii_lowercase(), other.to_ascii_lowercase());
    match (one.strip_prefix('*'), other.strip_prefix('*')) {
        (None, None) => one == other,
        (None, Some(suffix)) => one.len() > suffix.len() && one.ends_with(suffix),
        (Some(inner), Some(suffix)) => inner.ends_with(suffix),
        (Some(_), None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        let mesh = MeshConfig::default();
        let cases = [
            ("web", Some(("shop", "web"))),
            ("web.prod", Some(("prod", "web"))),
            ("web.prod.svc", Some(("prod", "web"))),
            ("web.prod.svc.cluster.local", Some(("prod", "web"))),
            ("web.prod.svc.cluster.local.", Some(("prod", "web"))),
            ("www.example.com", None),
            ("*.prod.svc.cluster.local", None),
            ("*", None),
            ("", None),
            ("web.svc", None),
            ("a.b.c.svc.cluster.local", None),
        ];
        for (host, wanted) in cases {
            let wanted = wanted.map(|(namespace, name)| ServiceName::new(namespace, name));
            assert_eq!(resolve_host(host, "shop", &mesh), wanted, "{host}");
        }
    }

    #[test]
    fn patterns_match_and_the_most_specific_comes_first() {
        for (pattern, host, matches) in [
            ("*", "web.shop.svc.cluster.local", true),
            ("*.shop.svc.cluster.local", "web.shop.svc.cluster.local", true),
            ("*.shop.svc.cluster.local", "web.bank.svc.cluster.local", false),
            ("*.Example.com", "www.example.COM", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", ".example.com", false),
        ] {
            assert_eq!(HostPattern::of(pattern).unwrap().matches(host), matches, "{pattern} {host}");
        }
        assert!(HostPattern::of("a.example.com").is_none());
        let mut patterns = ["*", "*.com", "*.b.com", "*.a.com"].map(|text| HostPattern::of(text).unwrap());
        patterns.sort();
        assert_eq!(patterns.map(|pattern| pattern.to_string()), ["*.a.com", "*.b.com", "*.com", "*"]);
    }

    #[test]
    fn covered_hosts() {
        for (one, other, covered) in [
            ("a.example.com", "a.example.com", true),
            ("A.example.com", "*.example.com", true),
            ("*.a.example.com", "*.example.com", true),
            ("*.example.com", "*.a.example.com", false),
            ("*.example.com", "*", true),
            ("*", "*.example.com", false),
            ("*.example.com", "a.example.com", false),
            ("b.example.org", "*.example.com", false),
        ] {
            assert_eq!(is_covered(one, other), covered, "{one} {other}");
        }
    }
}
