//! One guest, watched until it or we have gone.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::mpsc;

use super::{converse::Lost, guest::Attached};
use crate::{
    feed::{FsSlot, Namer, Recent, Tee, ToAgent, recording::Recorder},
    report::{Flight, Reporter, write_flight},
    run::Link,
    session::{EXIT_GAPS, SessionError, Stops, Told, judge},
    verify::Verifier,
};

/// Messages of a guest that wait here: few, so that a guest takes little memory.
const MESSAGES_MAX: usize = 16;

/// How many extents a flight record tells of.
const EXTENTS_MAX: usize = 10_000;

/// What watching a guest needs.
#[expect(missing_debug_implementations, reason = "a model of millions of extents")]
pub struct Watching<W> {
    /// What reports call the guest.
    pub name: String,
    /// Judges.
    pub verifier: Verifier,
    /// Reports.
    pub reporter: Reporter<W>,
    /// By which it is asked to stop.
    pub stops: Stops,
    /// Records, if that is wanted.
    pub recorder: Option<Recorder<File>>,
    /// How long the guest may be silent.
    pub patience: Duration,
    /// Where a flight record goes.
    pub flight_dir: PathBuf,
}

/// Watches a guest until it or we have gone; returns the exit status. `asks` gets a way to ask
/// the agent for more.
///
/// # Errors
/// A thread of ours fails.
pub async fn watch<W: Write + Send + 'static>(
    attached: Attached,
    watching: Watching<W>,
    asks: impl FnOnce(mpsc::WeakSender<ToAgent>),
) -> Result<u8, SessionError> {
    let Watching { name, mut verifier, reporter, stops, recorder, patience, flight_dir } = watching;
    let (to_verifier, from_agent) = mpsc::channel(MESSAGES_MAX);
    let (to_agent, from_verifier) = mpsc::channel(MESSAGES_MAX);
    asks(to_agent.downgrade());
    let namer = Some(Namer::new(&to_agent));
    let tee = Tee { recorder, namer, recent: Some(Recent::default()) };
    let talk = attached.converse(patience, to_verifier, from_verifier);
    let link = Link { from_agent, to_agent };
    let judging = judge(link, &mut verifier, reporter, stops, Some(tee));
    let (talked, told) = tokio::join!(talk, judging);
    let told = told?;
    let status = told.status();
    let Err(lost) = talked else { return Ok(status) };
    tracing::error!("{name} is lost: {lost}");
    match record_flight(&name, &lost, &verifier, told, &flight_dir) {
        Ok([text, json]) => {
            let (text, json) = (text.display(), json.display());
            tracing::error!("{name}: what was known of it is in {text} and {json}");
        }
        Err(error) => tracing::error!("{name}: the flight record cannot be written: {error}"),
    }
    // One that cannot be believed after its farewell could not before.
    Ok(status | EXIT_GAPS)
}

/// Writes what is known of a guest that was lost.
fn record_flight(
    name: &str,
    lost: &Lost,
    verifier: &Verifier,
    told: Told,
    dir: &Path,
) -> io::Result<[PathBuf; 2]> {
    let recent = told.tee.and_then(|end| end.recent).unwrap_or_default();
    let hello = recent.hello().cloned();
    let (events, events_given_up) = recent.into_events();
    let touched: BTreeSet<(FsSlot, u64)> =
        events.iter().rev().take(EXTENTS_MAX).map(|event| (event.fs, event.bytenr())).collect();
    let extent = |(fs, bytenr)| Some((fs, verifier.extent(fs, bytenr)?));
    let flight = Flight {
        vm: name.to_owned(),
        reason: lost.to_string(),
        hello,
        findings: told.outcome.findings.into(),
        extents: touched.into_iter().filter_map(extent).collect(),
        events,
        events_given_up,
        symbols: verifier.symbols(),
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    write_flight(&flight, dir, now.as_secs())
}
