//! A chart's values: its defaults, files over them, `--set` over those, all checked against its schema.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::set;

const DEFAULTS: &str = include_str!("../../../../deploy/chart/mesh/values.yaml");
const SCHEMA: &str = include_str!("../../../../deploy/chart/mesh/values.schema.json");
/// Longest file of values that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// So many mistakes are told at once.
const MAX_TOLD: usize = 5;

/// Why values cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ValuesError {
    /// The chart itself.
    #[error("the chart's own {file} cannot be used: {reason}")]
    Chart {
        /// Which file.
        file: &'static str,
        /// Why.
        reason: String,
    },
    /// A file.
    #[error("cannot use the values in {}: {reason}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A `--set`.
    #[error("--set {given}: {reason}")]
    Set {
        /// As given.
        given: String,
        /// Why.
        reason: String,
    },
    /// The schema.
    #[error("wrong values: {}", .0.join("; "))]
    Schema(Vec<String>),
}

/// Values that the schema allows.
#[derive(Clone, Debug, PartialEq)]
pub struct Values(Value);

impl Values {
    /// The defaults, with `base` (the installer's own) over them, then the files, then what was set.
    ///
    /// # Errors
    /// See [`ValuesError`].
    pub fn new(base: Value, files: &[PathBuf], sets: &[String]) -> Result<Self, ValuesError> {
        let own = |reason: String| ValuesError::Chart { file: "values.yaml", reason };
        let mut values: Value = serde_yaml_ng::from_str(DEFAULTS).map_err(|error| own(error.to_string()))?;
        overlay(&mut values, base);
        for path in files {
            overlay(&mut values, read(path)?);
        }
        for given in sets {
            set::apply(&mut values, given)
                .map_err(|reason| ValuesError::Set { given: given.clone(), reason })?;
        }
        check(&values)?;
        Ok(Self(values))
    }

    /// All of them.
    pub const fn document(&self) -> &Value {
        &self.0
    }
}

fn read(path: &Path) -> Result<Value, ValuesError> {
    use std::io::Read as _;
    let failed = |reason: String| ValuesError::File { path: path.to_owned(), reason };
    let file = std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
    let mut text = String::new();
    let read =
        file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|error| failed(error.to_string()))?;
    if u64::try_from(read).unwrap_or(u64::MAX) > MAX_FILE {
        return Err(failed(format!("it is longer than {MAX_FILE} bytes")));
    }
    let values: Value = serde_yaml_ng::from_str(&text).map_err(|error| failed(error.to_string()))?;
    match values {
        Value::Null => Ok(Value::Object(Map::new())),
        Value::Object(_) => Ok(values),
        _ => Err(failed("it is no mapping of names to values".to_owned())),
    }
}

/// As Helm does it: mappings are merged, anything else replaces, null takes away.
fn overlay(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (key, value) in over {
                if value.is_null() {
                    under.remove(&key);
                } else {
                    overlay(under.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (under, over) => *under = over,
    }
}

fn check(values: &Value) -> Result<(), ValuesError> {
    let own = |reason: String| ValuesError::Chart { file: "values.schema.json", reason };
    let schema: Value = serde_json::from_str(SCHEMA).map_err(|error| own(error.to_string()))?;
    let validator = jsonschema::validator_for(&schema).map_err(|error| own(error.to_string()))?;
    let told = |error: jsonschema::ValidationError<'_>| {
        let path = error.instance_path().to_string().trim_start_matches('/').replace('/', ".");
        if path.is_empty() { error.to_string() } else { format!("{path}: {error}") }
    };
    let mistakes: Vec<String> = validator.iter_errors(values).take(MAX_TOLD).map(told).collect();
    if mistakes.is_empty() { Ok(()) } else { Err(ValuesError::Schema(mistakes)) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn with(sets: &[&str]) -> Result<Values, ValuesError> {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        Values::new(json!({}), &[], &sets)
    }

    #[test]
    fn wrong_values_are_refused_by_name() {
        let cases = [
            ("imagee.tag=x", "imagee"),
            ("image.digest=sha256:1", "image.digest: "),
            ("image.pullPolicy=Sometimes", "image.pullPolicy: "),
            ("agent.drainSeconds=soon", "agent.drainSeconds: "),
            ("agent.drainSeconds=-1", "agent.drainSeconds: "),
            ("agent.metrics.address=10.0.0.1", "agent.metrics.address: "),
            ("agent.maxSurge=0", "agent.maxSurge: "),
            ("agent.certTtl=1d", "agent.certTtl: "),
            ("kubeProxyReplacement=maybe", "kubeProxyReplacement: "),
            ("ca.replicas=0", "ca.replicas: "),
            ("ca.nodeAccounts={ztunnel}", "ca.nodeAccounts.0: "),
            ("ca.address=istiod", "ca.address: "),
            ("kubernetes.port=65536", "kubernetes.port: "),
            ("cni.binDir=bin", "cni.binDir: "),
            ("clusterName=a b", "clusterName: "),
            ("agent.podLabels.a=1", "agent.podLabels.a: "),
        ];
        for (set, part) in cases {
            let error = with(&[set]).unwrap_err().to_string();
            assert!(error.starts_with("wrong values: ") && error.contains(part), "{set}: {error}");
        }
    }

    #[test]
    fn what_is_given_lies_over_the_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("values.yaml");
        std::fs::write(&file, "image: {tag: a}\nagent: {nodeSelector: null, tolerations: []}\n").unwrap();
        let sets = ["image.tag=b,ca.dnsNames={x,y}".to_owned(), "kubeProxyReplacement=true".to_owned()];
        let values =
            Values::new(json!({"namespace": {"create": true}}), std::slice::from_ref(&file), &sets).unwrap();
        let document = values.document();
        assert_eq!(document["image"]["tag"], "b");
        assert_eq!(document["image"]["repository"], "mesh");
        assert_eq!(document["namespace"]["create"], true);
        assert_eq!(document["agent"]["tolerations"], json!([]));
        assert_eq!(document["agent"].get("nodeSelector"), None);
        assert_eq!(document["ca"]["dnsNames"], json!(["x", "y"]));
        for (content, part) in
            [("a: [", "did not find"), ("- a", "no mapping"), ("image: {tag: 1}", "image.tag: ")]
        {
            std::fs::write(&file, content).unwrap();
            let error = Values::new(json!({}), std::slice::from_ref(&file), &[]).unwrap_err().to_string();
            assert!(error.contains(part), "{content}: {error}");
        }
        let error = Values::new(json!({}), &["/none".into()], &[]).unwrap_err().to_string();
        assert!(error.starts_with("cannot use the values in /none: "), "{error}");
    }

    /// Each value's schema says what it is, each object's refuses what is not listed, and the defaults have each of them.
    #[test]
    fn every_value_is_documented_and_has_a_default() {
        fn walk(schema: &Value, defaults: &Value, path: &str) {
            for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
                let path = format!("{path}.{name}");
                assert!(schema["description"].is_string(), "{path} is not described");
                if path == ".global" || path.contains(".resources.") {
                    continue;
                }
                assert!(!defaults[name].is_null(), "{path} is not in values.yaml");
                if schema["properties"].is_object() {
                    assert_eq!(schema["additionalProperties"], false, "{path}");
                    walk(schema, &defaults[name], &path);
                }
            }
        }
        let schema: Value = serde_json::from_str(SCHEMA).unwrap();
        let defaults: Value = serde_yaml_ng::from_str(DEFAULTS).unwrap();
        walk(&schema, &defaults, "");
        // Each key of values.yaml has a comment above itself or above the line before.
        let lines: Vec<&str> = DEFAULTS.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let Some((key, _)) = line.trim().split_once(':').filter(|(key, _)| !key.starts_with(['#', '-']))
            else {
                continue;
            };
            let near = lines[..index].iter().rev().take(7);
            assert!(near.into_iter().any(|line| line.trim().starts_with('#')), "{key} is not explained");
        }
    }
}
