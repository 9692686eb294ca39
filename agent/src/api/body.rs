//! A request's body as a source: a bounded pipe from the connection to the thread that reads the bundle.

use std::io::{self, Read};
use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body_util::BodyExt;
use tokio::sync::mpsc;

/// Pieces that wait between the connection and the reader; each is as large as the connection's buffer at most.
const PIECES: usize = 4;
/// How long the caller may send nothing while the reader waits.
const STALL: Duration = Duration::from_secs(60);
/// How long a caller may go on sending what nobody reads.
const DRAIN: Duration = Duration::from_secs(10);

/// The reading end.
pub(super) struct Pipe {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
    /// Set after the end or an error: a reader that asks again must not see a clean end of a broken stream.
    end: Option<End>,
}

#[derive(Clone, Copy)]
enum End {
    Clean,
    Broken,
}

/// Makes the pipe and begins to fill it from `body`; the filling ends when either end does.
pub(super) fn pipe(body: Body) -> Pipe {
    let (sender, pieces) = mpsc::channel(PIECES);
    tokio::spawn(fill(body, sender));
    Pipe { pieces, rest: Bytes::new(), end: None }
}

async fn fill(mut body: Body, sender: mpsc::Sender<io::Result<Bytes>>) {
    loop {
        let piece = match tokio::time::timeout(STALL, body.frame()).await {
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) if data.is_empty() => continue,
                Ok(data) => Ok(data),
                Err(_trailers) => continue,
            },
            Ok(Some(Err(error))) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, error)),
            Ok(None) => Ok(Bytes::new()),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the caller sent nothing for 60 s")),
        };
        // An empty piece is the end that the caller declared; a channel that just closes is none.
        let last = piece.as_ref().map_or(true, Bytes::is_empty);
        if sender.send(piece).await.is_err() && !last {
            return drain(body).await;
        }
        if last {
            return;
        }
    }
}

/// Nobody reads on, but a connection that is closed with unread bytes takes the answer with it: read them to nowhere
/// for as long as the caller may need to see that answer.
async fn drain(mut body: Body) {
    let ended = async { while let Some(Ok(_)) = body.frame().await {} };
    let _ = tokio::time::timeout(DRAIN, ended).await;
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.end {
                Some(End::Clean) => return Ok(0),
                Some(End::Broken) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                None => {}
            }
            match self.pieces.blocking_recv() {
                Some(Ok(piece)) if piece.is_empty() => self.end = Some(End::Clean),
                Some(Ok(piece)) => self.rest = piece,
                Some(Err(error)) => {
                    self.end = Some(End::Broken);
                    return Err(error);
                }
                None => self.end = Some(End::Broken),
            }
        }
        let count = self.rest.len().min(buffer.len());
        let piece = self.rest.split_to(count);
        if let Some(place) = buffer.get_mut(..count) {
            place.copy_from_slice(&piece);
        }
        Ok(count)
    }
}
