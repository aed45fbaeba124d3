//! Verifying a recording again.

use std::{
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use refverify_user::{
    cli::Replay,
    explain::open,
    feed::{
        ToVerifier,
        recording::{End, Player},
    },
    run::{Link, Stop},
    session::{EXIT_SETUP, MESSAGES_MAX, Stops, judge},
    verify::Verifier,
};
use tokio::sync::mpsc;

use super::{Fallible, output::Output, runtime, signals::Signals, verifier_config};

/// Verifies a recording; returns the exit status.
pub(crate) fn replay(asked: &Replay) -> Fallible<u8> {
    let player = open(&asked.file)?;
    let output = Output::start(&asked.reports)?;
    let runtime = runtime()?;
    let signals = Signals::new(&runtime, &asked.reports)?;
    let reporter = output.reporter(&asked.reports, player.header().vm.clone())?;
    let audit = player.header().audit_seconds;
    let mut verifier = Verifier::new(verifier_config(&asked.reports, asked.memory, audit));
    let status = runtime.block_on(async {
        let (to_verifier, from_agent) = mpsc::channel(MESSAGES_MAX);
        let (to_agent, from_verifier) = mpsc::channel(1);
        // Nobody answers: the answers are recorded.
        drop(from_verifier);
        let stops = Stops::default();
        let dump = Arc::new(AtomicBool::new(false));
        let heard = Arc::clone(&dump);
        tokio::spawn(signals.heed(stops.ask.clone(), Stop::Now, move || {
            heard.store(true, Ordering::Release);
        }));
        let player = thread::Builder::new()
            .name("player".to_owned())
            .spawn(move || play(player, &to_verifier, &dump))?;
        let link = Link { from_agent, to_agent };
        let told = judge(link, &mut verifier, reporter, stops, None).await?;
        let could_read = player.join().is_ok_and(|could_read| could_read);
        Ok(told.status() | if could_read { 0 } else { EXIT_SETUP })
    });
    // A thread that hangs must not hold this up.
    runtime.shutdown_background();
    status
}

/// Tells a recording; says where it breaks off. False when it cannot be read.
fn play<R: Read>(
    mut player: Player<R>,
    to_verifier: &mpsc::Sender<ToVerifier>,
    dump: &AtomicBool,
) -> bool {
    loop {
        if dump.swap(false, Ordering::AcqRel)
            && to_verifier.blocking_send(ToVerifier::DumpWanted).is_err()
        {
            return true;
        }
        match player.next_message() {
            Ok(Some(message)) => {
                if to_verifier.blocking_send(message).is_err() {
                    return true;
                }
            }
            Ok(None) => break,
            Err(error) => {
                tracing::error!("{error}");
                return false;
            }
        }
    }
    if let Some(End::Cut { offset, reason }) = player.end() {
        tracing::warn!("the recording breaks off after {offset} bytes, where there is {reason}");
    }
    true
}
