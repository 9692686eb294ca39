//! A buffer that the kernel can read and write without a copy: it begins on a 4096-byte boundary.

/// The alignment that every device we know accepts for O_DIRECT, in bytes.
pub(super) const ALIGN: usize = 4096;

/// A zeroed buffer of fixed length whose first byte is aligned to [`ALIGN`].
pub(super) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// Makes a buffer of `len` bytes.
    pub(super) fn new(len: usize) -> Self {
        let bytes = vec![0u8; len.saturating_add(ALIGN)];
        // A vector that is never grown stays where it is, so the distance to the boundary stays what it is now.
        let start = bytes.as_ptr().align_offset(ALIGN);
        Buffer { bytes, start, len }
    }

    /// The first `len` bytes, or all there are.
    pub(super) fn head(&self, len: usize) -> &[u8] {
        let len = len.min(self.len);
        self.bytes.get(self.start..self.start.saturating_add(len)).unwrap_or_default()
    }

    /// The first `len` bytes to write into, or all there are.
    pub(super) fn head_mut(&mut self, len: usize) -> &mut [u8] {
        let len = len.min(self.len);
        self.bytes.get_mut(self.start..self.start.saturating_add(len)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_begins_on_the_boundary_and_has_its_whole_length() {
        for len in [1, ALIGN, ALIGN * 3 + 7] {
            let mut buffer = Buffer::new(len);
            assert_eq!(buffer.head(len).as_ptr() as usize % ALIGN, 0);
            assert_eq!(buffer.head_mut(usize::MAX).len(), len);
        }
    }
}
