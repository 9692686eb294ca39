//! The demo's scenes as tests, and what there is no time for in the demo, each on a device of its own.

use anyhow::Result;
use bascule_image::disk::Loader;
use bascule_tests::scenes::Stage;
use bascule_tests::{Images, MachineBuilder};

/// A device that left the factory with v2: what the later scenes of the demo begin with.
fn factory_v2(scene: &str) -> Result<Stage> {
    Stage::set_with(scene, |builder| builder.factory(Loader::Grub, "v2"))
}

#[test]
fn a_good_system_is_installed_by_delta_while_the_old_one_works_and_is_committed() -> Result<()> {
    Stage::set("scene-good")?.installs_a_good_system("v2")
}

#[test]
fn a_delta_onto_a_root_that_was_written_to_is_healed_chunk_by_chunk() -> Result<()> {
    Stage::set("scene-written-to")?.heals_a_delta_where_the_root_was_written_to("v2")
}

#[test]
fn a_delta_that_was_cut_off_goes_on_where_it_was_after_the_next_start() -> Result<()> {
    Stage::set("scene-cut-off")?.finishes_a_delta_that_was_cut_off("v2")
}

#[test]
fn bundles_of_strangers_of_other_hardware_truncated_or_older_are_refused_and_change_nothing() -> Result<()> {
    factory_v2("scene-refused")?.refuses_bad_bundles()
}

#[test]
fn an_unhealthy_system_is_rolled_back_and_not_taken_again() -> Result<()> {
    factory_v2("scene-unhealthy")?.rolls_back_an_unhealthy_system()
}

#[test]
fn the_deadline_brings_a_device_back_whose_daemon_was_stopped() -> Result<()> {
    factory_v2("scene-deadline")?.goes_back_at_the_deadline_without_the_daemon()
}

#[test]
fn claim_g10_a_system_that_does_not_boot_is_given_up_by_the_loader_and_the_old_one_says_so() -> Result<()> {
    factory_v2("scene-no-boot")?.comes_back_from_a_system_that_does_not_boot()
}

#[test]
fn claim_g10_after_exactly_three_tries_that_failed_in_three_ways_the_old_system_runs() -> Result<()> {
    factory_v2("scene-three-ways")?.comes_back_from_three_ways_not_to_boot()
}

#[test]
fn a_system_that_hangs_is_reset_by_the_hardware_watchdog_until_the_loader_falls_back() -> Result<()> {
    let make = |builder: MachineBuilder| builder.factory(Loader::Grub, "v2").watchdog();
    Stage::set_with("scene-watchdog", make)?.is_reset_by_the_hardware_watchdog()
}

#[test]
fn the_deadline_brings_a_device_back_whose_init_has_crashed_and_whose_daemon_is_stopped() -> Result<()> {
    factory_v2("scene-frozen")?.goes_back_by_force_without_init_and_daemon()
}

#[test]
fn claim_j2_beside_a_clone_of_its_disk_the_agent_does_nothing_and_names_both() -> Result<()> {
    Stage::dark("scene-clone", |builder| builder)?.does_nothing_beside_a_clone("v2")
}

#[test]
fn an_install_that_was_cut_off_is_finished_after_the_next_start() -> Result<()> {
    factory_v2("scene-interrupted")?.finishes_an_interrupted_install()
}

#[test]
fn claim_g9_a_system_in_which_no_program_of_the_agent_runs_is_restarted_until_the_loader_falls_back() -> Result<()> {
    factory_v2("scene-no-agent")?.comes_back_from_a_system_without_an_agent()
}

#[test]
fn claims_g2_g4_g11_a_hook_is_contained_a_spoilt_slot_is_found_out_and_a_daemon_that_hung_goes_on() -> Result<()> {
    let mut stage = factory_v2("scene-hooks")?;
    stage.contains_a_hook_that_forks_without_end()?;
    stage.finds_out_a_hook_that_writes_into_the_prepared_slot()?;
    stage.goes_on_after_its_daemon_hung()
}

/// Another loader with the same systems; `cargo xtask demo --loader` plays more on it.
fn on(scene: &str, loader: Loader) -> Result<Stage> {
    Stage::set_with(scene, |builder| builder.factory(loader, "v2"))
}

#[test]
fn on_systemd_boot_a_bad_system_is_given_up_and_a_good_one_committed() -> Result<()> {
    let mut stage = on("scene-systemd-boot", Loader::SystemdBoot)?;
    stage.owner_changes_a_boot_file()?;
    stage.comes_back_from_a_system_that_does_not_boot()?;
    stage.boot_files_are_of_the_running_version()?;
    stage.finishes_an_interrupted_install()?;
    stage.boot_files_are_of_the_running_version()
}

#[test]
fn on_systemd_boot_nothing_is_blessed_before_its_verdict() -> Result<()> {
    on("scene-bless-boot", Loader::SystemdBoot)?.is_not_blessed_before_its_verdict()
}

#[test]
fn by_unified_kernel_images_a_bad_system_is_given_up_and_a_good_one_committed() -> Result<()> {
    let mut stage = Stage::set_on(Images::load_unified()?, "scene-unified", |builder| builder)?;
    stage.was_started_by_its_unified_image()?;
    stage.comes_back_from_a_system_that_does_not_boot()?;
    stage.was_started_by_its_unified_image()?;
    stage.finishes_an_interrupted_install()?;
    stage.was_started_by_its_unified_image()
}

#[test]
fn on_firmware_alone_a_system_that_does_not_boot_is_given_up() -> Result<()> {
    on("scene-efi", Loader::Efi)?.comes_back_from_a_system_that_does_not_boot()
}
