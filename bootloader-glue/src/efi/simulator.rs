//! The firmware's boot manager as a function of the variables: the same files in, the same choice and changes out.
//!
//! Written after the UEFI specification 2.10, section 3.1.1, and the order of EDK II's boot manager: `BootNext` is deleted
//! before its entry is started, whether that can be started or not; then the entries of `BootOrder` one after the other.
//! No real firmware has been held against it yet.

use std::fs;
use std::io;
use std::path::Path;

use bascule_core::Group;

use super::option::{LoadOption, description, units};
use super::settings::{entry_name, next_path, order_path, single};
use super::store::{SEEN_AT_START, Store, Value};

pub use crate::script::Ending;

/// What `BootCurrent` has for attributes: it is gone without power.
const VOLATILE: u32 = 6;

/// One start of the firmware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// How it ended; [`Ending::Recovery`] means that the firmware goes on to what it knows itself.
    pub ending: Ending,
    /// The numbers of the entries that were tried, in order.
    pub tried: Vec<u16>,
}

/// Starts the firmware once, unattended, with the variables in this directory.
///
/// `loads` tells for a group whether its kernel can be loaded. Entries of others never load, as an empty drive's.
///
/// # Errors
/// When the variables cannot be read or changed.
pub fn start(dir: &Path, loads: impl Fn(Group) -> bool) -> io::Result<Start> {
    let store = Store::new(dir.to_owned());
    let read = |path: &Path| -> io::Result<Option<Value>> {
        let value = store.read(path).map_err(io::Error::other)?;
        Ok(value.filter(|value| value.attributes & SEEN_AT_START != 0))
    };
    remove(&store.global("BootCurrent"))?;
    let next = read(&next_path(&store))?;
    remove(&next_path(&store))?;
    let order = read(&order_path(&store))?.map(|value| value.data).unwrap_or_default();
    let mut start = Start { ending: Ending::Recovery, tried: Vec::new() };
    for number in single(next).into_iter().chain(units(&order)) {
        let option = read(&store.global(&entry_name(number)))?.and_then(|value| LoadOption::parse(&value.data));
        let Some(option) = option.filter(LoadOption::is_active) else { continue };
        start.tried.push(number);
        let group = Group::ALL.into_iter().find(|group| option.description == description(*group));
        if let Some(group) = group.filter(|group| loads(*group)) {
            let current = [&VOLATILE.to_le_bytes()[..], &number.to_le_bytes()].concat();
            fs::write(store.global("BootCurrent"), current)?;
            start.ending = Ending::Started(group);
            break;
        }
    }
    Ok(start)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
