//! `cargo fuzz run redis_rdb backup-redis/tests/corpus/rdb`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    backup_redis::fuzz::rdb(bytes);
});
