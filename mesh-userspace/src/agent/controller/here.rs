//! The pods of this node that are to be in the mesh, kept up to date at the cost of what changed: most of a cluster's pods are
//! on other nodes.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use crate::model::{NodeName, Snapshot, Workload, WorkloadUid};

/// See the module.
#[derive(Default)]
pub(super) struct Here {
    seen: OrdMap<WorkloadUid, Arc<Workload>>,
    wanted: BTreeMap<WorkloadUid, Arc<Workload>>,
}

impl Here {
    /// Those of a snapshot.
    pub(super) fn follow(
        &mut self,
        snapshot: &Snapshot,
        node: &NodeName,
    ) -> BTreeMap<WorkloadUid, Arc<Workload>> {
        for change in self.seen.diff(&snapshot.workloads) {
            match change {
                DiffItem::Add(uid, new) | DiffItem::Update { new: (uid, new), .. }
                    if is_wanted(new, node) =>
                {
                    self.wanted.insert(uid.clone(), Arc::clone(new));
                }
                DiffItem::Add(uid, _) | DiffItem::Update { old: (uid, _), .. } | DiffItem::Remove(uid, _) => {
                    self.wanted.remove(uid);
                }
            }
        }
        self.seen = snapshot.workloads.clone();
        self.wanted.clone()
    }
}

fn is_wanted(workload: &Workload, node: &NodeName) -> bool {
    workload.enrolled && !workload.host_network && workload.is_on(node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::MeshConfig;
    use crate::resources::{Change, Translator, decode};

    #[test]
    fn pods_come_move_and_go() {
        let node = NodeName::new("node-a");
        let mut translator = Translator::new(MeshConfig::default());
        let mut here = Here::default();
        let mut wanted_after = |pods: &[(&str, &str, &str)]| {
            let pods: String = pods
                .iter()
                .map(|(name, on, mode)| {
                    format!(
                        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, \
                         labels: {{istio.io/dataplane-mode: {mode}}}}}\nspec: {{nodeName: {on}, containers: []}}\n"
                    )
                })
                .collect();
            let changes = decode(&pods).objects.into_iter().map(|item| Change::Upsert(item.object));
            let (snapshot, _) = translator.apply(changes);
            here.follow(&snapshot, &node).keys().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(wanted_after(&[("a", "node-a", "ambient"), ("b", "node-b", "ambient")]), ["shop/a"]);
        assert_eq!(wanted_after(&[("b", "node-a", "ambient")]), ["shop/a", "shop/b"]);
        assert_eq!(wanted_after(&[("a", "node-a", "none")]), ["shop/b"]);
        assert_eq!(wanted_after(&[]), ["shop/b"]);
    }
}
