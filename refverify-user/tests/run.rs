//! The run loop, with an agent that follows a script and nobody's kernel.

use std::time::Duration;

use refverify_user::{
    feed::{Hello, HookMode, ToAgent, ToVerifier},
    report::{Format, Progress, Reporter, Settings},
    run::{Ending, Link, Stop, report_all, run},
    verify::{Notice, Verifier, VerifierConfig},
};
use tokio::{
    runtime::Builder,
    sync::mpsc::{self, Receiver, Sender},
    time::timeout,
};

/// The other ends of everything.
struct World {
    to_verifier: Sender<ToVerifier>,
    from_verifier: Receiver<ToAgent>,
    stop: Sender<Stop>,
    notices: Receiver<Notice>,
}

fn hello() -> ToVerifier {
    ToVerifier::Hello(Hello {
        kernel_release: "scripted".to_owned(),
        mode: HookMode::Kprobes,
        hooks: Vec::new(),
        unseen: Vec::new(),
        devices: vec!["/dev/scripted".to_owned()],
    })
}

/// Runs with a script for the world. A run that does not end fails.
fn play<F: Future<Output = ()>>(script: impl FnOnce(World) -> F) -> Ending {
    let (to_verifier, from_agent) = mpsc::channel(1);
    let (to_agent, from_verifier) = mpsc::channel(1);
    let (stop, stops) = mpsc::channel(4);
    let (to_reports, notices) = mpsc::channel(1);
    let world = World { to_verifier, from_verifier, stop, notices };
    let mut verifier = Verifier::new(VerifierConfig::default());
    let run = run(&mut verifier, Link { from_agent, to_agent }, stops, to_reports);
    let both = async { tokio::join!(run, script(world)).0 };
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let ended = runtime.block_on(async { timeout(Duration::from_secs(20), both).await });
    ended.expect("the run ends")
}

async fn summary_comes(notices: &mut Receiver<Notice>) -> bool {
    let mut last = None;
    while let Some(notice) = notices.recv().await {
        last = Some(notice);
    }
    matches!(last, Some(Notice::Summary(_)))
}

#[test]
fn a_stop_reaches_the_agent_and_what_it_tells_then_is_heard() {
    let ending = play(|mut world| async move {
        world.to_verifier.send(hello()).await.unwrap();
        world.stop.send(Stop::WhenAllIsTold).await.unwrap();
        assert!(matches!(world.notices.recv().await, Some(Notice::Started(_))));
        assert_eq!(world.from_verifier.recv().await, Some(ToAgent::Stop));
        world.to_verifier.send(ToVerifier::DumpWanted).await.unwrap();
        assert!(matches!(world.notices.recv().await, Some(Notice::Dump(_))));
        world.to_verifier.send(ToVerifier::Bye).await.unwrap();
        assert!(summary_comes(&mut world.notices).await);
    });
    assert_eq!(ending, Ending::Whole);
}

#[test]
fn a_signal_and_a_reader_that_goes_at_the_same_time_are_one_stop() {
    let ending = play(|mut world| async move {
        for _ in 0..3 {
            world.stop.send(Stop::WhenAllIsTold).await.unwrap();
        }
        assert_eq!(world.from_verifier.recv().await, Some(ToAgent::Stop));
        world.to_verifier.send(ToVerifier::Bye).await.unwrap();
        assert!(summary_comes(&mut world.notices).await);
        assert_eq!(world.from_verifier.recv().await, None, "asked once");
    });
    assert_eq!(ending, Ending::Whole);
}

#[test]
fn an_agent_that_goes_without_a_word_is_not_a_clean_end() {
    let ending = play(|mut world| async move {
        world.to_verifier.send(hello()).await.unwrap();
        drop(world.to_verifier);
        drop(world.from_verifier);
        assert!(summary_comes(&mut world.notices).await, "what is known is still told");
    });
    assert_eq!(ending, Ending::CutShort);
}

#[test]
fn an_agent_that_hangs_can_be_left() {
    let ending = play(|mut world| async move {
        world.stop.send(Stop::WhenAllIsTold).await.unwrap();
        assert_eq!(world.from_verifier.recv().await, Some(ToAgent::Stop));
        world.stop.send(Stop::Now).await.unwrap();
        assert!(summary_comes(&mut world.notices).await);
        assert!(world.to_verifier.is_closed(), "it was there all the time");
    });
    assert_eq!(ending, Ending::CutShort);
}

/// A pipe that nobody reads.
struct Gone;

impl std::io::Write for Gone {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn when_nobody_reads_the_reports_the_run_is_asked_to_stop_once() {
    let (to_reports, notices) = mpsc::channel(4);
    let (stop, mut stops) = mpsc::channel(4);
    let ToVerifier::Hello(hello) = hello() else { unreachable!() };
    for _ in 0..3 {
        to_reports.blocking_send(Notice::Started(hello.clone())).unwrap();
    }
    drop(to_reports);
    let settings = Settings { format: Format::Json, ledger_dump: None, vm: None };
    let reporter = Reporter::new(settings, Gone, None, Progress::in_log());
    let outcome = report_all(notices, reporter, &stop);
    drop(stop);
    assert_eq!(stops.blocking_recv(), Some(Stop::WhenAllIsTold));
    assert_eq!(stops.blocking_recv(), None);
    assert!(!outcome.output_failed);
}
