//! Which boot loader this device starts with: named by the configuration, or found by what it left on the boot partition.
//!
//! | backend | found by |
//! |---|---|
//! | `grub` | `bascule/grub.cfg` on the boot partition |
//! | `systemd-boot` | `loader/loader.conf` there, and an entry whose name is ours |
//! | `uboot` | `boot.scr` there, and `/etc/fw_env.config` |
//! | `efi` | firmware variables with load options of ours, and a group's kernel on the boot partition |
//! | `rpi-tryboot` | `autoboot.txt` with `tryboot_a_b` there |
//! | `gpt` | never: its bits may be those of others |
//! | `custom` | never: its program is named in the configuration |
//!
//! It is looked for when it is first needed, not when a program starts: rollback-health runs before the boot partition is
//! mounted. Two loaders at once are an error; which one the firmware starts cannot be seen from here.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use bascule_boot::custom::CustomBackend;
use bascule_boot::disk::{Layout, Slot, SlotTable, partition_guid};
use bascule_boot::efi::option::Program;
use bascule_boot::efi::{EfiBackend, EfiError};
use bascule_boot::gpt::{GptBackend, SlotEntry};
use bascule_boot::sdboot::names::{self, Kind, Owner};
use bascule_boot::tryboot::{self, ThisBoot, TrybootBackend, TrybootError};
use bascule_boot::uboot::config::{Copies, EnvConfig, Place};
use bascule_boot::{BootBackend, BootError, GrubBackend, SdBootBackend, UbootBackend};
use bascule_core::boot_set::{SET_KERNEL, boot_set};
use bascule_core::{BootView, BootedGroup, Group, TargetGroup, Tries, Warning};
use bascule_hooks::BootFileSet;
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
    let mut names = fs::read_dir(partition.join(Kind::Text.directory())).into_iter().flatten().flatten();
    let ours = |name: &str| matches!(names::owner(name, Kind::Text), Owner::Ours(_));
    match names.any(|entry| ours(&entry.file_name().to_string_lossy())) {
        true => (true, "entries of ours are listed".into()),
        false => (false, "no boot entry there is ours".into()),
    }
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
    pub fn sets(&self, target: TargetGroup) -> Result<Option<Sets>, BootError> {
        let (backend, _) = self.found()?;
        if !matches!(backend, Backend::SystemdBoot | Backend::Efi) {
            return Ok(None);
        }
        let partition = directory(&self.paths, &self.config, *backend);
        if *backend == Backend::Efi {
            check_load_option(&self.paths, &partition, target)?;
        }
        let set = |group: Group| partition.join(boot_set(group));
        let entry = match backend {
            Backend::SystemdBoot => SdBootBackend::new(partition.clone(), Kind::Text).target_file(target)?,
            _ => None,
        };
        let (running, prepared) = (set(target.group().opposite()), set(target.group()));
        Ok(Some(Sets { running, prepared, entry, group: target.group(), partition }))
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
            Backend::SystemdBoot => Box::new(SdBootBackend::new(directory, Kind::Text)),
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

/// Where the boot files of the groups are, for a loader that cannot read the slots.
#[derive(Debug, Clone)]
pub struct Sets {
    /// Where the boot partition is mounted.
    pub partition: PathBuf,
    /// The folder with the set of the running group.
    pub running: PathBuf,
    /// The folder with the set of the target group.
    pub prepared: PathBuf,
    entry: Option<PathBuf>,
    group: Group,
}

impl Sets {
    /// The first file that the loader's entry of the target names and the set has not: the loader would pass over the entry.
    ///
    /// # Errors
    /// When the entry cannot be read, or starts another kernel: that would run an old one on the new root.
    pub fn lacking(&self, set: &BootFileSet) -> Result<Option<String>, BootError> {
        let Some(path) = &self.entry else { return Ok(None) };
        let text = fs::read_to_string(path).map_err(|source| BootError::Read { path: path.clone(), source })?;
        let named = |keys: &'static [&'static str]| {
            let values = text.lines().filter_map(|line| line.trim().split_once(char::is_whitespace));
            values.filter(move |(key, _)| keys.contains(key)).flat_map(|(_, value)| value.split_whitespace())
        };
        let folder = format!("/{}/", boot_set(self.group));
        let kernel = format!("{folder}{SET_KERNEL}");
        if !named(&["linux"]).eq([kernel.as_str()]) {
            let damage = format!("it does not start {kernel}, where the new kernel is written");
            return Err(BootError::BeyondRepair { path: path.clone(), damage });
        }
        let has = |name: &str| name.strip_prefix(&folder).is_some_and(|name| set.has(name));
        let mut others = named(&["initrd", "devicetree", "devicetree-overlay"]);
        Ok(others.find(|name| !has(name)).map(str::to_owned))
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
    use bascule_hooks::{KeepList, SetPlaces};

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
        let code = || loader.sets(target).map(|sets| sets.map(|sets| sets.prepared)).map_err(|error| error.code());
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

    #[test]
    fn an_entry_has_to_start_the_new_kernel_and_to_name_files_of_the_set() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        put(root, "root/boot/vmlinuz", "kernel");
        put(root, "root/usr/lib/bascule/boot/files/board.dtb", "tree");
        let (partition, entry) = (root.join("esp"), root.join("entry.conf"));
        let sets = Sets {
            running: partition.join("bascule/a"),
            prepared: partition.join("bascule/b"),
            entry: Some(entry.clone()),
            group: Group::B,
            partition,
        };
        let places = SetPlaces { root: &root.join("root"), running: &sets.running, target: &sets.prepared };
        let set = BootFileSet::collect(places, &KeepList::default()).unwrap();
        let lacking = |text: &str| {
            fs::write(&entry, text).unwrap();
            sets.lacking(&set).map_err(|error| error.code())
        };
        let linux = "title x\nlinux /bascule/b/linux\noptions initrd=/elsewhere\n";
        assert_eq!(lacking(linux), Ok(None));
        assert_eq!(lacking(&format!("{linux}devicetree\t/bascule/b/board.dtb\n")), Ok(None));
        let named = "/bascule/b/initrd.img".to_owned();
        assert_eq!(lacking(&format!("{linux}initrd {named}\n")), Ok(Some(named)));
        let others = "/bascule/a/board.dtb".to_owned();
        assert_eq!(lacking(&format!("{linux}devicetree {others}\n")), Ok(Some(others)));
        for other in ["linux /bascule/a/linux\n", "linux /vmlinuz\n", "", "linux /bascule/b/linux\nlinux /vmlinuz\n"] {
            assert_eq!(lacking(other), Err("boot.beyond-repair"), "{other}");
        }
    }
}
