//! Where a bundle's bytes come from, and how they are read: forwards, in pieces that have really come.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::error::BundleError;

/// Where a bundle's bytes come from.
pub trait BundleRead: Read + Send {
    /// Moves forward to byte `offset` of the bundle. Never called with an offset that was passed already.
    ///
    /// # Errors
    /// When the place cannot be reached: [`ErrorKind::UnexpectedEof`] where the input ends before it. It may also
    /// succeed there, and then read as ended.
    fn skip_to(&mut self, offset: u64) -> io::Result<()>;

    /// How long the input is, where that is known before its end. A bundle of another length is refused at once.
    ///
    /// # Errors
    /// When the length should be known but cannot be found out.
    fn total_len(&self) -> io::Result<Option<u64>> {
        Ok(None)
    }

    /// Says that everything up to byte `end` will be read, and nothing behind it for now: an input that asks for its
    /// bytes asks for no more. A hint; reading on and skipping stay possible.
    fn expect(&mut self, end: u64) {
        let _ = end;
    }

    /// Opens the file `name` that lies beside the bundle.
    ///
    /// # Errors
    /// When there is none, or nothing lies beside this kind of input.
    fn beside(&self, name: &str) -> io::Result<Box<dyn BundleRead>> {
        Err(io::Error::new(ErrorKind::Unsupported, format!("nothing lies beside this input, so {name:?} cannot")))
    }
}

/// A bundle in a file whose place is known, so that what lies beside it is found.
#[derive(Debug)]
pub struct BundleFile {
    file: File,
    path: PathBuf,
}

impl BundleFile {
    /// Opens a file for reading.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Opening a pipe would wait for somebody to write into it.
        if !path.metadata()?.is_file() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
        }
        Ok(BundleFile { file: File::open(path)?, path: path.to_owned() })
    }

    /// Takes a file that was opened already, from `path`.
    #[must_use]
    pub fn new(file: File, path: &Path) -> Self {
        BundleFile { file, path: path.to_owned() }
    }
}

impl Read for BundleFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

impl BundleRead for BundleFile {
    fn skip_to(&mut self, offset: u64) -> io::Result<()> {
        self.file.skip_to(offset)
    }

    fn total_len(&self) -> io::Result<Option<u64>> {
        self.file.total_len()
    }

    fn beside(&self, name: &str) -> io::Result<Box<dyn BundleRead>> {
        Ok(Box::new(BundleFile::open(&self.path.with_file_name(name))?))
    }
}

impl BundleRead for Box<dyn BundleRead> {
    fn expect(&mut self, end: u64) {
        self.as_mut().expect(end);
    }

    fn skip_to(&mut self, offset: u64) -> io::Result<()> {
        self.as_mut().skip_to(offset)
    }

    fn total_len(&self) -> io::Result<Option<u64>> {
        self.as_ref().total_len()
    }

    fn beside(&self, name: &str) -> io::Result<Box<dyn BundleRead>> {
        self.as_ref().beside(name)
    }
}

impl BundleRead for File {
    fn skip_to(&mut self, offset: u64) -> io::Result<()> {
        self.seek(SeekFrom::Start(offset)).map(drop)
    }

    fn total_len(&self) -> io::Result<Option<u64>> {
        let about = self.metadata()?;
        Ok(about.is_file().then_some(about.len()))
    }
}

/// An input that can only be read on, such as standard input: skipping reads and drops.
#[derive(Debug)]
pub struct ForwardOnly<R> {
    input: R,
    at: u64,
}

impl<R: Read> ForwardOnly<R> {
    /// Wraps `input`, which stands at the bundle's first byte.
    pub fn new(input: R) -> Self {
        ForwardOnly { input, at: 0 }
    }
}

impl<R: Read> Read for ForwardOnly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.at = self.at.saturating_add(count as u64);
        Ok(count)
    }
}

impl<R: Read + Send> BundleRead for ForwardOnly<R> {
    fn skip_to(&mut self, offset: u64) -> io::Result<()> {
        let missing = offset.checked_sub(self.at).ok_or(io::Error::from(ErrorKind::InvalidInput))?;
        let skipped = io::copy(&mut self.by_ref().take(missing), &mut io::sink())?;
        if skipped == missing { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
    }
}

/// The input with the place it stands at and the place it is wanted at, so that skips cost nothing until a read.
pub(crate) struct Input {
    reader: Box<dyn BundleRead>,
    pub(crate) at: u64,
    pub(crate) wanted: u64,
}

/// How much a section may grow before its next bytes have really come.
const GROWTH_BYTES: u64 = 64 << 10;

impl Input {
    pub(crate) fn new(reader: Box<dyn BundleRead>) -> Self {
        Input { reader, at: 0, wanted: 0 }
    }

    pub(crate) fn beside(&self, name: &str) -> io::Result<Box<dyn BundleRead>> {
        self.reader.beside(name)
    }

    pub(crate) fn expect(&mut self, end: u64) {
        self.reader.expect(end);
    }

    /// Replaces `into` by `length` bytes from byte `offset` on.
    pub(crate) fn fetch(&mut self, into: &mut Vec<u8>, offset: u64, length: u32) -> Result<(), BundleError> {
        into.resize(length as usize, 0);
        if length > 0 {
            self.wanted = offset;
            self.fill(into)?;
        }
        Ok(())
    }

    pub(crate) fn section(&mut self, length: u64) -> Result<Vec<u8>, BundleError> {
        let mut bytes = Vec::new();
        let mut left = length;
        while left > 0 {
            let part = left.min(GROWTH_BYTES);
            let start = bytes.len();
            bytes.resize(start.saturating_add(part as usize), 0);
            self.fill(bytes.get_mut(start..).unwrap_or_default())?;
            left = left.saturating_sub(part);
        }
        Ok(bytes)
    }

    pub(crate) fn fill(&mut self, buffer: &mut [u8]) -> Result<(), BundleError> {
        if self.wanted != self.at {
            self.skip()?;
        }
        let mut rest = buffer;
        while !rest.is_empty() {
            let count = self.read(rest)?;
            if count == 0 {
                return Err(BundleError::Truncated { at: self.at, missing: rest.len() as u64 });
            }
            rest = rest.get_mut(count..).unwrap_or_default();
        }
        self.wanted = self.at;
        Ok(())
    }

    fn skip(&mut self) -> Result<(), BundleError> {
        let missing = self.wanted.saturating_sub(self.at);
        match self.reader.skip_to(self.wanted) {
            Ok(()) => self.at = self.wanted,
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                return Err(BundleError::Truncated { at: self.at, missing });
            }
            Err(source) => return Err(self.failed(source)),
        }
        Ok(())
    }

    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, BundleError> {
        loop {
            match self.reader.read(buffer) {
                Ok(count) => {
                    self.at = self.at.saturating_add(count as u64);
                    return Ok(count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(source) => return Err(self.failed(source)),
            }
        }
    }

    fn failed(&self, source: io::Error) -> BundleError {
        BundleError::Read { at: self.at, source }
    }

    pub(crate) fn check_total(&self, end: u64) -> Result<(), BundleError> {
        match self.reader.total_len().map_err(|source| self.failed(source))? {
            Some(length) if length < end => {
                Err(BundleError::Truncated { at: length, missing: end.saturating_sub(length) })
            }
            Some(length) if length > end => Err(BundleError::TrailingBytes { at: end }),
            _ => Ok(()),
        }
    }
}
