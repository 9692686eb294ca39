//! Rules about one Rust file: length of file and functions, words in names, absolute paths.

use super::Finding;
use super::sources::{Source, literals};

/// The longest file, and from where on a file is called long.
const FILE_LINES: (usize, usize) = (600, 400);
/// The longest function.
const FUNCTION_LINES: usize = 70;
/// Words that say nothing about what a file or type is.
const EMPTY_WORDS: [&str; 3] = ["manager", "helper", "utils"];
/// The tops of a device's file system.
const TOPS: [&str; 17] = [
    "bin", "boot", "data", "dev", "efi", "etc", "home", "lib", "media", "mnt", "opt", "proc", "root", "run", "sys",
    "usr", "var",
];
/// Where the paths of a device may stand: each crate has one file of paths, and a rehearsal plays the kernel for tests,
/// which says such paths.
const PATHS_FILES: [&str; 2] = ["paths.rs", "rehearsal.rs"];
/// Crates that make images of devices on a developer's machine: what they name lies in the image, not on the machine.
const IMAGE_MAKERS: [&str; 3] = ["image-tools/", "tests/", "xtask/"];

/// Checks one file.
pub(super) fn check(source: &Source) -> Vec<Finding> {
    let mut findings = file_length(source);
    findings.extend(function_lengths(source));
    findings.extend(names(source));
    findings.extend(absolute_paths(source));
    findings
}

fn file_length(source: &Source) -> Vec<Finding> {
    let lines = source.lines.len();
    let (limit, long) = FILE_LINES;
    if lines > limit {
        vec![Finding::error(&source.path, lines, format!("the file has {lines} lines: {limit} is the limit"))]
    } else if lines > long {
        vec![Finding::warning(&source.path, lines, format!("the file has {lines} lines: more than {long} is long"))]
    } else {
        Vec::new()
    }
}

fn function_lengths(source: &Source) -> Vec<Finding> {
    let length = |first: usize, last: usize| last + 1 - first;
    source
        .functions()
        .filter(|function| length(function.first_line, function.last_line) > FUNCTION_LINES)
        .map(|function| {
            let lines = length(function.first_line, function.last_line);
            let reason = format!("`{}` has {lines} lines: {FUNCTION_LINES} is the limit", function.name);
            Finding::error(&source.path, function.first_line, reason)
        })
        .collect()
}

fn names(source: &Source) -> Vec<Finding> {
    let empty = |name: &str| EMPTY_WORDS.into_iter().find(|word| name.to_lowercase().contains(word));
    let of_file = empty(&source.path).map(|word| {
        Finding::error(&source.path, 1, format!("{word:?} in a file's name does not say what the file is about"))
    });
    let of_types = source.numbered().filter_map(|(number, line)| {
        let name = type_name(line)?;
        let word = empty(name)?;
        Some(Finding::error(&source.path, number, format!("{word:?} in `{name}` does not say what it is")))
    });
    of_file.into_iter().chain(of_types).collect()
}

/// The name in a line that begins a type, a trait or a module.
fn type_name(line: &str) -> Option<&str> {
    let mut words = line.trim_start().split([' ', '<', '(', '{', ';', ':']).filter(|word| !word.is_empty());
    let kind = words.find(|word| !matches!(*word, "pub" | "crate)" | "super)" | "crate" | "super" | "in"))?;
    matches!(kind, "struct" | "enum" | "trait" | "type" | "mod" | "union").then(|| words.next()).flatten()
}

fn absolute_paths(source: &Source) -> Vec<Finding> {
    if PATHS_FILES.contains(&source.name()) || IMAGE_MAKERS.iter().any(|house| source.path.starts_with(house)) {
        return Vec::new();
    }
    let of_line = |(number, line): (usize, &str)| {
        let path = literals(line).into_iter().find(|literal| is_device_path(literal))?.to_owned();
        let reason = format!("the absolute path {path:?} belongs into paths.rs, so that tests can run on a folder");
        Some(Finding::error(&source.path, number, reason))
    };
    source.product_lines().filter(|(_, line)| !line.trim_start().starts_with("#[")).filter_map(of_line).collect()
}

fn is_device_path(literal: &str) -> bool {
    let top = literal.strip_prefix('/').and_then(|rest| rest.split('/').next());
    // Text for a person may begin with a path; it goes on with words.
    top.is_some_and(|top| TOPS.contains(&top)) && !literal.contains(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<String> {
        check(&Source::from_text(path, text)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_file_is_long_before_it_is_too_long() {
        assert!(findings("agent/src/x.rs", &"\n".repeat(400)).is_empty());
        let long = findings("agent/src/x.rs", &"\n".repeat(401));
        assert_eq!(long, ["agent/src/x.rs:401: warning: the file has 401 lines: more than 400 is long"]);
        let too_long = findings("agent/src/x.rs", &"\n".repeat(601));
        assert_eq!(too_long, ["agent/src/x.rs:601: the file has 601 lines: 600 is the limit"]);
    }

    #[test]
    fn a_function_of_seventy_lines_is_the_longest() {
        let function = |body: usize| format!("\n    pub fn long() {{\n{}    }}\n", "        x;\n".repeat(body));
        assert!(findings("agent/src/x.rs", &function(68)).is_empty());
        assert_eq!(
            findings("agent/src/x.rs", &function(69)),
            ["agent/src/x.rs:2: `long` has 71 lines: 70 is the limit"]
        );
    }

    #[test]
    fn empty_words_are_found_in_names_of_files_and_types_and_nowhere_else() {
        let found =
            findings("agent/src/slot_utils.rs", "pub(crate) struct SlotManager<T> {\nmod helpers;\n// a helper\n");
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[1].starts_with("agent/src/slot_utils.rs:1: \"manager\" in `SlotManager`"), "{found:?}");
        assert!(found[2].starts_with("agent/src/slot_utils.rs:2: \"helper\" in `helpers`"), "{found:?}");
    }

    #[test]
    fn a_device_path_may_stand_only_in_paths_rs_and_in_tests() {
        let text = "const A: &str = \"/etc/bascule\";\n";
        assert_eq!(findings("agent/src/x.rs", text).len(), 1);
        assert_eq!(findings("bootloader-glue/src/x.rs", text).len(), 1);
        for fine in ["agent/src/paths.rs", "agent/src/x/tests.rs", "image-tools/src/disk.rs"] {
            assert!(findings(fine, text).is_empty(), "{fine}");
        }
        let other = "route(\"/v1/status\");\nformat!(\"/etc is on a read-only disk\");\n// \"/etc\"\n";
        assert!(findings("agent/src/x.rs", other).is_empty());
    }
}
