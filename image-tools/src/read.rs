//! Reads a bundle forwards, from anything that can be read and skipped: no part of it is kept but the chunk tables.

use bascule_core::{Digest, Offer};
use jiff::Timestamp;

use crate::decode::Decoder;
use crate::error::BundleError;
use crate::format::{HEADER_BYTES, Header, Metadata};
use crate::input::{BundleRead, Input};
use crate::manifest::{Manifest, Payload, sha256};
use crate::table::{Chunk, ChunkTable, Cursor};
use crate::trust::{Accepted, TrustStore};

/// A bundle whose manifest is trusted, read payload by payload and chunk by chunk.
///
/// The order of calls is [`open`](Self::open), [`read_chunk_tables`](Self::read_chunk_tables), then for each payload
/// that is wanted, in ascending order, [`begin_payload`](Self::begin_payload) and one call per chunk, and at the end
/// [`finish`](Self::finish).
pub struct BundleReader {
    input: Input,
    manifest: Manifest,
    offer: Offer,
    accepted: Accepted,
    layout: Layout,
    tables: Vec<ChunkTable>,
    place: Option<Place>,
    decoder: Decoder,
    raw: Vec<u8>,
}

/// Where the parts of the file begin.
#[derive(Debug)]
struct Layout {
    tables: u64,
    /// Of each payload.
    blobs: Vec<u64>,
    end: u64,
}

/// Which chunk comes next.
#[derive(Debug, Clone, Copy)]
struct Place {
    payload: usize,
    cursor: Cursor,
}

impl std::fmt::Debug for BundleReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BundleReader")
            .field("manifest", &self.manifest)
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

impl BundleReader {
    /// Reads the header, the metadata and the manifest, and checks their trust at the time `now` (the later of the
    /// device's clock and its build time). Nothing of the manifest is parsed before its signature held.
    ///
    /// # Errors
    /// Every [`BundleError`] but those of chunks.
    pub fn open(input: Box<dyn BundleRead>, trust: &TrustStore, now: Timestamp) -> Result<Self, BundleError> {
        let mut input = Input::new(input);
        let opening = Opening::read(&mut input)?;
        let accepted = trust.verify(&opening.metadata, &opening.manifest, now)?;
        let manifest = Manifest::parse(&opening.manifest)?;
        if manifest.target_name() != accepted.target_name() {
            return Err(BundleError::ManifestInvalid("it is signed under the name of another".into()));
        }
        let layout = layout(&manifest, input.at)?;
        input.check_total(layout.end)?;
        Ok(BundleReader {
            offer: manifest.offer(accepted.manifest_digest()),
            input,
            manifest,
            accepted,
            layout,
            tables: Vec::new(),
            place: None,
            decoder: Decoder::new(),
            raw: Vec::new(),
        })
    }

    /// The signed manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The manifest in the words of `bascule-core`.
    #[must_use]
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// The bundle's identity: SHA-256 of its manifest.
    #[must_use]
    pub fn manifest_digest(&self) -> Digest {
        self.accepted.manifest_digest()
    }

    /// What to persist once the offer is taken.
    pub fn accepted(&self) -> &Accepted {
        &self.accepted
    }

    /// The payloads in the order of the file.
    #[must_use]
    pub fn payloads(&self) -> &[Payload] {
        &self.manifest.payloads
    }

    /// How long the whole bundle is in bytes, by its signed manifest.
    #[must_use]
    pub fn total_len(&self) -> u64 {
        self.layout.end
    }

    /// Reads and checks the chunk tables of all payloads. Once; later calls do nothing.
    ///
    /// # Errors
    /// When a table is cut off, is not the signed one or breaks a rule.
    pub fn read_chunk_tables(&mut self) -> Result<(), BundleError> {
        if !self.tables.is_empty() {
            return Ok(());
        }
        self.input.wanted = self.layout.tables;
        let mut tables = Vec::new();
        for payload in &self.manifest.payloads {
            let bytes = self.input.section(payload.chunk_table.length)?;
            if sha256(&bytes) != payload.chunk_table.sha256 {
                let what = "its SHA-256 is not the signed one";
                return Err(BundleError::TableInvalid { role: payload.role.clone(), what });
            }
            tables.push(ChunkTable::parse(bytes, &payload.role, payload.size, payload.blobs.length)?);
        }
        self.tables = tables;
        Ok(())
    }

    /// The chunk table of payload `index`, after [`read_chunk_tables`](Self::read_chunk_tables).
    #[must_use]
    pub fn chunk_table(&self, index: usize) -> Option<&ChunkTable> {
        self.tables.get(index)
    }

    /// Goes to the first chunk of payload `index`, reading the chunk tables if that was not done. Forward only.
    ///
    /// # Errors
    /// Those of [`read_chunk_tables`](Self::read_chunk_tables), or [`BundleError::Misuse`].
    pub fn begin_payload(&mut self, index: usize) -> Result<(), BundleError> {
        self.read_chunk_tables()?;
        if index >= self.tables.len() || self.place.is_some_and(|place| place.payload >= index) {
            return Err(BundleError::Misuse("payloads are read once, in order"));
        }
        self.place = Some(Place { payload: index, cursor: Cursor::default() });
        Ok(())
    }

    /// The next chunk without moving; `None` after the payload's last.
    #[must_use]
    pub fn peek_chunk(&self) -> Option<Chunk> {
        let mut place = self.place?;
        self.tables.get(place.payload)?.next(&mut place.cursor)
    }

    /// Passes over the next chunk; its stored bytes are not fetched from an input that can skip.
    pub fn skip_chunk(&mut self) -> Option<Chunk> {
        let place = self.place.as_mut()?;
        self.tables.get(place.payload)?.next(&mut place.cursor)
    }

    /// Reads the next chunk's stored bytes into `raw`, which is reused, and returns what [`Decoder::decode`] needs with
    /// them. `None` after the payload's last.
    ///
    /// # Errors
    /// [`BundleError::Truncated`] or [`BundleError::Read`].
    pub fn fetch_next(&mut self, raw: &mut Vec<u8>) -> Result<Option<Chunk>, BundleError> {
        let (Some(chunk), Some(place)) = (self.skip_chunk(), self.place) else {
            return Ok(None);
        };
        let blobs = self.layout.blobs.get(place.payload).copied().unwrap_or_default();
        raw.resize(chunk.stored_len as usize, 0);
        if chunk.stored_len > 0 {
            self.input.wanted = blobs.saturating_add(chunk.stored_offset);
            self.input.fill(raw)?;
        }
        Ok(Some(chunk))
    }

    /// Reads, decodes and checks the next chunk into the head of `out`, which holds at least
    /// [`MAX_CHUNK_BYTES`](crate::limits::MAX_CHUNK_BYTES). `None` after the payload's last.
    ///
    /// # Errors
    /// Those of [`fetch_next`](Self::fetch_next) and [`Decoder::decode`].
    pub fn next_chunk(&mut self, out: &mut [u8]) -> Result<Option<Chunk>, BundleError> {
        let mut raw = std::mem::take(&mut self.raw);
        let fetched = self.fetch_next(&mut raw);
        let decoded = match &fetched {
            Ok(Some(chunk)) => self.decoder.decode(chunk, &raw, out).map(drop),
            _ => Ok(()),
        };
        self.raw = raw;
        decoded.and(fetched)
    }

    /// Checks that the input ends where the bundle does, if it stands there; an input that was not read to the end
    /// because chunks were skipped is not asked.
    ///
    /// # Errors
    /// [`BundleError::TrailingBytes`] or [`BundleError::Read`].
    pub fn finish(mut self) -> Result<(), BundleError> {
        if self.input.at == self.layout.end && self.input.read(&mut [0])? > 0 {
            return Err(BundleError::TrailingBytes { at: self.layout.end });
        }
        Ok(())
    }
}

/// The head of a bundle, read but not yet trusted.
#[derive(Debug)]
pub struct Opening {
    /// The metadata of The Update Framework.
    pub metadata: Metadata,
    /// The manifest's bytes.
    pub manifest: Vec<u8>,
}

impl Opening {
    /// Reads the head of a bundle without any check of trust: for showing it, never for using it.
    ///
    /// # Errors
    /// When it is not a bundle, cut off, too new or too large.
    pub fn inspect(input: Box<dyn BundleRead>) -> Result<Self, BundleError> {
        Opening::read(&mut Input::new(input))
    }

    fn read(input: &mut Input) -> Result<Self, BundleError> {
        let mut head = [0; HEADER_BYTES];
        let magic_len = crate::format::MAGIC.len();
        let (magic, rest) = head.split_at_mut(magic_len);
        input.fill(magic)?;
        if magic != crate::format::MAGIC {
            return Err(BundleError::NotABundle(magic.iter().map(|b| format!("{b:02x}")).collect()));
        }
        input.fill(rest)?;
        let header = Header::parse(&head)?;
        let metadata = Metadata::parse(&input.section(header.metadata)?)?;
        let manifest = input.section(header.manifest)?;
        Ok(Opening { metadata, manifest })
    }
}

fn layout(manifest: &Manifest, tables: u64) -> Result<Layout, BundleError> {
    let overflow = || BundleError::ManifestInvalid("the lengths overflow".into());
    let mut end = tables;
    for payload in &manifest.payloads {
        end = end.checked_add(payload.chunk_table.length).ok_or_else(overflow)?;
    }
    let mut blobs = Vec::new();
    for payload in &manifest.payloads {
        blobs.push(end);
        end = end.checked_add(payload.blobs.length).ok_or_else(overflow)?;
    }
    Ok(Layout { tables, blobs, end })
}

/// A reader may be handed to another thread, and a decoder may live on one.
const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<BundleReader>();
    is_send::<Decoder>();
};
