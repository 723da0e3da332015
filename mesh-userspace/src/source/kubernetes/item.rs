//! An object as it comes, for `kube`'s watcher: its name and version, and its text, which is read later.
//!
//! Whatever is in the text, an item is always one: an object that nobody can read must not keep those beside it from being
//! listed.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::{ApiResource, DynamicResourceScope};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::resources::{Kind, ObjectRef};

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Item {
    metadata: Box<ObjectMeta>,
    text: Box<RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Head {
    metadata: Metadata,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
}

impl Item {
    /// The JSON text of the object.
    pub(super) fn text(&self) -> &str {
        self.text.get()
    }

    /// What names it.
    pub(super) fn reference(&self, kind: &Kind) -> ObjectRef {
        let namespace = self.metadata.namespace.as_deref().filter(|namespace| !namespace.is_empty());
        let namespace = if kind.is_cluster_wide() { "" } else { namespace.unwrap_or("default") };
        ObjectRef::new(kind.clone(), namespace, self.metadata.name.as_deref().unwrap_or_default())
    }
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let head: Head = serde_json::from_str(text.get()).unwrap_or_default();
        let Metadata { name, namespace, resource_version } = head.metadata;
        let metadata = Box::new(ObjectMeta { name, namespace, resource_version, ..ObjectMeta::default() });
        Ok(Self { metadata, text })
    }
}

impl Resource for Item {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(of: &ApiResource) -> Cow<'_, str> {
        of.kind.as_str().into()
    }

    fn group(of: &ApiResource) -> Cow<'_, str> {
        of.group.as_str().into()
    }

    fn version(of: &ApiResource) -> Cow<'_, str> {
        of.version.as_str().into()
    }

    fn api_version(of: &ApiResource) -> Cow<'_, str> {
        of.api_version.as_str().into()
    }

    fn plural(of: &ApiResource) -> Cow<'_, str> {
        of.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use kube::core::{ObjectList, WatchEvent};

    use super::*;

    #[test]
    fn nothing_that_is_listed_keeps_the_rest_from_being_listed() {
        let list = r#"{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"7"},
            "items":[{"metadata":{"name":7}},7,{"metadata":{"name":"a","namespace":"b","resourceVersion":"3"},"spec":[]}]}"#;
        let list: ObjectList<Item> = serde_json::from_str(list).unwrap();
        let names: Vec<String> =
            list.items.iter().map(|item| item.reference(&Kind::Pod).to_string()).collect();
        assert_eq!(names, ["Pod default/", "Pod default/", "Pod b/a"]);
        assert!(list.items[2].text().ends_with(r#""spec":[]}"#));
        let event =
            r#"{"type":"MODIFIED","object":{"metadata":{"name":"a","namespace":"b","resourceVersion":"3"}}}"#;
        let WatchEvent::Modified(item) = serde_json::from_str::<WatchEvent<Item>>(event).unwrap() else {
            panic!()
        };
        assert_eq!(item.meta().resource_version.as_deref(), Some("3"));
    }
}
