//! The protocol's one method, and what is around it: a deadline, a bound on what is under way, and the audit log.
//!
//! Everything that reaches the HTTP/2 layer as a request leaves one line in the audit log: what never gets as far as
//! the method (too large, no message, another method) as well as what its caller gave up.

use std::convert::Infallible;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use prost_types::value::Kind;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::{Code, Request, Response, Status};

use super::audit::{Audit, Record, bounded, rfc3339};
use super::authorise::{AuthoriseError, Authoriser};
use super::caller::{Callers, Proof};
use super::limits::Places;
use super::metrics::CaMetrics;
use super::proto::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use super::proto::{IstioCertificateRequest, IstioCertificateResponse};
use super::refusal::Refusal;
use super::stream::Peer;
use super::{csr, pem};
use crate::identity::{SignError, SignedChain, Signer, SigningRequest};

/// Longest message that is read, in bytes.
pub(super) const MAX_MESSAGE: usize = 64 << 10;
/// Life of a certificate for which none is asked for.
const DEFAULT_LIFE: Duration = Duration::from_hours(24);
/// Key of the impersonated identity in the metadata (Istio's `security.ImpersonatedIdentity`).
pub(super) const IMPERSONATED: &str = "ImpersonatedIdentity";

/// What requests are decided and answered with.
pub(super) struct Office {
    pub(super) callers: Callers,
    pub(super) authoriser: Authoriser,
    pub(super) signer: Arc<dyn Signer>,
    pub(super) audit: Audit,
    pub(super) metrics: Arc<CaMetrics>,
    /// Longest life of a certificate.
    pub(super) max_life: Duration,
    /// Longest that a request may take, from its head to its answer.
    pub(super) deadline: Duration,
    /// Places for requests that are decided at once, in total and from one address. One whose message is still on its way
    /// has none yet: whoever sends slowly, or much that is not believed, takes nobody else's.
    pub(super) at_once: Arc<Places>,
}

impl fmt::Debug for Office {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Office").finish_non_exhaustive()
    }
}

/// What is known of a request so far; comes with it.
type Ticket = Arc<Mutex<Record>>;

fn lock(ticket: &Ticket) -> MutexGuard<'_, Record> {
    ticket.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Office {
    /// Decides a request; the record knows as much as has been found out, whatever comes of it.
    async fn decide(
        &self,
        from: IpAddr,
        proof: Proof<'_>,
        request: &IstioCertificateRequest,
        ticket: &Ticket,
    ) -> Result<IstioCertificateResponse, Refusal> {
        let _place = self.at_once.take(from).map_err(|_limit| Refusal::Overloaded)?;
        let caller = self.callers.authenticate(proof).await?;
        lock(ticket).set_caller(&caller);
        // Who has not said who they are fills no line with what they wish.
        let impersonated = impersonated(request);
        if let Ok(Some(identity)) = impersonated {
            lock(ticket).impersonated = Some(bounded(identity));
        }
        let identity = self.authoriser.authorise(&caller, impersonated?).await?;
        let validity = self.validity(request.validity_duration)?;
        let csr = csr::check(&request.csr, &identity)?;
        let request = SigningRequest { identity: &identity, csr: &csr, validity };
        let signed = self.signer.sign(request).await.map_err(Refusal::Sign)?;
        let response = answer(&signed)?;
        let mut record = lock(ticket);
        record.identity = Some(identity.to_string());
        if let Some((serial, not_after)) = signed.chain.first().and_then(|leaf| describe(leaf)) {
            (record.serial, record.not_after) = (Some(serial), Some(not_after));
        }
        (record.outcome, record.reason) = ("granted", "granted");
        Ok(response)
    }

    fn validity(&self, seconds: i64) -> Result<Duration, Refusal> {
        let asked = match u64::try_from(seconds) {
            Err(_) => return Err(Refusal::Validity(seconds)),
            Ok(0) => DEFAULT_LIFE,
            Ok(seconds) => Duration::from_secs(seconds),
        };
        Ok(asked.min(self.max_life))
    }
}

/// The identity asked for in place of the caller's own. An empty text is none, as for istiod.
fn impersonated(request: &IstioCertificateRequest) -> Result<Option<&str>, AuthoriseError> {
    let value = request.metadata.as_ref().and_then(|metadata| metadata.fields.get(IMPERSONATED));
    match value.and_then(|value| value.kind.as_ref()) {
        None | Some(Kind::NullValue(_)) => Ok(None),
        Some(Kind::StringValue(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
        Some(_) => Err(AuthoriseError::NoText),
    }
}

/// The leaf, each intermediate, and all roots as the last element, as istiod gives them.
fn answer(signed: &SignedChain) -> Result<IstioCertificateResponse, Refusal> {
    if signed.chain.is_empty() || signed.roots.is_empty() {
        return Err(Refusal::Sign(SignError::Unavailable("the authority gave no chain".to_owned())));
    }
    let mut cert_chain: Vec<String> = signed.chain.iter().map(|each| pem::certificate(each)).collect();
    cert_chain.push(signed.roots.iter().map(|root| pem::certificate(root)).collect());
    Ok(IstioCertificateResponse { cert_chain })
}

/// Serial number in hexadecimal, and end.
fn describe(leaf: &[u8]) -> Option<(String, String)> {
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).ok()?;
    let serial = parsed.raw_serial_as_string().replace(':', "");
    Some((serial, rfc3339(parsed.validity().not_after.to_datetime())))
}

/// The generated service's implementation.
#[derive(Debug)]
pub(super) struct Method(Arc<Office>);

#[tonic::async_trait]
impl IstioCertificateService for Method {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let (Some(peer), Some(ticket)) =
            (request.extensions().get::<Peer>().cloned(), request.extensions().get::<Ticket>().cloned())
        else {
            return Err(Status::internal("the request came past the server"));
        };
        let header = request.metadata().get("authorization").map(|value| value.to_str().ok());
        let proof = Proof { authorization: header, certificate: peer.certificate.as_deref() };
        let decided = self.0.decide(peer.address.ip(), proof, request.get_ref(), &ticket).await;
        decided.map(Response::new).map_err(|refusal| {
            lock(&ticket).refuse(refusal.reason(), &refusal.detail());
            refusal.status()
        })
    }
}

/// The service as the HTTP/2 layer calls it.
#[derive(Clone, Debug)]
pub(super) struct Front {
    office: Arc<Office>,
    method: IstioCertificateServiceServer<Method>,
}

impl Front {
    pub(super) fn new(office: Office) -> Self {
        let office = Arc::new(office);
        let method = IstioCertificateServiceServer::new(Method(Arc::clone(&office)))
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(1 << 20);
        Self { office, method }
    }

    async fn answer(mut self, mut request: http::Request<Body>, entry: &mut Entry) -> http::Response<Body> {
        request.extensions_mut().insert(Arc::clone(&entry.ticket));
        let answered = tokio::time::timeout(self.office.deadline, self.method.call(request)).await;
        let Ok(Ok(response)) = answered else {
            return entry.refuse(&Refusal::Timeout);
        };
        // The method has said why itself, unless it was never reached.
        let refused = lock(&entry.ticket).detail.is_some();
        match Status::from_header_map(response.headers()).map(|status| status.code()) {
            Some(Code::OutOfRange | Code::ResourceExhausted) if !refused => entry.refuse(&Refusal::TooLarge),
            Some(Code::Unimplemented) if !refused => entry.refuse(&Refusal::UnknownMethod),
            Some(code) if !refused && code != Code::Ok => entry.refuse(&Refusal::Malformed),
            _ => response,
        }
    }
}

impl Service<http::Request<Body>> for Front {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let Some(peer) = request.extensions().get::<Peer>().cloned() else {
                return Ok(Status::internal("the request came past the server").into_http());
            };
            let _under_way = peer.activity.begin();
            let mut entry = Entry::new(&peer, Arc::clone(&this.office));
            let response = this.answer(request, &mut entry).await;
            Ok(entry.close(response).await)
        })
    }
}

/// A request's line in the audit log; written when it is dropped, at the latest.
struct Entry {
    office: Arc<Office>,
    ticket: Ticket,
    open: bool,
}

impl Entry {
    fn new(peer: &Peer, office: Arc<Office>) -> Self {
        Self { office, ticket: Arc::new(Mutex::new(Record::new(peer.address))), open: true }
    }

    fn refuse(&mut self, refusal: &Refusal) -> http::Response<Body> {
        lock(&self.ticket).refuse(refusal.reason(), &refusal.detail());
        refusal.status().into_http()
    }

    /// Writes the line; a certificate without one is not handed out.
    async fn close(mut self, response: http::Response<Body>) -> http::Response<Body> {
        let record = lock(&self.ticket).clone();
        let written = self.office.audit.write(&record).await;
        self.open = false;
        match written {
            Err(_) if record.is_granted() => {
                self.office.metrics.request("refused", Refusal::Audit.reason());
                Refusal::Audit.status().into_http()
            }
            _ => {
                self.office.metrics.request(record.outcome, record.reason);
                response
            }
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.open {
            let refusal = Refusal::Cancelled;
            let mut record = lock(&self.ticket);
            record.refuse(refusal.reason(), &refusal.detail());
            self.office.audit.note(&record);
            self.office.metrics.request("refused", refusal.reason());
        }
    }
}
