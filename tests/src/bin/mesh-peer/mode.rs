//! What is said on a connection.

use clap::ValueEnum;

/// What is said on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// An HTTP/1.1 request; the answer says who served it and whom it saw.
    Http,
    /// TLS for the server name that `--marker` is; the answer says who served it.
    Tls,
    /// The client sends bytes and half-closes; the server sends them back as they come, and half-closes.
    Echo,
    /// The client sends bytes and half-closes; the server answers with their digest.
    Discard,
    /// The client sends 16 bytes, a seed and a length; the server sends that stream and half-closes.
    Source,
    /// The server resets the connection once it has a byte.
    Reset,
    /// The server takes everything and never answers.
    Hang,
    /// The server closes at once, in order.
    Close,
    /// The client resets the connection once the server (`echo`) has answered.
    Abort,
    /// The server takes the connection, reads nothing and never ends it; the client sends its bytes and half-closes.
    Stall,
    /// The server half-closes at once; the client sees that, and only then sends its bytes (see the server's report).
    HalfClose,
}
