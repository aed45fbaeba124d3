//! The run: carries messages between agent and verifier, and notices to the reports, until
//! the summary is out.

use std::{
    collections::{BTreeSet, VecDeque},
    io::Write,
    sync::Arc,
};

use tokio::sync::mpsc::{Receiver, Sender};

use crate::{
    feed::{ToAgent, ToVerifier},
    report::{Outcome, Reporter},
    verify::{Notice, Outbox, Verifier},
};

/// The verifier's ends of the channels to and from the agent.
#[derive(Debug)]
pub struct Link {
    /// What the agent tells.
    pub from_agent: Receiver<ToVerifier>,
    /// What the agent is asked. It is told only while it has room: neither end ever waits for
    /// the other while the other waits for it.
    pub to_agent: Sender<ToAgent>,
}

/// How a run is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The agent lets the hooks go and tells what happened up to now; all of that is judged.
    WhenAllIsTold,
    /// At once, without the agent.
    Now,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The agent said bye: everything that it recorded has been judged.
    Whole,
    /// The agent went without a word, or was not waited for.
    CutShort,
}

impl Ending {
    /// Whether the agent said all it had to say.
    pub fn is_whole(self) -> bool {
        self == Self::Whole
    }
}

/// Runs until the summary is among the `notices`, or nobody takes them any more.
pub async fn run(
    verifier: &mut Verifier,
    mut link: Link,
    mut stops: Receiver<Stop>,
    notices: Sender<Notice>,
) -> Ending {
    let mut run = Run::new(verifier);
    while !run.ended {
        tokio::select! {
            message = link.from_agent.recv() => match message {
                Some(message) => run.handle(message),
                None => run.end_without_agent(),
            },
            room = link.to_agent.reserve(), if !run.requests.is_empty() => match room {
                Ok(room) => if let Some(request) = run.requests.pop_front() {
                    room.send(request);
                },
                // It has gone: that its messages end says so in their order.
                Err(_) => run.requests.clear(),
            },
            Some(stop) = stops.recv() => match stop {
                Stop::WhenAllIsTold => run.ask(ToAgent::Stop),
                Stop::Now => run.end_without_agent(),
            },
        }
        for notice in std::mem::take(&mut run.out.notices) {
            // A reader that stands still must not make us deaf.
            let room = loop {
                tokio::select! {
                    room = notices.reserve() => break room,
                    Some(stop) = stops.recv() => match stop {
                        Stop::WhenAllIsTold => run.ask(ToAgent::Stop),
                        Stop::Now => return Ending::CutShort,
                    },
                }
            };
            match room {
                Ok(room) => room.send(notice),
                Err(_) => return Ending::CutShort,
            }
        }
    }
    run.ending
}

/// Reports every notice until there are no more. When nobody can read reports any more,
/// `stop` is told. Blocks: for a thread of its own, so that a slow reader does not hold up the
/// verifier until the channel is full.
pub fn report_all<W: Write>(
    mut notices: Receiver<Notice>,
    mut reporter: Reporter<W>,
    stop: &Sender<Stop>,
) -> Outcome {
    let mut told = false;
    while let Some(notice) = notices.blocking_recv() {
        reporter.report(notice);
        if !told && !reporter.has_readers() {
            told = true;
            // Full means that a stop waits there already.
            let _ = stop.try_send(Stop::WhenAllIsTold);
        }
    }
    reporter.finish()
}

struct Run<'a> {
    verifier: &'a mut Verifier,
    out: Outbox,
    /// For the agent, as soon as it has room.
    requests: VecDeque<ToAgent>,
    /// Addresses whose text the verifier still waits for.
    unnamed: BTreeSet<u64>,
    stopping: bool,
    said_bye: bool,
    ended: bool,
    ending: Ending,
}

impl<'a> Run<'a> {
    fn new(verifier: &'a mut Verifier) -> Self {
        Self {
            verifier,
            out: Outbox::default(),
            requests: VecDeque::new(),
            unnamed: BTreeSet::new(),
            stopping: false,
            said_bye: false,
            ended: false,
            ending: Ending::Whole,
        }
    }

    /// Has the verifier handle a message.
    fn handle(&mut self, message: ToVerifier) {
        match &message {
            ToVerifier::Bye => self.said_bye = true,
            ToVerifier::Symbols(named) => {
                for (address, _) in named {
                    self.unnamed.remove(address);
                }
            }
            _ => {}
        }
        self.verifier.handle(message, &mut self.out);
        self.heed();
    }

    /// Heeds what the verifier wants.
    fn heed(&mut self) {
        for request in std::mem::take(&mut self.out.requests) {
            self.ask(request);
        }
        self.ended |= self.out.notices.iter().any(|n| matches!(n, Notice::Summary(_)));
    }

    fn ask(&mut self, request: ToAgent) {
        match &request {
            ToAgent::Stop if self.stopping => return,
            ToAgent::Stop => self.stopping = true,
            ToAgent::Symbolise(addresses) => self.unnamed.extend(addresses),
            ToAgent::Read(_) | ToAgent::Dump => {}
        }
        self.requests.push_back(request);
    }

    /// Brings the verifier to its summary when the agent says nothing more: findings that only
    /// wait for the texts of their stacks are told without them.
    fn end_without_agent(&mut self) {
        if !self.said_bye {
            tracing::error!("the agent's messages ended before everything it recorded was told");
            self.ending = Ending::CutShort;
            self.verifier.cut_off(&mut self.out);
            self.heed();
        }
        while !self.ended && !self.unnamed.is_empty() {
            let unknown: Arc<str> = Arc::from("?");
            let unnamed = std::mem::take(&mut self.unnamed);
            let named = unnamed.into_iter().map(|address| (address, Arc::clone(&unknown)));
            self.handle(ToVerifier::Symbols(named.collect()));
        }
        self.requests.clear();
        self.ended = true;
    }
}
