//! The paths this crate knows. The folders are relative to a root: `/`, or where a prepared slot is mounted.

/// Hooks of the image's maker, one folder per point below.
pub(crate) const VENDOR_HOOKS: &str = "usr/lib/bascule/hooks.d";
/// Hooks of the device's owner; one of the same name replaces the image maker's.
pub(crate) const LOCAL_HOOKS: &str = "etc/bascule/hooks.d";
/// Health checks of the image's maker, in `required` and `wanted` below.
pub(crate) const VENDOR_HEALTH: &str = "usr/lib/bascule/health.d";
/// Health checks of the device's owner; one of the same name replaces the image maker's.
pub(crate) const LOCAL_HEALTH: &str = "etc/bascule/health.d";
/// Greenboot's checks of the image's maker, in `required.d` and `wanted.d` below.
pub(crate) const VENDOR_GREENBOOT: &str = "usr/lib/greenboot/check";
/// Greenboot's checks of the device's owner; one of the same name replaces the image maker's.
pub(crate) const LOCAL_GREENBOOT: &str = "etc/greenboot/check";
/// A symbolic link to this in the owner's folder masks the image maker's program of that name.
pub(crate) const MASK: &str = "/dev/null";
/// Where the kernel says which path an open file has.
pub(crate) const OPEN_FILES: &str = "/proc/self/fd";
/// The program that is running.
pub(crate) const OURSELVES: &str = "/proc/self/exe";
/// Working directory of a child that was not given one.
pub(crate) const CHILD_DIRECTORY: &str = "/";
/// Search path of every child.
pub(crate) const CHILD_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The program that is asked about systemd units, found through [`CHILD_PATH`].
pub(crate) const SYSTEMCTL: &str = "systemctl";
