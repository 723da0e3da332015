//! What an enrolled pod's namespace has besides its own: fwmark rules, routes, one sysctl.
//!
//! ```text
//! rule 10   fwmark DELIVER   table 15006     local default dev lo
//! rule 20   fwmark CAPTURE   table 15001     local default dev lo src POD_ADDRESS
//! rule 100  table local                      (moved there from 0: below the two above)
//! net.ipv4.tcp_fwmark_accept = 1              what an application answers finds its way back to the agent,
//! net.ipv4.fwmark_reflect = 1, net.ipv6 too    a refusal as well
//! ```
//!
//! Laying is idempotent; taking up leaves the namespace as it was.

use std::fs;
use std::future::Future;
use std::io;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use mesh_common::abi::{MARK_CAPTURE, MARK_DELIVER};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

use crate::sysctls::SYSCTLS;

/// Table of captured connections.
const TABLE_CAPTURE: u32 = 15001;
/// Table of the agent's connections to applications.
const TABLE_DELIVER: u32 = 15006;
const PREF_DELIVER: u32 = 10;
const PREF_CAPTURE: u32 = 20;
const PREF_LOCAL: u32 = 100;
/// `RT_TABLE_LOCAL`.
const TABLE_LOCAL: u32 = 255;
/// `LOOPBACK_IFINDEX`.
const LOOPBACK: u32 = 1;

/// What the namespace had before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Before {
    /// Which of [`SYSCTLS`] were on.
    sysctls: [bool; SYSCTLS.len()],
}

/// Something that is missing: its kind, as the metrics name it, and what to say of it.
pub(super) type Lack = (&'static str, String);

/// Reads what will be changed. Call inside the namespace.
pub(super) fn before() -> io::Result<Before> {
    let mut sysctls = [false; SYSCTLS.len()];
    for (path, was_on) in SYSCTLS.iter().zip(&mut sysctls) {
        *was_on = is_on(path)?;
    }
    Ok(Before { sysctls })
}

/// One that is not there counts as on: there is nothing to switch.
fn is_on(path: &str) -> io::Result<bool> {
    match fs::read_to_string(path) {
        Ok(value) => Ok(value.trim() == "1"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// Lays rules, routes and sysctls for a namespace with these addresses, of which `own` are its pod's. Call on a thread inside
/// the namespace.
pub(super) fn lay(addresses: &[IpAddr], own: &[IpAddr]) -> io::Result<()> {
    for path in SYSCTLS {
        if !is_on(path)? {
            fs::write(path, "1")?;
        }
    }
    with_netlink(async |netlink| {
        for version in versions(addresses) {
            let source = own_source(&version, own);
            netlink.replace_route(local_default(&version, TABLE_CAPTURE, source)).await?;
            netlink.replace_route(local_default(&version, TABLE_DELIVER, None)).await?;
            netlink.add_rule(&version, PREF_LOCAL, None, TABLE_LOCAL).await?;
            netlink.add_rule(&version, PREF_CAPTURE, Some(MARK_CAPTURE), TABLE_CAPTURE).await?;
            netlink.add_rule(&version, PREF_DELIVER, Some(MARK_DELIVER), TABLE_DELIVER).await?;
            netlink.delete_rules(&version, |rule| priority(rule) == 0 && table(rule) == TABLE_LOCAL).await?;
        }
        Ok(())
    })
}

/// Takes up what [`lay`] laid. Call on a thread inside the namespace.
pub(super) fn take_up(before: Before) -> io::Result<()> {
    with_netlink(async |netlink| {
        for version in [IpVersion::V4, IpVersion::V6] {
            let rules = match netlink.rules(&version).await {
                Ok(rules) => rules,
                // No such family on this kernel: nothing was laid.
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => continue,
                Err(error) => return Err(error),
            };
            if rules.iter().any(|rule| priority(rule) == PREF_LOCAL && table(rule) == TABLE_LOCAL) {
                netlink.add_rule(&version, 0, None, TABLE_LOCAL).await?;
            }
            netlink.delete_rules(&version, is_ours).await?;
            netlink.delete_routes(&version).await?;
        }
        Ok(())
    })?;
    for (path, _) in SYSCTLS.iter().zip(before.sysctls).filter(|(_, was_on)| !was_on) {
        // One that was never switched on is let be: it may be that it cannot be written.
        if is_on(path)? {
            fs::write(path, "0")?;
        }
    }
    Ok(())
}

/// What is missing of what [`lay`] laid, each with the kind of thing that it is. Call on a thread inside the namespace.
pub(super) fn missing(addresses: &[IpAddr], own: &[IpAddr]) -> io::Result<Vec<Lack>> {
    let mut missing = Vec::new();
    for path in SYSCTLS {
        if !is_on(path)? {
            missing.push(("sysctl", format!("{path} is off")));
        }
    }
    let more = with_netlink(async |netlink| {
        let mut missing = Vec::new();
        for version in versions(addresses) {
            let family = if matches!(version, IpVersion::V4) { "IPv4" } else { "IPv6" };
            let rules = netlink.rules(&version).await?;
            for pref in [PREF_DELIVER, PREF_CAPTURE, PREF_LOCAL] {
                if !rules.iter().any(|rule| priority(rule) == pref && is_ours(rule)) {
                    missing.push(("rules", format!("{family} rule {pref} is gone")));
                }
            }
            if rules.iter().any(|rule| priority(rule) == 0 && table(rule) == TABLE_LOCAL) {
                missing.push(("rules", format!("{family} rule 0 is back, ahead of the mesh's")));
            }
            let source = own_source(&version, own);
            let routes = netlink.routes(&version).await?;
            for (table, source) in [(TABLE_CAPTURE, source), (TABLE_DELIVER, None)] {
                if !routes.iter().any(|route| is_local_default(route, table, source)) {
                    missing.push(("routes", format!("{family} route in table {table} is gone or another")));
                }
            }
        }
        Ok(missing)
    })?;
    missing.extend(more);
    Ok(missing)
}

/// The address of a family that unbound sockets take.
fn own_source(version: &IpVersion, own: &[IpAddr]) -> Option<IpAddr> {
    own.iter().find(|address| address.is_ipv4() == matches!(version, IpVersion::V4)).copied()
}

fn is_local_default(route: &RouteMessage, table: u32, source: Option<IpAddr>) -> bool {
    let has_source = route.attributes.iter().any(
        |attribute| matches!(attribute, RouteAttribute::PrefSource(held) if source.map(Into::into).as_ref() == Some(held)),
    );
    let is_default = route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Local;
    route_table(route) == table && is_default && (source.is_none() || has_source)
}

fn versions(addresses: &[IpAddr]) -> Vec<IpVersion> {
    let v4 = addresses.iter().any(IpAddr::is_ipv4).then_some(IpVersion::V4);
    let v6 = addresses.iter().any(IpAddr::is_ipv6).then_some(IpVersion::V6);
    v4.into_iter().chain(v6).collect()
}

/// Runs a conversation with the kernel on this thread, whose namespace the socket belongs to.
fn with_netlink<T>(talk: impl AsyncFnOnce(&Netlink) -> io::Result<T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let result = talk(&Netlink(handle)).await;
        connection.abort();
        result
    })
}

struct Netlink(Handle);

impl Netlink {
    async fn rules(&self, version: &IpVersion) -> io::Result<Vec<RuleMessage>> {
        self.0.rule().get(copy(version)).execute().try_collect().await.map_err(io_error)
    }

    async fn add_rule(
        &self,
        version: &IpVersion,
        pref: u32,
        mark: Option<u32>,
        table: u32,
    ) -> io::Result<()> {
        let mut request = self.0.rule().add().priority(pref).table_id(table).action(RuleAction::ToTable);
        if let Some(mark) = mark {
            request = request.fw_mark(mark);
        }
        match version {
            IpVersion::V4 => allow(libc::EEXIST, request.v4().execute()).await,
            IpVersion::V6 => allow(libc::EEXIST, request.v6().execute()).await,
        }
    }

    async fn delete_rules(
        &self,
        version: &IpVersion,
        which: impl Fn(&RuleMessage) -> bool,
    ) -> io::Result<()> {
        for rule in self.rules(version).await?.into_iter().filter(|rule| which(rule)) {
            allow(libc::ENOENT, self.0.rule().del(rule).execute()).await?;
        }
        Ok(())
    }

    async fn replace_route(&self, route: RouteMessage) -> io::Result<()> {
        self.0.route().add(route).replace().execute().await.map_err(io_error)
    }

    async fn routes(&self, version: &IpVersion) -> io::Result<Vec<RouteMessage>> {
        let filter = match version {
            IpVersion::V4 => RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            IpVersion::V6 => RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        };
        self.0.route().get(filter).execute().try_collect().await.map_err(io_error)
    }

    async fn delete_routes(&self, version: &IpVersion) -> io::Result<()> {
        for route in self.routes(version).await? {
            if [TABLE_CAPTURE, TABLE_DELIVER].contains(&route_table(&route)) {
                allow(libc::ESRCH, self.0.route().del(route).execute()).await?;
            }
        }
        Ok(())
    }
}

const fn copy(version: &IpVersion) -> IpVersion {
    match version {
        IpVersion::V4 => IpVersion::V4,
        IpVersion::V6 => IpVersion::V6,
    }
}

/// `local default dev lo`, with the source address that unbound sockets take.
fn local_default(version: &IpVersion, table: u32, source: Option<IpAddr>) -> RouteMessage {
    let mut message = match version {
        IpVersion::V4 => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .destination_prefix(std::net::Ipv4Addr::UNSPECIFIED, 0)
            .output_interface(LOOPBACK)
            .table_id(table)
            .scope(RouteScope::Host)
            .kind(RouteType::Local)
            .build(),
        IpVersion::V6 => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
            .destination_prefix(std::net::Ipv6Addr::UNSPECIFIED, 0)
            .output_interface(LOOPBACK)
            .table_id(table)
            .scope(RouteScope::Universe)
            .kind(RouteType::Local)
            .build(),
    };
    if let Some(source) = source {
        message.attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    message
}

fn priority(rule: &RuleMessage) -> u32 {
    let priority = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    });
    priority.unwrap_or(0)
}

fn table(rule: &RuleMessage) -> u32 {
    let table = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    });
    table.unwrap_or_else(|| u32::from(rule.header.table))
}

fn is_ours(rule: &RuleMessage) -> bool {
    let mark = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::FwMark(mark) => Some(*mark),
        _ => None,
    });
    match (priority(rule), table(rule)) {
        (PREF_CAPTURE, TABLE_CAPTURE) => mark == Some(MARK_CAPTURE),
        (PREF_DELIVER, TABLE_DELIVER) => mark == Some(MARK_DELIVER),
        (PREF_LOCAL, TABLE_LOCAL) => mark.is_none(),
        _ => false,
    }
}

fn route_table(route: &RouteMessage) -> u32 {
    let table = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    table.unwrap_or_else(|| u32::from(route.header.table))
}

/// Waits for a request whose error `allowed` means that there was nothing to do.
async fn allow(allowed: i32, request: impl Future<Output = Result<(), rtnetlink::Error>>) -> io::Result<()> {
    match request.await.map_err(io_error) {
        Err(error) if error.raw_os_error() == Some(allowed) => Ok(()),
        result => result,
    }
}

fn io_error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}
