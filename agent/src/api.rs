//! The local API: HTTP and JSON on a Unix socket.
//!
//! Root may do everything; whoever else the socket's mode lets in may read. The peer's credentials are taken from the
//! kernel for every connection. Nothing here decides anything about an update: commands go to the loop, snapshots come
//! back. `docs/api/openapi.json` describes every path.

mod body;
mod events;
mod failure;
mod routes;
mod socket;

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::config::Config;
use crate::shared::{Caller, Handle};
use crate::story::Stories;

pub use failure::ApiError;
pub use routes::{AllowRequest, HistoryLine, SourceRequest};
pub use socket::bind;

/// Connections of root at a time.
const ROOT_CONNECTIONS: usize = 32;
/// Connections of everyone else at a time, so that readers cannot lock root out.
const READER_CONNECTIONS: usize = 16;
/// How long a request's head, and the pause between two requests, may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The most bytes of a request's head, and of body, that are kept for one connection.
const BUFFER_LIMIT: usize = 64 * 1024;
/// How long open connections may go on once the daemon stops.
const FAREWELL: Duration = Duration::from_secs(1);

/// What the routes need.
#[derive(Clone)]
pub struct Api {
    handle: Handle,
    config: Arc<Config>,
    stories: Stories,
}

/// What the caller may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) caller: Caller,
    pub(crate) right: Right,
}

/// What a peer may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Right {
    /// Look.
    Read,
    /// Everything.
    Command,
}

impl Api {
    /// Puts the API in front of the loop.
    #[must_use]
    pub fn new(handle: Handle, config: Arc<Config>, stories: Stories) -> Self {
        Api { handle, config, stories }
    }
}

/// Serves until `shutdown` is done; then gives open connections a moment.
pub async fn serve(listener: UnixListener, api: Api, shutdown: impl Future<Output = ()>) {
    let router = routes::router(api);
    let (root, readers) = (Arc::new(Semaphore::new(ROOT_CONNECTIONS)), Arc::new(Semaphore::new(READER_CONNECTIONS)));
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => accepted,
        };
        while connections.try_join_next().is_some() {}
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(error = &error as &(dyn std::error::Error + 'static), "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // A peer whose credentials the kernel does not tell gets nothing.
        let Some(peer) = peer(&stream) else { continue };
        let places = if peer.right == Right::Command { &root } else { &readers };
        match Arc::clone(places).try_acquire_owned() {
            Ok(place) => {
                let app = router.clone().layer(Extension(peer));
                connections.spawn(async move {
                    let _place = place;
                    connection(stream, TowerToHyperService::new(app)).await;
                });
            }
            Err(_) => {
                connections.spawn(turn_away(stream));
            }
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(FAREWELL, async { while connections.join_next().await.is_some() {} }).await;
}

fn peer(stream: &UnixStream) -> Option<Peer> {
    let credentials = stream.peer_cred().ok()?;
    let (uid, pid) = (credentials.uid(), credentials.pid().unwrap_or(0));
    // In a rehearsal the daemon is not root: then its own user stands for root.
    let commands = uid == 0 || uid == nix::unistd::geteuid().as_raw();
    Some(Peer { caller: Caller { uid, pid }, right: if commands { Right::Command } else { Right::Read } })
}

async fn connection(stream: UnixStream, app: TowerToHyperService<axum::Router>) {
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(BUFFER_LIMIT)
        .serve_connection(TokioIo::new(stream), app)
        .await;
    if let Err(error) = served {
        tracing::debug!(error = &error as &(dyn std::error::Error + 'static), "a connection ended early");
    }
}

async fn turn_away(mut stream: UnixStream) {
    let body = failure::as_json(&ApiError::TooManyConnections);
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    // What the caller still sends is read and dropped: closed too early, its writing fails and it never sees the answer.
    let _ = tokio::time::timeout(FAREWELL, async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
    })
    .await;
}
