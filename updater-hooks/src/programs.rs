//! Which files of the two folders are run.
//!
//! Hooks and health checks are found in a folder of the image's maker below `/usr/lib` and in one of the device's owner
//! below `/etc`. The rules, the same for both:
//!
//! - A file of the owner replaces the image maker's file of the same name. A symbolic link to `/dev/null` masks it.
//! - They run in the order of their names, byte by byte, whichever folder they come from.
//! - A hook's name is two digits, a hyphen and then 1 to 60 of `A-Z a-z 0-9 . _ -`; a health check's is 1 to 60 of
//!   those and starts with a letter or digit.
//! - Names that begin with a dot or end like a leftover (`~`, `.bak`, `.swp`, `.rpmnew`, `.rpmorig`, `.rpmsave`, or hold
//!   `.dpkg-`) are passed over. Every other file that cannot be run is a *fault*, and a fault counts as a failure: a
//!   guard that silently did not run would be no guard.
//! - What is run is a regular file with an execute bit, owned by root or by who runs the agent, writable by nobody else.
//!   It is a script whose first line names its interpreter (`#!`), or an ELF program of the same kind as the agent: the
//!   C library would hand anything else to the shell, line by line.
//! - Symbolic links are followed with the given root as `/`: in a prepared slot mounted somewhere, a link never leads
//!   out of that slot. Links through `/proc` are refused.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;

use crate::error::HooksError;
use crate::output::neutralise;
use crate::paths;

/// How many files one folder may hold.
pub const ENTRY_LIMIT: usize = 256;
/// How long a name may be, without the digits of a hook.
const NAME_LIMIT: usize = 60;
/// How often a path is resolved again when something was renamed meanwhile.
const RESOLVE_ATTEMPTS: u32 = 16;
/// How much of an ELF file says what machine it is for: the head up to and with `e_machine`, in bytes.
const ELF_HEAD: usize = 20;

/// One file that is to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Its file name, harmless to print.
    pub name: String,
    /// Where it was found, below the root; a symbolic link is not followed.
    pub found: PathBuf,
    /// The file to run, every symbolic link resolved; or why it cannot be run.
    pub run: Result<PathBuf, String>,
}

/// Which names are programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameRule {
    /// `NN-name`: the digits are the order.
    Numbered,
    /// `name`.
    Plain,
}

impl NameRule {
    fn accepts(self, name: &str) -> bool {
        let rest = match (self, name.as_bytes()) {
            (NameRule::Plain, _) => Some(name),
            (NameRule::Numbered, [b'0'..=b'9', b'0'..=b'9', b'-', ..]) => name.get(3..),
            (NameRule::Numbered, _) => None,
        };
        rest.is_some_and(|rest| {
            (1..=NAME_LIMIT).contains(&rest.len())
                && rest.starts_with(|first: char| first.is_ascii_alphanumeric())
                && rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
        })
    }

    fn form(self) -> &'static str {
        match self {
            NameRule::Numbered => "its name is not two digits, a hyphen and up to 60 letters, digits, dots or hyphens",
            NameRule::Plain => "its name is not up to 60 letters, digits, dots or hyphens",
        }
    }
}

/// Lists the programs of the two folders below `root`, in the order they run in. A folder that is not there is empty.
///
/// # Errors
/// [`HooksError::List`] when a folder cannot be read, [`HooksError::TooMany`] when one holds too many files.
pub fn find(root: &Path, vendor: &Path, local: &Path, rule: NameRule) -> Result<Vec<Program>, HooksError> {
    let mut found = BTreeMap::new();
    for folder in [vendor, local] {
        list(root, folder, rule, &mut found)?;
    }
    Ok(found.into_values().flatten().collect())
}

/// Puts the files of one folder over what was found before; a mask puts nothing over it.
fn list(
    root: &Path,
    folder: &Path,
    rule: NameRule,
    found: &mut BTreeMap<Vec<u8>, Option<Program>>,
) -> Result<(), HooksError> {
    let failed = |source| HooksError::List { path: folder.to_owned(), source };
    let Some(real) = resolve(root, folder).map(Some).or_else(absent).map_err(failed)? else { return Ok(()) };
    let entries = fs::read_dir(&real.path).map_err(failed)?;
    for (count, entry) in entries.enumerate() {
        if count >= ENTRY_LIMIT {
            return Err(HooksError::TooMany { path: folder.to_owned(), limit: ENTRY_LIMIT });
        }
        let name = entry.map_err(failed)?.file_name();
        if !is_leftover(&name) {
            let masked = fs::read_link(real.path.join(&name)).is_ok_and(|target| target == Path::new(paths::MASK));
            let program = (!masked).then(|| look_at(root, folder, &name, rule));
            found.insert(name.as_encoded_bytes().to_vec(), program);
        }
    }
    Ok(())
}

fn absent(error: io::Error) -> io::Result<Option<Resolved>> {
    if error.kind() == io::ErrorKind::NotFound { Ok(None) } else { Err(error) }
}

fn is_leftover(name: &OsStr) -> bool {
    const ENDINGS: [&str; 6] = ["~", ".bak", ".swp", ".rpmnew", ".rpmorig", ".rpmsave"];
    let name = name.to_string_lossy();
    name.starts_with('.') || name.contains(".dpkg-") || ENDINGS.iter().any(|ending| name.ends_with(ending))
}

fn look_at(root: &Path, folder: &Path, name: &OsStr, rule: NameRule) -> Program {
    let shown = neutralise(&name.to_string_lossy());
    let run = if rule.accepts(&shown) { runnable(root, &folder.join(name)) } else { Err(rule.form().to_owned()) };
    Program { name: shown, found: folder.join(name), run }
}

fn runnable(root: &Path, path: &Path) -> Result<PathBuf, String> {
    let resolved = resolve(root, path).map_err(|error| error.to_string())?;
    let metadata = &resolved.metadata;
    let ours = [0, nix::unistd::geteuid().as_raw()];
    if !metadata.is_file() {
        Err("it is not a regular file".to_owned())
    } else if metadata.mode() & 0o111 == 0 {
        Err("it is not executable".to_owned())
    } else if !ours.contains(&metadata.uid()) {
        Err(format!("it belongs to user {}, who is not trusted here", metadata.uid()))
    } else if metadata.mode() & 0o022 != 0 {
        Err("others than its owner may write to it".to_owned())
    } else if !has_fitting_head(&resolved.path).map_err(|error| error.to_string())? {
        Err("it is neither a script that begins with #! nor a program for this machine".to_owned())
    } else {
        Ok(resolved.path)
    }
}

/// Whether the file begins as something that the kernel itself can start here.
fn has_fitting_head(path: &Path) -> io::Result<bool> {
    let head = head_of(path)?;
    let kind = elf_kind(&head);
    Ok(head.starts_with(b"#!") || (kind.is_some() && kind == elf_kind(&head_of(Path::new(paths::OURSELVES))?)))
}

fn head_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(ELF_HEAD);
    File::open(path)?.take(ELF_HEAD as u64).read_to_end(&mut head)?;
    Ok(head)
}

/// Class, byte order and machine of an ELF file: bytes 4, 5, 18 and 19 of its head.
fn elf_kind(head: &[u8]) -> Option<[u8; 4]> {
    match head {
        [0x7f, b'E', b'L', b'F', class, order, .., low, high] if head.len() == ELF_HEAD => {
            Some([*class, *order, *low, *high])
        }
        _ => None,
    }
}

/// A path below a root, followed to its end.
struct Resolved {
    path: PathBuf,
    metadata: fs::Metadata,
}

/// Follows `path` with `root` as `/`, symbolic links included.
fn resolve(root: &Path, path: &Path) -> io::Result<Resolved> {
    let anchor = open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let file = File::from(open_below(&anchor, path, how)?);
    let metadata = file.metadata()?;
    let path = fs::read_link(Path::new(paths::OPEN_FILES).join(file.as_raw_fd().to_string()))?;
    Ok(Resolved { path, metadata })
}

/// The kernel answers EAGAIN when a rename anywhere could have let the path escape: that passes.
fn open_below(anchor: &OwnedFd, path: &Path, how: OpenHow) -> io::Result<OwnedFd> {
    for _ in 1..RESOLVE_ATTEMPTS {
        match openat2(anchor, path, how) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            result => return Ok(result?),
        }
    }
    Ok(openat2(anchor, path, how)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    struct Root(tempfile::TempDir);

    impl Root {
        fn new() -> Self {
            let root = Root(tempfile::tempdir().expect("a folder"));
            fs::create_dir_all(root.0.path().join("usr/d")).expect("a folder");
            fs::create_dir_all(root.0.path().join("etc/d")).expect("a folder");
            root
        }

        fn file(&self, path: &str, mode: u32) -> &Self {
            let path = self.0.path().join(path);
            fs::write(&path, "#!/bin/sh\n").expect("a file");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("its mode");
            self
        }

        fn link(&self, path: &str, target: &str) -> &Self {
            symlink(target, self.0.path().join(path)).expect("a link");
            self
        }

        fn find(&self, rule: NameRule) -> Result<Vec<Program>, HooksError> {
            find(self.0.path(), Path::new("usr/d"), Path::new("etc/d"), rule)
        }

        /// Name and, below the root, what is run; `!` and the fault otherwise.
        fn listing(&self) -> Vec<String> {
            let shown = |program: Program| match program.run {
                Ok(path) => {
                    let root = self.0.path().canonicalize().expect("the root");
                    format!("{} {}", program.name, path.strip_prefix(root).expect("below the root").display())
                }
                Err(fault) => format!("{} ! {fault}", program.name),
            };
            self.find(NameRule::Numbered).expect("a listing").into_iter().map(shown).collect()
        }
    }

    #[test]
    fn the_owner_replaces_and_masks_and_the_order_is_by_name() {
        let root = Root::new();
        root.file("usr/d/20-b", 0o755).file("usr/d/10-a", 0o755).file("usr/d/30-c", 0o755);
        root.file("etc/d/20-b", 0o700).file("etc/d/15-x.sh", 0o755).link("etc/d/30-c", "/dev/null");
        assert_eq!(root.listing(), ["10-a usr/d/10-a", "15-x.sh etc/d/15-x.sh", "20-b etc/d/20-b"]);
    }

    #[test]
    fn missing_folders_are_empty() {
        let root = tempfile::tempdir().expect("a folder");
        let found = find(root.path(), Path::new("usr/d"), Path::new("etc/d"), NameRule::Plain);
        assert!(found.is_ok_and(|found| found.is_empty()));
    }

    #[test]
    fn what_cannot_or_must_not_be_run_is_a_fault_and_leftovers_are_not() {
        let root = Root::new();
        root.file("usr/d/10-plain", 0o644).file("usr/d/11-open", 0o777).file("usr/d/12-group", 0o775);
        root.file("usr/d/no-digits", 0o755).file("usr/d/13-", 0o755).link("usr/d/14-lost", "nowhere");
        root.file("usr/d/10-plain.dpkg-old", 0o755).file("usr/d/.keep", 0o644).file("usr/d/10-plain~", 0o755);
        fs::create_dir(root.0.path().join("usr/d/15-folder")).expect("a folder");
        let form = NameRule::Numbered.form();
        let mut wanted = vec![
            "10-plain ! it is not executable".to_owned(),
            "11-open ! others than its owner may write to it".to_owned(),
            "12-group ! others than its owner may write to it".to_owned(),
            format!("13- ! {form}"),
            "14-lost ! No such file or directory (os error 2)".to_owned(),
            "15-folder ! it is not a regular file".to_owned(),
            format!("no-digits ! {form}"),
        ];
        wanted[4] = root.listing()[4].clone();
        assert!(wanted[4].starts_with("14-lost ! "));
        assert_eq!(root.listing(), wanted);
    }

    #[test]
    fn what_the_c_library_would_hand_to_the_shell_is_a_fault() {
        let root = Root::new();
        let contents: [(&str, &[u8]); 4] = [
            ("10-foreign", b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x41\x54\nexit 0\n"),
            ("11-cut", b"\x7fELF\x02\x01\x01"),
            ("12-lines", b"exit 0\n"),
            ("13-empty", b""),
        ];
        for (name, content) in contents {
            root.file(&format!("usr/d/{name}"), 0o755);
            fs::write(root.0.path().join("usr/d").join(name), content).expect("a file");
        }
        fs::copy(std::env::current_exe().expect("ourselves"), root.0.path().join("usr/d/14-ours")).expect("a copy");
        let listing = root.listing();
        assert!(listing[..4].iter().all(|line| line.contains("! it is neither a script")), "{listing:?}");
        assert_eq!(listing[4..], ["14-ours usr/d/14-ours"]);
    }

    #[test]
    fn a_name_with_an_escape_sequence_is_a_fault_and_harmless_to_print() {
        let root = Root::new();
        root.file("usr/d/10-\u{1b}[2J", 0o755);
        assert_eq!(root.listing(), [format!("10-␛[2J ! {}", NameRule::Numbered.form())]);
    }

    #[test]
    fn a_link_is_followed_with_the_root_as_slash_and_never_out_of_it() {
        let root = Root::new();
        root.file("usr/tool", 0o755).link("usr/d/10-in", "/usr/tool").link("usr/d/11-up", "../../../../../usr/tool");
        root.link("usr/d/12-out", "/bin/sh");
        let listing = root.listing();
        assert_eq!(listing[..2], ["10-in usr/tool", "11-up usr/tool"]);
        assert!(listing[2].starts_with("12-out ! "), "the host's shell was reached: {listing:?}");
    }

    #[test]
    fn a_folder_with_too_many_files_is_refused() {
        let root = Root::new();
        for index in 0..=ENTRY_LIMIT {
            root.file(&format!("usr/d/10-{index}"), 0o755);
        }
        assert_eq!(root.find(NameRule::Numbered).map_err(|error| error.code()), Err("hooks.too-many"));
    }

    #[test]
    fn a_folder_that_is_a_file_is_an_error_and_not_an_empty_folder() {
        let root = Root::new();
        fs::remove_dir(root.0.path().join("etc/d")).expect("an empty folder");
        root.file("etc/d", 0o644);
        assert_eq!(root.find(NameRule::Plain).map_err(|error| error.code()), Err("hooks.unreadable"));
    }
}
