//! Import of old backups made by the very pipelines of five services' runbooks: what comes in, when, and what does not
//! (promises 1, 4 and 10).
#![cfg(feature = "import")]
#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::path::PathBuf;
use std::process::Command;

use backup_core::{
    BackupId, ErrorKind, Gzip, Import, ImportReport, KeepLast, MemorySink, MemoryTarget, Repository, Tz,
};
use backup_testkit::tools;
use futures::TryStreamExt as _;

const SET: &str = "app/postgres";
const PASSWORD: &str = "correct horse";

struct Folder {
    dir: tempfile::TempDir,
    sink: MemorySink,
}

impl Folder {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), sink: MemorySink::named("a") }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("old")
    }

    /// Runs a script where the old backups lie, with `plain.sql` beside it.
    fn make(&self, script: &str) {
        std::fs::create_dir_all(self.path()).unwrap();
        std::fs::write(self.dir.path().join("plain.sql"), plain()).unwrap();
        let out = Command::new("bash")
            .args(["-euo", "pipefail", "-c", script])
            .current_dir(self.path())
            .env("PASSWORD", PASSWORD)
            .env("GNUPGHOME", self.gpg_home())
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }

    fn gpg_home(&self) -> PathBuf {
        let home = self.dir.path().join("g");
        if !home.exists() {
            std::fs::create_dir(&home).unwrap();
            std::fs::set_permissions(&home, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        }
        home
    }

    fn repository(&self) -> Repository {
        Repository::builder().sink(self.sink.clone()).transform(Gzip::default()).build().unwrap()
    }

    fn cut(&self, name: &str, len: usize) {
        let path = self.path().join(name);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(path, &bytes[..len]).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // The agent that gpg started for this home, and no other.
        let home = self.dir.path().join("g");
        if home.exists() {
            let _ = Command::new("gpgconf").arg("--homedir").arg(home).args(["--kill", "gpg-agent"]).output();
        }
    }
}

fn plain() -> String {
    let row = |n| format!("INSERT INTO books VALUES ({n}, 'title {}');\n", n * 7919 % 5003);
    (0..5000).map(row).collect::<Vec<_>>().concat()
}

fn has_gpg(test: &str) -> bool {
    tools::available("tools", "gpg", &["--version"], test)
}

async fn export(repo: &Repository, id: BackupId) -> (String, Vec<u8>) {
    let export = repo.export(SET, id).await.unwrap();
    let artifact = &export.artifacts()[0];
    let name = format!("{}.{}", artifact.meta().name, artifact.meta().format.extension);
    let pieces: Vec<_> = artifact.stream().await.unwrap().try_collect().await.unwrap();
    (name, pieces.concat())
}

/// Nothing of the set is listed, and nothing was left behind.
async fn nothing_there(folder: &Folder) {
    assert!(folder.repository().backups(SET).await.unwrap().is_empty());
    assert_eq!(folder.sink.keys(), []);
}

async fn failure(import: Import<'_>) -> (ErrorKind, String) {
    let report: ImportReport = import.report().await.unwrap();
    assert!(report.imported.is_empty() && report.failures.len() == 1, "{report:?}");
    let error = &report.failures[0].error;
    (error.kind(), error.chain())
}

#[tokio::test(flavor = "multi_thread")]
async fn dumps_of_the_runbooks_come_in_with_their_times_and_once_only() {
    let folder = Folder::new();
    // The pipelines of the runbooks, with a file for the database.
    folder.make(
        r"
        cp ../plain.sql ai_book_20241224_020000.sql && gzip ai_book_20241224_020000.sql
        cat ../plain.sql | gzip > autodocs_20241225_030000.sql.gz
        cat ../plain.sql | gzip | openssl enc -aes-256-cbc -salt -pbkdf2 -pass env:PASSWORD \
            -out backup_20241226.sql.gz.enc
        cp ../plain.sql bookreader_2025-10-24_02-30-00.sql
        mkdir storage && cp ../plain.sql storage/
        tar -czf storage_2025-10-24_02-30-00.tar.gz -C . storage/
        tar -cf storage.tar storage/
        mkdir -p 20251101_020000/db && gzip -c ../plain.sql > 20251101_020000/db/books.bson.gz
        tar -czf mongodb_backup_20251101_020000.tar.gz 20251101_020000
        cp ../plain.sql backup.sql && touch -d 2023-03-04T05:06:07Z backup.sql
        ln -s backup.sql bookreader_2025-10-25_02-30-00.sql
        ",
    );
    let repo = folder.repository();
    let text = plain().into_bytes();
    let import = |pattern: &str| repo.import(SET, folder.path()).pattern(pattern).openssl(PASSWORD);
    for (pattern, zone, id, name) in [
        ("ai_book_%Y%m%d_%H%M%S.sql.gz", Tz::UTC, "20241224T020000Z", "ai_book_20241224_020000.sql"),
        (
            "autodocs_%Y%m%d_%H%M%S.sql.gz",
            Tz::America__New_York,
            "20241225T080000Z",
            "autodocs_20241225_030000.sql",
        ),
        ("backup_%Y%m%d.sql.gz.enc", Tz::UTC, "20241226T000000Z", "backup_20241226.sql"),
        (
            "bookreader_%Y-%m-%d_%H-%M-%S.sql",
            Tz::UTC,
            "20251024T023000Z",
            "bookreader_2025-10-24_02-30-00.sql",
        ),
        ("backup*.sql", Tz::UTC, "20230304T050607Z", "backup.sql"),
    ] {
        let report = import(pattern).time_zone(zone).await.unwrap();
        assert_eq!(report.imported.len(), 1, "{pattern}");
        let done = &report.imported[0];
        assert!(done.id.to_string().starts_with(id), "{pattern}: {}", done.id);
        assert!(export(&repo, done.id).await == (name.to_owned(), text.clone()), "{pattern}");
        assert!(repo.verify(SET, done.id).await.unwrap().is_intact());
        // Again, and there is nothing to do.
        let again = import(pattern).time_zone(zone).await.unwrap();
        assert!(again.imported.is_empty() && again.already == report.imported, "{pattern}");
    }
    for (pattern, list) in [
        ("storage_%Y-%m-%d_%H-%M-%S.tar.gz", "storage/plain.sql"),
        ("mongodb_backup_%Y%m%d_%H%M%S.tar.gz", "20251101_020000/db/books.bson.gz"),
    ] {
        let report = import(pattern).await.unwrap();
        let (name, tar) = export(&repo, report.imported[0].id).await;
        assert!(name.contains("_20251101_020000.tar") || name.contains("_2025-10-24_02-30-00.tar"));
        let listed = tools::filter(Command::new("tar").arg("-tf").arg("-"), &tar);
        assert!(String::from_utf8(listed).unwrap().lines().any(|line| line == list), "{pattern}");
    }

    // Retention sees them in the order of their times, whatever the order they came in.
    let list = repo.backups(SET).await.unwrap();
    assert_eq!(list.len(), 7);
    assert!(list.is_sorted_by(|a, b| a.started >= b.started));
    assert_eq!(list[6].id.to_string()[..16], *"20230304T050607Z");
    assert_eq!(list[0].labels["imported"], "mongodb_backup_20251101_020000.tar.gz");
    let plan = repo.prune(SET, &KeepLast::new(3)).allow_mass_delete().plan().await.unwrap();
    assert_eq!(plan.execute().await.unwrap().into_result().unwrap().deleted.len(), 4);
    let left = repo.backups(SET).await.unwrap();
    assert!(left.len() == 3 && left.iter().all(|backup| backup.started.to_rfc3339().as_str() > "2025"));
    // And they are restored like any other.
    let target = MemoryTarget::new();
    let dump = left.iter().find(|b| b.labels["imported"].starts_with("bookreader_")).unwrap().id;
    repo.restore(SET).id(dump).into(&target).await.unwrap();
    assert!(target.get("bookreader_2025-10-24_02-30-00").unwrap() == text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_run_takes_only_what_is_new_and_one_bad_file_does_not_stop_the_others() {
    let folder = Folder::new();
    folder.make(
        "for day in 01 02 03; do gzip -c ../plain.sql > db_202401$day.sql.gz; done; echo x > notes.txt",
    );
    let repo = folder.repository();
    let import = || repo.import(SET, folder.path()).pattern("db_%Y%m%d.sql.gz").label("from", "cron");
    folder.cut("db_20240102.sql.gz", 1000);
    let report = import().report().await.unwrap();
    assert_eq!(report.imported.len(), 2);
    assert_eq!(report.unmatched, ["notes.txt"]);
    assert_eq!(report.failures[0].file, "db_20240102.sql.gz");
    assert_eq!(import().await.unwrap_err().kind(), ErrorKind::Corrupt);
    folder.make("gzip -c ../plain.sql > db_20240102.sql.gz; gzip -c ../plain.sql > db_20240104.sql.gz");
    let report = import().await.unwrap();
    let files: Vec<_> = report.imported.iter().map(|i| i.file.as_str()).collect();
    assert_eq!(files, ["db_20240102.sql.gz", "db_20240104.sql.gz"]);
    assert_eq!(report.already.len(), 2);
    assert!(repo.backups(SET).await.unwrap().iter().all(|b| b.labels["from"] == "cron"));
    // Other bytes under an old name are another backup.
    folder.make("(cat ../plain.sql; echo more) | gzip > db_20240104.sql.gz");
    assert_eq!(import().await.unwrap().imported.len(), 1);
    // A day that does not exist, and one that is still to come.
    folder.make("rm db_*; cp ../plain.sql db_20240230.sql; cp ../plain.sql db_29990101.sql");
    let report = repo.import(SET, folder.path()).pattern("db_%Y%m%d.sql").report().await.unwrap();
    assert_eq!(report.failures.len(), 2);
    assert!(report.failures.iter().all(|f| f.error.kind() == ErrorKind::InvalidInput));
    assert_eq!(import().await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(repo.backups(SET).await.unwrap().len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cut_off_or_needs_another_password_leaves_nothing() {
    let folder = Folder::new();
    let enc = "openssl enc -aes-256-cbc -salt -pbkdf2 -pass env:PASSWORD";
    folder.make(&format!(
        "gzip -c ../plain.sql > a.sql.gz; tar -czf b.tar.gz ../plain.sql 2> /dev/null; {enc} -in ../plain.sql -out c.sql.enc
         gzip -c ../plain.sql | {enc} -out d.sql.gz.enc; {enc} -iter 20000 -in ../plain.sql -out e.sql.enc
         {enc} -a -in ../plain.sql -out f.sql.enc; cp ../plain.sql g.sql.gz; cp ../plain.sql h.sql.enc"
    ));
    let repo = folder.repository();
    let import = |name: &str| repo.import(SET, folder.path()).pattern(name).openssl(PASSWORD);
    for name in ["a.sql.gz", "b.tar.gz", "c.sql.enc", "d.sql.gz.enc"] {
        let whole = std::fs::read(folder.path().join(name)).unwrap();
        for len in [
            0,
            1,
            9,
            16,
            17,
            32,
            whole.len() / 2,
            whole.len() / 2 / 16 * 16,
            whole.len() - 16,
            whole.len() - 1,
        ] {
            std::fs::write(folder.path().join(name), &whole[..len]).unwrap();
            let (kind, chain) = failure(import(name)).await;
            // A file that ends between two blocks cannot be told from a wrong password.
            let expected = [ErrorKind::Corrupt, ErrorKind::WrongKey];
            assert!(expected.contains(&kind), "{name} cut at {len}: {chain}");
        }
        std::fs::write(folder.path().join(name), whole).unwrap();
    }
    for name in ["c.sql.enc", "d.sql.gz.enc"] {
        let (kind, chain) = failure(import(name).openssl("another SENTINEL password")).await;
        assert!(kind == ErrorKind::WrongKey && !chain.contains("SENTINEL"), "{chain}");
        let without = repo.import(SET, folder.path()).pattern(name);
        assert!(!format!("{without:?} {:?}", import(name)).contains(PASSWORD));
        assert_eq!(failure(without).await.0, ErrorKind::InvalidInput);
    }
    assert_eq!(failure(import("e.sql.enc")).await.0, ErrorKind::WrongKey);
    let (kind, chain) = failure(import("f.sql.enc")).await;
    assert!(kind == ErrorKind::Unsupported && chain.contains("base64"), "{chain}");
    assert_eq!(failure(import("g.sql.gz")).await.0, ErrorKind::Corrupt);
    assert_eq!(failure(import("h.sql.enc")).await.0, ErrorKind::Unsupported);
    assert_eq!(import("c.sql.enc").openssl_iterations(0).await.unwrap_err().kind(), ErrorKind::InvalidInput);
    nothing_there(&folder).await;
    for (name, rounds) in [("c.sql.enc", 10_000), ("e.sql.enc", 20_000)] {
        let report = import(name).openssl_iterations(rounds).await.unwrap();
        assert!(export(&repo, report.imported[0].id).await.1 == plain().into_bytes());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bomb_is_stopped_at_the_limits_of_the_caller() {
    let folder = Folder::new();
    folder.make("head -c 200000000 /dev/zero | gzip > bomb.sql.gz");
    let repo = folder.repository();
    let import = || repo.import(SET, folder.path()).pattern("bomb.sql.gz");
    assert_eq!(failure(import()).await.0, ErrorKind::LimitExceeded);
    assert_eq!(failure(import().max_ratio(2000).max_size(1 << 20)).await.0, ErrorKind::LimitExceeded);
    assert_eq!(failure(import().run_until(std::future::ready(()))).await.0, ErrorKind::Cancelled);
    nothing_there(&folder).await;
    assert_eq!(import().max_ratio(2000).await.unwrap().imported[0].plain_size, 200_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_gpg_come_in_through_the_gpg_command() {
    if !has_gpg("files_of_gpg_come_in_through_the_gpg_command") {
        return;
    }
    let folder = Folder::new();
    folder.make(
        r#"
        mkdir config && cp ../plain.sql config/.env && tar -czf config_2025-10-24.tar.gz config
        gpg --batch --pinentry-mode loopback --passphrase-fd 0 --symmetric --cipher-algo AES256 \
            config_2025-10-24.tar.gz <<< "$PASSWORD"
        rm config_2025-10-24.tar.gz
        gpg --batch --pinentry-mode loopback --passphrase '' --quick-generate-key backup@example.com default default never
        gzip -c ../plain.sql > db_20251025.sql.gz
        gpg --batch --trust-model always --encrypt --recipient backup@example.com db_20251025.sql.gz
        "#,
    );
    let repo = folder.repository();
    let import = |name: &str| repo.import(SET, folder.path()).pattern(name).gpg_home(folder.gpg_home());
    let (config, dump) = ("config_%Y-%m-%d.tar.gz.gpg", "db_%Y%m%d.sql.gz.gpg");
    let (kind, chain) = failure(import(config).gpg_passphrase("another SENTINEL passphrase")).await;
    assert!(kind == ErrorKind::WrongKey && !chain.contains("SENTINEL"), "{chain}");
    for name in ["config_2025-10-24.tar.gz.gpg", "db_20251025.sql.gz.gpg"] {
        let whole = std::fs::read(folder.path().join(name)).unwrap();
        for len in [0, 1, whole.len() / 2, whole.len() - 1] {
            folder.cut(name, len);
            let (kind, chain) = failure(import(name).gpg_passphrase(PASSWORD)).await;
            assert!(
                [ErrorKind::Corrupt, ErrorKind::WrongKey].contains(&kind),
                "{name} cut at {len}: {kind:?} {chain}"
            );
            std::fs::write(folder.path().join(name), &whole).unwrap();
        }
        let mut damaged = whole.clone();
        damaged[whole.len() * 2 / 3] ^= 1;
        std::fs::write(folder.path().join(name), damaged).unwrap();
        let (kind, chain) = failure(import(name).gpg_passphrase(PASSWORD)).await;
        assert_eq!(kind, ErrorKind::Corrupt, "{name}: {chain}");
        std::fs::write(folder.path().join(name), &whole).unwrap();
    }
    nothing_there(&folder).await;
    let report = import(config).gpg_passphrase(PASSWORD).await.unwrap();
    let (_, tar) = export(&repo, report.imported[0].id).await;
    let env = tools::filter(Command::new("tar").args(["-xOf", "-", "config/.env"]), &tar);
    assert!(env == plain().into_bytes());
    // A file for a key: the agent has it.
    let report = import(dump).await.unwrap();
    assert!(export(&repo, report.imported[0].id).await.1 == plain().into_bytes());
}
