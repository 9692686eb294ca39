//! The prediction's bytes: rows of numbers, each for one field of everything, so that they pack well.

use super::map::{Piece, Space, Span};
use super::scan::Kind;
use super::{Area, ElfFile, Prediction, Section};
use crate::delta::varint;
use crate::format::Fields;
use crate::limits::{MAX_AREAS, MAX_PIECES, MAX_PREDICTED_FILES, MAX_SECTION_SYMBOLS};

/// Why bytes are no prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A rule of the format, in words.
    Rule(&'static str),
    /// A section of this kind is not known.
    Kind(u8),
}

const CUT_OFF: Fault = Fault::Rule("a prediction is cut off or a number in it too great");
const TOO_MANY: Fault = Fault::Rule("a prediction has more parts than the limit");

/// Writes rows.
#[derive(Default)]
struct Rows(Vec<u8>);

impl Rows {
    fn row(&mut self, values: impl Iterator<Item = u64>) {
        values.for_each(|value| varint::push(&mut self.0, value));
    }

    fn signed(&mut self, values: impl Iterator<Item = i64>) {
        values.for_each(|value| varint::push_signed(&mut self.0, value));
    }
}

/// All spans of all files, then the shared ones: the order of pieces in the format.
fn spans(prediction: &Prediction) -> impl Iterator<Item = &Span> {
    let shared = prediction.shared.iter();
    Space::ALL.iter().zip(shared).flat_map(move |(space, shared)| {
        let files = prediction.files.iter().filter_map(|file| file.spans.get(*space as usize));
        files.chain(std::iter::once(shared))
    })
}

impl Prediction {
    /// The bytes that [`parse`](Self::parse) makes the same prediction of. Sections are in the order of files, areas
    /// in that of sections at first, see [`Builder`](super::learn).
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut rows = Rows::default();
        let files = || self.files.iter();
        let sections_of = |number: usize| self.sections.iter().filter(move |one| one.file as usize == number);
        rows.row([self.files.len() as u64, self.sections.len() as u64, self.areas.len() as u64].into_iter());
        rows.row(files().enumerate().map(|(number, _)| sections_of(number).count() as u64));
        rows.row(files().map(|file| file.low));
        rows.row(files().map(|file| u64::from(file.room)));
        let sections = || self.sections.iter();
        rows.row(sections().map(|section| section.kind as u64));
        let before = std::iter::once(0).chain(sections().map(|s| i64::from(s.base) + i64::from(s.length)));
        rows.signed(sections().zip(before).map(|(section, before)| i64::from(section.base) - before));
        rows.row(sections().map(|section| u64::from(section.length)));
        self.push_areas(&mut rows);
        rows.row(files().map(|file| file.symbols.len() as u64));
        let symbols = || files().map(|file| self.symbols.get(file.symbols.clone()).unwrap_or_default());
        for row in symbols() {
            let before = std::iter::once(0).chain(row.iter().map(|(symbol, _)| *symbol));
            rows.row(row.iter().zip(before).map(|((symbol, _), before)| u64::from(symbol - before)));
        }
        for row in symbols() {
            let before = std::iter::once(0).chain(row.iter().map(|(_, base)| i64::from(*base)));
            rows.signed(row.iter().zip(before).map(|((_, base), before)| i64::from(*base) - before));
        }
        rows.row(spans(self).map(|span| span.len() as u64));
        let pieces = || spans(self).map(|span| self.pieces.get(span.clone()).unwrap_or_default());
        for row in pieces() {
            let before = std::iter::once(0).chain(row.iter().map(|piece| piece.start));
            rows.row(row.iter().zip(before).map(|(piece, before)| u64::from(piece.start - before)));
        }
        for row in pieces() {
            let before = std::iter::once(0).chain(row.iter().map(|piece| i64::from(piece.shift)));
            rows.signed(row.iter().zip(before).map(|(piece, before)| i64::from(piece.shift) - before));
        }
        rows.0
    }

    /// Areas by their sections, those of one section in ascending order: how many there are, where each begins, and of
    /// sections in several areas where in the section.
    fn push_areas(&self, rows: &mut Rows) {
        let mut areas = self.areas.clone();
        areas.sort_by_key(|area| (area.section, area.start));
        let mut counts = vec![0u64; self.sections.len()];
        for area in &areas {
            if let Some(count) = counts.get_mut(area.section as usize) {
                *count += 1;
            }
        }
        let before = std::iter::once(0).chain(areas.iter().map(|area| area.end() as i64));
        rows.row(counts.into_iter());
        rows.signed(areas.iter().zip(before).map(|(area, before)| area.start as i64 - before));
        rows.row(areas.iter().map(|area| u64::from(area.skip)));
        // What is left of the section when the area ends.
        let left = |area: &Area| {
            let length = self.section(area).map_or(0, |section| section.length);
            u64::from(length.saturating_sub(area.skip).saturating_sub(area.length))
        };
        rows.row(areas.iter().map(left));
    }

    /// Reads a prediction for a base image of `base_size` bytes.
    pub(crate) fn parse(bytes: &[u8], base_size: u64) -> Result<Self, Fault> {
        let mut reader = Reader(Fields(bytes));
        let files = reader.count(MAX_PREDICTED_FILES)?;
        let sections = reader.count(MAX_AREAS)?;
        let areas = reader.count(MAX_AREAS)?;
        let mut made = Prediction { files: reader.files(files)?, ..Prediction::default() };
        made.sections = reader.sections(&made.files, sections)?;
        for file in &mut made.files {
            // Only a place to keep the count of sections until here.
            file.symbols = 0..0;
        }
        made.areas = reader.areas(&made.sections, areas, base_size)?;
        reader.symbols(&mut made)?;
        reader.pieces(&mut made)?;
        if made.is_empty() {
            return Err(Fault::Rule("a prediction predicts nothing"));
        }
        if reader.0.0.is_empty() { Ok(made) } else { Err(Fault::Rule("bytes follow a prediction")) }
    }
}

struct Reader<'r>(Fields<'r>);

impl Reader<'_> {
    fn number(&mut self) -> Result<u64, Fault> {
        varint::take(&mut self.0).ok_or(CUT_OFF)
    }

    fn small(&mut self) -> Result<u32, Fault> {
        u32::try_from(self.number()?).map_err(|_| CUT_OFF)
    }

    fn signed(&mut self) -> Result<i64, Fault> {
        varint::take_signed(&mut self.0).ok_or(CUT_OFF)
    }

    fn count(&mut self, most: usize) -> Result<usize, Fault> {
        let count = usize::try_from(self.number()?).map_err(|_| TOO_MANY)?;
        if count > most { Err(TOO_MANY) } else { Ok(count) }
    }

    /// The files; `symbols` of each holds its number of sections for now.
    fn files(&mut self, count: usize) -> Result<Vec<ElfFile>, Fault> {
        let mut files = vec![ElfFile::default(); count];
        for file in &mut files {
            file.symbols = 0..self.count(MAX_AREAS)?;
        }
        for file in &mut files {
            file.low = self.number()?;
        }
        for file in &mut files {
            file.room = self.small()?;
        }
        Ok(files)
    }

    fn sections(&mut self, files: &[ElfFile], count: usize) -> Result<Vec<Section>, Fault> {
        let told = files.iter().fold(0usize, |sum, file| sum.saturating_add(file.symbols.len()));
        if told != count {
            return Err(Fault::Rule("a prediction's sections are not those of its files"));
        }
        let owners = files.iter().enumerate().flat_map(|(number, file)| file.symbols.clone().map(move |_| number));
        let mut sections = Vec::with_capacity(count);
        for owner in owners {
            let number = self.number()?;
            let kind = usize::try_from(number).ok().and_then(|number| Kind::ALL.get(number).copied());
            let kind = kind.ok_or(Fault::Kind(u8::try_from(number).unwrap_or(u8::MAX)))?;
            sections.push(Section { file: owner as u32, kind, base: 0, length: 0 });
        }
        let mut gaps = Vec::with_capacity(count);
        for _ in 0..count {
            gaps.push(self.signed()?);
        }
        let mut before = 0i64;
        for (section, gap) in sections.iter_mut().zip(gaps) {
            section.length = self.small()?;
            let base = before.checked_add(gap).ok_or(CUT_OFF)?;
            section.base = u32::try_from(base).map_err(|_| CUT_OFF)?;
            before = base.checked_add(i64::from(section.length)).ok_or(CUT_OFF)?;
        }
        Ok(sections)
    }

    fn areas(&mut self, sections: &[Section], count: usize, base_size: u64) -> Result<Vec<Area>, Fault> {
        let mut areas = Vec::with_capacity(count);
        for number in 0..sections.len() {
            for _ in 0..self.count(MAX_AREAS)? {
                if areas.len() == count {
                    return Err(TOO_MANY);
                }
                areas.push(Area { start: 0, length: 0, section: number as u32, skip: 0 });
            }
        }
        if areas.len() != count {
            return Err(Fault::Rule("a prediction's areas are not those of its sections"));
        }
        let mut gaps = Vec::with_capacity(count);
        for _ in 0..count {
            gaps.push(self.signed()?);
        }
        for area in &mut areas {
            area.skip = self.small()?;
        }
        let mut before = 0u64;
        for (area, gap) in areas.iter_mut().zip(gaps) {
            let length = sections.get(area.section as usize).map_or(0, |section| section.length);
            let left = self.small()?;
            area.length = length.checked_sub(area.skip).and_then(|rest| rest.checked_sub(left)).ok_or(CUT_OFF)?;
            area.start = before.checked_add_signed(gap).ok_or(CUT_OFF)?;
            before = area.end();
            if before > base_size {
                return Err(Fault::Rule("a prediction's area is outside of the base image"));
            }
        }
        areas.sort_by_key(|area| area.start);
        if areas.iter().zip(areas.iter().skip(1)).any(|(area, next)| area.end() > next.start) {
            return Err(Fault::Rule("a prediction's areas overlap"));
        }
        Ok(areas)
    }

    fn symbols(&mut self, made: &mut Prediction) -> Result<(), Fault> {
        let mut end = 0usize;
        for file in &mut made.files {
            let start = end;
            end = start.saturating_add(self.count(MAX_SECTION_SYMBOLS)?);
            file.symbols = start..end;
        }
        if end > MAX_SECTION_SYMBOLS {
            return Err(TOO_MANY);
        }
        made.symbols = vec![(0, 0); end];
        let rows = |made: &Prediction| made.files.iter().map(|file| file.symbols.clone()).collect::<Vec<_>>();
        for row in rows(made) {
            let mut before = 0u32;
            for (symbol, _) in made.symbols.get_mut(row).unwrap_or_default() {
                before = before.checked_add(self.small()?).ok_or(CUT_OFF)?;
                *symbol = before;
            }
        }
        for row in rows(made) {
            let mut before = 0i64;
            for (_, base) in made.symbols.get_mut(row).unwrap_or_default() {
                before = before.checked_add(self.signed()?).ok_or(CUT_OFF)?;
                *base = u32::try_from(before).map_err(|_| CUT_OFF)?;
            }
        }
        Ok(())
    }

    fn pieces(&mut self, made: &mut Prediction) -> Result<(), Fault> {
        let mut end = 0usize;
        let mut all = Vec::new();
        for space in Space::ALL {
            let files = made.files.iter_mut().filter_map(|file| file.spans.get_mut(space as usize));
            for span in files.chain(made.shared.get_mut(space as usize)) {
                let start = end;
                end = start.saturating_add(self.count(MAX_PIECES)?);
                *span = start..end;
                all.push(span.clone());
            }
        }
        if end > MAX_PIECES {
            return Err(TOO_MANY);
        }
        made.pieces = vec![Piece { start: 0, shift: 0 }; end];
        for row in &all {
            let mut before = 0u32;
            for piece in made.pieces.get_mut(row.clone()).unwrap_or_default() {
                before = before.checked_add(self.small()?).ok_or(CUT_OFF)?;
                piece.start = before;
            }
        }
        for row in all {
            let mut before = 0i64;
            for piece in made.pieces.get_mut(row).unwrap_or_default() {
                before = before.checked_add(self.signed()?).ok_or(CUT_OFF)?;
                piece.shift = i32::try_from(before).map_err(|_| CUT_OFF)?;
            }
        }
        Ok(())
    }
}
