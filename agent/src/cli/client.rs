//! HTTP on the daemon's socket.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::failure::CliError;
use crate::api::SourceRequest;
use crate::paths::Paths;
use crate::shared::{Answer, Refused};
use crate::status::Status;

/// The largest answer that is read.
const ANSWER_LIMIT: usize = 8 * 1024 * 1024;
/// The longest event that is read.
const EVENT_LIMIT: usize = 1024 * 1024;
/// How long the daemon may take to answer a question about what it knows.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a daemon that went away is waited for.
const RETURN: Duration = Duration::from_secs(30);
/// From one look for it to the next.
const LOOK: Duration = Duration::from_millis(300);

/// A request's body.
pub(super) type Payload = BoxBody<Bytes, io::Error>;

/// Speaks to one daemon; each request has its own connection.
#[derive(Debug, Clone)]
pub(super) struct Client {
    socket: PathBuf,
    paths: Paths,
}

impl Client {
    /// A client of the daemon that serves `socket` for the device at `paths`.
    pub(super) fn new(socket: PathBuf, paths: Paths) -> Self {
        Client { socket, paths }
    }

    /// Asks for something that the daemon knows.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CliError> {
        let asked = async { read(path, self.send(Method::GET, path, "", empty()).await?).await };
        match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
            Ok(answer) => answer,
            Err(elapsed) => Err(CliError::Broken { source: Box::new(elapsed) }),
        }
    }

    /// Gives a command without a bundle.
    pub(super) async fn command(&self, path: &str) -> Result<Answer, CliError> {
        read(path, self.send(Method::POST, path, "", empty()).await?).await
    }

    /// Gives a command with the name of its bundle.
    pub(super) async fn command_on(&self, path: &str, source: String) -> Result<Answer, CliError> {
        self.command_with_json(path, &SourceRequest { source }).await
    }

    /// Gives a command with what it needs to know.
    pub(super) async fn command_with_json(&self, path: &str, body: &impl Serialize) -> Result<Answer, CliError> {
        let body = serde_json::to_vec(body).map_err(|error| bad_answer(path, error))?;
        let body = Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed();
        read(path, self.send(Method::POST, path, "application/json", body).await?).await
    }

    /// Gives a command with the bundle itself, which is sent on after the answer: the task ends when all of it is sent,
    /// or nobody takes it any more.
    pub(super) async fn command_with(&self, path: &str, bundle: Payload) -> Result<(Answer, JoinHandle<()>), CliError> {
        let (answer, sent) = self.exchange(Method::POST, path, "application/octet-stream", bundle).await?;
        Ok((read(path, answer).await?, sent))
    }

    /// Watches the status.
    pub(super) async fn events(&self) -> Result<Events, CliError> {
        let answer = self.send(Method::GET, "/v1/events", "", empty()).await?;
        if !answer.status().is_success() {
            return Err(refusal("/v1/events", answer).await);
        }
        Ok(Events { body: answer.into_body(), buffer: Vec::new() })
    }

    /// Watches the status of a daemon that has gone away, once it is back.
    pub(super) async fn events_once_back(&self) -> Result<Events, CliError> {
        let gone = Instant::now();
        loop {
            match self.events().await {
                Err(_) if gone.elapsed() < RETURN => sleep(LOOK).await,
                events => return events,
            }
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        body: Payload,
    ) -> Result<Response<Incoming>, CliError> {
        self.exchange(method, path, kind, body).await.map(|(answer, _)| answer)
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        body: Payload,
    ) -> Result<(Response<Incoming>, JoinHandle<()>), CliError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| self.unreachable(source))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header(HOST, "localhost");
        if !kind.is_empty() {
            request = request.header(CONTENT_TYPE, kind);
        }
        let request = request.body(body).map_err(broken)?;
        let answer = sender.send_request(request).await.map_err(broken)?;
        // The connection lives as long as its sender: keep that until the whole body is sent, also after the answer.
        let sent = tokio::spawn(async move {
            let _ = sender.ready().await;
        });
        Ok((answer, sent))
    }

    fn unreachable(&self, source: io::Error) -> CliError {
        let path = self.socket.clone();
        match source.kind() {
            io::ErrorKind::PermissionDenied => CliError::NoAccess { path, source },
            _ => CliError::NotRunning { path, source, paths: self.paths.clone() },
        }
    }
}

/// The status at every change.
pub(super) struct Events {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Events {
    /// The next status; `None` when the daemon has gone away.
    pub(super) async fn next(&mut self) -> Result<Option<Status>, CliError> {
        loop {
            if let Some(status) = self.take_event()? {
                return Ok(Some(status));
            }
            let Some(Ok(frame)) = self.body.frame().await else { return Ok(None) };
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
            if self.buffer.len() > EVENT_LIMIT {
                return Err(bad_answer("/v1/events", io::Error::other("an event is too long")));
            }
        }
    }

    /// Takes the first whole event with data out of the buffer.
    fn take_event(&mut self) -> Result<Option<Status>, CliError> {
        while let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = self.buffer.drain(..end.saturating_add(2)).collect();
            let mut lines = event.split(|byte| *byte == b'\n');
            if let Some(data) = lines.find_map(|line| line.strip_prefix(b"data:")) {
                return serde_json::from_slice(data).map(Some).map_err(|error| bad_answer("/v1/events", error));
            }
        }
        Ok(None)
    }
}

async fn read<T: DeserializeOwned>(path: &str, answer: Response<Incoming>) -> Result<T, CliError> {
    if !answer.status().is_success() {
        return Err(refusal(path, answer).await);
    }
    let body = Limited::new(answer.into_body(), ANSWER_LIMIT).collect().await;
    let bytes = body.map_err(|source| CliError::Broken { source })?.to_bytes();
    serde_json::from_slice(&bytes).map_err(|error| bad_answer(path, error))
}

async fn refusal(path: &str, answer: Response<Incoming>) -> CliError {
    let body = match Limited::new(answer.into_body(), ANSWER_LIMIT).collect().await {
        Ok(body) => body.to_bytes(),
        Err(source) => return CliError::Broken { source },
    };
    match serde_json::from_slice::<Refused>(&body) {
        Ok(refused) => CliError::Refused(Box::new(refused)),
        Err(error) => bad_answer(path, error),
    }
}

fn empty() -> Payload {
    Empty::new().map_err(|never| match never {}).boxed()
}

fn broken(error: impl std::error::Error + Send + Sync + 'static) -> CliError {
    CliError::Broken { source: Box::new(error) }
}

fn bad_answer(path: &str, error: impl std::error::Error + Send + Sync + 'static) -> CliError {
    CliError::BadAnswer { path: path.to_owned(), source: Box::new(error) }
}
