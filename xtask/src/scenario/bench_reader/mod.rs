//! How fast extent trees are read: by `refverify-monitor check`, by btrfs-progs, and what the
//! device can do at all, on one image, in one run.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Outcome, Place, bench_path::median};
use crate::{command::text, machine};

mod image;
mod measured;
mod synthetic;

use image::Region;
use measured::{Measured, measure};

/// Rounds of the readers of extent trees; the medians are shown.
const ROUNDS: usize = 5;

/// How long fio reads, in seconds.
const FIO_SECONDS: u32 = 10;

/// Extents of the images that memory is compared on.
const SIZES: [u64; 2] = [2_000_000, 8_000_000];

/// What is known of the image.
struct Tree {
    extents: f64,
    len_bytes: f64,
}

/// A row of the table.
struct Row {
    name: &'static str,
    runs: Vec<Measured>,
}

pub(super) fn run(place: &Place) -> Result<Outcome> {
    let image = image::cached()?;
    let image = text(&image)?;
    let tree = tree(place, image)?;
    ensure!(tree.extents >= 2e6, "the image has only {} extents", tree.extents);
    let mut check = Row { name: "refverify-monitor check", runs: Vec::new() };
    let mut dump = Row { name: "btrfs dump-tree -t extent", runs: Vec::new() };
    let mut fio = Vec::new();
    let regions = image::metadata(Path::new(image))?;
    let region = regions.iter().max_by_key(|region| region.len_bytes).context("no metadata")?;
    for round in 1..=ROUNDS {
        println!("round {round} of {ROUNDS}");
        check.runs.push(measured_cold(image, Command::new(&place.monitor).args(["check", image]))?);
        let args = ["inspect-internal", "dump-tree", "-t", "extent", image];
        dump.runs.push(measured_cold(image, Command::new("btrfs").args(args))?);
        fio.push(random_reads(image, region)?);
    }
    println!("btrfs check, once");
    let args = ["check", "--readonly", image];
    let whole = Row {
        name: "btrfs check --readonly",
        runs: vec![measured_cold(image, Command::new("btrfs").args(args))?],
    };
    print(&tree, &[check, dump, whole], median(&fio));
    memory(place)?;
    Ok(Outcome::Passed)
}

/// Shows how memory grows with the extent tree.
fn memory(place: &Place) -> Result<()> {
    println!("\nmemory of `check`, on images written by this program:");
    for extents in SIZES {
        let image = image::written(extents)?;
        let run =
            measured_cold(text(&image)?, Command::new(&place.monitor).arg("check").arg(&image))?;
        println!(
            "{extents:10} extents: {:5.2} s, {:5.2} s of CPU, peak {:.1} MiB",
            run.seconds,
            run.cpu_seconds,
            run.peak_bytes / f64::from(1 << 20)
        );
    }
    Ok(())
}

/// How large the extent tree is, as the monitor counts it.
fn tree(place: &Place, image: &str) -> Result<Tree> {
    let mut command = Command::new(&place.monitor);
    let told = crate::command::output(command.args(["check", "--json", image]), measured::LIMIT)?;
    let end: Value = serde_json::from_str(told.lines().last().context("check told nothing")?)?;
    let number = |value: &Value| value.as_f64().context("check told no number");
    let sum_of = |list: &Value| -> Result<f64> {
        list.as_array().context("no list")?.iter().map(|one| number(&one["extents"])).sum()
    };
    let roots = end["roots"].as_array().context("no roots")?;
    let extent_tree = roots.iter().find(|root| root["root"] == 2).context("no root 2")?;
    Ok(Tree {
        extents: number(&end["data"]["extents"])? + sum_of(&end["tree_blocks"])?,
        len_bytes: number(&extent_tree["count"])? * number(&end["nodesize"])?,
    })
}

/// Without anything of the image in the page cache. What a device would not have to be asked for
/// is there: where the image lies on its own file system, and the program.
fn measured_cold(image: &str, command: &mut Command) -> Result<Measured> {
    fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop the caches")?;
    image::read_map(Path::new(image))?;
    let program = Path::new(command.get_program());
    let program = machine::program(text(program)?);
    fs::read(program.context("a program that is measured is not there")?)?;
    measure(command)
}

/// Bytes per second that the device gives at best: random blocks of the size of a tree block,
/// 32 at a time, past the cache.
fn random_reads(image: &str, region: &Region) -> Result<f64> {
    let mut fio = Command::new("fio");
    fio.args(["--name=ceiling", "--readonly", "--rw=randread", "--bs=16k", "--iodepth=32"])
        .args(["--direct=1", "--ioengine=io_uring", "--time_based", "--output-format=json"])
        .arg(format!("--runtime={FIO_SECONDS}"))
        .arg(format!("--filename={image}"))
        .arg(format!("--offset={}", region.offset))
        .arg(format!("--size={}", region.len_bytes));
    let told: Value = serde_json::from_str(&crate::command::output(&mut fio, measured::LIMIT)?)?;
    told["jobs"][0]["read"]["bw_bytes"].as_f64().context("fio told no bandwidth")
}

fn print(tree: &Tree, rows: &[Row], ceiling: f64) {
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    println!(
        "\n{:.0} extents in an extent tree of {:.0} MiB, on Linux {}; medians of {ROUNDS} rounds \
         (btrfs check: one), caches dropped before each:\n",
        tree.extents,
        mib(tree.len_bytes),
        machine::kernel_release()
    );
    println!(
        "{:28} {:>8} {:>12} {:>8} {:>9} {:>10} {:>12}",
        "", "time [s]", "extents/s", "MiB/s", "CPU [s]", "peak [MiB]", "of fio's"
    );
    for row in rows {
        let of =
            |part: fn(&Measured) -> f64| median(&row.runs.iter().map(part).collect::<Vec<_>>());
        let seconds = of(|run| run.seconds);
        println!(
            "{:28} {seconds:8.2} {:12.0} {:8.0} {:9.2} {:10.1} {:11.0}%",
            row.name,
            tree.extents / seconds,
            mib(tree.len_bytes / seconds),
            of(|run| run.cpu_seconds),
            mib(of(|run| run.peak_bytes)),
            tree.len_bytes / seconds / ceiling * 100.0
        );
    }
    println!(
        "{:28} {:>8} {:>12} {:8.0} {:>9} {:>10} {:>12}",
        "fio, random 16 KiB, depth 32",
        "",
        "",
        mib(ceiling),
        "",
        "",
        "100%"
    );
    println!("\nMiB/s: of the extent tree alone; btrfs check reads every tree.");
}
