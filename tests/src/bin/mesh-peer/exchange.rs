//! One exchange on a connection, as its mode has it, seen from the client.

use std::io;
use std::time::Duration;

use mesh_tests::peer::{Digest, Noise};
use serde_json::Value;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::Connect;
use crate::mode::Mode;
use crate::stream::{CHUNK, read_head, send, take};
use crate::tally::{Failure, Seen};
use crate::tls;

pub(crate) async fn exchange(stream: &mut TcpStream, args: &Connect, number: u64) -> Result<Seen, Failure> {
    match args.mode {
        Mode::Http => http(stream, args).await,
        Mode::Tls => tls::ask(stream, &args.marker).await,
        Mode::Echo if args.keep => echo_kept(stream, args, number).await,
        Mode::Echo => echo(stream, args, number).await,
        Mode::Discard => {
            let mut digest = Digest::default();
            send(stream, number, args.bytes, &args.marker, &mut digest).await?;
            stream.shutdown().await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            let answer: Value =
                serde_json::from_slice(&answer).map_err(|_error| Failure("eof".to_owned()))?;
            same(answer["digest"].as_str() == Some(&digest.hex()))?;
            Ok(Seen { sent: digest.count(), ..seen_in(&answer) })
        }
        Mode::Source => {
            stream.write_all(&[number.to_be_bytes(), args.bytes.to_be_bytes()].concat()).await?;
            let (mut expected, mut received) = (Digest::default(), Digest::default());
            let (mut noise, mut chunk) = (Noise::new(number, args.bytes), vec![0; CHUNK]);
            loop {
                let bytes = noise.fill(&mut chunk);
                if bytes.is_empty() {
                    break;
                }
                expected.update(bytes);
            }
            take(stream, &mut received).await?;
            same(expected.hex() == received.hex())?;
            Ok(Seen { received: received.count(), ..Seen::default() })
        }
        Mode::Reset => {
            stream.write_all(b"x").await?;
            match stream.read(&mut [0; 16]).await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Seen::default()),
                Err(error) => Err(error.into()),
                Ok(_) => Err(Failure("eof".to_owned())),
            }
        }
        Mode::Hang | Mode::Close => {
            stream.write_all(b"x").await?;
            match stream.read(&mut [0; 16]).await? {
                0 => Ok(Seen::default()),
                _ => Err(Failure("mismatch".to_owned())),
            }
        }
        Mode::Abort => {
            stream.write_all(b"x").await?;
            stream.read_exact(&mut [0; 1]).await?;
            SockRef::from(&*stream).set_linger(Some(Duration::ZERO))?;
            Ok(Seen::default())
        }
        Mode::Stall => {
            let mut digest = Digest::default();
            send(stream, number, args.bytes, &args.marker, &mut digest).await?;
            stream.shutdown().await?;
            Ok(Seen { sent: digest.count(), ..Seen::default() })
        }
        Mode::HalfClose => {
            same(stream.read(&mut [0; 16]).await? == 0)?;
            let mut digest = Digest::default();
            send(stream, number, args.bytes, &args.marker, &mut digest).await?;
            stream.shutdown().await?;
            Ok(Seen { sent: digest.count(), ..Seen::default() })
        }
    }
}

fn same(is: bool) -> Result<(), Failure> {
    if is { Ok(()) } else { Err(Failure("mismatch".to_owned())) }
}

async fn http(stream: &mut TcpStream, args: &Connect) -> Result<Seen, Failure> {
    let request = format!("GET /{} HTTP/1.1\r\nhost: {}\r\n\r\n", args.marker, args.target);
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let head = read_head(stream, &mut answer).await?.ok_or_else(|| Failure("eof".to_owned()))?;
    let text = String::from_utf8_lossy(&answer[..head]).to_lowercase();
    let length =
        text.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse::<usize>().ok());
    let length = length.ok_or_else(|| Failure("mismatch".to_owned()))?;
    while answer.len() < head + length {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(Failure("eof".to_owned()));
        }
    }
    let body: Value =
        serde_json::from_slice(&answer[head..]).map_err(|_error| Failure("mismatch".to_owned()))?;
    Ok(Seen { sent: request.len() as u64, received: answer.len() as u64, ..seen_in(&body) })
}

fn seen_in(answer: &Value) -> Seen {
    let field = |name: &str| answer[name].as_str().map(str::to_owned);
    Seen { name: field("name"), peer: field("peer"), ..Seen::default() }
}

async fn echo(stream: &mut TcpStream, args: &Connect, number: u64) -> Result<Seen, Failure> {
    let (mut sent, mut received) = (Digest::default(), Digest::default());
    let (mut reader, mut writer) = stream.split();
    let sending = async {
        send(&mut writer, number, args.bytes, &args.marker, &mut sent).await?;
        writer.shutdown().await
    };
    tokio::try_join!(sending, take(&mut reader, &mut received))?;
    same(sent.hex() == received.hex())?;
    Ok(Seen { sent: sent.count(), received: received.count(), ..Seen::default() })
}

/// As `echo`, on a connection that goes on: the bytes are few enough to be sent before any is read.
async fn echo_kept(stream: &mut TcpStream, args: &Connect, number: u64) -> Result<Seen, Failure> {
    let mut bytes = vec![0; usize::try_from(args.bytes.clamp(8, 16 << 10)).unwrap_or(8) & !7];
    fastrand::Rng::with_seed(number).fill(&mut bytes);
    stream.write_all(&bytes).await?;
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).await?;
    same(bytes == back)?;
    Ok(Seen { sent: bytes.len() as u64, received: back.len() as u64, ..Seen::default() })
}
