//! A small web server for a folder of files that can be told to misbehave.

mod exchange;

use std::collections::VecDeque;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

/// The host's address as QEMU's user network shows it to the guest.
const HOST_SEEN_BY_GUEST: &str = "10.0.2.2";

/// One way to misbehave in one answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Sends this many bytes of the body, then nothing more, and keeps the connection open.
    StallAfter(u64),
    /// Closes the connection after this many bytes of the body.
    CutAfter(u64),
    /// States a length that differs from the body's by this many bytes.
    LieAboutLength(i64),
    /// Answers a request for a range with the whole file and status 200.
    IgnoreRange,
    /// Answers a request for a range with bytes from this much further on, and says they are the right ones.
    ShiftRange(u64),
    /// Answers as if the file had changed: another entity tag.
    ChangeEntityTag,
    /// Answers with this status and no file.
    Status(u16),
    /// Answers with this content type instead of `application/octet-stream`.
    ContentType(&'static str),
    /// Closes the connection without an answer.
    HangUp,
    /// Changes one byte of the body at this offset of the file.
    FlipByteAt(u64),
}

/// One request as the server saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET` or `HEAD`.
    pub method: String,
    /// The path, with its leading slash.
    pub path: String,
    /// The value of the `Range` header.
    pub range: Option<String>,
    /// The value of the `If-Range` header.
    pub if_range: Option<String>,
}

/// A running server; it stops when it is dropped.
#[derive(Debug)]
pub struct HttpServer {
    port: u16,
    shared: Arc<Shared>,
}

/// What the server's threads share.
#[derive(Debug, Default)]
struct Shared {
    folder: PathBuf,
    faults: Mutex<VecDeque<(String, Fault)>>,
    requests: Mutex<Vec<Request>>,
    open: Mutex<Vec<TcpStream>>,
    body_bytes: AtomicU64,
    /// Bytes in a second for each connection; 0 is no limit.
    bandwidth: AtomicU64,
    stopping: AtomicBool,
}

impl HttpServer {
    /// Serves the files of a folder on a free port of the loopback interface.
    ///
    /// # Errors
    /// When no port can be opened.
    pub fn serve(folder: &Path) -> Result<HttpServer> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot open a port")?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared { folder: folder.to_owned(), ..Shared::default() });
        let for_threads = Arc::clone(&shared);
        std::thread::spawn(move || accept(&listener, &for_threads));
        Ok(HttpServer { port, shared })
    }

    /// The address of a file for a program on this machine.
    #[must_use]
    pub fn url(&self, file: &str) -> String {
        format!("http://127.0.0.1:{}/{file}", self.port)
    }

    /// The address of a file for a guest of QEMU.
    #[must_use]
    pub fn url_for_guest(&self, file: &str) -> String {
        format!("http://{HOST_SEEN_BY_GUEST}:{}/{file}", self.port)
    }

    /// Misbehaves in the next request for `file` that no earlier fault is waiting for; call it again for one more.
    pub fn inject(&self, file: &str, fault: Fault) {
        lock(&self.shared.faults).push_back((format!("/{file}"), fault));
    }

    /// Forgets the faults that no request has met.
    pub fn heal(&self) {
        lock(&self.shared.faults).clear();
    }

    /// Sends at most this many bytes in a second on each connection; `None` is no limit. Holds from the next piece on.
    pub fn limit_bandwidth(&self, bytes_per_second: Option<u64>) {
        self.shared.bandwidth.store(bytes_per_second.unwrap_or(0), Ordering::Relaxed);
    }

    /// Bytes of bodies sent so far.
    #[must_use]
    pub fn body_bytes(&self) -> u64 {
        self.shared.body_bytes.load(Ordering::Relaxed)
    }

    /// The requests so far, in their order.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.requests).clone()
    }

    /// Closes every open connection, as a server that is restarted does.
    pub fn drop_connections(&self) {
        for stream in lock(&self.shared.open).drain(..) {
            stream.shutdown(std::net::Shutdown::Both).ok();
        }
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.drop_connections();
        // Wakes the thread that accepts.
        TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok();
    }
}

impl Shared {
    fn take_fault(&self, path: &str) -> Option<Fault> {
        let mut faults = lock(&self.faults);
        let place = faults.iter().position(|(wanted, _)| wanted == path)?;
        faults.remove(place).map(|(_, fault)| fault)
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.is_stopping() {
            return;
        }
        let Ok(stream) = stream else { continue };
        stream.set_read_timeout(Some(Duration::from_secs(120))).ok();
        if let Ok(copy) = stream.try_clone() {
            lock(&shared.open).push(copy);
        }
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            // A connection that fails is the peer's end of it; the test looks at what the peer did.
            exchange::serve_connection(&stream, &shared).ok();
            stream.shutdown(std::net::Shutdown::Both).ok();
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn served(bytes: &[u8]) -> (tempfile::TempDir, HttpServer) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("f"), bytes).unwrap();
        let server = HttpServer::serve(folder.path()).unwrap();
        (folder, server)
    }

    fn ask(server: &HttpServer, headers: &str) -> (String, Vec<u8>) {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        write!(stream, "GET /f HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok();
        let head_end = answer.windows(4).position(|w| w == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
        (String::from_utf8_lossy(&answer[..head_end]).into_owned(), answer[head_end..].to_vec())
    }

    #[test]
    fn a_range_is_answered_with_its_bytes_and_its_place() {
        let (_folder, server) = served(b"0123456789");
        let (head, body) = ask(&server, "Range: bytes=3-5\r\n");
        assert!(head.starts_with("HTTP/1.1 206 "), "{head}");
        assert!(head.contains("Content-Range: bytes 3-5/10\r\n"), "{head}");
        assert_eq!(body, b"345");
        assert_eq!(ask(&server, "Range: bytes=8-\r\n").1, b"89");
        assert!(ask(&server, "Range: bytes=10-\r\n").0.starts_with("HTTP/1.1 416 "));
        assert_eq!(server.body_bytes(), 5);
        assert_eq!(server.requests()[1].range.as_deref(), Some("bytes=8-"));
    }

    #[test]
    fn a_range_of_another_entity_is_answered_with_the_whole_file() {
        let (_folder, server) = served(b"0123456789");
        let (head, body) = ask(&server, "Range: bytes=3-\r\nIf-Range: \"stale\"\r\n");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert_eq!(body, b"0123456789");
    }

    #[test]
    fn each_fault_is_met_once_and_the_next_answer_is_right() {
        let (_folder, server) = served(b"0123456789");
        server.inject("f", Fault::CutAfter(4));
        server.inject("f", Fault::StallAfter(2));
        server.inject("f", Fault::FlipByteAt(1));
        server.inject("f", Fault::Status(503));
        server.inject("f", Fault::LieAboutLength(5));
        assert_eq!(ask(&server, "").1, b"0123");
        assert_eq!(ask(&server, "").1, b"01");
        assert_eq!(ask(&server, "").1, b"0\xce23456789");
        assert!(ask(&server, "").0.starts_with("HTTP/1.1 503 "));
        assert!(ask(&server, "").0.contains("Content-Length: 15\r\n"));
        assert_eq!(ask(&server, "").1, b"0123456789");
    }

    #[test]
    fn a_connection_is_kept_for_the_next_request() {
        let (_folder, server) = served(b"0123456789");
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port)).unwrap();
        for _ in 0..2 {
            write!(stream, "GET /f HTTP/1.1\r\nRange: bytes=0-0\r\n\r\n").unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\n0") {
                let mut byte = [0u8; 1];
                stream.read_exact(&mut byte).unwrap();
                answer.push(byte[0]);
            }
            assert!(answer.starts_with(b"HTTP/1.1 206"));
        }
    }

    #[test]
    fn a_path_that_leaves_the_folder_is_not_found() {
        let (_folder, server) = served(b"x");
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port)).unwrap();
        write!(stream, "GET /../../etc/passwd HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    }
}
