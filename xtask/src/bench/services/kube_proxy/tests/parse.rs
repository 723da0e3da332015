//! Rules as comparable data.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

/// Chains that every service writes to, in the order of a Go map.
const SHARED: [&str; 4] =
    ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES", "KUBE-PROXY-FIREWALL"];

/// `TABLE CHAIN` → rules in order.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Iptables(BTreeMap<String, Vec<String>>);

impl Iptables {
    /// Reads `iptables-save` and `iptables-restore --noflush` alike. The kernel's own chains are not compared where empty.
    pub(super) fn parse(text: &str) -> Self {
        let mut chains: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut table = "";
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name;
            } else if let Some(chain) = line.strip_prefix(':') {
                let (name, _policy) = chain.split_once(' ').expect("a chain's policy");
                chains.entry(format!("{table} {name}")).or_default();
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let (chain, rule) = rule.split_once(' ').expect("a rule");
                chains.entry(format!("{table} {chain}")).or_default().push(rule.to_owned());
            }
        }
        for chain in SHARED {
            for table in ["filter", "nat"] {
                let Some(rules) = chains.get_mut(&format!("{table} {chain}")) else { continue };
                let last = rules.pop_if(|rule| rule.contains("must be the last rule"));
                rules.sort();
                rules.extend(last);
            }
        }
        chains.retain(|name, rules| name.contains(" KUBE-") || !rules.is_empty());
        Self(chains)
    }

    pub(super) fn assert_is(&self, wrote: &Self, name: &str) {
        assert_same(&self.0, &wrote.0, name);
    }
}

/// `FAMILY OBJECT` → what it is declared as, what it holds in any order, what it holds in order.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Nftables(BTreeMap<String, Object>);

#[derive(Debug, Default, PartialEq, Eq)]
struct Object {
    declared: BTreeSet<String>,
    elements: BTreeSet<String>,
    rules: Vec<String>,
}

impl Nftables {
    /// Reads `nft list ruleset`.
    pub(super) fn of_listing(text: &str) -> Self {
        let mut objects: BTreeMap<String, Object> = BTreeMap::new();
        let (mut family, mut name) = (String::new(), String::new());
        let mut elements: Option<String> = None;
        for line in text.lines().map(str::trim) {
            if let Some(list) = &mut elements {
                list.push_str(line);
            } else if let Some(list) = line.strip_prefix("elements = {") {
                elements = Some(list.to_owned());
            } else if let Some(header) = line.strip_suffix(" {") {
                let words: Vec<&str> = header.split(' ').collect();
                match words[..] {
                    ["table", of, "kube-proxy"] => (family, name) = (of.to_owned(), format!("{of} table")),
                    [kind, object] => name = format!("{family} {kind} {object}"),
                    _ => unreachable!("{line}"),
                }
                objects.entry(name.clone()).or_default();
            } else if !line.is_empty() && line != "}" {
                let object = objects.entry(name.clone()).or_default();
                object.line(line, name.contains(" chain "));
            }
            if let Some(list) = elements.take_if(|list| list.ends_with('}')) {
                let object = objects.entry(name.clone()).or_default();
                object
                    .elements
                    .extend(list.trim_end_matches('}').split(',').map(|element| element.trim().to_owned()));
            }
        }
        Self(objects)
    }

    /// Reads what `nft -f` reads.
    pub(super) fn of_transaction(text: &str) -> Self {
        let mut objects: BTreeMap<String, Object> = BTreeMap::new();
        for line in text.lines() {
            let words: Vec<&str> = line.splitn(6, ' ').collect();
            let [verb, kind, family, "kube-proxy", ref rest @ ..] = words[..] else { unreachable!("{line}") };
            let (object, rest) =
                if kind == "table" { ("", rest.join(" ")) } else { (rest[0], rest[1..].join(" ")) };
            let named = |kind: &str| format!("{family} {kind} {object}");
            let inner = || rest.trim_start_matches("{ ").trim_end_matches(" }");
            match (verb, kind) {
                ("flush", "chain") => {}
                ("add", "rule") => {
                    let chain = objects.get_mut(&named("chain")).expect("a rule's chain comes before it");
                    chain.line(&rest, true);
                }
                ("add", "element") => {
                    let set = ["set", "map"].into_iter().find(|kind| objects.contains_key(&named(kind)));
                    let set = named(set.expect("an element's set comes before it"));
                    objects.entry(set).or_default().elements.insert(inner().to_owned());
                }
                ("add", "table") => {
                    objects.entry(format!("{family} table")).or_default().line(inner(), false);
                }
                ("add", _) => {
                    let object = objects.entry(named(kind)).or_default();
                    // The declaration of a chain on a hook is one line of the listing.
                    let parts: Vec<&str> = if kind == "chain" && inner().contains("hook") {
                        vec![inner()]
                    } else {
                        inner().split(';').map(str::trim).filter(|part| !part.is_empty()).collect()
                    };
                    for part in parts {
                        object.line(part, kind == "chain");
                    }
                }
                _ => unreachable!("{line}"),
            }
        }
        Self(objects)
    }

    /// Without a family of which `other` has nothing: one fixture was listed for IPv4 alone.
    pub(super) fn of_families_in(mut self, other: &Self) -> Self {
        self.0.retain(|name, _| {
            let (family, _) = name.split_once(' ').expect("a family");
            other.0.contains_key(&format!("{family} table"))
        });
        self
    }

    pub(super) fn assert_is(&self, wrote: &Self, name: &str) {
        assert_same(&self.0, &wrote.0, name);
    }
}

impl Object {
    fn line(&mut self, line: &str, of_chain: bool) {
        let declares = line.starts_with("comment ") || line.starts_with("type ");
        if of_chain && !declares {
            self.rules.push(as_listed(line));
        } else if line != "size 65535" {
            // What a set that grows gets by itself is not declared.
            self.declared.insert(line.trim_end_matches(';').replace("10800s", "3h"));
        }
    }
}

/// What `nft list` leaves out or sorts.
fn as_listed(rule: &str) -> String {
    let rule = rule.replace("dnat ip addr . port to", "dnat ip to");
    let Some((before, rest)) = rule.split_once("!= { ") else { return rule };
    let (set, after) = rest.split_once(" }").expect("a set's end");
    let mut members: Vec<&str> = set.split(", ").collect();
    members.sort_unstable();
    format!("{before}!= {{ {} }}{after}", members.join(", "))
}

/// Says which chain or set differs, and how.
fn assert_same<T: Debug + PartialEq>(
    generated: &BTreeMap<String, T>,
    wrote: &BTreeMap<String, T>,
    name: &str,
) {
    let names: BTreeSet<&String> = generated.keys().chain(wrote.keys()).collect();
    for object in names {
        assert_eq!(
            generated.get(object),
            wrote.get(object),
            "{name}: {object}: generated, and written by kube-proxy"
        );
    }
}
