//! `DestinationRules` against services, each other, the routes that name their subsets, and `PeerAuthentication`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;

use super::{World, add, told, workloads};
use crate::model::{self, Endpoint, Mode, ServiceName};
use crate::policy::peer_authentication::effective_modes;
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

/// A rule for many services asks for a TLS mode of all of them.
fn wildcard(world: &World<'_>, notices: &mut Vec<Notice>, name: &ObjectRef, rule: &DestinationRule) {
    let Some(suffix) = rule.spec.host.strip_prefix('*') else { return };
    if settings(rule).is_empty() {
        return;
    }
    for service in world.snapshot.services.values().filter(|service| service.host.ends_with(suffix)) {
        mutual_tls(world, notices, name, rule, service);
    }
}

/// A TLS mode that a rule asks for.
struct Setting<'a> {
    field: String,
    mode: &'a str,
    /// Of the service; all where none is named.
    port: Option<u64>,
    labels: Option<&'a BTreeMap<String, String>>,
}

/// All that the rule asks for.
fn settings(rule: &DestinationRule) -> Vec<Setting<'_>> {
    let whole =
        rule.spec.rest.get("trafficPolicy").map(|policy| ("spec.trafficPolicy".to_owned(), policy, None));
    let subsets = rule.spec.subsets.iter().enumerate().filter_map(|(index, subset)| {
        let policy = subset.rest.get("trafficPolicy")?;
        Some((format!("spec.subsets[{index}].trafficPolicy"), policy, Some(&subset.labels)))
    });
    let mut settings = Vec::new();
    for (at, policy, labels) in whole.into_iter().chain(subsets) {
        if let Some(mode) = policy.pointer("/tls/mode").and_then(Value::as_str) {
            settings.push(Setting { field: format!("{at}.tls.mode"), mode, port: None, labels });
        }
        let ports = policy.get("portLevelSettings").and_then(Value::as_array);
        for (index, setting) in ports.into_iter().flatten().enumerate() {
            if let Some(mode) = setting.pointer("/tls/mode").and_then(Value::as_str) {
                let field = format!("{at}.portLevelSettings[{index}].tls.mode");
                let port = setting.pointer("/port/number").and_then(Value::as_u64);
                settings.push(Setting { field, mode, port, labels });
            }
        }
    }
    settings
}

fn mutual_tls(
    world: &World<'_>,
    notices: &mut Vec<Notice>,
    name: &ObjectRef,
    rule: &DestinationRule,
    service: &model::Service,
) {
    for Setting { field, mode, port, labels } in settings(rule) {
        let ends = Ends::of(world, service, port, labels);
        let host = &service.host;
        match mode {
            "DISABLE" if ends.strict > 0 => {
                let message = format!(
                    "{host} is STRICT by PeerAuthentication: this mesh speaks mutual TLS with it all the same, a proxy of \
                     Istio's that obeys the rule is refused"
                );
                add(notices, Code::DisableForStrict, name, field, message);
            }
            "ISTIO_MUTUAL" if ends.disabled > 0 => {
                let message =
                    format!("{host} has mode DISABLE by PeerAuthentication: connections to it are plaintext");
                add(notices, Code::MutualForPlain, name, field, message);
            }
            "ISTIO_MUTUAL" if ends.outside > 0 => {
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
        for endpoint in ports.flat_map(|port| &*port.listed) {
            let workload = endpoint.workload.as_ref().and_then(|uid| world.snapshot.workloads.get(uid));
            let is_in = |labels| workload.is_some_and(|workload| workloads::has(&workload.labels, labels));
            if labels.is_none_or(is_in) {
                ends.add(endpoint);
            }
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
