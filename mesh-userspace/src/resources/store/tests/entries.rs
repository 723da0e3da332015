//! `ServiceEntry`s and `WorkloadEntry`s: as services, as endpoints, as what rules name, and against pods and Services that were
//! there before.

use std::net::IpAddr;

use super::*;
use crate::model::{ServiceKind, WorkloadKind};

/// An entry in `shop` with a port `http` (80, served at 8080) and a spec besides.
fn entry(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  resolution: STATIC\n  \
         ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 8080}}]\n  {}\n---\n",
        spec.replace("; ", "\n  ")
    )
}

fn workload_entry(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{{spec}}}\n---\n"
    )
}

fn pod(name: &str, address: &str, labels: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{{labels}}}}}\nspec: {{containers: []}}\n\
         status: {{podIP: {address}}}\n---\n"
    )
}

fn kubernetes(name: &str, address: &str, selector: &str, port: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{clusterIP: {address}, selector: \
         {{{selector}}}, ports: [{port}]}}\n---\n"
    )
}

fn splits(host: &str, namespace: &str, to: &[(&str, u32)]) -> String {
    let to: Vec<String> = to
        .iter()
        .map(|(host, weight)| {
            format!("{{destination: {{host: {host}, port: {{number: 80}}}}, weight: {weight}}}")
        })
        .collect();
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: split, namespace: {namespace}}}\nspec: {{hosts: [{host}], \
         http: [{{route: [{}]}}]}}\n---\n",
        to.join(", ")
    )
}

fn translated(text: &str) -> (Translator, Snapshot, Arc<[Notice]>) {
    let mut translator = Translator::new(MeshConfig::default());
    let (snapshot, notices) = translator.apply(upserts(text));
    (translator, snapshot, notices)
}

fn of_host<'a>(snapshot: &'a Snapshot, host: &str) -> &'a Arc<Service> {
    &snapshot.services[&ServiceName::new("shop", host)]
}

fn share(service: &Service) -> Vec<(String, u64)> {
    let backends = service.ports[0].route.v4.backends().iter();
    let to = |endpoint: Option<&crate::model::Endpoint>| {
        endpoint.map_or("-".to_owned(), |endpoint| endpoint.address.to_string())
    };
    backends.map(|backend| (to(backend.endpoint.as_ref()), backend.weight)).collect()
}

fn pairs(pairs: &[(&str, u64)]) -> Vec<(String, u64)> {
    pairs.iter().map(|&(to, weight)| (to.to_owned(), weight)).collect()
}

#[test]
fn each_host_is_a_service() {
    let spec = "hosts: [api.example.com, '*.example.org']; addresses: [192.0.2.1, 'fd00::1/128', 192.0.2.1/32, 198.51.100.0/24]; endpoints: \
                [{address: 10.0.0.1, weight: 3, locality: eu/eu-1/rack}, {address: 10.0.0.2, ports: {http: 81}}, {address: 'fd00::2'}, \
                {address: 'unix:///a'}, {address: vm.example.com}]";
    let (_, snapshot, _) = translated(&entry("api", spec));
    let service = of_host(&snapshot, "api.example.com");
    assert_eq!((service.kind, &*service.host), (ServiceKind::ServiceEntry, "api.example.com"));
    assert_eq!(service.addresses, ["192.0.2.1".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
    let port = &service.ports[0];
    assert_eq!(addresses(port.endpoints.iter()), ["10.0.0.1:8080", "10.0.0.2:81", "[fd00::2]:8080"]);
    assert_eq!(share(service), pairs(&[("10.0.0.1:8080", 3), ("10.0.0.2:81", 1)]));
    let first = &port.endpoints[0];
    assert_eq!((first.zone.as_deref(), first.weight, first.enrolled), (Some("eu-1"), 3, false));
    assert_eq!(first.locality.as_ref().map(|all| &*all.subzone), Some("rack"));
    // What comes to an address does not say which host it means.
    let other = of_host(&snapshot, "*.example.org");
    assert_eq!((other.addresses.len(), other.ports[0].endpoints.len()), (0, 3));
    let asked = "192.0.2.1:80".parse().unwrap();
    assert_eq!(&*snapshot.service_at(asked, Protocol::Tcp).unwrap().0.host, "api.example.com");
    assert_eq!(snapshot.frontends.len(), 2);
}

#[test]
fn what_is_not_static_is_no_service() {
    for resolution in ["NONE", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS"] {
        let spec = "hosts: [api.example.com]; addresses: [192.0.2.1]; endpoints: [{address: 10.0.0.1}]";
        let text = entry("api", spec).replace("STATIC", resolution);
        let (_, snapshot, notices) = translated(&text);
        assert!(snapshot.services.is_empty() && snapshot.frontends.is_empty(), "{resolution}");
        assert_eq!(notices.iter().map(|one| one.code).collect::<Vec<_>>(), [Code::EntryResolution]);
    }
}

#[test]
fn udp_and_the_protocol_of_routes() {
    let spec = "hosts: [api.example.com]; endpoints: [{address: 10.0.0.1}]";
    let text = entry("api", spec).replace("protocol: HTTP,", "protocol: UDP,");
    let (_, snapshot, _) = translated(&text);
    assert_eq!(of_host(&snapshot, "api.example.com").ports[0].protocol, Protocol::Udp);
    // A port of TCP does not take routes of http.
    let text = entry("api", spec).replace("protocol: HTTP,", "protocol: TCP,")
        + &splits("api.example.com", "shop", &[("web", 1)]);
    let (_, snapshot, _) = translated(&text);
    assert_eq!(of_host(&snapshot, "api.example.com").ports[0].route.rule, None);
}

/// Pods and workload entries; of the entry's namespace, with all the labels, and well.
#[test]
fn a_selector_finds_pods_and_workload_entries() {
    let elsewhere = pod("other", "10.0.0.9", "app: api").replace("namespace: shop", "namespace: bank");
    let unready = pod("unready", "10.0.0.8", "app: api, v: a")
        .replace("podIP: 10.0.0.8", "podIP: 10.0.0.8, conditions: [{type: Ready, status: 'False'}]");
    let ill = workload_entry("ill", "address: 10.0.0.7, labels: {app: api, v: a}").replace(
        "namespace: shop",
        "namespace: shop, annotations: {proxy.istio.io/health-checks-enabled: 'true'}",
    );
    let text = [
        entry(
            "api",
            "hosts: [api.example.com]; location: MESH_INTERNAL; workloadSelector: {labels: {app: api, v: a}}",
        ),
        pod("one", "10.0.0.1", "app: api, v: a"),
        pod("two", "10.0.0.2", "app: api, v: b"),
        workload_entry("vm", "address: 10.0.0.3, labels: {app: api, v: a}, weight: 2, ports: {http: 9000}"),
        workload_entry("other", "address: 10.0.0.4, labels: {app: api}"),
        elsewhere,
        unready,
        ill,
    ]
    .concat();
    let (mut translator, snapshot, _) = translated(&text);
    let service = of_host(&snapshot, "api.example.com");
    assert_eq!(share(service), pairs(&[("10.0.0.1:8080", 1), ("10.0.0.3:9000", 2)]));
    assert_eq!(service.ports[0].listed.len(), 4, "{service:?}");
    let vm = &snapshot.workloads[&WorkloadUid::workload_entry("shop", "vm")];
    assert_eq!((vm.kind, vm.node.as_ref(), vm.enrolled), (WorkloadKind::WorkloadEntry, None, false));
    assert!(snapshot.workload_at("10.0.0.3".parse().unwrap()).is_none(), "it takes no HBONE");
    // Weight, ports and labels change at runtime, and it goes.
    let step = |translator: &mut Translator, text: &str| {
        let (snapshot, _) = translator.apply(upserts(text));
        share(of_host(&snapshot, "api.example.com"))
    };
    let vm = |spec: &str| workload_entry("vm", &format!("address: 10.0.0.3, {spec}"));
    let heavy = step(&mut translator, &vm("labels: {app: api, v: a}, weight: 5"));
    assert_eq!(heavy, pairs(&[("10.0.0.1:8080", 1), ("10.0.0.3:8080", 5)]));
    assert_eq!(step(&mut translator, &vm("labels: {app: api}")), pairs(&[("10.0.0.1:8080", 1)]));
    assert_eq!(step(&mut translator, &vm("labels: {app: api, v: a}")).len(), 2);
    let gone = ObjectRef::new(Kind::WorkloadEntry, "shop", "vm");
    let (snapshot, _) = translator.apply([Change::Delete(gone)]);
    assert_eq!(share(of_host(&snapshot, "api.example.com")), pairs(&[("10.0.0.1:8080", 1)]));
    assert!(snapshot.workload_at("10.0.0.3".parse().unwrap()).is_none());
}

/// With slices as without: the control plane that writes them knows nothing of entries.
#[test]
fn a_kubernetes_service_selects_workload_entries() {
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}\n\
                 addressType: IPv4\nports: [{name: http, port: 9000}]\nendpoints: [{addresses: [10.0.0.1]}]\n---\n";
    for (slice, own) in [("", "10.0.0.1:8000"), (slice, "10.0.0.1:9000")] {
        let port = "{name: http, port: 80, targetPort: web}";
        let named = pod("one", "10.0.0.1", "app: web")
            .replace("containers: []", "containers: [{name: c, ports: [{name: web, containerPort: 8000}]}]");
        let text = [
            kubernetes("web", "10.96.0.1", "app: web", port),
            named,
            slice.to_owned(),
            workload_entry("vm", "address: 10.0.0.2, labels: {app: web}, ports: {web: 8001}, weight: 4"),
            workload_entry("nameless", "address: 10.0.0.3, labels: {app: web}"),
            workload_entry("six", "address: 'fd00::3', labels: {app: web}, ports: {web: 8001}"),
        ]
        .concat();
        let (mut translator, snapshot, _) = translated(&text);
        let web = &snapshot.services[&ServiceName::new("shop", "web")];
        assert_eq!(share(web), pairs(&[(own, 1), ("10.0.0.2:8001", 4)]));
        let (snapshot, _) =
            translator.apply(upserts(&workload_entry("vm", "address: 10.0.0.2, labels: {app: db}")));
        assert_eq!(share(&snapshot.services[&ServiceName::new("shop", "web")]), pairs(&[(own, 1)]));
    }
}

/// In whatever order the two come.
#[test]
fn rules_name_the_host() {
    let spec = "hosts: [api.example.com]; addresses: [192.0.2.1]; endpoints: [{address: 10.0.0.1, labels: {v: a}}, {address: 10.0.0.2, labels: {v: b}}]";
    let web = kubernetes("web", "10.96.0.1", "app: web", "{name: http, port: 80}")
        + &pod("web", "10.0.0.9", "app: web");
    let subset = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a, namespace: shop}\nspec: {host: api.example.com, \
                  subsets: [{name: a, labels: {v: a}}]}\n---\n";
    let split = splits("web", "shop", &[("api.example.com", 80), ("web", 20)])
        .replace("host: api.example.com, ", "host: api.example.com, subset: a, ");
    let own = splits("api.example.com", "shop", &[("web", 1)]).replace("name: split", "name: own");
    let texts = [entry("api", spec), web, subset.to_owned(), split, own];
    for first in 0..texts.len() {
        let mut translator = Translator::new(MeshConfig::default());
        for index in 0..texts.len() {
            translator.apply(upserts(&texts[(first + index) % texts.len()]));
        }
        let (snapshot, notices) = translator.apply([]);
        assert_eq!(*notices, [], "{first}");
        let web = &snapshot.services[&ServiceName::new("shop", "web")];
        assert_eq!(share(web), pairs(&[("10.0.0.1:8080", 80), ("10.0.0.9:80", 20)]), "{first}");
        assert_eq!(share(of_host(&snapshot, "api.example.com")), pairs(&[("10.0.0.9:80", 1)]), "{first}");
        // Without the entry both are rules for a host of nobody's.
        let gone = ObjectRef::new(Kind::ServiceEntry, "shop", "api");
        let (snapshot, notices) = translator.apply([Change::Delete(gone)]);
        let web = &snapshot.services[&ServiceName::new("shop", "web")];
        assert_eq!(share(web), pairs(&[("-", 80), ("10.0.0.9:80", 20)]), "{first}");
        let mut codes: Vec<Code> = notices.iter().map(|one| one.code).collect();
        codes.sort();
        assert_eq!(codes, [Code::DestinationUnknown, Code::ForeignHost, Code::ForeignHost], "{notices:?}");
    }
}

/// A host of two parts looks like a Service in a namespace.
#[test]
fn a_host_may_look_like_a_service_and_its_namespace() {
    let api = entry("api", "hosts: [example.com]; endpoints: [{address: 10.0.0.1}]");
    let (mut translator, snapshot, notices) =
        translated(&[api, splits("example.com", "shop", &[("example.com", 1)])].concat());
    assert_eq!(share(of_host(&snapshot, "example.com")), pairs(&[("10.0.0.1:8080", 1)]));
    assert!(notices.iter().all(|one| one.code == Code::EntryWithoutAddress), "{notices:?}");
    // Where there is such a Service, it is meant.
    let service = kubernetes("example", "10.96.0.1", "app: a", "{port: 80}")
        .replace("namespace: shop", "namespace: com");
    let (snapshot, _) = translator.apply(upserts(&service));
    assert_eq!(of_host(&snapshot, "example.com").ports[0].route.rule, None);
    assert_eq!(
        snapshot.services[&ServiceName::new("com", "example")].ports[0].route.rule.as_deref(),
        Some("shop/split")
    );
}

#[test]
fn whom_an_entry_is_exported_to() {
    let hosts = "hosts: [api.example.com]; endpoints";
    let shop = |to: &str| entry("api", &format!("{hosts}: [{{address: 10.0.0.1}}]; exportTo: {to}"));
    let bank = entry("api", &format!("{hosts}: [{{address: 10.0.0.2}}]"))
        .replace("namespace: shop", "namespace: bank");
    let web = kubernetes("web", "10.96.0.1", "app: web", "{name: http, port: 80}");
    let led = |entries: &str, namespace: &str| {
        let web = web.replace("namespace: shop", &format!("namespace: {namespace}"));
        let split = splits("web", namespace, &[("api.example.com", 1)]);
        let (_, snapshot, _) = translated(&[entries, &web, &split].concat());
        let web = &snapshot.services[&ServiceName::new(namespace, "web")];
        share(web).first().map_or("-".to_owned(), |(to, _)| to.clone())
    };
    let cases = [
        (shop("['*']"), "mall", "10.0.0.1:8080"),
        (shop("[.]"), "mall", "-"),
        (shop("[.]"), "shop", "10.0.0.1:8080"),
        (shop("[mall]"), "mall", "10.0.0.1:8080"),
        // One's own comes first, whatever else is exported.
        (shop("['*']") + &bank, "bank", "10.0.0.2:8080"),
        (shop("['*']") + &bank, "shop", "10.0.0.1:8080"),
        (shop("[.]") + &bank, "mall", "10.0.0.2:8080"),
    ];
    for (entries, namespace, wanted) in cases {
        assert_eq!(led(&entries, namespace), wanted, "{namespace}: {entries}");
    }
}

/// A host, an address and a frontend are whose they were by right.
#[test]
fn an_entry_takes_nothing_from_pods_and_services() {
    let spec = "hosts: [web.shop.svc.cluster.local, api.example.com]; addresses: [10.96.0.1]; endpoints: [{address: 10.0.0.9}]";
    let text = [
        entry("api", spec).replace("namespace: shop", "namespace: aaa"),
        kubernetes("web", "10.96.0.1", "app: web", "{name: http, port: 80}"),
        pod("zzz", "10.0.0.1", "app: web, istio.io/dataplane-mode: ambient"),
        // It says that it has the pod's address, and speaks HBONE.
        workload_entry(
            "aaa",
            "address: 10.0.0.1, serviceAccount: thief, labels: {networking.istio.io/tunnel: http}",
        )
        .replace("namespace: shop", "namespace: aaa"),
        entry(
            "led",
            "hosts: [led.example.com]; location: MESH_INTERNAL; endpoints: [{address: 10.0.0.1, serviceAccount: thief, labels: {networking.istio.io/tunnel: http}}]",
        ),
    ]
    .concat();
    let (mut translator, snapshot, notices) = translated(&text);
    let (owner, _) = snapshot.service_at("10.96.0.1:80".parse().unwrap(), Protocol::Tcp).unwrap();
    assert_eq!(owner.name, ServiceName::new("shop", "web"));
    let taken = ServiceName::new("aaa", "web.shop.svc.cluster.local");
    assert!(!snapshot.services.contains_key(&taken));
    let owner = snapshot.workload_at("10.0.0.1".parse().unwrap()).unwrap();
    assert_eq!(owner.uid, WorkloadUid::pod("shop", "zzz"));
    let led = &of_host(&snapshot, "led.example.com").ports[0].endpoints[0];
    assert_eq!(led.workload, Some(WorkloadUid::pod("shop", "zzz")));
    let clashes: Vec<String> = notices
        .iter()
        .filter(|one| one.code == Code::AddressClash)
        .map(|one| one.object.to_string())
        .collect();
    assert!(clashes.contains(&"WorkloadEntry aaa/aaa".to_owned()), "{clashes:?}");
    // Once the Service and the pod are gone, nothing stands in the way.
    let (snapshot, _) = translator.apply([
        Change::Delete(ObjectRef::new(Kind::Service, "shop", "web")),
        Change::Delete(ObjectRef::new(Kind::Pod, "shop", "zzz")),
    ]);
    let (owner, _) = snapshot.service_at("10.96.0.1:80".parse().unwrap(), Protocol::Tcp).unwrap();
    assert_eq!(owner.name, taken);
    let owner = snapshot.workload_at("10.0.0.1".parse().unwrap()).unwrap();
    assert_eq!(owner.uid, WorkloadUid::workload_entry("aaa", "aaa"));
}

/// Who takes HBONE, and under which identity.
#[test]
fn identities() {
    let tunnel = "networking.istio.io/tunnel: http";
    let cases = [
        ("plaintext", "MESH_INTERNAL", "serviceAccount: vm".to_owned(), None),
        ("HBONE", "MESH_INTERNAL", format!("serviceAccount: vm, labels: {{{tunnel}}}"), Some("vm")),
        ("nobody", "MESH_INTERNAL", format!("labels: {{{tunnel}}}"), None),
        ("outside", "MESH_EXTERNAL", format!("serviceAccount: vm, labels: {{{tunnel}}}"), None),
    ];
    for (name, location, endpoint, wanted) in cases {
        let spec = format!(
            "hosts: [a.example.com]; location: {location}; endpoints: [{{address: 10.0.0.1, {endpoint}}}]"
        );
        let (_, snapshot, _) = translated(&entry("a", &spec));
        let found = &of_host(&snapshot, "a.example.com").ports[0].endpoints[0];
        assert_eq!((found.enrolled, found.in_mesh()), (wanted.is_some(), wanted.is_some()), "{name}");
        let workload = &snapshot.workloads[found.workload.as_ref().unwrap()];
        assert_eq!(
            (workload.kind, workload.enrolled),
            (WorkloadKind::ServiceEntry, wanted.is_some()),
            "{name}"
        );
        // Only who has an identity is behind its address for those who ask for that.
        assert_eq!(snapshot.workload_at("10.0.0.1".parse().unwrap()).is_some(), wanted.is_some(), "{name}");
        if let Some(account) = wanted {
            assert_eq!(workload.identity.to_string(), format!("spiffe://cluster.local/ns/shop/sa/{account}"));
        }
    }
    let text = workload_entry(
        "vm",
        &format!("address: 10.0.0.1, serviceAccount: vm, labels: {{{tunnel}, app: vm}}"),
    ) + &entry(
        "a",
        "hosts: [a.example.com]; location: MESH_EXTERNAL; workloadSelector: {labels: {app: vm}}",
    ) + "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: shop}\nspec: {selector: {matchLabels: {app: vm}}, mtls: {mode: STRICT}}\n";
    let (_, snapshot, _) = translated(&text);
    let found = &of_host(&snapshot, "a.example.com").ports[0].endpoints[0];
    assert_eq!((found.enrolled, found.mode), (true, Mode::Strict));
}

#[test]
fn of_two_entries_the_older_has_the_host() {
    let made = |name: &str, when: &str, address: &str| {
        entry(name, &format!("hosts: [a.example.com]; endpoints: [{{address: {address}}}]")).replace(
            "namespace: shop",
            &format!("namespace: shop, creationTimestamp: '2026-01-0{when}T00:00:00Z'"),
        )
    };
    let (mut translator, snapshot, _) =
        translated(&[made("a", "2", "10.0.0.2"), made("b", "1", "10.0.0.1")].concat());
    assert_eq!(share(of_host(&snapshot, "a.example.com")), pairs(&[("10.0.0.1:8080", 1)]));
    let gone = ObjectRef::new(Kind::ServiceEntry, "shop", "b");
    let (snapshot, _) = translator.apply([Change::Delete(gone)]);
    assert_eq!(share(of_host(&snapshot, "a.example.com")), pairs(&[("10.0.0.2:8080", 1)]));
}

#[test]
fn a_change_of_an_endpoint_costs_its_service_alone() {
    let one = |last: u8| {
        let endpoints = format!("[{{address: 10.0.0.1}}, {{address: 10.0.0.{last}}}]");
        entry("a", &format!("hosts: [a.example.com]; addresses: [192.0.2.1]; endpoints: {endpoints}"))
    };
    let others = entry("b", "hosts: [b.example.com]; endpoints: [{address: 10.0.0.1}]")
        + &kubernetes("web", "10.96.0.1", "app: web", "{port: 80}")
        + &pod("web", "10.0.0.9", "app: web");
    let (mut translator, before, _) = translated(&(one(2) + &others));
    let (after, _) = translator.apply(upserts(&one(3)));
    for (name, service) in &before.services {
        let is_kept = Arc::ptr_eq(service, &after.services[name]);
        assert_eq!(is_kept, &*name.name != "a.example.com", "{name}");
    }
    let kept = WorkloadUid::endpoint("shop", "a", "10.0.0.1".parse().unwrap(), 1);
    assert!(Arc::ptr_eq(&before.workloads[&kept], &after.workloads[&kept]));
    assert_eq!(before.workloads.len(), after.workloads.len());
}

/// An entry that cannot be read leaves the one before in force.
#[test]
fn an_entry_that_is_wrong_changes_nothing() {
    let good = entry("a", "hosts: [a.example.com]; endpoints: [{address: 10.0.0.1}]");
    let (mut translator, before, _) = translated(&good);
    let decoded = decode(&good.replace("10.0.0.1", "10.0.0.256"));
    assert_eq!((decoded.objects.len(), decoded.mistakes.len()), (0, 1));
    assert_eq!(decoded.mistakes[0].field, "spec.endpoints[0].address");
    let (after, _) = translator.apply(decoded.objects.into_iter().map(|item| Change::Upsert(item.object)));
    assert_eq!((after.generation, &after.services), (before.generation, &before.services));
}

const TUNNEL: &str = "networking.istio.io/tunnel: http";

fn node(name: &str, address: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nstatus: {{addresses: [{{type: InternalIP, address: {address}}}]}}\n---\n"
    )
}

/// The API server's own Service, with a slice.
fn api_server(address: &str) -> String {
    kubernetes("kubernetes", "10.96.0.1", "", "{name: https, port: 443}")
        .replace("selector: {}, ", "")
        .replace("namespace: shop", "namespace: default")
        + &format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: kubernetes, namespace: default, labels: \
             {{kubernetes.io/service-name: kubernetes}}}}\naddressType: IPv4\nports: [{{name: https, port: 6443}}]\nendpoints: \
             [{{addresses: [{address}]}}]\n---\n"
        )
}

/// Whoever else says that it has a workload's address: the workload is reached as it says itself.
#[test]
fn an_entry_is_reached_as_it_says_itself() {
    let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n---\n";
    let own = [
        workload_entry(
            "vm-1",
            &format!("address: 10.20.0.7, serviceAccount: vm, labels: {{app: vm, {TUNNEL}}}"),
        ),
        entry("vm", "hosts: [vm.example.com]; workloadSelector: {labels: {app: vm}}"),
        kubernetes("vm", "10.96.0.9", "app: vm", "{name: http, port: 80}"),
        strict.to_owned(),
    ]
    .concat();
    let names = [ServiceName::new("shop", "vm.example.com"), ServiceName::new("shop", "vm")];
    for labels in ["app: vm".to_owned(), TUNNEL.to_owned()] {
        let other =
            workload_entry("x", &format!("address: 10.20.0.7, serviceAccount: x, labels: {{{labels}}}"))
                .replace("namespace: shop", "namespace: aaa");
        let (_, snapshot, _) = translated(&[own.as_str(), &other].concat());
        for name in &names {
            let found = &snapshot.services[name].ports[0].endpoints[0];
            assert_eq!(found.workload, Some(WorkloadUid::workload_entry("shop", "vm-1")), "{name} {labels}");
            assert_eq!((found.enrolled, found.mode), (true, Mode::Strict), "{name} {labels}");
        }
    }
}

/// In whatever order they come, and as nodes and the API server move.
#[test]
fn entries_have_no_say_over_nodes_and_the_api_server() {
    let taken = "172.18.0.9";
    let entries = workload_entry("x", &format!("address: {taken}, serviceAccount: x, labels: {{{TUNNEL}}}"))
        + &entry(
            "x",
            &format!("hosts: [x.example.com]; addresses: [{taken}]; endpoints: [{{address: 10.0.0.9}}]"),
        )
        // Its port is the API server's.
        .replace("number: 80", "number: 6443");
    let asked = || (taken.parse::<IpAddr>().unwrap(), format!("{taken}:6443").parse().unwrap());
    let says = |snapshot: &Snapshot| {
        let (address, frontend) = asked();
        let service = snapshot.services.get(&ServiceName::new("default", "kubernetes"));
        let is_hbone =
            service.is_some_and(|service| service.ports[0].endpoints.iter().any(|one| one.enrolled));
        assert!(!is_hbone);
        (snapshot.workload_at(address).is_some(), snapshot.service_at(frontend, Protocol::Tcp).is_some())
    };
    let (mut translator, snapshot, _) = translated(&entries);
    assert_eq!(says(&snapshot), (true, true));
    for (with, without) in [
        (node("n", taken), node("n", "172.18.0.1")),
        (api_server(taken), api_server("172.18.0.1")),
        (node("n", taken) + &api_server(taken), node("n", "172.18.0.1") + &api_server("172.18.0.1")),
    ] {
        let before = translator.apply([]).0.reowned;
        let (snapshot, _) = translator.apply(upserts(&with));
        assert_eq!(says(&snapshot), (false, false), "{with}");
        assert_ne!(snapshot.reowned, before, "no workload became different");
        assert_eq!(says(&translator.apply(upserts(&without)).0), (true, true), "{without}");
        assert_eq!(says(&translated(&[entries.as_str(), &with].concat()).1), (false, false), "{with}");
    }
}

/// Which addresses of an entry are served.
#[test]
fn an_address_is_served_where_it_is_nobodys_and_the_entry_everybodys() {
    let spec = "hosts: [a.example.com]; addresses: [10.0.0.1]; endpoints: [{address: 10.0.0.9}]";
    let is_served =
        |snapshot: &Snapshot| snapshot.service_at("10.0.0.1:80".parse().unwrap(), Protocol::Tcp).is_some();
    for (to, wanted) in
        [("[]", true), ("['*']", true), ("[bank, '*']", true), ("[.]", false), ("[bank]", false)]
    {
        let (_, snapshot, _) = translated(&entry("a", &format!("{spec}; exportTo: {to}")));
        assert_eq!(is_served(&snapshot), wanted, "{to}");
        assert_eq!(of_host(&snapshot, "a.example.com").ports[0].endpoints.len(), 1, "{to}");
    }
    let (mut translator, snapshot, _) = translated(&entry("a", spec));
    assert!(is_served(&snapshot));
    assert!(!is_served(&translator.apply(upserts(&pod("web", "10.0.0.1", "app: web"))).0));
    let gone = Change::Delete(ObjectRef::new(Kind::Pod, "shop", "web"));
    assert!(is_served(&translator.apply([gone]).0));
}

#[test]
fn of_two_entries_the_older_has_the_address() {
    let made = |name: &str, when: &str| {
        let spec = format!(
            "hosts: [{name}.example.com]; addresses: [192.0.2.1]; endpoints: [{{address: 10.0.0.1}}]"
        );
        let workload = format!("address: 10.0.0.1, serviceAccount: {name}, labels: {{{TUNNEL}}}");
        (entry(name, &spec) + &workload_entry(name, &workload)).replace(
            "namespace: shop",
            &format!("namespace: shop, creationTimestamp: '2026-01-0{when}T00:00:00Z'"),
        )
    };
    let owners = |snapshot: &Snapshot| {
        let (service, _) = snapshot.service_at("192.0.2.1:80".parse().unwrap(), Protocol::Tcp).unwrap();
        let workload = snapshot.workload_at("10.0.0.1".parse().unwrap()).unwrap();
        (service.name.name.to_string(), workload.name.to_string())
    };
    let wanted = |name: &str| (format!("{name}.example.com"), name.to_owned());
    let (mut translator, snapshot, _) = translated(&[made("a", "2"), made("b", "1")].concat());
    assert_eq!(owners(&snapshot), wanted("b"));
    // Made anew, and otherwise the same.
    assert_eq!(owners(&translator.apply(upserts(&made("b", "3"))).0), wanted("a"));
}

#[test]
fn hosts_mean_the_same_in_capital_letters() {
    let text = [
        entry("a", "hosts: [API.example.com]; addresses: [192.0.2.1]; endpoints: [{address: 10.0.0.1}, {address: 10.0.0.2, labels: {v: b}}]"),
        kubernetes("web", "10.96.0.1", "app: web", "{name: http, port: 80}"),
        splits("Web.Shop", "shop", &[("Api.Example.com", 1)])
            .replace("port: {number: 80}", "subset: b, port: {number: 80}"),
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d, namespace: shop}\nspec: {host: api.EXAMPLE.com, subsets: [{name: b, labels: {v: b}}]}\n---\n".to_owned(),
    ]
    .concat();
    let (_, snapshot, _) = translated(&text);
    assert_eq!(of_host(&snapshot, "api.example.com").ports[0].endpoints.len(), 2);
    let web = &snapshot.services[&ServiceName::new("shop", "web")];
    assert_eq!(share(web), pairs(&[("10.0.0.2:8080", 1)]));
}
