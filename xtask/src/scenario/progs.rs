//! A current btrfs-progs: that of Debian 12 knows neither block group trees nor simple quotas.
//! Its package and the libraries it needs are unpacked, and run by their own loader.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    command::{finish, output},
    vm,
};

/// The line of kernels whose Debian release is new enough.
const LINE: &str = "6.12";

/// The package, and what its programs are linked with.
const PACKAGES: [&str; 11] = [
    "btrfs-progs",
    "libblkid1",
    "libc6",
    "libcom-err2",
    "libext2fs2t64",
    "liblzo2-2",
    "libreiserfscore0t64",
    "libudev1",
    "libuuid1",
    "libzstd1",
    "zlib1g",
];

/// A balance of a full file system takes a while.
const LIMIT: Duration = Duration::from_mins(5);

/// The unpacked programs.
pub(crate) struct Progs {
    /// Holds one script for each program, by its own name.
    dir: PathBuf,
}

impl Progs {
    /// Fetches what is missing; `dir` is for the scripts.
    pub(crate) fn fetch(dir: &Path) -> Result<Self> {
        let roots = vm::unpacked_packages(LINE, &PACKAGES)?;
        let libraries: Vec<String> = roots
            .iter()
            .map(|root| root.join("usr/lib/x86_64-linux-gnu").display().to_string())
            .collect();
        let loader = roots.iter().map(|root| root.join("usr/lib64/ld-linux-x86-64.so.2"));
        let loader = loader.into_iter().find(|path| path.exists()).context("no loader")?;
        let dir = dir.join("progs");
        fs::create_dir_all(&dir)?;
        for program in ["bin/btrfs", "bin/btrfstune", "sbin/mkfs.btrfs"] {
            let file = roots[0].join("usr").join(program);
            let script = format!(
                "#!/bin/sh\nexec {} --library-path {} {} \"$@\"\n",
                loader.display(),
                libraries.join(":"),
                file.display()
            );
            let name = file.file_name().context("a program's path has a name")?;
            let path = dir.join(name);
            fs::write(&path, script)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        Ok(Self { dir })
    }

    /// The `btrfs` among them.
    pub(crate) fn btrfs(&self) -> PathBuf {
        self.dir.join("btrfs")
    }

    /// Runs one of them; what it printed.
    pub(crate) fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        output(Command::new(self.dir.join(program)).args(args), LIMIT)
    }

    /// The same, whose failure is an answer too: what it said.
    pub(crate) fn try_run(&self, program: &str, args: &[&str]) -> Result<Result<String, String>> {
        let done = finish(Command::new(self.dir.join(program)).args(args), LIMIT)?;
        let failed = || done.stderr.trim().replace('\n', "; ");
        Ok(if done.status.success() { Ok(done.stdout.clone()) } else { Err(failed()) })
    }
}
