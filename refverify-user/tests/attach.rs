//! Guests that are not what they should be: each ends with a clear message, in bounded time
//! and memory, and never with a finding that nothing in the kernel caused.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use refverify_user::{
    attach::{Attached, Watching, watch},
    btrfs::{Action, ExtentKind, RefKey},
    feed::{
        BlockAnswer, Change, Comm, Event, FsSlot, Hello, HookMode, Mount, ToAgent, ToVerifier,
        codec::{Carrier, Direction, Encoder, Header},
        stream::{Receiver, Sender},
    },
    report::{Format, Progress, Reporter, Settings},
    session::Stops,
    verify::{Share, Verifier, VerifierConfig},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split},
    runtime::Builder,
    time::{sleep, timeout},
};

/// How long a guest may be silent here.
const PATIENCE: Duration = Duration::from_millis(500);

/// What a guest may take here.
const SHARE: Share = Share { memory_max_bytes: 4 << 20, waiting_max: 1000 };

/// What is told of a guest.
struct Told {
    status: u8,
    reports: String,
    /// The text of the flight record; empty if there is none.
    flight: String,
}

impl Told {
    fn reason(&self) -> &str {
        let line = self.flight.lines().find_map(|line| line.strip_prefix("lost: "));
        line.unwrap_or_else(|| panic!("no flight record says why: {}", self.reports))
    }
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl io::Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Watches a guest that does as the script says. A talk that does not end fails.
fn watched<F: Future<Output = ()>>(script: impl FnOnce(DuplexStream) -> F) -> Told {
    watched_over(64 << 10, script)
}

/// The same, over a pipe of this length.
fn watched_over<F: Future<Output = ()>>(
    pipe_len: usize,
    script: impl FnOnce(DuplexStream) -> F,
) -> Told {
    let dir = tempfile::tempdir().unwrap();
    let (here, there) = duplex(pipe_len);
    let (input, output) = split(here);
    let reports = Shared::default();
    let settings = Settings { format: Format::Json, ledger_dump: None, vm: Some("vm".into()) };
    let watching = Watching {
        name: "vm".to_owned(),
        verifier: Verifier::new(VerifierConfig { share: Some(SHARE), ..Default::default() }),
        reporter: Reporter::new(settings, reports.clone(), None, Progress::in_log()),
        stops: Stops::default(),
        recorder: None,
        patience: PATIENCE,
        flight_dir: dir.path().to_owned(),
    };
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let status = runtime.block_on(async {
        let watching = watch(Attached::over(input, output, 1), watching, |_| {});
        let both = async { tokio::join!(watching, script(there)).0 };
        // Only one that hangs is to be stopped: a busy machine takes its time.
        timeout(Duration::from_mins(5), both).await.expect("it ends").unwrap()
    });
    let bytes = reports.0.lock().unwrap().clone();
    let flights = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
    let flight = flights.filter(|path| path.extension().is_some_and(|kind| kind == "txt"));
    let flight = flight.map(|path| std::fs::read_to_string(path).unwrap()).collect();
    Told { status, reports: String::from_utf8(bytes).unwrap(), flight }
}

fn hello(devices: usize) -> ToVerifier {
    ToVerifier::Hello(Hello {
        kernel_release: "6.18.0-guest".into(),
        mode: HookMode::Kprobes,
        hooks: Vec::new(),
        unseen: Vec::new(),
        devices: vec!["/dev/vdb".into(); devices],
    })
}

const FS: FsSlot = FsSlot(0);

fn mount() -> ToVerifier {
    ToVerifier::Mount(Mount { fs: FS, device: "/dev/vdb".into(), first_usable_generation: 5 })
}

/// A drop of a reference that nobody knows.
fn event(bytenr: u64) -> Event {
    Event {
        fs: FS,
        transid: 9,
        time_ns: 1,
        cpu: 0,
        pid: 1,
        tid: 1,
        comm: Comm::default(),
        stack: Arc::from([]),
        change: Change::Ref {
            action: Action::DropRef,
            kind: ExtentKind::Data,
            bytenr,
            len_bytes: 4096,
            key: RefKey::data(5, 0, 257, 0),
            owning_root: 0,
        },
    }
}

fn stream_of(messages: &[ToVerifier]) -> BytesMut {
    let mut bytes = BytesMut::new();
    Header::new(Direction::ToVerifier, None).encode(Carrier::Stream, &mut bytes).unwrap();
    let mut encoder = Encoder::default();
    for message in messages {
        encoder.encode(message, &mut bytes).unwrap();
    }
    bytes
}

/// Says this, and then stays on the line until the other end hangs up.
async fn say(mut stream: DuplexStream, bytes: &[u8]) {
    // The other end may have heard enough before all is said.
    let _ = stream.write_all(bytes).await;
    let _ = stream.read_to_end(&mut Vec::new()).await;
}

fn said(bytes: impl AsRef<[u8]>) -> Told {
    let bytes = bytes.as_ref().to_vec();
    watched(|stream| async move { say(stream, &bytes).await })
}

/// What must hold whatever a guest does.
fn assert_lost_and_no_more(told: &Told, reason: &str) {
    assert!(told.reason().contains(reason), "{}", told.reason());
    assert_eq!(told.status, 4, "{}", told.reports);
    assert!(!told.reports.contains("\"finding\""), "{}", told.reports);
    assert!(told.reports.lines().last().unwrap().contains("\"summary\""), "{}", told.reports);
}

#[test]
fn garbage_is_named() {
    assert_lost_and_no_more(&said("login: "), "begins with \"login: \"");
    let noise: Vec<u8> =
        (0..100_000_u32).map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()[3]).collect();
    assert_lost_and_no_more(&said(&noise), "not what refverify-monitor writes");
    let mut late = stream_of(&[hello(1)]);
    late.extend_from_slice(&noise);
    assert_lost_and_no_more(&said(&late), "cannot be understood");
}

#[test]
fn another_version_is_named() {
    let mut bytes = stream_of(&[]);
    bytes[8] = 1;
    assert_lost_and_no_more(&said(&bytes), "format version 1 cannot be read here, only version 2");
}

#[test]
fn a_frame_of_4_gib_is_refused_at_its_length() {
    let mut bytes = stream_of(&[hello(1)]);
    bytes.extend_from_slice(&[0xff; 4]);
    assert_lost_and_no_more(&said(&bytes), "4294967295 bytes of a frame are more than");
}

#[test]
fn a_guest_that_says_nothing_is_given_up() {
    assert_lost_and_no_more(&said(b""), "nothing was heard of the guest");
    assert_lost_and_no_more(&said(stream_of(&[hello(1)])), "nothing was heard of the guest");
}

#[test]
fn a_guest_that_dies_leaves_what_it_told() {
    let told = watched(|mut stream| async move {
        let messages = [hello(1), mount(), ToVerifier::Events(vec![event(4096)])];
        stream.write_all(&stream_of(&messages)).await.unwrap();
        // Its connection ends without a word.
    });
    assert_lost_and_no_more(&told, "the connection ended");
    assert!(told.flight.contains("kernel 6.18.0-guest"), "{}", told.flight);
    assert!(told.flight.contains("extent 4096 len 4096 DROP_REF"), "{}", told.flight);
    assert!(told.flight.contains("in the guest's ring buffer died with it"), "{}", told.flight);
}

#[test]
fn a_guest_that_breaks_off_within_a_message_is_lost() {
    let bytes = stream_of(&[hello(1), mount()]);
    let told = watched(|mut stream| async move {
        stream.write_all(&bytes[..bytes.len() - 1]).await.unwrap();
    });
    assert_lost_and_no_more(&told, "broke off in a message");
}

#[test]
fn a_guest_that_says_what_it_may_not_is_not_believed() {
    for (messages, reason) in [
        (vec![ToVerifier::Bye], "it says hello too late"),
        (vec![hello(1), hello(1)], "it says hello again"),
        (vec![hello(2)], "it watches 2 devices where 1 were named"),
        (vec![hello(1), ToVerifier::Symbols(vec![(1, "a".into())])], "it names an address"),
        (vec![hello(1), ToVerifier::Unmount { fs: FsSlot(7) }], "it speaks of file system 7"),
        (
            vec![
                hello(1),
                ToVerifier::Block(BlockAnswer { fs: FS, id: 3, data: Ok(Bytes::new()) }),
            ],
            "it answers a read that was not asked for",
        ),
    ] {
        assert_lost_and_no_more(&said(stream_of(&messages)), reason);
    }
}

/// Answers reads in its own way.
async fn answer_reads(stream: DuplexStream, answer: impl Fn(u32) -> Bytes) {
    let (input, output) = split(stream);
    let mut sender = Sender::<_, ToVerifier>::start(output, PATIENCE * 10).await.unwrap();
    for message in [hello(1), mount(), ToVerifier::Events(vec![event(4096)]), ToVerifier::Drained] {
        sender.send(&message).await.unwrap();
    }
    let mut receiver = Receiver::<_, ToAgent>::start(input).await.unwrap();
    let mut answered = 0;
    while let Ok(Some(request)) = receiver.next_message().await {
        let ToAgent::Read(read) = request else { continue };
        let data = Ok(answer(read.len_bytes));
        let block = ToVerifier::Block(BlockAnswer { fs: FS, id: read.id, data });
        answered += 1;
        if answered > 1000 || sender.send(&block).await.is_err() {
            break;
        }
    }
}

#[test]
fn a_guest_that_answers_reads_with_other_blocks_causes_no_finding() {
    let told = watched(|stream| answer_reads(stream, |len| Bytes::from(vec![0x5a; len as usize])));
    assert!(!told.reports.contains("\"finding\""), "{}", told.reports);
    assert!(told.reports.contains("\"refused\""), "{}", told.reports);
    assert_eq!(told.status, 4);
}

#[test]
fn a_guest_that_answers_reads_with_too_little_is_not_believed() {
    let told = watched(|stream| answer_reads(stream, |_| Bytes::from_static(b"short")));
    assert!(told.reason().contains("it answers a read of 4096 bytes with 5"), "{}", told.reason());
    assert!(!told.reports.contains("\"finding\""), "{}", told.reports);
}

/// Says all of this, reads nothing, and says bye.
async fn flood(stream: DuplexStream, messages: impl Iterator<Item = ToVerifier>) {
    let (input, output) = split(stream);
    let mut sender = Sender::<_, ToVerifier>::start(output, PATIENCE * 10).await.unwrap();
    for message in [hello(1), mount()].into_iter().chain(messages) {
        sender.send(&message).await.unwrap();
    }
    sender.send(&ToVerifier::Bye).await.unwrap();
    drop(input);
}

#[test]
fn a_guest_that_floods_is_refused_at_its_share() {
    // Each call that failed is an extent to be read again, and reads are never answered.
    let failed_call = |n: u64| {
        let event = ToVerifier::Events(vec![event(n * 8192)]);
        [event, ToVerifier::Retraction { tid: 1, errno: -12 }]
    };
    let told = watched(|stream| flood(stream, (1..2000).flat_map(failed_call)));
    assert_eq!(told.status, 4, "{}", told.reports);
    assert!(told.reports.contains("read again are more than its share"), "{}", told.reports);
    assert!(!told.reports.contains("\"finding\""), "{}", told.reports);
}

#[test]
fn a_guest_that_floods_with_events_that_wait_is_not_wrong_and_not_refused() {
    // More than may wait: the disk is to answer for them, which it never does.
    let batch =
        |n: u64| ToVerifier::Events((0..1000).map(|m| event((n * 1000 + m) * 4096)).collect());
    let told = watched(|stream| flood(stream, (0..1200).map(batch)));
    assert_eq!(told.status, 4, "{}", told.reports);
    assert!(!told.reports.contains("\"finding\""), "{}", told.reports);
    assert!(told.reports.contains("\"events_on_disk\":1200000"), "{}", told.reports);
}

#[test]
fn a_guest_that_stops_reading_is_given_up() {
    let told = watched_over(16, |stream| async move {
        let (input, output) = split(stream);
        let mut sender = Sender::<_, ToVerifier>::start(output, PATIENCE * 100).await.unwrap();
        sender.send(&hello(1)).await.unwrap();
        // It goes on to speak, and never reads.
        let mut time_ns = 0;
        while sender.send(&ToVerifier::Tick { time_ns }).await.is_ok() {
            sleep(PATIENCE / 10).await;
            time_ns += 1;
        }
        drop(input);
    });
    assert_lost_and_no_more(&told, "the other end has read nothing");
}
