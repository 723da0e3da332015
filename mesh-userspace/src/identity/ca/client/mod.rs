//! The agent's side of the protocol: certificates from any server of it, this project's, istiod or istio-csr.
//!
//! One HTTP/2 connection is shared by all requests and made anew when it breaks, or when a file that it was made with
//! has changed. The authority proves who it is by its certificate, which leads to a root of the file or of its own last answer; each answer is
//! checked all the same, as a stranger's.

mod answer;
mod connect;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use rustls_pki_types::ServerName;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use zeroize::Zeroizing;

pub use self::connect::CaAddress;

use self::connect::{Learnt, Material};
use super::audit::bounded;
use super::pem;
use super::proto::istio_certificate_service_client::IstioCertificateServiceClient;
use super::proto::{IstioCertificateRequest, IstioCertificateResponse};
use super::service::IMPERSONATED;
use crate::identity::{SignError, SignedChain, Signer, SigningRequest};
use crate::model::Identity;

/// Longest that a request may take with all that belongs to it; below what the store waits.
const DEADLINE: Duration = Duration::from_secs(9);
/// Longest that one try may take.
const TRY: Duration = Duration::from_secs(6);
/// Longest answer that is read, in bytes.
const MAX_ANSWER: usize = 256 << 10;
/// Longest token that is read, in bytes.
const MAX_TOKEN: u64 = 16 << 10;

/// Where certificates come from and what is shown there.
#[derive(Clone, Debug)]
pub struct CaClientConfig {
    /// The server.
    pub address: CaAddress,
    /// PEM file of the roots that its certificate must lead to.
    pub roots: PathBuf,
    /// The name that its certificate must have, where it is not that of the address.
    pub server_name: Option<String>,
    /// File of the token that is shown; read again for each request.
    pub token: Option<PathBuf>,
    /// Files of the client certificate that is shown, and its key.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Istio's name of this cluster; istiod finds by it whose token it is.
    pub cluster: String,
    /// The identity that the token and the certificate are of.
    pub own: Identity,
}

/// Why there can be no client.
#[derive(Debug, thiserror::Error)]
pub enum CaClientError {
    /// The name cannot be in a certificate.
    #[error("`{0}` is neither a DNS name nor an address")]
    ServerName(String),
    /// The cluster's name cannot be sent.
    #[error("`{0}` cannot be sent as the cluster's name")]
    Cluster(String),
    /// A file cannot be used.
    #[error("{0}")]
    File(String),
}

/// A client of a certificate authority.
pub struct CaClient {
    config: CaClientConfig,
    server_name: ServerName<'static>,
    cluster: AsciiMetadataValue,
    channel: Mutex<Option<(Arc<Material>, Channel)>>,
    /// Roots of the last answer.
    learnt: Mutex<Learnt>,
}

impl fmt::Debug for CaClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaClient").field("config", &self.config).finish_non_exhaustive()
    }
}

impl CaClient {
    /// A client that has not connected yet. The roots must be there; the rest may come later.
    ///
    /// # Errors
    /// A name cannot be used, or the roots cannot be read.
    pub fn new(config: CaClientConfig) -> Result<Self, CaClientError> {
        let name = config.server_name.clone().unwrap_or_else(|| config.address.host.clone());
        let server_name =
            ServerName::try_from(name.clone()).map_err(|_error| CaClientError::ServerName(name))?;
        let cluster = AsciiMetadataValue::try_from(config.cluster.as_str())
            .map_err(|_error| CaClientError::Cluster(config.cluster.clone()))?;
        connect::check_roots(&config.roots).map_err(CaClientError::File)?;
        Ok(Self { config, server_name, cluster, channel: Mutex::default(), learnt: Mutex::default() })
    }

    async fn ask(&self, request: &SigningRequest<'_>) -> Result<SignedChain, SignError> {
        let identity = request.identity;
        let message = self.message(request);
        let mut last = None;
        // A connection that has been idle may turn out to be gone; signing twice does no harm.
        for _try in 0..2 {
            let material =
                Arc::new(Material::read(&self.config, self.learnt()).await.map_err(SignError::Credentials)?);
            let token = self.token().await?;
            let channel = self.channel(Arc::clone(&material))?;
            let mut client =
                IstioCertificateServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
            let call = self.request(message.clone(), token.as_ref());
            let answered = match tokio::time::timeout(TRY, client.create_certificate(call)).await {
                Ok(answered) => answered,
                Err(_elapsed) => {
                    self.forget();
                    let address = &self.config.address;
                    return Err(SignError::Unavailable(format!("{address} did not answer within {TRY:?}")));
                }
            };
            match answered {
                Ok(response) => return self.accept(&material, request, &response.into_inner()),
                Err(status) if is_of_the_way(&status) => {
                    self.forget();
                    last = Some(status);
                }
                Err(status) => return Err(refused(identity, &status)),
            }
        }
        let why = last.as_ref().map(cause).unwrap_or_default();
        Err(SignError::Unavailable(format!("{} cannot be asked: {why}", self.config.address)))
    }

    fn message(&self, request: &SigningRequest<'_>) -> IstioCertificateRequest {
        let impersonated = (*request.identity != self.config.own).then(|| {
            let value = Value { kind: Some(Kind::StringValue(request.identity.to_string())) };
            Struct { fields: [(IMPERSONATED.to_owned(), value)].into() }
        });
        IstioCertificateRequest {
            csr: pem::request(request.csr),
            validity_duration: i64::try_from(request.validity.as_secs()).unwrap_or(i64::MAX),
            metadata: impersonated,
        }
    }

    fn request(
        &self,
        message: IstioCertificateRequest,
        token: Option<&AsciiMetadataValue>,
    ) -> Request<IstioCertificateRequest> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        if let Some(token) = token {
            metadata.insert("authorization", token.clone());
        }
        if !self.cluster.is_empty() {
            metadata.insert("clusterid", self.cluster.clone());
        }
        request
    }

    /// `Bearer TOKEN`, with what the file holds now: tokens that Kubernetes projects are replaced in it.
    async fn token(&self) -> Result<Option<AsciiMetadataValue>, SignError> {
        let Some(path) = &self.config.token else { return Ok(None) };
        let wrong = |why: &str| SignError::Credentials(format!("token in {}: {why}", path.display()));
        let text = read(path, MAX_TOKEN).await.map_err(SignError::Credentials)?;
        let text = std::str::from_utf8(&text).map_err(|_error| wrong("it is not text"))?.trim();
        if text.is_empty() {
            return Err(wrong("the file is empty"));
        }
        let header = Zeroizing::new(format!("Bearer {text}"));
        let mut value = AsciiMetadataValue::try_from(header.as_str())
            .map_err(|_error| wrong("it is not one line of text"))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// The channel made with these files; another one if they have changed.
    fn channel(&self, material: Arc<Material>) -> Result<Channel, SignError> {
        let mut held = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((with, channel)) = held.as_ref()
            && **with == *material
        {
            return Ok(channel.clone());
        }
        let channel = connect::channel(&self.config.address, &self.server_name, &material)
            .map_err(SignError::Credentials)?;
        *held = Some((material, channel.clone()));
        Ok(channel)
    }

    fn forget(&self) {
        *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Sends any message with any header, for tests of the server.
    #[cfg(test)]
    pub(super) async fn send(
        &self,
        message: IstioCertificateRequest,
        authorization: Option<&str>,
    ) -> Result<IstioCertificateResponse, Status> {
        let material = Arc::new(Material::read(&self.config, self.learnt()).await.unwrap());
        let mut client = IstioCertificateServiceClient::new(self.channel(material).unwrap());
        let token = authorization.map(|text| AsciiMetadataValue::try_from(text).unwrap());
        client
            .create_certificate(self.request(message, token.as_ref()))
            .await
            .map(tonic::Response::into_inner)
    }

    fn accept(
        &self,
        material: &Material,
        request: &SigningRequest<'_>,
        response: &IstioCertificateResponse,
    ) -> Result<SignedChain, SignError> {
        let checked = answer::check(request, &response.cert_chain).map_err(|reason| SignError::Answer {
            identity: request.identity.clone(),
            reason: format!("{reason} ({})", self.config.address),
        })?;
        *self.learnt.lock().unwrap_or_else(PoisonError::into_inner) = material.learn(&checked.roots);
        Ok(checked)
    }

    /// The roots of the last answer.
    fn learnt(&self) -> Learnt {
        self.learnt.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Signer for CaClient {
    fn sign<'a>(&'a self, request: SigningRequest<'a>) -> BoxFuture<'a, Result<SignedChain, SignError>> {
        Box::pin(async move {
            let asked = tokio::time::timeout(DEADLINE, self.ask(&request)).await;
            asked.unwrap_or_else(|_elapsed| {
                let address = &self.config.address;
                Err(SignError::Unavailable(format!("{address} did not answer within {DEADLINE:?}")))
            })
        })
    }
}

/// Whether the request may never have arrived: the transport's errors, which have a source.
fn is_of_the_way(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
        && matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled)
}

/// The innermost reasons, which say what the outer ones only call a transport error.
fn cause(status: &Status) -> String {
    let mut causes: Vec<String> = Vec::new();
    let mut next = std::error::Error::source(status);
    while let Some(error) = next {
        let text = error.to_string();
        if text != "transport error" && !causes.iter().any(|known| known.contains(&text)) {
            causes.push(text);
        }
        next = error.source();
    }
    if causes.is_empty() { printable(status.message()) } else { printable(&causes.join(": ")) }
}

fn refused(identity: &Identity, status: &Status) -> SignError {
    let reason = format!("{:?}: {}", status.code(), printable(status.message()));
    match status.code() {
        // Asking again may help.
        Code::Unavailable
        | Code::ResourceExhausted
        | Code::DeadlineExceeded
        | Code::Internal
        | Code::Unknown
        | Code::Aborted => SignError::Unavailable(reason),
        _ => SignError::Refused { identity: identity.clone(), reason },
    }
}

/// What the other end wrote, fit for a line of a log.
fn printable(text: &str) -> String {
    bounded(text).chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

/// A file's content; longer ones are refused. The error is for the operator.
async fn read(path: &Path, longest: u64) -> Result<Zeroizing<Vec<u8>>, String> {
    use tokio::io::AsyncReadExt;
    let read = async {
        let file = tokio::fs::File::open(path).await?;
        let mut content = Zeroizing::new(Vec::new());
        file.take(longest + 1).read_to_end(&mut content).await?;
        Ok(content)
    };
    match read.await {
        Ok(content) if content.len() as u64 > longest => {
            Err(format!("{} is longer than {longest} bytes", path.display()))
        }
        Ok(content) => Ok(content),
        Err(error) => {
            let error: std::io::Error = error;
            Err(format!("cannot read {}: {error}", path.display()))
        }
    }
}

#[cfg(test)]
mod tests;
