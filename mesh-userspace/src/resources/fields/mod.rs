//! Each field of the resources that route and shape traffic, with what becomes of it at layer 4.
//!
//! One list for all who tell of it: `lint` says at an object which of its fields are not honoured, docs/traffic.md shows the
//! whole, and tests hold both to what stands here. Paths are those of the API, with `[]` behind a list and `*` for a map's key.

pub(super) mod destination_rule;
mod gateway_route;
mod service_entry;
mod virtual_service;
mod workload_entry;

use std::fmt::Write as _;

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Done as the API documents it, in both planes.
    Honoured,
    /// Done for the connections of enrolled clients: their agent carries it out.
    Enrolled,
    /// Done for the connections that the agent carries: those of enrolled clients, and of clients from outside.
    Carried,
    /// Something of it is done; the note says what.
    Partly,
    /// Layer 4 cannot see what it is about.
    Layer7,
    /// It could be done and is not yet.
    NotYet,
}

impl State {
    /// As docs/traffic.md has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Honoured => "yes",
            Self::Enrolled => "enrolled clients",
            Self::Carried => "what the agent carries",
            Self::Partly => "in part",
            Self::Layer7 => "no: layer 7",
            Self::NotYet => "not yet",
        }
    }
}

/// A field.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its path, from `spec` on.
    pub path: &'static str,
    /// What becomes of it.
    pub state: State,
    /// In what way, or what happens instead.
    pub note: &'static str,
}

/// A kind with its fields.
#[derive(Clone, Copy, Debug)]
pub struct Resource {
    /// Its kind.
    pub kind: &'static str,
    /// Its fields, in the order of the API.
    pub fields: &'static [Field],
}

/// All of them.
pub const RESOURCES: &[Resource] = &[
    Resource { kind: "VirtualService", fields: virtual_service::FIELDS },
    Resource { kind: "DestinationRule", fields: destination_rule::FIELDS },
    Resource { kind: "ServiceEntry", fields: service_entry::FIELDS },
    Resource { kind: "WorkloadEntry", fields: workload_entry::FIELDS },
    Resource { kind: "TCPRoute, TLSRoute", fields: gateway_route::FIELDS },
];

impl Field {
    /// What is told of it at an object that has it; `None` where it is honoured at least in part.
    pub fn told(&self) -> Option<String> {
        match self.state {
            State::Honoured | State::Enrolled | State::Carried | State::Partly => None,
            State::Layer7 => Some(format!("not honoured at layer 4: {}", self.note)),
            State::NotYet => Some(format!("not honoured yet: {}", self.note)),
        }
    }
}

impl Resource {
    /// The field with this path.
    pub fn field(&self, path: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.path == path)
    }
}

/// The fields of a kind.
pub fn of(kind: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|resource| resource.kind.split(", ").any(|one| one == kind))
}

/// What is noted at a field of a kind.
pub(super) fn note(kind: &str, path: &str) -> Option<&'static str> {
    of(kind)?.field(path).map(|field| field.note)
}

/// The tables as docs/traffic.md has them, between its lines `<!-- fields -->` and `<!-- /fields -->`.
pub fn markdown() -> String {
    let mut text = String::new();
    for resource in RESOURCES {
        let _ = writeln!(text, "### {}\n\n| field | honoured | |\n|---|---|---|", resource.kind);
        for Field { path, state, note } in resource.fields {
            let _ = writeln!(text, "| `{path}` | {} | {note} |", state.as_str());
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// `MESH_WRITE_DOCS=1` writes the tables instead.
    #[test]
    fn the_documentation_has_these_tables() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/traffic.md");
        let page = std::fs::read_to_string(&path).unwrap();
        let (begin, end) = ("<!-- fields -->\n", "<!-- /fields -->");
        let from = page.find(begin).unwrap() + begin.len();
        let to = page.find(end).unwrap();
        if std::env::var_os("MESH_WRITE_DOCS").is_some() {
            let page = format!("{}\n{}{}", &page[..from], markdown(), &page[to..]);
            return std::fs::write(path, page).unwrap();
        }
        assert_eq!(page[from..to].trim(), markdown().trim(), "MESH_WRITE_DOCS=1 writes them anew");
    }

    #[test]
    fn each_field_stands_once() {
        for Resource { kind, fields } in RESOURCES {
            let paths: BTreeSet<&str> = fields.iter().map(|field| field.path).collect();
            assert_eq!(paths.len(), fields.len(), "{kind}");
        }
    }

    /// Every field of Istio's own definitions is in the list, itself, what is around it or what is in it; and the list has none that
    /// Istio does not have.
    #[test]
    fn each_field_of_istio_stands_here() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/istio-fields.txt");
        let fixture = std::fs::read_to_string(path).unwrap();
        let lines = fixture.lines().filter(|line| !line.starts_with('#'));
        let known: BTreeSet<(&str, &str)> = lines.map(|line| line.split_once(' ').unwrap()).collect();
        // Lists and maps of words are written with and without what is in them, paths with and without `spec`.
        let plain = |path: &str| {
            path.trim_start_matches("spec.").trim_end_matches("[]").trim_end_matches(".*").to_owned()
        };
        let is_in = |inner: &str, outer: &str| {
            inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        for Resource { kind, fields } in RESOURCES.iter().filter(|resource| !resource.fields.is_empty()) {
            let theirs: BTreeSet<String> =
                known.iter().filter(|(of, _)| of == kind).map(|(_, path)| plain(path)).collect();
            let own: BTreeSet<String> = fields.iter().map(|field| plain(field.path)).collect();
            if theirs.is_empty() {
                assert_eq!(*kind, "TCPRoute, TLSRoute", "the fixture has no {kind}");
                continue;
            }
            let missing: Vec<_> = theirs
                .iter()
                .filter(|path| !own.iter().any(|one| is_in(path, one) || is_in(one, path)))
                .collect();
            assert!(missing.is_empty(), "{kind} has fields that are not in the list: {missing:#?}");
            let invented: Vec<_> = own.difference(&theirs).collect();
            assert!(invented.is_empty(), "the list of {kind} has fields that are not there: {invented:#?}");
        }
    }
}
