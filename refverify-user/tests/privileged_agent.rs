//! The agent on the running kernel: real programs, a real btrfs on a loop device. Needs root,
//! a kernel with btrfs, and btrfs-progs; what cannot run says so.

use std::{
    collections::HashSet,
    fs,
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use refverify_user::{
    agent::{Agent, AgentConfig},
    btrfs::{Action, ExtentKind},
    feed::{BlockError, BlockRequest, Change, Event, FsSlot, Hello, HookMode, ToAgent, ToVerifier},
};
use tempfile::TempDir;
use tokio::sync::mpsc;

/// Long enough for a slow virtual machine.
const PATIENCE: Duration = Duration::from_mins(1);

fn is_possible(test: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("SKIPPED: {test}: not root");
    }
    is_root
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program} {arguments:?}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A btrfs on a loop device; taken down on drop.
struct Scratch {
    device: String,
    dir: TempDir,
}

impl Scratch {
    fn new(mkfs_options: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let image = dir.path().join("image");
        fs::File::create(&image).and_then(|file| file.set_len(1 << 30)).expect("an image");
        let image = image.to_str().expect("a path");
        run("mkfs.btrfs", &[&["-q", "-f"], mkfs_options, &[image]].concat());
        Self::with_image(dir)
    }

    /// As this one is on disk now, as if the machine had crashed.
    fn crashed(&self) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let [from, to] = [&self.dir, &dir].map(|dir| dir.path().join("image"));
        run(
            "cp",
            &["--sparse=always", from.to_str().expect("a path"), to.to_str().expect("a path")],
        );
        Self::with_image(dir)
    }

    fn with_image(dir: TempDir) -> Self {
        let image = dir.path().join("image");
        let device = run("losetup", &["--find", "--show", image.to_str().expect("a path")]);
        fs::create_dir(dir.path().join("mnt")).expect("a mount point");
        Self { device, dir }
    }

    fn mount_point(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn mount(&self) {
        run("mount", &[&self.device, self.mount_point().to_str().expect("a path")]);
    }

    fn unmount(&self) {
        run("umount", &[self.mount_point().to_str().expect("a path")]);
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.mount_point()).output();
        let _ = Command::new("losetup").args(["--detach", &self.device]).output();
    }
}

/// An agent that runs, and the far ends of its channels.
struct Running {
    messages: mpsc::Receiver<ToVerifier>,
    requests: mpsc::Sender<ToAgent>,
    dump: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

impl Running {
    fn start(device: &Path, stacks: bool) -> Self {
        let devices = vec![device.to_owned()];
        let config = AgentConfig { devices, stacks, ring_bytes: 16 << 20, io_limit_bytes: None };
        let agent = Agent::start(config).unwrap_or_else(|error| panic!("{error}"));
        let (to_verifier, messages) = mpsc::channel(1024);
        let (requests, from_verifier) = mpsc::channel(1024);
        let dump = Arc::new(AtomicBool::new(false));
        let agent_dump = Arc::clone(&dump);
        let thread = thread::spawn(move || agent.run(to_verifier, from_verifier, agent_dump));
        Self { messages, requests, dump, thread }
    }

    /// All messages up to and with the first that `is_last` holds for; ticks and
    /// ends of drains left out.
    fn until(&mut self, is_last: impl Fn(&ToVerifier) -> bool) -> Vec<ToVerifier> {
        let begin = Instant::now();
        let mut seen = Vec::new();
        while begin.elapsed() < PATIENCE {
            let message = self.messages.blocking_recv().expect("the agent runs");
            if matches!(message, ToVerifier::Tick { .. } | ToVerifier::Drained) {
                continue;
            }
            let done = is_last(&message);
            seen.push(message);
            if done {
                return seen;
            }
        }
        panic!("what was waited for did not come: {seen:?}");
    }

    fn ask(&self, request: ToAgent) {
        self.requests.blocking_send(request).expect("the agent runs");
    }

    /// Stops it; returns what it still told.
    fn stop(mut self) -> Vec<ToVerifier> {
        self.ask(ToAgent::Stop);
        let rest = self.until(|message| *message == ToVerifier::Bye);
        // It answers as long as it may be asked.
        drop(self.requests);
        self.thread.join().expect("no panic");
        rest
    }
}

fn events(messages: &[ToVerifier]) -> Vec<&Event> {
    let batches = messages.iter().filter_map(|message| match message {
        ToVerifier::Events(events) => Some(events),
        _ => None,
    });
    batches.flatten().collect()
}

fn no_loss(messages: &[ToVerifier]) {
    let lost = messages.iter().find(|message| matches!(message, ToVerifier::Loss(_)));
    assert_eq!(lost, None);
}

fn position(messages: &[ToVerifier], is_it: impl Fn(&ToVerifier) -> bool) -> usize {
    messages.iter().position(is_it).unwrap_or_else(|| panic!("missing in {messages:?}"))
}

/// Writes, syncs, reflinks, snapshots and deletes.
fn work(mount_point: &Path) {
    let dir = mount_point.to_str().expect("a path");
    for i in 0..32 {
        fs::write(mount_point.join(format!("file{i}")), vec![i; 300_000]).expect("written");
    }
    run("sync", &["-f", dir]);
    run("cp", &["--reflink=always", &format!("{dir}/file1"), &format!("{dir}/clone1")]);
    run("btrfs", &["subvolume", "snapshot", dir, &format!("{dir}/snapshot")]);
    for i in 0..16 {
        fs::remove_file(mount_point.join(format!("file{i}"))).expect("removed");
    }
    run("sync", &["-f", dir]);
    run("btrfs", &["balance", "start", "--full-balance", dir]);
}

#[test]
fn privileged_a_mounted_file_system_is_followed_from_attach_to_unmount() {
    if !is_possible("a_mounted_file_system_is_followed_from_attach_to_unmount") {
        return;
    }
    let scratch = Scratch::new(&[]);
    scratch.mount();
    // With a second one on the same hooks the kernel calls them another way.
    let bystander = Running::start(Path::new(&scratch.device), false);
    let mut agent = Running::start(Path::new(&scratch.device), true);
    let fs = FsSlot(0);
    let mount = agent.until(|message| matches!(message, ToVerifier::Mount(_)));
    assert!(matches!(mount[0], ToVerifier::Hello(_)));
    let Some(ToVerifier::Mount(mount)) = mount.last() else { unreachable!() };
    assert_eq!((mount.fs, mount.device.as_str()), (fs, scratch.device.as_str()));
    assert!(mount.first_usable_generation > 0);

    work(&scratch.mount_point());
    agent.dump.store(true, Ordering::Release);
    let seen = agent.until(|message| *message == ToVerifier::DumpWanted);
    no_loss(&seen);
    let all = events(&seen);
    assert!(all.len() > 50, "{} events", all.len());
    check_fields(&all, mount.first_usable_generation);
    check_stacks(&mut agent, &all);

    bystander.stop();
    scratch.unmount();
    let rest = agent.until(|message| matches!(message, ToVerifier::Unmount { .. }));
    no_loss(&rest);
    let commits = seen.iter().chain(&rest).filter_map(|message| match message {
        ToVerifier::Commit { transid, .. } => Some(*transid),
        _ => None,
    });
    let commits: Vec<u64> = commits.collect();
    assert!(commits.len() >= 2 && commits.is_sorted(), "{commits:?}");
    let last_event = all.iter().map(|event| event.transid).max();
    assert!(commits.last().copied() >= last_event, "{commits:?} {last_event:?}");
    no_loss(&agent.stop());
}

fn check_fields(all: &[&Event], mounted_at: u64) {
    let mut kinds = HashSet::new();
    let mut removed_groups = 0;
    for event in all {
        assert_eq!(event.fs, FsSlot(0));
        assert!((mounted_at..mounted_at + 100).contains(&event.transid), "{event:?}");
        assert!(event.tid != 0 && event.time_ns != 0, "{event:?}");
        assert!(event.comm.0[0].is_ascii_graphic(), "{event:?}");
        let (action, kind, bytenr, len_bytes, key) = match event.change {
            Change::Ref { action, kind, bytenr, len_bytes, key, .. } => {
                (action, kind, bytenr, len_bytes, key)
            }
            Change::RemoveGroup { start, len_bytes } => {
                assert!(start >= 1 << 20 && start % 65536 == 0, "{event:?}");
                assert!((1 << 20..=1 << 30).contains(&len_bytes), "{event:?}");
                removed_groups += 1;
                continue;
            }
        };
        assert!(bytenr % 4096 == 0 && bytenr >= 1 << 20, "{event:?}");
        assert!(len_bytes % 4096 == 0 && (4096..1 << 30).contains(&len_bytes), "{event:?}");
        assert!((key.root == 0) == (key.parent != 0), "{event:?}");
        match kind {
            ExtentKind::Data => assert!(key.is_shared() || key.owner >= 256, "{event:?}"),
            ExtentKind::TreeBlock { level } => assert!(level < 8 && len_bytes == 16384),
        }
        kinds.insert((action, kind == ExtentKind::Data));
    }
    assert!(removed_groups > 0, "the balance removes block groups");
    for action in [Action::AddExtent, Action::AddRef, Action::DropRef] {
        assert!(kinds.contains(&(action, true)), "no {action} of data in {kinds:?}");
    }
    for action in [Action::AddExtent, Action::DropRef] {
        assert!(kinds.contains(&(action, false)), "no {action} of a tree block in {kinds:?}");
    }
}

/// The innermost frames are btrfs's own, with nothing of the tracing above them.
fn check_stacks(agent: &mut Running, all: &[&Event]) {
    let addresses: HashSet<u64> =
        all.iter().flat_map(|event| event.stack.iter().copied()).collect();
    let addresses: Vec<u64> = addresses.into_iter().collect();
    agent.ask(ToAgent::Symbolise(addresses.clone()));
    let answer = agent.until(|message| matches!(message, ToVerifier::Symbols(_)));
    let Some(ToVerifier::Symbols(names)) = answer.last() else { unreachable!() };
    assert!(names.iter().map(|(address, _)| *address).eq(addresses));
    for event in all {
        let innermost = event.stack.first().expect("a stack");
        let (_, name) = names.iter().find(|(address, _)| address == innermost).expect("named");
        let is_ours = ["btrfs_", "add_delayed_", "__btrfs_"].iter().any(|it| name.starts_with(it));
        assert!(is_ours, "the innermost frame is {name}");
    }
    let sharing = all.windows(2).filter(|pair| Arc::ptr_eq(&pair[0].stack, &pair[1].stack));
    assert!(sharing.count() > 0, "no two stacks are shared");
}

#[test]
fn privileged_a_mount_after_attaching_is_told_before_its_events_and_again_when_remounted() {
    if !is_possible("a_mount_after_attaching_is_told_before_its_events_and_again_when_remounted") {
        return;
    }
    let scratch = Scratch::new(&["-m", "single"]);
    let mut agent = Running::start(Path::new(&scratch.device), false);
    for _ in 0..2 {
        scratch.mount();
        fs::write(scratch.mount_point().join("file"), vec![1; 100_000]).expect("written");
        scratch.unmount();
        let seen = agent.until(|message| matches!(message, ToVerifier::Unmount { .. }));
        no_loss(&seen);
        let mount = position(&seen, |message| matches!(message, ToVerifier::Mount(_)));
        let Some(ToVerifier::Mount(told)) = seen.get(mount) else { unreachable!() };
        assert_eq!(told.first_usable_generation, 0, "the hooks were live before");
        let first = position(
            &seen,
            |message| matches!(message, ToVerifier::Events(events) if !events.is_empty()),
        );
        assert!(mount < first);
        assert!(events(&seen).iter().all(|event| event.stack.is_empty()));
    }
    no_loss(&agent.stop());
}

#[test]
fn privileged_extents_that_log_replay_allocates_are_seen_or_waited_for() {
    if !is_possible("extents_that_log_replay_allocates_are_seen_or_waited_for") {
        return;
    }
    let first = Scratch::new(&[]);
    first.mount();
    let path = first.mount_point().join("file");
    // Empty and committed, then written and only logged.
    let mut file = fs::File::create(path).expect("created");
    run("sync", &["-f", first.mount_point().to_str().expect("a path")]);
    file.write_all(&vec![7; 300_000]).expect("written");
    // Many more: while they are replayed the agent looks at the superblock, which still has its log.
    for number in 0..20_000 {
        file.write_all_at(&[7; 4096], (1 << 20) + number * 8192).expect("written");
    }
    file.sync_all().expect("logged");
    drop(file);
    let crashed = first.crashed();
    first.unmount();

    let mut agent = Running::start(Path::new(&crashed.device), false);
    let hello = agent.until(|message| matches!(message, ToVerifier::Hello(_)));
    crashed.mount();
    crashed.unmount();
    let seen = agent.until(|message| matches!(message, ToVerifier::Unmount { .. }));
    no_loss(&seen);
    let mount = position(&seen, |message| matches!(message, ToVerifier::Mount(_)));
    let Some(ToVerifier::Mount(mount)) = seen.get(mount) else { unreachable!() };
    let Some(ToVerifier::Hello(Hello { mode, .. })) = hello.last() else { unreachable!() };
    let replayed = events(&seen).into_iter().find(|event| {
        let Change::Ref { action, kind, len_bytes, key, .. } = event.change else { return false };
        (action, kind, len_bytes) == (Action::AddExtent, ExtentKind::Data, 303_104)
            && (key.root, key.owner, key.offset) == (5, 257, 0)
    });
    match mode {
        HookMode::Kprobes => {
            assert_eq!(mount.first_usable_generation, 0);
            assert!(replayed.is_some(), "{:?}", events(&seen));
        }
        HookMode::Tracepoints => {
            assert_eq!(replayed, None, "tracepoints do not see it");
            let commit = seen.iter().find_map(|message| match message {
                ToVerifier::Commit { transid, .. } => Some(*transid),
                _ => None,
            });
            assert_eq!(Some(mount.first_usable_generation), commit, "the replay's own commit");
        }
    }
    agent.stop();
}

#[test]
fn privileged_other_file_systems_are_not_heard() {
    if !is_possible("other_file_systems_are_not_heard") {
        return;
    }
    let watched = Scratch::new(&[]);
    let other = Scratch::new(&[]);
    watched.mount();
    other.mount();
    // By its mount point, which stands for its device.
    let mut agent = Running::start(&watched.mount_point(), false);
    work(&other.mount_point());
    agent.dump.store(true, Ordering::Release);
    let seen = agent.until(|message| *message == ToVerifier::DumpWanted);
    no_loss(&seen);
    assert_eq!(events(&seen).len(), 0);
    agent.stop();
}

#[test]
fn privileged_a_ring_buffer_that_is_too_small_is_told_as_loss() {
    if !is_possible("a_ring_buffer_that_is_too_small_is_told_as_loss") {
        return;
    }
    let scratch = Scratch::new(&[]);
    scratch.mount();
    let config = AgentConfig {
        devices: vec![PathBuf::from(&scratch.device)],
        stacks: true,
        ring_bytes: 4096,
        io_limit_bytes: None,
    };
    let agent = Agent::start(config).unwrap_or_else(|error| panic!("{error}"));
    // Nothing is drained while the work is done.
    work(&scratch.mount_point());
    let (to_verifier, messages) = mpsc::channel(1024);
    let (requests, from_verifier) = mpsc::channel(1024);
    let dump = Arc::new(AtomicBool::new(false));
    let thread_dump = Arc::clone(&dump);
    let thread = thread::spawn(move || agent.run(to_verifier, from_verifier, thread_dump));
    let mut agent = Running { messages, requests, dump, thread };
    let seen = agent.until(|message| matches!(message, ToVerifier::Loss(_)));
    let Some(ToVerifier::Loss(loss)) = seen.last() else { unreachable!() };
    assert_eq!(loss.fs, Some(FsSlot(0)));
    assert!(loss.count > 10, "{loss:?}");
    agent.stop();
}

#[test]
fn privileged_blocks_are_read_and_nothing_outside_of_the_device() {
    if !is_possible("blocks_are_read_and_nothing_outside_of_the_device") {
        return;
    }
    let scratch = Scratch::new(&[]);
    let mut agent = Running::start(Path::new(&scratch.device), false);
    let fs = FsSlot(0);
    let ask =
        |id, devid, offset| ToAgent::Read(BlockRequest { fs, id, devid, offset, len_bytes: 4096 });
    for request in [ask(1, 0, 65536), ask(2, 1, 65536), ask(3, 7, 65536), ask(4, 0, 1 << 40)] {
        agent.ask(request);
    }
    let mut answers = Vec::new();
    while answers.len() < 4 {
        let seen = agent.until(|message| matches!(message, ToVerifier::Block(_)));
        let Some(ToVerifier::Block(answer)) = seen.into_iter().next_back() else { unreachable!() };
        answers.push(answer);
    }
    // They come as the device gives them.
    answers.sort_unstable_by_key(|answer| answer.id);
    for answer in &answers[..2] {
        let data = answer.data.as_ref().expect("readable");
        assert_eq!(&data[0x40..0x48], b"_BHRfS_M");
    }
    assert_eq!(answers[2].data, Err(BlockError::NoDevice { devid: 7 }));
    assert_eq!(answers[3].data, Err(BlockError::Refused { offset: 1 << 40, len_bytes: 4096 }));
    agent.stop();
}
