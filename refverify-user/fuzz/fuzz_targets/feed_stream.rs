//! Any bytes as a stream: they end in messages or in an error, and a message that was
//! understood is understood again when it is written.

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use refverify_user::feed::{
    ToAgent, ToVerifier,
    codec::{Carrier, Decoder, Direction, Encoder, Header, Message},
};

fuzz_target!(|data: &[u8]| {
    for direction in [Direction::ToVerifier, Direction::ToAgent] {
        let _ = Header::decode(Carrier::Stream, direction, &mut BytesMut::from(data));
    }
    understood_again::<ToVerifier>(data);
    understood_again::<ToAgent>(data);
});

fn understood_again<M: Message + PartialEq + std::fmt::Debug>(data: &[u8]) {
    let mut buffer = BytesMut::from(data);
    let mut decoder = Decoder::<M>::new(0);
    let mut encoder = Encoder::<M>::default();
    let mut again = Decoder::<M>::new(0);
    while let Ok(Some(message)) = decoder.decode(&mut buffer) {
        let mut written = BytesMut::new();
        encoder.encode(&message, &mut written).expect("what was read is within the limits");
        assert_eq!(again.decode(&mut written), Ok(Some(message)));
        assert!(written.is_empty());
    }
}
