//! A machine that runs systemd-boot once after the other, each time on the next boot partition of one disk.
//!
//! GRUB is the driver: it starts the loader from a partition, gets the processor back when the entry's program fails, and
//! goes on. What it has done stands in a file, so it goes on after a restart too. Our programs speak on a port of their
//! own, so that nothing of the firmware's or the loader's is mixed in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bascule_boot::disk::rehearsal::DiskFile;

const FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const FIRMWARE_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
const GRUB_MODULES: &str = "/usr/lib/grub/x86_64-efi/normal.mod";
const LOADER: &str = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi";
/// How long the machine may take, in seconds.
const LIMIT_S: &str = "300";
/// Small ones: the firmware looks through a whole allocation table before its first write.
const VOLUME_BYTES: u64 = 2 << 20;
const DRIVER_BYTES: u64 = 16 << 20;
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdboot_qemu");

/// One boot partition, and how often the loader is started on it.
pub(crate) struct Volume {
    /// The folder that holds its files.
    pub(crate) tree: PathBuf,
    pub(crate) starts: usize,
}

/// Fails where something is not installed, and says what installs it.
pub(crate) fn must_have_everything() {
    let tools = [
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("grub-mkimage", "grub-common"),
        ("grub-editenv", "grub-common"),
        ("mformat", "mtools"),
        ("mcopy", "mtools"),
        ("mdir", "mtools"),
        ("as", "binutils"),
        ("objcopy", "binutils"),
    ];
    let files = [
        (FIRMWARE, "ovmf"),
        (FIRMWARE_VARIABLES, "ovmf"),
        (GRUB_MODULES, "grub-efi-amd64-bin"),
        (LOADER, "systemd-boot-efi"),
    ];
    let has =
        |tool: &str| Command::new("sh").args(["-c", &format!("command -v {tool}")]).output().unwrap().status.success();
    let missing = tools.into_iter().find(|(tool, _)| !has(tool));
    if let Some((what, package)) = missing.or_else(|| files.into_iter().find(|(file, _)| !Path::new(file).exists())) {
        panic!("{what} of the Debian package {package} is missing: `cargo xtask setup` installs it");
    }
}

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The machine's code of a source beside this file.
pub(crate) fn machine_code(dir: &Path, source: &str) -> Vec<u8> {
    let (object, code) = (dir.join("object.o"), dir.join("code.bin"));
    run(Command::new("as").args(["--64", "-o"]).arg(&object).arg(Path::new(SOURCES).join(source)));
    run(Command::new("objcopy").args(["-O", "binary", "-j", ".text"]).arg(&object).arg(&code));
    fs::read(code).unwrap()
}

/// An EFI program that says this name and fails; with sections of text it is a unified kernel image.
pub(crate) fn program(code: &[u8], name: &str, texts: &[(&[u8; 8], &str)]) -> Vec<u8> {
    const HEADERS: usize = 0x400;
    const PAGE: usize = 0x1000;
    let name = name.encode_utf16().chain([0]).flat_map(u16::to_le_bytes);
    let code: Vec<u8> = code.iter().copied().chain(name).collect();
    let mut sections: Vec<(&[u8; 8], &[u8])> = vec![(b".text\0\0\0", &code)];
    sections.extend(texts.iter().map(|(name, text)| (*name, text.as_bytes())));
    let mut bytes = vec![0_u8; HEADERS];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    let number = |number: usize| u32::try_from(number).unwrap().to_le_bytes();
    put(0, b"MZ");
    put(0x3c, &[0x80]);
    put(0x80, b"PE\0\0\x64\x86");
    put(0x86, &[u8::try_from(sections.len()).unwrap()]);
    // The length of the optional header; executable, any address.
    put(0x94, &[0xf0, 0, 0x22, 0]);
    // PE32+, the entry, where it lies, alignments, a subsystem of EFI applications, sixteen empty directories.
    put(0x98, &[0x0b, 2]);
    put(0x98 + 16, &number(PAGE));
    put(0x98 + 20, &number(PAGE));
    put(0x98 + 32, &number(PAGE));
    put(0x98 + 36, &number(0x200));
    put(0x98 + 60, &number(HEADERS));
    put(0x98 + 68, &[10]);
    put(0x98 + 108, &[16]);
    let (mut place, mut body) = (PAGE, Vec::new());
    for (index, (name, data)) in sections.iter().enumerate() {
        let at = 0x98 + 0xf0 + index * 40;
        put(at, *name);
        put(at + 8, &number(data.len()));
        put(at + 12, &number(place));
        put(at + 16, &number(data.len().next_multiple_of(0x200)));
        put(at + 20, &number(HEADERS + body.len()));
        // Code, readable, writable, executable.
        put(at + 36, &0xe000_0020_u32.to_le_bytes());
        body.extend_from_slice(data);
        body.resize(body.len().next_multiple_of(0x200), 0);
        place += data.len().next_multiple_of(PAGE);
    }
    put(0x98 + 56, &number(place));
    bytes.extend(body);
    bytes
}

/// What our programs said at each start on one volume, and the names in both directories of entries afterwards.
pub(crate) type Played = (Vec<String>, [Vec<String>; 2]);

/// Runs them all, in two machines at once.
pub(crate) fn play(dir: &Path, volumes: &[Volume]) -> Vec<Played> {
    let halves = volumes.split_at(volumes.len() / 2);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| play_in_one(&dir.join("first"), halves.0));
        let second = play_in_one(&dir.join("second"), halves.1);
        first.join().unwrap().into_iter().chain(second).collect()
    })
}

fn play_in_one(dir: &Path, volumes: &[Volume]) -> Vec<Played> {
    fs::create_dir(dir).unwrap();
    let starts: Vec<usize> =
        volumes.iter().enumerate().flat_map(|(number, volume)| vec![number; volume.starts]).collect();
    let (image, places) = disk(dir, volumes, &starts);
    let said = said_by(dir, &image);
    let lines: Vec<&str> = said.split('\n').skip(1).collect();
    assert_eq!(lines.len(), starts.len() + 1, "the machine did not come to its end:\n{said}\n{}", console(dir));
    let mut played = Vec::new();
    for (number, place) in places.iter().enumerate().map(|(number, place)| (number, place.as_str())) {
        let of = starts.iter().zip(&lines).filter(|(of, _)| **of == number);
        let names = ["loader/entries", "EFI/Linux"].map(|directory| names(place, directory));
        played.push((of.map(|(_, line)| (*line).to_owned()).collect(), names));
    }
    played
}

fn console(dir: &Path) -> String {
    String::from_utf8_lossy(&fs::read(dir.join("console.log")).unwrap_or_default()).into_owned()
}

fn names(place: &str, directory: &str) -> Vec<String> {
    let listed = Command::new("mdir").args(["-b", "-a", "-i", place, &format!("::{directory}")]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let name = |line: &str| line.rsplit('/').next().filter(|name| !name.is_empty()).map(str::to_owned);
    let mut names: Vec<String> = listed.lines().filter_map(name).collect();
    names.sort();
    names
}

/// Starts the loader on the partition of each start in turn, one line on the programs' port before each.
fn driver(starts: &[usize]) -> String {
    let mut text = "chainloader /driver/impatient.efi\nboot\nload_env -f $prefix/state next\n".to_owned();
    for (number, volume) in starts.iter().enumerate() {
        // GRUB tells the loader that it comes from the partition `root`, whatever the path says.
        text.push_str(&format!(
            "if [ \"$next\" = {number} ]; then\n  set next={}\n  save_env -f $prefix/state next\n  outb 0xe9 0x0a\n  \
             set root=hd0,gpt1\n  chainloader /driver/forget.efi\n  boot\n  set root=hd0,gpt{}\n  chainloader /systemd-boot.efi\n  boot\nfi\n",
            number + 1,
            volume + 2
        ));
    }
    text + "outb 0xe9 0x0a\nhalt\n"
}

/// The disk's image, and where on it each volume lies, as mtools want it.
fn disk(dir: &Path, volumes: &[Volume], starts: &[usize]) -> (PathBuf, Vec<String>) {
    let tree = dir.join("driver-tree");
    fs::create_dir_all(tree.join("EFI/BOOT")).unwrap();
    fs::create_dir_all(tree.join("driver")).unwrap();
    fs::write(tree.join("driver/grub.cfg"), driver(starts)).unwrap();
    for name in ["impatient", "forget"] {
        let program = program(&machine_code(dir, &format!("{name}.s")), "", &[]);
        fs::write(tree.join(format!("driver/{name}.efi")), program).unwrap();
    }
    run(Command::new("grub-editenv").arg(tree.join("driver/state")).arg("create"));
    run(Command::new("grub-editenv").arg(tree.join("driver/state")).args(["set", "next=0"]));
    let early = dir.join("early.cfg");
    fs::write(&early, "set prefix=($root)/driver\nnormal $prefix/grub.cfg\n").unwrap();
    run(Command::new("grub-mkimage")
        .args(["-O", "x86_64-efi", "-p", "(,gpt1)/driver", "-c"])
        .arg(early)
        .arg("-o")
        .arg(tree.join("EFI/BOOT/BOOTX64.EFI"))
        .args("part_gpt fat normal configfile boot loadenv test chain iorw halt".split(' ')));
    let mut disk = DiskFile::of_device("disk", 1 << 20);
    disk.partitions = vec![("driver".to_owned(), DRIVER_BYTES)];
    disk.partitions.extend((0..volumes.len()).map(|number| (format!("volume-{number}"), VOLUME_BYTES)));
    disk.lay_out(dir).unwrap();
    let image = disk.image(dir);
    mark_as_efi_system_partition(&image);
    let place = |number: usize| {
        let start = fs::read_to_string(dir.join(format!("sys/devices/disk/disk{number}/start"))).unwrap();
        format!("{}@@{}", image.display(), start.trim().parse::<u64>().unwrap() * 512)
    };
    fill(&place(1), DRIVER_BYTES, &tree);
    for (index, volume) in volumes.iter().enumerate() {
        fs::copy(LOADER, volume.tree.join("systemd-boot.efi")).unwrap();
        fill(&place(index + 2), VOLUME_BYTES, &volume.tree);
        fs::remove_file(volume.tree.join("systemd-boot.efi")).unwrap();
    }
    (image.clone(), (0..volumes.len()).map(|index| place(index + 2)).collect())
}

fn fill(place: &str, length: u64, tree: &Path) {
    run(Command::new("mformat")
        .args(["-i", place, "-T", &(length / 512).to_string(), "-h", "16", "-s", "63"])
        .arg("::"));
    let files: Vec<PathBuf> = fs::read_dir(tree).unwrap().map(|entry| entry.unwrap().path()).collect();
    run(Command::new("mcopy").args(["-s", "-i", place]).args(files).arg("::"));
}

fn mark_as_efi_system_partition(image: &Path) {
    let mut disk = gpt::GptConfig::new().writable(true).open(image).unwrap();
    let mut partitions = disk.partitions().clone();
    partitions.get_mut(&1).unwrap().part_type_guid = gpt::partition_types::EFI;
    disk.update_partitions(partitions).unwrap();
    disk.write().unwrap();
}

/// What is said on the programs' port until the machine powers itself off.
fn said_by(dir: &Path, image: &Path) -> String {
    let variables = dir.join("variables.fd");
    fs::copy(FIRMWARE_VARIABLES, &variables).unwrap();
    let said = dir.join("said.log");
    let ended = Command::new("timeout")
        .args([LIMIT_S, "qemu-system-x86_64"])
        .args(["-accel", "tcg", "-M", "q35", "-cpu", "max", "-smp", "1", "-m", "512"])
        .args(["-nodefaults", "-display", "none", "-drive"])
        .arg(format!("if=pflash,format=raw,readonly=on,file={FIRMWARE}"))
        .arg("-drive")
        .arg(format!("if=pflash,format=raw,file={}", variables.display()))
        .arg("-drive")
        .arg(format!("file={},format=raw,if=none,id=d,cache=unsafe", image.display()))
        .args(["-device", "nvme,drive=d,serial=a", "-serial"])
        .arg(format!("file:{}", dir.join("console.log").display()))
        .arg("-debugcon")
        .arg(format!("file:{}", said.display()))
        .stdin(Stdio::null())
        .status()
        .unwrap();
    let said = String::from_utf8_lossy(&fs::read(said).unwrap_or_default()).into_owned();
    assert!(ended.success(), "the machine did not power itself off: {ended}\n{said}\n{}", console(dir));
    said
}
