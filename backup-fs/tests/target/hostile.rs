//! Archives that want something else than to be restored.

use std::path::Path;

use backup_core::{ErrorKind, Proof, RestoreTarget as _};
use backup_fs::DirectoryTarget;

use crate::support::*;

/// Restores into `dir/inner/to`, beside a file and a directory that must not change.
async fn attempt(archive: &[u8]) -> Result<(), (ErrorKind, String)> {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("inner");
    std::fs::create_dir_all(inner.join("victim")).unwrap();
    std::fs::write(dir.path().join("secret"), "before").unwrap();
    std::fs::write(inner.join("victim/file"), "before").unwrap();
    let before = snapshot(dir.path());
    let target = DirectoryTarget::new(inner.join("to"));
    let result = async {
        let restore = staged(&target, &plan(archive), archive).await?;
        restore.prove().await?;
        restore.abort().await
    }
    .await;
    assert_eq!(snapshot(dir.path()), before, "something outside was touched, or left behind");
    result.map_err(|e| (e.kind(), e.chain()))
}

fn snapshot(dir: &Path) -> Vec<u8> {
    sh(
        "find . -printf '%p %y %m %s %T@ %l\\n' | grep -v '^./inner d\\|^. d' | sort; cat secret inner/victim/file",
        dir,
    )
}

async fn refused(members: &[Vec<u8>], expected: ErrorKind) {
    let archive = members.concat();
    let (kind, text) = attempt(&archive).await.expect_err("it must be refused");
    assert_eq!(kind, expected, "{text}");
}

#[tokio::test]
async fn names_that_lead_out_are_refused() {
    for name in [&b"/etc/cron.d/x"[..], b"../secret", b"a/../../secret", b"inner/../../x", b"a/.."] {
        refused(&[member(name, b'0', b"", b"evil")], ErrorKind::InvalidInput).await;
        refused(&[member(name, b'5', b"", b"")], ErrorKind::InvalidInput).await;
        refused(&[member(name, b'2', b"x", b"")], ErrorKind::InvalidInput).await;
    }
    let pax = b"30 path=../../../../../secret\n";
    refused(&[member(b"x", b'x', b"", pax), member(b"ok", b'0', b"", b"evil")], ErrorKind::InvalidInput)
        .await;
    let nul = b"14 path=a\0b.c\n";
    refused(&[member(b"x", b'x', b"", nul), member(b"ok", b'0', b"", b"evil")], ErrorKind::Corrupt).await;
    let long = [member(b"././@LongLink", b'L', b"", b"../secret\0"), member(b"ok", b'0', b"", b"evil")];
    refused(&long, ErrorKind::InvalidInput).await;
}

#[tokio::test]
async fn nothing_is_written_below_a_symbolic_link() {
    for target in ["..", "../victim", "/tmp", "../../..", "dir"] {
        let link = member(b"link", b'2', target.as_bytes(), b"");
        let dir = member(b"dir", b'5', b"", b"");
        for below in [
            member(b"link/secret", b'0', b"", b"evil"),
            member(b"link/file", b'5', b"", b""),
            member(b"link/a/b", b'2', b"x", b""),
        ] {
            refused(&[dir.clone(), link.clone(), below], ErrorKind::InvalidInput).await;
        }
        // A directory with the link's name would be the link's target.
        refused(&[link.clone(), member(b"link", b'5', b"", b"")], ErrorKind::InvalidInput).await;
        refused(&[link.clone(), member(b"link", b'0', b"", b"evil")], ErrorKind::InvalidInput).await;
    }
    // And the other way round: a directory is not replaced by a link.
    let swap = [
        member(b"d/f", b'0', b"", b"x"),
        member(b"d", b'2', b"../victim", b""),
        member(b"d/file", b'0', b"", b"x"),
    ];
    refused(&swap, ErrorKind::InvalidInput).await;
    refused(&[member(b"f", b'0', b"", b"x"), member(b"f/g", b'0', b"", b"x")], ErrorKind::InvalidInput).await;
}

#[tokio::test]
async fn hard_links_lead_to_restored_files_only() {
    for target in [&b"/etc/passwd"[..], b"../victim/file", b"missing", b"self", b"a/../../victim/file"] {
        refused(&[member(b"self", b'1', target, b"")], ErrorKind::InvalidInput).await;
    }
    let through = [member(b"link", b'2', b"../victim", b""), member(b"hard", b'1', b"link/file", b"")];
    refused(&through, ErrorKind::InvalidInput).await;
    let directory = [member(b"d", b'5', b"", b""), member(b"hard", b'1', b"d", b"")];
    refused(&directory, ErrorKind::InvalidInput).await;
}

#[tokio::test]
async fn devices_duplicates_and_unknown_types_are_refused() {
    refused(&[member(b"null", b'3', b"", b"")], ErrorKind::InvalidInput).await;
    refused(&[member(b"sda", b'4', b"", b"")], ErrorKind::InvalidInput).await;
    let twice = member(b"f", b'0', b"", b"x");
    refused(&[twice.clone(), twice], ErrorKind::InvalidInput).await;
    refused(&[member(b"f", b'M', b"", b"x")], ErrorKind::Unsupported).await;
    refused(&[member(b"", b'0', b"", b"x")], ErrorKind::InvalidInput).await;
    refused(&[member(b".", b'0', b"", b"x")], ErrorKind::InvalidInput).await;
}

#[tokio::test]
async fn a_bomb_is_refused_before_it_is_written() {
    let huge = "77777777777\0"; // 8 GiB announced
    refused(&[member_of_size(b"f", b'0', b"", b"x", huge)], ErrorKind::LimitExceeded).await;
    // An empty sparse file of four exbibytes would be read back for the proof.
    let sparse = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n18 GNU.sparse.name=f\n41 GNU.sparse.realsize=4611686018427387904\n";
    let sparse = String::from_utf8_lossy(sparse).replace("18 GNU", "21 GNU");
    let bomb = [member(b"x", b'x', b"", sparse.as_bytes()), member(b"f", b'0', b"", b"0\n")];
    let (kind, text) = attempt(&bomb.concat()).await.unwrap_err();
    assert!(matches!(kind, ErrorKind::LimitExceeded | ErrorKind::Corrupt), "{text}");
    // More members than the backup has items.
    let many: Vec<u8> = (0..3000).flat_map(|n| member(format!("f{n}").as_bytes(), b'0', b"", b"")).collect();
    let dir = tempfile::tempdir().unwrap();
    let mut plan = plan(&many);
    plan.proofs.insert("files".into(), Proof { count: 5, sum: [0; 32] });
    let error = staged(&DirectoryTarget::new(dir.path().join("to")), &plan, &many).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    let deep = b"d/".repeat(3000);
    let record = [format!("{} path=", deep.len() + 11).as_bytes(), deep.as_slice(), b"\n"].concat();
    refused(&[member(b"x", b'x', b"", &record), member(b"d", b'5', b"", b"")], ErrorKind::LimitExceeded)
        .await;
}

#[tokio::test]
async fn symbolic_links_are_restored_wherever_they_point() {
    let links = [member(b"a", b'2', b"/etc/passwd", b""), member(b"b", b'2', b"../../..", b"")];
    attempt(&links.concat()).await.unwrap();
}

#[tokio::test]
async fn damage_is_named_with_its_place() {
    let mut archive = [member(b"a", b'0', b"", b"x"), member(b"b", b'0', b"", b"y")].concat();
    archive[1024] ^= 1;
    let dir = tempfile::tempdir().unwrap();
    let target = DirectoryTarget::new(dir.path().join("to"));
    let error = staged(&target, &plan(&archive), &archive).await.err().unwrap();
    assert_eq!((error.kind(), error.context_value("offset")), (ErrorKind::Corrupt, Some("1024")));
    assert_eq!(error.context_value("artifact"), Some("files-00001"));
    let mut log = plan(&[]);
    log.until = Some(backup_core::Until::Time(log.id.time()));
    assert_eq!(target.begin(&log).await.err().unwrap().kind(), ErrorKind::InvalidInput);
}
