//! Rules about pages: ARCHITECTURE.md names every module, docs/errors.md every error code, and nothing that is not there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::Result;

use super::Finding;
use super::sources::{HOUSES, Source, literals};

const MAP: &str = "ARCHITECTURE.md";
const ERRORS: &str = "docs/errors.md";
/// Functions that return error codes.
const CODE: &str = "code";
/// Where the keys of the configuration stand, which have the form of codes.
const CONFIG: &str = "agent/src/config";

/// Checks both pages. A page that is not there has no lines.
pub(super) fn check(workspace: &Path, sources: &[Source]) -> Result<Vec<Finding>> {
    let read = |page: &str| fs::read_to_string(workspace.join(page)).unwrap_or_default();
    let mut findings = map(&read(MAP), sources);
    findings.extend(errors(&read(ERRORS), sources));
    Ok(findings)
}

/// Every module stands in the map by its path, and every path in the map is there.
fn map(page: &str, sources: &[Source]) -> Vec<Finding> {
    let named = quoted(page);
    let missing =
        sources.iter().filter(|source| is_module(source) && !named.iter().any(|(_, path)| *path == source.path));
    let missing = missing.map(|source| {
        Finding::error(&source.path, 1, format!("{MAP} has no line for this module: name it as `{}`", source.path))
    });
    let is_path =
        |path: &str| path.ends_with(".rs") && HOUSES.iter().any(|house| path.starts_with(&format!("{house}/")));
    let gone = named.iter().filter(|(_, path)| is_path(path) && !sources.iter().any(|source| source.path == *path));
    let gone = gone.map(|(line, path)| Finding::error(MAP, *line, format!("there is no file {path}")));
    missing.chain(gone).collect()
}

/// Files of a crate's source that are about something; the list of a crate's modules and its tests are not.
fn is_module(source: &Source) -> bool {
    source.path.contains("/src/") && !matches!(source.name(), "lib.rs" | "tests.rs")
}

/// Every code in the code stands in the list, and every code in the list is in the code.
fn errors(page: &str, sources: &[Source]) -> Vec<Finding> {
    let used = codes_in_use(sources);
    let listed = codes_listed(page);
    let missing = used.iter().filter(|(code, _)| !listed.contains_key(*code));
    let missing = missing
        .map(|(code, (file, line))| Finding::error(file, *line, format!("{ERRORS} does not list the code `{code}`")));
    let gone = listed.iter().filter(|(code, _)| !used.contains_key(*code));
    let gone = gone.map(|(code, line)| Finding::error(ERRORS, *line, format!("no code of ours is `{code}`")));
    missing.chain(gone).collect()
}

/// Codes in the code, and where each stands first: what functions called `code` return, and beside that every literal of
/// the same areas, for a code can also be handed on without such a function.
fn codes_in_use(sources: &[Source]) -> BTreeMap<String, (String, usize)> {
    let ours = || sources.iter().filter(|source| !source.path.starts_with("xtask/"));
    let returned: Vec<&str> = ours().flat_map(returned_codes).collect();
    let areas: BTreeSet<&str> = returned.iter().filter_map(|code| area_of(code)).collect();
    let is_of_area = |text: &str| is_code(text) && area_of(text).is_some_and(|area| areas.contains(area));
    let mut found = BTreeMap::new();
    for source in ours() {
        for (line, text) in source.product_lines() {
            let may_be_key = source.path.starts_with(CONFIG);
            for code in literals(text).into_iter().filter(|text| is_of_area(text)) {
                let is_key = may_be_key && area_of(code) != Some("config");
                if returned.contains(&code) || !(is_key || is_file_name(code)) {
                    found.entry(code.to_owned()).or_insert_with(|| (source.path.clone(), line));
                }
            }
        }
    }
    found
}

/// Codes in the functions called `code` of one file.
fn returned_codes(source: &Source) -> impl Iterator<Item = &str> {
    let bodies = source.functions().filter(|function| function.name == CODE && !source.is_test());
    let lines = bodies.flat_map(|body| source.numbered().take(body.last_line).skip(body.first_line - 1));
    lines.flat_map(|(_, line)| literals(line)).filter(|literal| is_code(literal))
}

fn area_of(code: &str) -> Option<&str> {
    code.split_once('.').map(|(area, _)| area)
}

/// Whether it is the name of a file rather than a code.
fn is_file_name(text: &str) -> bool {
    [".toml", ".json", ".service", ".sock", ".socket", ".img", ".d", ".cfg", ".bascule", ".scr", ".cmd"]
        .iter()
        .any(|end| text.ends_with(end))
}

/// Codes that begin a heading, a row of a table or an item of a list.
fn codes_listed(page: &str) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for (index, line) in page.lines().enumerate() {
        let begins = line.trim_start().trim_start_matches(['#', '|', '-', '*']).trim_start();
        let code = begins.strip_prefix('`').and_then(|rest| rest.split('`').next());
        if let Some(code) = code.filter(|code| begins.len() < line.len() && is_code(code)) {
            found.entry(code.to_owned()).or_insert(index + 1);
        }
    }
    found
}

/// Whether it has the form of a code: two words in lower case with hyphens, and a dot between them.
fn is_code(text: &str) -> bool {
    let is_word = |word: &str| {
        word.starts_with(|first: char| first.is_ascii_lowercase())
            && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    text.split_once('.').is_some_and(|(area, name)| is_word(area) && is_word(name))
}

/// What stands between back quotes, with its line.
fn quoted(page: &str) -> Vec<(usize, &str)> {
    let quotes = |line| str::split(line, '`').skip(1).step_by(2);
    page.lines().enumerate().flat_map(|(index, line)| quotes(line).map(move |text| (index + 1, text))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(findings: Vec<Finding>) -> Vec<String> {
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_map_names_every_module_and_nothing_that_is_gone() {
        let sources = ["agent/src/lib.rs", "agent/src/there.rs", "agent/src/new.rs", "agent/src/new/tests.rs"];
        let sources = sources.map(|path| Source::from_text(path, ""));
        let page =
            "| `agent/src/there.rs` | it is |\n\n`agent/src/gone.rs` was\n`other/x.rs` and `y.rs` are elsewhere\n";
        assert_eq!(
            texts(map(page, &sources)),
            [
                "agent/src/new.rs:1: ARCHITECTURE.md has no line for this module: name it as `agent/src/new.rs`",
                "ARCHITECTURE.md:3: there is no file agent/src/gone.rs"
            ]
        );
    }

    #[test]
    fn the_list_of_errors_has_every_code_and_no_other() {
        let text = "fn code(&self) -> &'static str {\n    match self {\n        A => \"bundle.truncated\",\n        B => \
                    \"slot.held\",\n    }\n}\nfn other() {\n    f(\"no.code\", \"bundle.toml\", \"bundle.denied\")\n}\n";
        let sources = [Source::from_text("image-tools/src/error.rs", text)];
        let page = "| `bundle.truncated` | see `config.toml` |\n### `slot.lost`\nin `root.json` it says\n`x.y` too\n";
        assert_eq!(
            texts(errors(page, &sources)),
            [
                "image-tools/src/error.rs:8: docs/errors.md does not list the code `bundle.denied`",
                "image-tools/src/error.rs:4: docs/errors.md does not list the code `slot.held`",
                "docs/errors.md:2: no code of ours is `slot.lost`"
            ]
        );
    }

    #[test]
    fn a_code_is_two_words_with_a_dot() {
        assert!(is_code("bundle.not-a-bundle"));
        for other in ["bundle", "Bundle.x", "a.b.c", "a.", ".b", "a.b c", "1.0", "a.B"] {
            assert!(!is_code(other), "{other}");
        }
    }
}
