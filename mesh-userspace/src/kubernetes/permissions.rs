//! What this program asks of the API server, and who of it: the shipped roles allow this and nothing else.
//!
//! Whoever asks for something new adds it here; a test holds the roles in `deploy/` against this table, and the tests' API
//! server refuses what it does not name.

use crate::source::kubernetes::kinds::WATCHED;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// `mesh-agent`, on every node.
    Agent,
    /// `mesh-ca`.
    Ca,
}

/// Where it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// In all namespaces.
    Cluster,
    /// In the asker's own namespace alone.
    Own,
}

/// One thing that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permission {
    /// By whom.
    pub who: Who,
    /// Where.
    pub place: Where,
    /// API group, empty for the core's.
    pub group: &'static str,
    /// Plural, with the subresource: `tcproutes/status`.
    pub resource: &'static str,
    /// What is done to it.
    pub verbs: &'static [&'static str],
}

const FOLLOW: &[&str] = &["list", "watch"];

/// Beside what the agent follows.
const OTHERS: [Permission; 6] = [
    // A pod that cannot be enrolled is an Event on it; one that goes on is the same Event, counted.
    Permission {
        who: Who::Agent,
        place: Where::Cluster,
        group: "events.k8s.io",
        resource: "events",
        verbs: &["create", "patch"],
    },
    // What became of routes.
    Permission {
        who: Who::Agent,
        place: Where::Cluster,
        group: "gateway.networking.k8s.io",
        resource: "tcproutes/status",
        verbs: &["patch"],
    },
    Permission {
        who: Who::Agent,
        place: Where::Cluster,
        group: "gateway.networking.k8s.io",
        resource: "tlsroutes/status",
        verbs: &["patch"],
    },
    // Which agent says so.
    Permission {
        who: Who::Agent,
        place: Where::Own,
        group: "coordination.k8s.io",
        resource: "leases",
        verbs: &["get", "create", "update"],
    },
    // Whose a caller's token is.
    Permission {
        who: Who::Ca,
        place: Where::Cluster,
        group: "authentication.k8s.io",
        resource: "tokenreviews",
        verbs: &["create"],
    },
    // Which pods a node runs, and the node of the pod that a token is bound to.
    Permission { who: Who::Ca, place: Where::Cluster, group: "", resource: "pods", verbs: &["get", "list"] },
];

/// Everything that is asked for; a resource may be there more than once.
pub fn permissions() -> Vec<Permission> {
    let followed = WATCHED.iter().map(|watched| Permission {
        who: Who::Agent,
        place: Where::Cluster,
        group: watched.group,
        resource: watched.plural,
        verbs: FOLLOW,
    });
    let mut all: Vec<Permission> = Vec::new();
    for permission in followed.chain(OTHERS) {
        if !all.contains(&permission) {
            all.push(permission);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_resource_is_named_once_for_each_who_asks() {
        let all = permissions();
        let named: BTreeSet<(bool, &str, &str)> = all
            .iter()
            .map(|permission| (permission.who == Who::Ca, permission.group, permission.resource))
            .collect();
        assert_eq!(named.len(), all.len());
        assert!(
            all.iter().all(|permission| permission.resource != "secrets" && !permission.verbs.contains(&"*"))
        );
    }
}
