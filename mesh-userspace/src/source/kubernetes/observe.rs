//! Listens to the traffic of one watch: `kube`'s watcher tells what changed, and nothing of the bookmarks and reconnections by
//! which one knows that what did not change is still so.
//!
//! It also keeps what is waited for within bounds: an answer that does not begin, a listing that stops halfway, a watch that
//! has fallen silent, and a watch that ends as soon as it is opened.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Body as HttpBody, Frame};
use kube::client::Body;
use tokio::time::{Instant, sleep_until, timeout};
use tower::{BoxError, Layer, Service};

use super::state::ApiState;
use super::trouble::TimedOut;

/// Longest wait for an answer to begin, and for the next part of a listing.
const ANSWER: Duration = Duration::from_secs(30);
/// A watch that says nothing for so long is opened anew: API servers send a bookmark about every minute.
const SILENCE: Duration = Duration::from_secs(130);
/// A watch that ends sooner is not opened again before this time is over.
const SHORTEST: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Observe {
    pub(super) kind: usize,
    pub(super) state: Arc<ApiState>,
}

#[derive(Clone, Debug)]
pub(super) struct Observed<S> {
    inner: S,
    observe: Observe,
}

impl<S> Layer<S> for Observe {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed { inner, observe: self.clone() }
    }
}

type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;

impl<S, B> Service<Request<Body>> for Observed<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError>,
    S::Future: Send + 'static,
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Answer;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let is_watch =
            request.uri().query().is_some_and(|query| query.split('&').any(|part| part == "watch=true"));
        let (answer, observe) = (self.inner.call(request), self.observe.clone());
        Box::pin(async move {
            let answer = timeout(ANSWER, answer).await.map_err(|_elapsed| TimedOut(ANSWER))??;
            if is_watch && answer.status().is_success() {
                observe.state.heard(observe.kind);
                observe.state.recovered(observe.kind);
            }
            Ok(answer.map(|body| observe.body(body, is_watch)))
        })
    }
}

impl Observe {
    fn body<B>(self, body: B, is_watch: bool) -> UnsyncBoxBody<Bytes, BoxError>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let (silence, opened) = (if is_watch { SILENCE } else { ANSWER }, Instant::now());
        let frames = stream::unfold(Some((body, self)), move |open: Option<(B, Self)>| async move {
            let (mut body, observe) = open?;
            let (frame, next): (Option<Result<Frame<Bytes>, BoxError>>, _) =
                match timeout(silence, body.frame()).await {
                    Ok(Some(Ok(frame))) => {
                        observe.state.heard(observe.kind);
                        (Some(Ok(frame)), Some((body, observe)))
                    }
                    Ok(Some(Err(error))) => (Some(Err(error.into())), None),
                    Ok(None) => (None, None),
                    // A watch that ends is resumed.
                    Err(_elapsed) if is_watch => (None, None),
                    Err(_elapsed) => (Some(Err(TimedOut(silence).into())), None),
                };
            if is_watch && next.is_none() {
                sleep_until(opened + SHORTEST).await;
            }
            frame.map(|frame| (frame, next))
        });
        StreamBody::new(frames).boxed_unsync()
    }
}
