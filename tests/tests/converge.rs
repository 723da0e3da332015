//! Whatever sequence of snapshots the agent has seen, and wherever it was killed, the kernel maps hold what the last
//! snapshot says: each service with the shares of its backends, and not one slot more.

#![expect(
    clippy::cast_precision_loss,
    clippy::unwrap_used,
    reason = "a test: shares are small, and it fails by panicking"
)]

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use aya::maps::{HashMap as KernelMap, Map, MapData};
use mesh_common::abi::{BACKEND_NONE, Service as Held, ServiceKey, Slot, SlotKey};
use mesh_common::names::map;
use mesh_tests::Lab;
use mesh_userspace::datapath::{Datapath, DatapathConfig, Lifeline, address_of, ip_of};
use mesh_userspace::model::{
    Endpoint, Protocol, Route, RouteTarget, Service, ServiceName, ServicePort, Snapshot,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// One service: targets of (weight, number of endpoints).
type Shape = Vec<(u32, u8)>;
/// Share of each backend; `None` is the share that is refused.
type Shares = BTreeMap<Option<SocketAddr>, f64>;

fn service(number: u8, shape: &Shape) -> Service {
    let name = ServiceName::new("default", format!("s{number}"));
    let targets = shape.iter().zip(0_u8..).map(|(&(weight, count), target)| RouteTarget {
        service: name.clone(),
        port: 80,
        subset: None,
        weight,
        endpoints: (0..count)
            .map(|host| {
                let endpoint = Endpoint::at(SocketAddr::from(([10, number, target, host], 8080)));
                Endpoint { enrolled: host % 2 == 0, ..endpoint }
            })
            .collect(),
    });
    let protocol = if number.is_multiple_of(2) { Protocol::Tcp } else { Protocol::Udp };
    let route = Route::new(None, targets.collect());
    let port = ServicePort { route, ..ServicePort::plain(&name, 80, protocol, Arc::new([])) };
    let host = name.to_string().into();
    Service::internal(name, host, vec![vip(number)], vec![port])
}

fn vip(number: u8) -> IpAddr {
    IpAddr::from([10, 96, 0, number])
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
    snapshot
}

/// What the model says, by a way of its own: each target's weight spread over its endpoints.
fn wanted(snapshot: &Snapshot) -> BTreeMap<(IpAddr, u16, u8), Shares> {
    let mut all = BTreeMap::new();
    for service in snapshot.services.values() {
        let port = &service.ports[0];
        let targets: Vec<_> = port.route.targets.iter().filter(|target| target.weight > 0).collect();
        let total: u32 = targets.iter().map(|target| target.weight).sum();
        let mut shares = Shares::new();
        if targets.iter().any(|target| !target.endpoints.is_empty()) {
            for target in targets {
                let share = f64::from(target.weight) / f64::from(total);
                if target.endpoints.is_empty() {
                    *shares.entry(None).or_default() += share;
                }
                for endpoint in target.endpoints.iter() {
                    *shares.entry(Some(endpoint.address)).or_default() +=
                        share / target.endpoints.len() as f64;
                }
            }
        }
        all.insert((service.addresses[0], port.port, port.protocol.number()), shares);
    }
    all
}

fn open<K: aya::Pod, V: aya::Pod>(bpffs: &Path, name: &str) -> KernelMap<MapData, K, V> {
    let pin = bpffs.join(format!("maps-v{}", mesh_common::abi::LAYOUT_VERSION)).join(name);
    KernelMap::try_from(Map::from_map_data(MapData::from_pin(pin).unwrap()).unwrap()).unwrap()
}

/// What the kernel holds, and the number of slots that nothing points at.
fn held(bpffs: &Path) -> (BTreeMap<(IpAddr, u16, u8), Shares>, usize) {
    let services = open::<ServiceKey, Held>(bpffs, map::SERVICES);
    let mut slots: HashMap<SlotKey, Slot> =
        open::<SlotKey, Slot>(bpffs, map::SLOTS).iter().collect::<Result<_, _>>().unwrap();
    let mut all = BTreeMap::new();
    for (key, value) in services.iter().map(Result::unwrap) {
        let slot = |index| SlotKey { service: value.id, generation: value.generation, slot: index };
        let own: Vec<Slot> = (0..value.slots).map(|index| slots.remove(&slot(index)).unwrap()).collect();
        let backend = |slot: &Slot| {
            (slot.flags & BACKEND_NONE == 0).then(|| SocketAddr::new(ip_of(slot.address), slot.port))
        };
        let mut shares = Shares::new();
        for slot in &own {
            let stay =
                if slot.threshold == u32::MAX { 1.0 } else { f64::from(slot.threshold) / 4_294_967_296.0 };
            *shares.entry(backend(slot)).or_default() += stay / own.len() as f64;
            *shares.entry(backend(&own[slot.alias as usize])).or_default() += (1.0 - stay) / own.len() as f64;
        }
        all.insert((ip_of(key.address), key.port, key.protocol), shares);
    }
    (all, slots.len())
}

fn compare(bpffs: &Path, snapshot: &Snapshot) -> Result<(), TestCaseError> {
    let (held, orphans) = held(bpffs);
    let wanted = wanted(snapshot);
    prop_assert_eq!(orphans, 0, "slots that no service points at");
    prop_assert_eq!(held.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    for (key, shares) in &wanted {
        prop_assert_eq!(held[key].keys().collect::<Vec<_>>(), shares.keys().collect::<Vec<_>>(), "{:?}", key);
        for (backend, share) in shares {
            prop_assert!(
                (held[key][backend] - share).abs() < 1e-6,
                "{:?} {:?}: {} not {}",
                key,
                backend,
                held[key][backend],
                share
            );
        }
    }
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
    let mut snapshot = Snapshot::default();
    for (updates, number) in agents.iter().zip(1..) {
        let (mut datapath, _events) = Datapath::load(&config, Lifeline::open().unwrap()).unwrap();
        for update in updates {
            snapshot = next(&snapshot, update);
            let errors = datapath.sync(&snapshot);
            prop_assert!(errors.is_empty(), "{:?}", errors);
            // The last agent tidies up; the others are killed before they come to it.
            if number == agents.len() {
                datapath.sweep();
                compare(bpffs, &snapshot)?;
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
    let shape = prop::collection::vec((0_u32..200, 0_u8..6), 1..4);
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
