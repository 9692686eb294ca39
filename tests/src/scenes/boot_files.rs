//! Boot files of a device whose loader cannot read the slots: they go with the group, and what is the device's stays its own.

use anyhow::{Result, bail, ensure};

use super::Stage;
use super::guest::text_at;

/// What an owner wrote into a boot file that the image has too.
const OURS: &str = "of this device";

impl Stage {
    /// An owner changes a boot file that the demo's configuration keeps.
    ///
    /// # Errors
    /// When the guest cannot.
    pub fn owner_changes_a_boot_file(&mut self) -> Result<()> {
        let folder = self.boot_files()?;
        self.machine.succeed(&format!("echo '{OURS}' > {folder}/demo/site.txt && sync"))?;
        self.say("person", format!("changes {folder}/demo/site.txt"), "it is on the list of files to keep");
        Ok(())
    }

    /// The running group's boot files are those of the running version, but for the one that is kept.
    ///
    /// # Errors
    /// When they are another version's, or the owner's file is the image's again.
    pub fn boot_files_are_of_the_running_version(&mut self) -> Result<()> {
        let (folder, status) = (self.boot_files()?, self.status()?);
        let version = text_at(&status, "/release/version");
        let holds = |machine: &mut crate::Machine, name: &str| {
            machine.succeed(&format!("cat {folder}/demo/{name}")).map(|text| text.trim().to_owned())
        };
        let (there, site) = (holds(&mut self.machine, "version.txt")?, holds(&mut self.machine, "site.txt")?);
        ensure!(there == version, "{version} runs with the boot files of {there}");
        ensure!(site == OURS, "the owner's boot file says {site:?}");
        self.machine.succeed(&format!("cmp /boot/vmlinuz {folder}/linux"))?;
        self.say("boot partition", format!("{folder} has the files of {version}"), "and the owner's own among them");
        Ok(())
    }

    /// The running system was started by its group's unified kernel image, which is the one of its root, and which the loader
    /// starts from now on without counting. Nothing on the boot partition is of another kind.
    ///
    /// # Errors
    /// When it was started in another way, or by another image.
    pub fn was_started_by_its_unified_image(&mut self) -> Result<()> {
        let group = text_at(&self.status()?, "/booted");
        // The stub that an image begins with leaves this variable; an entry that is a text has none.
        let stub = "/sys/firmware/efi/efivars/StubInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
        self.machine.succeed(&format!("test -s {stub} && grep -qw bascule.group={group} /proc/cmdline"))?;
        let listed = self.machine.succeed("cd /boot/efi && ls EFI/Linux")?;
        let ending = format!("-{group}.efi");
        let own: Vec<&str> = listed.split_whitespace().filter(|name| name.ends_with(&ending)).collect();
        let [image] = own[..] else { bail!("EFI/Linux has {listed}") };
        self.machine.succeed(&format!("cmp /boot/efi/EFI/Linux/{image} /usr/lib/bascule/boot/uki/{group}.efi"))?;
        self.machine.succeed("test ! -e /boot/efi/loader/entries && test ! -e /boot/efi/bascule")?;
        let others = listed.split_whitespace().filter(|name| *name != image).collect::<Vec<_>>().join(" ");
        self.say(
            "boot partition",
            format!("EFI/Linux/{image} is the image of the running root"),
            &format!("beside {others}"),
        );
        Ok(())
    }

    fn boot_files(&mut self) -> Result<String> {
        Ok(format!("/boot/efi/bascule/{}", text_at(&self.status()?, "/booted")))
    }
}
