//! What a request's path and query mean.

use std::collections::HashMap;

/// A path of the API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Path {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) namespace: Option<String>,
    pub(super) plural: String,
    pub(super) name: Option<String>,
    pub(super) subresource: String,
}

impl Path {
    /// Of a resource, an object or what is below one; none for everything else.
    pub(super) fn parse(path: &str) -> Option<Self> {
        let parts: Vec<String> =
            path.split('/').filter(|part| !part.is_empty()).map(|part| decode(part, false)).collect();
        let (group, version, rest) = match parts.as_slice() {
            [api, version, rest @ ..] if api == "api" => (String::new(), version, rest),
            [apis, group, version, rest @ ..] if apis == "apis" => (group.clone(), version, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            // What follows the name of a namespace is a resource in it, except these two.
            [word, namespace, rest @ ..]
                if word == "namespaces"
                    && rest.first().is_some_and(|next| !["status", "finalize"].contains(&next.as_str())) =>
            {
                (Some(namespace.clone()), rest)
            }
            rest => (None, rest),
        };
        let (plural, rest) = rest.split_first()?;
        if rest.len() > 2 {
            return None;
        }
        Some(Self {
            group,
            version: version.clone(),
            namespace,
            plural: plural.clone(),
            name: rest.first().cloned(),
            subresource: rest.get(1).cloned().unwrap_or_default(),
        })
    }
}

/// The parameters of a query; of those that are there several times, all.
#[derive(Clone, Debug, Default)]
pub(super) struct Query(HashMap<String, Vec<String>>);

impl Query {
    pub(super) fn parse(query: &str) -> Self {
        let mut held: HashMap<String, Vec<String>> = HashMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            held.entry(decode(key, true)).or_default().push(decode(value, true));
        }
        Self(held)
    }

    pub(super) fn text(&self, key: &str) -> &str {
        self.0.get(key).and_then(|values| values.first()).map_or("", String::as_str)
    }

    pub(super) fn all(&self, key: &str) -> Vec<String> {
        self.0.get(key).cloned().unwrap_or_default()
    }

    pub(super) fn is(&self, key: &str) -> bool {
        ["true", "1"].contains(&self.text(key))
    }

    pub(super) fn number(&self, key: &str) -> Option<u64> {
        self.text(key).parse().ok()
    }
}

fn decode(text: &str, plus: bool) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' if plus => out.push(b' '),
            b'%' => {
                let digits: Vec<u8> = bytes.by_ref().take(2).collect();
                let digits = std::str::from_utf8(&digits).ok();
                out.push(digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()).unwrap_or(b'%'));
            }
            _ => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
