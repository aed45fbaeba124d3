//! The journal: frames as they reach a socket of our own, and entries as journalctl reads them
//! back from a real systemd-journald.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{IoSliceMut, Read},
    mem::MaybeUninit,
    os::{
        fd::AsFd,
        unix::net::{UnixDatagram, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use refverify_user::{
    report::{
        Delivery, Entry, Format, Journal, Label, Progress, Reporter, Settings, finding_message_id,
        is_journal_stream,
    },
    verify::{Cause, Finding, Notice},
};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::fixtures::{
    bad_summary, drop_missing_ref, duplicate_on_disk, hello, life_cycle,
    no_entry_by_a_hostile_task, one_of_each_kind, seeding,
};

const JOURNALD: &str = "/lib/systemd/systemd-journald";

type Fields = BTreeMap<String, Vec<u8>>;

/// Stands for journald: listens in a directory of its own.
struct Listener {
    socket: UnixDatagram,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Listener {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        Self { socket, path, _dir: dir }
    }

    /// The next entry, out of the datagram or out of the file that came instead.
    fn receive(&self) -> (Fields, bool) {
        let mut frame = vec![0; 1 << 20];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut frame)];
        let received = recvmsg(&self.socket, &mut parts, &mut control, RecvFlags::empty()).unwrap();
        frame.truncate(received.bytes);
        let descriptor = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        let Some(descriptor) = descriptor else { return (parse(&frame), false) };
        assert_eq!(received.bytes, 0, "journald takes a file only with an empty datagram");
        let seals = rustix::fs::fcntl_get_seals(&descriptor).unwrap();
        assert!(seals.contains(rustix::fs::SealFlags::WRITE | rustix::fs::SealFlags::SHRINK));
        // Its offset is where the sender stopped writing.
        let mut file =
            File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&descriptor)))
                .unwrap();
        frame.clear();
        file.read_to_end(&mut frame).unwrap();
        (parse(&frame), true)
    }
}

/// Reads a frame as systemd's document of the protocol says.
fn parse(mut frame: &[u8]) -> Fields {
    let mut fields = Fields::new();
    while !frame.is_empty() {
        let end = frame.iter().position(|&b| b == b'\n').expect("a field ends in a line feed");
        let (line, rest) = frame.split_at(end);
        let rest = &rest[1..];
        let (name, value) = if let Some(equals) = line.iter().position(|&b| b == b'=') {
            frame = rest;
            (&line[..equals], line[equals + 1..].to_vec())
        } else {
            let (len, rest) = rest.split_first_chunk::<8>().expect("a length of 8 bytes");
            let (value, rest) = rest.split_at(usize::try_from(u64::from_le_bytes(*len)).unwrap());
            assert_eq!(rest.first(), Some(&b'\n'), "a line feed after the value");
            frame = &rest[1..];
            (line, value.to_vec())
        };
        let name = String::from_utf8(name.to_vec()).unwrap();
        assert!(name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_') && name.len() <= 64);
        assert_eq!(fields.insert(name, value), None, "each field once");
    }
    fields
}

fn text<'a>(fields: &'a Fields, name: &str) -> &'a str {
    let value = fields.get(name).unwrap_or_else(|| panic!("{name} is missing in {fields:?}"));
    std::str::from_utf8(value).unwrap()
}

/// What a reporter would post to the journal at `socket`.
fn report_to(socket: &Path, notices: impl IntoIterator<Item = Notice>) {
    let journal = Journal::start(socket).unwrap();
    let settings = Settings { format: Format::Nothing, ledger_dump: None, vm: None };
    let mut reporter = Reporter::new(settings, std::io::sink(), Some(journal), Progress::in_log());
    for notice in notices {
        reporter.report(notice);
    }
    reporter.finish();
}

fn notice(finding: Finding) -> Notice {
    Notice::Finding(Box::new(finding))
}

#[test]
fn a_finding_is_one_entry_with_every_field() {
    let listener = Listener::new();
    let notices = [Notice::Started(hello()), seeding(0), notice(drop_missing_ref())];
    report_to(&listener.path, notices);
    assert_eq!(text(&listener.receive().0, "PRIORITY"), "6");
    let (seeding, _) = listener.receive();
    assert_eq!(text(&seeding, "REFVERIFY_DEVICE"), "/dev/sdb");

    let (fields, _) = listener.receive();
    assert!(text(&fields, "MESSAGE").starts_with("/dev/sdb: drop-missing-ref: In transaction 42"));
    let expected = [
        ("PRIORITY", "3"),
        ("MESSAGE_ID", "171aa65e60334e899d95235aecb14bcd"),
        ("SYSLOG_IDENTIFIER", "refverify-monitor"),
        ("REFVERIFY_KIND", "drop-missing-ref"),
        ("REFVERIFY_DEVICE", "/dev/sdb"),
        ("REFVERIFY_FSID", "6f0c6d0e-13a5-4b4b-9b5c-3fd14b8e22a7"),
        ("REFVERIFY_BYTENR", "13631488"),
        ("REFVERIFY_TRANSID", "42"),
        ("REFVERIFY_ROOT", "18446744073709551607"),
        ("REFVERIFY_OWNER", "257"),
        ("REFVERIFY_OFFSET", "18446744073709547520"),
        ("REFVERIFY_PARENT", "0"),
        ("REFVERIFY_PID", "4711"),
        ("REFVERIFY_COMM", "fsstress"),
        (
            "REFVERIFY_STACK",
            " btrfs_add_delayed_data_ref+0x1a/0x2b0 [btrfs]\n do_syscall_64+0x5b/0x90",
        ),
    ];
    for (name, value) in expected {
        assert_eq!(text(&fields, name), value, "{name}");
    }
    assert!(text(&fields, "REFVERIFY_DUMP").contains("\n  ref root 5 parent 0 owner 257"));
    assert_eq!(fields.len(), expected.len() + 2, "{:?}", fields.keys());
}

#[test]
fn a_task_cannot_smuggle_fields_into_the_journal() {
    let listener = Listener::new();
    report_to(&listener.path, [notice(no_entry_by_a_hostile_task())]);
    let (fields, _) = listener.receive();
    assert_eq!(text(&fields, "REFVERIFY_COMM"), r#"\x1b[2J\n\"\xff\\"#);
    assert!(!fields.contains_key("REFVERIFY_STACK"), "none was recorded");
    assert!(!fields.contains_key("REFVERIFY_FSID"), "it is not known");
}

#[test]
fn a_finding_on_disk_has_no_fields_of_a_task() {
    let listener = Listener::new();
    report_to(&listener.path, [notice(duplicate_on_disk())]);
    let (fields, _) = listener.receive();
    assert_eq!(text(&fields, "REFVERIFY_TRANSID"), "40", "the generation that was read");
    for name in ["REFVERIFY_PID", "REFVERIFY_COMM", "REFVERIFY_ROOT", "REFVERIFY_STACK"] {
        assert!(!fields.contains_key(name), "{name}");
    }
}

/// A history that no datagram holds.
fn too_long_for_a_datagram() -> Finding {
    let mut finding = drop_missing_ref();
    let extent = finding.extent.as_mut().unwrap();
    let record = extent.actions[0].clone();
    let deep: Arc<[u64]> = record.stack.iter().copied().cycle().take(32).collect();
    extent.actions = vec![refverify_user::verify::ActionRecord { stack: deep, ..record }; 400];
    finding
}

#[test]
fn an_entry_too_long_for_a_datagram_comes_whole_in_a_sealed_file() {
    let listener = Listener::new();
    report_to(&listener.path, [notice(too_long_for_a_datagram())]);
    let (fields, in_file) = listener.receive();
    let dump = text(&fields, "REFVERIFY_DUMP");
    assert!(in_file, "{} bytes went into a datagram", dump.len());
    assert_eq!(dump.matches("ADD_REF root 5").count(), 400);
}

#[test]
fn a_journald_that_does_not_read_costs_entries_but_no_time_and_each_is_counted() {
    let listener = Listener::new();
    let journal = Journal::start(&listener.path).unwrap();
    let started = Instant::now();
    for _ in 0..2000 {
        let mut entry = Entry::default();
        entry.field("MESSAGE", "nobody reads this");
        journal.post(entry);
    }
    assert!(started.elapsed() < Duration::from_secs(1), "posting waits: {:?}", started.elapsed());
    let Delivery { sent, failed } = journal.settle();
    assert_eq!(sent + failed, 2000);
    assert!(failed > 0, "the socket's queue took everything");
    for _ in 0..sent {
        listener.receive();
    }
}

#[test]
fn a_journald_that_goes_away_is_counted_and_one_that_comes_back_is_used() {
    let listener = Listener::new();
    let journal = Journal::start(&listener.path).unwrap();
    let post = || {
        let mut entry = Entry::default();
        entry.field("MESSAGE", "hello");
        journal.post(entry);
        journal.settle()
    };
    assert_eq!(post(), Delivery { sent: 1, failed: 0 });
    std::fs::remove_file(&listener.path).unwrap();
    assert_eq!(post(), Delivery { sent: 1, failed: 1 });
    let again = UnixDatagram::bind(&listener.path).unwrap();
    assert_eq!(post(), Delivery { sent: 2, failed: 1 });
    assert!(again.recv(&mut [0; 100]).unwrap() > 0);
}

#[test]
fn no_journal_at_the_start_is_an_error_that_says_what_to_do() {
    let error = Journal::start(Path::new("/nonexistent/socket")).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/socket") && error.contains("--journal"), "{error}");
}

#[test]
fn an_inherited_journal_stream_variable_is_not_believed() {
    use std::os::unix::fs::MetadataExt;
    let (ours, other) = UnixStream::pair().unwrap();
    let metadata = File::from(ours.as_fd().try_clone_to_owned().unwrap()).metadata().unwrap();
    let variable = format!("{}:{}", metadata.dev(), metadata.ino());
    assert!(is_journal_stream(ours.as_fd(), Some(&variable)));
    assert!(!is_journal_stream(other.as_fd(), Some(&variable)));
    for not_one in [None, Some(""), Some(":"), Some("8:"), Some("x:y"), Some("1:2:3")] {
        assert!(!is_journal_stream(ours.as_fd(), not_one));
    }
}

/// A real systemd-journald, as a namespaced instance in a mount namespace with a `/run` of its
/// own: it does not read the kernel's log, leaves the kernel's auditing as it is (`Audit=`,
/// empty; without it auditing is switched), and leaves nothing behind.
struct Journald {
    child: Child,
}

impl Journald {
    fn start() -> Self {
        let script = "set -e
            mount --make-rprivate /
            mount -t tmpfs tmpfs /run
            mount -t tmpfs tmpfs /etc/systemd
            printf '[Journal]\\nStorage=volatile\\nAudit=\\n' \
                > /etc/systemd/journald@refverify-test.conf
            echo 5ca1ab1e5ca1ab1e5ca1ab1e5ca1ab1e > /run/machine-id
            mount --bind /run/machine-id /etc/machine-id
            export RUNTIME_DIRECTORY=/run/journald
            exec /lib/systemd/systemd-journald refverify-test";
        let child = Command::new("unshare")
            .args(["--mount", "sh", "-c", script])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let journald = Self { child };
        let deadline = Instant::now() + Duration::from_secs(20);
        while UnixDatagram::unbound().unwrap().connect(journald.socket()).is_err() {
            assert!(Instant::now() < deadline, "systemd-journald does not listen");
            thread::sleep(Duration::from_millis(50));
        }
        journald
    }

    /// A path in the daemon's mount namespace, seen from ours.
    fn inside(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root/{path}", self.child.id()))
    }

    fn socket(&self) -> PathBuf {
        self.inside("run/journald/socket")
    }

    /// The entries that match, as `journalctl -o json` has them.
    fn read(&self, matches: &str) -> Vec<serde_json::Value> {
        let text = self.journalctl(&["--all", "-o", "json", matches]);
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn journalctl(&self, arguments: &[&str]) -> String {
        // Named by the machine's id and the instance; it appears with the first entry.
        let dir = self.inside("run/log/journal/5ca1ab1e5ca1ab1e5ca1ab1e5ca1ab1e.refverify-test");
        if !dir.exists() {
            return String::new();
        }
        let output = Command::new("journalctl")
            .args(["--quiet", "-D"])
            .arg(dir)
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Waits until that many entries of ours are there.
    fn wait_for(&self, count: usize) -> Vec<serde_json::Value> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let entries = self.read("SYSLOG_IDENTIFIER=refverify-monitor");
            if entries.len() >= count || Instant::now() > deadline {
                return entries;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Journald {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn privileged_journal_roundtrip() {
    if cannot_run_journald("privileged_journal_roundtrip") {
        return;
    }
    let journald = Journald::start();
    let mut posted: Vec<Notice> = life_cycle();
    posted.extend(one_of_each_kind().into_iter().map(notice));
    posted.push(notice(too_long_for_a_datagram()));
    posted.push(Notice::Summary(bad_summary()));
    report_to(&journald.socket(), posted.clone());

    // A reading of the tree is told once, and a dump is not told.
    let told = |notice: &&Notice| match notice {
        Notice::Seeding { done_permille, .. } => *done_permille == 0,
        notice => Label::of(notice).is_some(),
    };
    let told: Vec<&Notice> = posted.iter().filter(told).collect();
    let entries = journald.wait_for(told.len());
    assert_eq!(entries.len(), told.len());
    for (entry, notice) in entries.iter().zip(told) {
        let label = Label::of(notice).unwrap();
        assert_eq!(entry["MESSAGE_ID"], label.message_id.simple().to_string());
        assert_eq!(entry["PRIORITY"], (label.priority as u8).to_string());
        assert_eq!(entry["_PID"], std::process::id().to_string());
    }

    let id = finding_message_id(drop_missing_ref().kind).simple().to_string();
    let found = journald.read(&format!("MESSAGE_ID={id}"));
    assert_eq!(found.len(), 2, "one short, one long");
    for (entry, finding) in found.iter().zip([drop_missing_ref(), too_long_for_a_datagram()]) {
        assert_eq!(entry["REFVERIFY_BYTENR"], "13631488");
        let stack = entry["REFVERIFY_STACK"].as_str().unwrap();
        assert_eq!(stack.lines().count(), own_stack_len(&finding));
        assert!(stack.starts_with(" btrfs_add_delayed_data_ref+0x1a/0x2b0 [btrfs]\n"), "{stack}");
        let dump = entry["REFVERIFY_DUMP"].as_str().unwrap();
        let actions = finding.extent.unwrap().actions.len();
        assert_eq!(dump.matches(" by btrfs-cleaner[812]").count(), actions);
    }
}

#[test]
fn privileged_a_long_dump_is_read_as_the_page_on_findings_says() {
    let name = "privileged_a_long_dump_is_read_as_the_page_on_findings_says";
    if cannot_run_journald(name) {
        return;
    }
    let journald = Journald::start();
    report_to(&journald.socket(), [notice(too_long_for_a_datagram())]);
    assert_eq!(journald.wait_for(1).len(), 1);
    let fields = ["-o", "cat", "--output-fields=REFVERIFY_DUMP"];
    let text = journald.journalctl(&[&fields[..], &["REFVERIFY_KIND=drop-missing-ref"]].concat());
    assert_eq!(text.matches("ADD_REF root 5").count(), 400);
}

fn cannot_run_journald(test: &str) -> bool {
    let cannot = !rustix::process::geteuid().is_root() || !Path::new(JOURNALD).exists();
    if cannot {
        eprintln!("SKIPPED: {test}: needs root and {JOURNALD}");
    }
    cannot
}

fn own_stack_len(finding: &Finding) -> usize {
    match &finding.cause {
        Cause::Event(event) => event.stack.len(),
        Cause::Disk { .. } | Cause::Audit { .. } => 0,
    }
}
