//! `cargo fuzz run redis_handshake backup-redis/tests/corpus/handshake`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    backup_redis::fuzz::handshake(bytes);
});
