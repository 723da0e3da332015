//! What the kernel then holds.

use mesh_tests::{Lab, SECONDS_30};

use super::super::super::load::Backend;
use super::*;

#[test]
fn the_kernel_holds_what_was_generated() {
    let lab = Lab::unique().expect("a lab");
    let node = lab.node("node-a").expect("a node");
    let without_counters = Config { nfacct: false, ..config() };
    for services in [two_services(), features()] {
        let rules = full_iptables(&without_counters, &services);
        for backend in [Backend::IptablesNft, Backend::IptablesLegacy] {
            backend.flush(&node).expect("flushed");
            backend.load(&lab, &node, &[], &[&rules], SECONDS_30).expect("loaded");
            let held = Iptables::parse(&backend.list(&node, SECONDS_30).expect("listed"));
            held.assert_is(&Iptables::parse(&rules), &format!("{backend:?}"));
        }
    }
    // A change and what it makes stale come to the same as all of it anew.
    let (old, mut new) = (two_services(), two_services());
    new[0].endpoints[1].address = "10.244.1.12".parse().expect("an address");
    let stale = iptables::stale_chains(&old[0], &new[0]);
    let change = iptables::restore(&without_counters, &new, Sync::Partial(0), &stale);
    for backend in [Backend::IptablesNft, Backend::IptablesLegacy] {
        backend.flush(&node).expect("flushed");
        let all = full_iptables(&without_counters, &old);
        backend.load(&lab, &node, &[], &[&all, &change], SECONDS_30).expect("loaded and changed");
        let held = Iptables::parse(&backend.list(&node, SECONDS_30).expect("listed"));
        held.assert_is(
            &Iptables::parse(&full_iptables(&without_counters, &new)),
            &format!("{backend:?}, changed"),
        );
    }
    for (services, wrote) in [(two_services(), NFT_TWO), (features(), NFT_FEATURES)] {
        Backend::Nftables.flush(&node).expect("flushed");
        let wrote = Nftables::of_listing(wrote);
        // What a change loads is accepted where all of it is there, and changes nothing that has not changed.
        for sync in [Sync::Full, Sync::Partial(1)] {
            let transaction = nftables::transaction(&config(), &services, sync);
            Backend::Nftables.load(&lab, &node, &[], &[&transaction], SECONDS_30).expect("loaded");
            let held = Nftables::of_listing(&Backend::Nftables.list(&node, SECONDS_30).expect("listed"));
            held.of_families_in(&wrote).assert_is(&wrote, &format!("nftables, {sync:?}"));
        }
    }
}
