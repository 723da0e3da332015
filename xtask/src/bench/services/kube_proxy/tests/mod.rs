//! The generated rules against those that kube-proxy v1.36.3 wrote, for the same services.
//!
//! Names are computed as kube-proxy does, so nothing stands for anything else. Put aside are: counters and comments of
//! `iptables-save`, the order in which kube-proxy walks its services (that of a Go map: another one each time), and how
//! `nft list` writes a few things differently from what it read. The last test asks the kernel itself.

mod loaded;
mod parse;

use super::{Cidr, Config, Endpoint, Protocol, Service, Sync, iptables, nftables};
use parse::{Iptables, Nftables};

const IPTABLES_TWO: &str = include_str!("../fixtures/iptables-two-services.txt");
const IPTABLES_FEATURES: &str = include_str!("../fixtures/iptables-features.txt");
const NFT_TWO: &str = include_str!("../fixtures/nft-two-services.txt");
const NFT_FEATURES: &str = include_str!("../fixtures/nft-features.txt");

fn cidr(text: &str) -> Cidr {
    text.parse().expect("a block of addresses")
}

fn config() -> Config {
    Config {
        cluster_cidr: cidr("10.244.0.0/16"),
        service_cidr: cidr("10.96.0.0/12"),
        node_ip: "192.168.77.2".parse().expect("an address"),
        nfacct: true,
    }
}

fn service(
    name: &str,
    port_name: &str,
    address: &str,
    port: u16,
    endpoints: &[(&str, u16, bool)],
) -> Service {
    let endpoints = endpoints.iter().map(|(address, port, local)| Endpoint {
        address: address.parse().expect("an address"),
        port: *port,
        local: *local,
    });
    Service {
        endpoints: endpoints.collect(),
        ..Service::new(name, port_name, address.parse().expect("an address"), port)
    }
}

/// A TCP service; a UDP service with affinity and a node port; the API server's own, without endpoints.
fn two_services() -> Vec<Service> {
    let dns = service(
        "dns",
        "dns-udp",
        "10.96.10.11",
        53,
        &[("10.244.1.10", 5353, true), ("10.244.1.11", 5353, false)],
    );
    vec![
        service(
            "web",
            "http",
            "10.96.10.10",
            80,
            &[("10.244.1.10", 8080, true), ("10.244.1.11", 8080, false)],
        ),
        Service { protocol: Protocol::Udp, node_port: Some(30053), affinity: Some(10800), ..dns },
        service("kubernetes", "https", "10.96.0.1", 443, &[]),
    ]
}

/// One of every other kind beside them. Of `zoned` and `terminating` topology and readiness leave one endpoint.
fn features() -> Vec<Service> {
    let address = |text: &str| text.parse().expect("an address");
    let one = [("10.244.1.10", 8080, true)];
    let mut services = two_services();
    services.extend([
        Service {
            node_port: Some(30443),
            load_balancer_ips: vec![address("192.0.2.10")],
            source_ranges: vec![cidr("192.168.77.0/24"), cidr("203.0.113.0/24")],
            external_local: true,
            health_check_node_port: Some(31999),
            ..service(
                "lb-local",
                "p",
                "10.96.20.1",
                443,
                &[("10.244.0.2", 8443, true), ("10.244.1.10", 8443, false)],
            )
        },
        Service {
            external_ips: vec![address("198.51.100.7")],
            ..service("ext-ip", "p", "10.96.20.2", 80, &[one[0], ("10.244.1.11", 8080, false)])
        },
        Service {
            internal_local: true,
            ..service("int-local", "p", "10.96.20.3", 80, &[("10.244.1.11", 8080, false)])
        },
        Service { node_port: Some(30080), ..service("no-eps", "p", "10.96.20.4", 80, &[]) },
        Service {
            protocol: Protocol::Sctp,
            ..service("sctp", "p", "10.96.20.5", 7777, &[("10.244.1.10", 7777, false)])
        },
        service("zoned", "p", "10.96.20.6", 80, &one),
        service("terminating", "p", "10.96.20.7", 80, &one),
    ]);
    services
}

fn full_iptables(config: &Config, services: &[Service]) -> String {
    format!("{}{}", iptables::BASE, iptables::restore(config, services, Sync::Full, &[]))
}

#[test]
fn iptables_rules_are_those_that_kube_proxy_wrote() {
    for (name, services, wrote) in
        [("two services", two_services(), IPTABLES_TWO), ("features", features(), IPTABLES_FEATURES)]
    {
        let generated = Iptables::parse(&full_iptables(&config(), &services));
        generated.assert_is(&Iptables::parse(wrote), name);
    }
}

#[test]
fn nftables_rules_are_those_that_kube_proxy_wrote() {
    for (name, services, wrote) in
        [("two services", two_services(), NFT_TWO), ("features", features(), NFT_FEATURES)]
    {
        let wrote = Nftables::of_listing(wrote);
        let generated = Nftables::of_transaction(&nftables::transaction(&config(), &services, Sync::Full));
        generated.of_families_in(&wrote).assert_is(&wrote, name);
    }
}

#[test]
fn a_rule_that_differs_is_noticed() {
    let wrote = Iptables::parse(IPTABLES_FEATURES);
    let text = full_iptables(&config(), &features());
    for (from, to) in [
        ("--probability 0.5", "--probability 0.25"),
        ("-m conntrack --ctstate NEW ", ""),
        (" -j KUBE-MARK-MASQ\n", " -j RETURN\n"),
        ("! -s 10.244.0.0/16 ", ""),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from} is in the rules");
        assert!(Iptables::parse(&changed) != wrote, "{from}");
    }
    let wrote = Nftables::of_listing(NFT_TWO);
    let text = nftables::transaction(&config(), &two_services(), Sync::Full);
    for (from, to) in [
        ("numgen random mod 2", "numgen random mod 3"),
        ("ct state new ", ""),
        ("priority srcnat", "priority filter"),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from} is in the rules");
        assert!(Nftables::of_transaction(&changed) != wrote, "{from}");
    }
}

#[test]
fn a_partial_sync_writes_the_changed_service_alone_and_what_all_share() {
    let services = two_services();
    let text = iptables::restore(&config(), &services, Sync::Partial(0), &["KUBE-SEP-STALE".to_owned()]);
    let own =
        |hash: &str| text.lines().filter(|line| line.starts_with(&format!("-A KUBE-SVC-{hash}"))).count();
    assert_eq!(
        (own("CDGGSHYLG3RE2FKL"), own("TJNQAFVVOGT7RPK2")),
        (3, 0),
        "the chain of web, not that of dns"
    );
    let shared = text.lines().filter(|line| line.starts_with("-A KUBE-SERVICES")).count();
    assert_eq!(shared, 4, "each service's entry, and the node ports'");
    assert!(text.contains(":KUBE-SEP-STALE - [0:0]\n") && text.contains("-X KUBE-SEP-STALE\n"), "{text}");

    let transaction = nftables::transaction(&config(), &services, Sync::Partial(0));
    assert!(!transaction.contains("dns"), "{transaction}");
    assert_eq!(transaction.lines().filter(|line| line.starts_with("add rule")).count(), 1, "{transaction}");
}

#[test]
fn a_large_cluster_has_no_comments_on_its_endpoints() {
    let many = (0..501).map(|number| {
        let (name, address) = (format!("s{number}"), format!("10.97.{}.{}", number / 250, number % 250 + 1));
        service(&name, "", &address, 80, &[("10.244.2.10", 80, false), ("10.244.2.11", 80, false)])
    });
    let many: Vec<Service> = many.collect();
    let text = |services: &[Service]| iptables::restore(&config(), services, Sync::Full, &[]);
    let commented = |text: &str| {
        let rules =
            text.lines().filter(|line| line.starts_with("-A KUBE-SEP-") || line.contains("--probability"));
        rules.filter(|line| line.contains("--comment")).count()
    };
    assert_eq!(commented(&text(&many[..500])), 5 * 500, "1,000 endpoints are not many");
    assert_eq!(commented(&text(&many)), 0);
    assert!(iptables::looks_for_stale_chains(&many[..500]) && !iptables::looks_for_stale_chains(&many));
    assert!(text(&many).contains(r#"--comment "default/s7 cluster IP""#), "services keep theirs");
}

#[test]
fn an_endpoint_that_went_leaves_a_stale_chain() {
    let old = two_services().remove(0);
    let mut new = old.clone();
    new.endpoints[1].port = 8081;
    assert_eq!(iptables::stale_chains(&old, &new), ["KUBE-SEP-ELX6N4Z5RGB67TLC"]);
    assert_eq!(iptables::stale_chains(&old, &old), Vec::<String>::new());
}
