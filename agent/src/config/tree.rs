//! The files as one tree: parsed with the place of every key and value, then merged.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Fault, Position};
use crate::paths::Paths;

/// The largest configuration file that is read.
const FILE_LIMIT: u64 = 256 * 1024;
/// The most drop-ins that are read.
const DROP_IN_LIMIT: usize = 100;

/// A table of the configuration.
pub(super) type Table = BTreeMap<String, Entry>;

/// One key with its value.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: Place,
    pub(super) at: Place,
    pub(super) value: Value,
}

/// A value, as far as the configuration knows its type.
#[derive(Debug)]
pub(super) enum Value {
    Table(Table),
    Text(String),
    Integer(Option<i64>),
    List(Vec<(Place, Value)>),
    /// A type that no key has; named for the message.
    Odd(&'static str),
}

impl Value {
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Value::Table(_) => "a table",
            Value::Text(_) => "a string",
            Value::Integer(_) => "an integer",
            Value::List(_) => "a list",
            Value::Odd(name) => name,
        }
    }
}

/// Where something was written: the number of the file and the byte in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    file: usize,
    offset: usize,
}

/// The files that were read, for turning a [`Place`] into line and column.
#[derive(Debug)]
pub(super) struct Files {
    /// The main file, named when something is missing everywhere.
    pub(super) main: PathBuf,
    read: Vec<(PathBuf, String)>,
}

impl Files {
    /// Whether there is nothing to look at: then what is missing in it is not worth telling.
    pub(super) fn none_was_read(&self) -> bool {
        self.read.is_empty()
    }

    pub(super) fn locate(&self, place: Place) -> (PathBuf, Option<Position>) {
        match self.read.get(place.file) {
            Some((path, text)) => (path.clone(), Some(position(text, place.offset))),
            None => (self.main.clone(), None),
        }
    }
}

fn position(text: &str, offset: usize) -> Position {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline.saturating_add(1));
    let column = before.get(line_start..).unwrap_or_default().chars().count();
    Position { line: before.matches('\n').count().saturating_add(1), column: column.saturating_add(1) }
}

/// Reads and merges all files. What could not be read is left out and listed as a fault.
pub(super) fn load(paths: &Paths) -> (Table, Files, Vec<Fault>) {
    let mut files = Files { main: paths.config(), read: Vec::new() };
    let mut faults = Vec::new();
    let mut merged = Table::new();
    for path in file_names(paths, &mut faults) {
        match read_bounded(&path) {
            Ok(text) => {
                let number = files.read.len();
                let table = parse(&text, number, &path, &mut faults);
                files.read.push((path, text));
                merge(&mut merged, table);
            }
            Err(fault) => faults.push(fault),
        }
    }
    (merged, files, faults)
}

fn file_names(paths: &Paths, faults: &mut Vec<Fault>) -> Vec<PathBuf> {
    let mut drop_ins = Vec::new();
    match fs::read_dir(paths.config_drop_ins()) {
        Ok(entries) => {
            drop_ins.extend(entries.flatten().map(|entry| entry.path()).filter(|path| is_drop_in(path)));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => faults.push(unreadable(&paths.config_drop_ins(), &error)),
    }
    drop_ins.sort();
    if drop_ins.len() > DROP_IN_LIMIT {
        let message = format!("there are {} drop-ins, {DROP_IN_LIMIT} are read at most", drop_ins.len());
        let hint = "put them together into fewer files";
        faults.push(whole_file(&paths.config_drop_ins(), "config.too-large", message, hint));
        drop_ins.truncate(DROP_IN_LIMIT);
    }
    // The main file may be missing only where drop-ins say everything.
    if drop_ins.is_empty() || paths.config().exists() {
        drop_ins.insert(0, paths.config());
    }
    drop_ins
}

fn is_drop_in(path: &Path) -> bool {
    let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
    !hidden && path.extension().is_some_and(|extension| extension == "toml")
}

fn read_bounded(path: &Path) -> Result<String, Fault> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    file.take(FILE_LIMIT.saturating_add(1)).read_to_end(&mut bytes).map_err(|error| unreadable(path, &error))?;
    if bytes.len() as u64 > FILE_LIMIT {
        let message = format!("the file has more than {FILE_LIMIT} bytes");
        return Err(whole_file(path, "config.too-large", message, "this is no configuration file: look at what it is"));
    }
    String::from_utf8(bytes).map_err(|_| {
        whole_file(path, "config.syntax", "the file is not UTF-8 text".into(), "save it as plain UTF-8 text")
    })
}

fn unreadable(path: &Path, error: &io::Error) -> Fault {
    let hint = if error.kind() == io::ErrorKind::NotFound {
        "create it: docs/configuration.md has a whole example"
    } else {
        "look at the file's owner and mode; root must be able to read it"
    };
    whole_file(path, "config.unreadable", format!("the file cannot be read ({error})"), hint)
}

fn whole_file(path: &Path, code: &str, message: String, hint: &str) -> Fault {
    Fault { code: code.into(), file: path.into(), position: None, message, hint: hint.into() }
}

fn parse(text: &str, file: usize, path: &Path, faults: &mut Vec<Fault>) -> Table {
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        faults.push(Fault {
            code: "config.syntax".into(),
            file: path.into(),
            position: error.span().map(|span| position(text, span.start)),
            message: error.message().lines().collect::<Vec<_>>().join(", "),
            hint: "write it as TOML: `key = \"text\"`, `key = 3`, `key = [\"a\", \"b\"]`, under a `[section]`".into(),
        });
    }
    table_of(table.into_inner(), file)
}

fn table_of(table: DeTable<'_>, file: usize) -> Table {
    let place = |span: Range<usize>| Place { file, offset: span.start };
    let entry = |(key, value): (Spanned<_>, Spanned<DeValue<'_>>)| {
        let (key_place, at) = (place(key.span()), place(value.span()));
        let name: std::borrow::Cow<'_, str> = key.into_inner();
        (name.into_owned(), Entry { key: key_place, at, value: value_of(value.into_inner(), file) })
    };
    table.into_iter().map(entry).collect()
}

fn value_of(value: DeValue<'_>, file: usize) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.into_owned()),
        DeValue::Integer(number) => Value::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok()),
        DeValue::Table(table) => Value::Table(table_of(table, file)),
        DeValue::Array(list) => {
            let item = |item: Spanned<DeValue<'_>>| {
                let place = Place { file, offset: item.span().start };
                (place, value_of(item.into_inner(), file))
            };
            Value::List(list.into_iter().map(item).collect())
        }
        DeValue::Float(_) => Value::Odd("a fraction"),
        DeValue::Boolean(_) => Value::Odd("a boolean"),
        DeValue::Datetime(_) => Value::Odd("a date"),
    }
}

fn merge(below: &mut Table, above: Table) {
    for (name, entry) in above {
        match (below.get_mut(&name).map(|entry| &mut entry.value), entry.value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => {
                below.insert(name, Entry { value, ..entry });
            }
        }
    }
}
