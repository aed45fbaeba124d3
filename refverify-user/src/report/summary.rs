//! The end of a run, for people: what was verified, what was not, and what was found.

use std::fmt::Write;

use super::{
    journal::Delivery,
    lifecycle::{blind_words, lost},
    printable::Printable,
    sentence::counted,
    watched::Watched,
};
use crate::verify::{BlindSpan, Coverage, Span, Summary};

/// The summary, several lines, ending in a line break.
pub(super) fn text(summary: &Summary, watched: &Watched, delivery: Option<Delivery>) -> String {
    let mut out = String::new();
    for fs in &summary.coverage {
        coverage(&mut out, fs, &watched.device(fs.fs));
    }
    for loss in &summary.losses {
        let whose = match loss.fs {
            Some(slot) => watched.device(slot),
            None => "any watched file system".to_owned(),
        };
        let _ = writeln!(out, "loss: {} of {whose}", lost(loss));
    }
    for (kind, &count) in &summary.findings {
        let _ = writeln!(out, "{kind}: {}", counted(count, "finding"));
    }
    if let Some(Delivery { sent, failed }) = delivery {
        let sent = counted_entries(sent);
        let _ = writeln!(out, "journal: {sent} sent, {failed} failed");
    }
    let _ = writeln!(out, "verdict: {}", verdict(summary));
    out
}

/// The last word, without a line break. It never calls clean what was not looked at.
pub(super) fn verdict(summary: &Summary) -> String {
    let found: u64 = summary.findings.values().sum();
    let nothing_verified = summary.coverage.iter().all(|fs| fs.verified.is_empty());
    let findings = match found {
        0 => "no violation was seen".to_owned(),
        count => counted(count, "finding"),
    };
    if nothing_verified && found == 0 {
        return "nothing was verified: no transaction was seen from its begin to its end"
            .to_owned();
    }
    if summary.has_gaps() {
        return format!("{findings}, and not everything was verified");
    }
    format!("{findings} in what was verified, and nothing was lost")
}

fn coverage(out: &mut String, fs: &Coverage, given: &str) {
    let device = Printable(&fs.device);
    let fsid = fs.fsid.map_or_else(|| "not read".to_owned(), |fsid| fsid.to_string());
    let state = fs.state.name();
    let _ = writeln!(out, "{given}: device {device}, fsid {fsid}, {state} at the end");
    let _ = writeln!(out, "  transactions verified: {}", spans(&fs.verified));
    if fs.blind.is_empty() {
        let _ = writeln!(out, "  transactions not verified: none");
    }
    for BlindSpan { span: which, cause } in &fs.blind {
        let _ =
            writeln!(out, "  transactions not verified: {} ({})", span(which), blind_words(cause));
    }
    if !fs.undone.is_empty() {
        let _ = writeln!(out, "  transactions that never reached the disk: {}", spans(&fs.undone));
    }
    let _ = writeln!(
        out,
        "  events: {} seen, {} judged, {} on disk already, {} withdrawn (failed calls)",
        fs.events_seen, fs.events_applied, fs.events_on_disk, fs.events_retracted
    );
    if fs.mounts_unverified > 0 {
        let _ = writeln!(out, "  mounts not verified at all: {}", fs.mounts_unverified);
    }
    if fs.audits > 0 {
        let _ = writeln!(out, "  audits of what commits put on disk: {}", fs.audits);
    }
    let _ = writeln!(out, "  extents known: {}", fs.extents);
    let histories = since(fs.histories_given_up);
    let freed = since(fs.freed_given_up);
    let _ = writeln!(out, "  remembered: actions since {histories}, freed extents since {freed}");
}

/// From where on all is known.
fn since(given_up: Option<u64>) -> String {
    match given_up {
        Some(upto) => format!("transaction {}", upto.saturating_add(1)),
        None => "the beginning".to_owned(),
    }
}

fn spans(spans: &[Span]) -> String {
    if spans.is_empty() {
        return "none".to_owned();
    }
    let shown: Vec<String> = spans.iter().map(span).collect();
    shown.join(", ")
}

fn span(&Span { first, last }: &Span) -> String {
    if first == last { first.to_string() } else { format!("{first} to {last}") }
}

fn counted_entries(count: u64) -> String {
    let noun = if count == 1 { "entry" } else { "entries" };
    format!("{count} {noun}")
}
