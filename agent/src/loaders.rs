//! Which boot loader this device starts with: named by the configuration, or found by what it left on the boot partition.
//!
//! | backend | found by |
//! |---|---|
//! | `grub` | `bascule/grub.cfg` on the boot partition |
//! | `systemd-boot` | `loader/loader.conf` there, and an entry whose name is ours, a text or a unified kernel image |
//! | `uboot` | `boot.scr` there, and `/etc/fw_env.config` |
//! | `efi` | firmware variables with load options of ours, and a group's kernel on the boot partition |
//! | `rpi-tryboot` | `autoboot.txt` with `tryboot_a_b` there |
//! | `gpt` | never: its bits may be those of others |
//! | `custom` | never: its program is named in the configuration |
//!
//! It is looked for when it is first needed, not when a program starts: rollback-health runs before the boot partition is
//! mounted. Two loaders at once are an error; which one the firmware starts cannot be seen from here.

mod boot_files;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use bascule_boot::custom::CustomBackend;
use bascule_boot::disk::{Layout, Slot, SlotTable, partition_guid};
use bascule_boot::efi::option::Program;
use bascule_boot::efi::{EfiBackend, EfiError};
use bascule_boot::gpt::{GptBackend, SlotEntry};
use bascule_boot::sdboot::kind_on;
use bascule_boot::sdboot::names::{self, Kind, Owner};
use bascule_boot::tryboot::{self, ThisBoot, TrybootBackend, TrybootError};
use bascule_boot::uboot::config::{Copies, EnvConfig, Place};
use bascule_boot::{BootBackend, BootError, GrubBackend, SdBootBackend, UbootBackend};
use bascule_core::boot_set::{SET_KERNEL, boot_set};
use bascule_core::{BootView, BootedGroup, Group, TargetGroup, Tries, Warning};
pub use boot_files::{BootFiles, ImageEntry, Sets, loader_said, told};
use serde::Serialize;

use crate::config::{Backend, BootConfig};
use crate::device;
use crate::durable;
use crate::paths::Paths;

/// How long an integrator's program may take.
const PROGRAM_DEADLINE: Duration = Duration::from_secs(30);
/// The role of the partitions that a ChromeOS-style loader starts, where they are not the roots.
const KERNEL_ROLE: &str = "kernel";
/// A `fw_env.config` is shorter, in bytes.
const ENVIRONMENT_LIMIT: u64 = 64 << 10;

/// What was looked at for one backend.
#[derive(Debug, Clone, Serialize)]
pub struct Mark {
    /// The backend.
    pub backend: Backend,
    /// Whether the device has it.
    pub found: bool,
    /// Why, in words.
    pub why: String,
}

/// Looks for every backend that can be found.
#[must_use]
pub fn look(paths: &Paths, config: &BootConfig) -> Vec<Mark> {
    let there = |path: PathBuf| match path.exists() {
        true => (true, format!("{} is there", path.display())),
        false => (false, format!("there is no {}", path.display())),
    };
    let both = |(first, why): (bool, String), (second, other): (bool, String)| match first {
        true => (second, if second { format!("{why}, and {other}") } else { other }),
        false => (false, why),
    };
    let partition = boot_partition(paths, config);
    let mark = |backend, (found, why)| Mark { backend, found, why };
    vec![
        mark(Backend::Grub, there(directory(paths, config, Backend::Grub).join("grub.cfg"))),
        mark(Backend::SystemdBoot, both(there(partition.join("loader/loader.conf")), has_entries(&partition))),
        mark(Backend::Uboot, both(there(partition.join("boot.scr")), there(paths.resolve(&config.environment)))),
        mark(Backend::Efi, both(has_kernel(&partition), has_load_options(&paths.firmware_variables()))),
        mark(Backend::RpiTryboot, has_two_partitions(&partition.join(tryboot::FILE))),
    ]
}

/// The firmware's file may also be there for one partition alone.
fn has_two_partitions(file: &Path) -> (bool, String) {
    let text = durable::read_bounded(file, ENVIRONMENT_LIMIT);
    match text.map(|text| String::from_utf8_lossy(&text).lines().any(|line| line.trim() == "tryboot_a_b=1")) {
        Ok(true) => (true, format!("{} is for two partitions", file.display())),
        Ok(false) => (false, format!("{} is not for two partitions", file.display())),
        Err(_) => (false, format!("there is no {}", file.display())),
    }
}

fn has_entries(partition: &Path) -> (bool, String) {
    let has = |kind: Kind| {
        let mut names = fs::read_dir(partition.join(kind.directory())).into_iter().flatten().flatten();
        names.any(|entry| matches!(names::owner(&entry.file_name().to_string_lossy(), kind), Owner::Ours(_)))
    };
    if Kind::ALL.into_iter().all(|kind| !has(kind)) {
        return (false, "no boot entry there is ours".into());
    }
    let words = match kind_on(partition) {
        Ok(Some(Kind::Image)) => "unified kernel images of ours are listed".into(),
        Err(error @ BootError::MixedEntries { .. }) => error.to_string(),
        _ => "entries of ours are listed".into(),
    };
    (true, words)
}

/// Without it, variables that an earlier loader of the device left behind would be taken before the boot partition is mounted.
fn has_kernel(partition: &Path) -> (bool, String) {
    let kernels = Group::ALL.map(|group| partition.join(boot_set(group)).join(SET_KERNEL));
    match kernels.iter().find(|kernel| kernel.exists()) {
        Some(kernel) => (true, format!("{} is there", kernel.display())),
        None => (false, format!("there is no {}", kernels.map(|kernel| kernel.display().to_string()).join(" and no "))),
    }
}

fn has_load_options(variables: &Path) -> (bool, String) {
    match EfiBackend::new(variables.to_owned()).has_entries() {
        true => (true, format!("{} has load options of ours", variables.display())),
        false => (false, format!("{} has no load option of ours", variables.display())),
    }
}

/// The loader of this device, which may still have to be found.
pub struct Loader {
    paths: Paths,
    config: BootConfig,
    layout: Layout,
    found: OnceLock<(Backend, Box<dyn BootBackend>)>,
}

impl Loader {
    /// Looks at nothing yet.
    #[must_use]
    pub fn new(paths: &Paths, config: &BootConfig, layout: &Layout) -> Self {
        Loader { paths: paths.clone(), config: config.clone(), layout: layout.clone(), found: OnceLock::new() }
    }

    /// Where the loader takes a group's boot files from, when it cannot read them in the slot. Whoever prepared the slot puts
    /// them there, while the group is unbootable.
    ///
    /// # Errors
    /// When the loader is not found, or firmware that starts kernels itself would start another one.
    pub fn boot_files(&self, target: TargetGroup) -> Result<Option<BootFiles>, BootError> {
        let (backend, _) = self.found()?;
        if !matches!(backend, Backend::SystemdBoot | Backend::Efi) {
            return Ok(None);
        }
        let partition = directory(&self.paths, &self.config, *backend);
        if *backend == Backend::Efi {
            check_load_option(&self.paths, &partition, target)?;
        }
        let mut entry = None;
        if *backend == Backend::SystemdBoot {
            let (kind, backend) = sdboot(&partition)?;
            if kind == Kind::Image {
                let root = self.layout.slot(SlotTable::ROOT, target.group()).map(|slot| slot.partuuid.clone());
                let root = root.unwrap_or_default();
                return Ok(Some(BootFiles::Image(ImageEntry { partition, backend, target, root })));
            }
            entry = backend.target_file(target)?;
        }
        let set = |group: Group| partition.join(boot_set(group));
        let (running, prepared) = (set(target.group().opposite()), set(target.group()));
        Ok(Some(BootFiles::Set(Sets { running, prepared, entry, group: target.group(), partition })))
    }

    /// What is damaged while something else serves: one copy of the loader's settings, or of the partition table. Where the
    /// settings themselves cannot be read, the view says so.
    #[must_use]
    pub fn warnings(&self) -> Vec<Warning> {
        let Ok((backend, settings)) = self.found() else { return Vec::new() };
        // There the table is the settings.
        let table = (*backend != Backend::Gpt).then(|| self.layout.disk.damaged_copy()).flatten();
        settings.damaged_copy().ok().flatten().into_iter().chain(table).collect()
    }

    /// Whether the loader cannot count: it starts a new system once, whatever it is asked for.
    #[must_use]
    pub fn tries_once(&self) -> bool {
        self.found().is_ok_and(|(backend, _)| matches!(backend, Backend::Efi | Backend::RpiTryboot))
    }

    /// Whether systemd itself knows how to commit under this loader, with `systemd-bless-boot.service`.
    #[must_use]
    pub fn may_be_blessed(&self) -> bool {
        self.found().is_ok_and(|(backend, _)| *backend == Backend::SystemdBoot)
    }

    fn found(&self) -> Result<&(Backend, Box<dyn BootBackend>), BootError> {
        if let Some(found) = self.found.get() {
            return Ok(found);
        }
        let backend = match self.config.backend {
            Some(backend) => backend,
            None => self.detect()?,
        };
        let found = (backend, self.open(backend)?);
        Ok(self.found.get_or_init(|| found))
    }

    fn detect(&self) -> Result<Backend, BootError> {
        let marks = look(&self.paths, &self.config);
        let found: Vec<&Mark> = marks.iter().filter(|mark| mark.found).collect();
        match found.as_slice() {
            [mark] => {
                tracing::info!(backend = mark.backend.name(), why = mark.why, "the boot loader is found");
                Ok(mark.backend)
            }
            [] => {
                let why: Vec<&str> = marks.iter().map(|mark| mark.why.as_str()).collect();
                Err(BootError::NoLoader { looked: why.join("; ") })
            }
            several => {
                let names: Vec<&str> = several.iter().map(|mark| mark.backend.name()).collect();
                Err(BootError::SeveralLoaders { found: names.join(" and ") })
            }
        }
    }

    fn open(&self, backend: Backend) -> Result<Box<dyn BootBackend>, BootError> {
        let directory = directory(&self.paths, &self.config, backend);
        Ok(match backend {
            Backend::Grub => Box::new(GrubBackend::new(directory)),
            Backend::SystemdBoot => Box::new(sdboot(&directory)?.1),
            Backend::Uboot => Box::new(UbootBackend::new(self.environment()?, directory)?),
            Backend::Efi => Box::new(EfiBackend::new(self.paths.firmware_variables())),
            Backend::Gpt => Box::new(self.gpt()?),
            Backend::RpiTryboot => {
                let partitions = backend.needs_role().and_then(|role| self.both(role, |slot| slot.partition));
                let partitions = partitions.ok_or(TrybootError::NoSlots)?;
                let this_boot = ThisBoot { boot_id: self.paths.boot_id(), bootloader: self.paths.firmware_start() };
                Box::new(TrybootBackend::new(&directory, partitions, this_boot))
            }
            Backend::Custom => {
                let program = self.config.program.clone().unwrap_or_default();
                Box::new(CustomBackend::new(self.paths.resolve(&program), PROGRAM_DEADLINE))
            }
        })
    }

    /// The bits are those of the partitions that the loader starts: kernels, or the roots that hold them.
    fn gpt(&self) -> Result<GptBackend, BootError> {
        let entry = |slot: &Slot| SlotEntry { number: slot.partition, guid: slot.partuuid.clone() };
        let slots = self.both(KERNEL_ROLE, entry).or_else(|| self.both(SlotTable::ROOT, entry));
        let slots =
            slots.ok_or_else(|| BootError::NoLoader { looked: "there are no slots of the role root".into() })?;
        Ok(GptBackend::new(self.layout.disk.device.clone(), self.layout.disk.sector_size, slots))
    }

    /// Something of both slots of a role.
    fn both<T>(&self, role: &str, of: impl Fn(&Slot) -> T) -> Option<[T; 2]> {
        let [a, b] = Group::ALL.map(|group| self.layout.slot(role, group).map(&of));
        Some([a?, b?])
    }

    fn environment(&self) -> Result<EnvConfig, BootError> {
        let path = self.paths.resolve(&self.config.environment);
        let text = durable::read_bounded(&path, ENVIRONMENT_LIMIT)
            .map_err(|source| BootError::Read { path: path.clone(), source })?;
        let below = |place: Place| Place { path: self.paths.resolve(&place.path), ..place };
        let config = EnvConfig::parse(&text)?;
        let copies = match config.copies {
            Copies::Single(place) => Copies::Single(below(place)),
            Copies::Redundant(places) => Copies::Redundant(places.map(below)),
        };
        Ok(EnvConfig { copies, ..config })
    }
}

impl BootBackend for Loader {
    fn name(&self) -> &'static str {
        self.found.get().map_or("auto", |(backend, _)| backend.name())
    }

    fn view(&self, booted: BootedGroup) -> Result<BootView, BootError> {
        self.found()?.1.view(booted)
    }

    fn mark_unbootable(&self, target: TargetGroup) -> Result<(), BootError> {
        self.found()?.1.mark_unbootable(target)
    }

    fn activate(&self, target: TargetGroup, tries: Tries) -> Result<(), BootError> {
        self.found()?.1.activate(target, tries)
    }

    fn mark_good(&self, booted: BootedGroup) -> Result<(), BootError> {
        self.found()?.1.mark_good(booted)
    }

    fn roll_back(&self, booted: BootedGroup) -> Result<(), BootError> {
        self.found()?.1.roll_back(booted)
    }

    fn damaged_copy(&self) -> Result<Option<Warning>, BootError> {
        self.found()?.1.damaged_copy()
    }

    fn reboot_argument(&self, booted: BootedGroup) -> Result<Option<&'static str>, BootError> {
        self.found()?.1.reboot_argument(booted)
    }
}

/// The backend for the entries that are there; texts where there are none of ours, which is what a new device gets.
fn sdboot(partition: &Path) -> Result<(Kind, SdBootBackend), BootError> {
    let kind = kind_on(partition)?.unwrap_or(Kind::Text);
    Ok((kind, SdBootBackend::new(partition.to_owned(), kind)))
}

/// The target's load option has to start the kernel that is written, from the partition that is mounted there.
fn check_load_option(paths: &Paths, partition: &Path, target: TargetGroup) -> Result<(), BootError> {
    let mounted = Path::new(Paths::ROOT).join(partition.strip_prefix(paths.root()).unwrap_or(partition));
    let unknown = |source| EfiError::BootPartition { path: mounted.clone(), source };
    let guid = partition_guid(&device::sysfs(paths), &mounted).map_err(|error| unknown(Some(error)))?;
    let kernel = format!("/{}/{SET_KERNEL}", boot_set(target.group()));
    let program = Program { partition: guid.ok_or_else(|| unknown(None))?, file: kernel.replace('/', "\\") };
    EfiBackend::new(paths.firmware_variables()).check_program(target, &program)
}

/// Where the boot partition is mounted: the folder that is configured for a loader other than GRUB.
fn boot_partition(paths: &Paths, config: &BootConfig) -> PathBuf {
    let configured = config.directory.as_deref().filter(|_| !matches!(config.backend, None | Some(Backend::Grub)));
    paths.resolve(configured.unwrap_or(Path::new(Paths::BOOT_PARTITION)))
}

/// Where a backend keeps its files.
fn directory(paths: &Paths, config: &BootConfig, backend: Backend) -> PathBuf {
    let usual = if backend == Backend::Grub { Paths::BOOT_DIRECTORY } else { Paths::BOOT_PARTITION };
    let configured = config.directory.as_deref().filter(|_| config.backend == Some(backend));
    paths.resolve(configured.unwrap_or(Path::new(usual)))
}

#[cfg(test)]
mod tests {
    use bascule_boot::disk::SlotRole;
    use bascule_boot::disk::rehearsal::machine;
    use bascule_boot::efi::option::{LoadOption, Partition};

    use super::*;

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn config(backend: Option<Backend>) -> BootConfig {
        BootConfig {
            backend,
            directory: None,
            environment: "/etc/fw_env.config".into(),
            program: None,
            keep_files: Vec::new(),
            tries: Tries::DEFAULT,
        }
    }

    /// A machine in a folder beside the root, with slots of these roles.
    fn layout(roles: &[(&str, u32, u32)]) -> (tempfile::TempDir, Layout) {
        let dir = tempfile::tempdir().unwrap();
        let (sysfs, _) = bascule_boot::disk::rehearsal::machine(dir.path(), "nvme0n1", 64 << 10).unwrap();
        let number = |number: u32| format!("partnum:{number}").parse().unwrap();
        let role =
            |(role, a, b): &(&str, u32, u32)| SlotRole { role: (*role).to_owned(), a: number(*a), b: number(*b) };
        let table = SlotTable { roles: roles.iter().map(role).collect() };
        let layout = bascule_boot::disk::locate(&sysfs, &table).unwrap();
        (dir, layout)
    }

    fn found(root: &Path) -> Result<Backend, BootError> {
        let (_machine, layout) = layout(&[("root", 3, 4)]);
        Loader::new(&Paths::under(root), &config(None), &layout).detect()
    }

    #[test]
    fn a_raspberry_pi_is_found_by_its_file_for_two_partitions_and_told_to_start_the_target() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        put(root, "boot/efi/autoboot.txt", "[all]\nboot_partition=2\n");
        assert_eq!(found(root).unwrap_err().code(), "boot.no-loader", "it is for one partition");
        let file = String::from_utf8(TrybootBackend::factory([1, 2])).unwrap();
        put(root, "boot/efi/autoboot.txt", &file);
        assert_eq!(found(root).unwrap(), Backend::RpiTryboot);
        let boot_id = "00000001-0000-4000-8000-000000000000";
        put(root, "proc/sys/kernel/random/boot_id", boot_id);
        let (_machine, bare) = layout(&[("root", 3, 4)]);
        let loader = Loader::new(&Paths::under(root), &config(None), &bare);
        let booted = bare.booted;
        assert_eq!(loader.view(booted).unwrap_err().code(), "boot.tryboot-no-slots");
        let (_machine, whole) = layout(&[("root", 3, 4), ("boot", 1, 2)]);
        let loader = Loader::new(&Paths::under(root), &config(None), &whole);
        assert_eq!((loader.reboot_argument(booted).unwrap(), loader.tries_once()), (None, true));
        loader.activate(booted.target(), Tries::ONE).unwrap();
        assert_eq!(loader.reboot_argument(booted).unwrap(), Some("0 tryboot"));
        let text = fs::read_to_string(root.join("boot/efi/autoboot.txt")).unwrap();
        assert!(text.contains(&format!("b=sent {boot_id}\n")), "{text}");
    }

    #[test]
    fn the_partition_table_keeps_the_choice_only_where_it_is_named() {
        use bascule_core::BootStatus::{Good, Unbootable};
        let dir = tempfile::tempdir().unwrap();
        assert!(look(&Paths::under(dir.path()), &config(None)).iter().all(|mark| mark.backend != Backend::Gpt));
        let numbers = [("root", 3, 4), ("kernel", 1, 2)];
        for roles in [&numbers[..1], &numbers] {
            let (_machine, layout) = layout(roles);
            let loader = Loader::new(&Paths::under(dir.path()), &config(Some(Backend::Gpt)), &layout);
            loader.mark_good(layout.booted).unwrap();
            let view = loader.view(layout.booted).unwrap();
            assert_eq!((loader.name(), view.a, view.b), ("gpt", Good, Unbootable));
            assert_eq!((loader.tries_once(), loader.reboot_argument(layout.booted).unwrap()), (false, None));
            let image = fs::read(&layout.disk.device).unwrap();
            let (_, [a, b]) = roles.last().map(|(role, a, b)| (role, [*a, *b])).unwrap();
            let bits = bascule_boot::gpt::bits_of_image(&image, 512, [a, b]).unwrap();
            assert!(bits[0].successful && !bits[1].may_start(), "{roles:?}: {bits:?}");
        }
    }

    #[test]
    fn an_efi_entry_that_starts_another_kernel_or_another_disk_s_is_refused_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        machine(root, "vda", 1 << 20).unwrap();
        let (_machine, layout) = layout(&[("root", 3, 4)]);
        let loader = Loader::new(&Paths::under(root), &config(Some(Backend::Efi)), &layout);
        let target = BootedGroup::proven(Group::A).target();
        let code = || match loader.boot_files(target) {
            Ok(Some(BootFiles::Set(sets))) => Ok(Some(sets.prepared)),
            Ok(_) => Ok(None),
            Err(error) => Err(error.code()),
        };
        // Written where the entry says, once the boot partition is mounted: until then it would be the root's.
        let mount = |line: &str| {
            let path = root.join("proc/self/mountinfo");
            let text = fs::read_to_string(&path).unwrap();
            fs::write(path, format!("{text}{line}\n")).unwrap();
        };
        let sysfs = device::sysfs(&Paths::under(root));
        let entry = |guid: &str, file: &str| {
            let digits: String = guid.split('-').collect();
            let mut bytes: Vec<u8> =
                (0..16).map(|at| u8::from_str_radix(&digits[at * 2..][..2], 16).unwrap()).collect();
            for part in [0..4, 4..6, 6..8] {
                bytes[part].reverse();
            }
            let partition = Partition { number: 1, start: 2048, blocks: 8, guid: bytes.try_into().unwrap() };
            let option = LoadOption::for_group(Group::B, &partition, file, "bascule.group=b").unwrap();
            let variables = Paths::under(root).firmware_variables();
            fs::create_dir_all(&variables).unwrap();
            let variable = variables.join("BootBA5B-8be4df61-93ca-11d2-aa0d-00e098032b8c");
            fs::write(variable, [&[7, 0, 0, 0][..], &option.to_bytes().unwrap()].concat()).unwrap();
        };
        mount("40 22 259:1 / /boot/efi rw - vfat /dev/vda1 rw");
        let guid = partition_guid(&sysfs, Path::new("/boot/efi")).unwrap().unwrap();
        entry(&guid, "\\bascule\\b\\linux");
        assert_eq!(code().unwrap(), Some(root.join("boot/efi/bascule/b")));
        entry(&guid, "\\bascule\\a\\linux");
        assert_eq!(code(), Err("boot.efi-other-program"));
        entry("12345678-9abc-def0-0102-030405060708", "\\bascule\\b\\linux");
        assert_eq!(code(), Err("boot.efi-other-program"));
        entry(&guid, "\\bascule\\b\\linux");
        mount("41 40 0:50 / /boot/efi rw - tmpfs tmpfs rw");
        assert_eq!(code(), Err("boot.efi-partition"));
    }

    /// The least that systemd-boot takes for a unified kernel image.
    fn image(version: &str, words: &str) -> Vec<u8> {
        let title = format!("ID=bascule\nPRETTY_NAME=\"Bascule {version}\"\n");
        let sections = [(b".osrel\0\0", title.as_str()), (b".cmdline", words), (b".linux\0\0", "kernel")];
        let mut bytes = vec![0_u8; 1024];
        bytes[..2].copy_from_slice(b"MZ");
        (bytes[0x3c], bytes[0x46]) = (0x40, 3);
        bytes[0x40..0x44].copy_from_slice(b"PE\0\0");
        for (index, (name, text)) in sections.into_iter().enumerate() {
            let (at, start) = (0x58 + index * 40, bytes.len());
            bytes[at..at + 8].copy_from_slice(name);
            for (field, number) in [(8, text.len()), (16, text.len()), (20, start)] {
                let number = u32::try_from(number).unwrap();
                bytes[at + field..][..4].copy_from_slice(&number.to_le_bytes());
            }
            bytes.extend_from_slice(text.as_bytes());
        }
        bytes
    }

    #[test]
    fn a_group_that_is_started_by_a_unified_kernel_image_gets_the_prepared_one_and_only_while_it_is_unbootable() {
        use bascule_boot::sdboot::simulator::{Renaming, start};
        let dir = tempfile::tempdir().unwrap();
        let (esp, new) = (dir.path().join("boot/efi"), dir.path().join("prepared"));
        let put_image = |path: PathBuf, bytes: &[u8]| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        let (_machine, layout) = layout(&[("root", 3, 4)]);
        let words = |group: Group| {
            let root = &layout.slot("root", group).unwrap().partuuid;
            format!("root=PARTUUID={root} bascule.group={group}")
        };
        put(dir.path(), "boot/efi/loader/loader.conf", bascule_boot::sdboot::LOADER_CONF);
        let old = image("1.0.0", &words(Group::A));
        put_image(esp.join("EFI/Linux/bascule-1-a.efi"), &old);
        put_image(esp.join("EFI/Linux/bascule-0-b.off"), b"");
        assert_eq!(found(dir.path()).unwrap(), Backend::SystemdBoot);
        let marks = look(&Paths::under(dir.path()), &config(None));
        assert!(marks[1].why.ends_with("unified kernel images of ours are listed"), "{:?}", marks[1]);
        let loader = Loader::new(&Paths::under(dir.path()), &config(None), &layout);
        let target = layout.booted.target();
        loader.mark_unbootable(target).unwrap();
        let install = || match loader.boot_files(target).unwrap() {
            Some(BootFiles::Image(entry)) => entry.install(&new).map_err(|report| report.code),
            other => panic!("{other:?}"),
        };
        let code = |code: &str| Err(code.to_owned());
        assert_eq!(install(), code("boot-files.no-image"));
        let in_root = new.join("usr/lib/bascule/boot/uki/b.efi");
        put_image(in_root.clone(), &image("2.0.0", &words(Group::A)));
        assert_eq!(install(), code("boot.image"), "the other group's");
        assert_eq!(fs::read(esp.join("EFI/Linux/bascule-0-b.off")).unwrap(), b"", "nothing was written");
        let bytes = image("2.0.0", &words(Group::B));
        put_image(in_root, &bytes);
        assert_eq!(install().unwrap().written, 1);
        assert_eq!(fs::read(esp.join("EFI/Linux/bascule-0-b.off")).unwrap(), bytes);
        // A name of no use becomes one that would be armed, as where two names share clusters: here one of a removed copy.
        let link = esp.join("EFI/Linux/bascule-2-b.off");
        put_image(esp.join("bascule/b.efi"), b"torn");
        std::os::unix::fs::symlink("../../bascule/b.efi", &link).unwrap();
        assert_eq!(install(), code("boot-files.moved"));
        fs::remove_file(link).unwrap();
        assert_eq!(install().unwrap().written, 0);
        let started = || start(&esp, Renaming::Works).unwrap().started.and_then(|entry| entry.group);
        assert_eq!(started(), Some(Group::A), "it is not armed");
        loader.activate(target, Tries::DEFAULT).unwrap();
        assert_eq!((started(), install()), (Some(Group::B), code("boot.beyond-repair")), "it is listed");
        let later = BootedGroup::proven(Group::B);
        loader.mark_good(later).unwrap();
        assert_eq!(fs::read(esp.join("EFI/Linux/bascule-1-a.efi")).unwrap(), old, "the way back is whole");
        loader.roll_back(later).unwrap();
        assert_eq!(started(), Some(Group::A));
        put_image(esp.join("loader/entries/bascule-3-a.conf"), b"");
        let loader = Loader::new(&Paths::under(dir.path()), &config(None), &layout);
        assert_eq!(loader.view(layout.booted).unwrap_err().code(), "boot.mixed-entries");
        let marks = look(&Paths::under(dir.path()), &config(None));
        assert!(marks[1].found && marks[1].why.ends_with("in loader/entries and in EFI/Linux"), "{:?}", marks[1]);
    }

    #[test]
    fn a_damaged_copy_of_the_partition_table_is_told_whichever_loader_there_is() {
        let dir = tempfile::tempdir().unwrap();
        put(dir.path(), "boot/efi/loader/loader.conf", "timeout 0\n");
        for (backend, code) in
            [(Backend::Gpt, "boot.gpt-copy-damaged"), (Backend::SystemdBoot, "disk.table-copy-damaged")]
        {
            let (_machine, layout) = layout(&[("root", 3, 4)]);
            let loader = Loader::new(&Paths::under(dir.path()), &config(Some(backend)), &layout);
            if backend == Backend::Gpt {
                loader.mark_good(layout.booted).unwrap();
            }
            assert_eq!(loader.warnings(), []);
            let file = fs::File::options().write(true).open(&layout.disk.device).unwrap();
            let last = file.metadata().unwrap().len() - 512;
            std::os::unix::fs::FileExt::write_all_at(&file, b"damaged", last).unwrap();
            let codes: Vec<String> = loader.warnings().into_iter().map(|warning| warning.code).collect();
            assert_eq!(codes, [code], "of two warnings about one table one is enough");
        }
    }

    #[test]
    fn each_loader_is_found_by_its_marks_and_two_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        assert_eq!(found(root).unwrap_err().code(), "boot.no-loader");
        put(root, "boot/efi/loader/loader.conf", "timeout 0\n");
        assert_eq!(found(root).unwrap_err().code(), "boot.no-loader", "no entry of ours is there");
        put(root, "boot/efi/loader/entries/bascule-1-a.conf", "");
        assert_eq!(found(root).unwrap(), Backend::SystemdBoot);
        put(root, "boot/efi/boot.scr", "");
        assert_eq!(found(root).unwrap(), Backend::SystemdBoot, "boot.scr alone is anybody's");
        put(root, "etc/fw_env.config", "");
        let error = found(root).unwrap_err();
        assert_eq!(error.code(), "boot.several-loaders");
        assert!(error.to_string().contains("systemd-boot and uboot"), "{error}");
        fs::remove_dir_all(root.join("boot/efi/loader")).unwrap();
        assert_eq!(found(root).unwrap(), Backend::Uboot);
        fs::remove_file(root.join("boot/efi/boot.scr")).unwrap();
        put(root, "boot/efi/bascule/grub.cfg", "");
        assert_eq!(found(root).unwrap(), Backend::Grub);
    }
}
