//! Bytes sent and taken, whatever the mode.

use std::io;

use mesh_tests::peer::{Digest, Noise};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Bytes that are read or written at once.
pub(crate) const CHUNK: usize = 64 << 10;

/// Sends a marker and the bytes that a seed stands for.
pub(crate) async fn send(
    stream: &mut (impl AsyncWriteExt + Unpin),
    seed: u64,
    length: u64,
    marker: &str,
    digest: &mut Digest,
) -> io::Result<()> {
    stream.write_all(marker.as_bytes()).await?;
    digest.update(marker.as_bytes());
    let (mut noise, mut chunk) = (Noise::new(seed, length), vec![0; CHUNK]);
    loop {
        let bytes = noise.fill(&mut chunk);
        if bytes.is_empty() {
            return Ok(());
        }
        digest.update(bytes);
        stream.write_all(bytes).await?;
    }
}

/// Reads to the end.
pub(crate) async fn take(stream: &mut (impl AsyncRead + Unpin), digest: &mut Digest) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = stream.read(&mut chunk).await?;
        if length == 0 {
            return Ok(());
        }
        digest.update(&chunk[..length]);
    }
}

/// Reads until the empty line and returns the length up to there; `None` at the end of the stream.
pub(crate) async fn read_head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<usize>> {
    loop {
        if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            return Ok(Some(end + 4));
        }
        if stream.read_buf(buffer).await? == 0 {
            return if buffer.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
    }
}
