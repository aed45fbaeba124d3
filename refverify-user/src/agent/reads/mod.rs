//! Reads of devices, many at a time: neighbours in one, each answered by itself.
//!
//! By `io_uring`; where that is forbidden, by threads.

use std::{collections::VecDeque, io, sync::Arc};

use bytes::Bytes;

use super::member::Member;
use crate::feed::{BlockError, BlockRequest};

mod buffer;
mod limit;
mod ring;
mod threads;

use buffer::{Buffer, Pool};
use limit::Limit;
use ring::Ring;
use threads::Threads;

/// So many reads are under way at a time.
const UNDER_WAY_MAX: usize = 64;

/// A part of a device that is wanted.
#[derive(Debug)]
pub(super) struct Wanted<T> {
    /// The device.
    pub(super) member: Arc<Member>,
    /// Where: a multiple of 4096.
    pub(super) offset: u64,
    /// How much: a multiple of 4096, at most [`BlockRequest::LEN_MAX_BYTES`].
    pub(super) len_bytes: u32,
    /// What the answer is told with.
    pub(super) tag: T,
}

/// What was read for a tag.
pub(super) type Answer<T> = (T, Result<Bytes, BlockError>);

/// One read of a device: what is wanted of it without a gap.
#[derive(Debug)]
struct Read<T> {
    member: Arc<Member>,
    offset: u64,
    buffer: Buffer,
    parts: Vec<(u32, T)>,
}

/// A read that is over.
#[derive(Debug)]
struct Done<T> {
    read: Read<T>,
    result: io::Result<()>,
}

#[derive(Debug)]
enum Queue<T> {
    Ring(Box<Ring<T>>),
    Threads(Threads<T>),
}

impl<T: Send + 'static> Queue<T> {
    /// Sees that the device gets what was begun.
    fn submit(&mut self) {
        match self {
            Self::Ring(ring) => ring.submit(),
            // They have begun.
            Self::Threads(_) => {}
        }
    }
}

/// What is being read, and what waits for room.
#[derive(Debug)]
pub(super) struct Reads<T> {
    queue: Queue<T>,
    /// Since the last wait.
    new: Vec<Wanted<T>>,
    /// What was wanted first comes first: whoever wants it waits for it first.
    waiting: VecDeque<Wanted<T>>,
    under_way: usize,
    pool: Pool,
    limit: Option<Limit>,
}

impl<T: Send + 'static> Reads<T> {
    /// Nothing is read yet. No more than `limit_bytes` a second will be, where it is given.
    ///
    /// # Errors
    ///
    /// There is no `io_uring`, and no thread can be started either.
    pub(super) fn new(limit_bytes: Option<u64>) -> io::Result<Self> {
        let queue = match Ring::new() {
            Ok(ring) => Queue::Ring(Box::new(ring)),
            Err(error) => {
                tracing::info!("reading with threads, because io_uring cannot be used: {error}");
                Queue::Threads(Threads::start()?)
            }
        };
        Ok(Self::with_queue(queue, limit_bytes))
    }

    fn with_queue(queue: Queue<T>, limit_bytes: Option<u64>) -> Self {
        let limit = limit_bytes.map(Limit::new);
        let (new, waiting) = (Vec::new(), VecDeque::new());
        Self { queue, new, waiting, under_way: 0, pool: Pool::default(), limit }
    }

    /// Whether there is nothing to wait for.
    pub(super) fn is_idle(&self) -> bool {
        self.under_way == 0 && self.waiting.is_empty() && self.new.is_empty()
    }

    /// Wants a part of a device. It is read in [`Reads::wait`].
    pub(super) fn want(&mut self, wanted: Wanted<T>) {
        self.new.push(wanted);
    }

    /// Reads what is wanted, and waits until something of it is there. Nothing comes of it
    /// when nothing is wanted.
    pub(super) fn wait(&mut self) -> Vec<Answer<T>> {
        self.begin_waiting();
        if self.under_way == 0 {
            return Vec::new();
        }
        let done = match &mut self.queue {
            Queue::Ring(ring) => ring.wait(),
            Queue::Threads(threads) => threads.wait(),
        };
        self.under_way -= done.len();
        let mut answers = Vec::new();
        for done in done {
            answer(done, &mut answers);
        }
        answers
    }

    fn begin_waiting(&mut self) {
        // Neighbours are found among what is wanted at one time.
        self.new.sort_by_key(|wanted| (Arc::as_ptr(&wanted.member), wanted.offset));
        self.waiting.extend(self.new.drain(..));
        while self.under_way < UNDER_WAY_MAX {
            let Some(first) = self.waiting.pop_front() else { break };
            let (member, offset, mut len) = (first.member, first.offset, first.len_bytes);
            let mut parts = vec![(first.len_bytes, first.tag)];
            while let Some(next) = self.waiting.pop_front_if(|next| {
                Arc::ptr_eq(&member, &next.member)
                    && Some(next.offset) == offset.checked_add(len.into())
                    && len.saturating_add(next.len_bytes) <= BlockRequest::LEN_MAX_BYTES
            }) {
                len += next.len_bytes;
                parts.push((next.len_bytes, next.tag));
            }
            if let Some(limit) = &mut self.limit {
                // Or else all that was spread over time would be read at its end.
                self.queue.submit();
                limit.spend(len);
            }
            self.begin(Read { member, offset, buffer: self.pool.take(len), parts });
        }
    }

    fn begin(&mut self, read: Read<T>) {
        self.under_way += 1;
        match &mut self.queue {
            Queue::Ring(ring) => ring.begin(read),
            Queue::Threads(threads) => threads.begin(read),
        }
    }
}

/// Gives each tag its part.
fn answer<T>(done: Done<T>, answers: &mut Vec<Answer<T>>) {
    let Done { read: Read { member, offset, buffer, mut parts }, result } = done;
    match result {
        Ok(()) => {
            let mut rest = Bytes::from_owner(buffer);
            let part = |(len, tag): (u32, T)| (tag, Ok(rest.split_to(len as usize)));
            answers.extend(parts.into_iter().map(part));
        }
        Err(error) if parts.len() == 1 => {
            let failed = |len| Err(member.failed(offset, len, error.to_string()));
            answers.extend(parts.pop().map(|(len, tag)| (tag, failed(len))));
        }
        // One bad sector is no reason to give up its neighbours.
        Err(_) => {
            let mut at = offset;
            for (len, tag) in parts {
                answers.push((tag, member.read(at, len)));
                at += u64::from(len);
            }
        }
    }
}

#[cfg(test)]
mod tests;
