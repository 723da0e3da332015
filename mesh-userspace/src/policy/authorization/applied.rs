//! The policies that apply to a workload, and how it is known that they still are the same.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::model::{
    AuthorizationPolicy, NamespacePolicies, PolicyName, Protocol, Service, ServiceName, Snapshot, Workload,
};

/// A policy that applies to a workload.
#[derive(Debug)]
pub(super) struct Applied {
    pub(super) policy: Arc<AuthorizationPolicy>,
    /// With `targetRefs`: the workload's addresses and ports that are endpoints of those services.
    pub(super) endpoints: Option<BTreeSet<SocketAddr>>,
}

impl Applied {
    /// Whether it has a say in connections to this address, which is canonical.
    pub(super) fn concerns(&self, destination: SocketAddr) -> bool {
        self.endpoints.as_ref().is_none_or(|endpoints| endpoints.contains(&destination))
    }
}

/// What the policies that apply were found in. Where every pointer is the same, so are they.
#[derive(Debug)]
pub(super) struct Origin {
    workload: Arc<Workload>,
    root: Option<Arc<NamespacePolicies>>,
    own: Option<Arc<NamespacePolicies>>,
    /// The services of the namespace that `targetRefs` name.
    targets: Vec<(ServiceName, Option<Arc<Service>>)>,
}

impl Origin {
    pub(super) fn of(snapshot: &Snapshot, workload: &Workload) -> Self {
        let held = snapshot.workloads.get(&workload.uid).filter(|held| is_this(held, workload));
        let root_namespace = &snapshot.mesh.root_namespace;
        let root = snapshot.policies.of_namespace(root_namespace);
        let own = snapshot.policies.of_namespace(&workload.namespace);
        let targets = own.into_iter().flat_map(|own| own.targets()).map(|(name, _)| {
            let name = ServiceName::new(Arc::clone(&workload.namespace), Arc::clone(name));
            let service = snapshot.services.get(&name).map(Arc::clone);
            (name, service)
        });
        Self {
            workload: held.map_or_else(|| Arc::new(workload.clone()), Arc::clone),
            root: root.filter(|_| workload.namespace != *root_namespace).map(Arc::clone),
            own: own.map(Arc::clone),
            targets: targets.collect(),
        }
    }

    pub(super) fn workload(&self) -> &Workload {
        &self.workload
    }

    /// Whether [`Self::of`] would find the same.
    pub(super) fn is_current(&self, snapshot: &Snapshot, workload: &Workload) -> bool {
        let root_namespace = &snapshot.mesh.root_namespace;
        let root = snapshot.policies.of_namespace(root_namespace);
        let root = root.filter(|_| workload.namespace != *root_namespace);
        let own = snapshot.policies.of_namespace(&workload.namespace);
        let same_target = |(name, held): &(ServiceName, Option<Arc<Service>>)| {
            is_same(held.as_ref(), snapshot.services.get(name))
        };
        // A workload that no snapshot holds, or holds anew, may be equal all the same.
        (is_this(&self.workload, workload) || *self.workload == *workload)
            && is_same(self.root.as_ref(), root)
            && is_same(self.own.as_ref(), own)
            && self.targets.iter().all(same_target)
    }

    /// The policies that apply, by namespace and name.
    pub(super) fn applied(&self) -> Vec<Applied> {
        let workload = &*self.workload;
        let mut found: BTreeMap<PolicyName, Applied> = BTreeMap::new();
        for policies in self.root.iter().chain(&self.own) {
            for policy in policies.selecting(&workload.labels) {
                let applied = Applied { policy: Arc::clone(policy), endpoints: None };
                found.insert(policy.name.clone(), applied);
            }
        }
        let own = self.own.iter().flat_map(|own| own.targets());
        for ((_, policies), (_, service)) in own.zip(&self.targets) {
            let Some(service) = service else { continue };
            let endpoints = endpoints(service, workload);
            if endpoints.is_empty() {
                continue;
            }
            for policy in policies {
                let new = || Applied { policy: Arc::clone(policy), endpoints: Some(BTreeSet::new()) };
                let applied = found.entry(policy.name.clone()).or_insert_with(new);
                applied.endpoints.iter_mut().for_each(|all| all.extend(&endpoints));
            }
        }
        found.into_values().collect()
    }
}

/// The TCP endpoints of a service that are the workload's, whatever their state.
fn endpoints(service: &Service, workload: &Workload) -> BTreeSet<SocketAddr> {
    let ports = service.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
    let listed = ports.flat_map(|port| &*port.listed);
    let own = listed.filter(|endpoint| {
        endpoint.workload.as_ref() == Some(&workload.uid)
            || workload.addresses.contains(&endpoint.address.ip())
    });
    own.map(|endpoint| SocketAddr::new(endpoint.address.ip().to_canonical(), endpoint.address.port()))
        .collect()
}

fn is_this(held: &Arc<Workload>, workload: &Workload) -> bool {
    std::ptr::eq(Arc::as_ptr(held), workload)
}

fn is_same<T>(held: Option<&Arc<T>>, now: Option<&Arc<T>>) -> bool {
    match (held, now) {
        (Some(held), Some(now)) => Arc::ptr_eq(held, now),
        (None, None) => true,
        _ => false,
    }
}
