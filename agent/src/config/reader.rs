//! Typed access to the tree. A getter that finds a fault notes it and answers `None`, so that one look finds them all.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use super::nearest::nearest;
use super::tree::{Entry, Files, Place, Table, Value};
use super::{Fault, quantity};

/// Collects faults while the schema is read.
pub(super) struct Reader<'a> {
    files: &'a Files,
    pub(super) faults: Vec<Fault>,
}

/// One table with the name it goes by in messages.
pub(super) struct Section<'a> {
    pub(super) name: String,
    table: Option<&'a Table>,
}

impl<'a> Section<'a> {
    pub(super) fn entry(&self, key: &str) -> Option<&'a Entry> {
        self.table?.get(key)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a String, &'a Entry)> {
        self.table.into_iter().flatten()
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(files: &'a Files, faults: Vec<Fault>) -> Self {
        Reader { files, faults }
    }

    /// Notes a fault at `place`.
    pub(super) fn fault(&mut self, code: &str, place: Place, message: impl Into<String>, hint: impl Into<String>) {
        let (file, position) = self.files.locate(place);
        self.faults.push(Fault { code: code.into(), file, position, message: message.into(), hint: hint.into() });
    }

    /// Notes that something is written nowhere.
    pub(super) fn missing(&mut self, what: &str, hint: &str) {
        let (file, message) = (self.files.main.clone(), format!("{what} is missing"));
        self.faults.push(Fault { code: "config.missing-key".into(), file, position: None, message, hint: hint.into() });
    }

    fn wrong_type(&mut self, section: &Section<'_>, key: &str, entry: &Entry, wanted: &str, hint: &str) {
        let message = format!("{}.{key} is {}, it must be {wanted}", section.name, entry.value.type_name());
        self.fault("config.wrong-type", entry.at, message, hint);
    }

    fn bad_value(&mut self, section: &Section<'_>, key: &str, entry: &Entry, problem: &str, hint: impl Into<String>) {
        self.fault("config.bad-value", entry.at, format!("{}.{key} {problem}", section.name), hint);
    }

    /// The top of the tree.
    pub(super) fn top<'s>(&mut self, table: &'s Table, sections: &[(&str, &[&str])]) -> Section<'s> {
        let names: Vec<&str> = sections.iter().map(|(name, _)| *name).collect();
        for (name, entry) in table.iter().filter(|(name, _)| !names.contains(&name.as_str())) {
            let section = sections.iter().find(|(_, keys)| keys.contains(&name.as_str()));
            let hint = match (nearest(name, &names), section) {
                (Some(meant), _) => format!("did you mean {meant:?}?"),
                (None, Some((section, _))) => format!("put {name:?} under [{section}]"),
                (None, None) => format!("the sections are {}", names.join(", ")),
            };
            self.fault("config.unknown-key", entry.key, format!("unknown section or key {name:?}"), hint);
        }
        Section { name: String::new(), table: Some(table) }
    }

    /// One section; unknown keys in it are faults. A section that is missing reads as empty.
    pub(super) fn section<'s>(&mut self, top: &Section<'s>, sections: &[(&str, &[&str])], name: &str) -> Section<'s> {
        let section = self.table(top, name);
        let keys = sections.iter().find(|(known, _)| *known == name).map_or(&[][..], |(_, keys)| keys);
        self.refuse_unknown(&section, keys, sections);
        section
    }

    /// A table below `above`, with any keys.
    pub(super) fn table<'s>(&mut self, above: &Section<'s>, name: &str) -> Section<'s> {
        let full = if above.name.is_empty() { name.to_owned() } else { format!("{}.{name}", above.name) };
        let table = match above.entry(name) {
            Some(Entry { value: Value::Table(table), .. }) => Some(table),
            Some(entry) => {
                let message = format!("{full} is {}, it must be a table", entry.value.type_name());
                self.fault("config.wrong-type", entry.at, message, format!("write `[{full}]` and its keys below"));
                None
            }
            None => None,
        };
        Section { name: full, table }
    }

    /// Notes every key of `section` that is not among `keys`.
    pub(super) fn refuse_unknown(&mut self, section: &Section<'_>, keys: &[&str], elsewhere: &[(&str, &[&str])]) {
        for (key, entry) in section.entries().filter(|(key, _)| !keys.contains(&key.as_str())) {
            let other = elsewhere.iter().find(|(_, keys)| keys.contains(&key.as_str()));
            let hint = match (nearest(key, keys), other) {
                (Some(meant), _) => format!("did you mean {meant:?}?"),
                (None, Some((other, _))) => format!("{key:?} is a key of [{other}]"),
                (None, None) => format!("the keys of [{}] are {}", section.name, keys.join(", ")),
            };
            self.fault("config.unknown-key", entry.key, format!("unknown key {key:?} in [{}]", section.name), hint);
        }
    }

    /// A text that is not empty.
    pub(super) fn text<'s>(&mut self, section: &Section<'s>, key: &str) -> Option<(&'s str, Place)> {
        let entry = section.entry(key)?;
        match &entry.value {
            Value::Text(text) if text.trim().is_empty() => {
                self.bad_value(section, key, entry, "is empty", "give it a value, or leave the key out");
                None
            }
            Value::Text(text) => Some((text, entry.at)),
            _ => {
                self.wrong_type(section, key, entry, "a string", &format!("write `{key} = \"...\"`"));
                None
            }
        }
    }

    /// One of some words.
    pub(super) fn word<T: Copy>(&mut self, section: &Section<'_>, key: &str, words: &[(&str, T)]) -> Option<T> {
        let (text, place) = self.text(section, key)?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let hint = match nearest(text, &known) {
            Some(meant) => format!("did you mean {meant:?}?"),
            None => format!("it is one of {}", known.join(", ")),
        };
        self.fault("config.bad-value", place, format!("{}.{key} cannot be {text:?}", section.name), hint);
        None
    }

    /// A whole number within bounds.
    pub(super) fn integer(&mut self, section: &Section<'_>, key: &str, least: u32, most: u32) -> Option<u32> {
        let entry = section.entry(key)?;
        let Value::Integer(number) = entry.value else {
            self.wrong_type(section, key, entry, "an integer", &format!("write `{key} = {least}`, without quotes"));
            return None;
        };
        let fits = number.and_then(|n| u32::try_from(n).ok()).filter(|n| (least..=most).contains(n));
        if fits.is_none() {
            let problem = number.map_or("is out of range".to_owned(), |n| format!("cannot be {n}"));
            self.bad_value(section, key, entry, &problem, format!("it is {least} to {most}"));
        }
        fits
    }

    /// A duration within bounds.
    pub(super) fn duration(
        &mut self,
        section: &Section<'_>,
        key: &str,
        least: Duration,
        most: Duration,
    ) -> Option<Duration> {
        let entry = section.entry(key)?;
        if let Value::Integer(Some(number)) = entry.value {
            let hint = format!("write it with its unit: `{key} = \"{number}s\"`");
            self.wrong_type(section, key, entry, "a string", &hint);
            return None;
        }
        let (text, _) = self.text(section, key)?;
        let Some(duration) = quantity::duration(text) else {
            let hint = "write a whole number and ms, s, min or h, such as \"90s\" or \"15min\"";
            self.bad_value(section, key, entry, &format!("is no duration: {text:?}"), hint);
            return None;
        };
        if duration < least || duration > most {
            let hint = format!("it is {} to {}", quantity::text(least), quantity::text(most));
            self.bad_value(section, key, entry, &format!("cannot be {text}"), hint);
            return None;
        }
        Some(duration)
    }

    /// A size in bytes within bounds.
    pub(super) fn size(&mut self, section: &Section<'_>, key: &str, least: u64, most: u64) -> Option<u64> {
        let (text, place) = self.text(section, key)?;
        let fits = quantity::size(text).filter(|bytes| (least..=most).contains(bytes));
        if fits.is_none() {
            let hint = format!("write {} to {}", quantity::size_text(least), quantity::size_text(most));
            self.fault("config.bad-value", place, format!("{}.{key} cannot be {text:?}", section.name), hint);
        }
        fits
    }

    /// A path from the root, without `..`.
    pub(super) fn path(&mut self, section: &Section<'_>, key: &str) -> Option<PathBuf> {
        let (text, place) = self.text(section, key)?;
        let path = Path::new(text);
        if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
            let message = format!("{}.{key} is no absolute path: {text:?}", section.name);
            self.fault("config.bad-value", place, message, "write the whole path from /, without `..`");
            return None;
        }
        Some(path.to_owned())
    }

    /// A list of texts that all pass `fits`.
    pub(super) fn list(
        &mut self,
        section: &Section<'_>,
        key: &str,
        fits: impl Fn(&str) -> bool,
        hint: &str,
    ) -> Option<Vec<String>> {
        let entry = section.entry(key)?;
        let Value::List(items) = &entry.value else {
            self.wrong_type(section, key, entry, "a list", &format!("write `{key} = [\"...\"]`"));
            return None;
        };
        let mut texts = Vec::new();
        for (place, item) in items {
            match item {
                Value::Text(text) if fits(text) => texts.push(text.clone()),
                Value::Text(text) => {
                    let message = format!("{}.{key} cannot hold {text:?}", section.name);
                    self.fault("config.bad-value", *place, message, hint);
                }
                other => {
                    let message = format!("{}.{key} holds {}, it must hold strings", section.name, other.type_name());
                    self.fault("config.wrong-type", *place, message, hint);
                }
            }
        }
        Some(texts)
    }
}
