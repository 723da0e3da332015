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
use super::stored::Told;
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
    /// There is something to go on: a full listing, the word that the cluster does not have it, or what was kept on disk.
    settled: bool,
    /// It was listed in full once by this agent, or the cluster does not have it.
    listed: bool,
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

    /// Whether all of it comes from the API server itself.
    pub(super) fn is_listed(&self) -> bool {
        self.watches.iter().all(|watch| watch.listed)
    }

    /// Every object in force, with the number of its watch.
    pub(super) fn objects(&self) -> Vec<Told> {
        let numbered = self.watches.iter().enumerate();
        let known =
            numbered.flat_map(|(number, watch)| watch.known.values().map(move |known| (number, known)));
        known.filter_map(|(number, known)| Some((number, Arc::clone(known.object.as_ref()?)))).collect()
    }

    /// Goes on what was kept on disk for each kind that was not listed yet. What a listing that has begun told already goes
    /// before it; when that is complete, it replaces the rest.
    pub(super) fn restore(&mut self, stored: Vec<Told>) {
        for (number, object) in stored {
            let Some(watch) = self.watches.get_mut(number).filter(|watch| !watch.settled) else { continue };
            let reference = object.reference();
            let round = watch.round.wrapping_sub(1);
            let wrong = watch.rejected.get_mut(&reference);
            match (watch.known.get_mut(&reference), wrong) {
                (None, _) => {
                    watch.known.insert(object.reference(), Known { round, object: Some(object) });
                }
                // Its last good state.
                (Some(known), Some(wrong)) => {
                    (known.object, wrong.is_stand_in) = (Some(object), false);
                    self.problems_changed = true;
                }
                (Some(_), None) => continue,
            }
            self.touched.insert(reference);
        }
        for number in 0..self.watches.len() {
            let watch = &mut self.watches[number];
            if !std::mem::replace(&mut watch.settled, true) {
                self.touched.extend(watch.pending.drain(..));
                self.count(number);
            }
        }
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

    /// Forgets what waits to be told: nobody listens yet.
    pub(super) fn tell_nothing(&mut self) {
        self.touched = HashSet::new();
    }

    /// Everything waits to be told, to somebody who knows nothing.
    pub(super) fn tell_all(&mut self) {
        self.touched = self.watches.iter().flat_map(|watch| watch.known.keys().cloned()).collect();
        self.problems_changed = true;
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
                if let Some(old) = old {
                    old.round = round;
                    let is_changed = old.object.as_ref() != Some(&object);
                    if is_changed {
                        old.object = Some(object);
                    }
                    is_changed
                } else {
                    // The names that the object has itself, so that they are not kept twice.
                    watch.known.insert(object.reference(), Known { round, object: Some(object) });
                    true
                }
            }
            (Err(Rejected { mistakes, stand_in }), old) => {
                self.problems_changed = true;
                // Nothing is known of what was in force before this agent: see `resources::stand_in`.
                let stand_in = stand_in.filter(|_| !watch.listed && guards(&reference.kind));
                let before = watch.rejected.get(&reference);
                let was_stand_in = before.is_some_and(|before| before.is_stand_in);
                let (is_changed, is_stand_in) = if let Some(old) = old {
                    old.round = round;
                    // Kept on disk it is not told from a good state.
                    let is_stand_in = stand_in.is_some() && old.object == stand_in;
                    (false, was_stand_in || is_stand_in)
                } else {
                    let is_stand_in = stand_in.is_some();
                    watch.known.insert(reference.clone(), Known { round, object: stand_in });
                    (is_stand_in, is_stand_in)
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
        (watch.listing, watch.settled, watch.listed) = (false, true, true);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::{Kind, decode_json};

    const HERE: usize = 2;
    const ELSEWHERE: usize = 3;

    fn collector() -> Collector {
        let origin = Origin::ApiServer("https://api".into());
        let mut collector = Collector::new(origin, ApiState::new("https://api".to_owned()));
        for number in 0..WATCHED.len() {
            collector.note(Message::Begin(number));
            collector.note(Message::Complete(number));
        }
        assert!(collector.is_settled());
        collector
    }

    fn name(name: &str) -> ObjectRef {
        ObjectRef::new(Kind::Pod, "shop", name)
    }

    fn pod(number: usize, pod: &str, address: &str) -> Message {
        let text = format!(
            r#"{{"metadata":{{"name":"{pod}","namespace":"shop"}},"status":{{"podIP":"{address}"}}}}"#
        );
        Message::Object(number, name(pod), decode_json("v1", &Kind::Pod, &text))
    }

    /// `+NAME` and `-NAME`, sorted.
    fn told(collector: &mut Collector) -> Vec<String> {
        let update = collector.take(SystemTime::now());
        let text = |change: &Change| match change {
            Change::Upsert(object) => format!("+{}", object.reference().name),
            Change::Delete(reference) => format!("-{}", reference.name),
        };
        let mut all: Vec<String> = update.changes.iter().map(text).collect();
        all.sort();
        all
    }

    #[test]
    fn the_watches_are_those_of_pods() {
        assert_eq!([WATCHED[HERE].label, WATCHED[ELSEWHERE].label], ["Pod", "Pod (other nodes)"]);
    }

    #[test]
    fn a_listing_counts_once_it_is_complete() {
        let mut all = collector();
        all.note(pod(HERE, "a", "10.0.0.1"));
        all.note(pod(HERE, "b", "10.0.0.2"));
        assert_eq!(told(&mut all), ["+a", "+b"]);
        all.note(pod(HERE, "a", "10.0.0.1"));
        assert_eq!(all.waiting(), (0, false), "nothing is different");

        all.note(Message::Begin(HERE));
        all.note(pod(HERE, "c", "10.0.0.3"));
        assert_eq!(told(&mut all), [""; 0]);
        // It broke off, and begins anew.
        all.note(Message::Begin(HERE));
        all.note(pod(HERE, "a", "10.0.0.1"));
        assert_eq!(told(&mut all), [""; 0]);
        all.note(Message::Complete(HERE));
        assert_eq!(told(&mut all), ["-b", "-c"], "the second listing named neither");
    }

    #[test]
    fn a_pod_that_moves_between_two_watches_is_never_lost() {
        let mut all = collector();
        all.note(pod(ELSEWHERE, "a", "10.0.0.1"));
        assert_eq!(told(&mut all), ["+a"]);
        // Bound to this node: the two watches tell it in any order.
        all.note(pod(HERE, "a", "10.0.0.2"));
        all.note(Message::Gone(ELSEWHERE, name("a")));
        assert_eq!(told(&mut all), ["+a"]);
        all.note(pod(ELSEWHERE, "a", "10.0.0.3"));
        let update = all.take(SystemTime::now());
        let [Change::Upsert(object)] = &update.changes[..] else { panic!("{update:?}") };
        let Message::Object(_, _, Ok(here)) = pod(HERE, "a", "10.0.0.2") else { panic!() };
        assert_eq!(*object, here, "this node's own watch has the last word");
        all.note(Message::Gone(HERE, name("a")));
        assert_eq!(told(&mut all), ["+a"]);
        all.note(Message::Gone(ELSEWHERE, name("a")));
        assert_eq!(told(&mut all), ["-a"]);
    }

    #[test]
    fn what_was_kept_is_in_force_until_a_listing_is_complete() {
        let object = |name: &str, address: &str| {
            let Message::Object(_, _, Ok(object)) = pod(HERE, name, address) else { panic!() };
            object
        };
        let mut all = Collector::new(Origin::ApiServer("a".into()), ApiState::new("a".to_owned()));
        // Of this kind the API server has told a part, another it has told in full.
        all.note(Message::Begin(HERE));
        all.note(pod(HERE, "a", "10.0.0.1"));
        all.note(pod(HERE, "bad", "10.0.0.999"));
        all.note(Message::Begin(ELSEWHERE));
        all.note(Message::Complete(ELSEWHERE));
        let kept = |number, name: &str| (number, object(name, "10.0.0.9"));
        all.restore(vec![
            kept(HERE, "a"),
            kept(HERE, "b"),
            kept(HERE, "bad"),
            kept(ELSEWHERE, "c"),
            kept(99, "d"),
        ]);
        assert!(all.is_settled() && !all.is_listed());
        let update = all.take(SystemTime::now());
        let mut names: Vec<_> = update.changes.iter().map(|change| format!("{change:?}")).collect();
        names.sort();
        assert_eq!(names.len(), 3, "{names:?}");
        assert!(names.iter().any(|name| name.contains("10.0.0.1]")), "the API server's word: {names:?}");
        assert_eq!(update.problems.len(), 1);
        let mut held: Vec<String> =
            all.objects().iter().map(|(_, object)| object.reference().to_string()).collect();
        held.sort();
        assert_eq!(held, ["Pod shop/a", "Pod shop/b", "Pod shop/bad"]);
        // It breaks off, and is begun anew.
        all.note(Message::Begin(HERE));
        all.note(pod(HERE, "b", "10.0.0.9"));
        all.note(pod(HERE, "bad", "10.0.0.999"));
        assert_eq!(told(&mut all), [""; 0]);
        all.note(Message::Complete(HERE));
        assert_eq!(told(&mut all), ["-a"]);
    }

    #[test]
    fn a_stand_in_that_was_kept_is_one_still() {
        const POLICIES: usize = 7;
        assert_eq!(WATCHED[POLICIES].label, "AuthorizationPolicy");
        let kind = Kind::AuthorizationPolicy;
        let reference = ObjectRef::new(kind.clone(), "shop", "p");
        let wrong = || {
            let text = r#"{"metadata":{"name":"p","namespace":"shop"},"spec":{"rules":7}}"#;
            Message::Object(POLICIES, reference.clone(), decode_json("security.istio.io/v1", &kind, text))
        };
        let Message::Object(_, _, Err(Rejected { stand_in: Some(stand_in), .. })) = wrong() else { panic!() };
        let mut all = Collector::new(Origin::ApiServer("a".into()), ApiState::new("a".to_owned()));
        all.restore(vec![(POLICIES, stand_in)]);
        assert_eq!(told(&mut all), ["+p"]);
        all.note(Message::Begin(POLICIES));
        all.note(wrong());
        all.note(Message::Complete(POLICIES));
        let update = all.take(SystemTime::now());
        assert!(update.changes.is_empty(), "{update:?}");
        assert!(update.problems[0].reason.contains("nothing is allowed"), "{:?}", update.problems);
    }

    #[test]
    fn what_cannot_be_read_keeps_its_last_good_state_until_it_is_gone() {
        let mut all = collector();
        all.note(pod(HERE, "a", "10.0.0.1"));
        assert_eq!(told(&mut all), ["+a"]);
        all.note(pod(HERE, "a", "10.0.0.999"));
        let update = all.take(SystemTime::now());
        assert!(update.changes.is_empty(), "{update:?}");
        assert_eq!(update.problems.len(), 1);
        // Listed anew, and still so.
        all.note(Message::Begin(HERE));
        all.note(pod(HERE, "a", "10.0.0.999"));
        all.note(Message::Complete(HERE));
        let again = all.take(SystemTime::now());
        assert!(again.changes.is_empty(), "{again:?}");
        assert_eq!(again.problems, update.problems, "known since then");
        all.note(Message::Gone(HERE, name("a")));
        let gone = all.take(SystemTime::now());
        assert_eq!((gone.changes.len(), gone.problems.len()), (1, 0));
    }
}
