//! The registry as workers use it: endpoints that come and go, limits, ejections, slow start.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use proptest::prelude::*;
use tokio::time::{advance, sleep, timeout};

use super::*;
use crate::model::{
    Balancer, ConnectionLimits, Endpoint, Group, OutlierDetection, Protocol, Route, RouteTarget, Service,
    ServiceName, ServicePort, Snapshot, Spread, TrafficSettings, Warmup, WorkloadUid,
};

const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 0, 9));

fn at(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 80))
}

fn name() -> ServiceName {
    ServiceName::new("shop", "web")
}

fn target(endpoints: &[u8], settings: TrafficSettings) -> RouteTarget {
    let endpoints = endpoints.iter().map(|&last| Endpoint::at(at(last))).collect();
    RouteTarget { settings: Arc::new(settings), ..RouteTarget::whole(name(), 80, 1, endpoints) }
}

fn with_balancer(balancer: Balancer) -> TrafficSettings {
    TrafficSettings { balancer, ..TrafficSettings::default() }
}

fn with_outliers(rule: OutlierDetection) -> TrafficSettings {
    TrafficSettings { outliers: Some(rule), ..TrafficSettings::default() }
}

fn with_limits(limits: ConnectionLimits) -> TrafficSettings {
    TrafficSettings { limits, ..TrafficSettings::default() }
}

/// So many picks, by the last part of the endpoint's address.
fn picks(looked: &Looked, count: usize, avoid: &[u8]) -> [usize; 16] {
    let avoid: Vec<SocketAddr> = avoid.iter().map(|&last| at(last)).collect();
    let mut counts = [0; 16];
    for _ in 0..count {
        if let Some(picked) = looked.pick(true, CLIENT, &avoid) {
            let IpAddr::V4(address) = picked.endpoint.address.ip() else { panic!("of another family") };
            counts[usize::from(address.octets()[3])] += 1;
        }
    }
    counts
}

/// A connection at an endpoint, established.
fn connection(looked: &Looked, last: u8) -> Place {
    let mut place = looked.admit().unwrap();
    place.at(looked.member(at(last)).unwrap());
    place.established();
    place
}

fn fail(looked: &Looked, last: u8, times: u32) {
    for _ in 0..times {
        connection(looked, last).failed(Failure::Connect);
    }
}

/// The registry, with all that it tells.
fn watched() -> (Arc<Balancers>, Arc<Mutex<Vec<(SocketAddr, Event)>>>) {
    let (balancers, told) = (Arc::new(Balancers::default()), Arc::new(Mutex::new(Vec::new())));
    let into = Arc::clone(&told);
    balancers.on_change(move |change| into.lock().unwrap().push((change.address, change.event)));
    (balancers, told)
}

#[test]
fn targets_are_drawn_exactly_by_weight_with_or_without_endpoints() {
    let weights = [90, 0, 9, 1];
    let targets = weights.map(|weight| RouteTarget { weight, ..target(&[1], TrafficSettings::default()) });
    let mut route = Route::new(None, targets.to_vec());
    route.targets[3].endpoints = Arc::new([]);
    let mut counts = [0_u32; 4];
    for slot in 0..100_u64 {
        let random = u64::MAX / 100 * slot + u64::MAX / 200;
        let drawn = super::target(&route, random).unwrap();
        counts[route.targets.iter().position(|target| std::ptr::eq(target, drawn)).unwrap()] += 1;
    }
    assert_eq!(counts, weights);
    let balancers = Balancers::default();
    assert!(balancers.look(&route.targets[3]).pick(true, CLIENT, &[]).is_none(), "its share is refused");
    assert!(super::target(&Route::default(), 1).is_none());
}

#[test]
fn counts_stay_as_endpoints_come_and_go() {
    let balancers = Balancers::default();
    let before = target(&[1, 2], TrafficSettings::default());
    let looked = balancers.look(&before);
    let held: Vec<Place> = [1, 2, 2].iter().map(|&last| connection(&looked, last)).collect();
    drop(looked);
    let after = target(&[2, 3], TrafficSettings::default());
    let open = |balancers: &Balancers, of: &RouteTarget| -> Vec<(SocketAddr, u32)> {
        let mut states: Vec<_> =
            balancers.states(of).into_iter().map(|state| (state.address, state.open)).collect();
        states.sort_unstable();
        states
    };
    balancers.look(&after);
    // The first is listed no more, but has a connection.
    assert_eq!(open(&balancers, &after), [(at(1), 1), (at(2), 2), (at(3), 0)]);
    drop(held);
    drop(before);
    let last = target(&[2, 3], TrafficSettings::default());
    balancers.look(&last);
    assert_eq!(open(&balancers, &last), [(at(2), 0), (at(3), 0)]);
    assert_eq!(balancers.len(), 1);
}

/// A mesh in which the service has these ports.
fn mesh(ports: &[u16]) -> ArcSwap<Snapshot> {
    let port =
        |&port: &u16| ServicePort::plain(&name(), port, Protocol::Tcp, Arc::new([Endpoint::at(at(1))]));
    let ports = ports.iter().map(port).collect();
    let service = Service::internal(name(), "web".into(), Vec::new(), ports);
    let mut snapshot = Snapshot::default();
    snapshot.services.insert(name(), Arc::new(service));
    ArcSwap::from_pointee(snapshot)
}

#[tokio::test(start_paused = true)]
async fn destinations_that_are_gone_are_forgotten() {
    let balancers = Balancers::default();
    let target = target(&[1], TrafficSettings::default());
    let subset = RouteTarget { subset: Some("v1".into()), ..target.clone() };
    let held = connection(&balancers.look(&target), 1);
    balancers.look(&subset);
    let minutes = Duration::from_mins(2);
    assert!(timeout(minutes, balancers.run(&mesh(&[80, 81]))).await.is_err());
    assert_eq!(balancers.len(), 2);
    assert!(timeout(minutes, balancers.run(&mesh(&[81]))).await.is_err());
    assert_eq!(balancers.len(), 0);
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn destinations_that_nobody_asks_for_are_forgotten() {
    let (balancers, mesh) = (Balancers::default(), mesh(&[80, 81]));
    let target = target(&[1], TrafficSettings::default());
    let other = RouteTarget { port: 81, ..target.clone() };
    let held = connection(&balancers.look(&target), 1);
    balancers.look(&other);
    assert!(timeout(Duration::from_mins(12), balancers.run(&mesh)).await.is_err());
    assert_eq!(balancers.len(), 1, "one has a connection");
    drop(held);
    assert!(timeout(Duration::from_mins(2), balancers.run(&mesh)).await.is_err());
    assert_eq!(balancers.len(), 0);
}

#[test]
fn so_many_connections_and_no_more_whoever_asks() {
    let limits = ConnectionLimits { max_connections: Some(7), max_pending: Some(3), ..Default::default() };
    let (balancers, target) = (Balancers::default(), target(&[1], with_limits(limits)));
    let looked = balancers.look(&target);
    let pending: Vec<Place> = std::iter::repeat_with(|| looked.admit()).map_while(Result::ok).collect();
    assert_eq!(pending.len(), 3);
    assert_eq!(looked.admit().unwrap_err(), Overflow::Pending(3));
    drop(pending);
    let open: Vec<Place> = (0..7).map(|_| connection(&looked, 1)).collect();
    assert_eq!(looked.admit().unwrap_err(), Overflow::Connections(7));
    drop(open);
    // From all workers at once: never more, and nothing is lost.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..2000 {
                    if let Ok(mut place) = looked.admit() {
                        place.at(looked.member(at(1)).unwrap());
                        place.established();
                        let open = balancers.states(&target)[0].open;
                        assert!(open <= 7, "{open}");
                    }
                }
            });
        }
    });
    assert_eq!(balancers.states(&target)[0].open, 0);
    assert_eq!((0..7).map(|_| connection(&looked, 1)).collect::<Vec<_>>().len(), 7);
}

#[test]
fn retries_have_a_budget() {
    let balancers = Balancers::default();
    let target = target(&[1], TrafficSettings::default());
    let looked = balancers.look(&target);
    let take = |looked: &Looked| -> Vec<Retrying> {
        std::iter::repeat_with(|| looked.retry()).map_while(|retrying| retrying).collect()
    };
    assert_eq!(take(&looked).len(), 3);
    let open: Vec<Place> = (0..50).map(|_| connection(&looked, 1)).collect();
    assert_eq!(take(&looked).len(), 10);
    drop(open);
    assert_eq!(take(&looked).len(), 3, "given back");
}

#[test]
fn picks_are_as_the_algorithm_says() {
    let balancers = Balancers::default();
    let of = |balancer, port| RouteTarget { port, ..target(&[1, 2, 3], with_balancer(balancer)) };
    for (port, balancer) in
        [Balancer::Unspecified, Balancer::Random, Balancer::Passthrough].into_iter().enumerate()
    {
        let target = of(balancer, port as u16);
        let counts = picks(&balancers.look(&target), 6000, &[]);
        // 2,000 each, σ ≈ 37.
        assert!(counts[1..4].iter().all(|count| (1800..2200).contains(count)), "{balancer:?} {counts:?}");
    }
    let turns = of(Balancer::RoundRobin, 10);
    let counts = picks(&balancers.look(&turns), 3000, &[]);
    assert!(counts[1..4].iter().all(|count| count.abs_diff(1000) <= 1), "{counts:?}");
    let hashed = of(Balancer::SourceIp, 11);
    let counts = picks(&balancers.look(&hashed), 100, &[]);
    assert!(counts.contains(&100), "{counts:?}");
    let least = of(Balancer::LeastRequest, 12);
    let looked = balancers.look(&least);
    let _busy = [connection(&looked, 1), connection(&looked, 1), connection(&looked, 2)];
    let counts = picks(&looked, 3000, &[]);
    // The busiest is the busier of any two; of the others each is drawn alike, and the idle one always taken.
    assert_eq!(counts[1], 0, "{counts:?}");
    assert!((1850..2150).contains(&counts[3]), "{counts:?}");
}

#[test]
fn turns_go_on_where_somebody_is_avoided() {
    let balancers = Balancers::default();
    let target = target(&[1, 2, 3], with_balancer(Balancer::RoundRobin));
    let looked = balancers.look(&target);
    let counts = picks(&looked, 1000, &[2]);
    // Where the turns begin is by chance.
    assert!(counts[2] == 0 && counts[1].abs_diff(counts[3]) <= 2, "{counts:?}");
    assert_eq!(picks(&looked, 10, &[1, 2, 3]), [0; 16], "nobody is left");
    assert!(!looked.has_other(true, CLIENT, &[at(1), at(2), at(3)]));
    assert!(looked.has_other(true, CLIENT, &[at(1), at(2)]) && !looked.has_other(false, CLIENT, &[]));
}

#[test]
fn weights_hold_for_every_algorithm_that_has_them() {
    let balancers = Balancers::default();
    for (port, balancer) in [Balancer::Random, Balancer::RoundRobin].into_iter().enumerate() {
        let mut target = RouteTarget { port: port as u16, ..target(&[], with_balancer(balancer)) };
        target.endpoints = [(1, 1), (2, 3), (3, 0)]
            .map(|(last, weight)| Endpoint { weight, ..Endpoint::at(at(last)) })
            .to_vec()
            .into();
        let counts = picks(&balancers.look(&target), 4000, &[]);
        assert!((850..1150).contains(&counts[1]) && counts[1] + counts[2] == 4000, "{balancer:?} {counts:?}");
    }
}

#[test]
fn lower_priorities_take_over_as_those_above_fail() {
    let spread = Spread {
        groups: [0, 1].map(|priority| Group { priority, ..Group::default() }).into(),
        of: [0, 0, 0, 0, 1, 1].into(),
    };
    let balancers = Balancers::default();
    let rule = OutlierDetection { consecutive_errors: Some(1), ..outlier::rule() };
    let target =
        RouteTarget { spread: Some(Arc::new(spread)), ..target(&[1, 2, 3, 4, 5, 6], with_outliers(rule)) };
    let looked = balancers.look(&target);
    let far = |counts: [usize; 16]| counts[5] + counts[6];
    assert_eq!(far(picks(&looked, 1000, &[])), 0);
    fail(&looked, 1, 1);
    // Three of four are well: 140 × 75% is all.
    assert_eq!(far(picks(&looked, 1000, &[])), 0);
    fail(&looked, 2, 1);
    // 140 × 50% = 70%.
    let counts = picks(&looked, 5000, &[]);
    assert!((1350..1650).contains(&far(counts)) && counts[1] + counts[2] == 0, "{counts:?}");
    assert_eq!(far(picks(&looked, 100, &[3, 4])), 100, "those above are to be avoided");
    fail(&looked, 3, 1);
    fail(&looked, 4, 1);
    assert_eq!(far(picks(&looked, 100, &[])), 100);
    fail(&looked, 5, 1);
    fail(&looked, 6, 1);
    assert_eq!(picks(&looked, 100, &[]), [0; 16], "nobody is well, and there is no panic");
}

#[test]
fn groups_share_by_weight_and_by_health() {
    let group = |weight| Group { weight, ..Group::default() };
    let spread = Spread { groups: [group(80), group(20), group(0)].into(), of: [0, 0, 1, 1, 2].into() };
    let balancers = Balancers::default();
    let rule = OutlierDetection { consecutive_errors: Some(1), ..outlier::rule() };
    let target =
        RouteTarget { spread: Some(Arc::new(spread)), ..target(&[1, 2, 3, 4, 5], with_outliers(rule)) };
    let looked = balancers.look(&target);
    let counts = picks(&looked, 5000, &[]);
    assert!((3880..4120).contains(&(counts[1] + counts[2])) && counts[5] == 0, "{counts:?}");
    fail(&looked, 1, 1);
    // 80 × 70% against 20: 56 of 76.
    let counts = picks(&looked, 7600, &[]);
    assert!((5450..5750).contains(&counts[2]) && counts[1] == 0, "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn who_fails_is_left_out_and_returns() {
    let (balancers, told) = watched();
    let rule = OutlierDetection { consecutive_errors: Some(3), ..outlier::rule() };
    let target = target(&[1, 2, 3], with_outliers(rule));
    let runs = Arc::clone(&balancers);
    let running = tokio::spawn(async move { runs.run(&mesh(&[80])).await });
    let looked = balancers.look(&target);
    let open = connection(&looked, 1);
    fail(&looked, 1, 2);
    open.answered();
    fail(&looked, 1, 2);
    assert!(told.lock().unwrap().is_empty(), "an answer between them: no row");
    fail(&looked, 1, 1);
    let ejected = |seconds, times| Event::Ejected {
        reason: Reason::Errors,
        lasts: Duration::from_secs(seconds),
        times,
    };
    assert_eq!(*told.lock().unwrap(), [(at(1), ejected(30, 1))]);
    assert_eq!(picks(&looked, 300, &[])[1], 0);
    assert!(looked.member(at(1)).is_none(), "who stays with it goes elsewhere");
    let state = |last| *balancers.states(&target).iter().find(|state| state.address == at(last)).unwrap();
    assert_eq!((state(1).open, state(1).ejections), (1, 1), "what is open stays");
    assert_eq!(state(1).ejected_for, Some(Duration::from_secs(30)));
    assert_eq!(balancers.ejected(), [(Key::of(&target), 1)]);
    sleep(Duration::from_secs(29)).await;
    assert_eq!(told.lock().unwrap().len(), 1);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(told.lock().unwrap()[1], (at(1), Event::Returned));
    assert!(balancers.ejected().is_empty() && picks(&looked, 300, &[])[1] > 0);
    // Again at once: for twice as long.
    fail(&looked, 1, 3);
    assert_eq!(told.lock().unwrap()[2], (at(1), ejected(60, 2)));
    sleep(Duration::from_secs(75)).await;
    assert_eq!(told.lock().unwrap()[3], (at(1), Event::Returned));
    // After some intervals of health it begins anew.
    sleep(Duration::from_mins(1)).await;
    fail(&balancers.look(&target), 1, 3);
    assert_eq!(told.lock().unwrap()[4], (at(1), ejected(30, 3)));
    running.abort();
}

#[test]
fn no_more_are_left_out_than_the_rule_has_it_and_the_others_are_told() {
    let (balancers, told) = watched();
    let rule = OutlierDetection { consecutive_errors: Some(1), max_ejection_percent: 50, ..outlier::rule() };
    let target = target(&[1, 2, 3], with_outliers(rule));
    let looked = balancers.look(&target);
    fail(&looked, 1, 1);
    fail(&looked, 2, 1);
    let told = told.lock().unwrap();
    assert!(
        matches!(told[..], [(_, Event::Ejected { .. }), (_, Event::Spared { reason: Reason::Errors })]),
        "{told:?}"
    );
    let counts = picks(&looked, 300, &[]);
    assert!(counts[1] == 0 && counts[2] > 0, "{counts:?}");
}

#[test]
fn who_may_be_left_out_is_counted_by_address_family() {
    let (balancers, told) = watched();
    let rule = OutlierDetection { consecutive_errors: Some(1), max_ejection_percent: 50, ..outlier::rule() };
    let mut target = target(&[1, 2], with_outliers(rule));
    let six = (1..=4_u16).map(|last| Endpoint::at(SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, last], 80))));
    target.endpoints = target.endpoints.iter().cloned().chain(six).collect();
    let looked = balancers.look(&target);
    fail(&looked, 1, 1);
    fail(&looked, 2, 1);
    let told = told.lock().unwrap();
    assert!(matches!(told[..], [(_, Event::Ejected { .. }), (_, Event::Spared { .. })]), "{told:?}");
}

#[test]
fn copies_take_nothing_and_judge_nobody() {
    let (balancers, told) = watched();
    let rule = OutlierDetection { consecutive_errors: Some(1), ..outlier::rule() };
    let limits = ConnectionLimits { max_connections: Some(1), ..Default::default() };
    let target = target(&[1, 2], TrafficSettings { limits, ..with_outliers(rule) });
    let copies = balancers.look_for_copy(&target);
    let copy = connection(&copies, 1);
    assert_eq!(copies.admit().unwrap_err(), Overflow::Connections(1), "the limit holds for copies too");
    let own = connection(&balancers.look(&target), 1);
    assert_eq!(balancers.states(&target).iter().map(|state| state.open).sum::<u32>(), 1);
    copy.failed(Failure::Connect);
    assert!(told.lock().unwrap().is_empty() && balancers.left_out(&target).is_empty());
    own.failed(Failure::Connect);
    assert_eq!(told.lock().unwrap().len(), 1);
    assert_eq!(balancers.left_out(&target), [at(1)]);
}

#[tokio::test(start_paused = true)]
async fn the_rule_is_that_of_the_view_that_was_picked_from() {
    let (balancers, told) = watched();
    let rule = OutlierDetection { consecutive_errors: Some(1), ..outlier::rule() };
    let looked = balancers.look(&target(&[1, 2], with_outliers(rule)));
    // Made later, of a snapshot that is gone.
    let stale = target(&[1, 2], TrafficSettings::default());
    fail(&balancers.look(&stale), 1, 9);
    assert!(told.lock().unwrap().is_empty());
    fail(&looked, 1, 1);
    assert!(matches!(told.lock().unwrap()[..], [(_, Event::Ejected { .. })]));
    // It returns by the same rule.
    assert!(timeout(Duration::from_secs(45), balancers.run(&mesh(&[80]))).await.is_err());
    assert_eq!(told.lock().unwrap().last(), Some(&(at(1), Event::Returned)));
}

#[test]
fn a_pod_at_anothers_address_is_not_left_out_for_it() {
    let (balancers, told) = watched();
    let rule = OutlierDetection { consecutive_errors: Some(2), ..outlier::rule() };
    let of = |pod: &str| {
        let workload = Some(WorkloadUid::pod("shop", pod));
        let endpoints = Arc::new([Endpoint { workload, ..Endpoint::at(at(1)) }, Endpoint::at(at(2))]);
        RouteTarget { endpoints, ..target(&[], with_outliers(rule)) }
    };
    let (before, after) = (of("web-1"), of("web-2"));
    let looked = balancers.look(&before);
    let open = connection(&looked, 1);
    fail(&looked, 1, 1);
    drop((looked, before));
    let looked = balancers.look(&after);
    fail(&looked, 1, 1);
    assert!(told.lock().unwrap().is_empty(), "the first failure of its own");
    open.failed(Failure::NoAnswer);
    assert!(told.lock().unwrap().is_empty(), "what has gone is not left out");
    fail(&looked, 1, 1);
    assert!(matches!(told.lock().unwrap()[..], [(_, Event::Ejected { .. })]));
}

#[test]
fn with_too_few_well_nobody_is_left_out() {
    let balancers = Balancers::default();
    let rule = OutlierDetection { consecutive_errors: Some(1), min_health_percent: 50, ..outlier::rule() };
    let target = target(&[1, 2, 3, 4], with_outliers(rule));
    let looked = balancers.look(&target);
    fail(&looked, 1, 1);
    fail(&looked, 2, 1);
    assert_eq!(picks(&looked, 300, &[])[1..3], [0, 0], "half of them are well");
    fail(&looked, 3, 1);
    let counts = picks(&looked, 4000, &[]);
    assert!(counts[1..5].iter().all(|&count| count > 800), "{counts:?}");
}

#[test]
fn a_rule_that_goes_brings_everybody_back() {
    let (balancers, told) = watched();
    let rule = OutlierDetection { consecutive_errors: Some(1), ..outlier::rule() };
    let before = target(&[1, 2], with_outliers(rule));
    fail(&balancers.look(&before), 1, 1);
    assert_eq!(balancers.ejected().len(), 1);
    let after = target(&[1, 2], TrafficSettings::default());
    let looked = balancers.look(&after);
    assert_eq!(told.lock().unwrap().last(), Some(&(at(1), Event::Returned)));
    assert!(balancers.ejected().is_empty() && picks(&looked, 100, &[])[1] > 0);
}

#[test]
fn an_endpoint_that_goes_takes_its_ejection_with_it() {
    let balancers = Balancers::default();
    let rule = OutlierDetection { consecutive_errors: Some(1), ..outlier::rule() };
    let before = target(&[1, 2], with_outliers(rule));
    fail(&balancers.look(&before), 1, 1);
    drop(before);
    balancers.look(&target(&[2, 3], with_outliers(rule)));
    assert!(balancers.ejected().is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_is_new_gets_its_share_little_by_little() {
    let balancers = Balancers::default();
    let warmup = Warmup { duration: Duration::from_secs(100), minimum_percent: 10.0, aggression: 1.0 };
    for (port, balancer) in
        [Balancer::Random, Balancer::RoundRobin, Balancer::LeastRequest].into_iter().enumerate()
    {
        let settings = TrafficSettings { warmup: Some(warmup), ..with_balancer(balancer) };
        let of = |endpoints: &[u8]| RouteTarget { port: port as u16, ..target(endpoints, settings.clone()) };
        let before = of(&[1, 2]);
        let counts = picks(&balancers.look(&before), 2000, &[]);
        assert!((800..1200).contains(&counts[1]), "who was there first is not new: {counts:?}");
        let after = of(&[1, 2, 3]);
        let share = || {
            // One connection after the other: all have as many.
            picks(&balancers.look(&after), 4200, &[])[3]
        };
        if balancer == Balancer::LeastRequest {
            // By its weight the new one is the busier of any two.
            assert_eq!(share(), 0);
        } else {
            // 0.1 of 2.1, then 0.5 of 2.5.
            assert!((130..280).contains(&share()), "{balancer:?} {}", share());
            advance(Duration::from_secs(50)).await;
            assert!((720..960).contains(&share()), "{balancer:?} {}", share());
            advance(Duration::from_secs(50)).await;
        }
        advance(Duration::from_secs(100)).await;
        assert!((1250..1550).contains(&share()), "{balancer:?} {}", share());
    }
}

#[tokio::test(start_paused = true)]
async fn who_comes_back_is_new_again_whatever_is_open_to_it() {
    let balancers = Balancers::default();
    let warmup = Warmup { duration: Duration::from_secs(100), minimum_percent: 10.0, aggression: 1.0 };
    let settings = TrafficSettings { warmup: Some(warmup), ..with_balancer(Balancer::RoundRobin) };
    let of = |endpoints: &[u8]| target(endpoints, settings.clone());
    let (all, without) = (of(&[1, 2, 3]), of(&[1, 2]));
    let held = connection(&balancers.look(&all), 3);
    drop(all);
    picks(&balancers.look(&without), 10, &[]);
    drop(without);
    advance(Duration::from_secs(500)).await;
    let again = of(&[1, 2, 3]);
    let share = || picks(&balancers.look(&again), 4200, &[])[3];
    assert!((130..280).contains(&share()), "{}", share());
    // A route of its own with the same endpoints makes it no newer.
    advance(Duration::from_secs(50)).await;
    let other = of(&[1, 2, 3]);
    let counts = picks(&balancers.look(&other), 4200, &[]);
    assert!((720..960).contains(&counts[3]), "{counts:?}");
    drop(held);
}

proptest! {
    #[test]
    fn whatever_changes_counts_come_back_to_nothing(
        steps in prop::collection::vec((0_u8..5, 1_u8..8, any::<bool>()), 1..60)
    ) {
        let balancers = Balancers::default();
        let rule = OutlierDetection { consecutive_errors: Some(2), ..outlier::rule() };
        let mut listed: Vec<u8> = vec![1, 2, 3];
        let mut held: Vec<Place> = Vec::new();
        let mut current = target(&listed, with_outliers(rule));
        for (step, last, other) in steps {
            match step {
                0 => {
                    if other && !listed.contains(&last) { listed.push(last) } else { listed.retain(|&one| one != last) }
                    current = target(&listed, with_outliers(rule));
                }
                1 => { held.pop(); }
                2 => if let Some(place) = held.last() { place.failed(Failure::NoAnswer) },
                _ => {
                    let looked = balancers.look(&current);
                    let mut place = looked.admit().unwrap();
                    if let Some(picked) = looked.pick(true, CLIENT, &[at(last)]) {
                        prop_assert_ne!(picked.endpoint.address, at(last));
                        place.at(picked);
                    }
                    if other { place.established() }
                    held.push(place);
                }
            }
            let open: u32 = balancers.states(&current).iter().map(|state| state.open).sum();
            prop_assert!(open as usize <= held.len());
        }
        held.clear();
        prop_assert!(balancers.states(&current).iter().all(|state| state.open == 0));
    }
}
