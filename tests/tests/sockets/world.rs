//! A client, pods behind services, and a script of calls run to both: what it prints must be the same.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use mesh_common::abi::{LAYOUT_VERSION, OpenFlow, UdpPeer, UdpPeerKey};
use mesh_common::names::map;
use mesh_tests::{Agent, Lab, Node, Pod, PodSpec, Process, SECONDS_10, SECONDS_30, binary, eventually};

/// Each kind of socket, as `mesh-sockets --family` names it.
pub(crate) const FAMILIES: [&str; 3] = ["v4", "v6", "mapped"];

/// Ports of the servers in the pods.
const TCP: u16 = 8080;
const UDP: u16 = 5353;
/// Nobody serves there.
const CLOSED: u16 = 9;
/// Ports of the services.
const SERVICE_TCP: u16 = 80;
const SERVICE_UDP: u16 = 53;
const SERVICE_CLOSED: u16 = 81;

/// Client and `near` on the one node, `far` and `other` on the other. Service `a` has `far` behind it, `b` has `near`,
/// `nobody` nothing; `many` is `far` again, with many ports; `own` is
/// the client; `other` is in no service.
pub(crate) struct World {
    pub(crate) client: Pod,
    pub(crate) near: Pod,
    pub(crate) far: Pod,
    pub(crate) other: Pod,
    pub(crate) node: Node,
    _lab: Lab,
    agent: Option<Agent>,
    unserved: Pod,
}

/// How a script is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// To the pods, by a process that no agent serves.
    Without,
    /// To the pods, by one that the agent serves.
    ToPods,
    /// To the services, by one that the agent serves.
    ToServices,
    /// To the services, by a process that no agent serves.
    ToServicesWithout,
}

impl World {
    /// With the agent running, and servers in the pods.
    pub(crate) fn start() -> Result<Self> {
        let mut world = Self::without_agent()?;
        world.serve(&[])?;
        world.start_agent()?;
        Ok(world)
    }

    /// Without either.
    pub(crate) fn without_agent() -> Result<Self> {
        let lab = Lab::unique()?;
        let (node, elsewhere) = (lab.node("node-a")?, lab.node("node-b")?);
        let client = node.pod(PodSpec::new("client"))?;
        let near = node.pod(PodSpec::new("near"))?;
        let (far, other) = (elsewhere.pod(PodSpec::new("far"))?, elsewhere.pod(PodSpec::new("other"))?);
        let manifests = lab.manifests();
        manifests.apply("pods.yaml", &[&client, &near, &far, &other].map(Pod::manifest).join("---\n"))?;
        let services = [("a", "far"), ("b", "near"), ("own", "client"), ("nobody", "nobody")]
            .map(|(name, app)| service(name, app));
        manifests.apply("services.yaml", &[&services[..], &[many_ports()]].concat().join("---\n"))?;
        for pod in [&near, &far, &other] {
            // The tests ask for more than a burst of them.
            let unlimited = ["ipv4/icmp_ratelimit", "ipv6/icmp/ratelimit"];
            pod.netns().run(move || {
                unlimited.iter().try_for_each(|key| std::fs::write(format!("/proc/sys/net/{key}"), "0"))
            })??;
        }
        let unserved = client.unserved()?;
        Ok(Self { client, near, far, other, node, _lab: lab, agent: None, unserved })
    }

    pub(crate) fn start_agent(&mut self) -> Result<()> {
        self.agent = Some(self.node.agent().start()?);
        Ok(())
    }

    /// Starts a server of streams, with these flags, and one of datagrams in every pod but the client's.
    pub(crate) fn serve(&self, flags: &[&str]) -> Result<()> {
        for pod in [&self.near, &self.far, &self.other] {
            pod.serve(&[&["--listen", &format!("[::]:{TCP}")], flags].concat())?;
            pod.serve(&["--udp", "--listen", &format!("[::]:{UDP}")])?;
        }
        Ok(())
    }

    /// Runs a script to its end.
    pub(crate) fn run(&self, way: Way, family: &str, script: &str) -> Result<Vec<String>> {
        ended(&self.begin(way, family, script)?)
    }

    /// Starts a script.
    pub(crate) fn begin(&self, way: Way, family: &str, script: &str) -> Result<Process> {
        let program = binary("mesh-sockets")?;
        let pod = match way {
            Way::Without | Way::ToServicesWithout => &self.unserved,
            Way::ToPods | Way::ToServices => &self.client,
        };
        let mut argv = vec![program.to_string_lossy().into_owned(), "--family".to_owned(), family.to_owned()];
        for name in self.names(way, family == "v6") {
            argv.extend(["--name".to_owned(), name]);
        }
        argv.push(script.to_owned());
        pod.spawn(&argv.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Runs a script without the mesh to the pods, with it to the pods, and with it to the services, over each kind of
    /// socket. All must see the same, and `expected` among it, in that order.
    pub(crate) fn same(&self, script: &str, expected: &[&str]) -> Result<()> {
        self.same_over(&FAMILIES, script, expected)
    }

    /// The same, over some kinds.
    pub(crate) fn same_over(&self, families: &[&str], script: &str, expected: &[&str]) -> Result<()> {
        let ways = [Way::Without, Way::ToPods, Way::ToServices];
        families.iter().try_for_each(|family| self.compare(family, &ways, script, expected))
    }

    /// Runs a script to the services without the mesh and with it: as they are none of its business, both see the same.
    pub(crate) fn untouched(&self, families: &[&str], script: &str, expected: &[&str]) -> Result<()> {
        let ways = [Way::ToServicesWithout, Way::ToServices];
        families.iter().try_for_each(|family| self.compare(family, &ways, script, expected))
    }

    /// Runs a script in several ways, over one kind of socket. All must see what the first sees.
    pub(crate) fn compare(&self, family: &str, ways: &[Way], script: &str, expected: &[&str]) -> Result<()> {
        let [first, others @ ..] = ways else { return Ok(()) };
        let before = self.run(*first, family, script)?;
        contains(&before, expected).with_context(|| format!("{family}, {first:?}"))?;
        others.iter().try_for_each(|way| {
            equal(&before, &self.run(*way, family, script)?).with_context(|| format!("{family}, {way:?}"))
        })
    }

    /// Runs a script to the services, over each kind of socket, and looks for what must be seen, in that order.
    pub(crate) fn sees(&self, script: &str, expected: &[&str]) -> Result<()> {
        for family in FAMILIES {
            contains(&self.run(Way::ToServices, family, script)?, expected)
                .with_context(|| family.to_owned())?;
        }
        Ok(())
    }

    /// Once all scripts have ended, the kernel's maps hold nothing of their sockets.
    pub(crate) fn keeps_nothing(&self) -> Result<()> {
        let pin = |name: &str| self.node.bpffs().join(format!("maps-v{LAYOUT_VERSION}")).join(name);
        eventually(SECONDS_10, "no open flow is kept", || is_empty::<u64, OpenFlow>(&pin(map::OPEN_FLOWS)))?;
        eventually(SECONDS_10, "no peer is kept", || is_empty::<UdpPeerKey, UdpPeer>(&pin(map::UDP_PEERS)))
    }

    fn names(&self, way: Way, v6: bool) -> Vec<String> {
        let services = matches!(way, Way::ToServices | Way::ToServicesWithout);
        let ip = |pod: &Pod| if v6 { IpAddr::V6(pod.v6) } else { IpAddr::V4(pod.v4) };
        let mut names = vec![format!("self={}", text(ip(&self.client), 0))];
        for (name, pod) in [("a", &self.far), ("b", &self.near), ("own", &self.client)] {
            let (address, ports) = if services {
                (service_ip(name, v6), [SERVICE_TCP, SERVICE_UDP, SERVICE_CLOSED])
            } else {
                (ip(pod), [TCP, UDP, CLOSED])
            };
            for (kind, port) in ["tcp", "udp", "closed"].iter().zip(ports) {
                names.push(format!("{kind}.{name}={}", text(address, port)));
            }
        }
        // For sockets that speak both.
        let (address, ports) = if services {
            (service_ip("a", true), [SERVICE_TCP, SERVICE_UDP])
        } else {
            (self.far.v6.into(), [TCP, UDP])
        };
        for (kind, port) in ["tcp", "udp"].iter().zip(ports).filter(|_| !v6) {
            names.push(format!("{kind}.a6={}", text(address, port)));
        }
        if !v6 {
            names.push(format!("self6={}", text(self.client.v6.into(), 0)));
        }
        let nobody = service_ip("nobody", v6);
        names.extend([
            format!("tcp.other={}", text(ip(&self.other), TCP)),
            format!("udp.other={}", text(ip(&self.other), UDP)),
            format!("tcp.nobody={}", text(nobody, SERVICE_TCP)),
            format!("udp.nobody={}", text(nobody, SERVICE_UDP)),
        ]);
        for (number, target, port) in many() {
            let address =
                if services { text(service_ip("many", v6), port) } else { text(ip(&self.far), target) };
            names.push(format!("{number}.many={address}"));
        }
        if services {
            names.push(format!("udp.behind={}", text(ip(&self.far), UDP)));
        }
        names
    }
}

/// Waits for a script's end and returns its lines.
pub(crate) fn ended(process: &Process) -> Result<Vec<String>> {
    let finished = process.wait(SECONDS_30)?;
    ensure!(finished.status.success(), "{}", finished.stderr);
    let line = finished.stdout.lines().last().context("mesh-sockets printed nothing")?;
    serde_json::from_str(line).with_context(|| line.to_owned())
}

/// `expected` is among the lines, in that order. Forms of addresses (`/28`), which the kind of socket decides, aside.
pub(crate) fn contains(lines: &[String], expected: &[&str]) -> Result<()> {
    let plain: Vec<String> = lines.iter().map(|line| without_forms(line)).collect();
    let mut rest = plain.iter();
    for wanted in expected {
        ensure!(rest.any(|line| line == wanted), "no line `{wanted}` (in this order) in {plain:#?}");
    }
    Ok(())
}

fn without_forms(line: &str) -> String {
    ["/mapped28", "/28", "/16"].iter().fold(line.to_owned(), |line, form| line.replace(form, ""))
}

pub(crate) fn equal(without: &[String], with: &[String]) -> Result<()> {
    let lines = || without.iter().zip(with);
    let differing: Vec<String> = lines()
        .filter(|(without, with)| without != with)
        .map(|(without, with)| format!("without: {without}\nwith:    {with}"))
        .collect();
    ensure!(differing.is_empty(), "the application can tell:\n{}\nin {with:#?}", differing.join("\n"));
    ensure!(without.len() == with.len(), "{without:#?}\n{with:#?}");
    Ok(())
}

fn is_empty<K: aya::Pod, V: aya::Pod>(pin: &Path) -> Option<()> {
    let map = Map::from_map_data(MapData::from_pin(pin).ok()?).ok()?;
    HashMap::<_, K, V>::try_from(map).ok()?.keys().next().is_none().then_some(())
}

fn text(ip: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(ip, port).to_string()
}

fn service_ip(name: &str, v6: bool) -> IpAddr {
    let number = ["a", "b", "nobody", "many", "own"]
        .iter()
        .position(|known| *known == name)
        .map_or(99, |index| index + 11);
    let number = u8::try_from(number).unwrap_or(99);
    if v6 {
        Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, u16::from(number)).into()
    } else {
        Ipv4Addr::new(10, 96, 0, number).into()
    }
}

/// Number, port in the pod and port of the service for each of many ports of datagrams.
pub(crate) fn many() -> impl Iterator<Item = (u16, u16, u16)> {
    (0..20).map(|number| (number, 7000 + number, 9000 + number))
}

fn service(name: &str, app: &str) -> String {
    let ports = [
        ("tcp", SERVICE_TCP, TCP, "TCP"),
        ("udp", SERVICE_UDP, UDP, "UDP"),
        ("tcp-closed", SERVICE_CLOSED, CLOSED, "TCP"),
        ("udp-closed", SERVICE_CLOSED, CLOSED, "UDP"),
    ];
    let ports = ports.map(|(port, number, target, protocol)| port_of(port, number, target, protocol));
    service_with(name, app, &ports.concat())
}

/// `far` again, with many ports.
fn many_ports() -> String {
    let ports: Vec<String> =
        many().map(|(number, target, port)| port_of(&format!("p{number}"), port, target, "UDP")).collect();
    service_with("many", "far", &ports.concat())
}

fn port_of(name: &str, port: u16, target: u16, protocol: &str) -> String {
    format!("  - {{name: {name}, port: {port}, targetPort: {target}, protocol: {protocol}}}\n")
}

fn service_with(name: &str, app: &str, ports: &str) -> String {
    let (v4, v6) = (service_ip(name, false), service_ip(name, true));
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: default\nspec:\n  clusterIP: {v4}\n  \
         clusterIPs: [{v4}, \"{v6}\"]\n  ipFamilies: [IPv4, IPv6]\n  ipFamilyPolicy: PreferDualStack\n  \
         selector: {{app: {app}}}\n  ports:\n{ports}"
    )
}
