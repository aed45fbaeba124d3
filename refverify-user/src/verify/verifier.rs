//! The verifier: messages in, requests and notices out.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use super::{
    AuditConfig, Disorder, ExtentDump, Finding, FindingKind, FsState, Notice, Summary, Symbols,
    filesystem::{Effects, FileSystem, NewLedger},
    gate::Gate,
    ledger::Limits,
    stacks::Stacks,
    storm::Storm,
};
use crate::feed::{Event, FsSlot, Hello, Loss, LossSource, ToAgent, ToVerifier};

/// What the user chose.
#[derive(Clone, Copy, Debug, Default)]
pub struct VerifierConfig {
    /// End at the first violation, as the kernel's checker does.
    pub stop_on_violation: bool,
    /// What each file system may take; `None` is as much as it needs. For feeds that are not
    /// trusted.
    pub share: Option<Share>,
    /// How much is remembered, of all file systems together.
    pub limits: Limits,
    /// Whether what commits put on disk is compared, and how often.
    pub audit: Option<AuditConfig>,
    /// How many cores judge when there is much to judge; 0 is one.
    pub cores: usize,
}

/// What may be held of one file system. Beyond it, it is refused, and what was held is let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Bytes of what is known of its extents, but for what can be given up.
    pub memory_max_bytes: u64,
    /// Ranges that are to be read again, and findings that cannot be told yet: of each so many.
    pub waiting_max: usize,
}

/// What a message led to.
#[derive(Debug, Default)]
pub struct Outbox {
    /// For the agent, in order.
    pub requests: Vec<ToAgent>,
    /// For the reports, in order.
    pub notices: Vec<Notice>,
}

/// Holds the model of every watched file system, and judges.
pub struct Verifier {
    config: VerifierConfig,
    filesystems: Vec<FileSystem>,
    stacks: Stacks,
    gate: Gate,
    symbols: HashMap<u64, Arc<str>>,
    /// Findings past the gate whose stacks have no text yet.
    unresolved: VecDeque<Finding>,
    findings: BTreeMap<FindingKind, u64>,
    storm: Storm,
    losses: BTreeMap<(Option<FsSlot>, LossSource), u64>,
    told_waiting: bool,
    stopping: bool,
    ended: Ended,
}

/// How far the end is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    No,
    /// Nothing more will come from the kernel; texts of symbols still may.
    Bye,
    /// The summary is out.
    Summed,
}

impl Verifier {
    /// A verifier that knows nothing yet; the agent's hello tells it what is watched.
    pub fn new(config: VerifierConfig) -> Self {
        Self {
            config,
            filesystems: Vec::new(),
            stacks: Stacks::default(),
            gate: Gate::default(),
            symbols: HashMap::new(),
            unresolved: VecDeque::new(),
            findings: BTreeMap::new(),
            storm: Storm::default(),
            losses: BTreeMap::new(),
            told_waiting: false,
            stopping: false,
            ended: Ended::No,
        }
    }

    /// Handles one message. After [`ToVerifier::Bye`], and the symbols that were still asked
    /// for, the last notice is [`Notice::Summary`].
    pub fn handle(&mut self, message: ToVerifier, out: &mut Outbox) {
        let mut fx = Effects::default();
        match message {
            ToVerifier::Hello(hello) => self.hello(hello, &mut fx),
            ToVerifier::Mount(mount) => {
                if let Some(fs) = self.filesystems.get_mut(mount.fs.0 as usize) {
                    fs.mounted(mount.device, mount.first_usable_generation, &mut fx);
                }
            }
            ToVerifier::Events(events) => {
                for event in events {
                    self.event(event, &mut fx);
                }
                for filesystem in &mut self.filesystems {
                    filesystem.judge_ready(&mut self.gate);
                }
            }
            ToVerifier::Drained => self.drained(&mut fx, out),
            ToVerifier::Retraction { tid, .. } => self.retraction(tid, &mut fx),
            ToVerifier::Loss(loss) => self.loss(loss, &mut fx),
            ToVerifier::Commit { fs, transid } => {
                self.committed(fs, transid, &mut fx);
            }
            ToVerifier::Abort { fs, transid, errno } => {
                self.with(fs, |fs, _| fs.aborted(transid, errno, &mut fx));
            }
            ToVerifier::Unmount { fs } => {
                self.with(fs, |fs, _| fs.unmounted(&mut fx));
                self.forget_symbols();
            }
            ToVerifier::Block(answer) => {
                self.with(answer.fs, |fs, gate| fs.answer(answer, gate, &mut fx));
            }
            ToVerifier::Symbols(symbols) => self.resolved(symbols, out),
            ToVerifier::DumpWanted => fx.notices.push(Notice::Dump(self.dump())),
            ToVerifier::Tick { time_ns } => self.tick(time_ns, &mut fx),
            ToVerifier::Bye => self.bye(out),
        }
        self.keep_within_share(&mut fx);
        out.requests.extend(fx.reads.into_iter().map(ToAgent::Read));
        out.notices.append(&mut fx.notices);
        self.end_when_nothing_is_owed(out);
    }

    fn with(&mut self, fs: FsSlot, work: impl FnOnce(&mut FileSystem, &mut Gate)) {
        if let Some(filesystem) = self.filesystems.get_mut(fs.0 as usize) {
            work(filesystem, &mut self.gate);
        }
    }

    /// Where nothing is mounted, btrfs may be unloaded, and another function lie at an address.
    fn forget_symbols(&mut self) {
        let is_mounted = |fs: &FileSystem| fs.state() != FsState::Unmounted;
        if self.unresolved.is_empty() && !self.filesystems.iter().any(is_mounted) {
            self.symbols.clear();
        }
    }

    fn hello(&mut self, hello: Hello, fx: &mut Effects) {
        let VerifierConfig { limits, cores, audit, .. } = self.config;
        let mode = hello.mode;
        let limits = limits.shared_by(hello.devices.len());
        let slots = (0_u32..).map(FsSlot).zip(&hello.devices);
        let new = |(slot, device): (FsSlot, &String)| {
            FileSystem::new(slot, device.clone(), mode, NewLedger { limits, cores }, audit)
        };
        self.filesystems = slots.map(new).collect();
        fx.notices.push(Notice::Started(hello));
    }

    fn event(&mut self, mut event: Event, fx: &mut Effects) {
        if self.stopping {
            return;
        }
        event.stack = self.stacks.intern(event.stack);
        let fs = event.fs;
        if let Some(filesystem) = self.filesystems.get_mut(fs.0 as usize)
            && let Err(disorder) = filesystem.event(event, &mut self.gate)
        {
            self.out_of_order(fs, disorder, fx);
        }
    }

    fn committed(&mut self, fs: FsSlot, transid: u64, fx: &mut Effects) {
        if let Some(filesystem) = self.filesystems.get_mut(fs.0 as usize)
            && let Err(disorder) = filesystem.committed(transid, &mut self.gate, fx)
        {
            self.out_of_order(fs, disorder, fx);
        }
    }

    /// What is told contradicts itself: something between was lost, or worse.
    fn out_of_order(&mut self, fs: FsSlot, disorder: Disorder, fx: &mut Effects) {
        self.with(fs, |filesystem, _| filesystem.doubt(disorder, fx));
        self.loss(Loss { fs: Some(fs), source: LossSource::OutOfOrder, count: 1 }, fx);
    }

    /// A failed call of a watched file system made an event before it failed. If that is not
    /// known any more, the ledger has something in it that never was.
    fn retraction(&mut self, tid: u32, fx: &mut Effects) {
        match self.gate.retract(tid) {
            Some(void) => self.with(void.fs, |fs, _| fs.retracted(&void)),
            None => {
                self.loss(Loss { fs: None, source: LossSource::Unreadable, count: 1 }, fx);
            }
        }
    }

    fn loss(&mut self, loss: Loss, fx: &mut Effects) {
        *self.losses.entry((loss.fs, loss.source)).or_insert(0) += loss.count;
        let slots = (0_u32..).map(FsSlot).zip(&mut self.filesystems);
        for (slot, filesystem) in slots {
            if loss.fs.is_none_or(|fs| fs == slot) {
                self.gate.withdraw(slot);
                filesystem.lost(loss, fx);
            }
        }
    }

    fn drained(&mut self, fx: &mut Effects, out: &mut Outbox) {
        for filesystem in &mut self.filesystems {
            filesystem.drained(&mut self.gate, fx);
        }
        let ready = self.gate.drained();
        self.publish(ready, out);
    }

    fn tick(&mut self, time_ns: u64, fx: &mut Effects) {
        let slots = (0_u32..).map(FsSlot).zip(&mut self.filesystems);
        for (slot, filesystem) in slots {
            if !self.told_waiting && filesystem.state() == FsState::Unmounted {
                fx.notices.push(Notice::WaitingForMount { fs: slot });
            }
            filesystem.tick(time_ns, &mut self.gate, fx);
        }
        self.told_waiting = true;
    }

    fn bye(&mut self, out: &mut Outbox) {
        self.ended = Ended::Bye;
        let ready = self.gate.open();
        self.publish(ready, out);
    }

    /// The agent has gone without a word. As after [`ToVerifier::Bye`], but what was lost
    /// before it went is not known: a finding that would need to know is withdrawn.
    pub fn cut_off(&mut self, out: &mut Outbox) {
        self.ended = Ended::Bye;
        let held = self.gate.held();
        let ready = self.gate.cut_off();
        let withdrawn = held - ready.len();
        if withdrawn > 0 {
            tracing::warn!(
                "{withdrawn} suspicions of the last moment are not told: what was lost before \
                 them is not known"
            );
        }
        self.publish(ready, out);
        self.end_when_nothing_is_owed(out);
    }

    fn keep_within_share(&mut self, fx: &mut Effects) {
        let Some(share) = self.config.share else { return };
        let findings = self.gate.held() + self.unresolved.len();
        let too_many = findings > share.waiting_max;
        if too_many {
            self.unresolved.clear();
            self.gate.clear();
        }
        for filesystem in &mut self.filesystems {
            if too_many {
                filesystem.over_share(&format!("{findings} findings that wait"), fx);
            }
            filesystem.keep_within(share, fx);
        }
    }

    /// Findings past the gate wait only for the texts of their stacks.
    fn publish(&mut self, findings: Vec<Finding>, out: &mut Outbox) {
        let mut missing: Vec<u64> = findings
            .iter()
            .flat_map(Finding::addresses)
            .filter(|address| !self.symbols.contains_key(address))
            .collect();
        missing.sort_unstable();
        missing.dedup();
        if !missing.is_empty() {
            out.requests.push(ToAgent::Symbolise(missing));
        }
        self.unresolved.extend(findings);
        self.publish_resolved(out);
    }

    fn resolved(&mut self, symbols: Vec<(u64, Arc<str>)>, out: &mut Outbox) {
        self.symbols.extend(symbols);
        self.publish_resolved(out);
    }

    /// In order: a finding never overtakes an earlier one.
    fn publish_resolved(&mut self, out: &mut Outbox) {
        while let Some(finding) = self.unresolved.front() {
            let addresses = finding.addresses();
            if !addresses.iter().all(|address| self.symbols.contains_key(address)) {
                return;
            }
            if let Some(finding) = self.unresolved.pop_front() {
                self.tell(finding, &addresses, out);
            }
        }
    }

    fn tell(&mut self, mut finding: Finding, addresses: &[u64], out: &mut Outbox) {
        if self.stopping {
            return;
        }
        let text = |address: &u64| Some((*address, self.symbols.get(address)?.clone()));
        finding.symbols.0 = addresses.iter().filter_map(text).collect();
        *self.findings.entry(finding.kind).or_insert(0) += 1;
        if !self.storm.lets_pass(&mut finding) {
            return;
        }
        out.notices.push(Notice::Finding(Box::new(finding)));
        if self.config.stop_on_violation {
            self.stopping = true;
            out.requests.push(ToAgent::Stop);
        }
    }

    /// What is known of one extent, for whoever asks; `None` where nothing is.
    pub fn extent(&self, fs: FsSlot, bytenr: u64) -> Option<ExtentDump> {
        self.filesystems.get(fs.0 as usize)?.extent(bytenr)
    }

    /// All the texts of kernel addresses that were told.
    pub fn symbols(&self) -> Symbols {
        Symbols(self.symbols.iter().map(|(&address, text)| (address, text.clone())).collect())
    }

    fn dump(&self) -> String {
        let mut text = String::new();
        for filesystem in &self.filesystems {
            filesystem.dump(&mut text);
        }
        text.push_str("end\n");
        text
    }

    fn end_when_nothing_is_owed(&mut self, out: &mut Outbox) {
        if self.ended == Ended::Bye && (self.unresolved.is_empty() || self.stopping) {
            self.ended = Ended::Summed;
            out.notices.push(Notice::Summary(self.summary()));
        }
    }

    fn losses(&self) -> Vec<Loss> {
        let loss = |(&(fs, source), &count)| Loss { fs, source, count };
        self.losses.iter().map(loss).collect()
    }

    fn summary(&mut self) -> Summary {
        Summary {
            coverage: self.filesystems.iter_mut().map(FileSystem::coverage).collect(),
            findings: self.findings.clone(),
            withheld: self.storm.withheld(),
            losses: self.losses(),
        }
    }
}
