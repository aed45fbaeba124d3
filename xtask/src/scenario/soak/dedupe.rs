//! `FIDEDUPERANGE`: two files share what is equal in them.

use std::{fs::File, io, os::fd::AsRawFd};

use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// `struct file_dedupe_range` with one `struct file_dedupe_range_info` (kernel:
/// `include/uapi/linux/fs.h`).
#[repr(C)]
struct Request {
    src_offset: u64,
    src_length: u64,
    dest_count: u16,
    reserved1: u16,
    reserved2: u32,
    dest_fd: i64,
    dest_offset: u64,
    bytes_deduped: u64,
    status: i32,
    reserved: u32,
}

/// The length that the request's number holds is that of the struct without its list.
const HEAD_BYTES: usize = 24;

const FIDEDUPERANGE: Opcode = opcode::read_write::<[u8; HEAD_BYTES]>(0x94, 54);

/// Both from their beginnings. Returns how many bytes are shared.
pub(super) fn dedupe(from: &File, to: &File, len_bytes: u64) -> io::Result<u64> {
    let mut request = Request {
        src_offset: 0,
        src_length: len_bytes,
        dest_count: 1,
        reserved1: 0,
        reserved2: 0,
        dest_fd: to.as_raw_fd().into(),
        dest_offset: 0,
        bytes_deduped: 0,
        status: 0,
        reserved: 0,
    };
    // SAFETY: the request says that one destination follows its head, and it does.
    unsafe { ioctl(from, Updater::<FIDEDUPERANGE, Request>::new(&mut request))? };
    if request.status < 0 {
        return Err(io::Error::from_raw_os_error(-request.status));
    }
    Ok(request.bytes_deduped)
}
