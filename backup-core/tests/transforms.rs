//! Every transform and chain against the published suite, and against the tools of the formats.

use std::process::Command;
use std::sync::Arc;

use backup_core::{
    AesGcm, Bytes, Chain, Emit, ErrorKind, Gzip, Identity, Keyring, Result, Transform, TransformSpec,
};
use backup_testkit::tools::{available, filter};
use backup_testkit::transform::{Integrity, World, chain_conforms, conforms, sample};

fn chain(layers: Vec<Arc<dyn Transform>>) -> Chain {
    Chain::new(layers).expect("an order that works")
}

fn gzip() -> Arc<dyn Transform> {
    Arc::new(Gzip::default())
}

#[cfg(feature = "zstd")]
fn zstd() -> Arc<dyn Transform> {
    Arc::new(backup_core::Zstd::default())
}

fn aes() -> Arc<dyn Transform> {
    Arc::new(AesGcm::new(Keyring::builder().key([7; 32]).build().expect("a keyring of one key")))
}

#[test]
fn gzip_conforms() {
    conforms(gzip(), Integrity::Checksummed);
}

#[test]
fn fast_gzip_conforms() {
    conforms(Arc::new(Gzip::level(1).unwrap()), Integrity::Checksummed);
}

#[cfg(feature = "zstd")]
#[test]
fn zstd_conforms() {
    conforms(zstd(), Integrity::Checksummed);
}

#[test]
fn aes_gcm_conforms() {
    conforms(aes(), Integrity::Authenticated);
}

#[test]
fn identity_conforms() {
    conforms(Arc::new(Identity), Integrity::None);
}

#[test]
fn an_empty_chain_conforms() {
    chain_conforms(&chain(vec![]), Integrity::None);
}

#[test]
fn gzip_then_encryption_conforms() {
    chain_conforms(&chain(vec![gzip(), aes()]), Integrity::Authenticated);
}

#[cfg(feature = "zstd")]
#[test]
fn zstd_then_encryption_conforms() {
    chain_conforms(&chain(vec![zstd(), aes()]), Integrity::Authenticated);
}

#[test]
fn encryption_before_compression_is_refused_at_build() {
    for bad in [vec![aes(), gzip()], vec![gzip(), Arc::new(Gzip::default())], vec![aes(), aes()]] {
        assert_eq!(Chain::new(bad).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn a_chain_names_its_extension_and_is_opened_from_its_specs() {
    let written = chain(vec![gzip(), aes()]);
    assert_eq!(written.extension(), ".gz.enc");
    assert_eq!(chain(vec![Arc::new(Identity), aes()]).extension(), ".enc");
    assert!(written.is_encrypted());

    let world = World::new();
    let stored = world.encode(&written, b"hello", &[]).bytes;
    // Another level is configured today; the compression of old backups needs no configuration at all.
    let opened = Chain::from_specs(&written.specs(), &[aes()]).unwrap();
    assert_eq!(world.decode(&opened, &stored, &[], Some(5)).unwrap(), b"hello");

    let error = Chain::from_specs(&[TransformSpec::new("rot13")], &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("rot13"));
    let error = Chain::from_specs(&written.specs(), &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongKey);
}

#[test]
fn a_small_range_of_a_large_object_reads_little_of_it() {
    let world = World::new();
    let plain = sample(1, 40 << 20);
    for chain in [chain(vec![gzip(), aes()]), chain(vec![gzip()]), chain(vec![aes()])] {
        let encoded = world.encode(&chain, &plain, &[]);
        let size = encoded.bytes.len() as u64;
        let range = 20_000_000..20_001_000;
        let located = chain.locate(range.clone(), &encoded.frames, size);
        let read = located.prefix + located.stored.end - located.stored.start;
        assert!(read * 20 < size, "{chain:?}: {read} of {size}");
        assert_eq!(world.decode_range(&chain, &encoded, range).unwrap(), plain[20_000_000..20_001_000]);
    }
}

/// Keeps what came out apart, as it came.
#[derive(Default)]
struct Pieces(Vec<Bytes>);

impl Emit for Pieces {
    fn data(&mut self, bytes: Bytes) -> Result<()> {
        self.0.push(bytes);
        Ok(())
    }

    fn boundary(&mut self, _plain_offset: u64) -> Result<()> {
        Ok(())
    }
}

#[test]
fn another_key_set_backup_or_name_is_a_wrong_key_before_any_plaintext() {
    let chain = chain(vec![aes()]);
    let (world, other) = (World::new(), World::new());
    let stored = Bytes::from(world.encode(&chain, b"secret", &[]).bytes);
    for cx in [other.context("object"), world.context("renamed")] {
        let mut out = Pieces::default();
        let mut decoder = chain.decoder(&cx, None).unwrap();
        let error = decoder.push(stored.clone(), &mut out).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WrongKey);
        assert!(out.0.is_empty());
    }
    let mut keyless = world.context("object");
    keyless.key = None;
    assert_eq!(chain.decoder(&keyless, None).unwrap_err().kind(), ErrorKind::WrongKey);
}

#[test]
fn segments_that_are_swapped_dropped_or_repeated_are_noticed() {
    const HEADER: usize = 88;
    const SEALED: usize = 65_552;
    let chain = chain(vec![aes()]);
    let world = World::new();
    let plain = sample(9, 3 * 65_536 + 5);
    let stored = world.encode(&chain, &plain, &[]).bytes;
    assert_eq!(stored.len(), HEADER + 3 * SEALED + 5 + 16);
    let (header, body) = stored.split_at(HEADER);
    let segments: Vec<&[u8]> = body.chunks(SEALED).collect();
    for order in [&[1, 0, 2, 3][..], &[0, 2, 3], &[0, 0, 1, 2, 3], &[0, 1, 2], &[0, 1, 2, 3, 3], &[3]] {
        let mut changed = header.to_vec();
        for i in order {
            changed.extend_from_slice(segments[*i]);
        }
        let error = world.decode(&chain, &changed, &[], None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{order:?}");
    }
}

#[test]
fn a_damaged_header_is_damage_and_not_a_wrong_key() {
    let chain = chain(vec![aes()]);
    let world = World::new();
    let stored = world.encode(&chain, b"secret", &[]).bytes;
    for at in 8..88 {
        let mut damaged = stored.clone();
        damaged[at] ^= 0x40;
        assert_eq!(world.decode(&chain, &damaged, &[], None).unwrap_err().kind(), ErrorKind::Corrupt, "{at}");
    }
}

#[test]
fn random_stretches_are_stored_and_text_between_them_is_compressed() {
    let world = World::new();
    // The sample is text, zeros and random bytes in turn; alone, each behaves as it should.
    let random: Vec<u8> = world.encode(&chain(vec![aes()]), &vec![0; 4 << 20], &[]).bytes;
    let stored = world.encode(&chain(vec![gzip()]), &random, &[]).bytes;
    assert!(stored.len() < random.len() + random.len() / 1000, "{} of {}", stored.len(), random.len());

    let mut mixed = random[..500_000].to_vec();
    mixed.extend(b"the same line again and again\n".repeat(30_000));
    mixed.extend_from_slice(&random[..500_000]);
    let stored = world.encode(&chain(vec![gzip()]), &mixed, &[]).bytes;
    assert!(stored.len() < 1_100_000, "{}", stored.len());

    // Random bytes that repeat within the window of deflate look random to a histogram, and compress nevertheless.
    let repeated = random[1000..3000].repeat(500);
    let stored = world.encode(&chain(vec![gzip()]), &repeated, &[]).bytes;
    assert!(stored.len() < repeated.len() / 20, "{}", stored.len());
}

#[test]
fn gunzip_reads_our_files_and_we_read_those_of_gzip() {
    if !available("gzip", "gzip", &["--version"], "gunzip_reads_our_files_and_we_read_those_of_gzip") {
        return;
    }
    let world = World::new();
    for len in [0, 1, 2_500_000] {
        let plain = sample(21, len);
        for level in [1, 6, 9] {
            let ours = chain(vec![Arc::new(Gzip::level(level).unwrap())]);
            let stored = world.encode(&ours, &plain, &[]).bytes;
            assert!(filter(Command::new("gzip").arg("-dc"), &stored) == plain, "level {level}, {len} bytes");
        }
        let ours = chain(vec![gzip()]);
        let mut theirs = filter(Command::new("gzip").args(["-c", "-6"]), &plain);
        assert!(world.decode(&ours, &theirs, &[10, 30], Some(len as u64)).unwrap() == plain);
        assert!(len == 0 || world.decode(&ours, &theirs[..theirs.len() - 1], &[], None).is_err());

        // Members of both kinds one after the other.
        let mut twice = plain.clone();
        twice.extend_from_slice(&plain);
        theirs.extend(world.encode(&ours, &plain, &[]).bytes);
        assert!(world.decode(&ours, &theirs, &[], Some(twice.len() as u64)).unwrap() == twice);
    }
}

#[cfg(feature = "zstd")]
#[test]
fn the_zstd_tool_reads_our_files_and_we_read_those_of_zstd() {
    if !available("zstd", "zstd", &["--version"], "the_zstd_tool_reads_our_files_and_we_read_those_of_zstd") {
        return;
    }
    let world = World::new();
    let ours = chain(vec![zstd()]);
    for len in [0, 1, 6_500_000] {
        let plain = sample(22, len);
        let stored = world.encode(&ours, &plain, &[]).bytes;
        assert!(filter(Command::new("zstd").args(["-dc"]), &stored) == plain, "{len} bytes");
        // From a pipe without a known size, with it, without a checksum, with a window beyond one block.
        let size = format!("--stream-size={len}");
        for options in [&["-3"][..], &["-3", &size], &["-1", "--no-check"], &["-5", "--long=27"]] {
            let theirs = filter(Command::new("zstd").arg("-qc").args(options), &plain);
            let decoded = world.decode(&ours, &theirs, &[3, 7, 5000], Some(len as u64)).unwrap();
            assert!(decoded == plain, "{options:?}, {len} bytes");
            let cut = &theirs[..theirs.len() - 1];
            assert_eq!(world.decode(&ours, cut, &[], None).unwrap_err().kind(), ErrorKind::Corrupt);
        }
    }
    let plain = sample(23, 3_000_000);
    let wide = filter(Command::new("zstd").args(["-qc", "--ultra", "--long=30"]), &plain);
    assert_eq!(world.decode(&ours, &wide, &[], None).unwrap_err().kind(), ErrorKind::LimitExceeded);
}

#[cfg(feature = "zstd")]
#[test]
fn skippable_zstd_frames_are_skipped() {
    let world = World::new();
    let ours = chain(vec![zstd()]);
    let frame = world.encode(&ours, b"payload", &[]).bytes;
    let mut skippable = vec![0x5a, 0x2a, 0x4d, 0x18, 5, 0, 0, 0];
    skippable.extend_from_slice(b"notes");
    let stored = [&skippable[..], &frame, &skippable].concat();
    let cuts: Vec<usize> = (0..stored.len()).collect();
    assert_eq!(world.decode(&ours, &stored, &cuts, Some(7)).unwrap(), b"payload");
    assert!(world.decode(&ours, &skippable, &[], None).is_err(), "no frame at all is not an empty stream");
}
