//! Every absolute path of the agent, under one root directory.
//!
//! In production the root is `/`. A test or a rehearsal runs the whole agent on a folder that looks like a device:
//! slots may then be regular files. No other file of this crate holds an absolute path.

use std::path::{Path, PathBuf};

/// Where things are.
#[derive(Debug, Clone)]
pub struct Paths {
    root: PathBuf,
}

impl Paths {
    /// A real device.
    pub const ROOT: &'static str = "/";
    /// A link to this switches a unit off.
    pub const NOWHERE: &'static str = "/dev/null";
    /// Where the boot partition is mounted, if not configured.
    pub const BOOT_PARTITION: &'static str = "/boot/efi";
    /// Default of `boot.environment`: where U-Boot's environment lies.
    pub const BOOT_ENVIRONMENT: &'static str = "/etc/fw_env.config";
    /// Default of `boot.directory` for GRUB: its settings on the boot partition.
    pub const BOOT_DIRECTORY: &'static str = "/boot/efi/bascule";
    /// Default of `state.directory`, on the data partition that both groups share.
    pub const STATE_DIRECTORY: &'static str = "/data/bascule";
    /// Default of `trust.root`.
    pub const TRUST_ROOT: &'static str = "/etc/bascule/root.json";

    /// Paths below `root`.
    #[must_use]
    pub fn under(root: impl Into<PathBuf>) -> Self {
        Paths { root: root.into() }
    }

    /// The root itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether this is a real device, not a folder that looks like one.
    #[must_use]
    pub fn is_real(&self) -> bool {
        self.root == Path::new(Self::ROOT)
    }

    /// A path of the configuration, which is written as if the root were `/`.
    #[must_use]
    pub fn resolve(&self, configured: &Path) -> PathBuf {
        self.root.join(configured.strip_prefix("/").unwrap_or(configured))
    }

    /// The configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.root.join("etc/bascule/config.toml")
    }

    /// Drop-ins of the configuration, read in the order of their names after [`Paths::config`].
    #[must_use]
    pub fn config_drop_ins(&self) -> PathBuf {
        self.root.join("etc/bascule/config.d")
    }

    /// What the booted root says it is.
    #[must_use]
    pub fn release(&self) -> PathBuf {
        self.root.join("usr/lib/bascule/release.toml")
    }

    /// The kernel's identifier of this boot.
    #[must_use]
    pub fn boot_id(&self) -> PathBuf {
        self.root.join("proc/sys/kernel/random/boot_id")
    }

    /// The kernel's command line, on which the loader says whether it counted a try.
    #[must_use]
    pub fn command_line(&self) -> PathBuf {
        self.root.join("proc/cmdline")
    }

    /// The variables of a UEFI firmware.
    #[must_use]
    pub fn firmware_variables(&self) -> PathBuf {
        self.root.join("sys/firmware/efi/efivars")
    }

    /// There only when systemd-boot counted this very start.
    #[must_use]
    pub fn boot_count(&self) -> PathBuf {
        self.firmware_variables().join("LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f")
    }

    /// What the Raspberry Pi's firmware says about this start.
    #[must_use]
    pub fn firmware_start(&self) -> PathBuf {
        self.root.join("proc/device-tree/chosen/bootloader")
    }

    /// Seconds since this boot, and idle seconds.
    #[must_use]
    pub fn uptime(&self) -> PathBuf {
        self.root.join("proc/uptime")
    }

    /// Runtime directory: the socket and contexts of hooks.
    #[must_use]
    pub fn runtime(&self) -> PathBuf {
        self.root.join("run/bascule")
    }

    /// The API's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.runtime().join("api.sock")
    }

    /// There once the deadline of a system on trial is armed. Not in the runtime directory: that one goes with the daemon.
    #[must_use]
    pub fn deadline_armed(&self) -> PathBuf {
        self.root.join("run/bascule-deadline-armed")
    }

    /// Where the prepared root is mounted while hooks look at it.
    #[must_use]
    pub fn target_root(&self) -> PathBuf {
        self.runtime().join("target")
    }

    /// The file systems that the kernel knows.
    #[must_use]
    pub fn file_systems(&self) -> PathBuf {
        self.root.join("proc/filesystems")
    }

    /// Where applications lock out the moment of an update.
    #[must_use]
    pub fn locks(&self) -> PathBuf {
        self.runtime().join("locks")
    }

    /// Where logind keeps its inhibitors.
    #[must_use]
    pub fn inhibitors(&self) -> PathBuf {
        self.root.join("run/systemd/inhibit")
    }

    /// What the kernel left of its last words.
    #[must_use]
    pub fn pstore(&self) -> PathBuf {
        self.root.join("sys/fs/pstore")
    }

    /// Where systemd moves them.
    #[must_use]
    pub fn kept_pstore(&self) -> PathBuf {
        self.root.join("var/lib/systemd/pstore")
    }

    /// The hardware watchdogs.
    #[must_use]
    pub fn watchdogs(&self) -> PathBuf {
        self.root.join("sys/class/watchdog")
    }

    /// The hardware watchdog that is fed where no service manager does.
    #[must_use]
    pub fn watchdog_device(&self) -> PathBuf {
        self.root.join("dev/watchdog")
    }

    /// There where systemd runs the system.
    #[must_use]
    pub fn systemd(&self) -> PathBuf {
        self.root.join("run/systemd/system")
    }

    /// What feeds the device.
    #[must_use]
    pub fn power_supplies(&self) -> PathBuf {
        self.root.join("sys/class/power_supply")
    }

    /// The kernel's immediate-action trigger, the last way to reboot.
    #[must_use]
    pub fn sysrq_trigger(&self) -> PathBuf {
        self.root.join("proc/sysrq-trigger")
    }
}
