//! Bytes as the ledger might hold them: none may make it panic, and what is read must come back
//! when it is written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use refverify_user::verify::ledger;

fuzz_target!(|bytes: &[u8]| ledger::read_anything(bytes));
