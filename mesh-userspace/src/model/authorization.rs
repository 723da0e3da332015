//! `AuthorizationPolicy` as this mesh understands it: layer 4 alone, every text checked and every wildcard parsed.
//!
//! What of a policy layer 4 cannot tell is gone here already: the rules of an ALLOW policy that ask for it are marked with
//! [`PolicyRule::beyond`], in other policies the conditions are left out. Principals are spread over the trust domain and
//! its aliases.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// What names an `AuthorizationPolicy`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct PolicyName {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl PolicyName {
    /// A name from its two parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// `AuthorizationPolicy.action`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum PolicyAction {
    /// What matches is allowed, and where there is one of these, nothing else is.
    #[default]
    Allow,
    /// What matches is refused.
    Deny,
    /// What matches leaves a mark on its flow.
    Audit,
    /// An authorizer that this mesh does not ask: what matches is refused.
    Custom,
}

/// Whom a policy concerns.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PolicyScope {
    /// Every workload: it is in the root namespace and selects nothing.
    Mesh,
    /// Every workload of its namespace.
    Namespace,
    /// Workloads with all these labels: of its namespace, or, from the root namespace, of all.
    Selector {
        /// `selector.matchLabels`, not empty.
        labels: BTreeMap<String, String>,
        /// Whether it is in the root namespace.
        everywhere: bool,
    },
    /// Endpoints of these services of its namespace. There may be none: what else it refers to is no concern of layer 4.
    Services(Box<[Arc<str>]>),
}

impl fmt::Display for PolicyScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mesh => f.write_str("mesh"),
            Self::Namespace => f.write_str("namespace"),
            Self::Selector { labels, everywhere } => {
                f.write_str(if *everywhere { "mesh, selector" } else { "selector" })?;
                for (index, (key, value)) in labels.iter().enumerate() {
                    write!(f, "{}{key}={value}", if index == 0 { " " } else { "," })?;
                }
                Ok(())
            }
            Self::Services(names) => {
                f.write_str("Service ")?;
                f.write_str(if names.is_empty() { "(none)" } else { "" })?;
                for (index, name) in names.iter().enumerate() {
                    write!(f, "{}{name}", if index == 0 { "" } else { "," })?;
                }
                Ok(())
            }
        }
    }
}

/// An `AuthorizationPolicy`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AuthorizationPolicy {
    /// Namespace and name.
    pub name: PolicyName,
    /// What is done with what matches.
    pub action: PolicyAction,
    /// Annotation `istio.io/dry-run`: it is evaluated and refuses nothing.
    pub dry_run: bool,
    /// Whom it concerns.
    pub scope: PolicyScope,
    /// It matches where one of these does; without any it never does.
    pub rules: Box<[PolicyRule]>,
}

impl AuthorizationPolicy {
    /// Whether it may refuse somebody: it is in force, and no mere AUDIT.
    pub fn may_refuse(&self) -> bool {
        !self.dry_run
            && match self.action {
                PolicyAction::Allow => true,
                PolicyAction::Deny | PolicyAction::Custom => !self.rules.is_empty(),
                PolicyAction::Audit => false,
            }
    }
}

/// `Rule`: it matches where one of `from`, one of `to` and all of `when` match.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PolicyRule {
    /// The path of a field that layer 4 cannot tell, in an ALLOW policy: then the rule matches nothing.
    pub beyond: Option<Box<str>>,
    /// Sources; none: any.
    pub from: Box<[Clause]>,
    /// Operations; none: any.
    pub to: Box<[Clause]>,
    /// Conditions.
    pub when: Clause,
}

/// Conditions that must all hold. Without any it always does.
pub type Clause = Box<[Condition]>;

/// One attribute of a connection and what it must be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Condition {
    /// `principals` and `source.principal`: `TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`.
    Principal(Values<TextMatch>),
    /// `namespaces` and `source.namespace`.
    Namespace(Values<TextMatch>),
    /// `serviceAccounts` and `source.serviceAccount`.
    ServiceAccount(Values<ServiceAccountName>),
    /// `ipBlocks` and `source.ip`.
    SourceIp(Values<IpNet>),
    /// `remoteIpBlocks` and `remote.ip`: at layer 4 the same address.
    RemoteIp(Values<IpNet>),
    /// `destination.ip`.
    DestinationIp(Values<IpNet>),
    /// `ports` and `destination.port`: the workload's own port.
    DestinationPort(Values<u16>),
}

/// `values` and `notValues` of an attribute: one of the first, where there are any, and none of the second.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Values<T> {
    /// One of these.
    pub any_of: Box<[T]>,
    /// None of these.
    pub none_of: Box<[T]>,
}

/// A text that may have a wildcard (API, `Rule`: "exact, prefix, suffix and presence match").
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum TextMatch {
    /// `abc`.
    Exact(Box<str>),
    /// `abc*`.
    Prefix(Box<str>),
    /// `*abc`.
    Suffix(Box<str>),
    /// `*`: anything but nothing.
    Present,
}

impl TextMatch {
    /// As written in a policy. A `*` in another place than the first or the last stands for itself, as for ztunnel.
    pub fn parse(text: &str) -> Self {
        if text == "*" {
            Self::Present
        } else if let Some(suffix) = text.strip_prefix('*') {
            Self::Suffix(suffix.into())
        } else if let Some(prefix) = text.strip_suffix('*') {
            Self::Prefix(prefix.into())
        } else {
            Self::Exact(text.into())
        }
    }

    /// Whether a text matches; an empty one is one that is not there.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(own) => **own == *text,
            Self::Prefix(own) => text.starts_with(&**own),
            Self::Suffix(own) => text.ends_with(&**own),
            Self::Present => !text.is_empty(),
        }
    }
}

/// A service account of any trust domain.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServiceAccountName {
    /// Namespace.
    pub namespace: Box<str>,
    /// Name.
    pub name: Box<str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards() {
        let cases = [
            ("abc", "abc", true),
            ("abc", "abcd", false),
            ("abc*", "abc", true),
            ("abc*", "abcd", true),
            ("abc*", "ab", false),
            ("*abc", "abc", true),
            ("*abc", "xabc", true),
            ("*abc", "abcx", false),
            ("*", "x", true),
            ("*", "", false),
            ("a*c", "abc", false),
            ("*b*", "abc", false),
        ];
        for (pattern, text, wanted) in cases {
            assert_eq!(TextMatch::parse(pattern).matches(text), wanted, "{pattern} {text}");
        }
    }

    #[test]
    fn scopes_as_text() {
        let labels: BTreeMap<String, String> =
            [("a", "b"), ("c", "d")].map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let cases = [
            (PolicyScope::Mesh, "mesh"),
            (PolicyScope::Namespace, "namespace"),
            (PolicyScope::Selector { labels: labels.clone(), everywhere: false }, "selector a=b,c=d"),
            (PolicyScope::Selector { labels, everywhere: true }, "mesh, selector a=b,c=d"),
            (PolicyScope::Services(["web".into(), "db".into()].into()), "Service web,db"),
            (PolicyScope::Services([].into()), "Service (none)"),
        ];
        for (scope, wanted) in cases {
            assert_eq!(scope.to_string(), wanted);
        }
    }
}
