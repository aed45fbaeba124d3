//! What comes from the distribution.

use anyhow::{Result, bail};

use crate::{
    command::show_and_run,
    machine::{as_root, distribution, has_apt, program},
};

/// A package of Debian and Ubuntu, the program it is wanted for, and what that one does here.
struct Package {
    name: &'static str,
    program: &'static str,
    purpose: &'static str,
}

const PACKAGES: [Package; 10] = [
    Package { name: "build-essential", program: "cc", purpose: "links programs" },
    Package { name: "btrfs-progs", program: "mkfs.btrfs", purpose: "makes and dumps btrfs" },
    Package { name: "util-linux", program: "fsfreeze", purpose: "freezes file systems" },
    Package { name: "mount", program: "losetup", purpose: "makes loop devices" },
    Package { name: "systemd", program: "systemd-journald", purpose: "is the journal" },
    Package { name: "xz-utils", program: "xz", purpose: "unpacks kernel modules" },
    Package { name: "qemu-system-x86", program: "qemu-system-x86_64", purpose: "runs test VMs" },
    Package { name: "openssh-client", program: "ssh", purpose: "attaches to test VMs" },
    Package { name: "bpftool", program: "bpftool", purpose: "reads the probes' run times" },
    Package { name: "fio", program: "fio", purpose: "measures what a device can do" },
];

/// Installs the missing ones with apt; elsewhere names them and stops.
pub(super) fn install() -> Result<()> {
    let missing: Vec<_> = PACKAGES.iter().filter(|p| program(p.program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for package in &missing {
        println!("setup: {} is missing: it {}", package.program, package.purpose);
    }
    if !has_apt() {
        let names: Vec<_> = missing.iter().map(|package| package.program).collect();
        bail!(
            "this is {}, which has no apt: install the packages that hold these programs, then \
             run this again: {}",
            distribution(),
            names.join(" ")
        );
    }
    let names: Vec<_> = missing.iter().map(|package| package.name).collect();
    println!("setup: installing {}", names.join(" "));
    show_and_run(as_root("apt-get").args(["update", "-q"]))?;
    show_and_run(
        as_root("env")
            .args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-q", "-y"])
            .arg("--no-install-recommends")
            .args(names),
    )
}
