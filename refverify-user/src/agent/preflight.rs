//! What must be there before anything is loaded. Each thing that is missing is one sentence.

use std::{fs, io, path::Path, process::Command};

/// This machine, or this user, cannot watch btrfs.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// Not root.
    #[error(
        "loading eBPF programs and reading block devices needs root; run this as root or through sudo"
    )]
    NotRoot,
    /// No BPF.
    #[error(
        "this kernel has no BPF (CONFIG_BPF_SYSCALL is not set); btrfs cannot be watched on it"
    )]
    NoBpf,
    /// No BTF.
    #[error(
        "this kernel does not describe its types ({VMLINUX_BTF} does not exist); a kernel with \
         CONFIG_DEBUG_INFO_BTF=y is needed"
    )]
    NoBtf,
    /// No btrfs.
    #[error(
        "this kernel has no btrfs: it is neither built in nor loaded, and `modprobe btrfs` failed: {reason}"
    )]
    NoBtrfs {
        /// What modprobe said.
        reason: String,
    },
    /// Lockdown.
    #[error(
        "the kernel is locked down to confidentiality, which forbids probes and reading kernel \
         memory; boot with lockdown=integrity or less"
    )]
    Lockdown,
    /// A file of /proc or /sys cannot be read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The file.
        path: &'static str,
        /// Why.
        source: io::Error,
    },
}

const VMLINUX_BTF: &str = "/sys/kernel/btf/vmlinux";
const FILESYSTEMS: &str = "/proc/filesystems";
/// There if and only if the kernel has the bpf system call (5.10 to 7.3).
const BPF_SYSCTL: &str = "/proc/sys/kernel/unprivileged_bpf_disabled";
const LOCKDOWN: &str = "/sys/kernel/security/lockdown";
/// The kind of perf event that kprobes are attached by (`CONFIG_KPROBE_EVENTS`).
const KPROBE_EVENTS: &str = "/sys/bus/event_source/devices/kprobe/type";

/// Checks that this machine can be watched by this user; loads btrfs if it is a module that
/// is not loaded yet, since probes need its functions.
pub(super) fn check() -> Result<(), PreflightError> {
    if !rustix::process::geteuid().is_root() {
        return Err(PreflightError::NotRoot);
    }
    if !Path::new(BPF_SYSCTL).exists() {
        return Err(PreflightError::NoBpf);
    }
    if !Path::new(VMLINUX_BTF).exists() {
        return Err(PreflightError::NoBtf);
    }
    // Without securityfs there may still be a lockdown; loading then fails and says so.
    if fs::read_to_string(LOCKDOWN).is_ok_and(|state| is_confidential(&state)) {
        return Err(PreflightError::Lockdown);
    }
    if has_btrfs()? {
        return Ok(());
    }
    let reason = modprobe_btrfs();
    if has_btrfs()? { Ok(()) } else { Err(PreflightError::NoBtrfs { reason }) }
}

/// Whether this kernel has kprobes that an eBPF program can be attached to.
pub(super) fn has_kprobes() -> bool {
    Path::new(KPROBE_EVENTS).exists()
}

fn has_btrfs() -> Result<bool, PreflightError> {
    let listed = fs::read_to_string(FILESYSTEMS)
        .map_err(|source| PreflightError::Unreadable { path: FILESYSTEMS, source })?;
    Ok(lists_btrfs(&listed))
}

/// Runs modprobe, and returns what it said.
fn modprobe_btrfs() -> String {
    match Command::new("modprobe").arg("btrfs").output() {
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    }
}

fn lists_btrfs(filesystems: &str) -> bool {
    filesystems.lines().any(|line| line.split_whitespace().next_back() == Some("btrfs"))
}

/// The state in force stands in brackets: `none [integrity] confidentiality`.
fn is_confidential(lockdown: &str) -> bool {
    lockdown.contains("[confidentiality]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_whose_name_only_contains_btrfs_is_not_btrfs() {
        assert!(lists_btrfs("nodev\tsysfs\n\text4\n\tbtrfs\n"));
        assert!(!lists_btrfs("nodev\tbtrfs_test_fs\n\text4\n"));
        assert!(!lists_btrfs(""));
    }

    #[test]
    fn only_the_state_in_force_counts_as_lockdown() {
        assert!(is_confidential("none integrity [confidentiality]\n"));
        assert!(!is_confidential("none [integrity] confidentiality\n"));
        assert!(!is_confidential("[none] integrity confidentiality\n"));
    }
}
