//! What all watches told so far, and what of it is new to the translator.
//!
//! A listing is carried out as a whole, when it is complete: until then what was in force before it stays, also what it will
//! turn out not to name. Of an object that two watches know (a pod that moves from one node to another) the first one's word
//! counts.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use super::kinds::WATCHED;
use super::state::ApiState;
use super::watch::Message;
use crate::resources::{Change, Mistake, Object, ObjectRef, Origin, Problem, Rejected, guards};
use crate::source::update::{Update, instead};

/// See the module.
pub(super) struct Collector {
    origin: Origin,
    state: Arc<ApiState>,
    watches: Vec<Watch>,
    /// Objects that may be other ones than the translator knows.
    touched: HashSet<ObjectRef>,
    problems: Vec<Problem>,
    problems_changed: bool,
}

#[derive(Default)]
struct Watch {
    /// It was listed in full once, or the cluster does not have it.
    settled: bool,
    /// Counts the listings.
    round: u32,
    listing: bool,
    known: HashMap<ObjectRef, Known>,
    /// What the listing that goes on has changed.
    pending: Vec<ObjectRef>,
    /// What cannot be read.
    rejected: BTreeMap<ObjectRef, Wrong>,
}

struct Known {
    round: u32,
    object: Option<Arc<Object>>,
}

struct Wrong {
    mistakes: Vec<Mistake>,
    is_stand_in: bool,
}

impl Collector {
    pub(super) fn new(origin: Origin, state: Arc<ApiState>) -> Self {
        Self {
            origin,
            state,
            watches: WATCHED.iter().map(|_| Watch::default()).collect(),
            touched: HashSet::new(),
            problems: Vec::new(),
            problems_changed: false,
        }
    }

    /// Whether every kind is known, or known not to be there.
    pub(super) fn is_settled(&self) -> bool {
        self.watches.iter().all(|watch| watch.settled)
    }

    /// Changes that wait to be told, and whether there is anything to tell.
    pub(super) fn waiting(&self) -> (usize, bool) {
        (self.touched.len(), self.problems_changed || !self.touched.is_empty())
    }

    /// Takes note of what a watch told.
    pub(super) fn note(&mut self, message: Message) {
        match message {
            Message::Begin(number) => {
                let watch = &mut self.watches[number];
                watch.round = watch.round.wrapping_add(1);
                watch.listing = true;
            }
            Message::Object(number, reference, outcome) => self.object(number, reference, outcome),
            Message::Gone(number, reference) => {
                self.problems_changed |= self.watches[number].remove(&reference);
                self.touch(number, reference);
                self.count(number);
            }
            Message::Complete(number) => self.complete(number),
            Message::Absent(number) => {
                let watch = &mut self.watches[number];
                watch.round = watch.round.wrapping_add(1);
                self.complete(number);
            }
        }
    }

    /// What is new since this was asked last.
    pub(super) fn take(&mut self, now: SystemTime) -> Update {
        let touched = std::mem::take(&mut self.touched);
        let change = |reference: ObjectRef| match self.object_of(&reference) {
            Some(object) => Change::Upsert(object),
            None => Change::Delete(reference),
        };
        let changes = touched.into_iter().map(change).collect();
        if std::mem::take(&mut self.problems_changed) {
            self.problems = self.collect_problems(now);
        }
        Update { changes, problems: self.problems.clone(), ignored: 0 }
    }

    fn object(&mut self, number: usize, reference: ObjectRef, outcome: Result<Arc<Object>, Rejected>) {
        let watch = &mut self.watches[number];
        let round = watch.round;
        let old = watch.known.get_mut(&reference);
        let is_changed = match (outcome, old) {
            (Ok(object), old) => {
                self.problems_changed |= watch.rejected.remove(&reference).is_some();
                match old {
                    Some(old) => {
                        old.round = round;
                        let is_changed = old.object.as_ref() != Some(&object);
                        if is_changed {
                            old.object = Some(object);
                        }
                        is_changed
                    }
                    None => {
                        watch.known.insert(reference.clone(), Known { round, object: Some(object) });
                        true
                    }
                }
            }
            (Err(Rejected { mistakes, stand_in }), old) => {
                self.problems_changed = true;
                // Nothing is known of what was in force before this agent: see `resources::stand_in`.
                let stand_in = stand_in.filter(|_| !watch.settled && guards(&reference.kind));
                let before = watch.rejected.get(&reference);
                let was_stand_in = before.is_some_and(|before| before.is_stand_in);
                let (is_changed, is_stand_in) = match old {
                    Some(old) => {
                        old.round = round;
                        (false, was_stand_in)
                    }
                    None => {
                        let is_stand_in = stand_in.is_some();
                        watch.known.insert(reference.clone(), Known { round, object: stand_in });
                        (is_stand_in, is_stand_in)
                    }
                };
                watch.rejected.insert(reference.clone(), Wrong { mistakes, is_stand_in });
                is_changed
            }
        };
        if is_changed {
            self.touch(number, reference);
        }
        if !self.watches[number].listing {
            self.count(number);
        }
    }

    /// What the listing did not name is gone.
    fn complete(&mut self, number: usize) {
        let watch = &mut self.watches[number];
        let round = watch.round;
        let gone: Vec<ObjectRef> =
            watch.known.extract_if(|_, known| known.round != round).map(|(reference, _)| reference).collect();
        for reference in &gone {
            self.problems_changed |= watch.rejected.remove(reference).is_some();
        }
        (watch.listing, watch.settled) = (false, true);
        self.touched.extend(watch.pending.drain(..).chain(gone));
        self.count(number);
    }

    fn touch(&mut self, number: usize, reference: ObjectRef) {
        let watch = &mut self.watches[number];
        if watch.listing {
            watch.pending.push(reference);
        } else {
            self.touched.insert(reference);
        }
    }

    fn count(&self, number: usize) {
        self.state.count(number, self.watches[number].known.len());
    }

    fn object_of(&self, reference: &ObjectRef) -> Option<Arc<Object>> {
        let of_kind = self.watches.iter().zip(&WATCHED).filter(|(_, of)| of.kind == reference.kind.as_str());
        let mut all = of_kind.filter_map(|(watch, _)| watch.known.get(reference)?.object.as_ref());
        all.next().map(Arc::clone)
    }

    fn collect_problems(&self, now: SystemTime) -> Vec<Problem> {
        let mut problems = Vec::new();
        for watch in &self.watches {
            for (reference, wrong) in &watch.rejected {
                let is_known = watch.known.get(reference).is_some_and(|known| known.object.is_some());
                let instead = instead(reference, wrong.is_stand_in, is_known);
                for Mistake { code, field, reason, .. } in &wrong.mistakes {
                    let mut problem = Problem {
                        code: *code,
                        origin: self.origin.clone(),
                        line: None,
                        object: Some(reference.clone()),
                        field: field.clone(),
                        reason: format!("{reason}{instead}"),
                        since: now,
                    };
                    if let Some(old) = self.problems.iter().find(|old| old.is_same(&problem)) {
                        problem.since = old.since;
                    }
                    problems.push(problem);
                }
            }
        }
        problems
    }
}

impl Watch {
    /// Forgets an object; whether something was wrong with it.
    fn remove(&mut self, reference: &ObjectRef) -> bool {
        self.known.remove(reference);
        self.rejected.remove(reference).is_some()
    }
}
