//! Measures the ledger: `cargo xtask bench ledger`, or
//! `cargo bench -p refverify-user --bench ledger -- [NAME...] [--extents N] [--events N]`.
//!
//! Without a name everything is measured: at 10 million extents beside the plain ledger and
//! the kernel's algorithm, and alone at 50 and 100 million. Each measurement runs in a process of
//! its own, so that the resident memory it reports is its own and no allocator's leftovers.

#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "numbers that are shown to three digits"
)]

mod kernel;
mod measure;
mod workload;

use std::{
    env,
    process::{Command, ExitCode},
};

use measure::{
    bulk, churn, cores, kernel, kernel_at_rest, latency, packed, plain, plain_at_rest, rest,
};
use workload::{Mix, Places};

const MILLION: usize = 1_000_000;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let number = |name: &str| {
        let at = args.iter().position(|arg| arg == name)?;
        args.get(at + 1)?.parse().ok()
    };
    let events = number("--events").unwrap_or(5 * MILLION);
    let extents: Option<usize> = number("--extents");
    let is_chosen = |name: &str| args.iter().any(|arg| arg == name);
    let all = measurements();
    let any = all.iter().any(|measurement| is_chosen(measurement.name));
    let chosen: Vec<_> =
        all.iter().filter(|measurement| !any || is_chosen(measurement.name)).collect();
    if let ([one], Some(extents)) = (&chosen[..], extents) {
        (one.measure)(extents, events);
        return ExitCode::SUCCESS;
    }
    for measurement in chosen {
        let sizes = extents.map_or(measurement.sizes.to_vec(), |extents| vec![extents]);
        for extents in sizes {
            if !run(measurement.name, extents, events) {
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

/// One measurement in a process of its own; returns whether it succeeded.
fn run(name: &str, extents: usize, events: usize) -> bool {
    let (extents, events) = (extents.to_string(), events.to_string());
    let Ok(this) = env::current_exe() else { return false };
    let status =
        Command::new(this).args([name, "--extents", &extents, "--events", &events]).status();
    status.is_ok_and(|status| status.success())
}

struct Measurement {
    name: &'static str,
    /// Extents, where none are chosen.
    sizes: &'static [usize],
    /// By extents and events.
    measure: fn(usize, usize),
}

fn measurements() -> Vec<Measurement> {
    const BESIDE: &[usize] = &[10 * MILLION];
    const ALL: &[usize] = &[10 * MILLION, 50 * MILLION, 100 * MILLION];
    let new = |name, sizes, measure| Measurement { name, sizes, measure };
    vec![
        new("rest-single", ALL, |n, _| rest(Mix::Single, n)),
        new("rest-aged", BESIDE, |n, _| rest(Mix::Aged, n)),
        new("rest-snapshots", ALL, |n, _| rest(Mix::Snapshots, n)),
        new("rest-metadata", ALL, |n, _| rest(Mix::Metadata, n)),
        new("rest-plain", BESIDE, |n, _| plain_at_rest(n)),
        new("rest-kernel", BESIDE, |n, _| kernel_at_rest(n)),
        new("bulk", ALL, |n, _| bulk(n)),
        new("random", ALL, |n, events| packed(Places::Random, n, events)),
        new("random-plain", BESIDE, |n, events| plain(Places::Random, n, events)),
        new("random-kernel", BESIDE, |n, events| kernel(Places::Random, n, events)),
        new("local", ALL, |n, events| packed(Places::Local, n, events)),
        new("local-plain", BESIDE, |n, events| plain(Places::Local, n, events)),
        new("local-kernel", BESIDE, |n, events| kernel(Places::Local, n, events)),
        new("cores", BESIDE, cores),
        new("latency", BESIDE, latency),
        new("churn", BESIDE, |n, events| churn(n, 10 * events)),
    ]
}
