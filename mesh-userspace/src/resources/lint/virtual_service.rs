//! What of a `VirtualService` is not carried out, or only for some clients.

use super::{IGNORED, Notices, shadowed};
use crate::resources::Code;
use crate::resources::istio::{PortSelector, Rest};
use crate::resources::translate::actions::{actions, copies};
use crate::resources::translate::visibility::Namespaces;
use crate::resources::virtual_service::{Destination, List, Match, RouteEntry, VirtualService, is_for_mesh};

const KIND: &str = "VirtualService";
const NEVER: &str = "unknown field: this alternative never matches";

pub(super) fn virtual_service(notices: &mut Notices, rule: &VirtualService) {
    let spec = &rule.spec;
    notices.top_level(&rule.rest);
    notices.fields(KIND, "spec", &spec.rest, IGNORED);
    if spec.gateways.iter().any(|gateway| gateway != "mesh") {
        let message =
            "gateways other than mesh are not honoured yet: no route holds for what comes through them";
        notices.add(Code::GatewayNotHonoured, "spec.gateways", message);
    }
    match Namespaces::exported(&spec.export_to, &notices.object.namespace) {
        Namespaces::All => {}
        Namespaces::Some(named) if named.is_empty() => {
            notices.add(Code::ExportedToNobody, "spec.exportTo", "~ is nobody: the rule holds for no client");
        }
        Namespaces::Some(named) => {
            let named = named.iter().map(|name| &**name).collect::<Vec<_>>().join(", ");
            let message = format!(
                "the rule is for enrolled clients in {named}: of others nobody knows the namespace, they go as without it"
            );
            notices.add(Code::NeedsEnrolledClient, "spec.exportTo", message);
        }
    }
    for list in [List::Http, List::Tls, List::Tcp] {
        let entries = spec.list(list);
        for (index, entry) in entries.iter().enumerate() {
            route(notices, list, &format!("spec.{}[{index}]", list.as_str()), entry);
        }
        shadowed::routes(notices, list, entries);
    }
}

fn route(notices: &mut Notices, list: List, at: &str, entry: &RouteEntry) {
    notices.fields(KIND, at, &entry.rest, IGNORED);
    for name in misplaced(list, entry) {
        notices.add(Code::UnknownField, format!("{at}.{name}"), IGNORED);
    }
    for (index, one) in entry.matches.iter().enumerate() {
        let at = format!("{at}.match[{index}]");
        notices.fields(KIND, &at, &one.rest, NEVER);
        for name in misplaced_match(list, one) {
            notices.add(Code::UnknownField, format!("{at}.{name}"), NEVER);
        }
    }
    for (index, target) in entry.route.iter().enumerate() {
        let at = format!("{at}.route[{index}]");
        notices.fields(KIND, &at, &target.rest, IGNORED);
        destination(notices, &format!("{at}.destination"), &target.destination);
    }
    if list == List::Http {
        action_fields(notices, at, entry);
    }
    if entry.route.is_empty() {
        let message = "a route without destinations is skipped at layer 4: the next one that holds is taken";
        notices.add(Code::RouteWithoutDestination, format!("{at}.route"), message);
        return;
    }
    let needs = needs(list, entry);
    if !needs.is_empty() {
        let message = format!(
            "{} hold for enrolled clients: others {}",
            needs.join(", "),
            if asks_source(entry) {
                "take the next route"
            } else {
                "go where the route leads, by weights alone"
            }
        );
        notices.add(Code::NeedsEnrolledClient, at, message);
    }
    let carried = carried(list, entry);
    if !carried.is_empty() {
        let message = format!(
            "{} hold for the connections that agents carry, those of enrolled clients and of clients from outside: others go where the \
             route leads, by weights alone",
            carried.join(", ")
        );
        notices.add(Code::NeedsEnrolledClient, at, message);
    }
}

/// Fields of `http` in another list.
fn misplaced(list: List, entry: &RouteEntry) -> Vec<&'static str> {
    if list == List::Http {
        return Vec::new();
    }
    let fields = [
        ("name", entry.name.is_some()),
        ("timeout", entry.timeout.is_some()),
        ("retries", entry.retries.is_some()),
        ("fault", entry.fault.is_some()),
        ("mirror", entry.mirror.is_some()),
        ("mirrors", !entry.mirrors.is_empty()),
        ("mirrorPercentage", entry.mirror_percentage.is_some()),
        ("mirrorPercent", entry.mirror_percent.is_some()),
        ("mirror_percent", entry.mirror_percent_v1.is_some()),
    ];
    fields.into_iter().filter(|(_, is_there)| *is_there).map(|(name, _)| name).collect()
}

/// Fields of another list's matches.
fn misplaced_match(list: List, one: &Match) -> Vec<&'static str> {
    let fields = [
        ("name", one.name.is_some(), list == List::Http),
        ("statPrefix", one.stat_prefix.is_some(), list == List::Http),
        ("sniHosts", !one.sni_hosts.is_empty(), list == List::Tls),
        ("destinationSubnets", !one.destination_subnets.is_empty(), list != List::Http),
        ("sourceSubnet", one.source_subnet.is_some(), list == List::Tcp),
    ];
    fields.into_iter().filter(|(_, is_there, belongs)| *is_there && !belongs).map(|(name, ..)| name).collect()
}

fn destination(notices: &mut Notices, at: &str, destination: &Destination) {
    notices.fields(KIND, at, &destination.rest, IGNORED);
    if let Some(PortSelector { rest, .. }) = &destination.port {
        notices.fields(KIND, &format!("{at}.port"), rest, IGNORED);
    }
}

/// Names what stands in the fields of actions.
fn action_fields(notices: &mut Notices, at: &str, entry: &RouteEntry) {
    let mut inside: Vec<(String, &Rest)> = Vec::new();
    inside.extend(entry.retries.iter().map(|retries| (format!("{at}.retries"), &retries.rest)));
    if let Some(fault) = &entry.fault {
        inside.push((format!("{at}.fault"), &fault.rest));
        inside.extend(fault.delay.iter().map(|delay| (format!("{at}.fault.delay"), &delay.rest)));
        inside.extend(fault.abort.iter().map(|abort| (format!("{at}.fault.abort"), &abort.rest)));
    }
    let mut percentages = vec![(format!("{at}.mirrorPercentage"), entry.mirror_percentage.as_ref())];
    for (index, mirror) in entry.mirrors.iter().enumerate() {
        inside.push((format!("{at}.mirrors[{index}]"), &mirror.rest));
        percentages.push((format!("{at}.mirrors[{index}].percentage"), mirror.percentage.as_ref()));
    }
    if let Some(fault) = &entry.fault {
        let of_delay = fault.delay.as_ref().and_then(|delay| delay.percentage.as_ref());
        let of_abort = fault.abort.as_ref().and_then(|abort| abort.percentage.as_ref());
        percentages.push((format!("{at}.fault.delay.percentage"), of_delay));
        percentages.push((format!("{at}.fault.abort.percentage"), of_abort));
    }
    inside.extend(percentages.into_iter().filter_map(|(at, percentage)| Some((at, &percentage?.rest))));
    for (at, rest) in inside {
        notices.fields(KIND, &at, rest, IGNORED);
    }
    let copies = entry.mirrors.iter().enumerate();
    let copies =
        copies.map(|(index, mirror)| (format!("{at}.mirrors[{index}].destination"), &mirror.destination));
    for (at, to) in entry.mirror.iter().map(|to| (format!("{at}.mirror"), to)).chain(copies) {
        destination(notices, &at, to);
    }
}

/// What of a route the agent alone can carry out.
fn needs(list: List, entry: &RouteEntry) -> Vec<&'static str> {
    let of_match = |what: &dyn Fn(&Match) -> bool| {
        entry.matches.iter().any(|one| is_for_mesh(&one.gateways) && one.rest.is_empty() && what(one))
    };
    let mut needs = Vec::new();
    let mut note = |name, is_there| {
        if is_there {
            needs.push(name);
        }
    };
    note("sourceLabels", of_match(&|one| !one.source_labels.is_empty()));
    note("sourceNamespace", of_match(&|one| one.source_namespace.is_some()));
    note("sourceSubnet", of_match(&|one| list == List::Tcp && one.source_subnet.is_some()));
    note("sniHosts", of_match(&|one| list == List::Tls && !one.sni_hosts.is_empty()));
    if list == List::Http {
        let actions = actions(entry);
        note("fault", actions.delay.is_some() || actions.abort.is_some());
        note("mirror", !copies(entry).is_empty());
    }
    needs
}

/// What of a route is done to every connection that an agent carries, and to no other.
fn carried(list: List, entry: &RouteEntry) -> Vec<&'static str> {
    let actions = actions(entry);
    let named = [("timeout", actions.timeout.is_some()), ("retries", actions.retries.is_some())];
    named.into_iter().filter(|(_, is_there)| *is_there && list == List::Http).map(|(name, _)| name).collect()
}

fn asks_source(entry: &RouteEntry) -> bool {
    entry.matches.iter().any(|one| {
        !one.source_labels.is_empty()
            || one.source_namespace.is_some()
            || one.source_subnet.is_some()
            || !one.sni_hosts.is_empty()
    })
}
