//! What telemetry wants to know of a connection, from the model.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::model::{Identity, Service, Workload};
use crate::telemetry::{Party, ServiceAt};

/// One end of a connection.
pub(crate) fn party(address: SocketAddr, workload: Option<&Workload>, identity: Option<Identity>) -> Party {
    let Some(workload) = workload else {
        return Party { address: Some(address), identity, ..Party::default() };
    };
    Party {
        address: Some(address),
        workload: Some(Arc::clone(&workload.workload_name)),
        namespace: Some(Arc::clone(&workload.namespace)),
        pod: Some(workload.uid.clone()),
        identity: identity.or_else(|| Some(workload.identity.clone())),
        canonical_service: Some(Arc::clone(&workload.canonical_name)),
        canonical_revision: Some(Arc::clone(&workload.canonical_revision)),
    }
}

/// The service that a connection belongs to.
pub(crate) fn service_at(service: &Service, port: u16) -> ServiceAt {
    ServiceAt {
        host: Arc::clone(&service.host),
        namespace: Arc::clone(&service.name.namespace),
        name: Arc::clone(&service.name.name),
        port,
    }
}
