use std::rc::Rc;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::Instant;

use super::*;
use crate::socket::reset_on_close;
use crate::telemetry::Metrics;

fn queue() -> Rc<Queue> {
    Rc::new(Queue::new(Arc::default(), Arc::new(Metrics::new("test"))))
}

/// A shadow, and the task that feeds it.
async fn begin(queue: &Rc<Queue>) -> (TcpStream, JoinHandle<(End, (u64, u64))>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let queue = Rc::clone(queue);
    let feeding = spawn_local(async move {
        let bytes = ByteCounters::default();
        let end = feed(&queue, Server::Socket(socket), &bytes).await;
        queue.end(end);
        (end, bytes.totals())
    });
    (listener.accept().await.unwrap().0, feeding)
}

async fn locally(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn a_shadow_gets_all_and_the_end_and_its_answers_are_thrown_away() {
    locally(async {
        let queue = queue();
        let (mut shadow, feeding) = begin(&queue).await;
        queue.show(b"GET ");
        shadow.write_all(&vec![0; 100_000]).await.unwrap();
        queue.show(b"/");
        queue.finish();
        let mut got = Vec::new();
        shadow.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"GET /");
        // The client's connection may be long gone.
        queue.client_gone();
        drop(shadow);
        assert_eq!(feeding.await.unwrap(), (End::Closed, (5, 100_000)));
    })
    .await;
}

#[tokio::test]
async fn a_shadow_that_does_not_read_is_reset() {
    locally(async {
        let queue = queue();
        let (mut shadow, feeding) = begin(&queue).await;
        let bytes = vec![7; 64 * 1024];
        while queue.is_open() {
            queue.show(&bytes);
            tokio::task::yield_now().await;
        }
        let (end, (copied, _)) = feeding.await.unwrap();
        assert_eq!(end, End::Behind);
        let mut got = vec![0; 64 * 1024];
        let mut read = 0;
        let error = loop {
            match shadow.read(&mut got).await {
                Ok(0) => panic!("that is no end in order"),
                Ok(length) => read += length as u64,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert!(read <= copied);
    })
    .await;
}

#[tokio::test]
async fn a_shadow_that_resets_ends_its_copy_alone() {
    locally(async {
        let queue = queue();
        let (shadow, feeding) = begin(&queue).await;
        reset_on_close(&shadow);
        drop(shadow);
        assert_eq!(feeding.await.unwrap().0, End::ShadowReset);
        // Whoever shows more is told nothing and waits for nobody.
        queue.show(&[0; 100]);
        assert!(!queue.is_open());
    })
    .await;
}

#[tokio::test]
async fn a_shadow_that_does_not_end_is_given_its_time_after_the_client() {
    locally(async {
        tokio::time::pause();
        let queue = queue();
        let (_shadow, feeding) = begin(&queue).await;
        queue.finish();
        tokio::time::sleep(LINGER * 5).await;
        assert!(queue.is_open(), "as long as the client's connection lasts, it may");
        let gone = Instant::now();
        queue.client_gone();
        assert_eq!(feeding.await.unwrap().0, End::Lingered);
        assert!(gone.elapsed() >= LINGER && gone.elapsed() < LINGER * 2);
    })
    .await;
}

#[tokio::test]
async fn a_copy_that_is_cut_is_reset() {
    locally(async {
        let queue = queue();
        let (mut shadow, feeding) = begin(&queue).await;
        queue.show(b"half");
        let mut got = [0; 4];
        shadow.read_exact(&mut got).await.unwrap();
        feeding.abort();
        feeding.await.unwrap_err();
        assert_eq!(shadow.read(&mut got).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    })
    .await;
}
