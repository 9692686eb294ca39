//! The script we ship makes the same choices as the simulator: same marker lines, same values saved.
//!
//! It runs in `sh` with U-Boot's commands replaced by functions. That holds its logic against the simulator, not U-Boot's
//! own shell: what differs between the two shells is only seen in a machine.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it fails"
)]

use std::io::Write as _;
use std::process::{Command, Stdio};

use bascule_boot::uboot::env::{Variables, crc32, redundant};
use bascule_boot::uboot::simulator::{self, Ending, Saving};
use bascule_boot::uboot::{FALLBACK_LEN, SCRIPT};
use bascule_core::Group;

const SIZE: usize = 1024;

/// U-Boot's commands, as far as the script needs them. `case_*` says what they find.
const COMMANDS: &str = r#"
setenv() {
  if test $# -lt 2; then unset "$1"; else name=$1; shift; eval "$name=\$*"; fi
}
saveenv() {
  if test "$case_saves" = yes; then echo "SAVED $bascule_a $bascule_b"; else return 1; fi
}
load() {
  case "$2 $4" in
    *bascule-fallback) test -n "$case_fallback_size" && filesize=$case_fallback_size ;;
    *:3\ /boot/vmlinuz) test "$case_loads_a" = yes ;;
    *:4\ /boot/vmlinuz) test "$case_loads_b" = yes ;;
    *:1\ /uboot.env) test -n "$case_file" && filesize=4000 ;;
    *) return 1 ;;
  esac
}
env() {
  if test "$1 $2 $3 $4" = "import -c 0x1000 4000"; then
    test "$case_file" != torn && eval "$5=\$case_file"
    return
  fi
  test "$1 $2 $3 $4" = "import -c 0x1000 200" || return 1
  bascule_fallback=$case_fallback
  bascule_refused=$case_refused
}
part() { bascule_partuuid=uuid; }
booti() { echo "STARTED $bootargs"; exit 0; }
bootz() { return 1; }
zboot() { return 1; }
devtype=mmc; devnum=0; distro_bootpart=1; prefix=/; kernel_addr_r=0x1000; fdtcontroladdr=0x2000; bascule_args=console=ttyS0
"#;

#[derive(Debug, Clone)]
struct Case {
    order: &'static str,
    values: [&'static str; 2],
    fallback: [&'static str; 2],
    loads: [bool; 2],
    saving: Saving,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let values = ["good", "9", "1", "0", "bad", "2 ", ""];
    for order in ["a b", "b a", "b  a", ""] {
        for (a, b) in values.iter().flat_map(|a| values.iter().map(move |b| (*a, *b))) {
            for fallback in [["", ""], ["a", ""], ["b", "a"], ["b", "b"], ["x", "a"], ["", "b"]] {
                for loads in [[true, true], [false, true], [true, false], [false, false]] {
                    for saving in [Saving::Works, Saving::Fails] {
                        cases.push(Case { order, values: [a, b], fallback, loads, saving });
                    }
                }
            }
        }
    }
    cases
}

fn in_shell(case: &Case) -> String {
    let yes = |is: bool| if is { "yes" } else { "no" };
    let [a, b] = case.values;
    let [fallback, refused] = case.fallback;
    format!(
        "( setenv bascule_order '{}'; setenv bascule_a '{a}'; setenv bascule_b '{b}'; case_fallback='{fallback}'\n\
         case_refused='{refused}'; case_fallback_size=200; case_loads_a={}; case_loads_b={}; case_saves={}; script )\n\
         echo END\n",
        case.order,
        yes(case.loads[0]),
        yes(case.loads[1]),
        yes(case.saving == Saving::Works)
    )
}

fn environment(entries: &[(&str, &str)]) -> Vec<u8> {
    let text: Vec<String> = entries.iter().map(|(name, value)| format!("{name}={value}\0")).collect();
    text.concat().into_bytes()
}

/// What the simulator makes of a case, in the words of the shell.
fn simulated(case: &Case) -> Vec<String> {
    let [a, b] = case.values;
    let mut data = environment(&[("bascule_order", case.order), ("bascule_a", a), ("bascule_b", b)]);
    data.resize(SIZE - 5, 0);
    let copy = [&crc32(&data).to_le_bytes()[..], &[1], &data].concat();
    let mut data = environment(&[("bascule_fallback", case.fallback[0]), ("bascule_refused", case.fallback[1])]);
    data.resize(FALLBACK_LEN - 5, 0);
    let fallback = [&crc32(&data).to_le_bytes()[..], &[0], &data].concat();
    let loads = |group: Group| case.loads[usize::from(group == Group::B)];
    let seen = simulator::start([Some(&copy), None], SIZE, Some(&fallback), loads, case.saving);
    let mut lines = seen.said;
    match seen.ending {
        Ending::Started(group) => lines.push(format!("STARTED {group}")),
        Ending::Recovery => lines.push("bascule: recovery, no group could be started".into()),
    }
    // Of two saves the second one lies where the first copy was.
    let saved = [0, 1].map(|place| seen.copies[place].clone().filter(|bytes| *bytes != copy));
    let newest = saved[0].as_ref().or(saved[1].as_ref());
    if let Some(bytes) = newest {
        let variables = Variables::parse(redundant(bytes).unwrap().1).unwrap();
        let value = |name: &str| String::from_utf8(variables.get(name).unwrap_or_default()).unwrap();
        lines.push(format!("SAVED {} {}", value("bascule_a"), value("bascule_b")));
    }
    lines
}

/// The lines of the shell in the order of [`simulated`]: the last save stands at the end.
fn tidied(output: &str) -> Vec<String> {
    let is_save = |line: &&str| line.starts_with("SAVED ");
    let started = |line: &str| {
        let group = line.split("bascule.group=").nth(1).and_then(|rest| rest.get(..1)).unwrap();
        format!("STARTED {group}")
    };
    let lines = output.lines().filter(|line| !is_save(line));
    let lines = lines.map(|line| if line.starts_with("STARTED ") { started(line) } else { line.to_owned() });
    lines.chain(output.lines().rfind(is_save).map(str::to_owned)).collect()
}

fn run(script: &str) -> String {
    let mut shell = Command::new("sh").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = shell.stdin.take().unwrap();
    let text = script.to_owned();
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
    let output = shell.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_script_and_the_simulator_make_the_same_choice_in_every_case() {
    let cases = cases();
    let mut script = format!("{COMMANDS}\nscript() {{\n{SCRIPT}\n}}\n");
    cases.iter().for_each(|case| script.push_str(&in_shell(case)));
    let output = run(&script);
    let seen: Vec<&str> = output.split_terminator("END\n").collect();
    assert_eq!(seen.len(), cases.len());
    for (case, seen) in cases.iter().zip(seen) {
        assert_eq!(tidied(seen), simulated(case), "{case:?}");
    }
}

#[test]
fn the_system_is_told_its_group_and_its_trial() {
    let case =
        |a, b| Case { order: "b a", values: [a, b], fallback: ["a", ""], loads: [true; 2], saving: Saving::Works };
    let run = |case: Case| run(&format!("{COMMANDS}\nscript() {{\n{SCRIPT}\n}}\n{}", in_shell(&case)));
    let trial = run(case("good", "3"));
    assert!(
        trial.contains("root=PARTUUID=uuid rootwait panic=-1 quiet bascule.group=b bascule.trial=2 console=ttyS0\n")
    );
    let good = run(case("good", "good"));
    assert!(good.contains("bascule.group=b bascule.trial= console=ttyS0\n"), "{good}");
}

#[test]
fn a_count_that_the_file_of_the_environment_does_not_hold_is_none() {
    let case =
        Case { order: "b a", values: ["good", "3"], fallback: ["a", ""], loads: [true; 2], saving: Saving::Works };
    // No such file: the environment is elsewhere, where U-Boot notices a write that failed.
    for (file, is_counted) in [("", true), ("2", true), ("3", false), ("torn", false)] {
        let output = run(&format!("{COMMANDS}\nscript() {{\n{SCRIPT}\n}}\ncase_file='{file}'\n{}", in_shell(&case)));
        let said = if is_counted { "trying group b, 2 tries left" } else { "b, its try cannot be counted" };
        let started = if is_counted { "bascule.group=b bascule.trial=2" } else { "bascule.group=a bascule.trial= " };
        assert!(output.contains(said) && output.contains(started), "{file}: {output}");
    }
}

#[test]
fn a_fallback_of_another_length_is_not_read() {
    let case = Case { order: "", values: ["", ""], fallback: ["b", ""], loads: [true; 2], saving: Saving::Works };
    for size in ["", "1ff", "201", "0"] {
        let text = in_shell(&case).replace("case_fallback_size=200", &format!("case_fallback_size='{size}'"));
        let output = run(&format!("{COMMANDS}\nscript() {{\n{SCRIPT}\n}}\n{text}"));
        assert!(output.contains("no fallback, trying what loads") && output.contains("bascule.group=a"), "{output}");
    }
}

#[test]
fn nothing_but_our_variables_is_left_to_be_saved() {
    // Shell variables of U-Boot are assigned as NAME=VALUE; what is set with `setenv` is either ours or taken away again.
    for line in SCRIPT.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let Some(name) = line.strip_prefix("setenv ").and_then(|rest| rest.split(' ').next()) else { continue };
        let taken_away = SCRIPT.lines().any(|line| line.trim() == format!("setenv {name}"));
        let ours = name == "bascule_${bascule_group}" || name == "bootargs";
        assert!(taken_away || ours, "{line}");
    }
    let assigned: Vec<&str> =
        SCRIPT.lines().filter_map(|line| line.trim().split_once('=').map(|(name, _)| name)).collect();
    for name in assigned.iter().filter(|name| name.starts_with("bascule_") && !name.contains(' ')) {
        assert!(
            SCRIPT.lines().any(|line| line == format!("setenv {name}")),
            "{name} may be shadowed by the environment"
        );
    }
}
