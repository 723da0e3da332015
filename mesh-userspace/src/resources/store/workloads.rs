//! Pods and entries into workloads.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Dirty, Translator, index};
use crate::model::{AuthorizationPolicy, PeerPolicy, Sandbox, Workload, WorkloadKind, WorkloadUid};
use crate::resources::translate::service::Dependency;
use crate::resources::translate::workload::{Elsewhere, workload};
use crate::resources::{Kind, Object, ObjectRef, Pod};

impl Translator {
    /// Whom policies concern that now refuse, or no longer do: their pods are other ones in the kernel.
    pub(super) fn note_guarded(&self, dirty: &mut Dirty) {
        for (name, before) in std::mem::take(&mut dirty.policies) {
            let now = self.snapshot.policies.get(&name);
            let reach = |policy: Option<&Arc<AuthorizationPolicy>>| {
                policy.filter(|policy| policy.may_refuse()).map(|policy| policy.scope.clone())
            };
            if reach(before.as_ref()) == reach(now) {
                continue;
            }
            if name.namespace == self.snapshot.mesh.root_namespace {
                self.note_all_workloads(dirty);
            } else {
                let pods = self.pods_by_namespace.get(&name.namespace);
                dirty.pods.extend(pods.into_iter().flatten().cloned());
            }
        }
    }

    /// Something is different for every workload.
    pub(super) fn note_all_workloads(&self, dirty: &mut Dirty) {
        dirty.pods.extend(self.pods.keys().chain(self.endpoints.keys()).cloned());
    }

    pub(super) fn index_pod(
        &mut self,
        reference: &ObjectRef,
        object: &Arc<Object>,
        pod: &Pod,
        add: bool,
        dirty: &mut Dirty,
    ) {
        let uid = WorkloadUid::shared(&reference.namespace, &reference.name);
        index::set(&mut self.pods_by_namespace, Arc::clone(&reference.namespace), uid.clone(), add);
        for (key, value) in pod.labels.iter() {
            let label = (Arc::clone(&reference.namespace), key.clone(), value.clone());
            index::set(&mut self.pods_by_label, label.clone(), uid.clone(), add);
            // Readiness and named ports are no part of the workload.
            dirty.dependencies.insert(Dependency::Label(Box::new(label)));
        }
        if add {
            self.pods.insert(uid.clone(), Arc::clone(object));
        } else {
            self.pods.remove(&uid);
        }
        dirty.pods.insert(uid);
    }

    pub(super) fn rebuild_workloads(&mut self, dirty: &mut Dirty) {
        for uid in std::mem::take(&mut dirty.pods) {
            let new = self.workload_of(&uid);
            let old = self.snapshot.workloads.get(&uid).map(Arc::clone);
            let is_same = old.as_deref() == new.as_ref();
            let Some(kind) = new.as_ref().or(old.as_deref()).map(|workload| workload.kind) else { continue };
            // Of an entry the age may be another, and whether its address is a node's.
            if is_same && kind == WorkloadKind::Pod {
                continue;
            }
            let addresses = new.as_ref().filter(|new| self.claims(new)).map(|new| new.addresses.clone());
            let rank = (kind, self.age_of_workload(&uid));
            let is_claim_other = self.workload_claims.set(&uid, rank, addresses.unwrap_or_default());
            if let Some(old) = old.as_ref().filter(|_| is_same) {
                if is_claim_other {
                    dirty.note_workload(old);
                    self.snapshot.reowned += 1;
                }
                continue;
            }
            let new = new.map(Arc::new);
            for workload in [&old, &new].into_iter().flatten() {
                dirty.note_workload(workload);
            }
            let is_here =
                |new: &&Arc<Workload>| self.snapshot.mesh.node.as_ref().is_some_and(|node| new.is_on(node));
            match new.as_ref().filter(is_here) {
                Some(new) => drop(self.snapshot.here.insert(uid.clone(), Arc::clone(new))),
                // Where it was not, the map stays the very same.
                None if self.snapshot.here.contains_key(&uid) => drop(self.snapshot.here.remove(&uid)),
                None => {}
            }
            match new {
                Some(new) => self.snapshot.workloads.insert(uid, new),
                None => self.snapshot.workloads.remove(&uid),
            };
        }
        for address in std::mem::take(&mut dirty.addresses) {
            let owner = self.workload_claims.owner(address);
            let owner = owner.and_then(|uid| self.snapshot.workloads.get(uid));
            match owner {
                Some(owner) => self.snapshot.addresses.insert(address, Arc::clone(owner)),
                None => self.snapshot.addresses.remove(&address),
            };
        }
    }

    /// Whether its addresses are its own, whoever connects to them. A pod of the host's network has its node's. Of what entries
    /// stand for it is only said whether HBONE is taken there, and never of the addresses of nodes.
    fn claims(&self, workload: &Workload) -> bool {
        match workload.kind {
            WorkloadKind::Pod => !workload.host_network,
            WorkloadKind::WorkloadEntry | WorkloadKind::ServiceEntry => {
                workload.enrolled && !workload.addresses.iter().any(|own| self.is_reserved_address(*own))
            }
        }
    }

    /// When the entry of a workload was made; 0 for pods.
    fn age_of_workload(&self, uid: &WorkloadUid) -> i64 {
        let object = self.pods.get(uid).or_else(|| self.endpoints.get(uid).map(|(object, _)| object));
        object.map_or(0, |object| object.created())
    }

    fn workload_of(&self, uid: &WorkloadUid) -> Option<Workload> {
        if let Some((object, index)) = self.endpoints.get(uid) {
            let Object::ServiceEntry(entry) = &**object else { return None };
            let reference = object.reference();
            let endpoint = entry.spec.endpoints.get(*index)?;
            let elsewhere = Elsewhere::endpoint(uid, &reference, entry, endpoint);
            let policies = self.policies_of(&reference.namespace);
            return elsewhere.workload(policies, &self.snapshot.policies, &self.snapshot.mesh);
        }
        match &**self.pods.get(uid)? {
            Object::Pod(pod) => self.workload_of_pod(uid, pod),
            Object::WorkloadEntry(entry) => {
                let reference = self.pods.get(uid)?.reference();
                let labels = entry.labels();
                let elsewhere = Elsewhere::entry(uid, &reference, entry, &labels);
                let policies = self.policies_of(&reference.namespace);
                elsewhere.workload(policies, &self.snapshot.policies, &self.snapshot.mesh)
            }
            _ => None,
        }
    }

    /// The `PeerAuthentication`s that may hold for the workloads of a namespace.
    fn policies_of(&self, namespace: &Arc<str>) -> impl Iterator<Item = &PeerPolicy> {
        let root = &self.snapshot.mesh.root_namespace;
        let own = self.policies.get(namespace);
        let root = self.policies.get(root).filter(|_| namespace != root);
        own.into_iter().chain(root).flat_map(BTreeMap::values).map(|policy| &**policy)
    }

    fn workload_of_pod(&self, uid: &WorkloadUid, pod: &Pod) -> Option<Workload> {
        let reference = &pod.reference;
        let mesh = &self.snapshot.mesh;
        let namespace = ObjectRef::new(Kind::Namespace, "", Arc::clone(&reference.namespace));
        let namespace = match self.objects.get(&namespace).map(|object| &**object) {
            Some(Object::Namespace(namespace)) => Some(&**namespace),
            _ => None,
        };
        let policies = self.policies_of(&reference.namespace);
        let mut workload = workload(pod, namespace, policies, &self.snapshot.policies, mesh)?;
        let placed = workload.pod_uid.as_ref().and_then(|pod_uid| self.sandboxes.get(pod_uid));
        match placed.filter(|placed| placed.workload == *uid).map(|placed| &placed.sandbox) {
            Some(Sandbox::Gone) => return None,
            Some(Sandbox::At { addresses, netns }) if !workload.host_network => {
                workload.addresses.clone_from(addresses);
                workload.netns = Some(netns.clone());
            }
            Some(Sandbox::At { .. }) | None => {}
        }
        Some(workload)
    }
}

impl Dirty {
    fn note_workload(&mut self, workload: &Workload) {
        self.dependencies.insert(Dependency::Pod(workload.uid.clone()));
        for &address in &workload.addresses {
            self.dependencies.insert(Dependency::Address(address));
            self.addresses.insert(address);
        }
        for (key, value) in workload.labels.iter() {
            let label = (Arc::clone(&workload.namespace), key.clone(), value.clone());
            self.dependencies.insert(Dependency::Label(Box::new(label)));
        }
    }
}
