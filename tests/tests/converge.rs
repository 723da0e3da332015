//! Whatever sequence of snapshots the agent has seen, and wherever it was killed, the kernel maps hold what the last
//! snapshot says: each frontend with the shares of its backends, its affinity, its source ranges and members, and not one
//! entry more.

#![expect(
    clippy::cast_precision_loss,
    clippy::unwrap_used,
    reason = "a test: shares are small, and it fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{HashMap as KernelMap, Map, MapData};
use ipnet::IpNet;
use mesh_common::abi::{
    ADDRESS_CLUSTER, ADDRESS_EXTERNAL, BACKEND_NONE, Member, MemberKey, RangeKey, SERVICE_MEMBERS,
    SERVICE_RANGES, Service as Held, ServiceKey, Slot, SlotKey,
};
use mesh_common::names::map;
use mesh_tests::Lab;
use mesh_userspace::datapath::{Datapath, DatapathConfig, Lifeline, address_of, ip_of};
use mesh_userspace::model::{
    Endpoint, Protocol, Route, RouteTarget, Service, ServiceName, ServicePort, Snapshot, TrafficPolicy,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// One service.
#[derive(Clone, Debug)]
struct Shape {
    /// Targets of (weight, number of endpoints).
    targets: Vec<(u32, u8)>,
    node_port: bool,
    /// Last byte of an external address that other services may claim as well.
    external: Option<u8>,
    /// Source range of the load balancer's address, as a prefix length.
    range: Option<u8>,
    affinity: Option<u32>,
    /// `internalTrafficPolicy: Local` with so many endpoints on this node.
    local: Option<u8>,
}

/// Share of each backend; `None` is the share that is refused.
type Shares = BTreeMap<Option<SocketAddr>, f64>;

/// What is said of one frontend: shares, seconds of affinity, source ranges, members.
#[derive(Clone, Debug, Default, PartialEq)]
struct Front {
    shares: Shares,
    affinity: u32,
    ranges: BTreeSet<IpNet>,
    members: BTreeSet<SocketAddr>,
}

type Fronts = BTreeMap<(IpAddr, u16, u8, u8), Front>;

fn endpoint(number: u8, target: u8, host: u8) -> Endpoint {
    let endpoint = Endpoint::at(SocketAddr::from(([10, number, target, host], 8080)));
    Endpoint { enrolled: host.is_multiple_of(2), ..endpoint }
}

fn service(number: u8, shape: &Shape) -> Service {
    let name = ServiceName::new("default", format!("s{number}"));
    let target = |weight, target, count| {
        let endpoints = (0..count).map(|host| endpoint(number, target, host)).collect();
        RouteTarget::whole(name.clone(), 80, weight, endpoints)
    };
    let targets = shape.targets.iter().zip(0..).map(|(&(weight, count), index)| target(weight, index, count));
    let mut port = ServicePort {
        route: Route::new(None, targets.collect()),
        local: shape.local.map(|count| Route::new(None, vec![target(1, 200, count)])),
        ..ServicePort::plain(&name, 80, protocol(number), Arc::new([]))
    };
    port.node_port = shape.node_port.then(|| 30_000 + u16::from(number));
    let host = name.to_string().into();
    let mut service = Service::internal(name, host, vec![vip(number)], vec![port]);
    service.affinity_seconds = shape.affinity;
    service.internal = if shape.local.is_some() { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
    service.external.addresses.extend(shape.external.map(external));
    if let Some(prefix) = shape.range {
        service.external.load_balancer.push(balancer(number));
        service.external.source_ranges.push(range(number, prefix));
    }
    service
}

const fn protocol(number: u8) -> Protocol {
    if number.is_multiple_of(2) { Protocol::Tcp } else { Protocol::Udp }
}

fn vip(number: u8) -> IpAddr {
    IpAddr::from([10, 96, 0, number])
}

fn external(last: u8) -> IpAddr {
    IpAddr::from([198, 51, 100, last])
}

fn balancer(number: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, number])
}

fn range(number: u8, prefix: u8) -> IpNet {
    IpNet::new(IpAddr::from([172, number, 0, 0]), prefix).unwrap().trunc()
}

/// The snapshot after `before` in which these services are as given (`None`: gone).
fn next(before: &Snapshot, changes: &BTreeMap<u8, Option<Shape>>) -> Snapshot {
    let mut snapshot = before.clone();
    snapshot.generation += 1;
    for (number, shape) in changes {
        let name = ServiceName::new("default", format!("s{number}"));
        match shape {
            Some(shape) => drop(snapshot.services.insert(name, Arc::new(service(*number, shape)))),
            None => drop(snapshot.services.remove(&name)),
        }
    }
    snapshot.frontends.clear();
    for service in snapshot.services.values() {
        for frontend in service.frontends() {
            snapshot.frontends.entry(frontend).or_insert_with(|| Arc::clone(service));
        }
    }
    snapshot
}

/// What the model says, by a way of its own: each target's weight spread over its endpoints.
fn shares(route: &Route) -> Shares {
    let targets: Vec<_> = route.targets.iter().filter(|target| target.weight > 0).collect();
    let total: u32 = targets.iter().map(|target| target.weight).sum();
    let mut shares = Shares::new();
    if targets.iter().all(|target| target.endpoints.is_empty()) {
        return shares;
    }
    for target in targets {
        let share = f64::from(target.weight) / f64::from(total);
        if target.endpoints.is_empty() {
            *shares.entry(None).or_default() += share;
        }
        for endpoint in target.endpoints.iter() {
            *shares.entry(Some(endpoint.address)).or_default() += share / target.endpoints.len() as f64;
        }
    }
    shares
}

/// What each frontend should lead to, told from the shapes.
fn wanted(shapes: &BTreeMap<u8, Shape>) -> Fronts {
    let mut all = Fronts::new();
    for (number, shape) in shapes {
        let service = service(*number, shape);
        let port = &service.ports[0];
        let mut add = |address: IpAddr, number: u16, scope: u8, route: &Route, ranges: BTreeSet<IpNet>| {
            let shares = shares(route);
            let keeps = shape.affinity.is_some() || port.protocol == Protocol::Udp;
            let members = shares.keys().flatten().copied().filter(|_| keeps).collect();
            let front = Front { shares, affinity: shape.affinity.unwrap_or(0), ranges, members };
            // The first by name has what several claim.
            all.entry((address, number, port.protocol.number(), scope)).or_insert(front);
        };
        add(vip(*number), 80, 0, port.local.as_ref().unwrap_or(&port.route), BTreeSet::new());
        if let Some(last) = shape.external {
            add(external(last), 80, 0, &port.route, BTreeSet::new());
        }
        if let Some(prefix) = shape.range {
            add(balancer(*number), 80, 0, &port.route, BTreeSet::from([range(*number, prefix)]));
        }
        if let Some(node_port) = port.node_port {
            add(IpAddr::from([0; 4]), node_port, 1, &port.route, BTreeSet::new());
        }
    }
    all
}

fn open<K: aya::Pod, V: aya::Pod>(bpffs: &Path, name: &str) -> KernelMap<MapData, K, V> {
    let pin = bpffs.join(format!("maps-v{}", mesh_common::abi::LAYOUT_VERSION)).join(name);
    KernelMap::try_from(Map::from_map_data(MapData::from_pin(pin).unwrap()).unwrap()).unwrap()
}

/// What the kernel holds; nothing of it may be orphaned.
fn held(bpffs: &Path) -> Result<Fronts, TestCaseError> {
    let services = open::<ServiceKey, Held>(bpffs, map::SERVICES);
    let slots: HashMap<SlotKey, Slot> =
        open::<SlotKey, Slot>(bpffs, map::SLOTS).iter().collect::<Result<_, _>>().unwrap();
    let members: HashMap<MemberKey, Member> =
        open::<MemberKey, Member>(bpffs, map::MEMBERS).iter().collect::<Result<_, _>>().unwrap();
    let ranges = held_ranges(bpffs);
    let (mut all, mut used, mut ids) = (Fronts::new(), BTreeSet::new(), BTreeSet::new());
    for (key, value) in services.iter().map(Result::unwrap) {
        let slot = |index| SlotKey { service: value.id, generation: value.generation, slot: index };
        used.extend((0..value.slots).map(slot));
        let own: Vec<Slot> = (0..value.slots).map(|index| slots[&slot(index)]).collect();
        let backend = |slot: &Slot| {
            (slot.flags & BACKEND_NONE == 0).then(|| SocketAddr::new(ip_of(slot.address), slot.port))
        };
        let mut front = Front { affinity: value.affinity_seconds, ..Front::default() };
        for slot in &own {
            let stay =
                if slot.threshold == u32::MAX { 1.0 } else { f64::from(slot.threshold) / 4_294_967_296.0 };
            *front.shares.entry(backend(slot)).or_default() += stay / own.len() as f64;
            *front.shares.entry(backend(&own[slot.alias as usize])).or_default() +=
                (1.0 - stay) / own.len() as f64;
        }
        ids.insert(value.id);
        if value.flags & SERVICE_RANGES != 0 {
            front.ranges = ranges.get(&value.id).cloned().unwrap_or_default();
        }
        if value.flags & SERVICE_MEMBERS != 0 {
            let own = members.keys().filter(|member| member.service == value.id);
            front.members = own.map(|member| SocketAddr::new(ip_of(member.address), member.port)).collect();
        }
        all.insert((ip_of(key.address), key.port, key.protocol, key.scope), front);
    }
    prop_assert_eq!(used.len(), slots.len(), "slots that no service points at");
    prop_assert!(members.keys().all(|member| ids.contains(&member.service)), "members of no service");
    prop_assert!(ranges.keys().all(|id| ids.contains(id)), "ranges of no service");
    Ok(all)
}

fn held_ranges(bpffs: &Path) -> BTreeMap<u32, BTreeSet<IpNet>> {
    let pin = bpffs.join(format!("maps-v{}", mesh_common::abi::LAYOUT_VERSION)).join(map::RANGES);
    let trie = Map::from_map_data(MapData::from_pin(pin).unwrap()).unwrap();
    let trie: LpmTrie<_, RangeKey, u8> = LpmTrie::try_from(trie).unwrap();
    let mut all: BTreeMap<u32, BTreeSet<IpNet>> = BTreeMap::new();
    for (key, _) in trie.iter().map(Result::unwrap) {
        let bits = u8::try_from(key.prefix_len() - 32 - 96).unwrap();
        let range = IpNet::new(ip_of(key.data().client), bits).unwrap();
        all.entry(u32::from_be(key.data().service_be)).or_default().insert(range);
    }
    all
}

fn compare(bpffs: &Path, shapes: &BTreeMap<u8, Shape>) -> Result<(), TestCaseError> {
    let (held, wanted) = (held(bpffs)?, wanted(shapes));
    prop_assert_eq!(held.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    for (key, wanted) in &wanted {
        let held = &held[key];
        prop_assert_eq!(
            held.shares.keys().collect::<Vec<_>>(),
            wanted.shares.keys().collect::<Vec<_>>(),
            "{:?}",
            key
        );
        for (backend, share) in &wanted.shares {
            let is = held.shares[backend];
            prop_assert!((is - share).abs() < 1e-6, "{:?} {:?}: {} not {}", key, backend, is, share);
        }
        prop_assert_eq!(held.affinity, wanted.affinity, "{:?}", key);
        prop_assert_eq!(&held.ranges, &wanted.ranges, "{:?}", key);
        prop_assert_eq!(&held.members, &wanted.members, "{:?}", key);
    }
    let addresses = open::<[u8; 16], u32>(bpffs, map::ADDRESSES);
    let held: BTreeMap<IpAddr, u32> =
        addresses.iter().map(Result::unwrap).map(|(address, bits)| (ip_of(address), bits)).collect();
    let mut wanted: BTreeMap<IpAddr, u32> = BTreeMap::new();
    for (number, shape) in shapes {
        wanted.insert(vip(*number), ADDRESS_CLUSTER);
        wanted.extend(shape.external.map(|last| (external(last), ADDRESS_EXTERNAL)));
        wanted.extend(shape.range.map(|_| (balancer(*number), ADDRESS_EXTERNAL)));
    }
    prop_assert_eq!(held, wanted);
    Ok(())
}

/// An agent of its own for each inner list: what one leaves, the next takes over.
fn converges(
    bpffs: &Path,
    cgroup: &Path,
    agents: &[Vec<BTreeMap<u8, Option<Shape>>>],
) -> Result<(), TestCaseError> {
    let config = DatapathConfig::new(bpffs.to_owned(), cgroup.to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let (mut snapshot, mut shapes) = (Snapshot::default(), BTreeMap::new());
    for (updates, number) in agents.iter().zip(1..) {
        let (mut datapath, _events) = Datapath::load(&config, Lifeline::open().unwrap()).unwrap();
        for update in updates {
            snapshot = next(&snapshot, update);
            for (number, shape) in update {
                match shape {
                    Some(shape) => drop(shapes.insert(*number, shape.clone())),
                    None => drop(shapes.remove(number)),
                }
            }
            let errors = datapath.sync(&snapshot);
            prop_assert!(errors.is_empty(), "{:?}", errors);
            // The last agent tidies up; the others are killed before they come to it.
            if number == agents.len() {
                datapath.sweep();
                compare(bpffs, &shapes)?;
            }
        }
    }
    Ok(())
}

#[test]
fn the_kernel_converges_to_the_model_from_any_state() -> anyhow::Result<()> {
    let lab = Lab::unique()?;
    let node = lab.node("node-a")?;
    let bpffs = node.bpffs();
    let targets = prop::collection::vec((0_u32..200, 0_u8..6), 1..4);
    let maybe = prop::option::of::<std::ops::Range<u8>>;
    let rest = (any::<bool>(), maybe(1..4), maybe(8..30), prop::option::of(1_u32..100), maybe(0..3));
    let shape = (targets, rest).prop_map(|(targets, (node_port, external, range, affinity, local))| Shape {
        targets,
        node_port,
        external,
        range,
        affinity,
        local,
    });
    let update = prop::collection::btree_map(0_u8..8, prop::option::weighted(0.8, shape), 1..6);
    let agents = prop::collection::vec(prop::collection::vec(update, 1..5), 1..4);
    let mut runner = TestRunner::new(Config { cases: 40, failure_persistence: None, ..Config::default() });
    runner.run(&agents, |agents| {
        let result = converges(&bpffs, node.cgroup(), &agents);
        std::fs::remove_dir_all(&bpffs).unwrap();
        result
    })?;
    // The address is that of the maps, whatever this test believes.
    assert_eq!(ip_of(address_of(vip(7))), vip(7));
    Ok(())
}

/// A full load, and a change that costs what changed: nothing of the others is touched.
#[test]
fn ten_thousand_services_and_a_change_of_one() -> anyhow::Result<()> {
    let lab = Lab::unique()?;
    let node = lab.node("node-a")?;
    let config = DatapathConfig::new(node.bpffs(), node.cgroup().to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _inside = runtime.enter();
    let name = |number: u16| ServiceName::new("default", format!("s{number:05}"));
    let service = |number: u16, hosts: std::ops::Range<u8>| {
        let [high, low] = number.to_be_bytes();
        let endpoint = |host| Endpoint::at(SocketAddr::from(([10, high, low, host], 8080)));
        let port = ServicePort::plain(&name(number), 80, Protocol::Tcp, hosts.map(endpoint).collect());
        let address = IpAddr::from([10, 96, high, low]);
        Arc::new(Service::internal(name(number), "s".into(), vec![address], vec![port]))
    };
    let mut snapshot = Snapshot::default();
    let put = |snapshot: &mut Snapshot, service: Arc<Service>| {
        snapshot.frontends.extend(service.frontends().map(|frontend| (frontend, Arc::clone(&service))));
        snapshot.services.insert(service.name.clone(), service);
    };
    for number in 0..10_000 {
        put(&mut snapshot, service(number, 0..2));
    }
    let (mut datapath, _events) = Datapath::load(&config, Lifeline::open()?)?;
    let errors = datapath.sync(&snapshot);
    anyhow::ensure!(errors.is_empty(), "{errors:?}");
    let held = || -> BTreeMap<ServiceKey, Held> {
        open::<ServiceKey, Held>(&node.bpffs(), map::SERVICES).iter().collect::<Result<_, _>>().unwrap()
    };
    let slots = || open::<SlotKey, Slot>(&node.bpffs(), map::SLOTS).keys().count();
    let before = held();
    assert_eq!((before.len(), slots()), (10_000, 20_000));
    put(&mut snapshot, service(7_777, 0..3));
    snapshot.services.remove(&name(1));
    snapshot.frontends.retain(|_, service| service.name != name(1));
    let errors = datapath.sync(&snapshot);
    anyhow::ensure!(errors.is_empty(), "{errors:?}");
    datapath.sweep();
    let after = held();
    let changed = before.iter().filter(|(key, value)| after.get(*key) != Some(value)).count();
    assert_eq!((after.len(), changed, slots()), (9_999, 2, 20_000 - 2 + 1));
    Ok(())
}
