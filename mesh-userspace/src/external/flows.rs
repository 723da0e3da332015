//! The table of flows of datagrams: which there are, which of them give way, and what each is known by.
//!
//! Who sends a datagram may have made its source address up. So nothing is owed to a flow until both sides have spoken for
//! a while: where there is no room, the oldest that nobody has answered gives way to a new one, then the oldest that is no
//! stream (conntrack's early drop).
//!
//! Invariants: no more than the limit; two flows to one endpoint never show it the same client, for the answers to both
//! would go one way (conntrack then gives one of them another port as well).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_common::abi::AffinityKey;

/// A client's address and what it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FlowKey {
    pub(super) client: SocketAddr,
    pub(super) asked: SocketAddr,
}

/// How far a flow has come; those of the first kinds give way, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// The client alone has spoken.
    Unanswered,
    /// The endpoint has spoken too.
    Answered,
    /// They have spoken for a while.
    Stream,
}

/// See the module. `F` is what a flow is.
pub(super) struct Flows<F> {
    limit: usize,
    held: HashMap<FlowKey, Held<F>>,
    /// All but streams, the first to give way first: by standing, then by age.
    yielding: BTreeMap<(Standing, u64), FlowKey>,
    /// The clients that endpoints are shown.
    shown: HashSet<(SocketAddr, SocketAddr)>,
    /// Where clients with affinity are, of whom no endpoint has proved yet that they are there.
    drawn: HashMap<AffinityKey, Drawn>,
    next: u64,
}

struct Held<F> {
    flow: Arc<F>,
    number: u64,
    standing: Standing,
}

struct Drawn {
    endpoint: SocketAddr,
    flows: usize,
}

impl<F> Flows<F> {
    /// A table for this many.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            held: HashMap::new(),
            yielding: BTreeMap::new(),
            shown: HashSet::new(),
            drawn: HashMap::new(),
            next: 0,
        }
    }

    /// The flow of a key.
    pub(super) fn get(&self, key: &FlowKey) -> Option<&Arc<F>> {
        self.held.get(key).map(|held| &held.flow)
    }

    /// Whether one more can be had, if need be in place of another.
    pub(super) fn has_room(&self) -> bool {
        self.held.len() < self.limit || !self.yielding.is_empty()
    }

    /// Takes in a flow that nobody has answered, and returns the one that gives way to it.
    pub(super) fn insert(&mut self, key: FlowKey, flow: Arc<F>) -> Option<Arc<F>> {
        let full = self.held.len() >= self.limit;
        let first = full.then(|| self.yielding.pop_first()).flatten();
        let gone = first.and_then(|(_, key)| self.held.remove(&key));
        let (number, standing) = (self.next, Standing::Unanswered);
        self.next += 1;
        self.held.insert(key, Held { flow, number, standing });
        self.yielding.insert((standing, number), key);
        gone.map(|held| held.flow)
    }

    /// Notes how far a flow has come. One that has given way is not in the table any more.
    pub(super) fn stand(&mut self, key: &FlowKey, flow: &Arc<F>, standing: Standing) {
        let held = self.held.get_mut(key).filter(|held| Arc::ptr_eq(&held.flow, flow));
        let Some(held) = held else { return };
        self.yielding.remove(&(held.standing, held.number));
        held.standing = standing;
        if standing != Standing::Stream {
            self.yielding.insert((standing, held.number), *key);
        }
    }

    /// Takes a flow out, if it is there still.
    pub(super) fn remove(&mut self, key: &FlowKey, flow: &Arc<F>) {
        if self.held.get(key).is_some_and(|held| Arc::ptr_eq(&held.flow, flow))
            && let Some(held) = self.held.remove(key)
        {
            self.yielding.remove(&(held.standing, held.number));
        }
    }

    /// The address under which an endpoint is to see a client: its own, unless another of its flows has that; then with
    /// another port, `source`'s if that is free. `None` where there is none.
    pub(super) fn show(
        &mut self,
        client: SocketAddr,
        endpoint: SocketAddr,
        source: SocketAddr,
    ) -> Option<SocketAddr> {
        let ports = [client.port()].into_iter().chain(source.port()..=u16::MAX).chain(1024..source.port());
        let mut shown = ports.map(|port| SocketAddr::new(client.ip(), port));
        shown.find(|shown| self.shown.insert((*shown, endpoint)))
    }

    /// Ends what [`Self::show`] began.
    pub(super) fn hide(&mut self, shown: SocketAddr, endpoint: SocketAddr) {
        self.shown.remove(&(shown, endpoint));
    }

    /// Where a client with affinity is, as far as flows that await their first answer say.
    pub(super) fn drawn(&self, client: &AffinityKey) -> Option<SocketAddr> {
        self.drawn.get(client).map(|drawn| drawn.endpoint)
    }

    /// A flow of such a client awaits its first answer.
    pub(super) fn draw(&mut self, client: AffinityKey, endpoint: SocketAddr) {
        let drawn = self.drawn.entry(client).or_insert(Drawn { endpoint, flows: 0 });
        drawn.endpoint = endpoint;
        drawn.flows += 1;
    }

    /// It awaits it no more.
    pub(super) fn undraw(&mut self, client: &AffinityKey) {
        if let Some(drawn) = self.drawn.get_mut(client) {
            drawn.flows -= 1;
            if drawn.flows == 0 {
                self.drawn.remove(client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> FlowKey {
        FlowKey { client: ([192, 0, 2, 1], port).into(), asked: ([203, 0, 113, 1], 53).into() }
    }

    fn table(limit: usize) -> (Flows<u16>, impl Fn(&mut Flows<u16>, u16) -> Option<u16>) {
        let enter = |flows: &mut Flows<u16>, port| flows.insert(key(port), Arc::new(port)).map(|gone| *gone);
        (Flows::new(limit), enter)
    }

    fn stand(flows: &mut Flows<u16>, port: u16, standing: Standing) {
        let flow = Arc::clone(flows.get(&key(port)).unwrap());
        flows.stand(&key(port), &flow, standing);
    }

    #[test]
    fn those_without_an_answer_give_way_first_and_the_oldest_of_them() {
        let (mut flows, enter) = table(3);
        for port in [1, 2, 3] {
            assert_eq!(enter(&mut flows, port), None);
        }
        stand(&mut flows, 1, Standing::Answered);
        assert_eq!(enter(&mut flows, 4), Some(2));
        assert_eq!(enter(&mut flows, 5), Some(3));
        stand(&mut flows, 4, Standing::Answered);
        stand(&mut flows, 5, Standing::Stream);
        // None without an answer is left.
        assert_eq!(enter(&mut flows, 6), Some(1));
        assert_eq!(enter(&mut flows, 7), Some(6));
        stand(&mut flows, 4, Standing::Stream);
        stand(&mut flows, 7, Standing::Stream);
        // Nothing gives way any more.
        assert!(!flows.has_room());
        let flow = Arc::clone(flows.get(&key(5)).unwrap());
        flows.remove(&key(5), &flow);
        assert!(flows.has_room());
        assert_eq!(enter(&mut flows, 8), None);
    }

    #[test]
    fn a_flow_that_gave_way_does_not_touch_the_one_that_came_after_it() {
        let (mut flows, enter) = table(1);
        assert_eq!(enter(&mut flows, 1), None);
        let gone = Arc::clone(flows.get(&key(1)).unwrap());
        assert_eq!(enter(&mut flows, 2), Some(1));
        assert_eq!(enter(&mut flows, 1), Some(2));
        flows.stand(&key(1), &gone, Standing::Stream);
        flows.remove(&key(1), &gone);
        assert!(flows.has_room() && flows.get(&key(1)).is_some());
        assert_eq!(enter(&mut flows, 3), Some(1));
    }

    #[test]
    fn an_endpoint_never_sees_one_client_twice() {
        let (mut flows, _) = table(1);
        let at = |port| SocketAddr::from(([192, 0, 2, 1], port));
        let (endpoint, other) = (([10, 0, 0, 1], 53).into(), ([10, 0, 0, 2], 53).into());
        assert_eq!(flows.show(at(5000), endpoint, at(40_000)), Some(at(5000)));
        assert_eq!(flows.show(at(5000), other, at(40_001)), Some(at(5000)));
        assert_eq!(flows.show(at(5000), endpoint, at(40_002)), Some(at(40_002)));
        assert_eq!(flows.show(at(40_002), endpoint, at(40_002)), Some(at(40_003)));
        flows.hide(at(5000), endpoint);
        assert_eq!(flows.show(at(5000), endpoint, at(40_004)), Some(at(5000)));
    }

    #[test]
    fn a_client_stays_while_its_first_answer_is_awaited() {
        let (mut flows, _) = table(1);
        let client = AffinityKey::address(1, [1; 16]);
        let endpoint = ([10, 0, 0, 1], 53).into();
        for _ in 0..2 {
            flows.draw(client, endpoint);
        }
        flows.undraw(&client);
        assert_eq!(flows.drawn(&client), Some(endpoint));
        flows.undraw(&client);
        assert_eq!(flows.drawn(&client), None);
    }
}
