//! Requests of the verifier that may take time, answered on a thread of their own: the drain
//! never waits for a disk.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
    mpsc::Receiver,
};

use bytes::Bytes;
use tokio::sync::mpsc::Sender;

use super::{
    device::Device,
    disks,
    reads::{Reads, Wanted},
    symbols::Symbols,
};
use crate::feed::{BlockAnswer, BlockError, BlockRequest, ToVerifier};

/// A request.
#[derive(Debug)]
pub(super) enum Work {
    /// Read a part of a device.
    Read(BlockRequest),
    /// Name kernel addresses.
    Symbolise(Vec<u64>),
}

/// How many requests are under way.
#[derive(Clone, Debug, Default)]
pub(super) struct Pending(Arc<AtomicUsize>);

impl Pending {
    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn done(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Answers until no one asks any more, or no one listens. Reads are answered in whatever order
/// the devices do.
pub(super) fn serve(
    work: &Receiver<Work>,
    devices: &[Device],
    mut reads: Reads<BlockRequest>,
    mut symbols: Symbols,
    to_verifier: &Sender<ToVerifier>,
    pending: &Pending,
) {
    loop {
        let next = if reads.is_idle() { work.recv().ok() } else { None };
        if next.is_none() && reads.is_idle() {
            return;
        }
        let mut answers = Vec::new();
        for request in next.into_iter().chain(work.try_iter()) {
            match request {
                Work::Read(request) => match locate(devices, request) {
                    Ok(wanted) => reads.want(wanted),
                    Err(error) => answers.push(block(request, Err(error))),
                },
                Work::Symbolise(addresses) => {
                    answers.push(ToVerifier::Symbols(symbols.name_all(&addresses)));
                }
            }
        }
        answers.extend(reads.wait().into_iter().map(|(request, data)| block(request, data)));
        for answer in answers {
            let sent = to_verifier.blocking_send(answer);
            pending.done();
            if sent.is_err() {
                return;
            }
        }
    }
}

fn locate(devices: &[Device], request: BlockRequest) -> Result<Wanted<BlockRequest>, BlockError> {
    let device = usize::try_from(request.fs.0).ok().and_then(|slot| devices.get(slot));
    let device = device.ok_or(BlockError::NoDevice { devid: request.devid })?;
    if request.devid == 0 {
        // If it is never shown, it is over already.
        let _ = device.members().wait_until_shown();
    }
    disks::locate(device.members(), request)
}

fn block(request: BlockRequest, data: Result<Bytes, BlockError>) -> ToVerifier {
    ToVerifier::Block(BlockAnswer { fs: request.fs, id: request.id, data })
}
