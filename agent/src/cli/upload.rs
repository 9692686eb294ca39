//! Standard input as a request's body: no more than a few pieces of it are in memory.

use std::io::{self, Read};

use http_body_util::BodyExt;
use http_body_util::channel::{Channel, Sender};
use hyper::body::Bytes;
use tokio::sync::mpsc;

use super::client::Payload;

/// Bytes that are read at once.
const PIECE: usize = 64 * 1024;
/// Pieces that wait for the daemon.
const PIECES: usize = 4;

/// Begins to read standard input.
pub(super) fn standard_input() -> Payload {
    let (read, pieces) = mpsc::channel(PIECES);
    std::thread::spawn(move || read_all(&read));
    let (sender, body) = Channel::new(1);
    tokio::spawn(forward(pieces, sender));
    body.boxed()
}

fn read_all(pieces: &mpsc::Sender<io::Result<Bytes>>) {
    let mut input = io::stdin().lock();
    loop {
        let mut piece = vec![0; PIECE];
        let read = input.read(&mut piece).map(|count| {
            piece.truncate(count);
            Bytes::from(piece)
        });
        match &read {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Ok(piece) if piece.is_empty() => return,
            _ => {}
        }
        let failed = read.is_err();
        if pieces.blocking_send(read).is_err() || failed {
            return;
        }
    }
}

async fn forward(mut pieces: mpsc::Receiver<io::Result<Bytes>>, mut sender: Sender<Bytes, io::Error>) {
    while let Some(piece) = pieces.recv().await {
        match piece {
            Ok(piece) => {
                if sender.send_data(piece).await.is_err() {
                    return;
                }
            }
            // The daemon must not take what broke off for the whole.
            Err(error) => return sender.abort(error),
        }
    }
}
