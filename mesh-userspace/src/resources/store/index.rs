//! The indexes behind the translator.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::net::IpAddr;

use crate::model::ServiceName;

/// Adds a value to a key's set or takes it out; a set that becomes empty goes.
pub(super) fn set<K: Eq + Hash, V: Ord>(index: &mut HashMap<K, BTreeSet<V>>, key: K, value: V, add: bool) {
    if add {
        index.entry(key).or_default().insert(value);
    } else if let Some(values) = index.get_mut(&key) {
        values.remove(&value);
        if values.is_empty() {
            index.remove(&key);
        }
    }
}

/// The same for sets that mostly hold one value, sorted.
pub(super) fn set_few<K: Eq + Hash, V: Ord>(index: &mut HashMap<K, Vec<V>>, key: K, value: V, add: bool) {
    if add {
        let values = index.entry(key).or_insert_with(|| Vec::with_capacity(1));
        if let Err(at) = values.binary_search(&value) {
            values.insert(at, value);
        }
    } else if let Some(values) = index.get_mut(&key) {
        if let Ok(at) = values.binary_search(&value) {
            values.remove(at);
        }
        if values.is_empty() {
            index.remove(&key);
        }
    }
}

/// Which services use what.
#[derive(Debug)]
pub(super) struct Users<D> {
    users: HashMap<D, Vec<ServiceName>>,
    /// Sorted.
    uses: HashMap<ServiceName, Box<[D]>>,
}

impl<D> Default for Users<D> {
    fn default() -> Self {
        Self { users: HashMap::new(), uses: HashMap::new() }
    }
}

impl<D: Clone + Ord + Hash> Users<D> {
    /// Says anew what a service uses.
    pub(super) fn set(&mut self, user: &ServiceName, uses: BTreeSet<D>) {
        let old = self.uses.remove(user).unwrap_or_default();
        for gone in old.iter().filter(|old| !uses.contains(*old)) {
            set_few(&mut self.users, gone.clone(), user.clone(), false);
        }
        for new in uses.iter().filter(|new| old.binary_search(new).is_err()) {
            set_few(&mut self.users, new.clone(), user.clone(), true);
        }
        if !uses.is_empty() {
            self.uses.insert(user.clone(), uses.into_iter().collect());
        }
    }

    /// The services that use something.
    pub(super) fn of(&self, used: &D) -> impl Iterator<Item = &ServiceName> {
        self.users.get(used).into_iter().flatten()
    }
}

/// Who says that an address, or a frontend, is theirs. The first by rank has it, and of one rank the first by name, whatever came
/// first.
#[derive(Debug)]
pub(super) struct Claims<R, N, A = IpAddr> {
    claimants: HashMap<A, Vec<(R, N)>>,
    addresses: HashMap<N, (R, Vec<A>)>,
    contested: BTreeSet<A>,
    /// Whether what is contested, or by whom, became different.
    changed: bool,
}

impl<R, N, A> Default for Claims<R, N, A> {
    fn default() -> Self {
        Self {
            claimants: HashMap::new(),
            addresses: HashMap::new(),
            contested: BTreeSet::new(),
            changed: false,
        }
    }
}

impl<R: Copy + Ord, N: Clone + Ord + Hash, A: Copy + Ord + Hash> Claims<R, N, A> {
    /// Says anew which addresses someone has, and as whom; whether that is different from before.
    pub(super) fn set(&mut self, name: &N, rank: R, addresses: Vec<A>) -> bool {
        let is_same = match self.addresses.get(name) {
            Some((held, own)) => *held == rank && *own == addresses,
            None => addresses.is_empty(),
        };
        if is_same {
            return false;
        }
        if let Some((held, own)) = self.addresses.remove(name) {
            for address in own {
                set_few(&mut self.claimants, address, (held, name.clone()), false);
                self.note_contest(address);
            }
        }
        for &address in &addresses {
            set_few(&mut self.claimants, address, (rank, name.clone()), true);
            self.note_contest(address);
        }
        if !addresses.is_empty() {
            self.addresses.insert(name.clone(), (rank, addresses));
        }
        true
    }

    fn note_contest(&mut self, address: A) {
        if self.claimants.get(&address).is_some_and(|names| names.len() > 1) {
            self.contested.insert(address);
            self.changed = true;
        } else {
            self.changed |= self.contested.remove(&address);
        }
    }

    /// Whether [`Self::conflicts`] may have become different since this was asked last.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Whose the address is.
    pub(super) fn owner(&self, address: A) -> Option<&N> {
        self.claimants.get(&address)?.first().map(|(_, name)| name)
    }

    /// Address, owner, and each of the others that claim it.
    pub(super) fn conflicts(&self) -> impl Iterator<Item = (&A, &(R, N), &(R, N))> {
        self.contested.iter().flat_map(|address| {
            let names = self.claimants.get(address);
            let owner = names.and_then(|names| names.first());
            let others = names.into_iter().flatten().skip(1);
            owner.into_iter().flat_map(move |owner| others.clone().map(move |other| (address, owner, other)))
        })
    }
}
