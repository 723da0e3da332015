//! Texts and labels that many objects repeat, kept once.
//!
//! A cluster's pods name the same namespaces, nodes, accounts and labels tens of thousands of times. What goes through here is
//! equal to what was given, and held together with all that is equal to it. What nobody else holds any more is let go when
//! there has come to be twice as much as at the last look.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::hash::Hash;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use serde::{Deserialize, Deserializer};

/// Entries below which nothing is looked through.
const FEW: usize = 1024;

static TEXTS: LazyLock<Mutex<Pool<str>>> = LazyLock::new(Mutex::default);
static LABELS: LazyLock<Mutex<Pool<BTreeMap<String, String>>>> = LazyLock::new(Mutex::default);

/// The text, shared with all who have the same.
pub(crate) fn shared_text(text: &str) -> Arc<str> {
    let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    texts.get(text).unwrap_or_else(|| texts.add(text.into()))
}

/// The labels, shared with all who have the same.
pub(crate) fn shared_labels(labels: BTreeMap<String, String>) -> Arc<BTreeMap<String, String>> {
    let mut all = LABELS.lock().unwrap_or_else(PoisonError::into_inner);
    all.get(&labels).unwrap_or_else(|| all.add(Arc::new(labels)))
}

/// As [`shared_text`], for serde.
pub(crate) fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
    Cow::<'_, str>::deserialize(deserializer).map(|text| shared_text(&text))
}

/// The same where there may be none.
pub(crate) fn some_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Arc<str>>, D::Error> {
    Option::<Cow<'_, str>>::deserialize(deserializer).map(|text| text.map(|text| shared_text(&text)))
}

/// As [`shared_labels`], for serde.
pub(crate) fn labels<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Arc<BTreeMap<String, String>>, D::Error> {
    BTreeMap::deserialize(deserializer).map(shared_labels)
}

struct Pool<T: ?Sized> {
    held: HashSet<Arc<T>>,
    look_at: usize,
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self { held: HashSet::new(), look_at: FEW }
    }
}

impl<T: ?Sized + Eq + Hash> Pool<T> {
    fn get(&self, wanted: &T) -> Option<Arc<T>> {
        self.held.get(wanted).map(Arc::clone)
    }

    fn add(&mut self, new: Arc<T>) -> Arc<T> {
        if self.held.len() >= self.look_at {
            self.held.retain(|held| Arc::strong_count(held) > 1);
            self.held.shrink_to(2 * self.held.len());
            self.look_at = FEW.max(2 * self.held.len());
        }
        self.held.insert(Arc::clone(&new));
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_equal_is_held_once() {
        let (one, other) = (shared_text("shared-text"), shared_text("shared-text"));
        assert!(Arc::ptr_eq(&one, &other));
        let labels = || BTreeMap::from([("shared".to_owned(), "labels".to_owned())]);
        assert!(Arc::ptr_eq(&shared_labels(labels()), &shared_labels(labels())));
    }

    #[test]
    fn what_nobody_holds_is_let_go() {
        let mut pool = Pool::<str>::default();
        let kept = pool.add("kept".into());
        for number in 0..100 * FEW {
            let _ = pool.add(number.to_string().into());
            assert!(pool.held.len() <= FEW, "{number}");
        }
        assert!(pool.get("kept").is_some_and(|held| Arc::ptr_eq(&held, &kept)));
        let all: Vec<Arc<str>> = (0..4 * FEW).map(|number| pool.add(number.to_string().into())).collect();
        assert!(all.iter().all(|one| pool.get(one).is_some_and(|held| Arc::ptr_eq(&held, one))));
    }
}
