//! Serves a bundle's metadata and manifest to `tough` from memory.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use tough::{Bytes, Transport, TransportError, TransportErrorKind, TransportStream, async_trait};
use url::Url;

use crate::format::Metadata;

/// The files of one bundle, by the last part of the address that `tough` asks for.
#[derive(Debug, Clone)]
pub(crate) struct InMemory {
    roots: Arc<HashMap<String, Bytes>>,
    timestamp: Bytes,
    snapshot: Bytes,
    targets: Bytes,
    manifest: Bytes,
}

impl InMemory {
    pub(crate) fn new(metadata: &Metadata, manifest: &[u8]) -> Self {
        let copy = Bytes::copy_from_slice;
        let roots = metadata.roots.iter().map(|(version, root)| (format!("{version}.root.json"), copy(root)));
        InMemory {
            roots: Arc::new(roots.collect()),
            timestamp: copy(&metadata.timestamp),
            snapshot: copy(&metadata.snapshot),
            targets: copy(&metadata.targets),
            manifest: copy(manifest),
        }
    }

    /// A bundle has one file of each role, so a version or digest before the name is not looked at: `tough` compares
    /// both with what it finds inside. A role we don't carry (a delegated one) is not found.
    fn find(&self, path: &str) -> Option<&Bytes> {
        let name = path.rsplit('/').next().unwrap_or_default();
        let role = name.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start_matches('.');
        match role {
            _ if path.starts_with("/targets/") => Some(&self.manifest),
            "root.json" => self.roots.get(name),
            "timestamp.json" => Some(&self.timestamp),
            "snapshot.json" => Some(&self.snapshot),
            "targets.json" => Some(&self.targets),
            _ => None,
        }
    }
}

#[async_trait]
impl Transport for InMemory {
    async fn fetch(&self, url: Url) -> Result<TransportStream, TransportError> {
        match self.find(url.path()) {
            Some(bytes) => Ok(Box::pin(Once(Some(bytes.clone())))),
            None => Err(TransportError::new(TransportErrorKind::FileNotFound, url.as_str())),
        }
    }
}

/// A stream of one piece.
struct Once(Option<Bytes>);

impl Stream for Once {
    type Item = Result<Bytes, TransportError>;
    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(self.0.take().map(Ok))
    }
}
