//! What the host and the guest of a test VM have agreed on: where things are in the image, and
//! how the verdict crosses the console.

use std::fmt;

/// Directories that the image holds for mounting.
pub(crate) const MOUNT_POINTS: [&str; 7] =
    ["/proc", "/sys", "/dev", "/tmp", "/run", "/var/tmp", "/var/log/journal"];

/// Where the image holds the kernel's modules, to be loaded in the order of their names.
pub(crate) const MODULES: &str = "/modules";

/// Where the image holds the monitor.
pub(crate) const MONITOR: &str = "/bin/refverify-monitor";

/// What on the kernel's command line names the scenario.
pub(crate) const SCENARIO_PARAMETER: &str = "refverify.scenario";

/// What there says how many minutes it is to work.
pub(crate) const MINUTES_PARAMETER: &str = "refverify.minutes";

/// Length of the scratch disk.
pub(crate) const DISK_LEN_BYTES: u64 = 3 << 30;

/// What the guest says before all else.
pub(crate) const BEGUN: &str = "guest: process 1 runs";

/// What begins the console's verdict line.
const VERDICT: &str = "guest verdict: ";

/// How a scenario ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Passed,
    Skipped(String),
    Failed(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("passed"),
            Self::Skipped(why) => write!(f, "SKIPPED: {why}"),
            Self::Failed(why) => write!(f, "FAILED: {why}"),
        }
    }
}

/// The line that tells the verdict.
pub(crate) fn verdict_line(verdict: &Verdict) -> String {
    format!("{VERDICT}{verdict}")
}

/// The verdict, if `line` is the verdict line.
pub(crate) fn parse_verdict(line: &str) -> Option<Verdict> {
    let (_, text) = line.split_once(VERDICT)?;
    Some(match text.split_once(": ") {
        None if text == "passed" => Verdict::Passed,
        Some(("SKIPPED", why)) => Verdict::Skipped(why.to_owned()),
        _ => Verdict::Failed(text.trim_start_matches("FAILED: ").to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_crosses_the_console_and_nothing_else_is_one() {
        for verdict in [
            Verdict::Passed,
            Verdict::Skipped("no kprobes".to_owned()),
            Verdict::Failed("status 1".to_owned()),
        ] {
            assert_eq!(parse_verdict(&verdict_line(&verdict)), Some(verdict));
        }
        assert_eq!(parse_verdict("[    1.0] btrfs: passed"), None);
        let cut_off = parse_verdict("guest verdict: pass");
        assert!(matches!(cut_off, Some(Verdict::Failed(_))), "{cut_off:?}");
    }
}
