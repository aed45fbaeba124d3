//! Reads by `io_uring`.

use std::{io, os::fd::AsRawFd, thread, time::Duration};

use io_uring::{IoUring, Probe, opcode, types};

use super::{Done, Read, UNDER_WAY_MAX};

/// Before trying again what failed for the moment.
const PAUSE: Duration = Duration::from_millis(1);

/// A ring, and the reads that the kernel works on.
pub(super) struct Ring<T> {
    queues: IoUring,
    /// Each read stays in its slot, untouched, until the kernel says that it is over.
    slots: Vec<Option<Read<T>>>,
    free: Vec<usize>,
}

impl<T> std::fmt::Debug for Ring<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let under_way = self.slots.len() - self.free.len();
        f.debug_struct("Ring").field("under_way", &under_way).finish_non_exhaustive()
    }
}

impl<T> Ring<T> {
    /// Sets a ring up and sees it work.
    ///
    /// # Errors
    ///
    /// The kernel is too old (5.6 has reads), or `io_uring_disabled`, a seccomp filter or a
    /// limit forbids it.
    pub(super) fn new() -> io::Result<Self> {
        let entries = u32::try_from(UNDER_WAY_MAX).map_err(io::Error::other)?;
        let mut queues = IoUring::new(entries)?;
        let mut probe = Probe::new();
        queues.submitter().register_probe(&mut probe)?;
        if !probe.is_supported(opcode::Read::CODE) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // SAFETY: this entry has neither memory nor file.
        unsafe { queues.submission().push(&opcode::Nop::new().build()) }
            .map_err(io::Error::other)?;
        queues.submit_and_wait(1)?;
        if queues.completion().next().is_none() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let slots = (0..UNDER_WAY_MAX).map(|_| None).collect();
        Ok(Self { queues, slots, free: (0..UNDER_WAY_MAX).collect() })
    }

    /// Hands a read to the kernel, which is done in [`Ring::wait`]; there is room for
    /// [`UNDER_WAY_MAX`].
    pub(super) fn begin(&mut self, mut read: Read<T>) {
        let slot = self.free.pop().expect("there are never more reads than slots");
        let fd = types::Fd(read.member.file().as_raw_fd());
        let bytes = read.buffer.bytes_mut();
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let entry = opcode::Read::new(fd, bytes.as_mut_ptr(), len)
            .offset(read.offset)
            .build()
            .user_data(slot as u64);
        self.slots[slot] = Some(read);
        // SAFETY: the kernel may write to the buffer and use the file until the entry's
        // completion comes. Both belong to the read, which stays in its slot until then: only
        // `take_completed` takes it out, and `drop` waits for all. The buffer's pages are on
        // the heap, so that they stay where they are when the read is moved.
        let pushed = unsafe { self.queues.submission().push(&entry) };
        pushed.expect("the ring has as many entries as there are slots");
    }

    /// Has the kernel take what was begun.
    pub(super) fn submit(&mut self) {
        // What it does not take now it takes when it is waited for.
        if let Err(error) = self.queues.submit() {
            tracing::debug!("io_uring_enter: {error}");
        }
    }

    /// Waits for at least one that was begun.
    pub(super) fn wait(&mut self) -> Vec<Done<T>> {
        loop {
            // A ring that worked fails by a signal, or because the kernel is short of
            // something for the moment.
            if let Err(error) = self.queues.submit_and_wait(1)
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::debug!("io_uring_enter: {error}");
                thread::sleep(PAUSE);
            }
            let done = self.take_completed();
            if !done.is_empty() {
                return done;
            }
        }
    }

    fn take_completed(&mut self) -> Vec<Done<T>> {
        let mut all_done = Vec::new();
        for completion in self.queues.completion() {
            let slot = usize::try_from(completion.user_data()).unwrap_or(usize::MAX);
            let Some(mut read) = self.slots.get_mut(slot).and_then(Option::take) else { continue };
            self.free.push(slot);
            let result = finish(&mut read, completion.result());
            all_done.push(Done { read, result });
        }
        all_done
    }
}

/// What came of a read, by what its completion says: a number of bytes, or an error below 0.
fn finish<T>(read: &mut Read<T>, told: i32) -> io::Result<()> {
    match usize::try_from(told) {
        // More than was asked for is impossible; less is rare, and an end of the device.
        Ok(len) => read.buffer.fill_from(len, read.member.file(), read.offset),
        Err(_) => Err(io::Error::from_raw_os_error(told.saturating_neg())),
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        while self.free.len() < self.slots.len() {
            self.wait();
        }
    }
}
