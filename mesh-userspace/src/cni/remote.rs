//! The agent, as the plugin reaches it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::Known;
use crate::admin::api::ErrorReport;
use crate::admin::cni::{CniAnswer, CniRequest};

/// Longest that one request may take: the agent answers after four seconds, if only that it is not done.
const REQUEST: Duration = Duration::from_secs(9);
/// Longest answer.
const MAX_ANSWER: usize = 1 << 20;

/// Why nobody can be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum AwayError {
    /// Nobody listens.
    #[error("no agent at {}: {source}", path.display())]
    NoAgent { path: PathBuf, source: io::Error },
    /// The connection broke.
    #[error("the agent ended the connection: {0}")]
    Broken(String),
    /// It hangs.
    #[error("the agent does not answer")]
    Timeout,
    /// It does not know the plugin, or is not well.
    #[error("the agent answered {0}: {1}")]
    Status(StatusCode, String),
    /// It has no state of the mesh yet.
    #[error("the agent is still starting: {0}")]
    Starting(String),
    /// It is of another version.
    #[error("cannot read the agent's answer: {0}")]
    Format(#[from] serde_json::Error),
}

impl From<hyper::Error> for AwayError {
    fn from(error: hyper::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// What the plugin needs of the machine.
pub(super) trait Surroundings {
    /// Asks the agent.
    async fn ask(&self, request: &CniRequest) -> Result<CniAnswer, AwayError>;
    /// Whether the agent is there and well.
    async fn health(&self) -> Result<(), AwayError>;
    /// What is known without it.
    fn known(&self) -> io::Result<Option<Known>>;
}

/// The real one.
pub(super) struct Machine {
    pub(super) socket: PathBuf,
    pub(super) state_file: PathBuf,
}

impl Surroundings for Machine {
    async fn ask(&self, request: &CniRequest) -> Result<CniAnswer, AwayError> {
        let body = serde_json::to_vec(request)?;
        let request = Request::post("/v1/cni").header(CONTENT_TYPE, "application/json");
        match serde_json::from_slice(&self.send(request, body).await?)? {
            CniAnswer::Starting { reason } => Err(AwayError::Starting(reason)),
            answer => Ok(answer),
        }
    }

    async fn health(&self) -> Result<(), AwayError> {
        self.send(Request::get("/healthz"), Vec::new()).await.map(drop)
    }

    fn known(&self) -> io::Result<Option<Known>> {
        Known::read(&self.state_file)
    }
}

impl Machine {
    async fn send(&self, request: http::request::Builder, body: Vec<u8>) -> Result<Bytes, AwayError> {
        let request = request.header(HOST, "meshd").body(Full::new(Bytes::from(body)));
        let request = request.map_err(|error| AwayError::Broken(error.to_string()))?;
        timeout(REQUEST, self.exchange(request)).await.map_err(|_elapsed| AwayError::Timeout)?
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Bytes, AwayError> {
        let connected = UnixStream::connect(&self.socket).await;
        let stream = connected.map_err(|source| AwayError::NoAgent { path: self.socket.clone(), source })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| AwayError::Broken(error.to_string()))?.to_bytes();
        if status.is_success() {
            return Ok(body);
        }
        let said = serde_json::from_slice(&body).map_or_else(
            |_error| String::from_utf8_lossy(&body).trim().to_owned(),
            |report: ErrorReport| report.error,
        );
        Err(AwayError::Status(status, said))
    }
}
