//! What this machine is and has.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Where system programs lie even when the caller's PATH does not name it.
const SYSTEM_DIRS: [&str; 6] =
    ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin", "/lib/systemd"];

/// Finds a program in PATH and the system's directories.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(SYSTEM_DIRS.iter().map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// PATH, with the system's directories at its end.
pub(crate) fn path_with_system_dirs() -> std::ffi::OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = env::split_paths(&path).chain(SYSTEM_DIRS.iter().map(PathBuf::from));
    env::join_paths(dirs).expect("each comes from a PATH")
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// `program`, to be run as root: directly, or through sudo.
pub(crate) fn as_root(program: impl AsRef<Path>) -> Command {
    let program = program.as_ref();
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    command
}

/// Whether the machine installs packages with apt (Debian, Ubuntu and their children).
pub(crate) fn has_apt() -> bool {
    program("apt-get").is_some() && program("dpkg-deb").is_some()
}

/// The running kernel's release, as `uname -r` says it.
pub(crate) fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// `PRETTY_NAME` of the distribution.
pub(crate) fn distribution() -> String {
    fs::read_to_string("/etc/os-release")
        .ok()
        .and_then(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
            Some(line.trim_matches('"').to_owned())
        })
        .unwrap_or_else(|| "an unknown distribution".to_owned())
}
