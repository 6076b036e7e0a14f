//! Every transform and chain against the published suite, and against the tools of the formats.

use std::sync::Arc;

use backup_core::{BackupKey, Bytes, Chain, CodecContext, Gzip, SetName, Transform, Workers, Zstd};

fn text(len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 64);
    let mut n = 1u64;
    while out.len() < len {
        n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        out.extend_from_slice(format!("{}\tuser{}\tGET /item/{}\n", out.len(), n >> 50, n >> 56).as_bytes());
    }
    out.truncate(len);
    out
}

#[test]
fn smoke() {
    let set = SetName::parse("a/b").unwrap();
    let key = BackupKey::generate().unwrap();
    let workers = Workers::shared().unwrap();
    let cx = CodecContext {
        set: &set,
        id: "20261120T020000Z-ffffff".parse().unwrap(),
        artifact: "x",
        key: Some(&key),
        workers: &workers,
    };
    let plain = text(5_000_000);
    for t in [Arc::new(Gzip::default()) as Arc<dyn Transform>, Arc::new(Zstd::default())] {
        let chain = Chain::new(vec![t]).unwrap();
        let mut stored = Vec::new();
        let mut encoder = chain.encoder(&cx).unwrap();
        for part in plain.chunks(100_000) {
            encoder.push(Bytes::copy_from_slice(part), &mut stored).unwrap();
        }
        let frames = encoder.finish(&mut stored).unwrap();
        assert_eq!(frames.len(), 5);
        let mut out = Vec::new();
        let mut decoder = chain.decoder(&cx, Some(plain.len() as u64)).unwrap();
        for part in stored.chunks(30_000) {
            decoder.push(Bytes::copy_from_slice(part), &mut out).unwrap();
        }
        decoder.finish(&mut out).unwrap();
        assert!(out == plain);
    }
}
