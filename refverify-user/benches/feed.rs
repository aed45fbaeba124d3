//! What it costs to turn events into bytes, and back, and into a recording.

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use refverify_user::{
    btrfs::{Action, ExtentKind, RefKey},
    feed::{
        BlockAnswer, Change, Comm, Event, FsSlot, Stack, ToVerifier,
        codec::{Decoder, Encoder},
        recording::{Player, Recorder},
    },
};

/// As many as the agent sends at once.
const BATCH: u64 = 4096;
const BATCHES: u64 = 250;

/// A plain generator (xorshift), so that every run measures the same.
struct Rng(u64);

impl Rng {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Runs of some events by one task from one stack, of which there are a thousand.
fn batches(rng: &mut Rng) -> Vec<ToVerifier> {
    let frame = |rng: &mut Rng| 0xffff_ffff_c000_0000 + rng.below(1 << 20);
    let stacks: Vec<Stack> =
        (0..1000).map(|_| (0..16).map(|_| frame(rng)).collect::<Vec<u64>>().into()).collect();
    let mut time_ns = 1_000_000_000_000;
    let mut run = 0;
    let (mut stack, mut task) = (Arc::clone(&stacks[0]), 0);
    let mut event = || {
        if run == 0 {
            run = 1 + rng.below(12);
            // Some stacks are far more common than others.
            let many = 1 + rng.below(999);
            stack = Arc::clone(&stacks[usize::try_from(rng.below(many)).unwrap()]);
            task = u32::try_from(1000 + rng.below(16)).unwrap();
        }
        run -= 1;
        time_ns += 200 + rng.below(20_000);
        Event {
            fs: FsSlot(0),
            transid: time_ns / 1_000_000_000,
            time_ns,
            cpu: task % 8,
            pid: task,
            tid: task,
            comm: Comm(*b"fsstress\0\0\0\0\0\0\0\0"),
            stack: Arc::clone(&stack),
            change: change(rng),
        }
    };
    (0..BATCHES).map(|_| ToVerifier::Events((0..BATCH).map(|_| event()).collect())).collect()
}

fn change(rng: &mut Rng) -> Change {
    let bytenr = (1 << 30) + rng.below(1 << 24) * 16_384;
    let action = if rng.below(2) == 0 { Action::AddRef } else { Action::DropRef };
    let parent = if rng.below(3) == 0 { (1 << 30) + rng.below(1 << 20) * 16_384 } else { 0 };
    if rng.below(2) == 0 {
        let kind = ExtentKind::TreeBlock { level: 0 };
        let key = RefKey::tree(256 + rng.below(20), parent, 0);
        Change::Ref { action, kind, bytenr, len_bytes: 16_384, key, owning_root: 5 }
    } else {
        let key = RefKey::data(5, parent, 257 + rng.below(100_000), rng.below(1000) * 4096);
        Change::Ref {
            action,
            kind: ExtentKind::Data,
            bytenr,
            len_bytes: 65_536,
            key,
            owning_root: 5,
        }
    }
}

fn per_second(what: &str, count: u64, took: Duration, bytes: usize) {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let (count, bytes) = (count as f64, bytes as f64);
    let seconds = took.as_secs_f64();
    println!(
        "| {what} | {:.2} M/s | {:.1} B each | {:.0} MB/s |",
        count / seconds / 1e6,
        bytes / count,
        bytes / seconds / 1e6
    );
}

fn main() {
    let mut rng = Rng(88_172_645_463_325_252);
    let messages = batches(&mut rng);
    let events = BATCH * BATCHES;

    let start = Instant::now();
    let (mut encoder, mut bytes) = (Encoder::default(), BytesMut::new());
    for message in &messages {
        encoder.encode(message, &mut bytes).unwrap();
    }
    per_second("events encoded", events, start.elapsed(), bytes.len());

    let len = bytes.len();
    let start = Instant::now();
    let mut decoder = Decoder::<ToVerifier>::new(0);
    while let Some(message) = decoder.decode(&mut bytes).unwrap() {
        black_box(message);
    }
    per_second("events decoded", events, start.elapsed(), len);

    record("events", &messages, events);

    // Leaves are dense and hard to pack; half of these bytes repeat.
    let leaf = |rng: &mut Rng| -> Bytes {
        (0..16_384_u64)
            .map(|n| if n % 16 < 8 { rng.below(256) } else { n / 512 })
            .map(|byte| byte.to_le_bytes()[0])
            .collect()
    };
    let blocks: Vec<ToVerifier> = (0..10_000)
        .map(|id| ToVerifier::Block(BlockAnswer { fs: FsSlot(0), id, data: Ok(leaf(&mut rng)) }))
        .collect();
    record("blocks of 16 KiB", &blocks, 10_000);
}

fn record(what: &str, messages: &[ToVerifier], count: u64) {
    let start = Instant::now();
    let mut recorder = Recorder::new(Vec::new(), None, None).unwrap();
    for message in messages {
        recorder.record(message).unwrap();
    }
    let file = recorder.finish().unwrap();
    per_second(&format!("{what} recorded"), count, start.elapsed(), file.len());

    let start = Instant::now();
    let mut player = Player::new(&file[..]).unwrap();
    while let Some(message) = player.next_message().unwrap() {
        black_box(message);
    }
    per_second(&format!("{what} played"), count, start.elapsed(), file.len());
}
