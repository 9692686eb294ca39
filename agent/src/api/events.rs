//! Server-sent events: the status, whole, at every change.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use http_body_util::channel::{Channel, Sender};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::shared::Snapshot;
use crate::status::Status;

/// Two events are at least this far apart; what changes in between is seen in the later one.
const PAUSE: Duration = Duration::from_millis(100);
/// A comment is sent after so long without an event, so that both ends notice a dead connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Events that wait for a slow reader.
const WAITING: usize = 1;

/// An endless answer that begins with the status as it is now.
pub(super) fn stream(snapshot: watch::Receiver<Snapshot>, now: fn() -> i64) -> Response {
    let (sender, body) = Channel::<Bytes>::new(WAITING);
    tokio::spawn(send(sender, snapshot, now));
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store")];
    (headers, Body::new(body)).into_response()
}

async fn send(mut sender: Sender<Bytes>, mut snapshot: watch::Receiver<Snapshot>, now: fn() -> i64) {
    let mut last = None;
    loop {
        let status = Status::of(&snapshot.borrow_and_update(), now());
        if let Some(event) = event(&status).filter(|_| last.as_ref() != Some(&status)) {
            if sender.send_data(event).await.is_err() {
                return;
            }
            last = Some(status);
        }
        sleep(PAUSE).await;
        match timeout(KEEP_ALIVE, snapshot.changed()).await {
            Ok(Ok(())) => {}
            // The loop is gone, and the daemon with it.
            Ok(Err(_)) => return,
            Err(_) if sender.send_data(Bytes::from_static(b": still here\n\n")).await.is_err() => return,
            Err(_) => {}
        }
    }
}

fn event(status: &Status) -> Option<Bytes> {
    let json = serde_json::to_string(status).ok()?;
    Some(Bytes::from(format!("event: status\ndata: {json}\n\n")))
}
