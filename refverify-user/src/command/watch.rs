//! Watching this machine.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use refverify_user::{
    agent::Agent,
    cli::Watch,
    feed::{Namer, Tee},
    run::{Link, Stop},
    session::{EXIT_SETUP, MESSAGES_MAX, Stops, judge},
    verify::Verifier,
};
use tokio::sync::mpsc;

use super::{
    Fallible, agent_config, output::Output, recorder, runtime, signals::Signals, verifier_config,
};

/// Watches until it is asked to stop; returns the exit status.
pub(crate) fn watch(watch: Watch) -> Fallible<u8> {
    let output = Output::start(&watch.reports)?;
    // Before the agent, which takes its time: a signal that comes meanwhile waits.
    let runtime = runtime()?;
    let signals = Signals::new(&runtime, &watch.reports)?;
    let agent = Agent::start(agent_config(&watch.probes, watch.devices))?;
    let recorder = recorder(watch.record.as_deref(), None, watch.audits.seconds)?;
    let reporter = output.reporter(&watch.reports, None)?;
    let config = verifier_config(&watch.reports, watch.memory, watch.audits.seconds);
    let mut verifier = Verifier::new(config);
    let status = runtime.block_on(async {
        let (to_verifier, from_agent) = mpsc::channel(MESSAGES_MAX);
        let (to_agent, from_verifier) = mpsc::channel(MESSAGES_MAX);
        let (stops, dump) = (Stops::default(), Arc::new(AtomicBool::new(false)));
        let heard = Arc::clone(&dump);
        tokio::spawn(signals.heed(stops.ask.clone(), Stop::WhenAllIsTold, move || {
            heard.store(true, Ordering::Release);
        }));
        let agent = thread::Builder::new()
            .name("agent".to_owned())
            .spawn(move || agent.run(to_verifier, from_verifier, dump))?;
        let tee = recorder.map(|recorder| Tee {
            recorder: Some(recorder),
            namer: Some(Namer::new(&to_agent)),
            recent: None,
        });
        let link = Link { from_agent, to_agent };
        let told = judge(link, &mut verifier, reporter, stops, tee).await?;
        // An agent that was left behind is not waited for.
        let failed = told.ending.is_whole() && agent.join().is_err();
        if failed {
            tracing::error!("the thread that watches has failed");
        }
        Ok(told.status() | if failed { EXIT_SETUP } else { 0 })
    });
    // A thread that hangs must not hold this up.
    runtime.shutdown_background();
    status
}
