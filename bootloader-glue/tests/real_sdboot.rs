//! systemd-boot itself, in a virtual machine, makes the same choices as the simulator and leaves the same names behind.
//!
//! Each case is a boot partition of its own. Its kernels are programs that say which group's they are, with which words
//! they were started and what the loader tells about the count; then they fail, and the next start begins.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

mod sdboot_qemu;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use bascule_boot::sdboot::LOADER_CONF;
use bascule_boot::sdboot::names::Kind;
use bascule_boot::sdboot::partition::Kernel;
use bascule_boot::sdboot::simulator::{self, Listed, Renaming};
use bascule_core::Group;
use sdboot_qemu::Volume;

/// The kernel's words in every entry of ours.
const WORDS: &str = "root=PARTUUID=0 panic=-1 \"x y\"";

/// What there is on a boot partition, and how often the loader is started.
struct Case {
    kind: Kind,
    /// Names after `bascule-`, without suffix; a name that begins with `=` is taken as it stands.
    names: String,
    starts: usize,
    /// Files beside that, path and text; an empty path is none.
    files: Vec<(&'static str, String)>,
    /// Files that are taken away.
    lacks: Vec<&'static str>,
}

fn case(kind: Kind, names: &str, starts: usize) -> Case {
    Case { kind, names: names.to_owned(), starts, files: Vec::new(), lacks: Vec::new() }
}

impl Case {
    fn with(mut self, path: &'static str, text: impl Into<String>) -> Self {
        self.files.push((path, text.into()));
        self
    }

    fn without(mut self, path: &'static str) -> Self {
        self.lacks.push(path);
        self
    }
}

fn lives(kind: Kind) -> Vec<Case> {
    let rows = [
        // Committed, a whole trial, each of its states, rolled back.
        ("4-a 3-b.off", 2),
        ("4-a 5-b+3-0", 5),
        ("4-a 5-b+2-1", 1),
        ("4-a 5-b+0-3", 2),
        ("4-a 5-b", 2),
        ("4-a 5-b.off", 1),
        // Both counted, nothing but exhausted, nothing at all.
        ("4-a+2-0 5-b+3-0", 7),
        ("4-a+0-3 5-b+0-3", 2),
        ("4-a.off 5-b.off", 1),
        // A name that the next count would need is there already.
        ("4-a 5-b+3-0 5-b+2-1", 3),
        ("99-a 100-b+1-0", 2),
    ];
    rows.into_iter().map(|(names, starts)| case(kind, names, starts)).collect()
}

fn odd_names() -> Vec<Case> {
    let counters = [
        "+",
        "+x",
        "+3x",
        "+3-",
        "+3-x",
        "+-1",
        "+3-1-1",
        "+2147483648",
        "+4294967297-0",
        "+99999999999999999999",
        "+010",
        "+010-0",
        "+2 ",
        "+ 2",
        "+2147483647-2147483647",
        "+3-2147483648",
        "+10-0",
        "+09-01",
        "++3-0",
        "+1+3-0",
        "+0",
        "+00",
        "+0-0",
        "+３",
        "+0x1",
        "+1e0",
        "+2147483647",
        "-",
        "+3-0.conf",
    ];
    let mut cases: Vec<Case> = counters
        .iter()
        .map(|counter| {
            let mut case = case(Kind::Text, "4-a", 2);
            case.files.push(("entry", format!("5-b{counter}")));
            case
        })
        .collect();
    let rows = [
        "5-b 4-a",
        "10-a 9-b",
        "099-a 100-b",
        "099-a 99-b",
        "4-a 4-b",
        "4-a 4-b+3-0",
        "4-a+2-1 4-a",
        "4-a 5-b+2-1 5-b",
        "4-a 5-b 6-b+1-0",
        "4-a+3-0 3-b",
        "5-b+2",
        "5-b+0-3",
        "4-a 5-b+1-0 5-b+0-1",
        "99999999-a 5-b",
        "4-a 99999999999999999999-b",
        "4-a 5-b.5 5-b~6 5-b^7",
        "=BASCULE-4-A.CONF =BASCULE-5-B+3-0.CONF",
        "4-a =auto-9-b.conf =.bascule-9-b.conf =bascule-9-b.conf.bak =bascule-9-b",
        "4-a =zz-vendor+2-1.conf =bascule-recovery.conf =arch.conf",
        "=zz-vendor+2-1.conf =arch.conf",
    ];
    cases.extend(rows.into_iter().map(|names| case(Kind::Text, names, 2)));
    cases
}

fn odd_partitions() -> Vec<Case> {
    let text = Kind::Text;
    let foreign = "4-a 5-b+2-1 =zz-vendor.conf";
    let b = || kernel(Group::B);
    // It would be the first in the loader's order.
    let with_first = |configuration: &str| {
        let entry = "title Vendor\nsort-key aa\nlinux /linux-o\noptions quiet\n";
        case(text, foreign, 1).with("loader/entries/first.conf", entry).with("loader/loader.conf", configuration)
    };
    vec![
        case(text, foreign, 3).without("loader/loader.conf"),
        with_first(""),
        with_first(LOADER_CONF),
        with_first(&LOADER_CONF.replace("bascule-[0-9]*", "zz-*")),
        with_first(&LOADER_CONF.replace("bascule-[0-9]*", "no-such-*")),
        with_first(&format!("{LOADER_CONF}default\tbascule-4*\n")),
        with_first(&format!("{LOADER_CONF}#default zz-*\n")),
        with_first(&LOADER_CONF.replace("bascule-[0-9]*", "\"bascule-[0-9]*\"")),
        with_first(&LOADER_CONF.replace('\n', "\r\n")),
        case(text, "4-a 5-b+3-0", 1).without("linux-b"),
        // The loader finds out only when it has chosen and counted.
        case(text, "4-a 5-b+2-0", 3).with("linux-b", "no program"),
        case(text, "4-a 5-b", 1).with("linux-b", ""),
        case(text, "4-a", 1).with("loader/entries/bascule-5-b+3-0.conf", ""),
        case(text, "4-a", 1).with("loader/entries/bascule-5-b+3-0.conf", "title b\noptions bascule.group=b\n"),
        // What the loader sorts by before the names.
        case(text, "4-a", 1).with("loader/entries/bascule-5-b.conf", b().replace("sort-key bascule\n", "")),
        case(text, "5-a", 1).with("loader/entries/bascule-4-b.conf", b().replace("sort-key bascule", "sort-key aa")),
        case(text, "5-a", 1)
            .with("loader/entries/bascule-4-b.conf", b().replace("sort-key bascule", "sort-key \"zz\"")),
        case(text, "5-a", 1).with("loader/entries/bascule-4-b.conf", b() + "version 1\n"),
        case(text, "5-a", 1).with("loader/entries/bascule-4-b.conf", b() + "machine-id 1\n"),
        case(text, "5-a", 1).with("loader/entries/bascule-4-b+0-3.conf", b() + "version 9\n"),
        // The same key again, words on two lines, comments, other ends of lines.
        case(text, "4-a", 1).with("loader/entries/bascule-5-b.conf", format!("linux /linux-o\n{}", b())),
        case(text, "4-a", 1).with("loader/entries/bascule-5-b.conf", format!("{}options more\n", b())),
        case(text, "4-a", 1).with("loader/entries/bascule-5-b.conf", format!("#linux /x\n\n  # y\n\t{}", b())),
        case(text, "4-a", 1).with("loader/entries/bascule-5-b.conf", b().replace('\n', "\r\n")),
        case(text, "4-a", 1).with("loader/entries/bascule-5-b.conf", b().trim_end().to_owned()),
        case(text, "4-a", 1).with("loader/entries/bascule-5-b.conf", b().replace("linux /", "efi /")),
        case(Kind::Image, "4-a", 1).with("EFI/Linux/bascule-5-b.efi", "no program"),
        // Entries of both types.
        case(Kind::Image, "4-a 5-b+1-0", 2).with("loader/entries/bascule-6-b+1-0.conf", b()),
    ]
}

fn kernel(group: Group) -> String {
    Kernel::new("Bascule", &format!("/linux-{group}"), WORDS).unwrap().entry(group)
}

/// Lays a case out as a folder.
fn lay_out(case: &Case, tree: &Path, code: &[u8]) {
    for directory in ["loader/entries", "EFI/Linux"] {
        fs::create_dir_all(tree.join(directory)).unwrap();
    }
    fs::write(tree.join("loader/loader.conf"), LOADER_CONF).unwrap();
    for name in ["a", "b", "o"] {
        fs::write(tree.join(format!("linux-{name}")), sdboot_qemu::program(code, name, &[])).unwrap();
    }
    let entry = |name: &str| {
        let path = tree.join(case.kind.directory()).join(name);
        let of = Group::ALL.into_iter().find(|group| name.to_lowercase().contains(&format!("-{group}")));
        let bytes = match (of, case.kind) {
            (None, _) => b"title Vendor\nlinux /linux-o\noptions quiet\n".to_vec(),
            (Some(group), Kind::Text) => kernel(group).into_bytes(),
            (Some(group), Kind::Image) => {
                let words = format!("{WORDS} bascule.group={group}");
                let texts: [(&[u8; 8], &str); 3] = [
                    (b".osrel\0\0", "ID=bascule\nPRETTY_NAME=\"Bascule\"\n"),
                    (b".cmdline", &words),
                    (b".linux\0\0", "kernel"),
                ];
                sdboot_qemu::program(code, group.letter(), &texts)
            }
        };
        fs::write(path, bytes).unwrap();
    };
    for name in case.names.split(' ') {
        match name.strip_prefix('=') {
            Some(name) => entry(name),
            None if name.ends_with(".off") => entry(&format!("bascule-{name}")),
            None => entry(&format!("bascule-{name}{}", case.kind.suffix())),
        }
    }
    for (path, text) in &case.files {
        match *path {
            "entry" => entry(&format!("bascule-{text}{}", case.kind.suffix())),
            path => fs::write(tree.join(path), text).unwrap(),
        }
    }
    for path in &case.lacks {
        fs::remove_file(tree.join(path)).unwrap();
    }
}

fn names(tree: &Path) -> [Vec<String>; 2] {
    Kind::ALL.map(|kind| {
        let names = fs::read_dir(tree.join(kind.directory())).unwrap();
        let names: BTreeSet<String> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.into_iter().collect()
    })
}

/// What the started program has to say, where there is one that can run.
fn expected(tree: &Path, started: Option<&Listed>, before: &[Vec<String>; 2], after: &[Vec<String>; 2]) -> String {
    let Some(started) = started else { return String::new() };
    let name = started.group.map_or("o", Group::letter);
    if fs::read(tree.join(format!("linux-{name}"))).is_ok_and(|bytes| !bytes.starts_with(b"MZ")) {
        return String::new();
    }
    let kinds = Kind::ALL.into_iter().zip(before.iter().zip(after));
    let counted = kinds.into_iter().find_map(|(kind, (before, after))| {
        let new = after.iter().find(|name| !before.contains(name))?;
        Some(format!("\\{}\\{new}", kind.directory().replace('/', "\\")))
    });
    format!("<{name}|*|{}>", counted.unwrap_or_default())
}

/// The words are taken out, and are what stands in the entry.
fn without_words(line: &str, shown: &str) -> String {
    let parts: Vec<&str> = line.split('|').collect();
    let [name, words, path] = parts[..] else { return line.to_owned() };
    let group = name.trim_start_matches('<');
    match group {
        "o" => assert_eq!(words, "quiet", "{shown}"),
        _ if path.contains("Linux") || words.is_empty() => {}
        _ => assert!(words.starts_with(&format!("{WORDS} bascule.group={group}")), "{shown}: {line}"),
    }
    format!("{name}|*|{path}")
}

#[test]
fn claim_g15_systemd_boot_itself_chooses_and_counts_as_the_simulator_does() {
    sdboot_qemu::must_have_everything();
    let dir = tempfile::tempdir().unwrap();
    let code = sdboot_qemu::machine_code(dir.path(), "program.s");
    let cases: Vec<Case> = Kind::ALL.into_iter().flat_map(lives).chain(odd_names()).chain(odd_partitions()).collect();
    let tree = |number: usize| -> PathBuf { dir.path().join(format!("case-{number}")) };
    for (number, case) in cases.iter().enumerate() {
        lay_out(case, &tree(number), &code);
    }
    let volumes: Vec<Volume> =
        cases.iter().enumerate().map(|(number, case)| Volume { tree: tree(number), starts: case.starts }).collect();
    let began = Instant::now();
    let played = sdboot_qemu::play(dir.path(), &volumes);
    println!(
        "{} starts on {} partitions in {:?}",
        volumes.iter().map(|volume| volume.starts).sum::<usize>(),
        cases.len(),
        began.elapsed()
    );
    let mut faults = Vec::new();
    for (number, (case, (said, left))) in cases.iter().zip(&played).enumerate() {
        let shown = format!("case {number}: {} {:?} without {:?}", case.names, case.files, case.lacks);
        let tree = tree(number);
        for (start, said) in said.iter().enumerate() {
            let before = names(&tree);
            let simulated = simulator::start(&tree, Renaming::Works).unwrap();
            let expected = expected(&tree, simulated.started.as_ref(), &before, &names(&tree));
            let said = without_words(said, &shown);
            if said != expected {
                faults.push(format!("{shown}\n  start {start}: the loader {said:?}, the simulator {expected:?}"));
            }
        }
        if *left != names(&tree) {
            faults.push(format!("{shown}\n  the loader left {left:?}, the simulator {:?}", names(&tree)));
        }
    }
    assert!(faults.is_empty(), "{} differences:\n{}", faults.len(), faults.join("\n"));
}
