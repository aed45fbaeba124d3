//! Any bytes as a recording: they end in messages and an end, or in an error, in bounded
//! memory. Checksums are set right first: otherwise nothing would get past them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use refverify_user::feed::recording::{Player, Recorder};

fuzz_target!(|data: &[u8]| {
    play(data);
    let header = Recorder::new(Vec::new(), None, None).expect("memory is never full");
    let mut file = header.finish().expect("memory is never full");
    // In place of the mark of the end, a block whose head and content are the fuzzer's.
    file.truncate(file.len() - HEAD_LEN);
    if let Some((head, packed)) = data.split_first_chunk::<HEAD_LEN>() {
        let mut head = *head;
        head[..4].copy_from_slice(b"RVB\n");
        let len = u32::try_from(packed.len()).unwrap_or(u32::MAX);
        head[8..12].copy_from_slice(&len.to_le_bytes());
        head[16..20].copy_from_slice(&crc32c::crc32c(packed).to_le_bytes());
        let checksum = crc32c::crc32c(&head[8..]);
        head[4..8].copy_from_slice(&checksum.to_le_bytes());
        file.extend_from_slice(&head);
        file.extend_from_slice(packed);
        play(&file);
    }
});

/// See docs/recording.md.
const HEAD_LEN: usize = 80;

fn play(file: &[u8]) {
    let Ok(mut player) = Player::new(file) else { return };
    while let Ok(Some(_)) = player.next_message() {}
    assert!(player.end().is_some());
}
