//! HTTP to the agent over its unix socket, with a deadline on everything that should be quick.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::admin::api::ErrorReport;

/// Longest until the agent begins to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest until a document is complete.
const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest document.
const MAX_DOCUMENT: usize = 256 << 20;
/// Longest line of a stream.
const MAX_LINE: usize = 1 << 20;

/// Why the agent did not answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// Nobody listens.
    #[error("no agent at {}: {source}; is meshd running on this node? try `meshctl check`", path.display())]
    NoAgent {
        /// The socket.
        path: PathBuf,
        /// Why connecting failed.
        source: io::Error,
    },
    /// The socket is root's.
    #[error("no permission for {}: must be root", path.display())]
    Permission {
        /// The socket.
        path: PathBuf,
    },
    /// The agent hangs.
    #[error("the agent at {} does not answer", path.display())]
    Timeout {
        /// The socket.
        path: PathBuf,
    },
    /// The connection broke.
    #[error("the agent ended the connection: {0}")]
    Broken(String),
    /// The agent refused.
    #[error("the agent answered {status}: {message}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// What it said.
        message: String,
    },
    /// An answer that this version cannot read.
    #[error("cannot read the agent's answer, is it of another version? {0}")]
    Format(#[source] serde_json::Error),
}

impl From<hyper::Error> for ClientError {
    fn from(error: hyper::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// The agent behind a socket.
#[derive(Clone, Debug)]
pub(super) struct Client {
    socket: PathBuf,
}

impl Client {
    /// The agent at this socket.
    pub(super) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// One document.
    pub(super) async fn document<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        serde_json::from_slice(&self.bytes(path).await?).map_err(ClientError::Format)
    }

    /// Whether there is such a document, whatever is in it.
    pub(super) async fn answers(&self, path: &str) -> Result<(), ClientError> {
        self.bytes(path).await.map(drop)
    }

    /// The documents of a stream that ends, one a line.
    pub(super) async fn lines<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>, ClientError> {
        let bytes = self.bytes(path).await?;
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).map_err(ClientError::Format)).collect()
    }

    /// A stream of documents.
    pub(super) async fn follow(&self, path: &str) -> Result<Lines, ClientError> {
        let response = self.get(path).await?;
        Ok(Lines { body: response.into_body(), pending: BytesMut::new() })
    }

    async fn bytes(&self, path: &str) -> Result<Bytes, ClientError> {
        let body = self.get(path).await?.into_body();
        self.collect(body).await
    }

    async fn collect(&self, body: Incoming) -> Result<Bytes, ClientError> {
        let collected = timeout(DOCUMENT_TIMEOUT, Limited::new(body, MAX_DOCUMENT).collect());
        let collected = collected.await.map_err(|_elapsed| self.timeout())?;
        Ok(collected.map_err(|error| ClientError::Broken(error.to_string()))?.to_bytes())
    }

    async fn get(&self, path: &str) -> Result<Response<Incoming>, ClientError> {
        let response =
            timeout(ANSWER_TIMEOUT, self.send(path)).await.map_err(|_elapsed| self.timeout())??;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let bytes = self.collect(response.into_body()).await?;
        let message = serde_json::from_slice(&bytes).map_or_else(
            |_error| String::from_utf8_lossy(&bytes).trim().to_owned(),
            |report: ErrorReport| report.error,
        );
        Err(ClientError::Refused { status, message })
    }

    async fn send(&self, path: &str) -> Result<Response<Incoming>, ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Permission { path: self.socket.clone() },
            _ => ClientError::NoAgent { path: self.socket.clone(), source },
        })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::get(path)
            .header(hyper::header::HOST, "meshd")
            .body(Empty::<Bytes>::new())
            .map_err(|error| ClientError::Broken(error.to_string()))?;
        Ok(sender.send_request(request).await?)
    }

    fn timeout(&self) -> ClientError {
        ClientError::Timeout { path: self.socket.clone() }
    }
}

/// Documents as they come, one a line.
#[derive(Debug)]
pub(super) struct Lines {
    body: Incoming,
    pending: BytesMut,
}

impl Lines {
    /// The next document; `None` when the agent ended the stream in order.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line = self.pending.split_to(end);
                self.pending.advance(1);
                return serde_json::from_slice(&line).map(Some).map_err(ClientError::Format);
            }
            if self.pending.len() > MAX_LINE {
                return Err(ClientError::Broken("a line without an end".to_owned()));
            }
            match self.body.frame().await {
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.pending.extend_from_slice(&data);
                    }
                }
                None => return Ok(None),
            }
        }
    }
}
