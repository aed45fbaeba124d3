//! Reads by threads, one each: for where `io_uring` is forbidden.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, Sender},
    },
    thread,
};

use super::{Done, Read};

/// As many reads as the device gets at a time.
const THREADS: usize = 32;

/// The threads; they end when this goes.
#[derive(Debug)]
pub(super) struct Threads<T> {
    to_threads: Sender<Read<T>>,
    done: Receiver<Done<T>>,
}

impl<T: Send + 'static> Threads<T> {
    pub(super) fn start() -> io::Result<Self> {
        let (to_threads, reads) = mpsc::channel();
        let (to_us, done) = mpsc::channel();
        let reads = Arc::new(Mutex::new(reads));
        for _ in 0..THREADS {
            let (reads, to_us) = (Arc::clone(&reads), to_us.clone());
            thread::Builder::new().name("reads".to_owned()).spawn(move || serve(&reads, &to_us))?;
        }
        Ok(Self { to_threads, done })
    }

    pub(super) fn begin(&mut self, read: Read<T>) {
        // The threads end after this does.
        let _ = self.to_threads.send(read);
    }

    /// Waits for at least one that was begun.
    pub(super) fn wait(&mut self) -> Vec<Done<T>> {
        self.done.recv().into_iter().chain(self.done.try_iter()).collect()
    }
}

fn serve<T>(reads: &Mutex<Receiver<Read<T>>>, done: &Sender<Done<T>>) {
    loop {
        let next = reads.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(mut read) = next else { return };
        let result = read.buffer.fill_from(0, read.member.file(), read.offset);
        if done.send(Done { read, result }).is_err() {
            return;
        }
    }
}
