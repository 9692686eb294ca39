//! The paths of the API.

use std::path::PathBuf;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use bascule_core::{HistoryEntry, Then};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::failure::refused;
use super::{Api, ApiError, Peer, Right, body, events};
use crate::shared::{Answer, Command, Source, Submission};
use crate::status::{Status, timestamp};
use crate::story::Event;

/// The largest JSON body.
const JSON_LIMIT: usize = 16 * 1024;
/// How long a JSON body may take.
const JSON_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the loop may take to take a command; the answer itself may take longer.
const SUBMIT_TIMEOUT: Duration = Duration::from_secs(10);
/// The description of this API.
const OPENAPI: &str = include_str!("../../../docs/api/openapi.json");

/// The body of `plan`, `prepare` and `install`, unless it is the bundle itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceRequest {
    /// A URL or an absolute path on this device.
    pub source: String,
}

/// The body of `allow`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllowRequest {
    /// The version of a bundle on the deny-list, or the beginning of its manifest's SHA-256.
    pub bundle: String,
}

/// One line of history, with its time as people write it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HistoryLine {
    /// When it ended.
    pub time: Timestamp,
    /// What happened.
    #[serde(flatten)]
    pub entry: HistoryEntry,
}

pub(super) fn router(api: Api) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/events", get(watch_events))
        .route("/v1/history", get(history))
        .route("/v1/slots", get(slots))
        .route("/v1/config", get(config))
        .route("/v1/openapi.json", get(|| async { ([(CONTENT_TYPE, "application/json")], OPENAPI) }))
        .route("/v1/deployments/{id}", get(story))
        .route("/v1/check", post(check))
        .route("/v1/allow", post(allow))
        .route("/v1/plan", post(plan))
        .route("/v1/prepare", post(prepare))
        .route("/v1/install", post(install))
        .route("/v1/activate", post(activate))
        .route("/v1/commit", post(commit))
        .route("/v1/rollback", post(rollback))
        .route("/v1/cancel", post(cancel))
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn(authorise))
        .with_state(api)
}

/// Whoever may only read gets no further with anything but a look; nothing about the request is believed before.
async fn authorise(Extension(peer): Extension<Peer>, request: Request, next: Next) -> Response {
    let looks = matches!(*request.method(), Method::GET | Method::HEAD);
    if peer.right == Right::Command || looks {
        return next.run(request).await;
    }
    tracing::warn!(uid = peer.caller.uid, pid = peer.caller.pid, "a command without the right to command");
    ApiError::Forbidden { uid: peer.caller.uid }.into_response()
}

fn now() -> i64 {
    Timestamp::now().as_second()
}

impl Api {
    fn status(&self) -> Status {
        Status::of(&self.handle.snapshot.borrow(), now())
    }
}

async fn status(State(api): State<Api>) -> Json<Status> {
    Json(api.status())
}

async fn watch_events(State(api): State<Api>) -> Response {
    events::stream(api.handle.snapshot.clone(), now)
}

async fn history(State(api): State<Api>) -> Json<Vec<HistoryLine>> {
    let snapshot = api.handle.snapshot.borrow();
    let line = |entry: &HistoryEntry| HistoryLine { time: timestamp(entry.at), entry: entry.clone() };
    Json(snapshot.record.history.iter().rev().map(line).collect())
}

async fn slots(State(api): State<Api>) -> Response {
    Json(api.status().groups).into_response()
}

async fn config(State(api): State<Api>) -> Response {
    Json(api.config.as_ref().clone()).into_response()
}

async fn not_found(uri: Uri) -> ApiError {
    ApiError::NotFound { path: uri.path().chars().take(100).collect() }
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::Method { path: uri.path().to_owned(), method: method.to_string() }
}

async fn plan(State(api): State<Api>, Extension(peer): Extension<Peer>, request: Request) -> Response {
    match source(request).await {
        Ok(source) => submit(&api, peer, Command::Plan { source }).await,
        Err(error) => error.into_response(),
    }
}

async fn prepare(State(api): State<Api>, Extension(peer): Extension<Peer>, request: Request) -> Response {
    match source(request).await {
        Ok(source) => submit(&api, peer, Command::Prepare { source, then: Then::Stop }).await,
        Err(error) => error.into_response(),
    }
}

async fn install(State(api): State<Api>, Extension(peer): Extension<Peer>, request: Request) -> Response {
    match source(request).await {
        Ok(source) => submit(&api, peer, Command::Prepare { source, then: Then::Activate }).await,
        Err(error) => error.into_response(),
    }
}

async fn activate(State(api): State<Api>, Extension(peer): Extension<Peer>) -> Response {
    submit(&api, peer, Command::Activate).await
}

async fn commit(State(api): State<Api>, Extension(peer): Extension<Peer>) -> Response {
    submit(&api, peer, Command::Commit).await
}

async fn rollback(State(api): State<Api>, Extension(peer): Extension<Peer>) -> Response {
    submit(&api, peer, Command::RollBack).await
}

async fn cancel(State(api): State<Api>, Extension(peer): Extension<Peer>) -> Response {
    submit(&api, peer, Command::Cancel).await
}

async fn check(State(api): State<Api>, Extension(peer): Extension<Peer>) -> Response {
    submit(&api, peer, Command::Check).await
}

async fn allow(State(api): State<Api>, Extension(peer): Extension<Peer>, request: Request) -> Response {
    match json::<AllowRequest>(request.into_body(), "{\"bundle\": \"...\"}").await {
        Ok(request) => submit(&api, peer, Command::Allow { bundle: request.bundle }).await,
        Err(error) => error.into_response(),
    }
}

/// The lines of one deployment's story; none where nothing is known of it.
async fn story(State(api): State<Api>, Path(id): Path<String>) -> Json<Vec<Event>> {
    let read = tokio::task::spawn_blocking(move || api.stories.read(&id)).await;
    Json(read.unwrap_or_default())
}

/// Hands a command to the loop and waits for its one answer.
async fn submit(api: &Api, peer: Peer, command: Command) -> Response {
    let (sender, receiver) = oneshot::channel();
    let submission = Submission { command, caller: peer.caller, answer: sender };
    match timeout(SUBMIT_TIMEOUT, api.handle.commands.send(submission)).await {
        Err(_) => return ApiError::Busy.into_response(),
        Ok(Err(_)) => return ApiError::NoAnswer.into_response(),
        Ok(Ok(())) => {}
    }
    match receiver.await {
        Ok(Ok(answer)) => {
            let status = if matches!(answer, Answer::Accepted { .. }) { StatusCode::ACCEPTED } else { StatusCode::OK };
            (status, Json(answer)).into_response()
        }
        Ok(Err(error)) => refused(error),
        Err(_) => ApiError::NoAnswer.into_response(),
    }
}

/// What the request names as its bundle, or carries.
async fn source(request: Request) -> Result<Source, ApiError> {
    let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    match kind.split(';').next().unwrap_or_default().trim() {
        "application/octet-stream" => Ok(Source::Stream(Box::new(body::pipe(request.into_body())))),
        "application/json" => named(json(request.into_body(), "{\"source\": \"...\"}").await?),
        _ => Err(bad("its content type must be application/json or application/octet-stream")),
    }
}

async fn json<T: DeserializeOwned>(body: Body, form: &str) -> Result<T, ApiError> {
    let whole = timeout(JSON_TIMEOUT, Limited::new(body, JSON_LIMIT).collect()).await;
    let bytes = match whole {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(ApiError::TooLarge { limit: JSON_LIMIT }),
        Ok(Err(_)) => return Err(bad("its body broke off")),
        Err(_) => return Err(bad("its body did not come in time")),
    };
    serde_json::from_slice(&bytes).map_err(|error| bad(&format!("its body is not {form} ({error})")))
}

fn named(request: SourceRequest) -> Result<Source, ApiError> {
    let source = request.source;
    if source.starts_with("http://") || source.starts_with("https://") {
        return Ok(Source::Url(source));
    }
    let path = PathBuf::from(source);
    if path.is_absolute() {
        Ok(Source::File(path))
    } else {
        Err(bad("the source must be an http(s) URL or an absolute path"))
    }
}

fn bad(problem: &str) -> ApiError {
    ApiError::BadRequest { problem: problem.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;
    use tokio::sync::{mpsc, watch};

    use super::*;
    use crate::config::Config;
    use crate::paths::Paths;
    use crate::shared::{Caller, Handle};
    use crate::story::Stories;

    fn api() -> (Api, mpsc::Receiver<Submission>) {
        let root = tempfile::TempDir::new().unwrap();
        let paths = Paths::under(root.path());
        std::fs::create_dir_all(paths.config().parent().unwrap()).unwrap();
        std::fs::write(paths.config(), "[slots.root]\na = \"x\"\nb = \"y\"\n").unwrap();
        let config = Config::load(&paths).unwrap();
        let (commands, queue) = mpsc::channel(1);
        let (_, snapshot) = watch::channel(crate::status::tests::factory());
        let stories = Stories::new(root.path());
        (Api::new(Handle { commands, snapshot }, Arc::new(config), stories), queue)
    }

    async fn asked(right: Right, method: Method, path: &str) -> StatusCode {
        let (api, mut queue) = api();
        let peer = Peer { caller: Caller { uid: 1000, pid: 1 }, right };
        let app = TowerToHyperService::new(router(api).layer(Extension(peer)));
        let request = Request::builder().method(method).uri(path).header(CONTENT_TYPE, "application/json");
        let body = Body::from("{\"source\":\"/x\"}");
        let loop_answers = async {
            if let Some(submission) = queue.recv().await {
                let _ = submission.answer.send(Ok(Answer::Done));
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            answer = app.call(request.body(body).unwrap()) => answer.unwrap().status(),
            () = loop_answers => unreachable!(),
        }
    }

    const LOOKS: [&str; 6] = ["/v1/status", "/v1/events", "/v1/history", "/v1/slots", "/v1/config", "/v1/openapi.json"];
    const COMMANDS: [&str; 7] =
        ["/v1/plan", "/v1/prepare", "/v1/install", "/v1/activate", "/v1/commit", "/v1/rollback", "/v1/cancel"];

    #[tokio::test]
    async fn a_reader_may_look_at_everything_and_command_nothing() {
        for path in LOOKS {
            assert_eq!(asked(Right::Read, Method::GET, path).await, StatusCode::OK, "GET {path}");
        }
        for path in COMMANDS.into_iter().chain(LOOKS) {
            for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS] {
                assert_eq!(asked(Right::Read, method.clone(), path).await, StatusCode::FORBIDDEN, "{method} {path}");
            }
        }
    }

    #[tokio::test]
    async fn root_may_give_every_command() {
        for path in COMMANDS {
            assert_eq!(asked(Right::Command, Method::POST, path).await, StatusCode::OK, "POST {path}");
        }
    }
}
