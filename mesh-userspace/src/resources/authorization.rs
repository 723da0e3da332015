//! `security.istio.io` `AuthorizationPolicy` as it is written
//! (<https://istio.io/latest/docs/reference/config/security/authorization-policy>).
//!
//! What layer 4 cannot tell and what nobody knows is kept in `rest` of the rule, source, operation or condition that it is
//! in: either way that one asks for more than can be told of a connection, see [`Rule::beyond`].

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::istio::{LabelSelector, Rest};
use crate::model::PolicyAction;

/// The annotation that makes a policy a dry run.
pub(super) const DRY_RUN: &str = "istio.io/dry-run";

/// Keys of `when` that a connection tells.
pub(super) const LAYER_4_KEYS: [&str; 7] = [
    "source.ip",
    "remote.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "destination.ip",
    "destination.port",
];

/// `security.istio.io` `AuthorizationPolicy`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuthorizationPolicy {
    /// Name, namespace, age, annotations.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What it says; absent and empty are the same: nothing is allowed.
    #[serde(default)]
    pub spec: AuthorizationPolicySpec,
    /// Everything else, `apiVersion` and `kind` among it.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `AuthorizationPolicy.spec`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct AuthorizationPolicySpec {
    /// Whom it concerns, by label.
    pub selector: Option<LabelSelector>,
    /// Whom it concerns, as the API had it before `targetRefs`.
    pub target_ref: Option<TargetReference>,
    /// Whom it concerns, by reference.
    pub target_refs: Vec<TargetReference>,
    /// What is done with what matches.
    pub action: PolicyAction,
    /// It matches where one of these does.
    pub rules: Vec<Rule>,
    /// The authorizer of a CUSTOM policy.
    pub provider: Option<Value>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `PolicyTargetReference`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TargetReference {
    /// API group, empty or `core` for a Service.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// The policy's own, where it is given.
    pub namespace: String,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `Rule`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rule {
    /// One of these sources; absent: any.
    pub from: Option<Vec<From>>,
    /// One of these operations; absent: any.
    pub to: Option<Vec<To>>,
    /// All of these conditions.
    pub when: Vec<When>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `Rule.From`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct From {
    /// The source.
    pub source: Source,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `Source`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Source {
    /// Identities.
    pub principals: Vec<String>,
    /// None of these identities.
    pub not_principals: Vec<String>,
    /// Namespaces.
    pub namespaces: Vec<String>,
    /// None of these namespaces.
    pub not_namespaces: Vec<String>,
    /// Service accounts: `NAMESPACE/NAME`, or `NAME` in the policy's namespace.
    pub service_accounts: Vec<String>,
    /// None of these service accounts.
    pub not_service_accounts: Vec<String>,
    /// The client's address: addresses and CIDR blocks.
    pub ip_blocks: Vec<String>,
    /// None of these.
    pub not_ip_blocks: Vec<String>,
    /// The original client's address, at layer 4 the same.
    pub remote_ip_blocks: Vec<String>,
    /// None of these.
    pub not_remote_ip_blocks: Vec<String>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `Rule.To`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct To {
    /// The operation.
    pub operation: Operation,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `Operation`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Operation {
    /// The workload's ports.
    pub ports: Vec<String>,
    /// None of these ports.
    pub not_ports: Vec<String>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `Condition`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct When {
    /// The attribute.
    pub key: String,
    /// One of these, where there are any.
    pub values: Vec<String>,
    /// None of these.
    pub not_values: Vec<String>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

impl AuthorizationPolicySpec {
    /// Everything it refers to, each with the field's path.
    pub(super) fn targets(&self) -> impl Iterator<Item = (String, &TargetReference)> {
        let old = self.target_ref.iter().map(|target| ("spec.targetRef".to_owned(), target));
        let all = self.target_refs.iter().enumerate();
        old.chain(all.map(|(index, target)| (format!("spec.targetRefs[{index}]"), target)))
    }

    /// Its selector, where that selects anything.
    pub(super) fn selector(&self) -> Option<&LabelSelector> {
        self.selector.as_ref().filter(|selector| !selector.match_labels.is_empty())
    }
}

impl TargetReference {
    /// Whether it is a Kubernetes Service.
    pub(super) fn is_service(&self) -> bool {
        self.kind == "Service" && matches!(self.group.as_str(), "" | "core")
    }
}

impl Rule {
    /// The paths, from the rule on, of what it asks for that a connection does not tell: fields of layer 7, keys of `when`
    /// that are not [`LAYER_4_KEYS`], and fields that nobody knows (a typing mistake must not make a rule match more).
    pub(super) fn beyond(&self) -> impl Iterator<Item = String> {
        let own = asked(&self.rest).map(ToOwned::to_owned);
        let from = self.from.iter().flatten().enumerate().flat_map(|(index, from)| {
            let beside = asked(&from.rest).map(move |name| format!("from[{index}].{name}"));
            beside.chain(asked(&from.source.rest).map(move |name| format!("from[{index}].source.{name}")))
        });
        let to = self.to.iter().flatten().enumerate().flat_map(|(index, to)| {
            let beside = asked(&to.rest).map(move |name| format!("to[{index}].{name}"));
            beside.chain(asked(&to.operation.rest).map(move |name| format!("to[{index}].operation.{name}")))
        });
        let when = self.when.iter().enumerate().flat_map(|(index, when)| {
            let key = (!LAYER_4_KEYS.contains(&when.key.as_str())).then(|| format!("when[{index}].key"));
            key.into_iter().chain(asked(&when.rest).map(move |name| format!("when[{index}].{name}")))
        });
        own.chain(from).chain(to).chain(when)
    }
}

impl Source {
    /// The fields that a connection tells, by name.
    pub(super) fn lists(&self) -> [(&'static str, &Vec<String>); 10] {
        [
            ("principals", &self.principals),
            ("notPrincipals", &self.not_principals),
            ("namespaces", &self.namespaces),
            ("notNamespaces", &self.not_namespaces),
            ("serviceAccounts", &self.service_accounts),
            ("notServiceAccounts", &self.not_service_accounts),
            ("ipBlocks", &self.ip_blocks),
            ("notIpBlocks", &self.not_ip_blocks),
            ("remoteIpBlocks", &self.remote_ip_blocks),
            ("notRemoteIpBlocks", &self.not_remote_ip_blocks),
        ]
    }

    /// Whether it says nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.lists().iter().all(|(_, list)| list.is_empty()) && asked(&self.rest).next().is_none()
    }
}

impl Operation {
    /// Whether it says nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.ports.is_empty() && self.not_ports.is_empty() && asked(&self.rest).next().is_none()
    }
}

/// The fields that ask for something: an empty list is one that is not there, as in protobuf.
fn asked(rest: &Rest) -> impl Iterator<Item = &str> {
    let is_list = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
    rest.iter().filter(move |(_, value)| !is_list(value)).map(|(name, _)| name.as_str())
}
