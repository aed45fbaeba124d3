//! Reports, compared with golden files; `UPDATE_GOLDEN=1 cargo test --test reports` writes them
//! anew.

use std::io::{self, Write};

use crate::fixtures::{
    assert_golden, bad_summary, clean_summary, drop_missing_ref, duplicate_on_disk,
    duplicate_tree_ref, hello, life_cycle, no_entry_by_a_hostile_task, one_of_each_kind, seeding,
};
use refverify_user::{
    report::{Format, Outcome, Progress, Reporter, Settings, exit_status},
    verify::{FsState, Notice, Summary},
};

const TEXT: Format = Format::Text { colour: false };

fn report(format: Format, notices: impl IntoIterator<Item = Notice>) -> (String, Outcome) {
    let mut out = Vec::new();
    let settings = Settings { format, ledger_dump: None, vm: None };
    let mut reporter = Reporter::new(settings, &mut out, None, Progress::in_log());
    for notice in notices {
        reporter.report(notice);
    }
    let outcome = reporter.finish();
    (String::from_utf8(out).unwrap(), outcome)
}

/// Some findings, after the notices that tell the file system's names.
fn findings() -> Vec<Notice> {
    let findings = [
        drop_missing_ref(),
        no_entry_by_a_hostile_task(),
        duplicate_tree_ref(),
        duplicate_on_disk(),
    ];
    let findings = findings.into_iter().map(|finding| Notice::Finding(Box::new(finding)));
    [Notice::Started(hello()), seeding(0)].into_iter().chain(findings).collect()
}

#[test]
fn findings_as_text() {
    assert_golden("findings.txt", &report(TEXT, findings()).0);
}

#[test]
fn findings_as_json() {
    let (lines, _) = report(Format::Json, findings());
    assert_golden("findings.jsonl", &lines);
}

#[test]
fn the_sentence_of_each_kind() {
    let notices = one_of_each_kind().into_iter().map(|f| Notice::Finding(Box::new(f)));
    let (lines, _) = report(Format::Json, notices);
    let sentence = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        format!("{}\n    {}\n", line["kind"].as_str().unwrap(), line["message"].as_str().unwrap())
    };
    assert_golden("sentences.txt", &lines.lines().map(sentence).collect::<String>());
}

#[test]
fn the_course_of_a_run() {
    assert_golden("life-cycle.txt", &report(TEXT, life_cycle()).0);
    assert_golden("life-cycle.jsonl", &report(Format::Json, life_cycle()).0);
}

#[test]
fn summaries() {
    let both = || [hello_notice(), summary(clean_summary()), summary(bad_summary())];
    assert_golden("summary.txt", &report(TEXT, both()).0);
    assert_golden("summary.jsonl", &report(Format::Json, both()).0);
}

fn hello_notice() -> Notice {
    Notice::Started(hello())
}

fn summary(summary: Summary) -> Notice {
    Notice::Summary(summary)
}

#[test]
fn a_run_that_verified_nothing_is_not_called_clean() {
    let mut summary = clean_summary();
    summary.coverage[0].verified.clear();
    summary.coverage[0].state = FsState::Seeding;
    let (text, _) = report(TEXT, [Notice::Summary(summary)]);
    assert!(text.contains("verdict: nothing was verified"), "{text}");
}

#[test]
fn no_kernel_address_and_no_control_character_is_reported() {
    let everything = || life_cycle().into_iter().chain(findings()).chain([summary(bad_summary())]);
    for format in [TEXT, Format::Json] {
        let (text, _) = report(format, everything());
        assert!(!text.to_lowercase().contains("ffffffff"), "{text}");
        let control = text.chars().find(|&c| c.is_control() && c != '\n');
        assert_eq!(control, None, "{text}");
    }
}

/// As `scripts/decode_stacktrace.sh` of the kernel's sources reads a line: it takes one with
/// `symbol+0x1a/0x2b0` in it, the last word in brackets for the module and the word before for
/// the symbol.
#[test]
fn stack_lines_are_what_decode_stacktrace_reads_and_no_other_line_is() {
    let (text, _) = report(TEXT, findings());
    let traced = |line: &&str| line.contains("+0x");
    let lines: Vec<&str> = text.lines().filter(traced).collect();
    assert!(lines.len() >= 8, "{text}");
    for line in lines {
        let words: Vec<&str> = line.strip_prefix(' ').unwrap().split(' ').collect();
        assert!(matches!(words.as_slice(), [_] | [_, "[btrfs]"]), "{line}");
    }
}

#[test]
fn exit_status_is_a_mask() {
    let ended = |summary| Outcome { summary: Some(summary), ..Outcome::default() };
    assert_eq!(exit_status(&ended(clean_summary())), 0);
    assert_eq!(exit_status(&ended(bad_summary())), 2 | 4);
    let mut lossy = clean_summary();
    lossy.losses = bad_summary().losses;
    assert_eq!(exit_status(&ended(lossy.clone())), 4);
    let unread = Outcome { summary: Some(lossy), output_failed: true, ..Outcome::default() };
    assert_eq!(exit_status(&unread), 1 | 4);
    let no_summary = Outcome::default();
    assert_eq!(exit_status(&no_summary), 4, "what happened is not known");
}

/// Fails every write.
struct Broken(io::ErrorKind);

impl Write for Broken {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(self.0.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_reader_that_goes_away_is_not_a_failure_but_a_full_disk_is() {
    for (kind, failed) in [(io::ErrorKind::BrokenPipe, false), (io::ErrorKind::StorageFull, true)] {
        let settings = Settings { format: TEXT, ledger_dump: None, vm: None };
        let mut reporter = Reporter::new(settings, Broken(kind), None, Progress::in_log());
        assert!(reporter.has_readers());
        reporter.report(hello_notice());
        assert!(!reporter.has_readers());
        reporter.report(summary(clean_summary()));
        let outcome = reporter.finish();
        assert_eq!(outcome.output_failed, failed);
        assert_eq!(outcome.summary, Some(clean_summary()), "the exit status is still known");
    }
}
