//! `ServiceEntry`s and `WorkloadEntry`s against services, workloads and each other.

use std::sync::Arc;

use super::{World, add, told};
use crate::model::ServiceName;
use crate::resources::entry::{ServiceEntry, WorkloadEntry};
use crate::resources::translate::entry::{addresses, is_served};
use crate::resources::translate::hosts::resolve_host;
use crate::resources::{Code, Notice, ObjectRef};

pub(super) fn analyse(world: &World<'_>, notices: &mut Vec<Notice>) {
    for (name, entry) in world.service_entries.iter().filter(|(_, entry)| is_served(entry)) {
        hosts(world, notices, name, entry);
        clashes(world, notices, name, entry);
        selector(world, notices, name, entry);
    }
    for (name, entry) in &world.workload_entries {
        unselected(world, notices, name, entry);
    }
}

/// Hosts that another object has.
fn hosts(world: &World<'_>, notices: &mut Vec<Notice>, name: &ObjectRef, entry: &ServiceEntry) {
    let mesh = &world.snapshot.mesh;
    for (index, host) in entry.spec.hosts.iter().enumerate() {
        let is_full = host.ends_with(&*mesh.cluster_domain);
        let service = resolve_host(host, "", mesh).filter(|_| is_full);
        if let Some(service) = service.filter(|service| world.services.contains_key(service)) {
            let message = format!("{host} is the Service {service}'s: the entry has no effect on it");
            add(notices, Code::EntryHostClash, name, format!("spec.hosts[{index}]"), message);
            continue;
        }
        // Oldest first, as the translator takes them.
        let older = world.entries_of(host).find(|(other, _)| other.namespace == name.namespace);
        if let Some((older, _)) = older.filter(|(older, _)| *older != name) {
            let message = format!("{} is older and has {host}: this entry has no effect on it", told(older));
            add(notices, Code::EntryHostClash, name, format!("spec.hosts[{index}]"), message);
        }
    }
}

/// Addresses that are somebody's own.
fn clashes(world: &World<'_>, notices: &mut Vec<Notice>, name: &ObjectRef, entry: &ServiceEntry) {
    for address in addresses(entry) {
        let index = entry.spec.addresses.iter().position(|written| {
            written.split('/').next().and_then(|text| text.parse().ok()) == Some(address)
        });
        let snapshot = world.snapshot;
        let node = || snapshot.node.addresses.contains(&address).then(|| "this node".to_owned());
        let nodes = || snapshot.other_nodes.iter().find(|(_, own)| own.contains(&address));
        let api_server = || {
            let service = snapshot.services.get(&ServiceName::new("default", "kubernetes"));
            let mut listed =
                service.into_iter().flat_map(|service| &service.ports).flat_map(|port| &*port.listed);
            listed.any(|endpoint| endpoint.address.ip() == address).then(|| "the API server".to_owned())
        };
        let pod = snapshot.workload_at(address).filter(|owner| owner.is_pod());
        let owner = pod
            .map(|workload| workload.uid.to_string())
            .or_else(node)
            .or_else(|| nodes().map(|(node, _)| format!("node {node}")))
            .or_else(api_server);
        if let Some(owner) = owner {
            let message = format!("{address} is the own address of {owner}: the entry has no effect there");
            let field = format!("spec.addresses[{}]", index.unwrap_or_default());
            add(notices, Code::AddressClash, name, field, message);
        }
    }
}

fn selector(world: &World<'_>, notices: &mut Vec<Notice>, name: &ObjectRef, entry: &ServiceEntry) {
    let Some(selector) = entry.spec.workload_selector.as_ref().filter(|selector| !selector.labels.is_empty())
    else {
        return;
    };
    if !world.workloads.is_empty()
        && world.workloads.selected(Some(&name.namespace), &selector.labels).all == 0
    {
        let message = format!(
            "no pod and no WorkloadEntry in {} has all these labels: connections are refused",
            name.namespace
        );
        add(notices, Code::EntrySelectsNothing, name, "spec.workloadSelector.labels", message);
    }
}

fn unselected(world: &World<'_>, notices: &mut Vec<Notice>, name: &ObjectRef, entry: &WorkloadEntry) {
    let labels = entry.labels();
    let by_entry = world.service_entries.iter().filter(|(other, _)| other.namespace == name.namespace).any(
        |(_, entry)| {
            let selector = entry.spec.workload_selector.as_ref();
            selector.is_some_and(|selector| {
                !selector.labels.is_empty() && super::workloads::has(&labels, &selector.labels)
            })
        },
    );
    let first = ServiceName::new(Arc::clone(&name.namespace), "");
    let own = world.services.range(first..).take_while(|(service, _)| service.namespace == name.namespace);
    if !by_entry && !own.into_iter().any(|(_, service)| service.selects(&labels)) {
        let message = format!("no ServiceEntry and no Service in {} selects it", name.namespace);
        add(notices, Code::WorkloadEntryUnselected, name, "spec.labels", message);
    }
}
