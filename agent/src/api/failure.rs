//! What can go wrong between a caller and the loop, and how errors are answered.

use std::io;
use std::path::PathBuf;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bascule_core::{Disposition, ErrorReport, Phase};

use crate::shared::Refused;

/// An error of the API itself.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The socket could not be made.
    #[error("the API socket {path} cannot be made")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another daemon answers on the socket.
    #[error("another daemon serves {path} already")]
    AlreadyServed {
        /// The socket.
        path: PathBuf,
    },
    /// Only root may command.
    #[error("user {uid} may look but not command")]
    Forbidden {
        /// Who asked.
        uid: u32,
    },
    /// The request is not of the form that its path wants.
    #[error("the request cannot be used: {problem}")]
    BadRequest {
        /// What is wrong with it.
        problem: String,
    },
    /// No such path.
    #[error("there is no {path} in this API")]
    NotFound {
        /// The path that was asked for.
        path: String,
    },
    /// The path has another method.
    #[error("{path} does not take {method}")]
    Method {
        /// The path.
        path: String,
        /// The method that was asked for.
        method: String,
    },
    /// The body is larger than any request of its kind.
    #[error("the request's body has more than {limit} bytes")]
    TooLarge {
        /// The bound.
        limit: usize,
    },
    /// Every place for a connection is taken.
    #[error("too many connections are open")]
    TooManyConnections,
    /// The loop took no command in time.
    #[error("the daemon is busy and took no command in time")]
    Busy,
    /// The daemon ended before it answered.
    #[error("the daemon ended before it answered")]
    NoAnswer,
}

impl ApiError {
    /// Stable code of `docs/errors.md`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            ApiError::Socket { .. } => "api.socket",
            ApiError::AlreadyServed { .. } => "api.already-served",
            ApiError::Forbidden { .. } => "api.forbidden",
            ApiError::BadRequest { .. } => "api.bad-request",
            ApiError::NotFound { .. } => "api.not-found",
            ApiError::Method { .. } => "api.method",
            ApiError::TooLarge { .. } => "api.too-large",
            ApiError::TooManyConnections => "api.too-many-connections",
            ApiError::Busy => "api.busy",
            ApiError::NoAnswer => "api.no-answer",
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            ApiError::Socket { .. } => "the daemon needs a writable runtime directory: start it through its unit",
            ApiError::AlreadyServed { .. } => "stop the other daemon first: `systemctl status basculed`",
            ApiError::Forbidden { .. } => "run the command as root",
            ApiError::BadRequest { .. } | ApiError::NotFound { .. } | ApiError::Method { .. } => {
                "GET /v1/openapi.json describes every path"
            }
            ApiError::TooLarge { .. } => "send a bundle itself as application/octet-stream",
            ApiError::TooManyConnections => "close watchers that are not needed",
            ApiError::Busy => "try again; if it lasts, the journal of basculed says what it does",
            ApiError::NoAnswer => "look at `bascule status` once the daemon runs again",
        }
        .to_owned()
    }

    /// Whether the same request may succeed later.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            ApiError::TooManyConnections | ApiError::Busy | ApiError::NoAnswer => Disposition::Retry,
            _ => Disposition::Person,
        }
    }

    /// The error as it is shown everywhere.
    #[must_use]
    pub fn report(&self) -> ErrorReport {
        ErrorReport::new(self.code(), Phase::Daemon, self, self.hint(), self.disposition())
    }

    fn status(&self) -> StatusCode {
        match self {
            ApiError::Forbidden { .. } => StatusCode::FORBIDDEN,
            ApiError::BadRequest { .. } => StatusCode::BAD_REQUEST,
            ApiError::NotFound { .. } => StatusCode::NOT_FOUND,
            ApiError::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            ApiError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            ApiError::TooManyConnections | ApiError::Busy | ApiError::NoAnswer => StatusCode::SERVICE_UNAVAILABLE,
            ApiError::Socket { .. } | ApiError::AlreadyServed { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let refused = Refused { error: self.report(), blockers: Vec::new() };
        (self.status(), Json(refused)).into_response()
    }
}

/// What the loop refused, as an answer.
pub(super) fn refused(refused: Refused) -> Response {
    (StatusCode::CONFLICT, Json(refused)).into_response()
}

/// The error as the text of an answer's body.
pub(super) fn as_json(error: &ApiError) -> String {
    serde_json::to_string(&Refused { error: error.report(), blockers: Vec::new() }).unwrap_or_default()
}
