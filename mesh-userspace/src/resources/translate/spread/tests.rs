use proptest::prelude::*;

use super::*;

const REGIONS: [&str; 4] = ["", "eu", "us", "ap"];
const ZONES: [&str; 3] = ["", "a", "b"];
const SUBZONES: [&str; 3] = ["", "1", "2"];

fn locality(region: &str, zone: &str, subzone: &str) -> Locality {
    Locality { region: region.into(), zone: zone.into(), subzone: subzone.into() }
}

fn parse(text: &str) -> Locality {
    let mut parts = text.split('/');
    let mut next = || parts.next().unwrap_or_default();
    locality(next(), next(), next())
}

fn setting(value: serde_json::Value) -> LocalityLbSetting {
    serde_json::from_value(value).unwrap()
}

/// The priority of each endpoint by its locality, or its share of the group's.
fn spread_of(
    setting: &LocalityLbSetting,
    outliers: bool,
    client: &str,
    endpoints: &[&str],
) -> Option<Spreading> {
    let (client, endpoints): (_, Vec<_>) =
        (parse(client), endpoints.iter().map(|text| parse(text)).collect());
    let place = |locality| Place { locality, node: None, labels: None };
    let places: Vec<Place<'_>> = endpoints.iter().map(place).collect();
    spreading(Some(setting), outliers, place(&client), &places)
}

fn priorities(spreading: &Spreading) -> Vec<u8> {
    spreading.of.iter().map(|group| spreading.groups[usize::from(group.unwrap())].priority).collect()
}

#[test]
fn shares_follow_the_narrowest_locality() {
    let setting = setting(serde_json::json!({"distribute": [
        {"from": "eu/a/*", "to": {"eu/a/*": 80, "eu/b/*": 20}},
        {"from": "eu/*", "to": {"*": 100}},
    ]}));
    let endpoints = ["eu/a/1", "eu/a/2", "eu/b/1", "us/a/1", "eu"];
    let spread = spread_of(&setting, false, "eu/a/1", &endpoints).unwrap();
    let weight = |group: &Option<u16>| group.map(|group| spread.groups[usize::from(group)].weight);
    let weights: Vec<_> = spread.of.iter().map(weight).collect();
    assert_eq!(weights, [Some(80), Some(80), Some(20), None, None]);
    let labels: Vec<&str> = spread.groups.iter().map(|group| &*group.label).collect();
    assert_eq!(labels, ["eu/a/*", "eu/b/*"]);
    let other = spread_of(&setting, false, "eu/c", &endpoints).unwrap();
    assert_eq!(other.of, [Some(0); 5]);
    assert_eq!(spread_of(&setting, true, "us/a", &endpoints), None, "no rule is for clients there");
}

#[test]
fn priorities_need_outlier_detection() {
    let endpoints = ["us/a/1", "eu/b/1", "eu/a/2", "eu/a/1", "ap/a/1"];
    let plain = LocalityLbSetting::default();
    assert_eq!(spread_of(&plain, false, "eu/a/1", &endpoints), None);
    assert_eq!(priorities(&spread_of(&plain, true, "eu/a/1", &endpoints).unwrap()), [3, 2, 1, 0, 3]);
    let off = setting(serde_json::json!({"enabled": false}));
    assert_eq!(spread_of(&off, true, "eu/a/1", &endpoints), None);
    assert_eq!(spread_of(&plain, true, "", &endpoints), None, "where the client is unknown nothing is near");
    let failover = setting(serde_json::json!({"failover": [{"from": "eu", "to": "us"}]}));
    let spread = spread_of(&failover, true, "eu/a/1", &endpoints).unwrap();
    assert_eq!(priorities(&spread), [3, 2, 1, 0, 4]);
    let labels: Vec<&str> = spread.groups.iter().map(|group| &*group.label).collect();
    assert_eq!(labels, ["eu/a/1", "eu/a", "eu", "other region", "elsewhere"]);
    // Levels that nobody is on leave no gap.
    assert_eq!(priorities(&spread_of(&failover, true, "eu/c/1", &["ap/a", "eu/a"]).unwrap()), [1, 0]);
}

#[test]
fn labels_are_compared_from_the_first_on() {
    let setting = setting(serde_json::json!({"failoverPriority": [
        "topology.kubernetes.io/region", "topology.istio.io/network", "version=v1", "app", "kubernetes.io/hostname",
    ]}));
    let client = parse("eu/a");
    let (here, there) = (NodeName::new("node-1"), NodeName::new("node-2"));
    let (v1, v2) =
        ([("version".to_owned(), "v1".to_owned())].into(), [("version".to_owned(), "v2".to_owned())].into());
    let (eu, us) = (parse("eu/b"), parse("us/a"));
    let place = |locality, node, labels| Place { locality, node: Some(node), labels: Some(labels) };
    let endpoints = [
        place(&eu, &here, &v1),
        place(&eu, &there, &v1),
        place(&eu, &here, &v2),
        place(&us, &here, &v1),
        Place { locality: &eu, node: None, labels: None },
    ];
    let from = Place { locality: &client, node: Some(&here), labels: None };
    let spread = spreading(Some(&setting), true, from, &endpoints).unwrap();
    assert_eq!(priorities(&spread), [0, 1, 2, 3, 2]);
    assert!(is_comparable("a=b") && is_comparable("topology.istio.io/network") && !is_comparable("app"));
}

/// `applyFailoverPriorities` and `applyLocalityFailover`, line by line, for single endpoints: the raw priority of each.
fn naive(
    client: &Locality,
    host: &str,
    endpoints: &[(Locality, String, BTreeMap<String, String>)],
    labels: &[(&str, Option<&str>)],
    failover: &[(&str, &str)],
) -> Vec<usize> {
    let value = |locality: &Locality, host: &str, own: Option<&BTreeMap<String, String>>, key: &str| match key
    {
        "topology.kubernetes.io/region" => locality.region.to_string(),
        "topology.kubernetes.io/zone" => locality.zone.to_string(),
        "topology.istio.io/subzone" => locality.subzone.to_string(),
        "kubernetes.io/hostname" => host.to_owned(),
        key => own.and_then(|own| own.get(key)).cloned().unwrap_or_default(),
    };
    let mut all = Vec::new();
    for (locality, at, own) in endpoints {
        let mut priority = 0;
        for (index, (key, fixed)) in labels.iter().enumerate() {
            let wanted = fixed.map_or_else(|| value(client, host, None, key), str::to_owned);
            if wanted != value(locality, at, Some(own), key) {
                priority = labels.len() - index;
                break;
            }
        }
        if labels.is_empty() || !failover.is_empty() {
            let mut near = if client.region != locality.region {
                3
            } else if client.zone != locality.zone {
                2
            } else {
                usize::from(client.subzone != locality.subzone)
            };
            if near == 3 {
                for (from, to) in failover {
                    if *from == &*client.region {
                        if *to != &*locality.region {
                            near = 4;
                        }
                        break;
                    }
                }
            }
            priority = priority * 5 + near;
        }
        all.push(priority);
    }
    all
}

fn place() -> impl Strategy<Value = Locality> {
    let one = |from: &'static [&'static str]| prop::sample::select(from);
    (one(&REGIONS), one(&ZONES), one(&SUBZONES))
        .prop_map(|(region, zone, subzone)| locality(region, zone, subzone))
}

fn label() -> impl Strategy<Value = (&'static str, Option<&'static str>)> {
    prop_oneof![
        prop::sample::select(vec![
            "topology.kubernetes.io/region",
            "topology.kubernetes.io/zone",
            "topology.istio.io/subzone",
            "kubernetes.io/hostname"
        ])
        .prop_map(|key| (key, None)),
        prop::sample::select(vec!["v1", "v2"]).prop_map(|value| ("version", Some(value))),
        prop::sample::select(vec!["eu", "us"])
            .prop_map(|value| ("topology.kubernetes.io/region", Some(value))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// Whoever is nearer comes first, whoever is as near comes with them, and no priority is left out.
    #[test]
    fn failover_order_is_istios(
        client in place(),
        endpoints in prop::collection::vec((place(), prop::sample::select(vec!["n1", "n2"]), prop::sample::select(vec!["v1", "v2"])), 0..12),
        labels in prop::collection::vec(label(), 0..4),
        failover in prop::collection::vec((prop::sample::select(vec!["eu", "us"]), prop::sample::select(vec!["us", "ap"])), 0..3),
    ) {
        let own = |version: &str| BTreeMap::from([("version".to_owned(), version.to_owned())]);
        let endpoints: Vec<_> = endpoints
            .into_iter()
            .map(|(locality, node, version)| (locality, node.to_owned(), own(version)))
            .collect();
        let written: Vec<String> = labels
            .iter()
            .map(|(key, value)| value.map_or_else(|| (*key).to_owned(), |value| format!("{key}={value}")))
            .collect();
        let setting = LocalityLbSetting {
            failover: failover
                .iter()
                .map(|(from, to)| Failover { from: (*from).into(), to: (*to).into(), ..Failover::default() })
                .collect(),
            failover_priority: written,
            ..LocalityLbSetting::default()
        };
        let nodes: Vec<NodeName> = endpoints.iter().map(|(_, node, _)| NodeName::new(node.as_str())).collect();
        let places: Vec<Place<'_>> = endpoints
            .iter()
            .zip(&nodes)
            .map(|((locality, _, labels), node)| Place { locality, node: Some(node), labels: Some(labels) })
            .collect();
        let host = NodeName::new("n1");
        let from = Place { locality: &client, node: Some(&host), labels: None };
        let spread = spreading(Some(&setting), true, from, &places);
        if labels.is_empty() && client.region.is_empty() && client.zone.is_empty() {
            prop_assert_eq!(spread, None);
            return Ok(());
        }
        let raw = naive(&client, "n1", &endpoints, &labels, &failover);
        let levels: BTreeSet<usize> = raw.iter().copied().collect();
        let rank = |level: &usize| levels.iter().position(|other| other == level).unwrap() as u8;
        let wanted: Vec<u8> = raw.iter().map(rank).collect();
        prop_assert_eq!(priorities(&spread.unwrap()), wanted);
    }
}
