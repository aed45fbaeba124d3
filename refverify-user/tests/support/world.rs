//! The verifier in a simulated world: a file system that commits while its extent tree is
//! read, a ring buffer that is drained late, and a device that answers out of order.

use std::collections::{BTreeMap, VecDeque};

use refverify_user::{
    btrfs::{ExtentKind, RefKey},
    feed::{
        BlockAnswer, BlockRequest, Event, FsSlot, Hello, HookMode, Loss, LossSource, Mount,
        ToAgent, ToVerifier, recording::Recorder,
    },
    verify::{Finding, FsState, Notice, Outbox, Share, Summary, Verifier, VerifierConfig},
};

mod failing;

use super::{
    image::{Extent, Image, METADATA_START, Trees},
    model::{Model, Rng},
};

/// The whole of it.
pub(crate) struct World {
    /// The seed's numbers.
    pub(crate) rng: Rng,
    /// The file system.
    pub(crate) model: Model,
    image: Image,
    /// What the disk has wrong: this reference of this extent is not written.
    pub(crate) missing_on_disk: Option<(u64, RefKey)>,
    commit: Option<Commit>,
    /// Messages that the agent has not drained.
    ring: VecDeque<ToVerifier>,
    /// Events dropped from the ring since the last drain.
    lost: u64,
    /// Reads that are under way.
    reads: Vec<BlockRequest>,
    /// Whether reads give nonsense.
    spoilt: bool,
    /// Whether what is written does not reach the disk.
    pub(crate) drops_writes: bool,
    /// What is on disk, for after a crash.
    on_disk: Option<failing::OnDisk>,
    /// Reads of tree blocks that were answered.
    pub(crate) blocks_read: u64,
    verifier: Verifier,
    armed: bool,
    /// Where what the verifier is told is recorded.
    pub(crate) recorder: Option<Recorder<Vec<u8>>>,
    /// Everything that was told.
    pub(crate) notices: Vec<Notice>,
    time_ns: u64,
}

/// A commit that is under way.
struct Commit {
    transid: u64,
    /// Extents as of its end.
    extents: BTreeMap<u64, Extent>,
    written: Option<Trees>,
}

pub(crate) const FS: FsSlot = FsSlot(0);

impl World {
    /// A file system with some extents, committed, and nobody watching.
    pub(crate) fn new(seed: u64) -> Self {
        Self::with(seed, VerifierConfig::default())
    }

    /// The same, for a verifier of one's own choice.
    pub(crate) fn with(seed: u64, config: VerifierConfig) -> Self {
        let mut world = Self {
            rng: Rng(seed),
            model: Model::new(7),
            image: Image::new(),
            missing_on_disk: None,
            commit: None,
            ring: VecDeque::new(),
            lost: 0,
            reads: Vec::new(),
            spoilt: false,
            drops_writes: false,
            on_disk: None,
            blocks_read: 0,
            verifier: Verifier::new(config),
            armed: false,
            recorder: None,
            notices: Vec::new(),
            time_ns: 0,
        };
        for _ in 0..1500 {
            world.change();
        }
        world.commit_now();
        world
    }

    /// The verifier is not to hold more than this; before anybody watches.
    pub(crate) fn limit(&mut self, share: Share) {
        let config = VerifierConfig { share: Some(share), ..VerifierConfig::default() };
        self.verifier = Verifier::new(config);
    }

    /// One random change of the file system.
    pub(crate) fn change(&mut self) {
        if let Some(event) = self.model.step(&mut self.rng) {
            self.emit(event);
        }
    }

    /// Puts an event into the ring buffer, if it is there.
    pub(crate) fn emit(&mut self, event: Event) {
        self.push(ToVerifier::Events(vec![event]));
    }

    /// Puts any message into the ring buffer, if it is there.
    pub(crate) fn push(&mut self, message: ToVerifier) {
        if self.armed {
            self.ring.push_back(message);
        }
    }

    /// The ring buffer overflows: the newest records in it are gone.
    pub(crate) fn lose(&mut self, records: usize) {
        for _ in 0..records {
            if matches!(self.ring.back(), Some(ToVerifier::Events(_))) {
                self.ring.pop_back();
                self.lost += 1;
            }
        }
    }

    /// The newest signal of a commit in the ring buffer is gone, and nobody counts it.
    pub(crate) fn lose_commit(&mut self) {
        let is_commit = |message: &ToVerifier| matches!(message, ToVerifier::Commit { .. });
        let place = self.ring.iter().rposition(is_commit).expect("a commit was signalled");
        self.ring.remove(place);
    }

    /// Arms the hooks and tells the verifier; what runs now may have been missed in part.
    pub(crate) fn attach(&mut self) {
        self.armed = true;
        self.greet();
        self.tell(ToVerifier::Mount(Mount {
            fs: FS,
            device: "/dev/simulated".into(),
            first_usable_generation: self.model.transid,
        }));
    }

    /// The agent says who it is.
    pub(crate) fn greet(&mut self) {
        self.tell(ToVerifier::Hello(Hello {
            kernel_release: "simulated".into(),
            mode: HookMode::Kprobes,
            hooks: Vec::new(),
            unseen: Vec::new(),
            devices: vec!["/dev/simulated".into()],
        }));
    }

    /// One step of the world: mostly changes; now and then commits, drains and reads.
    pub(crate) fn step(&mut self) {
        match self.rng.below(20) {
            0..12 => self.change(),
            12..14 => self.commit_some(),
            14..17 => self.drain(),
            _ => self.answer_one(),
        }
    }

    fn commit_some(&mut self) {
        match self.commit.take() {
            None => self.begin_commit(),
            Some(commit) => self.go_on(commit),
        }
    }

    fn begin_commit(&mut self) {
        self.commit = Some(Commit {
            transid: self.model.transid,
            extents: self.to_be_written(),
            written: None,
        });
        self.model.transid += 1;
    }

    fn go_on(&mut self, mut commit: Commit) {
        if self.drops_writes {
            self.push(ToVerifier::Commit { fs: FS, transid: commit.transid });
            self.model.durable(commit.transid);
            return;
        }
        match commit.written.take() {
            None => {
                commit.written = Some(self.image.write_trees(commit.transid, &commit.extents));
                self.commit = Some(commit);
            }
            Some(root) => {
                self.image.write_superblock(&root);
                self.push(ToVerifier::Commit { fs: FS, transid: commit.transid });
                self.model.durable(commit.transid);
                self.is_on_disk(commit.transid, commit.extents);
            }
        }
    }

    /// The extents as they will be written, with what is planted.
    fn to_be_written(&self) -> BTreeMap<u64, Extent> {
        let mut extents = self.model.extents.clone();
        if let Some((bytenr, key)) = &self.missing_on_disk
            && let Some(extent) = extents.get_mut(bytenr)
        {
            extent.refs.remove(key);
        }
        extents
    }

    /// Ends the commit that is under way, and makes another.
    pub(crate) fn commit_now(&mut self) {
        while self.commit.is_some() {
            self.commit_some();
        }
        for _ in 0..3 {
            self.commit_some();
        }
    }

    /// The agent drains the ring buffer, wholly, as it does.
    pub(crate) fn drain(&mut self) {
        while let Some(mut message) = self.ring.pop_front() {
            if let ToVerifier::Events(events) = &mut message {
                while let Some(ToVerifier::Events(more)) =
                    self.ring.pop_front_if(|next| matches!(next, ToVerifier::Events(_)))
                {
                    events.extend(more);
                }
            }
            self.tell(message);
        }
        if self.lost > 0 {
            let count = std::mem::take(&mut self.lost);
            self.tell(ToVerifier::Loss(Loss { fs: None, source: LossSource::RingBuffer, count }));
        }
        self.tell(ToVerifier::Drained);
        self.time_ns += 100_000_000;
        self.tell(ToVerifier::Tick { time_ns: self.time_ns });
    }

    fn answer_one(&mut self) {
        if self.reads.is_empty() {
            return;
        }
        let read = self.rng.pick(&self.reads);
        self.blocks_read += u64::from(read.offset >= METADATA_START);
        self.reads.retain(|other| other.id != read.id);
        let mut data = self.image.read(read.offset, read.len_bytes as usize);
        if self.spoilt {
            data.fill(0xff);
        }
        self.tell(ToVerifier::Block(BlockAnswer { fs: FS, id: read.id, data: Ok(data.into()) }));
    }

    /// Answers all reads that are under way, and those that follow from the answers.
    pub(crate) fn answer_all(&mut self) {
        while !self.reads.is_empty() {
            self.answer_one();
        }
    }

    /// From now on reads give nonsense, or what is there.
    pub(crate) fn spoil_reads(&mut self, spoilt: bool) {
        self.spoilt = spoilt;
    }

    /// How many reads are under way.
    pub(crate) fn blocks_wanted(&self) -> usize {
        self.reads.len()
    }

    /// How often the file system was refused.
    pub(crate) fn refusals(&self) -> usize {
        self.notices.iter().filter(|notice| matches!(notice, Notice::Refused { .. })).count()
    }

    /// Tells the verifier, and takes what it answers.
    pub(crate) fn tell(&mut self, message: ToVerifier) {
        if let Some(recorder) = &mut self.recorder {
            recorder.record(&message).expect("memory is never full");
        }
        let mut out = Outbox::default();
        self.verifier.handle(message, &mut out);
        self.notices.append(&mut out.notices);
        for request in out.requests {
            match request {
                ToAgent::Read(read) => self.reads.push(read),
                ToAgent::Symbolise(_) | ToAgent::Stop | ToAgent::Dump => {}
            }
        }
    }

    /// Lets everything come to rest: commits, drains, and answers all reads.
    pub(crate) fn settle(&mut self) {
        for _ in 0..4 {
            self.commit_now();
            self.drain();
            self.answer_all();
        }
        self.drain();
    }

    /// The file system goes, and everything about it is drained.
    pub(crate) fn unmount(&mut self) {
        self.push(ToVerifier::Unmount { fs: FS });
        self.drain();
    }

    /// The agent goes without a word, after it has told what the ring buffer still holds and
    /// before it has looked at what was lost.
    pub(crate) fn agent_goes(&mut self) -> Summary {
        while let Some(message) = self.ring.pop_front() {
            self.tell(message);
        }
        let mut out = Outbox::default();
        self.verifier.cut_off(&mut out);
        self.notices.append(&mut out.notices);
        self.summary()
    }

    /// Ends the run.
    pub(crate) fn finish(&mut self) -> Summary {
        self.tell(ToVerifier::Bye);
        self.summary()
    }

    fn summary(&self) -> Summary {
        match self.notices.last() {
            Some(Notice::Summary(summary)) => summary.clone(),
            other => panic!("the last notice is a summary, not {other:?}"),
        }
    }

    /// The findings so far.
    pub(crate) fn findings(&self) -> Vec<&Finding> {
        fn finding(notice: &Notice) -> Option<&Finding> {
            match notice {
                Notice::Finding(finding) => Some(finding),
                _ => None,
            }
        }
        self.notices.iter().filter_map(finding).collect()
    }

    /// Where the ledger stands, and what is in it.
    pub(crate) fn ledger(&mut self) -> (FsState, String) {
        self.tell(ToVerifier::DumpWanted);
        let Some(Notice::Dump(text)) = self.notices.pop() else { panic!("a dump was asked for") };
        let (header, rest) = text.split_once('\n').expect("a header line");
        let live = header.contains(" state live ");
        let body = rest.strip_suffix("end\n").expect("a last line").to_owned();
        (if live { FsState::Live } else { FsState::Seeding }, body)
    }

    /// An extent with at least two references, and one of these.
    pub(crate) fn shared_data_extent(&mut self) -> Option<(u64, RefKey)> {
        let shared = |extent: &Extent| extent.kind == ExtentKind::Data && extent.refs.len() > 1;
        let found: Vec<(u64, RefKey)> = self
            .model
            .extents
            .iter()
            .filter(|(_, extent)| shared(extent))
            .filter_map(|(&bytenr, extent)| Some((bytenr, *extent.refs.keys().next()?)))
            .collect();
        (!found.is_empty()).then(|| self.rng.pick(&found))
    }
}
