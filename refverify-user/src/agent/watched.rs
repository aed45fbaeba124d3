//! Tells the eBPF programs which devices are those of watched file systems.
//!
//! A file system of several devices is mounted from any of them, and they come and go: all that
//! it has are told, and told anew when they change.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use aya::maps::{HashMap, MapData, MapError};
use refverify_common::{DeviceName, NOT_WATCHED};

use super::device::{Device, DeviceKey};

/// The maps of the eBPF programs, and what is in them.
#[derive(Debug)]
pub(super) struct WatchedDevices {
    /// Device numbers to slots.
    numbers: HashMap<MapData, u32, u32>,
    /// Device names to slots.
    names: HashMap<MapData, DeviceName, u32>,
    /// What the programs remember of each file system that they have met.
    file_systems: HashMap<MapData, u64, u32>,
    /// By slot: what was told last, and when it was looked at.
    told: BTreeMap<u32, (Vec<DeviceKey>, Instant)>,
}

impl WatchedDevices {
    /// Nothing is told yet.
    pub(super) fn new(
        numbers: HashMap<MapData, u32, u32>,
        names: HashMap<MapData, DeviceName, u32>,
        file_systems: HashMap<MapData, u64, u32>,
    ) -> Self {
        Self { numbers, names, file_systems, told: BTreeMap::new() }
    }

    /// Makes known which devices the file system of a slot has now, unless that was done within
    /// `period`.
    ///
    /// # Errors
    ///
    /// The maps do not take them.
    pub(super) fn tell(
        &mut self,
        slot: u32,
        device: &Device,
        period: Duration,
    ) -> Result<(), MapError> {
        let now = Instant::now();
        let told = match self.told.get_mut(&slot) {
            Some((_, at)) if now.duration_since(*at) < period => return Ok(()),
            Some((told, at)) => {
                *at = now;
                std::mem::take(told)
            }
            None => Vec::new(),
        };
        let keys = device.keys();
        let is_new = keys.iter().any(|key| !told.contains(key));
        // First in, then out: a device that stays is known throughout.
        for key in keys.iter().filter(|key| !told.contains(key)) {
            self.numbers.insert(key.number, slot, 0)?;
            if let Some(name) = key.name {
                self.names.insert(name, slot, 0)?;
            }
        }
        for key in told.iter().filter(|key| !keys.contains(key)) {
            self.remove(slot, key);
        }
        self.told.insert(slot, (keys, now));
        if is_new { self.forget_unwatched() } else { Ok(()) }
    }

    /// The device may have become another watched file system's meanwhile.
    fn remove(&mut self, slot: u32, key: &DeviceKey) {
        if self.numbers.get(&key.number, 0).is_ok_and(|of| of == slot) {
            // It was there just now.
            let _ = self.numbers.remove(&key.number);
        }
        if let Some(name) = key.name
            && self.names.get(&name, 0).is_ok_and(|of| of == slot)
        {
            let _ = self.names.remove(&name);
        }
    }

    /// A file system that was met by a device that was not known yet is to be looked at again.
    fn forget_unwatched(&mut self) -> Result<(), MapError> {
        let met: Vec<(u64, u32)> = self.file_systems.iter().collect::<Result<_, _>>()?;
        for (fs_info, slot) in met {
            if slot == NOT_WATCHED {
                // It may just have gone.
                let _ = self.file_systems.remove(&fs_info);
            }
        }
        Ok(())
    }
}
