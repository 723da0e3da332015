//! What the server holds: objects by resource, each as the bytes that clients get, and what became of them lately.
//!
//! Every change has a revision of its own, larger than all before it, whatever the resource: `resourceVersion`.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value};
use tokio::sync::watch;

use super::kinds::Kind;

/// Changes of a resource that are remembered; a watch from before them is told that they are gone.
const HISTORY: usize = 200_000;

/// Namespace (empty for what is in none) and name.
pub(super) type Key = (String, String);

/// An object. The bytes lack `apiVersion` and `kind`, which depend on who asks.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) labels: Box<[(Box<str>, Box<str>)]>,
    pub(super) node: Box<str>,
    pub(super) phase: Box<str>,
    body: Bytes,
}

/// What became of an object.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) revision: u64,
    pub(super) old: Option<Arc<Stored>>,
    pub(super) new: Option<Arc<Stored>>,
    /// As it is now, or as it was last, with this revision.
    pub(super) seen: Arc<Stored>,
}

/// A resource and its objects.
#[derive(Debug)]
pub(super) struct Shelf {
    pub(super) kind: Arc<Kind>,
    objects: BTreeMap<Key, Arc<Stored>>,
    history: VecDeque<Change>,
    /// Changes up to this one are forgotten.
    pub(super) forgotten: u64,
}

/// All of it.
#[derive(Debug)]
pub(super) struct Store {
    revision: u64,
    shelves: Vec<Shelf>,
    changed: watch::Sender<u64>,
}

impl Stored {
    fn new(value: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let metadata = &value["metadata"];
        let labels = metadata["labels"].as_object().into_iter().flatten();
        Self {
            namespace: text(&metadata["namespace"]),
            name: text(&metadata["name"]),
            labels: labels
                .map(|(key, value)| (key.as_str().into(), value.as_str().unwrap_or_default().into()))
                .collect(),
            node: value["spec"]["nodeName"].as_str().unwrap_or_default().into(),
            phase: value["status"]["phase"].as_str().unwrap_or_default().into(),
            body: Bytes::from(value.to_string()),
        }
    }

    /// An object that is not kept, of the revision that it says.
    pub(super) fn dry(mut value: Value) -> Self {
        if let Some(object) = value.as_object_mut() {
            drop_types(object);
        }
        Self::new(&value)
    }

    /// The object, without `apiVersion` and `kind`.
    pub(super) fn value(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// Appends it as JSON, with `kind` and `apiVersion` if they are given.
    pub(super) fn write(&self, types: Option<(&str, &str)>, out: &mut Vec<u8>) {
        if let Some((kind, api_version)) = types {
            out.extend_from_slice(format!(r#"{{"kind":"{kind}","apiVersion":"{api_version}","#).as_bytes());
            out.extend_from_slice(&self.body[1..]);
        } else {
            out.extend_from_slice(&self.body);
        }
    }

    fn key(&self) -> Key {
        (self.namespace.clone(), self.name.clone())
    }
}

impl Shelf {
    /// An object.
    pub(super) fn object(&self, namespace: &str, name: &str) -> Option<&Arc<Stored>> {
        self.objects.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// How many objects there are.
    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }

    /// All of them after a key, in order.
    pub(super) fn after(&self, key: Option<&Key>) -> impl Iterator<Item = (&Key, &Arc<Stored>)> {
        let from = key.map_or(Bound::Unbounded, Bound::Excluded);
        self.objects.range((from, Bound::Unbounded))
    }

    /// All of them in a namespace, or everywhere.
    pub(super) fn all(&self, namespace: Option<&str>) -> impl Iterator<Item = &Arc<Stored>> {
        let from = namespace
            .map_or(Bound::Unbounded, |namespace| Bound::Included((namespace.to_owned(), String::new())));
        self.objects
            .range((from, Bound::Unbounded))
            .map(|(_, object)| object)
            .take_while(move |object| namespace.is_none_or(|namespace| object.namespace == namespace))
    }

    /// Changes after a revision, the oldest first; `None` if some of them are forgotten.
    pub(super) fn since(&self, revision: u64) -> Option<impl Iterator<Item = &Change>> {
        if revision < self.forgotten {
            return None;
        }
        let from = self.history.partition_point(|change| change.revision <= revision);
        Some(self.history.range(from..))
    }

    /// What objects were at a revision where they differ from now; `None` if that is forgotten.
    pub(super) fn undo(&self, revision: u64) -> Option<BTreeMap<Key, Option<Arc<Stored>>>> {
        let mut was = BTreeMap::new();
        for change in self.since(revision)? {
            was.entry(change.seen.key()).or_insert_with(|| change.old.clone());
        }
        Some(was)
    }

    fn remember(&mut self, change: Change) {
        if self.history.len() >= HISTORY
            && let Some(oldest) = self.history.pop_front()
        {
            self.forgotten = oldest.revision;
        }
        self.history.push_back(change);
    }
}

impl Store {
    /// With the resources that are built in and no object.
    pub(super) fn new() -> Self {
        let mut store = Self { revision: 1000, shelves: Vec::new(), changed: watch::Sender::new(1000) };
        for kind in Kind::built_in() {
            store.add_kind(kind);
        }
        store
    }

    /// The last change's.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// Told of every change.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// What there is.
    pub(super) fn kinds(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.shelves.iter().map(|shelf| &shelf.kind)
    }

    /// A resource's objects.
    pub(super) fn shelf(&self, kind: &Kind) -> Option<&Shelf> {
        self.shelves.iter().find(|shelf| shelf.kind.plural == kind.plural && shelf.kind.group == kind.group)
    }

    fn shelf_mut(&mut self, kind: &Kind) -> Option<&mut Shelf> {
        self.shelves
            .iter_mut()
            .find(|shelf| shelf.kind.plural == kind.plural && shelf.kind.group == kind.group)
    }

    /// The resource of a path.
    pub(super) fn kind(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Kind>> {
        self.kinds()
            .find(|kind| {
                kind.plural == plural && kind.group == group && kind.versions.iter().any(|one| one == version)
            })
            .map(Arc::clone)
    }

    /// The resource of an object.
    pub(super) fn kind_of(&self, api_version: &str, name: &str) -> Option<Arc<Kind>> {
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        self.kinds()
            .find(|kind| {
                kind.kind == name && kind.group == group && kind.versions.iter().any(|one| one == version)
            })
            .map(Arc::clone)
    }

    /// The resource named `Pod`, or `Gateway.networking.istio.io` where a name alone could mean several.
    pub(super) fn kind_named(&self, name: &str) -> Option<Arc<Kind>> {
        let (kind, group) = name.split_once('.').map_or((name, None), |(kind, group)| (kind, Some(group)));
        self.kinds()
            .find(|one| one.kind == kind && group.is_none_or(|group| one.group == group))
            .map(Arc::clone)
    }

    /// Adds or replaces a resource.
    pub(super) fn add_kind(&mut self, kind: Kind) {
        let forgotten = self.revision;
        if let Some(shelf) = self.shelf_mut(&kind) {
            shelf.kind = Arc::new(kind);
        } else {
            self.shelves.push(Shelf {
                kind: Arc::new(kind),
                objects: BTreeMap::new(),
                history: VecDeque::new(),
                forgotten,
            });
        }
    }

    /// Removes a resource with all its objects; its watches end.
    pub(super) fn remove_kind(&mut self, group: &str, plural: &str) {
        self.shelves.retain(|shelf| shelf.kind.group != group || shelf.kind.plural != plural);
        self.changed.send_replace(self.revision);
    }

    /// Adds or replaces an object, in place of the revision that it says; returns it as it is now.
    pub(super) fn put(&mut self, kind: &Kind, mut value: Value) -> Option<Arc<Stored>> {
        let revision = self.revision + 1;
        set_revision(&mut value, revision);
        let new = Arc::new(Stored::new(&value));
        let shelf = self.shelf_mut(kind)?;
        let old = shelf.objects.insert(new.key(), Arc::clone(&new));
        shelf.remember(Change { revision, old, new: Some(Arc::clone(&new)), seen: Arc::clone(&new) });
        self.advance(revision);
        Some(new)
    }

    /// Removes an object; returns its last state.
    pub(super) fn remove(&mut self, kind: &Kind, namespace: &str, name: &str) -> Option<Arc<Stored>> {
        let revision = self.revision + 1;
        let shelf = self.shelf_mut(kind)?;
        let old = shelf.objects.remove(&(namespace.to_owned(), name.to_owned()))?;
        let mut value = old.value();
        set_revision(&mut value, revision);
        let seen = Arc::new(Stored::new(&value));
        shelf.remember(Change { revision, old: Some(old), new: None, seen: Arc::clone(&seen) });
        self.advance(revision);
        Some(seen)
    }

    /// Forgets what became of objects: a watch from before now is told so.
    pub(super) fn forget(&mut self) {
        let revision = self.revision + 1;
        for shelf in &mut self.shelves {
            shelf.history.clear();
            shelf.forgotten = revision;
        }
        self.advance(revision);
    }

    /// The largest revision at which anything of these groups changed.
    pub(super) fn last_change(&self, group: &str) -> u64 {
        let of = |shelf: &Shelf| shelf.history.back().map_or(shelf.forgotten, |change| change.revision);
        self.shelves.iter().filter(|shelf| shelf.kind.group == group).map(of).max().unwrap_or_default()
    }

    fn advance(&mut self, revision: u64) {
        self.revision = revision;
        self.changed.send_replace(revision);
    }
}

fn set_revision(value: &mut Value, revision: u64) {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".to_owned(), revision.to_string().into());
    }
    if let Some(object) = value.as_object_mut() {
        drop_types(object);
    }
}

fn drop_types(object: &mut Map<String, Value>) {
    object.remove("apiVersion");
    object.remove("kind");
}
