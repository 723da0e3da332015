//! Connections that the agent makes to applications of this node's pods, admitted by name while they are made.

use std::cell::RefCell;
use std::net::SocketAddr;

use aya::maps::{HashMap as KernelMap, MapData};
use mesh_common::abi::{ADMITTED_DELIVERY, Tuple};
use mesh_common::names::map as names;

use super::{DatapathError, address_of};

/// One worker's handle on the map `ADMITTED`.
pub struct Deliveries(RefCell<KernelMap<MapData, Tuple, u32>>);

impl Deliveries {
    pub(super) const fn new(map: KernelMap<MapData, Tuple, u32>) -> Self {
        Self(RefCell::new(map))
    }

    /// Forgets what an agent that was killed had admitted.
    pub(super) fn clear(&self) -> Result<(), DatapathError> {
        let mut map = self.0.borrow_mut();
        let held: Vec<_> = map.iter().filter_map(Result::ok).collect();
        for (tuple, _) in held.into_iter().filter(|(_, by)| *by == ADMITTED_DELIVERY) {
            map.remove(&tuple).map_err(DatapathError::map("delete from", names::ADMITTED))?;
        }
        Ok(())
    }

    /// Admits a connection until the guard is dropped; only its first segment needs it.
    pub fn admit(&self, client: SocketAddr, server: SocketAddr) -> Result<Admitted<'_>, DatapathError> {
        let tuple = Tuple {
            client: address_of(client.ip()),
            server: address_of(server.ip()),
            client_port: client.port(),
            server_port: server.port(),
        };
        let insert = self.0.borrow_mut().insert(tuple, ADMITTED_DELIVERY, 0);
        insert.map_err(DatapathError::map("write to", names::ADMITTED))?;
        Ok(Admitted { deliveries: self, tuple })
    }
}

/// A connection that is admitted.
pub struct Admitted<'a> {
    deliveries: &'a Deliveries,
    tuple: Tuple,
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        // One that is gone already is what was wanted.
        let _ = self.deliveries.0.borrow_mut().remove(&self.tuple);
    }
}
