//! Any messages of an agent, in any order, to a verifier: they end in notices or in a refusal,
//! never in a panic, whatever the guest makes up.

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use refverify_user::{
    feed::{FsSlot, Hello, HookMode, Mount, ToVerifier, codec::Decoder},
    verify::{Outbox, Share, Verifier, VerifierConfig},
};

/// Little, so that it is soon reached.
const SHARE: Share = Share { entries_max: 100, waiting_max: 10 };

fuzz_target!(|data: &[u8]| {
    let share = Some(SHARE);
    let mut verifier = Verifier::new(VerifierConfig { share, ..VerifierConfig::default() });
    for message in beginning() {
        verifier.handle(message, &mut Outbox::default());
    }
    let mut buffer = BytesMut::from(data);
    let mut decoder = Decoder::<ToVerifier>::new(0);
    while let Ok(Some(message)) = decoder.decode(&mut buffer) {
        verifier.handle(message, &mut Outbox::default());
    }
    verifier.cut_off(&mut Outbox::default());
});

/// Without these nothing else would be listened to.
fn beginning() -> [ToVerifier; 2] {
    let hello = Hello {
        kernel_release: String::new(),
        mode: HookMode::Kprobes,
        hooks: Vec::new(),
        unseen: Vec::new(),
        devices: vec![String::new()],
    };
    let mount = Mount { fs: FsSlot(0), device: String::new(), first_usable_generation: 0 };
    [ToVerifier::Hello(hello), ToVerifier::Mount(mount)]
}
