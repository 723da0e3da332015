//! `pods/exec` over a `WebSocket`: v4 and v5 of `channel.k8s.io`, where the first byte of a message is its channel.

use axum::extract::FromRequestParts as _;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::IntoResponse as _;
use http::Response;
use http::request::Parts;
use serde_json::{Value, json};

use super::failure::Failure;
use super::state::{Exec, ExecCall, ExecResult};

const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
/// v5: says that a channel is at its end.
const CLOSE: u8 = 255;

/// Runs a command once the connection is a `WebSocket`.
pub(super) async fn exec(
    parts: &mut Parts,
    call: ExecCall,
    exec: Exec,
) -> Result<Response<axum::body::Body>, Failure> {
    let upgrade = WebSocketUpgrade::from_request_parts(parts, &())
        .await
        .map_err(|rejection| Failure::bad_request(format!("unable to upgrade: {}", rejection.body_text())))?;
    let upgrade = upgrade.protocols(["v5.channel.k8s.io", "v4.channel.k8s.io"]);
    Ok(upgrade
        .on_upgrade(move |socket| async move {
            let called = tokio::task::spawn_blocking(move || exec(&call)).await;
            let result = called.unwrap_or_else(|_panic| ExecResult {
                stderr: b"the test's command panicked".to_vec(),
                code: 255,
                ..ExecResult::default()
            });
            tell(socket, result).await;
        })
        .into_response())
}

async fn tell(mut socket: WebSocket, result: ExecResult) {
    let v5 = socket.protocol().is_some_and(|protocol| protocol == "v5.channel.k8s.io");
    let mut messages = Vec::new();
    for (channel, bytes) in [(STDOUT, &result.stdout), (STDERR, &result.stderr)] {
        messages.extend(bytes.chunks(32 * 1024).map(|chunk| framed(channel, chunk)));
        if v5 {
            messages.push(vec![CLOSE, channel]);
        }
    }
    messages.push(framed(ERROR, status(result.code).to_string().as_bytes()));
    for message in messages {
        if socket.send(Message::Binary(message.into())).await.is_err() {
            return;
        }
    }
    // A client that is gone already is no error.
    let _sent = socket.send(Message::Close(None)).await;
}

fn framed(channel: u8, bytes: &[u8]) -> Vec<u8> {
    [&[channel][..], bytes].concat()
}

fn status(code: i32) -> Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}
