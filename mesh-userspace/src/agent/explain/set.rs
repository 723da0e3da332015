//! The set of backends behind a frontend: what the kernel draws from, what the snapshot says, and where they differ.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use mesh_common::abi::{
    AffinityKey, BACKEND_NONE, BACKEND_STRICT, BACKEND_TABLE, MemberKey, Service as Installed, ServiceKey,
    Slot, TCP,
};
use mesh_common::affinity;

use super::Explanation;
use super::frontend::Found;
use crate::admin::explain::{Basis, ExplainBackend, Verdict};
use crate::datapath::{DatapathError, address_of, ip_of, monotonic_ns};
use crate::model::{BackendSet, Endpoint, EndpointState, Mode, Route, TrafficPolicy};

impl Explanation<'_> {
    /// Which endpoints are there, and which of them are chosen for this node.
    pub(super) fn endpoints(&mut self, found: &Found<'_>, policy: TrafficPolicy) {
        let Some((_, port)) = found.service else { return };
        let of_family = |endpoint: &&Endpoint| endpoint.address.is_ipv4() == found.v4;
        let count = |state| port.listed.iter().filter(of_family).filter(|one| one.state == state).count();
        let (ready, terminating, unready) =
            (count(EndpointState::Ready), count(EndpointState::Terminating), count(EndpointState::Unready));
        self.step("endpoints", format!("{ready} ready, {terminating} terminating, {unready} not ready"));
        if let Some(rule) = &port.route.rule {
            self.step("route", format!("weights of {rule}"));
        }
        let chosen = port.endpoints.iter().filter(of_family).count();
        let local = port.listed.iter().filter(of_family).filter(|one| one.is_on(self.node)).count();
        let zone = self.snapshot.node.zone.as_deref().unwrap_or("unknown");
        let words = if policy == TrafficPolicy::Local {
            format!("{local} of them on this node")
        } else if ready == 0 && terminating > 0 && chosen > 0 {
            "none is ready: those that still serve while they terminate are taken".to_owned()
        } else if chosen < ready {
            format!(
                "{chosen} of {ready} ready ones are chosen for this node (node {}, zone {zone})",
                self.node
            )
        } else {
            "all that are ready".to_owned()
        };
        self.step("topology", words);
    }

    /// The kernel's set, beside the snapshot's.
    pub(super) fn kernel_set(
        &mut self,
        installed: &Installed,
        found: &Found<'_>,
        policy: TrafficPolicy,
        key: &ServiceKey,
        netns: Option<u64>,
        refuses_strict: bool,
    ) -> Result<(), DatapathError> {
        let Installed { id, generation, slots, .. } = *installed;
        let words = match self.maps.basis() {
            Basis::Kernel => format!("set {id}, generation {generation}, {slots} slots"),
            Basis::Snapshot => format!("{slots} slots"),
        };
        self.step("set", words);
        let held = self.maps.slots(&found.key, installed)?;
        let missing = held.iter().filter(|slot| slot.is_none()).count();
        if missing > 0 {
            self.report.differences.push(format!("{missing} of the {slots} slots are not in the kernel"));
        }
        let route = found.service.map(|(_, port)| port.route(policy));
        self.report.backends = of_kernel(&held, installed.drawn, found);
        let by_client = held.iter().flatten().any(|slot| slot.flags & BACKEND_TABLE != 0);
        self.compare(route, found.v4);
        if self.report.verdict != Verdict::Translated {
            return Ok(());
        }
        if slots == 0 {
            self.end(Verdict::Refused, "nothing serves: ECONNREFUSED at once");
            return Ok(());
        }
        if refuses_strict && self.report.backends.iter().all(|backend| backend.strict) {
            let reason = "the client is enrolled, every backend takes mTLS only, and the agent is away";
            self.end(Verdict::Refused, reason);
            return Ok(());
        }
        if self.report.backends.iter().all(|backend| backend.address.is_none()) {
            self.end(Verdict::Refused, "the route leads nowhere: ECONNREFUSED at once");
            return Ok(());
        }
        if installed.affinity_seconds > 0 {
            if let Some(cookie) = netns {
                self.affinity(installed, &AffinityKey::netns(installed.affinity_id, cookie))?;
            } else {
                let seconds = installed.affinity_seconds;
                let words = format!(
                    "ClientIP, {seconds} s: whether there is an entry is known in the client's network namespace"
                );
                self.step("affinity", words);
            }
        } else if by_client {
            self.step("choice", "by the client: each keeps its backend (consistentHash)");
        } else if key.protocol != TCP {
            self.step("choice", "by the socket's cookie: a socket keeps its backend while that serves");
        } else {
            self.step("choice", "by weight, anew for each connection");
        }
        Ok(())
    }

    /// The entry of a client outside.
    pub(super) fn client_affinity(
        &mut self,
        installed: &Installed,
        address: Option<IpAddr>,
    ) -> Result<(), DatapathError> {
        match (installed.affinity_seconds, address) {
            (0, _) => self.step("choice", "by weight, anew for each connection"),
            (_, None) => self.step("affinity", "by the client's address: give it to see the entry"),
            (_, Some(address)) => {
                let key = AffinityKey::address(installed.affinity_id, address_of(address));
                self.affinity(installed, &key)?;
            }
        }
        Ok(())
    }

    fn affinity(&mut self, installed: &Installed, key: &AffinityKey) -> Result<(), DatapathError> {
        let seconds = installed.affinity_seconds;
        let Some(kept) = self.maps.affinity(key)? else {
            self.step("affinity", format!("ClientIP, {seconds} s: no entry yet; by weight, then kept"));
            return Ok(());
        };
        let backend = SocketAddr::new(ip_of(kept.address), kept.port);
        let now = monotonic_ns();
        let age = now.saturating_sub(kept.seen_ns) / 1_000_000_000;
        let member = MemberKey { service: installed.id, port: kept.port, pad: 0, address: kept.address };
        let words = if !affinity::holds(kept.seen_ns, now, seconds) {
            "timed out: by weight, then kept"
        } else if !self.maps.is_member(&member)? {
            "which serves no more: by weight, then kept"
        } else {
            "where it stays"
        };
        self.step("affinity", format!("ClientIP, {seconds} s: {backend}, seen {age} s ago, {words}"));
        Ok(())
    }

    fn compare(&mut self, route: Option<&Route>, v4: bool) {
        let Some(route) = route else { return };
        let set = if v4 { &route.v4 } else { &route.v6 };
        let wanted: BTreeSet<SocketAddr> =
            set.backends().iter().filter_map(|backend| Some(backend.endpoint.as_ref()?.address)).collect();
        let held: BTreeSet<SocketAddr> =
            self.report.backends.iter().filter_map(|backend| backend.address).collect();
        let list = |addresses: Vec<&SocketAddr>| {
            addresses.into_iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        };
        let (gone, new) =
            (held.difference(&wanted).collect::<Vec<_>>(), wanted.difference(&held).collect::<Vec<_>>());
        if !gone.is_empty() {
            let text = format!("in the kernel and not in the snapshot: {}", list(gone));
            self.report.differences.push(text);
        }
        if !new.is_empty() {
            let text = format!("in the snapshot and not in the kernel: {}", list(new));
            self.report.differences.push(text);
        }
    }
}

/// A slot's share of the draws, in units that a threshold is given in.
const WHOLE: u64 = 1 << 32;
/// Into so many parts a share is divided once more, so that a table's entries get theirs.
const TABLE: u128 = 1 << 24;

/// The backends of the slots with their shares, as the alias table gives them; what falls to a table is shared by its entries.
fn of_kernel(slots: &[Option<Slot>], drawn: u32, found: &Found<'_>) -> Vec<ExplainBackend> {
    let mut shares: BTreeMap<(Option<SocketAddr>, bool), u128> = BTreeMap::new();
    let of_slot = |slot: &Slot| {
        let nowhere = slot.flags & BACKEND_NONE != 0;
        let address = (!nowhere).then(|| SocketAddr::new(ip_of(slot.address), slot.port));
        (address, slot.flags & BACKEND_STRICT != 0)
    };
    let mut add = |slot: &Slot, share: u64| {
        let share = u128::from(share) * TABLE;
        if slot.flags & BACKEND_TABLE == 0 {
            *shares.entry(of_slot(slot)).or_default() += share;
            return;
        }
        let (first, length) = slot.table();
        let entries = slots.iter().skip(first as usize).take(length as usize).flatten();
        for entry in entries {
            *shares.entry(of_slot(entry)).or_default() += share / u128::from(length.max(1));
        }
    };
    for slot in slots.iter().take(drawn as usize).flatten() {
        let stays = if slot.threshold == u32::MAX { WHOLE } else { slot.threshold.into() };
        add(slot, stays);
        if let Some(Some(alias)) = slots.get(slot.alias as usize) {
            add(alias, WHOLE - stays);
        }
    }
    let total = (u128::from(drawn) * u128::from(WHOLE) * TABLE).max(1);
    let backend = |((address, strict), share): ((Option<SocketAddr>, bool), u128)| {
        let share_ppm = u32::try_from((share * 1_000_000 + total / 2) / total).unwrap_or(u32::MAX);
        let known = address.and_then(|address| known(found, address));
        held(address, share_ppm, strict, known)
    };
    shares.into_iter().map(backend).collect()
}

/// What the agent's own listeners pick from.
pub(super) fn of_snapshot(found: &Found<'_>, policy: TrafficPolicy) -> Vec<ExplainBackend> {
    let Some((_, port)) = found.service else { return Vec::new() };
    let route = port.route(policy);
    let set = if found.v4 { &route.v4 } else { &route.v6 };
    shares(set).into_iter().map(|(endpoint, share)| backend(endpoint, share)).collect()
}

/// The endpoints of a set with their shares in millionths, each once; `None` for what has nowhere to go.
pub(super) fn shares(set: &BackendSet) -> Vec<(Option<&Endpoint>, u32)> {
    let total: u128 = set.backends().iter().map(|backend| u128::from(backend.weight)).sum();
    let mut shares: BTreeMap<Option<SocketAddr>, (Option<&Endpoint>, u128)> = BTreeMap::new();
    for one in set.backends() {
        let endpoint = one.endpoint.as_ref();
        let sum = shares.entry(endpoint.map(|endpoint| endpoint.address)).or_insert((endpoint, 0));
        sum.1 += u128::from(one.weight);
    }
    let millionths =
        |weight: u128| u32::try_from((weight * 1_000_000 + total / 2) / total.max(1)).unwrap_or(u32::MAX);
    shares.into_values().map(|(endpoint, weight)| (endpoint, millionths(weight))).collect()
}

/// An endpoint with its share.
pub(super) fn backend(endpoint: Option<&Endpoint>, share_ppm: u32) -> ExplainBackend {
    let strict = endpoint.is_some_and(|endpoint| endpoint.enrolled && endpoint.mode == Mode::Strict);
    held(endpoint.map(|endpoint| endpoint.address), share_ppm, strict, endpoint)
}

/// What the kernel holds, with what the snapshot knows of it.
fn held(
    address: Option<SocketAddr>,
    share_ppm: u32,
    strict: bool,
    endpoint: Option<&Endpoint>,
) -> ExplainBackend {
    ExplainBackend {
        address,
        share_ppm,
        strict,
        workload: endpoint.and_then(|endpoint| endpoint.workload.as_ref()).map(ToString::to_string),
        node: endpoint.and_then(|endpoint| endpoint.node.as_ref()).map(ToString::to_string),
        zone: endpoint.and_then(|endpoint| endpoint.zone.as_ref()).map(ToString::to_string),
        state: endpoint.map(|endpoint| endpoint.state),
    }
}

/// The endpoint of that address, be it a route's.
fn known<'a>(found: &Found<'a>, address: SocketAddr) -> Option<&'a Endpoint> {
    let (_, port) = found.service?;
    let routed = port.route.targets.iter().flat_map(|target| target.endpoints.iter());
    port.listed.iter().chain(routed).find(|endpoint| endpoint.address == address)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{AliasTable, Protocol, Service, ServiceName, ServicePort};

    fn length(count: usize) -> u32 {
        u32::try_from(count).unwrap()
    }

    fn slots(weights: &[u64]) -> Vec<Option<Slot>> {
        let table = AliasTable::new(weights);
        let slot = |(draw, last): (&crate::model::Draw, u8)| Slot {
            threshold: draw.threshold,
            alias: draw.alias,
            address: mesh_common::abi::mapped([10, 0, 0, last]),
            port: 80,
            flags: if last == 3 { BACKEND_NONE } else { 0 },
            pad: 0,
            connections: 0,
        };
        table.slots().iter().zip(1..).map(|pair| Some(slot(pair))).collect()
    }

    #[test]
    fn shares_are_what_the_alias_table_draws() {
        let key = ServiceKey { address: [0; 16], port: 80, protocol: TCP, scope: 0 };
        let found = |service| Found { key, bits: 0, installed: None, service, v4: true };
        for (weights, expected) in [
            (&[1, 1][..], &[500_000, 500_000][..]),
            (&[90, 10], &[900_000, 100_000]),
            // The third has nowhere to go, which is listed first.
            (&[70, 20, 10], &[100_000, 700_000, 200_000]),
        ] {
            let backends = of_kernel(&slots(weights), length(weights.len()), &found(None));
            let shares: Vec<u32> = backends.iter().map(|backend| backend.share_ppm).collect();
            assert_eq!(shares, expected, "{weights:?}");
            assert_eq!(backends[0].address.is_none(), weights.len() == 3);
        }
        // Half of what is drawn falls to a table, whose entries are of the other two.
        let mut with_table = slots(&[1, 1]);
        with_table[1] = with_table[1].map(|slot| Slot {
            flags: BACKEND_TABLE,
            address: Slot::table_address(2, 4),
            ..slot
        });
        with_table.extend([4, 5, 5, 5].map(|last| {
            with_table[0].map(|slot| Slot { address: mesh_common::abi::mapped([10, 0, 0, last]), ..slot })
        }));
        let backends = of_kernel(&with_table, 2, &found(None));
        let shares: Vec<u32> = backends.iter().map(|backend| backend.share_ppm).collect();
        assert_eq!(shares, [500_000, 125_000, 375_000]);
        let name = ServiceName::new("shop", "web");
        let mut endpoint = Endpoint::at(([10, 0, 0, 1], 80).into());
        endpoint.zone = Some("eu-1".into());
        let port = ServicePort::plain(&name, 80, Protocol::Tcp, [endpoint].into());
        let service = Arc::new(Service::internal(name, "host".into(), Vec::new(), vec![port]));
        let backends = of_kernel(&slots(&[1, 1]), 2, &found(Some((&service, &service.ports[0]))));
        let zones: Vec<_> = backends.iter().map(|backend| backend.zone.as_deref()).collect();
        assert_eq!(zones, [Some("eu-1"), None], "an endpoint that the snapshot does not know has no zone");
    }
}
