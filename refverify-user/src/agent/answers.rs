//! Requests of the verifier that may take time, answered on a thread of their own: the drain
//! never waits for a disk.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
    mpsc::Receiver,
};

use tokio::sync::mpsc::Sender;

use super::{device::Device, symbols::Symbols};
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

/// Answers until no one asks any more, or no one listens.
pub(super) fn serve(
    work: Receiver<Work>,
    devices: &[Device],
    to_verifier: &Sender<ToVerifier>,
    pending: &Pending,
) {
    let mut symbols = Symbols::default();
    for request in work {
        let answer = match request {
            Work::Read(request) => ToVerifier::Block(read(devices, &request)),
            Work::Symbolise(addresses) => ToVerifier::Symbols(symbols.name_all(&addresses)),
        };
        let sent = to_verifier.blocking_send(answer);
        pending.done();
        if sent.is_err() {
            return;
        }
    }
}

fn read(devices: &[Device], request: &BlockRequest) -> BlockAnswer {
    let device = usize::try_from(request.fs.0).ok().and_then(|slot| devices.get(slot));
    let data = match device {
        Some(device) => device.read(request),
        None => Err(BlockError::NoDevice { devid: request.devid }),
    };
    BlockAnswer { fs: request.fs, id: request.id, data }
}
