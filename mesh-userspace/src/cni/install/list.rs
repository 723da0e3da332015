//! Which configuration the runtime would take, and what it becomes with the plugin at its end: pure functions.

use serde_json::{Map, Value, json};

use crate::cni::error::VERSIONS;
use crate::cni::{PLUGIN, PluginConfig};

/// The configuration that the agent keeps. Sorts before what networks call theirs.
pub(super) const OWN: &str = "00-mesh.conflist";

/// A file of the runtime's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) name: String,
    /// Its text, or why it cannot be read.
    pub(super) text: Result<Vec<u8>, String>,
}

/// What should be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The configuration with the plugin, and the file that it is made of.
    pub(super) list: Option<(String, Vec<u8>)>,
    /// Files that come before it and are no configuration: perhaps one is being written.
    pub(super) broken: Vec<String>,
    /// What the operator should know.
    pub(super) problem: Option<String>,
}

/// Whether runtimes look at a file of this name (libcni's `ConfFiles`), and it is not the agent's own.
pub(super) fn is_candidate(name: &str) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension);
    name != OWN && extension.is_some_and(|extension| ["conf", "conflist", "json"].contains(&extension))
}

/// What the runtime's folder asks for. The first file by name that is a configuration is the one in force, as containerd
/// and CRI-O choose.
pub(super) fn wanted(mut candidates: Vec<Candidate>, plugin: &PluginConfig) -> Wanted {
    candidates.sort_by(|a, b| a.name.cmp(&b.name));
    let mut broken = Vec::new();
    for Candidate { name, text } in candidates {
        let list = text.and_then(|text| chained(&name, &text, plugin));
        match list {
            Ok(list) => {
                let problem = (*name < *OWN).then(|| {
                    format!("{name} sorts before {OWN}, so the runtime takes it, and {PLUGIN} is not called: give it a later name")
                });
                return Wanted { list: Some((name, list)), broken, problem };
            }
            Err(why) => broken.push(format!("{name}: {why}")),
        }
    }
    let problem = if broken.is_empty() {
        "there is no configuration of a network yet; waiting for one".to_owned()
    } else {
        format!("there is no configuration that {PLUGIN} can be added to: {}", broken.join("; "))
    };
    Wanted { list: None, broken, problem: Some(problem) }
}

/// A configuration as a list with the plugin at its end. Name and version stay: the runtime's cache and the addresses that
/// are in use are kept under the name.
fn chained(file: &str, text: &[u8], plugin: &PluginConfig) -> Result<Vec<u8>, String> {
    let written: Value = serde_json::from_slice(text).map_err(|error| format!("no JSON: {error}"))?;
    let Value::Object(written) = written else { return Err("no JSON object".to_owned()) };
    let mut list = if file.ends_with(".conflist") { written } else { single(&written)? };
    if list.get("name").and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err("has no `name`".to_owned());
    }
    let version = list.get("cniVersion").and_then(Value::as_str).unwrap_or_default();
    if !VERSIONS.contains(&version) {
        return Err(format!("has cniVersion {version:?}; {PLUGIN} can be chained from {} on", VERSIONS[0]));
    }
    let Some(Value::Array(plugins)) = list.get_mut("plugins") else {
        return Err("has no list of `plugins`".to_owned());
    };
    let kind = |plugin: &Value| plugin.get("type").and_then(Value::as_str).map(str::to_owned);
    if plugins.iter().any(|plugin| kind(plugin).is_none_or(|kind| kind.is_empty())) {
        return Err("has a plugin without `type`".to_owned());
    }
    // Somebody may have put it there by hand.
    plugins.retain(|plugin| kind(plugin).as_deref() != Some(PLUGIN));
    if plugins.is_empty() {
        return Err("has no plugin that gives a pod its network".to_owned());
    }
    plugins.push(plugin.to_json());
    let mut text = serde_json::to_vec_pretty(&Value::Object(list)).map_err(|error| error.to_string())?;
    text.push(b'\n');
    Ok(text)
}

/// A configuration of one plugin as a list of it (libcni's `ConfListFromConf`).
fn single(plugin: &Map<String, Value>) -> Result<Map<String, Value>, String> {
    if plugin.get("type").and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err("has no `type`".to_owned());
    }
    let field = |name| plugin.get(name).cloned().unwrap_or_default();
    let list = json!({ "cniVersion": field("cniVersion"), "name": field("name"), "plugins": [plugin] });
    match list {
        Value::Object(list) => Ok(list),
        _ => Err("has no `type`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn plugin() -> PluginConfig {
        PluginConfig {
            socket: "/run/mesh/meshd.sock".into(),
            timeout: Duration::from_secs(30),
            log_file: None,
            state_file: "/var/lib/mesh/cni.json".into(),
        }
    }

    fn candidate(name: &str, text: &str) -> Candidate {
        Candidate { name: name.to_owned(), text: Ok(text.as_bytes().to_vec()) }
    }

    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"net","x":{"y":1},"plugins":[{"type":"bridge","z":[1.5]},{"type":"portmap"}]}"#;

    fn types(list: &[u8]) -> Vec<String> {
        let list: Value = serde_json::from_slice(list).unwrap();
        let plugins = list["plugins"].as_array().unwrap();
        plugins.iter().map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn the_plugin_comes_last_and_nothing_else_changes() {
        let wanted = wanted(vec![candidate("10-net.conflist", LIST)], &plugin());
        let (file, list) = wanted.list.unwrap();
        assert_eq!((&*file, wanted.problem), ("10-net.conflist", None));
        let mut list: Value = serde_json::from_slice(&list).unwrap();
        let own = list["plugins"].as_array_mut().unwrap().pop().unwrap();
        assert_eq!(list, serde_json::from_str::<Value>(LIST).unwrap());
        assert_eq!(
            own,
            json!({"type": "mesh-cni", "socket": "/run/mesh/meshd.sock", "timeoutSeconds": 30, "stateFile": "/var/lib/mesh/cni.json"})
        );
        // What the agent writes, the plugin reads.
        let mut call = own.as_object().unwrap().clone();
        call.insert("cniVersion".into(), "1.1.0".into());
        call.insert("name".into(), "net".into());
        let call = serde_json::to_vec(&call).unwrap();
        assert_eq!(crate::cni::config::Config::read(&call).unwrap().plugin, plugin());
    }

    #[test]
    fn the_first_that_is_a_configuration_is_taken() {
        let single = r#"{"cniVersion":"0.4.0","name":"one","type":"ptp","ipam":{}}"#;
        let twice = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"mesh-cni"},{"type":"a"},{"type":"mesh-cni"}]}"#;
        let cases: &[(&str, &[(&str, &str)], Option<(&str, &[&str])>, usize)] = &[
            ("none", &[], None, 0),
            (
                "two",
                &[("20-b.conflist", twice), ("10-a.conflist", LIST)],
                Some(("10-a.conflist", &["bridge", "portmap", "mesh-cni"])),
                0,
            ),
            ("a single plugin", &[("10-a.conf", single)], Some(("10-a.conf", &["ptp", "mesh-cni"])), 0),
            ("as .json", &[("a.json", single)], Some(("a.json", &["ptp", "mesh-cni"])), 0),
            ("by hand, twice", &[("a.conflist", twice)], Some(("a.conflist", &["a", "mesh-cni"])), 0),
            (
                "half written",
                &[("10-a.conflist", "{\"cni"), ("20-b.conf", single)],
                Some(("20-b.conf", &["ptp", "mesh-cni"])),
                1,
            ),
            ("a list in a .conf", &[("10-a.conf", LIST)], None, 1),
            ("one plugin in a .conflist", &[("10-a.conflist", single)], None, 1),
            ("too old", &[("a.conf", r#"{"cniVersion":"0.2.0","name":"n","type":"x"}"#)], None, 1),
            ("no version", &[("a.conf", r#"{"name":"n","type":"x"}"#)], None, 1),
            ("no name", &[("a.conf", r#"{"cniVersion":"1.0.0","type":"x"}"#)], None, 1),
            ("no plugins", &[("a.conflist", r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#)], None, 1),
            (
                "ours alone",
                &[("a.conflist", r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"mesh-cni"}]}"#)],
                None,
                1,
            ),
            (
                "a plugin that is none",
                &[("a.conflist", r#"{"cniVersion":"1.0.0","name":"n","plugins":[7]}"#)],
                None,
                1,
            ),
            ("no object", &[("a.conflist", "[]")], None, 1),
        ];
        for (name, files, list, broken) in cases {
            let wanted = wanted(files.iter().map(|(name, text)| candidate(name, text)).collect(), &plugin());
            let found = wanted.list.as_ref().map(|(file, list)| (&**file, types(list)));
            assert_eq!(
                found
                    .as_ref()
                    .map(|(file, types)| (*file, types.iter().map(String::as_str).collect::<Vec<_>>())),
                list.map(|(file, types)| (file, types.to_vec())),
                "{name}"
            );
            assert_eq!(wanted.broken.len(), *broken, "{name}");
            assert_eq!(wanted.problem.is_some(), list.is_none(), "{name}");
        }
        let early = wanted(vec![candidate("00-a.conflist", LIST)], &plugin());
        assert!(early.list.is_some() && early.problem.unwrap().contains("sorts before"));
    }

    #[test]
    fn what_runtimes_look_at() {
        for (name, is) in [
            ("10-a.conflist", true),
            ("a.conf", true),
            ("a.json", true),
            (".a.conf", true),
            ("a.conflist.bak", false),
            ("a.cilium_bak", false),
            ("conf", false),
            (OWN, false),
            (".00-mesh.conflist.new", false),
        ] {
            assert_eq!(is_candidate(name), is, "{name}");
        }
    }
}
