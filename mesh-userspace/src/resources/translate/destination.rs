//! What `DestinationRule`s ask of a destination, put to a route's target.
//!
//! Which rules are in force for a service, where several name it: those of the service's own namespace, else those of the root
//! namespace, and no others: what a tenant writes in a namespace of its own is nothing to everybody's connections. Of these the ones with the most specific host (the host itself before a wildcard, a longer
//! wildcard before a shorter one). Istio asks the client's namespace first, but clients of all namespaces share a node's
//! agent and its kernel. As in Istio the rules of one namespace for one host are one: the traffic policy of the oldest
//! that has one, and all subsets. A subset that they do not name is looked for in the other rules as well.

use std::sync::Arc;

use super::route::Destinations;
use super::service::PlainPort;
use super::settings::{merged, settings};
use super::spread::{Place, minds, spreading};
use crate::model::{Balancer, Endpoint, Locality, Protocol, RouteTarget, TrafficSettings};
use crate::resources::destination_rule::{Parts, Subset, TrafficPolicy};
use crate::resources::{DestinationRule, ObjectRef};

/// A rule and its name.
pub(in crate::resources) type NamedRule<'a> = (&'a ObjectRef, &'a DestinationRule);

/// The target with what the rules for its service ask of connections to it: the settings of its port, subset and host, and
/// how its share is spread over its endpoints. `port` is the service's own, which the target leads to. Rules are for TCP.
pub(super) fn dress(
    mut target: RouteTarget,
    port: &PlainPort,
    destinations: &impl Destinations,
) -> RouteTarget {
    if port.protocol != Protocol::Tcp {
        return target;
    }
    let mut rules = destinations.rules(&target.service);
    rules.retain(|(name, _)| destinations.speaks_for(name, &target.service));
    if rules.is_empty() {
        return target;
    }
    let sayers = Sayers::of(&rules, target.subset.as_deref());
    let policy = sayers.policy(port.port);
    let settings = settings(&policy);
    let is_passed_through = settings.balancer == Balancer::Passthrough;
    if settings != TrafficSettings::default() {
        target.settings = Arc::new(TrafficSettings { rule: sayers.told(), ..settings });
    }
    if !is_passed_through && minds_locality(&policy) {
        spread(&mut target, port, &policy, destinations);
    }
    target
}

/// Whether it matters to one of the rules in force where the endpoints are.
pub(in crate::resources) fn mind_locality(rules: &[NamedRule<'_>]) -> bool {
    let minds = |policy: &TrafficPolicy| {
        minds_locality(&policy.parts()) || policy.ports().any(|(_, _, own)| minds_locality(&own.parts()))
    };
    // A subset may inherit the outlier detection and ask for a distribution, or the other way round: each alone will do.
    rules.iter().any(|(_, rule)| rule.policies().any(|(_, policy, _)| minds(policy)))
}

fn minds_locality(policy: &Parts<'_>) -> bool {
    let setting = policy.load_balancer.and_then(|balancer| balancer.locality_lb_setting.as_ref());
    minds(setting, policy.outlier_detection.is_some())
}

/// Whose policies hold for a target.
struct Sayers<'a> {
    host: Option<(&'a ObjectRef, &'a TrafficPolicy)>,
    subset: Option<(&'a ObjectRef, &'a TrafficPolicy)>,
}

impl<'a> Sayers<'a> {
    /// Of these rules, the first in force first.
    fn of(rules: &[NamedRule<'a>], subset: Option<&str>) -> Self {
        let host = in_force(rules).find_map(|(name, rule)| Some((name, rule.spec.traffic_policy.as_ref()?)));
        let named = subset.and_then(|name| self::subset(rules, name));
        let subset = named.and_then(|(name, subset)| Some((name, subset.traffic_policy.as_ref()?)));
        Self { host, subset }
    }

    /// What they say for a port.
    fn policy(&self, port: u16) -> Parts<'a> {
        merged(self.host.map(|(_, policy)| policy), self.subset.map(|(_, policy)| policy), port)
    }

    /// `NAMESPACE/NAME` of each, joined by a comma.
    fn told(&self) -> Option<Arc<str>> {
        let mut names: Vec<&ObjectRef> =
            self.host.iter().chain(&self.subset).map(|(name, _)| *name).collect();
        names.dedup();
        let names: Vec<String> =
            names.into_iter().map(|name| format!("{}/{}", name.namespace, name.name)).collect();
        (!names.is_empty()).then(|| names.join(",").into())
    }
}

/// The first of the rules that names a subset.
pub(in crate::resources) fn subset<'a>(
    rules: &[NamedRule<'a>],
    name: &str,
) -> Option<(&'a ObjectRef, &'a Subset)> {
    rules.iter().find_map(|(reference, rule)| {
        let found = rule.spec.subsets.iter().find(|subset| subset.name == name)?;
        Some((*reference, found))
    })
}

/// Those of the rules, which come in the order of their precedence, that are taken together: of one namespace, and for hosts that
/// are equally specific.
pub(in crate::resources) fn in_force<'a, 'b>(
    rules: &'b [NamedRule<'a>],
) -> impl Iterator<Item = NamedRule<'a>> + 'b {
    let first = rules.first().copied();
    let same = move |one: &NamedRule<'a>| {
        first.is_some_and(|first| {
            one.0.namespace == first.0.namespace && suffix(&one.1.spec.host) == suffix(&first.1.spec.host)
        })
    };
    rules.iter().copied().take_while(same)
}

/// What the hosts of a wildcard end in; `None` for the name of a single one.
pub(in crate::resources) fn suffix(host: &str) -> Option<&str> {
    host.strip_prefix('*')
}

/// Says of the target's endpoints where they are, and how its share is spread by that; those that get nothing are left out.
fn spread(target: &mut RouteTarget, port: &PlainPort, policy: &Parts<'_>, destinations: &impl Destinations) {
    let here = destinations.here();
    let nowhere = Arc::<Locality>::default();
    let own = here.node.and_then(|node| destinations.locality(node)).unwrap_or(&nowhere);
    let mut endpoints: Vec<Endpoint> = target.endpoints.to_vec();
    for endpoint in &mut endpoints {
        endpoint.locality = endpoint.locality.take().or_else(|| locality(endpoint, destinations));
    }
    let places = endpoints.iter().map(|endpoint| {
        let at = port.members.binary_search_by_key(&endpoint.address, |member| member.endpoint.address);
        let workload = at.ok().and_then(|index| port.members[index].workload.as_ref());
        Place {
            locality: endpoint.locality.as_ref().unwrap_or(&nowhere),
            node: endpoint.node.as_ref().or_else(|| workload?.node.as_ref()),
            labels: workload.map(|workload| &*workload.labels),
        }
    });
    let places: Vec<Place<'_>> = places.collect();
    let client = Place { locality: own, node: here.node, labels: None };
    let setting = policy.load_balancer.and_then(|balancer| balancer.locality_lb_setting.as_ref());
    let spreading = spreading(setting, policy.outlier_detection.is_some(), client, &places);
    if let Some(spreading) = spreading {
        let mut gets = spreading.of.iter().map(Option::is_some);
        endpoints.retain(|_| gets.next() == Some(true));
        target.spread = Some(Arc::new(spreading.spread()));
    }
    target.endpoints = endpoints.into();
}

/// Where an endpoint is: where its node is, else in the zone that its slice says.
fn locality(endpoint: &Endpoint, destinations: &impl Destinations) -> Option<Arc<Locality>> {
    let of_node = endpoint.node.as_ref().and_then(|node| destinations.locality(node)).map(Arc::clone);
    let of_zone = || {
        let zone = Arc::clone(endpoint.zone.as_ref()?);
        Some(Arc::new(Locality { zone, ..Locality::default() }))
    };
    of_node.or_else(of_zone)
}
