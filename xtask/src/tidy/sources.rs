//! The Rust files of the workspace, line by line.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// The folders that hold crates.
pub(super) const HOUSES: [&str; 6] = ["agent", "bootloader-glue", "image-tools", "updater-hooks", "tests", "xtask"];

/// One Rust file.
#[derive(Debug)]
pub(super) struct Source {
    /// Its path from the top of the workspace.
    pub(super) path: String,
    /// Its lines, without their ends.
    pub(super) lines: Vec<String>,
}

/// One function of a file, found by its indentation: the code is formatted before it is checked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Function<'a> {
    pub(super) name: &'a str,
    /// Counted from 1, like all line numbers here.
    pub(super) first_line: usize,
    pub(super) last_line: usize,
}

impl Source {
    /// The file name.
    pub(super) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    /// Whether all of it is test code.
    pub(super) fn is_test(&self) -> bool {
        self.name() == "tests.rs" || self.path.contains("/tests/") || self.path.starts_with("tests/")
    }

    /// Line numbers and lines outside of test modules; nothing of a file that is test code as a whole.
    pub(super) fn product_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let end = if self.is_test() { 0 } else { self.start_of_tests() };
        self.numbered().take(end)
    }

    /// Every line with its number.
    pub(super) fn numbered(&self) -> impl Iterator<Item = (usize, &str)> {
        self.lines.iter().enumerate().map(|(index, line)| (index + 1, line.as_str()))
    }

    /// Every function, those inside of others too.
    pub(super) fn functions(&self) -> impl Iterator<Item = Function<'_>> {
        self.numbered().filter_map(|(first_line, line)| {
            let name = function_name(line)?;
            let closing = format!("{}}}", indentation(line));
            let end =
                |(_, line): &(usize, &str)| *line == closing || (line.ends_with("{}") && function_name(line).is_some());
            // A declaration without a body ends where its signature does.
            let rest = self.numbered().skip(first_line - 1);
            let (last_line, _) =
                rest.into_iter().find(|found| end(found) || found.1.ends_with(';') && found.0 == first_line)?;
            Some(Function { name, first_line, last_line })
        })
    }

    /// How many lines come before the test module at the end of the file.
    fn start_of_tests(&self) -> usize {
        let is_module = |index: usize| self.lines.get(index + 1).is_some_and(|next| next.ends_with("mod tests {"));
        let found = self.lines.iter().enumerate().find(|(index, line)| *line == "#[cfg(test)]" && is_module(*index));
        found.map_or(self.lines.len(), |(index, _)| index)
    }
}

/// The string literals of one line, plain ones only; nothing of comments.
pub(super) fn literals(line: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = line;
    while let Some(start) = rest.find(['"', '/']) {
        let here = rest.get(start..).unwrap_or_default();
        if here.starts_with("//") {
            break;
        }
        let Some(text) = here.strip_prefix('"') else {
            rest = here.get(1..).unwrap_or_default();
            continue;
        };
        if rest.get(..start).is_some_and(|before| before.ends_with('\'')) {
            rest = text;
            continue;
        }
        let Some(end) = end_of_literal(text) else { break };
        found.push(text.get(..end).unwrap_or_default());
        rest = text.get(end + 1..).unwrap_or_default();
    }
    found
}

fn end_of_literal(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'"' if !escaped => return Some(index),
            b'\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    None
}

/// The name in a line that begins a function.
fn function_name(line: &str) -> Option<&str> {
    let mut rest = line.trim_start();
    while let Some((word, after)) = rest.split_once(' ') {
        match word {
            "fn" => return after.split(['(', '<']).next(),
            "pub" | "async" | "const" | "extern" => rest = after,
            _ if word.starts_with("pub(") => rest = after,
            _ => return None,
        }
    }
    None
}

fn indentation(line: &str) -> &str {
    line.get(..line.len() - line.trim_start().len()).unwrap_or_default()
}

/// Reads every Rust file of the workspace, ordered by path.
pub(super) fn read(workspace: &Path) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for house in HOUSES {
        read_folder(&workspace.join(house), house, &mut sources)?;
    }
    sources.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(sources)
}

fn read_folder(folder: &Path, shown: &str, sources: &mut Vec<Source>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("{shown} cannot be listed"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{shown}/{name}");
        if entry.file_type()?.is_dir() {
            if name != "target" {
                read_folder(&entry.path(), &path, sources)?;
            }
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(entry.path()).with_context(|| format!("{path} cannot be read"))?;
            sources.push(Source::from_text(path, &text));
        }
    }
    Ok(())
}

impl Source {
    /// A file of this path and text.
    pub(super) fn from_text(path: impl Into<String>, text: &str) -> Self {
        Source { path: path.into(), lines: text.lines().map(str::to_owned).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_found_with_their_last_lines_also_inside_of_others() {
        let text = "pub(crate) fn one(\n    a: u8,\n) -> u8 {\n    fn two() {\n        a;\n    }\n    a\n}\nfn three() {}\n\
                    trait T {\n    fn four(&self);\n    async fn five() {\n        x;\n    }\n}\n";
        let source = Source::from_text("a/src/x.rs", text);
        let found: Vec<_> = source.functions().map(|f| (f.name, f.first_line, f.last_line)).collect();
        assert_eq!(found, [("one", 1, 8), ("two", 4, 6), ("three", 9, 9), ("four", 11, 11), ("five", 12, 14)]);
    }

    #[test]
    fn literals_are_found_and_comments_are_not() {
        let line = r#"    a("/etc/x", 'q', "say \"hi\" // no", '"', 1 / 2, "last"); // "/usr""#;
        assert_eq!(literals(line), ["/etc/x", r#"say \"hi\" // no"#, "last"]);
        assert!(literals("/// `\"/etc/x\"`").is_empty());
    }

    #[test]
    fn test_modules_are_no_product_code() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests;\nfn b() {}\n\n#[cfg(test)]\nmod tests {\n    fn c() {}\n}\n";
        let lines = |path: &str| Source::from_text(path, text).product_lines().count();
        assert_eq!((lines("a/src/x.rs"), lines("a/src/x/tests.rs"), lines("tests/src/x.rs")), (5, 0, 0));
    }
}
