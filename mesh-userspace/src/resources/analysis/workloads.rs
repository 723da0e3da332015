//! Pods and `WorkloadEntry`s by their labels: what selectors find.

use std::collections::{BTreeMap, HashMap};

use crate::model::{Snapshot, Workload, WorkloadKind};

/// Whether all of `wanted` are there.
pub(super) fn has(labels: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// See the module.
pub(super) struct Workloads<'a> {
    by_label: HashMap<(&'a str, &'a str), Vec<&'a Workload>>,
    by_namespace: HashMap<&'a str, Vec<&'a Workload>>,
}

/// How many pods there are, and how many of them are in the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) all: usize,
    pub(super) enrolled: usize,
}

impl<'a> Workloads<'a> {
    pub(super) fn new(snapshot: &'a Snapshot) -> Self {
        let mut workloads = Self { by_label: HashMap::new(), by_namespace: HashMap::new() };
        let selectable =
            snapshot.workloads.values().filter(|workload| workload.kind != WorkloadKind::ServiceEntry);
        for workload in selectable {
            for (key, value) in workload.labels.iter() {
                workloads.by_label.entry((key, value)).or_default().push(workload);
            }
            workloads.by_namespace.entry(&workload.namespace).or_default().push(workload);
        }
        workloads
    }

    /// Whether there are none at all.
    pub(super) fn is_empty(&self) -> bool {
        self.by_namespace.is_empty()
    }

    /// Those with all these labels (at least one), in a namespace or anywhere.
    pub(super) fn selected(&self, namespace: Option<&str>, labels: &BTreeMap<String, String>) -> Count {
        // The label that the fewest have finds the candidates, the others are compared.
        let lists = labels.iter().map(|(key, value)| self.by_label.get(&(key.as_str(), value.as_str())));
        let fewest = lists.map(|list| list.map_or(&[][..], Vec::as_slice)).min_by_key(|list| list.len());
        let of_namespace = |workload: &&&Workload| namespace.is_none_or(|own| *workload.namespace == *own);
        count(
            fewest
                .into_iter()
                .flatten()
                .filter(of_namespace)
                .filter(|workload| has(&workload.labels, labels)),
        )
    }

    /// Those of a namespace.
    pub(super) fn of_namespace(&self, namespace: &str) -> Count {
        count(self.by_namespace.get(namespace).into_iter().flatten())
    }
}

fn count<'w>(workloads: impl Iterator<Item = &'w &'w Workload>) -> Count {
    workloads.fold(Count::default(), |count, workload| Count {
        all: count.all + 1,
        enrolled: count.enrolled + usize::from(workload.enrolled),
    })
}
