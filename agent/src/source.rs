//! Where bundles come from: a file, standard input, an HTTP URL. All are read forward, once, in a thread that may block.

pub mod http;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bascule_core::Disposition;
use bascule_image::{BundleFile, BundleRead, ForwardOnly};

use crate::shared::Source;
use http::{HttpError, HttpRead};

/// Counts the bytes that came from a source, for progress and history.
pub type Fetched = Arc<AtomicU64>;

/// A source that could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file cannot be opened.
    #[error("cannot open {path}")]
    File {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Standard input is gone once it was read, or after a restart.
    #[error("the bundle came from standard input and cannot be read again")]
    StreamGone,
    /// The server or the way to it.
    #[error(transparent)]
    Http(#[from] HttpError),
}

impl SourceError {
    /// Stable code of `docs/errors.md`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            SourceError::File { .. } => "source.file",
            SourceError::StreamGone => "source.stream-gone",
            SourceError::Http(error) => error.code(),
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            SourceError::File { .. } => "check the path; the daemon reads it, so it must be reachable for root".into(),
            SourceError::StreamGone => "pipe the bundle into `bascule install -` once more".into(),
            SourceError::Http(error) => error.hint(),
        }
    }

    /// Whether it may go away by itself.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            SourceError::File { .. } => Disposition::Person,
            SourceError::StreamGone => Disposition::GiveUp,
            SourceError::Http(error) => error.disposition(),
        }
    }
}

/// What opening a source needs besides its name.
#[derive(Clone)]
pub struct Opener {
    /// The runtime that drives network connections.
    pub runtime: tokio::runtime::Handle,
    /// No byte for so long, and the connection is given up and resumed.
    pub stall_timeout: Duration,
    /// Addresses of folders that hold the same bundles, asked in turn where an address fails for good.
    pub mirrors: Vec<String>,
    /// Most bytes per second; `None`: as many as come.
    pub bandwidth: Option<u64>,
    /// Where the count of fetched bytes must stop; `None`: nowhere.
    pub most_fetched: Option<u64>,
    /// Set to make whoever reads give up.
    pub cancel: Arc<AtomicBool>,
}

impl Opener {
    /// The same, stopped by another flag.
    #[must_use]
    pub fn with_cancel(&self, cancel: Arc<AtomicBool>) -> Self {
        Opener { cancel, ..self.clone() }
    }

    /// Opens a source for reading from its start.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn open(&self, source: Source, fetched: Fetched) -> Result<Box<dyn BundleRead>, SourceError> {
        match source {
            Source::Url(url) => Ok(Box::new(HttpRead::open(self, &url, fetched)?)),
            Source::File(path) => {
                let inner = BundleFile::new(open_file(&path)?, &path);
                Ok(Box::new(Counted { inner, fetched }))
            }
            Source::Stream(reader) => Ok(Box::new(Counted { inner: ForwardOnly::new(reader), fetched })),
        }
    }

    /// Opens a recorded source again, by its label. Each attempt begins with another address, where there are mirrors:
    /// what the first one serves may be what made the last attempt fail.
    ///
    /// # Errors
    /// [`SourceError::StreamGone`] for standard input.
    pub fn reopen(&self, label: &str, attempt: u32, fetched: Fetched) -> Result<Box<dyn BundleRead>, SourceError> {
        if label == "-" {
            return Err(SourceError::StreamGone);
        }
        match parse(label) {
            Source::Url(url) => Ok(Box::new(HttpRead::open_turn(self, &url, attempt, fetched)?)),
            other => self.open(other, fetched),
        }
    }
}

/// Reads a label as a URL or a path.
#[must_use]
pub fn parse(label: &str) -> Source {
    if label.starts_with("http://") || label.starts_with("https://") {
        Source::Url(label.to_owned())
    } else {
        Source::File(label.into())
    }
}

fn open_file(path: &Path) -> Result<File, SourceError> {
    let failed = |source| SourceError::File { path: path.display().to_string(), source };
    // A pipe that nobody writes to must not hold up the daemon before it is seen to be one.
    let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")));
    }
    Ok(file)
}

/// Counts what is read.
struct Counted<R> {
    fetched: Fetched,
    inner: R,
}

impl<R: BundleRead> io::Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        self.fetched.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

impl<R: BundleRead> BundleRead for Counted<R> {
    fn skip_to(&mut self, offset: u64) -> io::Result<()> {
        self.inner.skip_to(offset)
    }

    fn total_len(&self) -> io::Result<Option<u64>> {
        self.inner.total_len()
    }

    fn expect(&mut self, end: u64) {
        self.inner.expect(end);
    }

    fn beside(&self, name: &str) -> io::Result<Box<dyn BundleRead>> {
        Ok(Box::new(Counted { fetched: self.fetched.clone(), inner: self.inner.beside(name)? }))
    }
}
