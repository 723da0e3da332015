use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;

use rustls::client::{EchGreaseConfig, EchMode};
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};

use super::*;

const NAME: &str = "www.example.com";

fn config(ech: Option<EchMode>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = match ech {
        Some(ech) => builder.with_ech(ech).unwrap(),
        None => builder.with_safe_default_protocol_versions().unwrap(),
    };
    builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth()
}

/// The bytes of a client's first flight.
fn hello(config: ClientConfig, name: &str) -> Vec<u8> {
    let name = name.to_owned().try_into().unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    bytes
}

fn named() -> FirstBytes {
    FirstBytes::Named(NAME.to_owned())
}

/// Over several records of 64 bytes at most.
fn in_fragments() -> Vec<u8> {
    let mut fragmented = config(None);
    fragmented.max_fragment_size = Some(64);
    hello(fragmented, NAME)
}

#[test]
fn every_hello_is_read_once_it_is_whole() {
    let suite = aws_lc_rs::hpke::ALL_SUPPORTED_SUITES[0];
    let (key, _) = suite.generate_key_pair().unwrap();
    let grease = config(Some(EchMode::Grease(EchGreaseConfig::new(suite, key))));
    let mut many_protocols = config(None);
    many_protocols.alpn_protocols = (0..250).map(|n| format!("protocol-{n:030}").into_bytes()).collect();
    let cases = [
        ("plain", hello(config(None), NAME), named()),
        ("upper case", hello(config(None), "WWW.Example.com"), named()),
        ("an address", hello(config(None), "10.0.0.1"), FirstBytes::Nameless),
        ("encrypted hello", hello(grease, NAME), named()),
        ("long", hello(many_protocols, NAME), named()),
        ("several records", in_fragments(), named()),
    ];
    for (case, bytes, expected) in cases {
        for length in 0..bytes.len() {
            assert_eq!(first_bytes(&bytes[..length]), FirstBytes::Partial, "{case}: {length}");
        }
        assert_eq!(first_bytes(&bytes), expected, "{case}");
    }
}

#[test]
fn what_is_no_hello_is_told_at_once() {
    let mut longer = hello(config(None), NAME);
    // A handshake message of 0xffff00 bytes, in records as long as they may be.
    longer[6] = 0xff;
    let mut endless = vec![HANDSHAKE, 3, 1, 0x3f, 0xff, 1, 0, 0xff, 0];
    endless.resize(LONGEST, 0);
    for (case, bytes) in [
        ("another protocol", b"G".to_vec()),
        ("one that begins with a NUL", vec![0]),
        ("a record of TLS that is no handshake", vec![23, 3, 3, 0, 1]),
        ("no version of TLS", vec![HANDSHAKE, 9, 9, 0, 1, 1]),
        ("a message that is too long", longer),
        ("one that goes on beyond what is looked at", endless),
    ] {
        assert_eq!(first_bytes(&bytes), FirstBytes::Nameless, "{case}");
    }
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    client.set_nodelay(true).unwrap();
    (client, listener.accept().await.unwrap().0)
}

#[tokio::test]
async fn a_hello_that_trickles_in_is_waited_for_without_spinning_and_stays_in_the_socket() {
    let (mut client, mut server) = pair().await;
    let bytes = in_fragments();
    let polls = Cell::new(0_usize);
    let name = {
        let mut waiting = pin!(server_name(&server));
        let counted = poll_fn(|context| {
            polls.set(polls.get() + 1);
            waiting.as_mut().poll(context)
        });
        let trickle = async {
            for byte in &bytes {
                client.write_all(&[*byte]).await.unwrap();
                // Whoever is always ready is polled each time.
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
            }
        };
        tokio::join!(spawn_counted(counted), trickle).0
    };
    assert_eq!(name.as_deref(), Some(NAME));
    // Once at the beginning, and for each byte at most.
    assert!(polls.get() <= bytes.len() + 2, "{} for {} bytes", polls.get(), bytes.len());
    let mut taken = vec![0; bytes.len()];
    server.read_exact(&mut taken).await.unwrap();
    assert_eq!(taken, bytes);
}

/// `join!` polls all when one is woken: a wait of its own is polled when it is woken itself.
fn spawn_counted<T>(counted: impl Future<Output = T>) -> impl Future<Output = T> {
    let mut group = futures_util::stream::FuturesUnordered::new();
    group.push(counted);
    async move { futures_util::StreamExt::next(&mut group).await.expect("it was pushed") }
}

#[tokio::test]
async fn a_client_that_ends_within_its_hello_has_no_name() {
    let bytes = hello(config(None), NAME);
    for length in [0, 1, 5, bytes.len() - 1] {
        let (mut client, server) = pair().await;
        client.write_all(&bytes[..length]).await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(wait(&server).await.unwrap_or(FirstBytes::Nameless), first_bytes(&bytes[..length]));
        assert_eq!(server_name(&server).await, None, "{length}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_silent_has_no_name_after_the_deadline() {
    let (_client, server) = pair().await;
    let began = tokio::time::Instant::now();
    assert_eq!(server_name(&server).await, None);
    assert!(began.elapsed() >= DEADLINE);
}

#[tokio::test]
async fn another_protocol_is_told_by_its_first_byte() {
    let (mut client, server) = pair().await;
    client.write_all(b"E").await.unwrap();
    assert_eq!(server_name(&server).await, None);
}
