//! What of a `ServiceEntry` or a `WorkloadEntry` is not carried out, told from the object alone.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{IGNORED, Notices};
use crate::resources::Code;
use crate::resources::entry::{
    EndpointAddress, Resolution, ServiceEntry, WorkloadEntry, WorkloadEntrySpec, speaks_hbone,
};
use crate::resources::fields;
use crate::resources::translate::entry::{addresses, is_served, places};

pub(super) fn service_entry(notices: &mut Notices, entry: &ServiceEntry) {
    let spec = &entry.spec;
    notices.top_level(&entry.rest);
    notices.rest("spec", &spec.rest, IGNORED);
    for (index, port) in spec.ports.iter().enumerate() {
        notices.rest(&format!("spec.ports[{index}]"), &port.rest, IGNORED);
    }
    if let Some(selector) = &spec.workload_selector {
        notices.rest("spec.workloadSelector", &selector.rest, IGNORED);
    }
    if !is_served(entry) {
        // Nothing else of it is in force.
        let message = format!("{}: {}", spec.resolution.as_str(), resolution(spec.resolution));
        notices.add(Code::EntryResolution, "spec.resolution", message);
        return;
    }
    reach(notices, entry);
    for (index, endpoint) in spec.endpoints.iter().enumerate() {
        let at = format!("spec.endpoints[{index}]");
        notices.rest(&at, &endpoint.rest, IGNORED);
        let what = "the endpoint is left out";
        self::endpoint(notices, &at, endpoint, what, ("ServiceEntry", "spec.endpoints[].network"));
        let may_have_identity = entry.is_internal() && endpoint.account().is_some();
        if speaks_hbone(&endpoint.labels) && !may_have_identity {
            without_identity(notices, format!("{at}.labels"));
        }
    }
    twice(notices, entry);
    let selector = spec.workload_selector.as_ref();
    if selector.is_some_and(|selector| selector.labels.is_empty()) {
        let message = "a selector without labels selects nothing: connections are refused";
        notices.add(Code::EntrySelectsNothing, "spec.workloadSelector", message);
    } else if selector.is_none() && places(entry, &notices.object).is_empty() {
        let message = "no endpoint that can be connected to: connections are refused";
        notices.add(Code::EntryWithoutEndpoints, "spec.endpoints", message);
    }
    if !spec.subject_alt_names.is_empty() {
        not_yet(notices, "spec.subjectAltNames", "ServiceEntry", "spec.subjectAltNames");
    }
}

const fn resolution(resolution: Resolution) -> &'static str {
    match resolution {
        Resolution::None => {
            "the entry is no service here: connections to its hosts go to the address that they ask for, as they are"
        }
        Resolution::Dns | Resolution::DnsRoundRobin | Resolution::DynamicDns => {
            "names are not resolved here: the entry is no service, connections to its hosts leave as they are"
        }
        Resolution::Static => "",
    }
}

/// How clients come to its hosts.
fn reach(notices: &mut Notices, entry: &ServiceEntry) {
    let spec = &entry.spec;
    for (index, address) in spec.addresses.iter().enumerate() {
        let network = address.parse::<IpNet>().ok();
        if network.is_some_and(|network| network.prefix_len() < network.max_prefix_len()) {
            let message = format!("{address} is not served: connections to its addresses leave as they are");
            notices.add(Code::EntryNetwork, format!("spec.addresses[{index}]"), message);
        }
    }
    for (index, host) in spec.hosts.iter().enumerate().filter(|(_, host)| !host.contains('.')) {
        let message = format!(
            "{host} is the short name of a Kubernetes Service, whether there is one or not: the entry has no effect on it"
        );
        notices.add(Code::EntryHostClash, format!("spec.hosts[{index}]"), message);
    }
    if addresses(entry).is_empty() {
        let message = "without an address the hosts are reached as destinations of routes alone";
        notices.add(Code::EntryWithoutAddress, "spec.addresses", message);
        return;
    }
    if !entry.is_for_everybody() {
        not_yet(notices, "spec.exportTo", "ServiceEntry", "spec.exportTo");
        return;
    }
    let mut hosts = entry.hosts();
    if let (Some(first), Some(_)) = (hosts.next(), hosts.next()) {
        let message = format!(
            "what comes to the addresses does not say which host it means: the routes of {first} hold there, the \
             other hosts are destinations of routes alone"
        );
        notices.add(Code::EntryAddressShared, "spec.hosts", message);
    }
}

pub(super) fn workload_entry(notices: &mut Notices, entry: &WorkloadEntry) {
    notices.top_level(&entry.rest);
    notices.rest("spec", &entry.spec.rest, IGNORED);
    let what = "it is no workload, and no endpoint of whoever selects it";
    endpoint(notices, "spec", &entry.spec, what, ("WorkloadEntry", "spec.network"));
    if speaks_hbone(&entry.labels()) && entry.spec.account().is_none() {
        let field = if speaks_hbone(&entry.spec.labels) { "spec.labels" } else { "metadata.labels" };
        without_identity(notices, field.to_owned());
    }
}

fn endpoint(
    notices: &mut Notices,
    at: &str,
    endpoint: &WorkloadEntrySpec,
    what: &str,
    network: (&str, &str),
) {
    let field = format!("{at}.address");
    let why = match endpoint.target() {
        EndpointAddress::Ip(_) => None,
        EndpointAddress::Nothing => Some("there is no address".to_owned()),
        EndpointAddress::Unix(path) => Some(format!("{path} is a socket of its client's own machine")),
        EndpointAddress::Name(name) => Some(format!("{name} is a name, and names are not resolved here")),
    };
    if let Some(why) = why {
        notices.add(Code::EntryEndpoint, field, format!("{why}: {what}"));
    }
    if !endpoint.network.is_empty() {
        not_yet(notices, &format!("{at}.network"), network.0, network.1);
    }
}

/// Of an endpoint that is written twice the first counts.
fn twice(notices: &mut Notices, entry: &ServiceEntry) {
    let mut seen = BTreeSet::new();
    for place in places(entry, &notices.object) {
        let endpoint = &entry.spec.endpoints[place.index];
        let mut is_new = entry.spec.ports.is_empty();
        for port in &entry.spec.ports {
            is_new |= seen.insert((place.address, port.number, endpoint.port(&port.name)));
        }
        if !is_new {
            let message =
                format!("{} stands above with the same ports: this one is passed over", place.address);
            notices.add(
                Code::EntryEndpointTwice,
                format!("spec.endpoints[{}].address", place.index),
                message,
            );
        }
    }
}

fn without_identity(notices: &mut Notices, field: String) {
    let message = "it takes HBONE, and nothing says which identity it must show: it is reached in plaintext";
    notices.add(Code::TunnelWithoutAccount, field, message);
}

/// In the words of the table of fields.
fn not_yet(notices: &mut Notices, field: &str, kind: &str, path: &str) {
    let note = fields::note(kind, path).unwrap_or("not honoured yet");
    notices.add(Code::NotHonouredYet, field, note);
}

#[cfg(test)]
mod tests {
    use crate::resources::decode;
    use crate::resources::lint::lint;

    #[test]
    fn what_is_not_carried_out_is_named() {
        let entry = |spec: &str| {
            format!(
                "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: a}}\nspec: {{hosts: [a.com], {spec}}}\n"
            )
        };
        let workload = |spec: &str| {
            format!(
                "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: a}}\nspec: {{{spec}}}\n"
            )
        };
        let ports = "resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}]";
        let good = "addresses: [10.0.0.1], endpoints: [{address: 10.0.0.2}]";
        let cases: Vec<(&str, String, Vec<(&str, &str, &str)>)> = vec![
            (
                "all is carried out",
                entry(&format!(
                    "{ports}, addresses: [10.0.0.1], location: MESH_INTERNAL, exportTo: ['*'], endpoints: [{{address: 10.0.0.2, weight: 3, locality: r/z, serviceAccount: a, labels: {{networking.istio.io/tunnel: http}}, ports: {{http: 81}}}}]"
                )),
                vec![],
            ),
            ("no resolution", entry("ports: []"), vec![("MESH0701", "spec.resolution", "NONE")]),
            (
                "dns",
                entry("resolution: DNS, subjectAltNames: [a]"),
                vec![("MESH0701", "spec.resolution", "DNS: names")],
            ),
            (
                "a name that nobody knows",
                entry(&format!("{ports}, {good}, prots: [], workloadSelector: {{label: 7}}"))
                    .replace("endpoints: [{address: 10.0.0.2}]", "location: MESH_INTERNAL"),
                vec![
                    ("MESH0005", "spec.prots", "unknown"),
                    ("MESH0005", "spec.workloadSelector.label", "unknown"),
                    ("MESH0708", "spec.workloadSelector", "selects nothing"),
                ],
            ),
            (
                "no address",
                entry(&format!("{ports}, exportTo: [.], endpoints: [{{address: 10.0.0.2}}]")),
                vec![("MESH0702", "spec.addresses", "routes alone")],
            ),
            (
                "a network",
                entry(&format!("{ports}, {good}"))
                    .replace("[10.0.0.1]", "[10.0.0.1, 10.1.0.0/16, 10.2.0.1/32]"),
                vec![("MESH0703", "spec.addresses[1]", "10.1.0.0/16")],
            ),
            (
                "two hosts",
                entry(&format!("{ports}, {good}")).replace("[a.com]", "[a.com, b.com]"),
                vec![("MESH0704", "spec.hosts", "a.com hold there")],
            ),
            (
                "a name without a dot",
                entry(&format!("{ports}, {good}")).replace("[a.com]", "[a.com, api]"),
                vec![("MESH0709", "spec.hosts[1]", "short name")],
            ),
            (
                "endpoints",
                entry(&format!(
                    "{ports}, addresses: [10.0.0.1], endpoints: [{{address: 'unix:///a'}}, {{address: b.com}}, {{network: n}}]"
                )),
                vec![
                    ("MESH0705", "spec.endpoints[0].address", "socket"),
                    ("MESH0705", "spec.endpoints[1].address", "name"),
                    ("MESH0705", "spec.endpoints[2].address", "no address"),
                    ("MESH0119", "spec.endpoints[2].network", "own network"),
                    ("MESH0707", "spec.endpoints", "refused"),
                ],
            ),
            (
                "the same endpoint again",
                entry(&format!(
                    "{ports}, addresses: [10.0.0.1], endpoints: [{{address: 10.0.0.2}}, {{address: 10.0.0.2, ports: {{http: 81}}}}, {{address: 10.0.0.2}}]"
                )),
                vec![("MESH0706", "spec.endpoints[2].address", "above")],
            ),
            (
                "whom it is exported to",
                entry(&format!("{ports}, {good}, exportTo: [.], subjectAltNames: [a]")),
                vec![
                    ("MESH0119", "spec.exportTo", "not served"),
                    ("MESH0119", "spec.subjectAltNames", "service account"),
                ],
            ),
            (
                "HBONE outside the mesh",
                entry(&format!(
                    "{ports}, addresses: [10.0.0.1], endpoints: [{{address: 10.0.0.2, serviceAccount: a, labels: {{networking.istio.io/tunnel: http}}}}]"
                )),
                vec![("MESH0710", "spec.endpoints[0].labels", "plaintext")],
            ),
            ("a workload", workload("address: 10.0.0.1, labels: {a: b}"), vec![]),
            (
                "a workload that is none",
                workload("address: vm.example.com, network: n, wieght: 3"),
                vec![
                    ("MESH0005", "spec.wieght", "unknown"),
                    ("MESH0705", "spec.address", "no workload"),
                    ("MESH0119", "spec.network", "own network"),
                ],
            ),
            (
                "a workload with HBONE",
                workload("address: 10.0.0.1, labels: {networking.istio.io/tunnel: http}"),
                vec![("MESH0710", "spec.labels", "plaintext")],
            ),
        ];
        for (name, text, wanted) in cases {
            let decoded = decode(&text);
            assert!(decoded.mistakes.is_empty(), "{name}: {decoded:?}");
            let notices = lint(&decoded.objects[0].object, "istio-system");
            assert_eq!(notices.len(), wanted.len(), "{name}: {notices:?}");
            for (notice, (code, field, message)) in notices.iter().zip(wanted) {
                assert_eq!((notice.code.as_str(), notice.field.as_str()), (code, field), "{name}");
                assert!(notice.message.contains(message), "{name}: {notice}");
            }
        }
    }
}
