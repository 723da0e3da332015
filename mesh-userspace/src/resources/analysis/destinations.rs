//! `DestinationRules` against services, each other, the routes that name their subsets, and `PeerAuthentication`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{World, add, told, workloads};
use crate::model::{self, Endpoint, EndpointState, Mode, OutlierDetection, ServiceName};
use crate::policy::peer_authentication::effective_modes;
use crate::resources::destination_rule::{Parts, Subset, TlsMode};
use crate::resources::translate::destination::suffix;
use crate::resources::translate::settings::settings;
use crate::resources::{Code, DestinationRule, Notice, ObjectRef};

/// A service's subset.
type Named<'a> = (ServiceName, &'a str);

pub(super) fn analyse(world: &World<'_>, notices: &mut Vec<Notice>) {
    let used = used_subsets(world);
    let mut first: HashMap<&ServiceName, (&ObjectRef, &DestinationRule)> = HashMap::new();
    for (name, rule, host) in &world.destination_rules {
        let Some(host) = host else {
            wildcard(world, notices, name, rule);
            continue;
        };
        if !world.knows(host) {
            let message = format!("there is no service {host}, the rule has no effect");
            add(notices, Code::RuleHostUnknown, name, "spec.host", message);
            continue;
        }
        match first.get(host) {
            Some((older, before)) => overlap(notices, name, rule, older, before),
            None => {
                first.insert(host, (name, rule));
            }
        }
        for (index, subset) in rule.spec.subsets.iter().enumerate() {
            let field = format!("spec.subsets[{index}]");
            let is_used = used.contains(&(host.clone(), subset.name.as_str()));
            if !is_used {
                let message = format!("no VirtualService leads to subset {} of {host}", subset.name);
                add(notices, Code::SubsetUnused, name, field.as_str(), message);
            }
            let service = world.service(host);
            let is_empty =
                service.and_then(|service| world.has_endpoint(service, &subset.labels)) == Some(false);
            // Where a route leads to it, it is the route's error.
            if is_empty && !is_used {
                let message = format!("no pod of {host} has all the labels of subset {}", subset.name);
                add(notices, Code::SubsetWithoutPods, name, format!("{field}.labels"), message);
            }
        }
        if let Some(service) = world.service(host) {
            ports(notices, name, rule, service);
            ejections(world, notices, name, rule, service, &used);
            mutual_tls(world, notices, name, rule, service);
        }
    }
}

/// The subsets that any route leads to.
fn used_subsets<'a>(world: &World<'a>) -> BTreeSet<Named<'a>> {
    let mut used = BTreeSet::new();
    for (name, rule) in &world.virtual_services {
        for to in rule.spec.destinations() {
            let host = world.resolve(&to.host, &name.namespace);
            if let (Some(host), Some(subset)) = (host, to.subset.as_deref()) {
                used.insert((host, subset));
            }
        }
    }
    used
}

fn overlap(
    notices: &mut Vec<Notice>,
    name: &ObjectRef,
    rule: &DestinationRule,
    older: &ObjectRef,
    before: &DestinationRule,
) {
    let known: BTreeSet<&str> = before.spec.subsets.iter().map(|subset| subset.name.as_str()).collect();
    let both: Vec<&str> = rule
        .spec
        .subsets
        .iter()
        .map(|subset| subset.name.as_str())
        .filter(|name| known.contains(name))
        .collect();
    let message = if both.is_empty() {
        format!(
            "{} is for the same host: the subsets of both are taken together, Istio merges nothing else",
            told(older)
        )
    } else {
        format!(
            "{} is for the same host and names {} as well: one of the two is in force",
            told(older),
            both.join(", ")
        )
    };
    add(notices, Code::RulesOverlap, name, "spec.host", message);
}

/// A rule for many services.
fn wildcard(world: &World<'_>, notices: &mut Vec<Notice>, name: &ObjectRef, rule: &DestinationRule) {
    let Some(suffix) = suffix(&rule.spec.host) else { return };
    let mut services =
        world.snapshot.services.values().filter(|service| service.host.ends_with(suffix)).peekable();
    if services.peek().is_none() && !world.services.is_empty() {
        let message = format!("no service has a host that is one of {}", rule.spec.host);
        add(notices, Code::RuleHostUnknown, name, "spec.host", message);
    }
    if modes(rule).is_empty() {
        return;
    }
    for service in services {
        mutual_tls(world, notices, name, rule, service);
    }
}

/// Settings for ports that the service does not have.
fn ports(notices: &mut Vec<Notice>, name: &ObjectRef, rule: &DestinationRule, service: &model::Service) {
    for (at, policy, _) in rule.policies() {
        for (below, number, _) in policy.ports() {
            if service.ports.iter().any(|port| u32::from(port.port) == number) {
                continue;
            }
            let message = format!("{} has no port {number}: the settings hold nowhere", service.host);
            add(notices, Code::PortSettingUnknown, name, format!("{at}.{below}.port.number"), message);
        }
    }
}

/// Outlier detection whose share of the endpoints is less than one of them, of a destination that connections go to.
fn ejections(
    world: &World<'_>,
    notices: &mut Vec<Notice>,
    name: &ObjectRef,
    rule: &DestinationRule,
    service: &model::Service,
    used: &BTreeSet<Named<'_>>,
) {
    let is_used = |subset: &Subset| used.contains(&(service.name.clone(), subset.name.as_str()));
    let has_own = |subset: &Subset| {
        subset.traffic_policy.as_ref().is_some_and(|policy| policy.outlier_detection.is_some())
    };
    for (at, policy, subset) in rule.policies() {
        // The host's policy holds for subsets that have none of their own as well.
        let inheriting =
            rule.spec.subsets.iter().filter(|one| subset.is_none() && is_used(one) && !has_own(one));
        let destinations: Vec<_> = [subset].into_iter().chain(inheriting.map(Some)).collect();
        // What stands for a port takes the place of the rest there.
        let overridden: Vec<u64> = policy.ports().map(|(_, number, _)| u64::from(number)).collect();
        let mut look = |at: &str, parts: &Parts<'_>, is_its: &dyn Fn(u64) -> bool| {
            let Some(outliers) = settings(parts).outliers.filter(OutlierDetection::counts) else { return };
            let percent = outliers.max_ejection_percent as usize;
            for subset in &destinations {
                let most = most_endpoints(world, service, is_its, subset.map(|subset| &subset.labels));
                if most == 0 || most * percent >= 100 {
                    continue;
                }
                let of = subset.map_or(String::new(), |subset| format!(" subset {} of", subset.name));
                let message = format!(
                    "{percent}% of the {most} endpoints of{of} {} are none: nobody is ejected, however often it fails",
                    service.host
                );
                let field = format!("{at}.outlierDetection.maxEjectionPercent");
                add(notices, Code::NobodyEjected, name, field, message);
            }
        };
        look(&at, &policy.parts(), &|port| !overridden.contains(&port));
        for (below, number, own) in policy.ports() {
            look(&format!("{at}.{below}"), &own.parts(), &|port| port == u64::from(number));
        }
    }
}

/// Endpoints that serve, of the port and address family that have most of them: ejections are counted by port and family.
fn most_endpoints(
    world: &World<'_>,
    service: &model::Service,
    is_its: &dyn Fn(u64) -> bool,
    labels: Option<&BTreeMap<String, String>>,
) -> usize {
    let ports = service.ports.iter().filter(|own| is_its(u64::from(own.port)));
    let counts = ports.map(|port| {
        let serving = port.listed.iter().filter(|endpoint| endpoint.state == EndpointState::Ready);
        let endpoints = serving.filter(|endpoint| is_in(world, endpoint, labels));
        let (v4, v6): (Vec<_>, Vec<_>) = endpoints.partition(|endpoint| endpoint.address.is_ipv4());
        v4.len().max(v6.len())
    });
    counts.max().unwrap_or(0)
}

/// Whether an endpoint has all the labels of a subset.
fn is_in(world: &World<'_>, endpoint: &Endpoint, labels: Option<&BTreeMap<String, String>>) -> bool {
    let workload = endpoint.workload.as_ref().and_then(|uid| world.snapshot.workloads.get(uid));
    labels.is_none_or(|labels| workload.is_some_and(|workload| workloads::has(&workload.labels, labels)))
}

/// A TLS mode that a rule asks for.
struct Setting<'a> {
    field: String,
    mode: TlsMode,
    /// Of the service; all where none is named.
    port: Option<u64>,
    labels: Option<&'a BTreeMap<String, String>>,
}

/// All that the rule asks for.
fn modes(rule: &DestinationRule) -> Vec<Setting<'_>> {
    let mut modes = Vec::new();
    for (at, policy, subset) in rule.policies() {
        let labels = subset.map(|subset| &subset.labels);
        let mut add = |at: &str, parts: Parts<'_>, port: Option<u64>| {
            let mode = parts.tls.map(|tls| tls.mode);
            modes.extend(mode.map(|mode| Setting { field: format!("{at}.tls.mode"), mode, port, labels }));
        };
        add(&at, policy.parts(), None);
        for (below, number, own) in policy.ports() {
            add(&format!("{at}.{below}"), own.parts(), Some(u64::from(number)));
        }
    }
    modes
}

fn mutual_tls(
    world: &World<'_>,
    notices: &mut Vec<Notice>,
    name: &ObjectRef,
    rule: &DestinationRule,
    service: &model::Service,
) {
    for Setting { field, mode, port, labels } in modes(rule) {
        let ends = Ends::of(world, service, port, labels);
        let host = &service.host;
        match mode {
            TlsMode::Disable if ends.strict > 0 => {
                let message = format!(
                    "{host} is STRICT by PeerAuthentication: this mesh speaks mutual TLS with it all the same, a proxy of \
                     Istio's that obeys the rule is refused"
                );
                add(notices, Code::DisableForStrict, name, field, message);
            }
            TlsMode::IstioMutual if ends.disabled > 0 => {
                let message =
                    format!("{host} has mode DISABLE by PeerAuthentication: connections to it are plaintext");
                add(notices, Code::MutualForPlain, name, field, message);
            }
            TlsMode::IstioMutual if ends.outside > 0 => {
                let message = format!(
                    "{} of the {} endpoints of {host} are not in the mesh: connections to them are plaintext",
                    ends.outside, ends.all
                );
                add(notices, Code::MutualForPlain, name, field, message);
            }
            _ => {}
        }
    }
}

/// Endpoints by what they take.
#[derive(Default)]
struct Ends {
    all: usize,
    strict: usize,
    disabled: usize,
    outside: usize,
}

impl Ends {
    fn of(
        world: &World<'_>,
        service: &model::Service,
        port: Option<u64>,
        labels: Option<&BTreeMap<String, String>>,
    ) -> Self {
        let mut ends = Self::default();
        let ports = service.ports.iter().filter(|own| port.is_none_or(|port| port == u64::from(own.port)));
        for endpoint in ports.flat_map(|port| &*port.listed).filter(|endpoint| is_in(world, endpoint, labels))
        {
            ends.add(endpoint);
        }
        if ends.all == 0 && labels.is_none() {
            ends.suppose(world, service, port);
        }
        ends
    }

    fn add(&mut self, endpoint: &Endpoint) {
        self.all += 1;
        match (endpoint.enrolled, endpoint.mode) {
            (false, _) => self.outside += 1,
            (true, Mode::Strict) => self.strict += 1,
            (true, Mode::Disable) => self.disabled += 1,
            (true, Mode::Permissive) => {}
        }
    }

    /// Without pods: what would hold for one with the labels that the service selects.
    fn suppose(&mut self, world: &World<'_>, service: &model::Service, port: Option<u64>) {
        let Some(written) = world.services.get(&service.name) else { return };
        let labels = super::selector(written);
        if labels.is_empty() {
            return;
        }
        let policies = world.snapshot.peer_policies.values().map(|policy| &**policy);
        let root = &world.snapshot.mesh.root_namespace;
        let modes = effective_modes(policies, root, &service.name.namespace, &labels);
        let mode =
            port.and_then(|port| u16::try_from(port).ok()).map_or(modes.default, |port| modes.at(port));
        self.strict = usize::from(mode == Mode::Strict);
        self.disabled = usize::from(mode == Mode::Disable);
    }
}
