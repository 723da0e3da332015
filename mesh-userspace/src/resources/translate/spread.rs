//! How a destination's share is spread over its endpoints by where they are and where the client is: Istio's
//! `ApplyLocalityLoadBalancer` (pilot/pkg/networking/core/loadbalancer). Pure functions.
//!
//! Shares (`distribute`) hold by themselves. Priorities need outlier detection: without it nothing tells that an endpoint serves no
//! more, and nobody would ever be sent to the lower ones.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::node::{HOSTNAME, REGION, SUBZONE, ZONE};
use crate::model::{Group, Locality, NodeName, Spread};
use crate::resources::destination_rule::{Distribute, Failover, LocalityLbSetting};

/// Network and cluster of an endpoint: all are of one here, so that they tell no endpoint from another.
const NETWORK: &str = "topology.istio.io/network";
const CLUSTER: &str = "topology.istio.io/cluster";

/// Levels of [`nearness`] with `failover`.
const LEVELS: usize = 5;

/// Where something is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) locality: &'a Locality,
    pub(super) node: Option<&'a NodeName>,
    /// Labels of an endpoint's workload; of clients nothing is known, those of a node are many.
    pub(super) labels: Option<&'a BTreeMap<String, String>>,
}

/// What a locality setting comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spreading {
    pub(super) groups: Vec<Group>,
    /// For each endpoint its group; `None`: it gets nothing at all.
    pub(super) of: Vec<Option<u16>>,
}

impl Spreading {
    /// As the model has it, for the endpoints that get something.
    pub(super) fn spread(self) -> Spread {
        Spread { groups: self.groups.into(), of: self.of.into_iter().flatten().collect() }
    }
}

/// Whether it matters where endpoints are.
pub(super) fn minds(setting: Option<&LocalityLbSetting>, has_outliers: bool) -> bool {
    let is_off = |setting: &LocalityLbSetting| setting.enabled == Some(false);
    !setting.is_some_and(is_off)
        && (has_outliers || setting.is_some_and(|setting| !setting.distribute.is_empty()))
}

/// How endpoints are grouped for a client; `None`: they are all alike.
pub(super) fn spreading(
    setting: Option<&LocalityLbSetting>,
    has_outliers: bool,
    client: Place<'_>,
    endpoints: &[Place<'_>],
) -> Option<Spreading> {
    if !minds(setting, has_outliers) {
        return None;
    }
    let default = LocalityLbSetting::default();
    let setting = setting.unwrap_or(&default);
    if !setting.distribute.is_empty() {
        let rule = setting.distribute.iter().find(|rule| is_in(client.locality, &rule.from))?;
        return Some(distributed(rule, endpoints));
    }
    let keys = keys(&setting.failover_priority);
    let by_labels = !setting.failover_priority.is_empty();
    let by_place = !by_labels || !setting.failover.is_empty();
    if !by_labels && client.locality.region.is_empty() && client.locality.zone.is_empty() {
        // Where the client is unknown nothing is near.
        return None;
    }
    let raw = endpoints.iter().map(|endpoint| {
        let labels = if by_labels { unlike(&keys, client, *endpoint) } else { 0 };
        let place =
            if by_place { nearness(client.locality, endpoint.locality, &setting.failover) } else { 0 };
        (labels, place)
    });
    Some(prioritised(&raw.collect::<Vec<_>>(), client.locality, &keys))
}

/// Whether a locality is one of those that are written: parts that are left out, or `*`, are any (`LocalityMatch`).
fn is_in(locality: &Locality, written: &str) -> bool {
    let mut parts = written.splitn(3, '/');
    let (region, zone, subzone) = (parts.next(), parts.next(), parts.next());
    let any = |part: Option<&str>| part.is_none_or(|part| part.is_empty() || part == "*");
    (region == Some("*") || region == Some(&*locality.region))
        && (any(zone) || zone == Some(&*locality.zone))
        && (any(subzone) || subzone == Some(&*locality.subzone))
}

/// Endpoints in none of the localities get nothing.
fn distributed(rule: &Distribute, endpoints: &[Place<'_>]) -> Spreading {
    // Where two of them hold, which validation refuses, the narrower one does.
    let mut to: Vec<(&str, u32)> = rule.to.iter().map(|(place, weight)| (place.as_str(), *weight)).collect();
    to.sort_by_key(|(place, _)| std::cmp::Reverse((place.matches('/').count(), !place.ends_with('*'))));
    let groups = to.iter().map(|&(place, weight)| Group { priority: 0, weight, label: place.into() });
    let group_of = |endpoint: &Place<'_>| {
        let found = to.iter().position(|(place, _)| is_in(endpoint.locality, place))?;
        u16::try_from(found).ok()
    };
    Spreading { groups: groups.collect(), of: endpoints.iter().map(group_of).collect() }
}

/// A label that client and endpoint are to have alike.
#[derive(Clone, Copy, Debug)]
struct Key<'a> {
    name: &'a str,
    /// What is taken for the client's.
    value: Option<&'a str>,
}

/// The labels of `failoverPriority` that can be compared ([`is_comparable`]).
fn keys(written: &[String]) -> Vec<Key<'_>> {
    let all = written.iter().map(|text| match text.split_once('=') {
        Some((name, value)) => Key { name, value: Some(value) },
        None => Key { name: text, value: None },
    });
    all.filter(|key| key.name != NETWORK && key.name != CLUSTER)
        .filter(|key| key.value.is_some() || topology(key.name))
        .collect()
}

/// Whether an entry of `failoverPriority` can be carried out for all clients of a node: a label of the topology, which they have in
/// common, or one with its value.
pub(in crate::resources) fn is_comparable(written: &str) -> bool {
    written.contains('=') || topology(written) || matches!(written, NETWORK | CLUSTER)
}

fn topology(key: &str) -> bool {
    matches!(key, REGION | ZONE | SUBZONE | HOSTNAME)
}

/// How many of the labels, from the first that is unlike on, count as unlike (`applyFailoverPriorityPerLocality`).
fn unlike(keys: &[Key<'_>], client: Place<'_>, endpoint: Place<'_>) -> usize {
    let differs =
        |key: &Key<'_>| key.value.unwrap_or_else(|| label(client, key.name)) != label(endpoint, key.name);
    keys.iter().position(differs).map_or(0, |first| keys.len() - first)
}

fn label<'a>(place: Place<'a>, key: &str) -> &'a str {
    match key {
        REGION => &place.locality.region,
        ZONE => &place.locality.zone,
        SUBZONE => &place.locality.subzone,
        HOSTNAME => place.node.map_or("", NodeName::as_str),
        _ => place.labels.and_then(|labels| labels.get(key)).map_or("", String::as_str),
    }
}

/// 0: the same sub-zone, 1: the same zone, 2: the same region, 3: the region that takes over, or any where none is named,
/// 4: others (`applyLocalityFailover`).
fn nearness(client: &Locality, endpoint: &Locality, failover: &[Failover]) -> usize {
    if client.region == endpoint.region {
        return match (client.zone == endpoint.zone, client.subzone == endpoint.subzone) {
            (true, true) => 0,
            (true, false) => 1,
            (false, _) => 2,
        };
    }
    let rule = failover.iter().find(|rule| *rule.from == *client.region);
    if rule.is_some_and(|rule| *rule.to != *endpoint.region) { 4 } else { 3 }
}

/// Priorities from 0 on without a gap.
fn prioritised(raw: &[(usize, usize)], client: &Locality, keys: &[Key<'_>]) -> Spreading {
    let levels: BTreeSet<(usize, usize)> = raw.iter().copied().collect();
    let levels: Vec<(usize, usize)> = levels.into_iter().collect();
    debug_assert!(levels.iter().all(|(_, place)| *place < LEVELS));
    let groups = levels.iter().enumerate().map(|(index, &level)| Group {
        priority: u8::try_from(index).unwrap_or(u8::MAX),
        weight: 0,
        label: told(level, client, keys),
    });
    let group_of = |level: &(usize, usize)| {
        let found = levels.binary_search(level).ok()?;
        Some(u16::try_from(found).unwrap_or(u16::MAX))
    };
    Spreading { groups: groups.collect(), of: raw.iter().map(group_of).collect() }
}

/// What the endpoints of a level have in common with the client.
fn told((unlike, place): (usize, usize), client: &Locality, keys: &[Key<'_>]) -> Arc<str> {
    let mut told: Vec<String> =
        keys[..keys.len().saturating_sub(unlike)].iter().map(|key| key.name.to_owned()).collect();
    if keys.is_empty() || place > 0 {
        told.push(match place {
            0 => format!("{}/{}/{}", client.region, client.zone, client.subzone),
            1 => format!("{}/{}", client.region, client.zone),
            2 => client.region.to_string(),
            3 => "other region".to_owned(),
            _ => "elsewhere".to_owned(),
        });
    }
    if told.is_empty() {
        return "elsewhere".into();
    }
    told.join(", ").trim_end_matches('/').into()
}

#[cfg(test)]
mod tests;
