//! Boot files of a device whose loader cannot read the slots: they go with the group, and what is the device's stays its own.

use anyhow::{Result, ensure};

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

    fn boot_files(&mut self) -> Result<String> {
        Ok(format!("/boot/efi/bascule/{}", text_at(&self.status()?, "/booted")))
    }
}
