//! A connection to a service, established: an endpoint tried, another where it fails and nothing of the client's has been sent.
//!
//! One record, whatever the number of tries. Who the client is, and how an endpoint is reached from where it is, is the
//! [`Client`]'s business: pods of this node and clients from outside differ in that alone.

use std::net::SocketAddr;

use super::ask::Ask;
use super::forward::{Upstream, UpstreamError, note_failure};
use super::worker::Worker;
use crate::datapath::{Stay, Stayer};
use crate::model::Endpoint;
use crate::telemetry::{ConnectionRecord, Outcome};

/// How many endpoints are tried before a connection is given up; nothing of it has been sent until one answers.
const TRIES: usize = 3;

/// Whom a connection is established for.
pub(crate) trait Client {
    /// Who stays with an endpoint where the service has session affinity.
    fn stayer(&self) -> Stayer;

    /// Connects to an endpoint, once.
    async fn connect(&self, endpoint: &Endpoint) -> Result<Upstream, UpstreamError>;

    /// Opens the connection's record: with the service as a whole where there is no endpoint, and without an upstream where
    /// none was had.
    fn open(&self, endpoint: Option<&Endpoint>, upstream: Option<&Upstream>) -> ConnectionRecord;
}

/// A connection that is to be established.
pub(crate) struct Establish<'a, C> {
    /// Who carries it.
    pub(crate) worker: &'a Worker,
    /// Whom it is for.
    pub(crate) client: &'a C,
    /// What was asked for.
    pub(crate) ask: &'a Ask<'a>,
    /// The same, as an address.
    pub(crate) asked: SocketAddr,
}

/// A connection that stands.
pub(crate) struct Established {
    /// The way to the endpoint.
    pub(crate) upstream: Upstream,
    /// The connection's record.
    pub(crate) record: ConnectionRecord,
    /// The endpoint.
    pub(crate) endpoint: SocketAddr,
}

impl<C: Client> Establish<'_, C> {
    /// Connects to an endpoint; `None` where all that were tried have failed, which the record tells.
    pub(crate) async fn run(&self) -> Option<Established> {
        let stay = self.stay();
        let kept = stay.as_ref().and_then(Stay::backend);
        let mut failed = Vec::new();
        loop {
            let Some(endpoint) = self.ask.endpoint(kept, fastrand::u64(..), &failed) else {
                self.fail(&UpstreamError::NoEndpoint(self.ask.service.name.to_string()));
                return None;
            };
            let error = match self.client.connect(endpoint).await {
                Ok(upstream) => {
                    if let Some(Err(error)) = stay.map(|stay| stay.keep(endpoint.address)) {
                        tracing::debug!(%error, orig_dst = %self.asked, "client's affinity not kept");
                    }
                    let record = self.client.open(Some(endpoint), Some(&upstream));
                    return Some(Established { upstream, record, endpoint: endpoint.address });
                }
                Err(error) => error,
            };
            note_failure(self.worker, &error);
            failed.push(endpoint.address);
            let again =
                error.is_retryable() && failed.len() < TRIES && self.ask.endpoint(None, 0, &failed).is_some();
            tracing::debug!(%error, orig_dst = %self.asked, dst.addr = %endpoint.address, again, "upstream failed");
            // Who was refused for who they are is told of, whoever served the client in their place.
            if !again || error.outcome() == Outcome::TlsFailed {
                self.client.open(Some(endpoint), None).fail(error.outcome(), &error);
            }
            if !again {
                return None;
            }
        }
    }

    /// Where the client stays with an endpoint of the service (`sessionAffinity`), as the kernel keeps it too.
    fn stay(&self) -> Option<Stay<'_>> {
        self.ask.service.affinity_seconds?;
        let affinities = &self.worker.handles.affinities;
        affinities.of(self.ask.frontend, self.asked.is_ipv4(), self.client.stayer())
    }

    /// The connection goes to no endpoint.
    pub(crate) fn fail(&self, error: &UpstreamError) {
        self.client.open(None, None).fail(error.outcome(), error);
    }
}
