//! A finding as text for people, in a form that can be pasted into a mail to the list.
//!
//! Stack lines are a space, then `symbol+0x1a/0x2b0 [module]`, as the kernel's own traces
//! are: `scripts/decode_stacktrace.sh` of the kernel's sources turns them into lines of code
//! and leaves the rest as it is.

use std::fmt::Write;

use super::{
    printable::Printable,
    sentence::{kind_words, sentence},
    watched::Name,
};
use crate::{
    feed::{Change, Event},
    verify::{ActionRecord, Cause, ExtentDump, Finding, Symbols},
};

/// The whole finding, ending in a line break.
pub(super) fn finding(finding: &Finding, name: &Name) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{}: {}", finding.kind, sentence(finding));
    let _ = writeln!(out, "{}", file_system(name));
    if finding.withheld > 0 {
        let _ =
            writeln!(out, "since the last of this kind, {} more were not told", finding.withheld);
    }
    match &finding.extent {
        Some(dump) => extent(&mut out, dump, &finding.symbols),
        None => {
            let _ = writeln!(out, "no extent is known at {}", finding.bytenr());
        }
    }
    match &finding.cause {
        Cause::Event(event) => culprit(&mut out, event, &finding.symbols),
        Cause::Audit { on_disk, .. } => {
            let _ = writeln!(out, "on disk there is:");
            match on_disk {
                Some(dump) => extent_without_history(&mut out, dump),
                None => out.push_str("nothing\n"),
            }
        }
        Cause::Disk { .. } => {}
    }
    out
}

fn file_system(name: &Name) -> String {
    match name.fsid {
        Some(fsid) => format!("device {name} fsid {fsid}"),
        None => format!("device {name}"),
    }
}

/// An extent with its references and its history.
pub(super) fn extent(out: &mut String, dump: &ExtentDump, symbols: &Symbols) {
    extent_without_history(out, dump);
    history(out, dump, symbols);
}

/// An extent with its references.
pub(super) fn extent_without_history(out: &mut String, dump: &ExtentDump) {
    let origin = match dump.from_disk {
        Some(generation) => format!("read from disk at generation {generation}"),
        None => "allocation seen".to_owned(),
    };
    let ExtentDump { bytenr, len_bytes, kind, total_refs, .. } = dump;
    let kind = kind_words(*kind);
    let _ = writeln!(out, "extent {bytenr} len {len_bytes} {kind} refs {total_refs}, {origin}");
    for (key, count) in &dump.refs {
        let _ = writeln!(out, "  ref {key} count {count}");
    }
    for (root, count) in &dump.roots {
        let _ = writeln!(out, "  root {root} count {count}");
    }
}

fn history(out: &mut String, dump: &ExtentDump, symbols: &Symbols) {
    let given_up = dump.actions_given_up;
    let _ = match (dump.actions.is_empty(), given_up) {
        (true, 0) => writeln!(out, "no action on it was seen before this one"),
        (true, _) => {
            writeln!(out, "actions on it: {given_up}, all given up to bound memory")
        }
        (false, 0) => writeln!(out, "actions on it, oldest first:"),
        (false, _) => writeln!(
            out,
            "actions on it, oldest first; {given_up} more were given up to bound memory:"
        ),
    };
    for record in &dump.actions {
        action(out, record, symbols);
    }
}

fn action(out: &mut String, record: &ActionRecord, symbols: &Symbols) {
    let ActionRecord { action, key, transid, time_ns, pid, tid, comm, .. } = record;
    let time = seconds(*time_ns);
    let _ =
        writeln!(out, "{action} {key} transid {transid} time {time} by {comm}[{pid}] tid {tid}");
    stack(out, &record.stack, symbols);
}

fn culprit(out: &mut String, event: &Event, symbols: &Symbols) {
    let _ = writeln!(out, "the action that is wrong:");
    self::event(out, event, symbols);
}

/// An event with its stack.
pub(super) fn event(out: &mut String, event: &Event, symbols: &Symbols) {
    let Event { transid, cpu, pid, tid, comm, .. } = event;
    let time = seconds(event.time_ns);
    let deed = match event.change {
        Change::Ref { action, key, .. } => format!("{action} {key}"),
        Change::RemoveGroup { start, len_bytes } => {
            format!("REMOVE_BLOCK_GROUP start {start} len {len_bytes}")
        }
    };
    let _ =
        writeln!(out, "{deed} transid {transid} time {time} by {comm}[{pid}] tid {tid} cpu {cpu}");
    stack(out, &event.stack, symbols);
}

/// A stack, one line for each frame, innermost first.
pub(super) fn stack(out: &mut String, addresses: &[u64], symbols: &Symbols) {
    for &address in addresses {
        let _ = writeln!(out, " {}", Printable(symbols.text(address)));
    }
}

/// Nanoseconds as seconds with all their digits.
pub(super) fn seconds(time_ns: u64) -> String {
    format!("{}.{:09}", time_ns / 1_000_000_000, time_ns % 1_000_000_000)
}
