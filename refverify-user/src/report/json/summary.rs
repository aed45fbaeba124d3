//! The summary as JSON.

use serde::Serialize;
use uuid::Uuid;

use super::{blind_source, loss_source};
use crate::{
    feed::Loss,
    report::{journal::Delivery, watched::Watched},
    verify::{BlindSpan, Coverage, Span, Summary},
};

#[derive(Serialize)]
pub(super) struct SummaryBody {
    file_systems: Vec<CoverageBody>,
    losses: Vec<LossBody>,
    findings: Vec<CountBody>,
    journal: Option<DeliveryBody>,
}

#[derive(Serialize)]
struct CoverageBody {
    /// As the user gave it, as in all other lines.
    device: String,
    /// The one that is mounted and read.
    block_device: String,
    fsid: Option<String>,
    state: &'static str,
    verified: Vec<SpanBody>,
    blind: Vec<BlindSpanBody>,
    undone: Vec<SpanBody>,
    events_seen: u64,
    events_applied: u64,
    events_on_disk: u64,
    events_retracted: u64,
    mounts_unverified: u64,
    audits: u64,
    extents: u64,
    histories_given_up: Option<u64>,
    freed_given_up: Option<u64>,
}

#[derive(Serialize)]
pub(super) struct SpanBody {
    first: u64,
    last: u64,
}

#[derive(Serialize)]
struct BlindSpanBody {
    #[serde(flatten)]
    span: SpanBody,
    /// As in the line that told of it.
    source: &'static str,
}

#[derive(Serialize)]
struct LossBody {
    device: Option<String>,
    source: &'static str,
    events_lost: u64,
}

#[derive(Serialize)]
struct CountBody {
    kind: &'static str,
    count: u64,
}

#[derive(Serialize)]
struct DeliveryBody {
    sent: u64,
    failed: u64,
}

impl SummaryBody {
    pub(super) fn new(summary: &Summary, watched: &Watched, delivery: Option<Delivery>) -> Self {
        let loss = |loss: &Loss| LossBody {
            device: loss.fs.map(|slot| watched.name(slot).device),
            source: loss_source(loss),
            events_lost: loss.count,
        };
        let findings = summary.findings.iter();
        Self {
            file_systems: summary
                .coverage
                .iter()
                .map(|fs| CoverageBody::new(fs, watched))
                .collect(),
            losses: summary.losses.iter().map(loss).collect(),
            findings: findings
                .map(|(kind, &count)| CountBody { kind: kind.name(), count })
                .collect(),
            journal: delivery.map(|Delivery { sent, failed }| DeliveryBody { sent, failed }),
        }
    }
}

impl CoverageBody {
    fn new(fs: &Coverage, watched: &Watched) -> Self {
        Self {
            device: watched.name(fs.fs).device,
            block_device: fs.device.clone(),
            fsid: fs.fsid.as_ref().map(Uuid::to_string),
            state: fs.state.name(),
            verified: spans(&fs.verified),
            blind: fs.blind.iter().map(BlindSpanBody::from).collect(),
            undone: spans(&fs.undone),
            events_seen: fs.events_seen,
            events_applied: fs.events_applied,
            events_on_disk: fs.events_on_disk,
            events_retracted: fs.events_retracted,
            mounts_unverified: fs.mounts_unverified,
            audits: fs.audits,
            extents: fs.extents,
            histories_given_up: fs.histories_given_up,
            freed_given_up: fs.freed_given_up,
        }
    }
}

fn spans(spans: &[Span]) -> Vec<SpanBody> {
    spans.iter().map(SpanBody::from).collect()
}

impl From<&Span> for SpanBody {
    fn from(&Span { first, last }: &Span) -> Self {
        Self { first, last }
    }
}

impl From<&BlindSpan> for BlindSpanBody {
    fn from(BlindSpan { span, cause }: &BlindSpan) -> Self {
        Self { span: span.into(), source: blind_source(cause) }
    }
}
