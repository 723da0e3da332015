//! Addresses that are on no interface and are served here all the same: `local ADDR dev lo` in the table `local`, so that
//! the kernel takes what is sent to them for its own and asks `sk_lookup`.
//!
//! Each carries a protocol number of ours: by that an agent knows what an earlier one has left, and nobody else's route is
//! ever touched.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};

/// `rtm_protocol` of these routes (`/etc/iproute2/rt_protos` gives it to nobody).
const PROTOCOL: u8 = 77;
/// `RT_TABLE_LOCAL`.
const TABLE_LOCAL: u32 = 255;
/// `LOOPBACK_IFINDEX`.
const LOOPBACK: u32 = 1;

/// The routes of this namespace that are ours.
pub(super) struct LocalRoutes {
    handle: Handle,
    held: BTreeSet<IpNet>,
}

impl LocalRoutes {
    /// Reads what an earlier agent has left.
    pub(super) async fn open(handle: Handle) -> io::Result<Self> {
        let held = read(&handle).await?;
        Ok(Self { handle, held })
    }

    /// Reads again what is there: anybody may have deleted some. The next [`Self::set`] lays those anew.
    pub(super) async fn reread(&mut self) -> io::Result<()> {
        self.held = read(&self.handle).await?;
        Ok(())
    }

    /// Makes them these. What could not be done is returned, and tried again at the next call.
    pub(super) async fn set(&mut self, wanted: &BTreeSet<IpNet>) -> Vec<(IpNet, io::Error)> {
        let mut errors = Vec::new();
        let gone: Vec<IpNet> = self.held.difference(wanted).copied().collect();
        for network in gone {
            match self.handle.route().del(route(network)).execute().await.map_err(io_error) {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => errors.push((network, error)),
                _ => drop(self.held.remove(&network)),
            }
        }
        let new: Vec<IpNet> = wanted.difference(&self.held).copied().collect();
        for network in new {
            match self.handle.route().add(route(network)).execute().await.map_err(io_error) {
                Ok(()) => drop(self.held.insert(network)),
                // An interface has it: that route serves as well, and is looked at again when addresses change.
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                Err(error) => errors.push((network, error)),
            }
        }
        errors
    }
}

/// Removes every route that an agent has left in this thread's namespace: for `meshd uninstall`.
pub(super) async fn remove_all() -> io::Result<()> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let mut routes = LocalRoutes::open(handle).await?;
    let errors = routes.set(&BTreeSet::new()).await;
    connection.abort();
    errors.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
}

/// The routes that are ours.
async fn read(handle: &Handle) -> io::Result<BTreeSet<IpNet>> {
    let mut held = BTreeSet::new();
    for filter in
        [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
    {
        let routes: Vec<RouteMessage> = match handle.route().get(ours(filter)).execute().try_collect().await {
            Ok(routes) => routes,
            Err(error) => match io_error(error) {
                // No such family on this kernel.
                error if error.raw_os_error() == Some(libc::EOPNOTSUPP) => continue,
                error => return Err(error),
            },
        };
        held.extend(routes.iter().filter(|route| is_ours(route)).filter_map(destination));
    }
    Ok(held)
}

/// Asks for those alone, which the kernel heeds where the socket has `NETLINK_GET_STRICT_CHK` (Linux 4.20): a node may
/// know the whole Internet's routes.
fn ours(mut message: RouteMessage) -> RouteMessage {
    message.header.table = u8::try_from(TABLE_LOCAL).unwrap_or(u8::MAX);
    message.header.protocol = RouteProtocol::from(PROTOCOL);
    message.header.kind = RouteType::Local;
    message
}

fn route(network: IpNet) -> RouteMessage {
    let (mut message, scope) = match network {
        IpNet::V4(network) => {
            let builder = RouteMessageBuilder::<Ipv4Addr>::new();
            let builder = builder.destination_prefix(network.network(), network.prefix_len());
            (builder.output_interface(LOOPBACK).kind(RouteType::Local).build(), RouteScope::Host)
        }
        IpNet::V6(network) => {
            let builder = RouteMessageBuilder::<Ipv6Addr>::new();
            let builder = builder.destination_prefix(network.network(), network.prefix_len());
            (builder.output_interface(LOOPBACK).kind(RouteType::Local).build(), RouteScope::Universe)
        }
    };
    message.header.table = u8::try_from(TABLE_LOCAL).unwrap_or(u8::MAX);
    message.header.scope = scope;
    message.header.protocol = RouteProtocol::from(PROTOCOL);
    message
}

fn is_ours(route: &RouteMessage) -> bool {
    let table = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    u8::from(route.header.protocol) == PROTOCOL
        && table.unwrap_or_else(|| u32::from(route.header.table)) == TABLE_LOCAL
        && route.header.kind == RouteType::Local
}

fn destination(route: &RouteMessage) -> Option<IpNet> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })?;
    IpNet::new(address, route.header.destination_prefix_length).ok()
}

fn io_error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}
