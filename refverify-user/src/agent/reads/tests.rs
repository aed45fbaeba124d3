use std::{
    io::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Member, Queue, Reads, Ring, Threads, Wanted};

const PAGE: usize = 4096;

/// A file of pages, each of which begins with its number, and then the file's end.
fn numbered(pages: u64) -> Arc<Member> {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    for page in 0..pages {
        let mut bytes = [0; PAGE];
        bytes[..8].copy_from_slice(&page.to_le_bytes());
        file.write_all(&bytes).expect("written");
    }
    Arc::new(Member::open(file.path()).expect("an image"))
}

/// Both ways to read; only one where `io_uring` is forbidden.
fn queues() -> Vec<Queue<u64>> {
    let mut queues = vec![Queue::Threads(Threads::start().expect("threads"))];
    match Ring::new() {
        Ok(ring) => queues.push(Queue::Ring(Box::new(ring))),
        Err(error) => eprintln!("SKIPPED: io_uring cannot be used: {error}"),
    }
    queues
}

fn read_all(queue: Queue<u64>, wanted: Vec<Wanted<u64>>) -> Vec<(u64, Option<Vec<u8>>)> {
    let mut reads = Reads::with_queue(queue, None);
    for wanted in wanted {
        reads.want(wanted);
    }
    let mut answers = Vec::new();
    while !reads.is_idle() {
        answers.extend(reads.wait().into_iter().map(|(tag, read)| (tag, read.ok().map(Vec::from))));
    }
    answers.sort_unstable();
    answers
}

fn wanted(file: &Arc<Member>, page: u64, pages: u32) -> Wanted<u64> {
    let len_bytes = pages * 4096;
    Wanted { member: Arc::clone(file), offset: page * 4096, len_bytes, tag: page }
}

fn first_number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"))
}

#[test]
fn neighbours_that_were_read_together_are_answered_each_with_its_own_bytes() {
    let file = numbered(3000);
    for queue in queues() {
        // Backwards, with gaps, more than are read at a time, and more than fit into one read.
        let pages = (0..3000).rev().filter(|page| page % 700 < 600);
        let asked: Vec<u64> = pages.collect();
        let answers = read_all(queue, asked.iter().map(|page| wanted(&file, *page, 1)).collect());
        assert_eq!(answers.len(), asked.len());
        for (page, bytes) in answers {
            let bytes = bytes.expect("readable");
            assert_eq!((bytes.len(), first_number(&bytes)), (PAGE, page));
        }
    }
}

#[test]
fn a_part_that_cannot_be_read_does_not_spoil_its_neighbours() {
    let file = numbered(8);
    for queue in queues() {
        let answers = read_all(queue, (4..12).map(|page| wanted(&file, page, 1)).collect());
        let read: Vec<u64> =
            answers.iter().filter(|(_, bytes)| bytes.is_some()).map(|(page, _)| *page).collect();
        assert_eq!((answers.len(), &read[..]), (8, &[4, 5, 6, 7][..]));
    }
}

#[test]
fn reads_that_nobody_waits_for_end_before_their_memory_goes() {
    let file = numbered(1000);
    for queue in queues() {
        let mut reads = Reads::with_queue(queue, None);
        (0..500).for_each(|page| reads.want(wanted(&file, page * 2, 1)));
        assert!(!reads.wait().is_empty());
    }
}

#[test]
fn different_lengths_do_not_get_each_others_memory() {
    let file = numbered(1000);
    for queue in queues() {
        let mut reads = Reads::with_queue(queue, None);
        for round in 0..20_u64 {
            let pages = u32::try_from(round % 5 + 1).expect("small");
            reads.want(wanted(&file, round * 40, pages));
            while !reads.is_idle() {
                for (page, read) in reads.wait() {
                    let bytes = read.expect("readable");
                    assert_eq!((bytes.len(), first_number(&bytes)), (pages as usize * PAGE, page));
                    assert_eq!(bytes.as_ptr().align_offset(PAGE), 0);
                }
            }
        }
    }
}

#[test]
fn what_is_limited_takes_its_time_however_fast_the_device_is() {
    let file = numbered(400);
    for queue in queues() {
        let mut reads = Reads::with_queue(queue, Some(400 * 4096));
        let start = Instant::now();
        // No two of them are neighbours; the first may begin at once.
        (0..100).for_each(|page| reads.want(wanted(&file, page * 3, 1)));
        while !reads.is_idle() {
            reads.wait();
        }
        // Never less, however busy the machine is.
        assert!(start.elapsed() >= Duration::from_secs_f64(0.247), "{:?}", start.elapsed());
    }
}
