//! One connection: reads requests and answers them, rightly or as a fault says.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::TcpStream;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Fault, Request, Shared, lock};

/// Size of the pieces a body is sent in.
const PIECE: u64 = 64 * 1024;

/// How often a stalled connection looks whether the server stops.
const STALL_STEP: Duration = Duration::from_millis(50);

/// A part of a file to send.
struct Body {
    file: File,
    start: u64,
    length: u64,
    flip: Option<u64>,
}

pub(super) fn serve_connection(stream: &TcpStream, shared: &Shared) -> Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some((request, keep)) = read_request(&mut reader)? {
        if shared.is_stopping() {
            return Ok(());
        }
        let fault = shared.take_fault(&request.path);
        lock(&shared.requests).push(request.clone());
        answer(stream, shared, &request, fault)?;
        if !keep {
            return Ok(());
        }
    }
    Ok(())
}

/// Reads the next request; `None` at the end of the connection. The flag says whether the peer keeps it open.
fn read_request(reader: &mut BufReader<&TcpStream>) -> Result<Option<(Request, bool)>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (Some(method), Some(path)) = (words.next(), words.next()) else { bail!("{line:?} is no request") };
    let mut request = Request { method: method.to_owned(), path: path.to_owned(), range: None, if_range: None };
    let mut keep = true;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim_end().split_once(':') else { break };
        let value = value.trim().to_owned();
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = Some(value),
            "if-range" => request.if_range = Some(value),
            "connection" => keep = !value.eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
    Ok(Some((request, keep)))
}

fn answer(mut stream: &TcpStream, shared: &Shared, request: &Request, fault: Option<Fault>) -> Result<()> {
    match fault {
        Some(Fault::HangUp) => bail!("told to hang up"),
        Some(Fault::Status(status)) => return send_empty(stream, status),
        _ => {}
    }
    let Some((file, size, tag)) = open(&shared.folder, &request.path) else { return send_empty(stream, 404) };
    let tag = if fault == Some(Fault::ChangeEntityTag) { "\"changed\"".to_owned() } else { tag };
    let same_entity = request.if_range.as_ref().is_none_or(|wanted| *wanted == tag);
    let honoured = same_entity && fault != Some(Fault::IgnoreRange);
    let range = match request.range.as_deref().filter(|_| honoured) {
        None => None,
        Some(text) => match parse_range(text, size) {
            Some(range) => Some(range),
            None => return send_empty(stream, 416),
        },
    };
    let (start, length) = range.unwrap_or((0, size));
    let stated = match fault {
        Some(Fault::LieAboutLength(difference)) => length.saturating_add_signed(difference),
        _ => length,
    };
    let kind = match fault {
        Some(Fault::ContentType(kind)) => kind,
        _ => "application/octet-stream",
    };
    let mut head = format!("HTTP/1.1 {}\r\nAccept-Ranges: bytes\r\nContent-Type: {kind}\r\n", status_line(range));
    if range.is_some() {
        head += &format!("Content-Range: bytes {start}-{}/{size}\r\n", start + length - 1);
    }
    head += &format!("ETag: {tag}\r\nContent-Length: {stated}\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    if request.method == "HEAD" {
        return Ok(());
    }
    send_body(stream, shared, file, (start, length), fault.as_ref())?;
    if stated == length { Ok(()) } else { bail!("the stated length cannot be kept") }
}

fn status_line(range: Option<(u64, u64)>) -> &'static str {
    if range.is_some() { "206 Partial Content" } else { "200 OK" }
}

fn send_empty(mut stream: &TcpStream, status: u16) -> Result<()> {
    Ok(write!(stream, "HTTP/1.1 {status} Status\r\nContent-Length: 0\r\n\r\n")?)
}

fn send_body(
    stream: &TcpStream,
    shared: &Shared,
    file: File,
    (start, length): (u64, u64),
    fault: Option<&Fault>,
) -> Result<()> {
    let (start, flip) = match fault {
        Some(Fault::ShiftRange(distance)) => (start + distance, None),
        Some(Fault::FlipByteAt(offset)) => (start, Some(*offset)),
        _ => (start, None),
    };
    let sent = match fault {
        Some(Fault::CutAfter(most) | Fault::StallAfter(most)) => length.min(*most),
        _ => length,
    };
    send_bytes(stream, shared, Body { file, start, length: sent, flip })?;
    match fault {
        Some(Fault::CutAfter(_)) => bail!("told to cut the connection"),
        Some(Fault::StallAfter(_)) => stall(stream, shared),
        _ => Ok(()),
    }
}

fn send_bytes(mut stream: &TcpStream, shared: &Shared, mut body: Body) -> Result<()> {
    body.file.seek(SeekFrom::Start(body.start))?;
    let started = Instant::now();
    let mut sent = 0;
    let mut buffer = vec![0u8; usize::try_from(PIECE)?];
    while sent < body.length {
        // A slow server sends small pieces: ten in a second.
        let slow = match shared.bandwidth.load(Ordering::Relaxed) {
            0 => PIECE,
            bandwidth => (bandwidth / 10).clamp(1, PIECE),
        };
        let wanted = usize::try_from(slow.min(body.length - sent))?;
        let count = body.file.read(buffer.get_mut(..wanted).context("a piece fits")?)?;
        if count == 0 {
            bail!("the file ended early");
        }
        let piece = buffer.get_mut(..count).context("a piece fits")?;
        let place = body.flip.and_then(|at| at.checked_sub(body.start + sent));
        if let Some(byte) = place.and_then(|at| piece.get_mut(usize::try_from(at).ok()?)) {
            *byte ^= 0xff;
        }
        stream.write_all(piece)?;
        sent += count as u64;
        shared.body_bytes.fetch_add(count as u64, Ordering::Relaxed);
        keep_pace(shared.bandwidth.load(Ordering::Relaxed), sent, started);
    }
    Ok(())
}

/// Waits until `sent` bytes are no more than the bandwidth allows.
fn keep_pace(bandwidth: u64, sent: u64, started: Instant) {
    if bandwidth > 0 {
        let due = Duration::from_secs_f64(sent as f64 / bandwidth as f64);
        std::thread::sleep(due.saturating_sub(started.elapsed()));
    }
}

/// Says nothing more until the peer goes away or the server stops.
fn stall(mut stream: &TcpStream, shared: &Shared) -> Result<()> {
    stream.set_read_timeout(Some(STALL_STEP))?;
    let mut byte = [0u8; 1];
    while !shared.is_stopping() {
        match stream.read(&mut byte) {
            Ok(0) => break,
            Err(error) if !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                break;
            }
            _ => {}
        }
    }
    bail!("the stalled connection ended")
}

/// Opens a file inside the folder; returns it with its size and entity tag.
fn open(folder: &Path, path: &str) -> Option<(File, u64, String)> {
    let inside = PathBuf::from(path.trim_start_matches('/'));
    if !inside.components().all(|part| matches!(part, Component::Normal(_))) {
        return None;
    }
    let file = File::open(folder.join(inside)).ok()?;
    let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    let changed = metadata.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some((file, metadata.len(), format!("\"{:x}-{:x}\"", metadata.len(), changed.as_nanos())))
}

/// Reads `bytes=FIRST-`, `bytes=FIRST-LAST` or `bytes=-COUNT` as start and length; `None` if nothing of it exists.
fn parse_range(text: &str, size: u64) -> Option<(u64, u64)> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let (first, last) = match (first, last) {
        ("", count) => (size.saturating_sub(count.parse().ok()?), size.checked_sub(1)?),
        (first, "") => (first.parse().ok()?, size.checked_sub(1)?),
        (first, last) => (first.parse().ok()?, last.parse::<u64>().ok()?.min(size.checked_sub(1)?)),
    };
    (first <= last && first < size).then(|| (first, last - first + 1))
}
