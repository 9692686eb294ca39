//! GRUB's environment block, bit exact.
//!
//! The form is GRUB's: a magic line, lines `name=value` in which `\` protects the next byte, then `#` up to the end of
//! the file. Two readers: [`Block::parse`] takes only the form that we write ourselves, [`variables`] reads whatever
//! GRUB 2.06 would read, mistakes included.

use crate::script::unescape;

/// Length of the whole block: what `grub-editenv create` makes and GRUB rewrites in place.
pub const BLOCK_LEN: usize = 1024;

/// All variables end within this many bytes, so that one sector decides.
pub const VARIABLES_LEN: usize = 512;

/// The line every block begins with.
pub const MAGIC: &[u8] = b"# GRUB Environment Block\n";

/// Why bytes are not a block of our form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// There is no file.
    #[error("the file is missing")]
    Missing,
    /// Not 1024 bytes.
    #[error("the file is not 1024 bytes long")]
    Length,
    /// Not GRUB's magic line.
    #[error("the first line is not GRUB's")]
    Magic,
    /// A line that is neither a comment nor `name=value`.
    #[error("a line is not of the form name=value")]
    Line,
    /// A variable stands there twice: GRUB would read the last and count down the first.
    #[error("a variable stands there twice")]
    Duplicate,
    /// Something stands after the first 512 bytes, or the padding is not all `#`.
    #[error("the padding is not all # from byte 512 on at the latest")]
    Padding,
    /// One of our variables is missing or makes no sense.
    #[error("the variables order, group_a and group_b are not all there")]
    Variables,
}

/// A block of our form, in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The lines after the magic one, without their line ends, escapes as they stand.
    lines: Vec<Vec<u8>>,
}

impl Block {
    /// A block with these variables and nothing else. Values must need no escapes.
    #[must_use]
    pub fn of(variables: &[(&str, &str)]) -> Self {
        let mut block = Block { lines: Vec::new() };
        for (name, value) in variables {
            block.set(name, value);
        }
        block
    }

    /// Reads a block of exactly our form.
    ///
    /// # Errors
    /// [`Damage`], the first one met.
    pub fn parse(bytes: &[u8]) -> Result<Self, Damage> {
        if bytes.len() != BLOCK_LEN {
            return Err(Damage::Length);
        }
        let mut rest = bytes.strip_prefix(MAGIC).ok_or(Damage::Magic)?;
        let mut block = Block { lines: Vec::new() };
        while rest.iter().any(|byte| *byte != b'#') {
            let (line, after) = split_line(rest).ok_or(Damage::Padding)?;
            if !line.starts_with(b"#") {
                let (name, _) = split_name(line).ok_or(Damage::Line)?;
                if block.raw(name).is_some() {
                    return Err(Damage::Duplicate);
                }
            }
            block.lines.push(line.to_vec());
            rest = after;
        }
        if BLOCK_LEN - rest.len() > VARIABLES_LEN { Err(Damage::Padding) } else { Ok(block) }
    }

    /// The value of a variable, escapes resolved.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Vec<u8>> {
        self.raw(name.as_bytes()).map(unescape)
    }

    /// Sets a variable where it stands, or after the last line. The value must need no escapes.
    pub fn set(&mut self, name: &str, value: &str) {
        let line = format!("{name}={value}").into_bytes();
        let place = self.lines.iter_mut().find(|old| split_name(old).is_some_and(|(n, _)| n == name.as_bytes()));
        match place {
            Some(old) => *old = line,
            None => self.lines.push(line),
        }
    }

    /// The bytes of the file, or nothing when the variables do not end within the first 512.
    #[must_use]
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        let mut bytes = MAGIC.to_vec();
        for line in &self.lines {
            bytes.extend_from_slice(line);
            bytes.push(b'\n');
        }
        if bytes.len() > VARIABLES_LEN {
            return None;
        }
        bytes.resize(BLOCK_LEN, b'#');
        Some(bytes)
    }

    fn raw(&self, name: &[u8]) -> Option<&[u8]> {
        self.lines.iter().find_map(|line| split_name(line).filter(|(n, _)| *n == name).map(|(_, value)| value))
    }
}

/// The variables as GRUB 2.06 reads them from a file of any length, in order; `None` when it calls the file invalid.
///
/// GRUB stops a name at `=` only, even beyond a line end, and cuts names and values at a NUL byte.
#[must_use]
pub fn variables(bytes: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut rest = bytes.strip_prefix(MAGIC).filter(|rest| !rest.is_empty())?;
    let mut found = Vec::new();
    while let Some(first) = rest.first() {
        if *first == b'#' {
            rest = split_line(rest).map_or(&[][..], |(_, after)| after);
            continue;
        }
        let Some(equals) = rest.iter().position(|byte| *byte == b'=') else { break };
        let (name, value) = rest.split_at(equals);
        let Some((value, after)) = value.get(1..).and_then(split_line) else { break };
        found.push((until_nul(name.to_vec()), until_nul(unescape(value))));
        rest = after;
    }
    Some(found)
}

/// Splits at the first line end that no `\` protects.
pub(super) fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut protected = false;
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            _ if protected => protected = false,
            b'\\' => protected = true,
            b'\n' => return Some((bytes.get(..at)?, bytes.get(at + 1..)?)),
            _ => {}
        }
    }
    None
}

/// Splits `name=value`; a name is letters, digits, `_`, `-` and `.`.
fn split_name(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let equals = line.iter().position(|byte| *byte == b'=')?;
    let (name, value) = (line.get(..equals)?, line.get(equals + 1..)?);
    let of_our_form = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-.".contains(byte);
    (!name.is_empty() && name.iter().all(of_our_form)).then_some((name, value))
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(nul) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(nul);
    }
    bytes
}
