//! The flight record: what is known of a virtual machine's last moments.

use std::{
    fmt::Write,
    io,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{
    dump_file::write_atomically,
    json::finding::{CauseFields, ExtentBody, FindingBody},
    printable::Printable,
    text,
    watched::Watched,
};
use crate::{
    feed::{Event, FsSlot, Hello},
    verify::{ExtentDump, Finding, Notice, Symbols},
};

/// What a flight record tells.
#[derive(Debug)]
pub struct Flight {
    /// The virtual machine.
    pub vm: String,
    /// Why nothing more came, in one sentence.
    pub reason: String,
    /// What it had said of itself; `None` when it was lost before.
    pub hello: Option<Hello>,
    /// The findings, oldest first.
    pub findings: Vec<Finding>,
    /// The events of its last transactions, in the order in which they came.
    pub events: Vec<Event>,
    /// How many events of these transactions are not among them.
    pub events_given_up: u64,
    /// The extents that these events touched, as they were known at the end.
    pub extents: Vec<(FsSlot, ExtentDump)>,
    /// The texts of addresses.
    pub symbols: Symbols,
}

/// Said of every guest that was lost.
const WHAT_IS_MISSING: &str = "What was still in the guest's ring buffer died with it.";

/// Writes a flight record as text and as JSON, into files of a directory that are named by the
/// virtual machine and `unix_time`, readable by their owner only.
///
/// # Errors
/// A file cannot be written.
pub fn write_flight(flight: &Flight, dir: &Path, unix_time: u64) -> io::Result<[PathBuf; 2]> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let vm: String = flight.vm.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    let path = |kind: &str| dir.join(format!("refverify-flight-{vm}-{unix_time}.{kind}"));
    let paths = [path("txt"), path("json")];
    write_atomically(&paths[0], &as_text(flight))?;
    write_atomically(&paths[1], &as_json(flight))?;
    Ok(paths)
}

fn watched(flight: &Flight) -> Watched {
    let mut watched = Watched::of(Some(&flight.vm));
    if let Some(hello) = &flight.hello {
        watched.observe(&Notice::Started(hello.clone()));
    }
    watched
}

fn as_text(flight: &Flight) -> String {
    let watched = watched(flight);
    let mut out = String::new();
    let _ = writeln!(out, "flight record of {}", Printable(&flight.vm));
    let _ = writeln!(out, "lost: {}", Printable(&flight.reason));
    let _ = writeln!(out, "{WHAT_IS_MISSING}");
    if let Some(hello) = &flight.hello {
        let _ = writeln!(out, "kernel {}", Printable(&hello.kernel_release));
    }
    let _ = writeln!(out, "\n{} findings", flight.findings.len());
    for finding in &flight.findings {
        let _ = writeln!(out, "\n{}", text::finding(finding, &watched.name(finding.fs)));
    }
    let _ = writeln!(out, "\n{} extents touched by the last transactions", flight.extents.len());
    for (fs, extent) in &flight.extents {
        let _ = writeln!(out, "\ndevice {}", watched.name(*fs));
        text::extent(&mut out, extent, &flight.symbols);
    }
    let _ = writeln!(out, "\n{} events of the last transactions", flight.events.len());
    if flight.events_given_up > 0 {
        let _ = writeln!(out, "({} before them were given up)", flight.events_given_up);
    }
    for event in &flight.events {
        let device = watched.name(event.fs);
        let _ = write!(out, "{device}: {} ", event_place(event));
        text::event(&mut out, event, &flight.symbols);
    }
    out
}

fn event_place(event: &Event) -> String {
    match event.change {
        crate::feed::Change::Ref { bytenr, len_bytes, .. } => {
            format!("extent {bytenr} len {len_bytes}")
        }
        crate::feed::Change::RemoveGroup { .. } => "block group".to_owned(),
    }
}

#[derive(Serialize)]
struct FlightBody<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    vm: &'a str,
    reason: &'a str,
    kernel_release: Option<&'a str>,
    findings: Vec<FindingBody>,
    extents: Vec<OfDevice<ExtentBody>>,
    events: Vec<OfDevice<EventBody>>,
    events_given_up: u64,
}

#[derive(Serialize)]
struct OfDevice<T> {
    device: String,
    #[serde(flatten)]
    body: T,
}

#[derive(Serialize)]
struct EventBody {
    bytenr: u64,
    #[serde(flatten)]
    fields: CauseFields,
}

fn as_json(flight: &Flight) -> String {
    let watched = watched(flight);
    let device = |fs: FsSlot| watched.name(fs).device;
    let finding = |finding: &Finding| FindingBody::new(finding, watched.name(finding.fs));
    let extent = |(fs, extent): &(FsSlot, ExtentDump)| OfDevice {
        device: device(*fs),
        body: ExtentBody::new(extent, &flight.symbols),
    };
    let event = |event: &Event| OfDevice {
        device: device(event.fs),
        body: EventBody {
            bytenr: event.bytenr(),
            fields: CauseFields::of_event(event, &flight.symbols),
        },
    };
    let body = FlightBody {
        kind: "flight_record",
        vm: &flight.vm,
        reason: &flight.reason,
        kernel_release: flight.hello.as_ref().map(|hello| hello.kernel_release.as_str()),
        findings: flight.findings.iter().map(finding).collect(),
        extents: flight.extents.iter().map(extent).collect(),
        events: flight.events.iter().map(event).collect(),
        events_given_up: flight.events_given_up,
    };
    let text = serde_json::to_string(&body);
    text.expect("structs of numbers, strings and lists always serialise") + "\n"
}
