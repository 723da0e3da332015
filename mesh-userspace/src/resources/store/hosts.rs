//! Which `VirtualService`s name which hosts.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{ByAge, index};
use crate::model::{MeshConfig, ServiceName};
use crate::resources::ObjectRef;
use crate::resources::translate::hosts::{HostPattern, RuleHost, entry_host_of};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct RuleHosts {
    services: HashMap<ServiceName, ByAge>,
    /// By hosts with a dot in them, which may be those of `ServiceEntry`s.
    hosts: HashMap<Arc<str>, ByAge>,
    /// The most specific first.
    patterns: BTreeMap<HostPattern, ByAge>,
}

impl RuleHosts {
    /// Adds a rule to a host of it or takes it out; returns what the host is.
    pub(super) fn set(
        &mut self,
        host: &str,
        rule: (i64, ObjectRef),
        add: bool,
        mesh: &MeshConfig,
    ) -> RuleHost {
        if let Some(host) = entry_host_of(host) {
            index::set(&mut self.hosts, host.to_ascii_lowercase().into(), rule.clone(), add);
        }
        let host = RuleHost::of(host, &rule.1.namespace, mesh);
        match &host {
            RuleHost::Service(service) => index::set(&mut self.services, service.clone(), rule, add),
            RuleHost::Foreign(_) => {}
            RuleHost::Pattern(pattern) => {
                let rules = self.patterns.entry(pattern.clone()).or_default();
                if add {
                    rules.insert(rule);
                } else {
                    rules.remove(&rule);
                }
                self.patterns.retain(|_, rules| !rules.is_empty());
            }
        }
        host
    }

    /// The rules that name a service with this host, the most specific and of these the oldest first, each once, with how specific it
    /// is: 0 without a wildcard.
    pub(super) fn of(&self, service: &ServiceName, host: &str) -> Vec<(usize, &ObjectRef)> {
        let exact = self
            .services
            .get(service)
            .into_iter()
            .chain(self.hosts.get(host))
            .flatten()
            .map(|rule| (0, rule));
        let patterns = self.patterns.iter().zip(1..).filter(|((pattern, _), _)| pattern.matches(host));
        let patterns = patterns.flat_map(|((_, rules), rank)| rules.iter().map(move |rule| (rank, rule)));
        let mut found: Vec<(usize, &ObjectRef)> = Vec::new();
        for (rank, (_, rule)) in exact.chain(patterns) {
            if !found.iter().any(|(_, other)| *other == rule) {
                found.push((rank, rule));
            }
        }
        found
    }

    /// The rules that name a host, oldest first.
    pub(super) fn by_host(&self, host: &str) -> impl Iterator<Item = &ObjectRef> {
        self.hosts.get(host).into_iter().flatten().map(|(_, rule)| rule)
    }

    /// The rules that name the service itself.
    pub(super) fn by_name(&self, service: &ServiceName) -> impl Iterator<Item = &ObjectRef> {
        self.services.get(service).into_iter().flatten().map(|(_, rule)| rule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::Kind;

    #[test]
    fn the_most_specific_host_comes_first_then_the_oldest() {
        let mesh = MeshConfig::default();
        let mut hosts = RuleHosts::default();
        let rule = |name: &str, age| (age, ObjectRef::new(Kind::VirtualService, "shop", name));
        let written = [
            ("everything", 1, "*"),
            ("namespace", 2, "*.shop.svc.cluster.local"),
            ("young", 9, "web"),
            ("old", 3, "web.shop.svc.cluster.local"),
            ("old", 3, "*.shop.svc.cluster.local"),
            ("elsewhere", 1, "www.example.com"),
            ("below", 1, "*.example.com"),
        ];
        for (name, age, host) in written {
            hosts.set(host, rule(name, age), true, &mesh);
        }
        let told = |hosts: &RuleHosts, name: &str, host: &str| -> Vec<(usize, String)> {
            let found = hosts.of(&ServiceName::new("shop", name), host);
            found.into_iter().map(|(rank, rule)| (rank, rule.name.to_string())).collect()
        };
        let wanted = |all: &[(usize, &str)]| -> Vec<(usize, String)> {
            all.iter().map(|&(rank, name)| (rank, name.to_owned())).collect()
        };
        let all = [(0, "old"), (0, "young"), (1, "namespace"), (3, "everything")];
        assert_eq!(told(&hosts, "web", "web.shop.svc.cluster.local"), wanted(&all));
        let default = [(1, "namespace"), (1, "old"), (3, "everything")];
        assert_eq!(told(&hosts, "api", "api.shop.svc.cluster.local"), wanted(&default));
        let foreign = [(0, "elsewhere"), (2, "below"), (3, "everything")];
        assert_eq!(told(&hosts, "www.example.com", "www.example.com"), wanted(&foreign));
        for (name, age, host) in written {
            hosts.set(host, rule(name, age), false, &mesh);
        }
        assert_eq!(told(&hosts, "web", "web.shop.svc.cluster.local"), []);
        assert!(hosts.services.is_empty() && hosts.hosts.is_empty() && hosts.patterns.is_empty());
    }
}
