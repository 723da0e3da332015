//! The chart of deploy/chart/mesh, embedded, rendered as Helm renders it: Go templates over values that its schema allows.
//!
//! Of Helm's functions those exist that the chart uses; a test compares what is rendered with deploy/mesh.yaml, and
//! another one that with the types of the Kubernetes API.

mod functions;
mod set;
mod values;

use std::sync::{Arc, OnceLock};

use gotmpl::{Template, TemplateError};
use serde_json::{Value, json};

pub use self::values::{Values, ValuesError};

/// Helm's name of the release: selectors and labels have it, so it is always the same.
pub const RELEASE: &str = "mesh";
/// Where the mesh is installed if nothing else is said.
pub const NAMESPACE: &str = "mesh-system";
/// The version of Kubernetes that manifests are rendered for when no API server is asked.
pub const KUBERNETES: (u32, u32) = (1, 34);
/// The oldest version that it can be installed on: `kubeVersion` of the chart, by which Helm judges.
pub(super) const OLDEST: (u32, u32) = (1, 25);
/// Templates that may include each other at most this deep.
const MAX_DEPTH: usize = 100;

const CHART: &str = include_str!("../../../../deploy/chart/mesh/Chart.yaml");
const NOTES: &str = "NOTES.txt";

macro_rules! templates {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../../../deploy/chart/mesh/templates/", $name)))),*]
    };
}

/// The chart's templates, the one with definitions first.
const TEMPLATES: [(&str, &str); 8] = templates![
    "_helpers.tpl",
    "NOTES.txt",
    "agent-rbac.yaml",
    "agent.yaml",
    "ca-rbac.yaml",
    "ca.yaml",
    "namespace.yaml",
    "podmonitor.yaml",
];

/// Helm's order of installation, of the kinds that the chart has; what is not listed comes last.
const ORDER: [&str; 14] = [
    "Namespace",
    "NetworkPolicy",
    "ServiceAccount",
    "Secret",
    "ConfigMap",
    "CustomResourceDefinition",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "Service",
    "Deployment",
    "DaemonSet",
    "PodMonitor",
];

/// Why a chart cannot be rendered.
#[derive(Debug, thiserror::Error)]
pub enum ChartError {
    /// The cluster is of a time before what the manifests need.
    #[error(
        "the API server is Kubernetes {major}.{minor}, and the mesh needs {}.{} or later: what keeps pods served \
         while agents change (maxSurge of a DaemonSet) is stable since then",
        OLDEST.0, OLDEST.1
    )]
    TooOld {
        /// Its major version.
        major: u32,
        /// Its minor version.
        minor: u32,
    },
    /// The values.
    #[error(transparent)]
    Values(#[from] ValuesError),
    /// A template.
    #[error("cannot render the chart's templates/{name}")]
    Template {
        /// Which.
        name: &'static str,
        /// Why.
        #[source]
        source: TemplateError,
    },
    /// What came of one is no object.
    #[error("the chart's templates/{name} does not render to Kubernetes objects: {reason}")]
    Object {
        /// Which.
        name: &'static str,
        /// Why.
        reason: String,
    },
}

/// Where it is to be installed.
#[derive(Clone, Debug)]
pub struct Target {
    /// The namespace.
    pub namespace: String,
    /// Major and minor version of Kubernetes.
    pub kubernetes: (u32, u32),
    /// Who manages the objects, for their label.
    pub service: &'static str,
}

impl Default for Target {
    fn default() -> Self {
        Self { namespace: NAMESPACE.to_owned(), kubernetes: KUBERNETES, service: "meshctl" }
    }
}

/// One object.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// The template that it is of.
    pub template: &'static str,
    /// As rendered, with its comments.
    pub text: String,
    /// What that says.
    pub object: Value,
}

impl Manifest {
    /// Its kind.
    pub fn kind(&self) -> &str {
        self.object["kind"].as_str().unwrap_or_default()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.object["metadata"]["name"].as_str().unwrap_or_default()
    }
}

/// What a chart came to.
#[derive(Clone, Debug)]
pub struct Rendered {
    /// The objects, in the order in which they are to be applied.
    pub manifests: Vec<Manifest>,
    /// What Helm says after an installation.
    pub notes: String,
}

impl Rendered {
    /// The manifests as one file, as `helm template` writes it.
    pub fn yaml(&self) -> String {
        let document = |manifest: &Manifest| {
            format!("---\n# Source: mesh/templates/{}\n{}\n", manifest.template, manifest.text)
        };
        self.manifests.iter().map(document).collect()
    }
}

/// Renders the chart.
///
/// # Errors
/// The values make no sense together.
pub fn render(values: &Values, target: &Target) -> Result<Rendered, ChartError> {
    let chart: Value = serde_yaml_ng::from_str(CHART).unwrap_or_default();
    let (major, minor) = target.kubernetes;
    if target.kubernetes < OLDEST {
        return Err(ChartError::TooOld { major, minor });
    }
    let data = json!({
        "Values": values.document(),
        "Release": {
            "Name": RELEASE, "Namespace": target.namespace, "Service": target.service,
            "IsInstall": true, "IsUpgrade": false, "Revision": 1,
        },
        "Chart": { "Name": chart["name"], "Version": chart["version"], "AppVersion": chart["appVersion"] },
        "Capabilities": {
            "KubeVersion": { "Version": format!("v{major}.{minor}.0"), "Major": major.to_string(), "Minor": minor.to_string() },
        },
    });
    let (mut manifests, mut notes) = (Vec::new(), String::new());
    let set = parse()?;
    for (name, _) in TEMPLATES.iter().filter(|(name, _)| !name.starts_with('_')) {
        let failed = |source| ChartError::Template { name, source };
        let data = gotmpl::to_value(&data).map_err(failed)?;
        let parsed = set.get().ok_or_else(|| failed(TemplateError::Exec("not parsed".to_owned())))?;
        let text = parsed.execute_template_to_string(&file(name), &data).map_err(failed)?;
        if *name == NOTES {
            notes = text;
        } else {
            manifests.extend(objects(name, &text)?);
        }
    }
    let place =
        |manifest: &Manifest| ORDER.iter().position(|kind| *kind == manifest.kind()).unwrap_or(ORDER.len());
    manifests.sort_by_key(place);
    Ok(Rendered { manifests, notes })
}

/// The name of a file in the set of templates.
fn file(name: &str) -> String {
    format!("mesh/templates/{name}")
}

/// All templates as one set, which `include` looks into.
fn parse() -> Result<Arc<OnceLock<Template>>, ChartError> {
    let set: Arc<OnceLock<Template>> = Arc::default();
    let mut template = Template::new("mesh").funcs(functions::all(&Arc::downgrade(&set)));
    for (name, text) in &TEMPLATES {
        let text = if name.starts_with('_') {
            (*text).to_owned()
        } else {
            format!("{{{{define {:?}}}}}{text}{{{{end}}}}", file(name))
        };
        template = template.parse(&text).map_err(|source| ChartError::Template { name, source })?;
    }
    // Nobody else has set it: it was made here.
    let _ = set.set(template);
    Ok(set)
}

/// The objects of a rendered template.
fn objects(template: &'static str, text: &str) -> Result<Vec<Manifest>, ChartError> {
    let failed = |reason: String| ChartError::Object { name: template, reason };
    let mut manifests = Vec::new();
    for text in format!("\n{text}").split("\n---\n") {
        let text = text.trim();
        let object: Value = serde_yaml_ng::from_str(text).map_err(|error| failed(error.to_string()))?;
        if object.is_null() {
            continue;
        }
        let manifest = Manifest { template, text: text.to_owned(), object };
        if manifest.kind().is_empty() || manifest.name().is_empty() {
            return Err(failed(format!("kind or metadata.name is missing in `{text}`")));
        }
        manifests.push(manifest);
    }
    Ok(manifests)
}

#[cfg(test)]
mod tests;
