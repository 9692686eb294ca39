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
    /// Default of `boot.directory`: the loader's settings on the boot partition.
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

    /// The kernel's immediate-action trigger, the last way to reboot.
    #[must_use]
    pub fn sysrq_trigger(&self) -> PathBuf {
        self.root.join("proc/sysrq-trigger")
    }
}
