//! Where things are, and how a destination's share is spread by that.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Region, zone and sub-zone (`topology.kubernetes.io/region`, `topology.kubernetes.io/zone`, `topology.istio.io/subzone`;
/// `locality: REGION/ZONE/SUBZONE`); empty where it is not said.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Locality {
    /// Region.
    pub region: Arc<str>,
    /// Zone in it.
    pub zone: Arc<str>,
    /// Sub-zone in that.
    pub subzone: Arc<str>,
}

/// How a target's share is spread over its endpoints: in groups, which have a priority and a weight (`localityLbSetting`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// The groups.
    pub groups: Box<[Group]>,
    /// For each endpoint of the target the index of its group; what is missing is in group 0.
    pub of: Box<[u16]>,
}

/// Endpoints that are treated alike.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// 0 comes first; one that is lower takes over as those above it fail (failover).
    pub priority: u8,
    /// Its share within its priority (`distribute`); where all are 0: by the endpoints' weights.
    pub weight: u32,
    /// What its endpoints have in common, for whoever reads it.
    pub label: Arc<str>,
}

impl Spread {
    /// The group of the target's endpoint with this index.
    pub fn group(&self, endpoint: usize) -> usize {
        self.of.get(endpoint).map_or(0, |&group| usize::from(group))
    }

    /// A group's priority.
    pub fn priority(&self, group: usize) -> u8 {
        self.groups.get(group).map_or(0, |group| group.priority)
    }

    /// A group's weight.
    pub fn weight(&self, group: usize) -> u32 {
        self.groups.get(group).map_or(0, |group| group.weight)
    }
}
