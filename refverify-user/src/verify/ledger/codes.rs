//! Kinds and generations as numbers, as pages and runs have them.

use super::varint::{Reader, put_varint};
use crate::btrfs::ExtentKind;

/// The kind as a number: 0 is data, else the level and one.
pub(super) const fn kind_code(kind: ExtentKind) -> u64 {
    match kind {
        ExtentKind::Data => 0,
        ExtentKind::TreeBlock { level } => 1 + level as u64,
    }
}

/// The kind of a number; `None` is none.
pub(super) fn kind_of_code(code: u64) -> Option<ExtentKind> {
    match code.checked_sub(1) {
        None => Some(ExtentKind::Data),
        Some(level) => Some(ExtentKind::TreeBlock { level: level.try_into().ok()? }),
    }
}

/// The largest generation has no code: it is written in full.
pub(super) fn from_disk_code(from_disk: Option<u64>) -> Option<u64> {
    from_disk.map_or(Some(0), |generation| generation.checked_add(1))
}

/// What [`from_disk_code`] gave.
pub(super) const fn from_disk_of_code(code: u64) -> Option<u64> {
    code.checked_sub(1)
}

/// Appends from-disk.
pub(super) fn put_from_disk(out: &mut Vec<u8>, from_disk: Option<u64>) {
    match from_disk {
        None => put_varint(out, 0),
        Some(generation) => {
            out.push(1);
            put_varint(out, generation);
        }
    }
}

/// Reads what [`put_from_disk`] wrote.
pub(super) fn read_from_disk(reader: &mut Reader<'_>) -> Result<Option<u64>, NoCode> {
    match reader.byte() {
        Some(0) => Ok(None),
        Some(1) => reader.varint().map(Some).ok_or(NoCode),
        _ => Err(NoCode),
    }
}

/// These bytes are no code of what is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoCode;
