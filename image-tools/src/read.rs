//! Reads a bundle forwards, from anything that can be read and skipped: no part of it is kept but the chunk tables.

use bascule_core::{Digest, Offer};
use jiff::Timestamp;

use crate::decode::Decoder;
use crate::delta::DeltaTable;
use crate::delta::table::{DeltaChunk, DeltaCursor};
use crate::error::BundleError;
use crate::format::{HEADER_BYTES, Header, Metadata};
use crate::input::{BundleRead, Input};
use crate::layout::{Layout, Tables};
use crate::manifest::{BlobsPlace, DeltaRef, Manifest, Payload};
use crate::table::{Chunk, ChunkTable, Cursor};
use crate::trust::{Accepted, TrustStore};

/// A bundle whose manifest is trusted, read payload by payload and chunk by chunk.
///
/// The order of calls is [`open`](Self::open), [`read_tables`](Self::read_tables), then for each payload that is
/// wanted, in ascending order, [`begin_delta`](Self::begin_delta) and one call per chunk of the delta, or
/// [`begin_payload`](Self::begin_payload) and one call per chunk of the full data, or the first and then the second,
/// and at the end [`finish`](Self::finish).
pub struct BundleReader {
    input: Input,
    /// The full data of the payload at hand, where they are beside the bundle.
    beside: Option<Input>,
    manifest: Manifest,
    offer: Offer,
    accepted: Accepted,
    layout: Layout,
    tables: Option<Vec<Tables>>,
    place: Option<Place>,
    decoder: Decoder,
    raw: Vec<u8>,
}

/// Which chunk comes next.
#[derive(Debug, Clone, Copy)]
enum Place {
    Delta { payload: usize, delta: usize, cursor: DeltaCursor },
    Full { payload: usize, cursor: Cursor },
}

impl Place {
    /// Places are gone to in this order: it is that of the file.
    fn order(&self) -> (usize, usize) {
        match self {
            Place::Delta { payload, delta, .. } => (*payload, *delta),
            Place::Full { payload, .. } => (*payload, usize::MAX),
        }
    }
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
        let layout = Layout::new(&manifest, input.at)?;
        input.check_total(layout.end)?;
        Ok(BundleReader {
            offer: manifest.offer(accepted.manifest_digest()),
            input,
            beside: None,
            manifest,
            accepted,
            layout,
            tables: None,
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

    /// How long everything before the first blob is, in bytes.
    #[must_use]
    pub fn head_len(&self) -> u64 {
        self.layout.first_blob()
    }

    /// How long the whole bundle is in bytes, by its signed manifest.
    #[must_use]
    pub fn total_len(&self) -> u64 {
        self.layout.end
    }

    /// Reads and checks the chunk tables of all payloads, and the tables of those deltas that `wanted` says yes to. Once;
    /// later calls do nothing. A delta whose table does not fit in memory with the others is passed over.
    ///
    /// # Errors
    /// When a table is cut off, is not the signed one or breaks a rule.
    pub fn read_tables(&mut self, wanted: &dyn Fn(&Payload, &DeltaRef) -> bool) -> Result<(), BundleError> {
        if self.tables.is_none() {
            self.input.wanted = self.layout.tables;
            self.tables = Some(Tables::read(&self.manifest, &mut self.input, wanted)?);
        }
        Ok(())
    }

    /// The chunk table of payload `index`, after [`read_tables`](Self::read_tables).
    #[must_use]
    pub fn chunk_table(&self, index: usize) -> Option<&ChunkTable> {
        Some(&self.tables.as_ref()?.get(index)?.full)
    }

    /// The table of delta `delta` of payload `index`, if it was wanted when the tables were read.
    #[must_use]
    pub fn delta_table(&self, index: usize, delta: usize) -> Option<&DeltaTable> {
        self.tables.as_ref()?.get(index)?.deltas.get(delta)?.as_ref()
    }

    /// Goes to the first chunk of delta `delta` of payload `index`. Forward only.
    ///
    /// # Errors
    /// [`BundleError::Misuse`] when its table was not read, or what follows it in the file was begun already.
    pub fn begin_delta(&mut self, index: usize, delta: usize) -> Result<(), BundleError> {
        if self.delta_table(index, delta).is_none() {
            return Err(BundleError::Misuse("the table of this delta was not read"));
        }
        let length = self.manifest.payloads.get(index).and_then(|payload| payload.deltas.get(delta));
        let length = length.map_or(0, |delta| delta.blobs);
        self.input.expect(self.layout.delta(index, delta).saturating_add(length));
        self.go(Place::Delta { payload: index, delta, cursor: DeltaCursor::default() })
    }

    /// Goes to the first chunk of the full data of payload `index`, reading the chunk tables if that was not done.
    /// Forward only.
    ///
    /// # Errors
    /// Those of [`read_tables`](Self::read_tables), [`BundleError::NoFullData`], [`BundleError::FullData`], or
    /// [`BundleError::Misuse`].
    pub fn begin_payload(&mut self, index: usize) -> Result<(), BundleError> {
        self.read_tables(&|_, _| false)?;
        let payload = self.manifest.payloads.get(index).ok_or(BundleError::Misuse("there is no such payload"))?;
        self.beside = match payload.blobs.place {
            BlobsPlace::Inside => None,
            BlobsPlace::Absent => return Err(BundleError::NoFullData { role: payload.role.clone() }),
            BlobsPlace::Beside => {
                let name = self.manifest.full_data_name(&payload.role);
                let opened = self.input.beside(&name);
                let input = Input::new(opened.map_err(|source| BundleError::FullData { name, source })?);
                input.check_total(payload.blobs.length)?;
                Some(input)
            }
        };
        let length = payload.blobs.length;
        self.go(Place::Full { payload: index, cursor: Cursor::default() })?;
        self.expect_full(length);
        Ok(())
    }

    /// Says that of the full data at hand everything up to `stored_end` will be read, counted from the first blob, and
    /// nothing behind it for now. Without this it is all of them.
    pub fn expect_full(&mut self, stored_end: u64) {
        let Some(Place::Full { payload, .. }) = self.place else { return };
        match &mut self.beside {
            Some(beside) => beside.expect(stored_end),
            None => self.input.expect(self.layout.blobs(payload).saturating_add(stored_end)),
        }
    }

    fn go(&mut self, place: Place) -> Result<(), BundleError> {
        if self.place.is_some_and(|before| before.order() >= place.order()) {
            return Err(BundleError::Misuse("the parts of a bundle are read once, in order"));
        }
        self.place = Some(place);
        Ok(())
    }

    /// The next chunk of the full data without moving; `None` after the payload's last.
    #[must_use]
    pub fn peek_chunk(&self) -> Option<Chunk> {
        let Place::Full { payload, mut cursor } = self.place? else { return None };
        self.chunk_table(payload)?.next(&mut cursor)
    }

    /// Passes over the next chunk of the full data; its stored bytes are not fetched from an input that can skip.
    pub fn skip_chunk(&mut self) -> Option<Chunk> {
        let Place::Full { payload, mut cursor } = self.place? else { return None };
        let chunk = self.chunk_table(payload)?.next(&mut cursor)?;
        self.place = Some(Place::Full { payload, cursor });
        Some(chunk)
    }

    /// Reads the stored bytes of the full data's next chunk into `raw`, which is reused, and returns what
    /// [`Decoder::decode`] needs with them. `None` after the payload's last.
    ///
    /// # Errors
    /// [`BundleError::Truncated`] or [`BundleError::Read`].
    pub fn fetch_next(&mut self, raw: &mut Vec<u8>) -> Result<Option<Chunk>, BundleError> {
        let Some(chunk) = self.skip_chunk() else { return Ok(None) };
        let Some(Place::Full { payload, .. }) = self.place else { return Ok(None) };
        let (input, blobs) = match &mut self.beside {
            Some(beside) => (beside, 0),
            None => (&mut self.input, self.layout.blobs(payload)),
        };
        input.fetch(raw, blobs.saturating_add(chunk.stored_offset), chunk.stored_len)?;
        Ok(Some(chunk))
    }

    /// Passes over the delta's next chunk; its stored bytes are not fetched from an input that can skip.
    pub fn skip_delta_chunk(&mut self) -> Option<DeltaChunk> {
        let Place::Delta { payload, delta, mut cursor } = self.place? else { return None };
        let tables = self.tables.as_ref()?.get(payload)?;
        let chunk = tables.deltas.get(delta)?.as_ref()?.next(&tables.full, &mut cursor)?;
        self.place = Some(Place::Delta { payload, delta, cursor });
        Some(chunk)
    }

    /// Reads the stored bytes of `chunk`, the last one that [`skip_delta_chunk`](Self::skip_delta_chunk) returned.
    ///
    /// # Errors
    /// [`BundleError::Truncated`], [`BundleError::Read`] or [`BundleError::Misuse`].
    pub fn fetch_delta(&mut self, chunk: &DeltaChunk, raw: &mut Vec<u8>) -> Result<(), BundleError> {
        let Some(Place::Delta { payload, delta, .. }) = self.place else {
            return Err(BundleError::Misuse("no delta was begun"));
        };
        let blobs = self.layout.delta(payload, delta);
        self.input.fetch(raw, blobs.saturating_add(chunk.stored_offset), chunk.stored_len)
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

/// A reader may be handed to another thread, and a decoder may live on one.
const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<BundleReader>();
    is_send::<Decoder>();
};
