//! A VM with a stock kernel, watched from outside while it works: by ssh, and by a virtio-serial
//! port. Its ledger here equals its disk, its faults arrive in the journal here, and when its
//! kernel panics what was known stays here.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use super::{
    Outcome, Place,
    compare::parse_raw,
    journal::{self, Journal},
    monitor::{Monitor, STATUS_FINDINGS, of_type},
    oracle,
    replay::{breaks_off, explain, replays_to_the_same},
};
use crate::{
    build,
    command::text,
    vm::{self, GUEST_ALIAS, GUEST_NAME, Guest, Link},
};
use anyhow::{Context, Result, bail, ensure};

/// Times at which the ledger is compared.
const COMPARISONS: usize = 3;

/// Exit status bits: findings, and something not verified.
const STATUS_FINDINGS_AND_GAPS: i32 = 6;

/// The watched disk, as the guest names it.
pub(super) const DISK: &str = "/dev/vda";

/// By ssh, up to the guest's death.
pub(super) fn by_ssh(place: &Place, guest: &Guest) -> Result<Outcome> {
    // What is there is another: the right one has to be sent.
    guest.ssh("echo exit 1 >/bin/refverify-monitor")?;
    let _journal = Journal::start()?;
    let recording = place.dir().join("recording");
    let config = text(&guest.ssh_config)?;
    let flight_dir = place.dir().join("flight");
    fs::create_dir(&flight_dir)?;
    let mut monitor = Monitor::start_with(
        place,
        &[
            "attach",
            "--journal",
            "--ssh-config",
            config,
            "--record",
            text(&recording)?,
            "--flight-dir",
            text(&flight_dir)?,
            GUEST_NAME,
            DISK,
        ],
    )?;
    monitor.wait_for("seeded")?;
    equals_the_disk(guest, &mut monitor, COMPARISONS)?;
    ensure!(monitor.findings().is_empty(), "honest work: {:?}", monitor.findings());

    let (clone, single) = planted(guest)?;
    guest.ask("clone-again")?;
    expect_in_journal(&mut monitor, GUEST_NAME, "drop-missing-ref", &clone)?;
    equals_the_disk(guest, &mut monitor, 1)?;
    let ledger = monitor.dump_ledger()?;

    // The panic comes right after the fault: nothing more is sent.
    let _ = guest.ssh("touch /run/ask/delete-single; sleep 1; echo c >/proc/sysrq-trigger");
    let ended = monitor.wait_for_end()?;
    ensure!(
        ended.status == STATUS_FINDINGS_AND_GAPS,
        "the status is {}: {}",
        ended.status,
        ended.stderr
    );
    let findings = of_type(&ended.lines, "finding");
    let last = findings.last().context("no finding")?;
    ensure!(last["bytenr"] == single.parse::<u64>()?, "the last finding is {last}");
    has_flight_record(&flight_dir, &single)?;
    replays_to_the_same(place, &recording, &ended, &ledger)?;
    breaks_off(place, &recording, &ended)?;
    let life = explain(place, &recording, clone.parse()?)?;
    ensure!(life.contains("\nfinding: "), "nothing says what was wrong: {life}");
    Ok(Outcome::Passed)
}

/// By the port: with an agent that is in the guest already, and with one that the QEMU guest
/// agent starts, which has to be sent.
pub(super) fn by_serial(place: &Place, guest: &Guest) -> Result<Outcome> {
    let port = "/dev/$(cd /sys/class/virtio-ports; grep -l '^refverify$' */name | cut -d/ -f1)";
    guest.ssh(&format!(
        "refverify-monitor agent --port {port} {DISK} >/run/agent.log 2>&1 </dev/null &"
    ))?;
    let (socket, qga) = (text(&guest.port_socket)?, text(&guest.qga_socket)?);
    let _journal = Journal::start()?;
    let mut monitor = Monitor::start_with(place, &["attach", "--serial", socket, DISK])?;
    monitor.wait_for("seeded")?;
    equals_the_disk(guest, &mut monitor, 1)?;
    monitor.stop()?.expect_clean()?;
    gone_from(guest)?;

    guest.ssh("rm /bin/refverify-monitor")?;
    let arguments = ["attach", "--journal", "--serial", socket, "--qga", qga, DISK];
    let mut monitor = Monitor::start_with(place, &arguments)?;
    monitor.wait_for("seeded")?;
    equals_the_disk(guest, &mut monitor, COMPARISONS)?;
    ensure!(monitor.findings().is_empty(), "honest work: {:?}", monitor.findings());
    let (clone, _) = planted(guest)?;
    guest.ask("clone-again")?;
    let name = guest.port_socket.file_stem().unwrap_or_default().to_string_lossy();
    expect_in_journal(&mut monitor, &name, "drop-missing-ref", &clone)?;
    let ended = monitor.stop()?;
    ensure!(ended.status == STATUS_FINDINGS, "the status is {}: {}", ended.status, ended.stderr);
    gone_from(guest)?;
    Ok(Outcome::Passed)
}

/// The extents with a fault: the one that is cloned again, and the one that is deleted.
fn planted(guest: &Guest) -> Result<(String, String)> {
    let planted = guest.ask("planted")?;
    let (clone, single) = planted.trim().split_once(' ').context("two addresses")?;
    Ok((clone.to_owned(), single.to_owned()))
}

/// A link that is cut, and comes back; and an agent that is killed.
pub(super) fn cut_link(place: &Place, guest: &Guest) -> Result<Outcome> {
    let flight_dir = text(place.dir())?;
    let mut monitor = Monitor::start_with(
        place,
        &[
            "attach",
            // So little that the work of `stands_still` does not fit.
            "--ring-mib=1",
            "--ssh-config",
            text(&guest.ssh_config)?,
            "--flight-dir",
            flight_dir,
            GUEST_NAME,
            DISK,
        ],
    )?;
    monitor.wait_for("seeded")?;
    for seconds in [1, 60] {
        // The guest works on; only the link stands still.
        guest.set_link(Link::Cut)?;
        thread::sleep(Duration::from_secs(seconds));
        guest.set_link(Link::Up)?;
        println!("the link was cut for {seconds} s");
        let lost = until_it_sees_again(&mut monitor)?;
        println!("what the small buffers could not hold was told {lost} times");
        equals_the_disk(guest, &mut monitor, 1)?;
        ensure!(monitor.findings().is_empty(), "honest work: {:?}", monitor.findings());
    }
    stands_still(guest, &mut monitor)?;
    guest.ssh("kill -9 $(pidof 9)")?;
    let ended = monitor.wait_for_end()?;
    ensure!(ended.status & 4 != 0, "a killed agent is not a clean end: {}", ended.status);
    ensure!(ended.stderr.contains("the connection ended"), "{}", ended.stderr);
    ensure!(of_type(&ended.lines, "finding").is_empty(), "{:?}", ended.lines);
    gone_from(guest)?;
    Ok(Outcome::Passed)
}

/// Two guests that a file names. They are one, by two names: each has its own agent there and its
/// own verifier here.
pub(super) fn several(place: &Place, guest: &Guest) -> Result<Outcome> {
    let (targets, recording) = (place.dir().join("targets"), place.dir().join("recording"));
    fs::write(&targets, format!("{GUEST_NAME} {GUEST_ALIAS} {DISK} # both\n"))?;
    let arguments = [
        "attach",
        "--ssh-config",
        text(&guest.ssh_config)?,
        "--record",
        text(&recording)?,
        "--targets",
        text(&targets)?,
    ];
    let mut monitor = Monitor::start_with(place, &arguments)?;
    monitor.wait_for_nth("seeded", 2)?;
    guest.ask("clone-again")?;
    monitor.wait_for_nth("finding", 2)?;
    let ended = monitor.stop()?;
    ensure!(ended.status == STATUS_FINDINGS, "the status is {}: {}", ended.status, ended.stderr);
    for name in [GUEST_NAME, GUEST_ALIAS] {
        for kind in ["start", "seeded", "finding", "summary"] {
            let said = of_type(&ended.lines, kind);
            let of_it = said.iter().filter(|line| line["vm"] == name).count();
            ensure!(of_it == 1, "{name} has {of_it} lines of {kind}: {said:?}");
        }
        let own = recording.with_file_name(format!("recording.{name}"));
        ensure!(own.is_file(), "no recording of {name}");
    }
    gone_from(guest)?;
    Ok(Outcome::Passed)
}

/// The agent does not get to run while more happens than fits its buffer: the guest works on,
/// what is lost is told, and the tree is read again.
fn stands_still(guest: &Guest, monitor: &mut Monitor) -> Result<()> {
    let lost = until_it_sees_again(monitor)?;
    guest.ask("rest")?;
    guest.ssh("kill -STOP $(pidof 9)")?;
    guest.ask("work")?;
    guest.ssh("kill -CONT $(pidof 9)")?;
    let blind = monitor.wait_for_nth("blind", lost + 1)?;
    println!("{blind}");
    // The tree is read again at a commit that has all that was lost.
    guest.ask("work")?;
    guest.ask("work")?;
    monitor.wait_for_nth("seeded", lost + 2)?;
    equals_the_disk(guest, monitor, 1)
}

/// Waits until every event is judged again, while the guest works on. Returns how often events were
/// lost so far: how many of them wait without loss depends on how fast the guest is.
fn until_it_sees_again(monitor: &mut Monitor) -> Result<usize> {
    // What was lost is told with what comes first.
    thread::sleep(Duration::from_secs(2));
    let lost = of_type(&monitor.lines(), "blind").len();
    monitor.wait_for_nth("seeded", lost + 1)?;
    Ok(lost)
}

/// Boots a guest, and works with it. Where that fails it may be for what became of the guest.
pub(super) fn in_guest(
    place: &Place,
    work: fn(&Place, &Guest) -> Result<Outcome>,
) -> Result<Outcome> {
    if place.device.is_some() || vm::obstacle().is_some() {
        return Ok(Outcome::Skipped("it boots a VM, which cannot be had here".to_owned()));
    }
    let guest = Guest::boot(place.dir(), &build::static_xtask_file(), &place.monitor)?;
    work(place, &guest).inspect_err(|_| println!("the guest:\n{}", guest.condition()))
}

/// The ledger here and the disk there, while the guest's work goes on in between.
fn equals_the_disk(guest: &Guest, monitor: &mut Monitor, times: usize) -> Result<()> {
    for _ in 0..times {
        thread::sleep(Duration::from_secs(3));
        let frozen = guest.ask("freeze")?;
        let compared = compare(&frozen, monitor);
        guest.ask("thaw")?;
        println!("all {} extents are equal", compared?);
    }
    Ok(())
}

fn compare(frozen: &str, monitor: &mut Monitor) -> Result<usize> {
    let disk = parse_raw(frozen)?;
    // What the freeze committed may still be on its way.
    let end = Instant::now() + Duration::from_mins(1);
    let ledger = loop {
        let ledger = oracle::parse_ledger(&monitor.dump_ledger()?)?;
        if ledger.generation >= disk.generation && ledger.state == "live" {
            break ledger;
        }
        if Instant::now() > end {
            let (state, generation) = (&ledger.state, ledger.generation);
            bail!("{state} at {generation}, and the disk is at {}", disk.generation);
        }
        thread::sleep(Duration::from_millis(200));
    };
    ensure!(ledger.generation == disk.generation, "the ledger is newer than the frozen disk");
    let differences = oracle::differences(&disk.extents, &ledger.extents);
    ensure!(differences.is_empty(), "{} differ: {}", differences.len(), differences[0]);
    Ok(disk.extents.len())
}

/// The first finding, here and in the journal.
fn expect_in_journal(monitor: &mut Monitor, vm: &str, kind: &str, bytenr: &str) -> Result<()> {
    let finding = monitor.wait_for("finding")?;
    ensure!(finding["kind"] == kind, "{finding}");
    ensure!(finding["bytenr"] == bytenr.parse::<u64>()?, "{finding} is not about {bytenr}");
    ensure!(finding["vm"] == vm, "{finding} does not name the guest");
    let fields = [
        ("REFVERIFY_VM", vm.to_owned()),
        ("REFVERIFY_KIND", kind.to_owned()),
        ("REFVERIFY_BYTENR", bytenr.to_owned()),
    ];
    journal::wait_for(monitor.pid(), &fields)?;
    Ok(())
}

fn has_flight_record(dir: &Path, bytenr: &str) -> Result<()> {
    let mut kinds = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let record = fs::read_to_string(&path)?;
        ensure!(record.contains(bytenr), "{} does not tell of {bytenr}", path.display());
        kinds.push(path.extension().unwrap_or_default().to_string_lossy().into_owned());
    }
    kinds.sort();
    ensure!(kinds == ["json", "txt"], "flight records: {kinds:?}");
    Ok(())
}

/// Nothing of ours is left in the guest.
fn gone_from(guest: &Guest) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let left = guest.ssh(
            "ls -d /run/refverify.* /dev/shm/refverify.* /tmp/refverify.* 2>/dev/null; \
             for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep ' agent '; \
             done; true",
        )?;
        let left: Vec<&str> = left.lines().filter(|line| !line.contains("grep")).collect();
        if left.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < end, "left in the guest: {left:?}");
        thread::sleep(Duration::from_millis(500));
    }
}
