//! What a server, or the way to it, may do to us.

use std::io;

use bascule_core::Disposition;

/// What the server, or the way to it, did.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Not a usable URL.
    #[error("{url:?} is not an http or https URL")]
    Url {
        /// The URL.
        url: String,
    },
    /// The TLS trust anchors could not be loaded.
    #[error("cannot prepare TLS")]
    Tls(#[source] io::Error),
    /// No answer.
    #[error("no answer from {url}")]
    Unreachable {
        /// The URL.
        url: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nothing came for the stall timeout.
    #[error("{url} sent nothing for {seconds} s, at byte {offset}")]
    Stalled {
        /// The URL.
        url: String,
        /// The stall timeout.
        seconds: u64,
        /// Where.
        offset: u64,
    },
    /// It sends, but the head of the bundle did not come in the time it has.
    #[error("the head of the bundle at {url} did not arrive within {seconds} s")]
    Slow {
        /// The URL.
        url: String,
        /// The time it had.
        seconds: u64,
    },
    /// Not a success.
    #[error("{url} answered {status}")]
    Status {
        /// The URL.
        url: String,
        /// The status.
        status: u16,
    },
    /// The answer contradicts the request or itself.
    #[error("{url} answered wrongly: {what}")]
    Lies {
        /// The URL.
        url: String,
        /// What is wrong.
        what: String,
    },
    /// More would be fetched than the policy allows.
    #[error("more than {limit} bytes would be fetched from {url}")]
    Limit {
        /// The URL.
        url: String,
        /// How many are allowed.
        limit: u64,
    },
    /// Another file is there than at the beginning.
    #[error("{url} changed while it was read")]
    Changed {
        /// The URL.
        url: String,
    },
    /// A person cancelled it.
    #[error("reading {url} was cancelled")]
    Cancelled {
        /// The URL.
        url: String,
    },
    /// Redirects without an end, or to a place that is not followed.
    #[error("{url} redirects {what}")]
    Redirect {
        /// The URL.
        url: String,
        /// What is wrong with the redirect.
        what: &'static str,
    },
}

impl HttpError {
    /// Stable code of `docs/errors.md`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            HttpError::Url { .. } => "source.url",
            HttpError::Tls(_) => "source.tls",
            HttpError::Unreachable { .. } => "source.unreachable",
            HttpError::Stalled { .. } => "source.stalled",
            HttpError::Slow { .. } => "source.slow",
            HttpError::Status { .. } => "source.status",
            HttpError::Lies { .. } => "source.wrong-answer",
            HttpError::Limit { .. } => "source.limit",
            HttpError::Changed { .. } => "source.changed",
            HttpError::Redirect { .. } => "source.redirect",
            HttpError::Cancelled { .. } => "source.cancelled",
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            HttpError::Url { .. } => "write it as http://HOST/PATH or https://HOST/PATH",
            HttpError::Tls(_) => "install the CA certificates this device is to trust",
            HttpError::Slow { .. } => "check the link and the server, or raise `head_timeout` under [prepare]",
            HttpError::Unreachable { .. } | HttpError::Stalled { .. } => {
                "check the link and the server; what was written is kept and the next attempt goes on from there"
            }
            HttpError::Status { .. } => "check the address and the server's log",
            HttpError::Lies { .. } => {
                "check the server and any proxy in between; it must not alter or compress bundles"
            }
            HttpError::Limit { .. } => "raise prepare.max_fetch, or publish a delta against what this device runs",
            HttpError::Changed { .. } => "publish each bundle under a name of its own and never replace it",
            HttpError::Cancelled { .. } => "nothing needs to be done",
            HttpError::Redirect { .. } => "give the final address of the bundle",
        }
        .to_owned()
    }

    /// Whether it may go away by itself.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            HttpError::Url { .. } | HttpError::Tls(_) | HttpError::Redirect { .. } => Disposition::Person,
            HttpError::Cancelled { .. } | HttpError::Limit { .. } => Disposition::GiveUp,
            HttpError::Status { status, .. } if *status < 500 && !matches!(status, 408 | 425 | 429) => {
                Disposition::Person
            }
            _ => Disposition::Retry,
        }
    }
}
