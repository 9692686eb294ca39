//! A bundle over HTTP: one forward read that survives stalls and broken connections by resuming with `Range`.
//!
//! Nothing that comes from here is trusted: the bundle's own signature and chunk digests decide. What is checked here
//! keeps a lying or changing server from wasting the link: the range it answers, the entity's tag, its encoding.

mod address;
mod error;

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bascule_core::Disposition;
use bascule_image::BundleRead;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, ResponseFuture};
use hyper_util::rt::TokioExecutor;

pub use error::HttpError;

use address::{beside, length_of, mirrored, parse_range, redirected};

use super::{Fetched, Opener};
use crate::pace::Pace;

/// A source that sends fewer bytes per second for as long as a stall may last has stalled too.
const LEAST_PER_SECOND: u64 = 64;
/// How often a read is resumed without a single byte in between before it is given up.
const MAX_FRUITLESS: u32 = 5;
/// The wait before the first resumption; doubles with each fruitless one.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// Redirects followed for one request.
const MAX_REDIRECTS: usize = 5;
/// How often a wait looks whether it was cancelled.
const SLICE: Duration = Duration::from_millis(250);
/// How much is asked for at once where it is not known how much is wanted: the head of most bundles. In bytes.
const WINDOW: u64 = 64 << 10;
/// A gap up to this long is read and dropped; a longer one is worth a new range request. In bytes.
const DROP_LIMIT: u64 = 256 << 10;

type Plain = Client<HttpConnector, Empty<Bytes>>;
type Tls = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

/// One client for each scheme, made when it is first needed: a device without CA certificates can still use http.
#[derive(Default)]
struct Clients {
    plain: Option<Plain>,
    tls: Option<Tls>,
}

impl Clients {
    fn request(&mut self, request: Request<Empty<Bytes>>) -> Result<ResponseFuture, HttpError> {
        if request.uri().scheme_str() == Some("http") {
            let make = || Client::builder(TokioExecutor::new()).build(HttpConnector::new());
            return Ok(self.plain.get_or_insert_with(make).request(request));
        }
        let client = match self.tls.take() {
            Some(client) => client,
            None => {
                let builder = HttpsConnectorBuilder::new().with_native_roots().map_err(HttpError::Tls)?;
                Client::builder(TokioExecutor::new()).build(builder.https_only().enable_http1().build())
            }
        };
        Ok(self.tls.insert(client).request(request))
    }
}

/// A forward read of one URL.
pub struct HttpRead {
    clients: Clients,
    opener: Opener,
    url: String,
    /// Where else the same file is, in the order they are asked.
    mirrors: VecDeque<String>,
    fetched: Fetched,
    pace: Option<Pace>,
    /// Since when bytes of this answer are counted, and how many came.
    lately: (Instant, u64),
    offset: u64,
    /// Up to where bytes are wanted: no request asks for more, so that nothing is sent for nothing.
    wanted: u64,
    /// Where the answer at hand ends.
    answered: u64,
    tag: Option<HeaderValue>,
    total: Option<u64>,
    /// Whether the server has answered a range with a range; until then it is believed to.
    ranges: bool,
    /// Why there is no connection, where the attempt to make one was not the caller's business.
    problem: Option<HttpError>,
    body: Option<Incoming>,
    rest: Bytes,
}

impl HttpRead {
    /// Sends the first request, so that an address that does not answer is known at once.
    ///
    /// # Errors
    /// [`HttpError`].
    pub fn open(opener: &Opener, url: &str, fetched: Fetched) -> Result<Self, HttpError> {
        Self::open_within(opener, url, fetched, WINDOW)
    }

    /// As [`HttpRead::open`]; of the address and its mirrors it begins with the one whose turn it is. The first attempt, 1,
    /// begins with the address.
    ///
    /// # Errors
    /// [`HttpError`].
    pub fn open_turn(opener: &Opener, url: &str, attempt: u32, fetched: Fetched) -> Result<Self, HttpError> {
        let mut addresses: Vec<String> = std::iter::once(url.to_owned())
            .chain(opener.mirrors.iter().filter_map(|folder| mirrored(url, folder)))
            .collect();
        let turn = attempt.saturating_sub(1) as usize % addresses.len();
        addresses.rotate_left(turn);
        let first = addresses.remove(0);
        Self::open_first(opener, first, addresses, fetched, WINDOW)
    }

    /// Asks for no more than one byte, to see whether the address answers.
    ///
    /// # Errors
    /// [`HttpError`].
    pub fn knock(opener: &Opener, url: &str) -> Result<(), HttpError> {
        Self::open_within(opener, url, Fetched::default(), 1).map(drop)
    }

    fn open_within(opener: &Opener, url: &str, fetched: Fetched, wanted: u64) -> Result<Self, HttpError> {
        let mirrors = opener.mirrors.iter().filter_map(|folder| mirrored(url, folder)).collect();
        Self::open_first(opener, url.to_owned(), mirrors, fetched, wanted)
    }

    fn open_first(
        opener: &Opener,
        url: String,
        mirrors: Vec<String>,
        fetched: Fetched,
        wanted: u64,
    ) -> Result<Self, HttpError> {
        let mut read = HttpRead {
            clients: Clients::default(),
            opener: opener.clone(),
            url,
            mirrors: mirrors.into(),
            fetched,
            pace: Pace::new(opener.bandwidth),
            lately: (Instant::now(), 0),
            offset: 0,
            wanted,
            answered: 0,
            tag: None,
            total: None,
            ranges: true,
            problem: None,
            body: None,
            rest: Bytes::new(),
        };
        while let Err(error) = read.connect() {
            read.next_mirror(error)?;
        }
        Ok(read)
    }

    /// Goes over to the next mirror, for this reason; where there is none, the reason is the error.
    fn next_mirror(&mut self, error: HttpError) -> Result<(), HttpError> {
        if matches!(error, HttpError::Cancelled { .. } | HttpError::Limit { .. }) {
            return Err(error);
        }
        let Some(mirror) = self.mirrors.pop_front() else { return Err(error) };
        let (code, why) = (error.code(), error.to_string());
        tracing::warn!(
            from = self.url,
            to = mirror,
            offset = self.offset,
            code,
            error = why,
            "the next mirror is asked"
        );
        self.url = mirror;
        if self.offset == 0 {
            // Nothing was read yet that would have to fit.
            self.total = None;
        }
        // Its tag is its own business; its length must be the same, and every byte is checked anyway.
        (self.tag, self.body, self.ranges, self.answered) = (None, None, true, self.offset);
        Ok(())
    }

    fn connect(&mut self) -> Result<(), HttpError> {
        let runtime = self.opener.runtime.clone();
        let response = runtime.block_on(self.request())?;
        if let Some(encoding) = response.headers().get(header::CONTENT_ENCODING)
            && encoding != "identity"
        {
            return Err(self.lies(format!("it is encoded as {encoding:?}")));
        }
        let dropped = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                self.answered = self.check_range(response.headers())?;
                self.ranges = true;
                0
            }
            // The server does not do ranges: what comes before the place we need is read and dropped.
            StatusCode::OK => {
                let length = length_of(response.headers());
                self.check_total(length)?;
                self.check_tag(response.headers())?;
                self.ranges = false;
                self.answered = u64::MAX;
                self.offset
            }
            status => return Err(HttpError::Status { url: self.url.clone(), status: status.as_u16() }),
        };
        self.check_tag(response.headers())?;
        self.body = Some(response.into_body());
        self.rest = Bytes::new();
        self.lately = (Instant::now(), 0);
        self.drop_bytes(dropped)
    }

    async fn request(&mut self) -> Result<Response<Incoming>, HttpError> {
        let mut url = self.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.request_once(&url).await?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let place = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            url = redirected(&url, place).map_err(|what| HttpError::Redirect { url: self.url.clone(), what })?;
        }
        Err(HttpError::Redirect { url: self.url.clone(), what: "more than five times" })
    }

    async fn request_once(&mut self, url: &str) -> Result<Response<Incoming>, HttpError> {
        let bad = || HttpError::Url { url: url.to_owned() };
        let uri: Uri = url.parse().map_err(|_| bad())?;
        if uri.host().is_none() || !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(bad());
        }
        let mut request = Request::builder()
            .method(Method::GET)
            .uri(uri)
            .header(header::USER_AGENT, concat!("bascule/", env!("CARGO_PKG_VERSION")))
            .header(header::ACCEPT_ENCODING, "identity")
            .header(header::RANGE, format!("bytes={}-{}", self.offset, self.last_wanted()));
        if let Some(tag) = self.tag.as_ref().filter(|_| self.offset > 0) {
            request = request.header(header::IF_RANGE, tag);
        }
        let request = request.body(Empty::new()).map_err(|_| bad())?;
        match patiently(&self.opener, self.clients.request(request)?).await {
            Waited::Cancelled => Err(self.cancelled()),
            Waited::Stalled => Err(self.stalled()),
            Waited::Done(Err(source)) => Err(HttpError::Unreachable { url: self.url.clone(), source: source.into() }),
            Waited::Done(Ok(response)) => Ok(response),
        }
    }

    /// The last byte to ask for: what is wanted, or a window's worth behind that.
    fn last_wanted(&self) -> u64 {
        let end = if self.wanted > self.offset { self.wanted } else { self.offset.saturating_add(WINDOW) };
        end.min(self.total.unwrap_or(u64::MAX)).saturating_sub(1).max(self.offset)
    }

    /// Where the answer ends, if it begins where it was asked to.
    fn check_range(&mut self, headers: &HeaderMap) -> Result<u64, HttpError> {
        let text = headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or("");
        let (first, last, total) =
            parse_range(text).ok_or_else(|| self.lies(format!("its Content-Range is {text:?}")))?;
        if first != self.offset {
            return Err(self.lies(format!("it sent bytes from {first} where {} was asked for", self.offset)));
        }
        if total.or(self.total).is_none() {
            return Err(self.lies("it does not say how long the file is".into()));
        }
        self.check_total(total)?;
        Ok(last.saturating_add(1))
    }

    fn check_total(&mut self, total: Option<u64>) -> Result<(), HttpError> {
        match (self.total, total) {
            (Some(before), Some(now)) if before != now => Err(HttpError::Changed { url: self.url.clone() }),
            (None, Some(now)) => {
                self.total = Some(now);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn check_tag(&mut self, headers: &HeaderMap) -> Result<(), HttpError> {
        // A weak tag says nothing about bytes, so it can neither guard a range nor prove a change.
        let tag = headers.get(header::ETAG).filter(|tag| !tag.as_bytes().starts_with(b"W/")).cloned();
        match (&self.tag, tag) {
            (Some(before), Some(now)) if *before != now => Err(HttpError::Changed { url: self.url.clone() }),
            (None, now) => {
                self.tag = now;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The next piece of the body; `None` at its end.
    fn next_piece(&mut self) -> Result<Option<Bytes>, HttpError> {
        if let Some(problem) = self.problem.take() {
            return Err(problem);
        }
        let runtime = self.opener.runtime.clone();
        loop {
            let Some(body) = self.body.as_mut() else { return Ok(None) };
            match runtime.block_on(patiently(&self.opener, body.frame())) {
                Waited::Cancelled => return Err(self.cancelled()),
                Waited::Stalled => return Err(self.stalled()),
                Waited::Done(None) => return Ok(None),
                Waited::Done(Some(Err(source))) => {
                    return Err(HttpError::Unreachable { url: self.url.clone(), source: source.into() });
                }
                Waited::Done(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data()
                        && !data.is_empty()
                    {
                        self.count(data.len() as u64)?;
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// Counts what came: no more than the policy allows, not faster than it allows, and not so slowly that it never ends.
    fn count(&mut self, bytes: u64) -> Result<(), HttpError> {
        let fetched = self.fetched.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if let Some(limit) = self.opener.most_fetched.filter(|limit| fetched > *limit) {
            return Err(HttpError::Limit { url: self.url.clone(), limit });
        }
        if let Some(wait) = self.pace.as_mut().map(|pace| pace.wait(bytes, Instant::now())) {
            self.pause(wait)?;
        }
        let (since, sum) = (self.lately.0, self.lately.1.saturating_add(bytes));
        if since.elapsed() < self.opener.stall_timeout {
            self.lately.1 = sum;
            return Ok(());
        }
        let least = self.opener.stall_timeout.as_secs().saturating_mul(LEAST_PER_SECOND);
        self.lately = (Instant::now(), 0);
        if sum < least { Err(self.stalled()) } else { Ok(()) }
    }

    /// Fills `rest`, resuming as often as it takes; leaves it empty at the end of the file.
    fn fill(&mut self) -> Result<(), HttpError> {
        let mut fruitless = 0;
        let mut wait = FIRST_WAIT;
        loop {
            let problem = match self.next_piece() {
                Ok(Some(piece)) => {
                    self.rest = piece;
                    return Ok(());
                }
                Ok(None) if self.total.is_none_or(|total| self.offset >= total) => return Ok(()),
                // All that was asked for has come: the next range is no resumption.
                Ok(None) if self.offset == self.answered => match self.connect() {
                    Ok(()) if self.rest.is_empty() => continue,
                    Ok(()) => return Ok(()),
                    Err(error) => error,
                },
                Ok(None) => self.lies(format!("the connection ended at byte {}", self.offset)),
                Err(error) => error,
            };
            self.body = None;
            let mut problem = Some(problem);
            while let Some(error) = problem.take() {
                fruitless += 1;
                if fruitless > MAX_FRUITLESS || error.disposition() != Disposition::Retry {
                    self.next_mirror(error)?;
                    (fruitless, wait) = (0, FIRST_WAIT);
                } else {
                    tracing::info!(offset = self.offset, error = error.to_string(), "the download is resumed");
                    self.pause(wait)?;
                    wait = wait.saturating_mul(2);
                }
                if let Err(again) = self.connect() {
                    problem = Some(again);
                }
            }
            // What came along with the bytes that were dropped is the next piece.
            if !self.rest.is_empty() {
                return Ok(());
            }
        }
    }

    fn drop_bytes(&mut self, mut count: u64) -> Result<(), HttpError> {
        while count > 0 {
            if self.rest.is_empty() {
                match self.next_piece()? {
                    Some(piece) => self.rest = piece,
                    None => return Err(self.lies("it is shorter than it was".into())),
                }
            }
            let step = self.rest.len().min(usize::try_from(count).unwrap_or(usize::MAX));
            let _ = self.rest.split_to(step);
            count = count.saturating_sub(step as u64);
        }
        Ok(())
    }

    fn lies(&self, what: String) -> HttpError {
        HttpError::Lies { url: self.url.clone(), what }
    }

    fn cancelled(&self) -> HttpError {
        HttpError::Cancelled { url: self.url.clone() }
    }

    fn pause(&self, wait: Duration) -> Result<(), HttpError> {
        let until = Instant::now() + wait;
        while Instant::now() < until {
            if self.opener.cancel.load(Ordering::Relaxed) {
                return Err(self.cancelled());
            }
            std::thread::sleep(SLICE.min(until.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }

    fn stalled(&self) -> HttpError {
        let seconds = self.opener.stall_timeout.as_secs();
        HttpError::Stalled { url: self.url.clone(), seconds, offset: self.offset }
    }
}

impl io::Read for HttpRead {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        if self.rest.is_empty() {
            self.fill().map_err(io::Error::other)?;
        }
        let count = self.rest.len().min(buf.len());
        let piece = self.rest.split_to(count);
        if let Some(place) = buf.get_mut(..count) {
            place.copy_from_slice(&piece);
        }
        self.offset = self.offset.saturating_add(count as u64);
        Ok(count)
    }
}

impl BundleRead for HttpRead {
    fn expect(&mut self, end: u64) {
        self.wanted = end;
    }

    fn beside(&self, name: &str) -> io::Result<Box<dyn BundleRead>> {
        let url = beside(&self.url, name).ok_or(io::ErrorKind::InvalidInput)?;
        let opened = HttpRead::open(&self.opener, &url, self.fetched.clone());
        Ok(Box::new(opened.map_err(io::Error::other)?))
    }

    fn total_len(&self) -> io::Result<Option<u64>> {
        Ok(self.total)
    }

    fn skip_to(&mut self, offset: u64) -> io::Result<()> {
        let gap = offset.checked_sub(self.offset).ok_or_else(|| io::Error::other("a source is read forward only"))?;
        let held = (self.rest.len() as u64).min(gap);
        let _ = self.rest.split_to(usize::try_from(held).unwrap_or(0));
        self.offset = self.offset.saturating_add(held);
        let gap = gap.saturating_sub(held);
        if gap == 0 {
            return Ok(());
        }
        if self.ranges && self.offset == self.answered {
            // Nothing is on its way: the next read asks for bytes from there on.
            self.body = None;
            (self.offset, self.answered) = (offset, offset);
            return Ok(());
        }
        // A server without ranges would send everything again from the start.
        if gap > DROP_LIMIT && self.ranges {
            self.body = None;
            self.offset = offset;
            // An error here is not the end: the next read resumes from the same place.
            if let Err(error) = self.connect() {
                self.body = None;
                self.problem = Some(error);
            }
            return Ok(());
        }
        let copied = io::copy(&mut io::Read::take(&mut *self, gap), &mut io::sink())?;
        if copied < gap { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

enum Waited<T> {
    Done(T),
    Stalled,
    Cancelled,
}

/// Waits for as long as a stall may last, and no longer than a quarter of a second once it is cancelled.
async fn patiently<F: Future>(opener: &Opener, waited_for: F) -> Waited<F::Output> {
    let mut waited_for = std::pin::pin!(waited_for);
    let until = tokio::time::Instant::now() + opener.stall_timeout;
    loop {
        if opener.cancel.load(Ordering::Relaxed) {
            return Waited::Cancelled;
        }
        let now = tokio::time::Instant::now();
        if now >= until {
            return Waited::Stalled;
        }
        if let Ok(done) = tokio::time::timeout(SLICE.min(until - now), &mut waited_for).await {
            return Waited::Done(done);
        }
    }
}
