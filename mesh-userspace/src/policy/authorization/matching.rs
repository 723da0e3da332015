//! Whether a rule matches a connection: the one place where a condition is looked at, for [`Guard::decide`] as well as for
//! [`Guard::explain`].
//!
//! A client without an identity matches no positive condition on one, and passes every negative one, as in Envoy and
//! ztunnel. Addresses are compared in their canonical form: an IPv4-mapped one is one of IPv4.
//!
//! [`Guard::decide`]: super::Guard::decide
//! [`Guard::explain`]: super::Guard::explain

use std::cell::OnceCell;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::Connection;
use crate::model::{Clause, Condition, Identity, PolicyRule, ServiceAccountName, TextMatch, Values};

/// What conditions ask of a connection.
pub(super) struct Facts<'a> {
    pub(super) source: Option<&'a Identity>,
    client: IpAddr,
    pub(super) destination: SocketAddr,
    /// `TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`, once a wildcard asks for it.
    principal: OnceCell<String>,
}

impl<'a> Facts<'a> {
    pub(super) fn of(connection: &Connection<'a>) -> Self {
        let destination = connection.destination;
        Self {
            source: connection.source,
            client: connection.client.to_canonical(),
            destination: SocketAddr::new(destination.ip().to_canonical(), destination.port()),
            principal: OnceCell::new(),
        }
    }

    /// Whether one value is the connection's: what an index goes by, the same that conditions do.
    pub(super) fn has(&self, hint: &Hint) -> bool {
        match hint {
            Hint::Principal(pattern) => self.has_principal(pattern),
            Hint::Namespace(pattern) => self.has_namespace(pattern),
            Hint::Client(block) => block.contains(&self.client),
        }
    }

    fn has_principal(&self, pattern: &TextMatch) -> bool {
        let Some(source) = self.source else { return false };
        match pattern {
            TextMatch::Exact(text) => is_principal(text, source),
            TextMatch::Present => true,
            TextMatch::Prefix(_) | TextMatch::Suffix(_) => {
                let Identity { trust_domain, namespace, service_account } = source;
                let text = || format!("{trust_domain}/ns/{namespace}/sa/{service_account}");
                pattern.matches(self.principal.get_or_init(text))
            }
        }
    }

    fn has_namespace(&self, pattern: &TextMatch) -> bool {
        self.source.is_some_and(|source| pattern.matches(&source.namespace))
    }

    fn has_account(&self, account: &ServiceAccountName) -> bool {
        self.source.is_some_and(|source| {
            *source.namespace == *account.namespace && *source.service_account == *account.name
        })
    }
}

/// One value of a condition.
#[derive(Clone, Debug)]
pub(super) enum Hint {
    Principal(TextMatch),
    Namespace(TextMatch),
    Client(IpNet),
}

/// Whether the text is the identity's principal. None of its parts holds a `/`.
fn is_principal(text: &str, identity: &Identity) -> bool {
    let rest = text.strip_prefix(identity.trust_domain.as_str());
    let rest = rest.and_then(|rest| rest.strip_prefix("/ns/")?.strip_prefix(&*identity.namespace));
    rest.and_then(|rest| rest.strip_prefix("/sa/")) == Some(&*identity.service_account)
}

/// Why a rule does not match: the first field that does not.
#[derive(Clone, Copy, Debug)]
pub(super) enum Mismatch<'r> {
    /// It asks for what layer 4 cannot tell.
    Beyond(&'r str),
    /// None of its sources does; the field of the first.
    From(Missed<'r>),
    /// None of its operations does; the field of the first.
    To(Missed<'r>),
    /// A condition does not.
    When(Missed<'r>),
}

/// A condition that does not hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Missed<'r> {
    condition: &'r Condition,
    /// It is one of the values that must not be.
    unwanted: bool,
}

/// Why the rule does not match; `None`: it does.
pub(super) fn mismatch<'r>(rule: &'r PolicyRule, facts: &Facts<'_>) -> Option<Mismatch<'r>> {
    if let Some(field) = &rule.beyond {
        return Some(Mismatch::Beyond(field));
    }
    any_of(&rule.from, facts)
        .map(Mismatch::From)
        .or_else(|| any_of(&rule.to, facts).map(Mismatch::To))
        .or_else(|| all_of(&rule.when, facts).map(Mismatch::When))
}

/// What the first of the clauses misses where none holds.
fn any_of<'r>(clauses: &'r [Clause], facts: &Facts<'_>) -> Option<Missed<'r>> {
    let mut first = None;
    for clause in clauses {
        let missed = all_of(clause, facts)?;
        first = first.or(Some(missed));
    }
    first
}

fn all_of<'r>(clause: &'r Clause, facts: &Facts<'_>) -> Option<Missed<'r>> {
    clause.iter().find_map(|condition| missed(condition, facts))
}

fn missed<'r>(condition: &'r Condition, facts: &Facts<'_>) -> Option<Missed<'r>> {
    let unwanted = match condition {
        Condition::Principal(values) => check(values, |pattern| facts.has_principal(pattern)),
        Condition::Namespace(values) => check(values, |pattern| facts.has_namespace(pattern)),
        Condition::ServiceAccount(values) => check(values, |account| facts.has_account(account)),
        Condition::SourceIp(values) | Condition::RemoteIp(values) => {
            check(values, |block| block.contains(&facts.client))
        }
        Condition::DestinationIp(values) => check(values, |block| block.contains(&facts.destination.ip())),
        Condition::DestinationPort(values) => check(values, |port| *port == facts.destination.port()),
    };
    unwanted.map(|unwanted| Missed { condition, unwanted })
}

/// Whether it is for a value that must not be that the values do not match; `None`: they do.
fn check<T>(values: &Values<T>, matches: impl Fn(&T) -> bool) -> Option<bool> {
    if !values.any_of.is_empty() && !values.any_of.iter().any(&matches) {
        return Some(false);
    }
    values.none_of.iter().any(matches).then_some(true)
}

impl fmt::Display for Mismatch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (part, missed) = match self {
            Self::Beyond(field) => {
                return write!(f, "{field} cannot be told at layer 4: the rule matches nothing");
            }
            Self::From(missed) => ("from", missed),
            Self::To(missed) => ("to", missed),
            Self::When(missed) => ("when", missed),
        };
        write!(f, "{part}: {missed}")
    }
}

impl fmt::Display for Missed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let attribute = match self.condition {
            Condition::Principal(_) => "source principal",
            Condition::Namespace(_) => "source namespace",
            Condition::ServiceAccount(_) => "source service account",
            Condition::SourceIp(_) => "source IP",
            Condition::RemoteIp(_) => "remote IP",
            Condition::DestinationIp(_) => "destination IP",
            Condition::DestinationPort(_) => "destination port",
        };
        let why = if self.unwanted { "one of those excluded" } else { "none of those listed" };
        write!(f, "{attribute} is {why}")
    }
}
