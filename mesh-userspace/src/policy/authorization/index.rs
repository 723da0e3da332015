//! The rules that apply to a workload, found by who connects and to which port.
//!
//! A rule that only certain service accounts or namespaces can match is looked for under those, one that only certain
//! ports can match under the ports. One that asks for wildcards or blocks is matched whole only where one of those does, and
//! these lie beside each other; the rest is looked at for every connection. Whatever is found is matched whole: the index
//! leaves out what cannot match and decides nothing.

use std::collections::HashMap;

use super::PolicyRef;
use super::applied::Applied;
use super::matching::{Facts, Hint, mismatch};
use crate::model::{Clause, Condition, PolicyRule, TextMatch};

/// Rules in the order in which one is named before another: by policy, then by their place in it.
#[derive(Debug, Default)]
pub(super) struct Rules {
    /// Policy, as an index into the policies that apply, and rule.
    entries: Vec<(usize, usize)>,
    /// Each list is sorted, of indexes into `entries`.
    rest: Vec<usize>,
    /// What a rule, at the index beside it, needs one of. Sorted by that index.
    hints: Vec<(Hint, usize)>,
    ports: HashMap<u16, Vec<usize>>,
    namespaces: HashMap<Box<str>, OfNamespace>,
}

/// Rules for clients of one namespace.
#[derive(Debug, Default)]
struct OfNamespace {
    any: Vec<usize>,
    accounts: HashMap<Box<str>, Vec<usize>>,
}

/// What a client must be.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Who {
    Namespace(Box<str>),
    Account(Box<str>, Box<str>),
}

impl Rules {
    /// Adds the rules of a policy; policies must come in the order of their indexes.
    pub(super) fn add(&mut self, index: usize, applied: &Applied) {
        for (rule_index, rule) in applied.policy.rules.iter().enumerate() {
            if rule.beyond.is_some() {
                continue;
            }
            let entry = self.entries.len();
            self.entries.push((index, rule_index));
            if let Some(clients) = clients(rule) {
                for client in clients {
                    self.for_client(client).push(entry);
                }
            } else if let Some(ports) = ports(rule, applied) {
                for port in ports {
                    self.ports.entry(port).or_default().push(entry);
                }
            } else if let Some(hints) = hints(rule) {
                self.hints.extend(hints.into_iter().map(|hint| (hint, entry)));
            } else {
                self.rest.push(entry);
            }
        }
    }

    fn for_client(&mut self, who: Who) -> &mut Vec<usize> {
        match who {
            Who::Namespace(namespace) => &mut self.namespaces.entry(namespace).or_default().any,
            Who::Account(namespace, name) => {
                self.namespaces.entry(namespace).or_default().accounts.entry(name).or_default()
            }
        }
    }

    /// The first rule that matches.
    pub(super) fn first(&self, facts: &Facts<'_>, applied: &[Applied]) -> Option<PolicyRef> {
        let mut best: Option<usize> = None;
        for list in self.candidates(facts) {
            let before = list.iter().take_while(|&&entry| best.is_none_or(|best| entry < best));
            let found = before.copied().find(|&entry| self.matches(entry, facts, applied));
            best = found.or(best);
        }
        let before = self.hints.iter().take_while(|(_, entry)| best.is_none_or(|best| *entry < best));
        let mut hinted = before.filter(|(hint, _)| facts.has(hint)).map(|(_, entry)| *entry);
        let found = hinted.find(|&entry| self.matches(entry, facts, applied));
        found.or(best).map(|entry| self.reference(entry, applied))
    }

    /// The first rule that matches of every policy that has one.
    pub(super) fn of_each(&self, facts: &Facts<'_>, applied: &[Applied]) -> Vec<PolicyRef> {
        let hinted = self.hints.iter().filter(|(hint, _)| facts.has(hint)).map(|(_, entry)| *entry);
        let candidates = self.candidates(facts).into_iter().flatten().copied().chain(hinted);
        let mut found: Vec<usize> = candidates.filter(|&entry| self.matches(entry, facts, applied)).collect();
        found.sort_unstable();
        found.dedup_by_key(|entry| self.entries[*entry].0);
        found.into_iter().map(|entry| self.reference(entry, applied)).collect()
    }

    fn candidates(&self, facts: &Facts<'_>) -> [&[usize]; 4] {
        let of_port = self.ports.get(&facts.destination.port()).map_or(&[][..], Vec::as_slice);
        let client = facts.source.and_then(|source| {
            let namespace = self.namespaces.get(&*source.namespace)?;
            Some((namespace, namespace.accounts.get(&*source.service_account)))
        });
        let of_account = client.and_then(|(_, account)| account).map_or(&[][..], Vec::as_slice);
        let of_namespace = client.map_or(&[][..], |(namespace, _)| namespace.any.as_slice());
        [of_account, of_namespace, of_port, &self.rest]
    }

    fn matches(&self, entry: usize, facts: &Facts<'_>, applied: &[Applied]) -> bool {
        let (policy, rule) = self.entries[entry];
        let applied = &applied[policy];
        applied.concerns(facts.destination) && mismatch(&applied.policy.rules[rule], facts).is_none()
    }

    fn reference(&self, entry: usize, applied: &[Applied]) -> PolicyRef {
        let (policy, rule) = self.entries[entry];
        PolicyRef { policy: applied[policy].policy.name.clone(), rule }
    }
}

/// Every client that can match; `None`: others as well, or those without an identity.
fn clients(rule: &PolicyRule) -> Option<Vec<Who>> {
    let of_from = || rule.from.iter().map(of_clause).collect::<Option<Vec<_>>>();
    let of_from = if rule.from.is_empty() { None } else { of_from().map(|all| all.concat()) };
    let mut clients = of_from.or_else(|| of_clause(&rule.when))?;
    clients.sort_unstable();
    clients.dedup();
    Some(clients)
}

fn of_clause(clause: &Clause) -> Option<Vec<Who>> {
    clause.iter().find_map(|condition| match condition {
        Condition::Principal(values) if !values.any_of.is_empty() => of_principals(&values.any_of),
        Condition::ServiceAccount(values) if !values.any_of.is_empty() => {
            let accounts = values.any_of.iter();
            Some(accounts.map(|own| Who::Account(own.namespace.clone(), own.name.clone())).collect())
        }
        Condition::Namespace(values) if !values.any_of.is_empty() => {
            let namespaces = values.any_of.iter().map(|pattern| match pattern {
                TextMatch::Exact(name) => Some(Who::Namespace(name.clone())),
                _ => None,
            });
            namespaces.collect()
        }
        _ => None,
    })
}

/// Of what every connection that matches has one; `None`: there is no such thing.
fn hints(rule: &PolicyRule) -> Option<Vec<Hint>> {
    let of_clause = |clause: &Clause| {
        clause.iter().find_map(|condition| match condition {
            Condition::Principal(values) => some(values.any_of.iter().cloned().map(Hint::Principal)),
            Condition::Namespace(values) => some(values.any_of.iter().cloned().map(Hint::Namespace)),
            Condition::SourceIp(values) | Condition::RemoteIp(values) => {
                some(values.any_of.iter().copied().map(Hint::Client))
            }
            _ => None,
        })
    };
    let of_from = || rule.from.iter().map(of_clause).collect::<Option<Vec<_>>>();
    let of_from = if rule.from.is_empty() { None } else { of_from().map(|all| all.concat()) };
    of_from.or_else(|| of_clause(&rule.when))
}

/// The hints, if there are any.
fn some(hints: impl Iterator<Item = Hint>) -> Option<Vec<Hint>> {
    Some(hints.collect()).filter(|hints: &Vec<Hint>| !hints.is_empty())
}

/// What clients with one of these principals have in common with no others, of whatever trust domain they are.
fn of_principals(patterns: &[TextMatch]) -> Option<Vec<Who>> {
    let mut clients = Vec::new();
    for pattern in patterns {
        let (TextMatch::Exact(text) | TextMatch::Prefix(text) | TextMatch::Suffix(text)) = pattern else {
            return None;
        };
        match (pattern, &text.split('/').collect::<Vec<_>>()[..]) {
            (TextMatch::Exact(_) | TextMatch::Suffix(_), &[_, "ns", namespace, "sa", name]) => {
                clients.push(Who::Account(namespace.into(), name.into()));
            }
            // No identity is written in another way.
            (TextMatch::Exact(_), _) => {}
            (TextMatch::Prefix(_), &[_, "ns", namespace, _, ..]) => {
                clients.push(Who::Namespace(namespace.into()));
            }
            _ => return None,
        }
    }
    Some(clients)
}

/// Every port that can match; `None`: any.
fn ports(rule: &PolicyRule, applied: &Applied) -> Option<Vec<u16>> {
    let of_clause = |clause: &Clause| {
        clause.iter().find_map(|condition| match condition {
            Condition::DestinationPort(values) if !values.any_of.is_empty() => Some(values.any_of.to_vec()),
            _ => None,
        })
    };
    let of_to = || rule.to.iter().map(of_clause).collect::<Option<Vec<_>>>();
    let of_to = if rule.to.is_empty() { None } else { of_to().map(|all| all.concat()) };
    let of_endpoints = || {
        let endpoints = applied.endpoints.as_ref()?;
        Some(endpoints.iter().map(std::net::SocketAddr::port).collect())
    };
    let mut ports = of_to.or_else(|| of_clause(&rule.when)).or_else(of_endpoints)?;
    ports.sort_unstable();
    ports.dedup();
    Some(ports)
}
