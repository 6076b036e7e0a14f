//! The contracts of sources and targets, and what the engine makes of them: ranges, encryption, RESTORE.txt.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use backup_core::{AesGcm, Bytes, Keyring, MemorySink, Repository, Selection, Zstd};
use backup_postgres::{DumpFormat, PgDump, PgRestore};
use backup_testkit::{RecordingSink, SourceSuite, TargetSuite, capture};

use super::server::Server;
use super::{drive, server};

const FORMATS: [DumpFormat; 3] = [DumpFormat::Custom, DumpFormat::Plain, DumpFormat::Parallel];

fn server() -> Option<Server> {
    server::versions(&[15]).first().map(|major| Server::start(*major))
}

const SMALL: &str = "CREATE TABLE a (id serial PRIMARY KEY, v text); INSERT INTO a (v) SELECT 'x' || i FROM generate_series(1, 2000) i;
    CREATE TABLE b (id int REFERENCES a); INSERT INTO b SELECT id FROM a WHERE id < 100; SELECT lo_from_bytea(99, '\\x0011')";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_source_keeps_its_contract() {
    let Some(server) = server() else { return };
    server.sql("postgres", SMALL);
    let no_leaks = async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'backup-postgres'";
        for _ in 0..200 {
            if server.sql("postgres", sql) == "0" {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("a session of the backup is left");
    };
    for format in FORMATS {
        let source = PgDump::connect(server.url("postgres")).unwrap().format(format);
        // A dump carries its time and a random key.
        SourceSuite::new().bytes_differ().run(&source, no_leaks).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_target_keeps_its_contract() {
    let Some(server) = server() else { return };
    server.sql("postgres", "CREATE DATABASE first; CREATE DATABASE second");
    server.sql("first", SMALL);
    server.sql("second", "CREATE TABLE a (other text); INSERT INTO a VALUES ('thing')");
    for format in FORMATS {
        let first = capture(&PgDump::connect(server.url("first")).unwrap().format(format)).await.unwrap();
        let second = capture(&PgDump::connect(server.url("second")).unwrap().format(format)).await.unwrap();
        let next = AtomicU32::new(0);
        let make = async || {
            let name = format!("{format:?}{}", next.fetch_add(1, Ordering::Relaxed)).to_lowercase();
            PgRestore::database(server.url("postgres"), name).unwrap()
        };
        let content = async |target: &PgRestore| {
            let text = format!("{target:?}");
            let name = text.split("Database(\"").nth(1).unwrap().split('"').next().unwrap();
            let exists =
                server.sql("postgres", &format!("SELECT 1 FROM pg_database WHERE datname = '{name}'"));
            let mut all = BTreeMap::new();
            if exists == "1" {
                all.insert(name.to_owned(), Bytes::from(server.plain_dump(name)));
            }
            all
        };
        TargetSuite::new().run(make, content, [&first, &second]).await;
    }
    // A dropped restore removes its database a moment later.
    let left = "SELECT count(*) FROM pg_database WHERE datname LIKE '%_restoring_%'";
    for _ in 0..200 {
        if server.sql("postgres", left) == "0" {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("databases are left: {}", server.sql("postgres", "SELECT array_agg(datname) FROM pg_database"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_small_table_is_restored_reading_little_of_an_encrypted_backup() {
    let Some(server) = server() else { return };
    server.sql(
        "postgres",
        "CREATE TABLE big AS SELECT i, md5(i::text) || md5((i * 7)::text) || md5((i * 13)::text) AS v FROM generate_series(1, 1300000) i;
         CREATE TABLE customers (id serial PRIMARY KEY, v text UNIQUE);
         INSERT INTO customers (v) SELECT md5(i::text) || md5((-i)::text) FROM generate_series(1, 20000) i;
         CREATE TABLE later AS TABLE big",
    );
    let sink = RecordingSink::new(MemorySink::new());
    let keyring = Keyring::builder().key([7; 32]).build().unwrap();
    let repo = Repository::builder()
        .sink(sink.clone())
        .transform(Zstd::default())
        .transform(AesGcm::new(keyring))
        .build()
        .unwrap();
    let source = PgDump::connect(server.url("postgres")).unwrap();
    repo.backup("books", &source).await.unwrap_or_else(|e| panic!("{}", e.chain()));
    let stored = sink.bytes_written();
    server
        .sql("postgres", "CREATE TABLE before AS TABLE customers; UPDATE customers SET v = 'damaged' || id");
    sink.clear();
    let target = PgRestore::tables(server.url("postgres")).unwrap();
    repo.restore("books")
        .latest()
        .into(&target)
        .only(["public.customers"])
        .replace()
        .await
        .unwrap_or_else(|e| panic!("{}", e.chain()));
    let read = sink.bytes_read();
    println!("read {read} of {stored} bytes: {} ‰", 1000 * read / stored);
    assert!(read * 20 < stored, "read {read} of {stored}");
    assert_eq!(server.sql("postgres", "SELECT count(*) FROM (TABLE customers EXCEPT TABLE before) x"), "0");
}

/// Runs a line of RESTORE.txt.
fn shell(server: &Server, dir: &std::path::Path, line: &str, input: &[u8]) {
    let path = format!("{}:{}", server.bin.display(), std::env::var("PATH").unwrap_or_default());
    let mut child = Command::new("bash")
        .args(["-e", "-o", "pipefail", "-c", line])
        .current_dir(dir)
        .env("PATH", path)
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", server.port.to_string())
        .env("PGUSER", "postgres")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A program that does not want all of it closes the pipe.
    let writer = std::thread::spawn(move || stdin.write_all(&input).is_ok());
    let output = child.wait_with_output().unwrap();
    let _ = writer.join();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lines_of_restore_txt_restore_without_this_library() {
    for major in server::versions(&[15, 17]) {
        let server = Server::start(major);
        server.sql("postgres", "CREATE ROLE reader; CREATE DATABASE \"it's; $(x) ü\"");
        let name = "it's; $(x) ü";
        server.sql(name, include_str!("everything.sql"));
        let before = server.plain_dump(name);
        for format in FORMATS {
            let mut config = server.config("postgres");
            config = config.with_database(name);
            let source = PgDump::new(config).format(format).pg_dump(&server.bin);
            let kept = drive::backup(&source).await.unwrap_or_else(|e| panic!("{}", e.chain()));
            let dir = tempfile::tempdir().unwrap();
            let recipe = &kept.report.recipe;
            for line in &recipe.before {
                shell(&server, dir.path(), line, b"");
            }
            for (meta, bytes) in &kept.artifacts {
                if let Some(command) = recipe.commands.get(meta.name.as_ref()) {
                    shell(&server, dir.path(), command, bytes);
                }
            }
            for line in &recipe.after {
                shell(&server, dir.path(), line, b"");
            }
            let restored = format!("{name}_restored");
            assert!(server.plain_dump(&restored) == before, "{major} {format:?}");
            server.sql("postgres", &format!("DROP DATABASE \"{restored}\""));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_recorded_offsets_make_an_archive_seekable() {
    for major in server::versions(&[15, 16, 17, 18]) {
        let server = Server::start(major);
        server.sql("postgres", SMALL);
        server.sql("postgres", "CREATE DATABASE copy; CREATE DATABASE copy2");
        let source = PgDump::connect(server.url("postgres")).unwrap().pg_dump(&server.bin);
        let kept = drive::backup(&source).await.unwrap();
        let (dump, toc) = (kept.artifact("database"), kept.artifact("database-toc"));
        let mut seekable = dump.to_vec();
        seekable[..toc.len()].copy_from_slice(toc);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("piped"), dump).unwrap();
        std::fs::write(dir.path().join("seekable"), &seekable).unwrap();
        let list = |file: &str| {
            let output =
                server.run("pg_restore", "copy").arg("--list").arg(dir.path().join(file)).output().unwrap();
            assert!(output.status.success());
            output.stdout
        };
        assert_eq!(list("piped"), list("seekable"));
        // Offsets are those that pg_dump writes itself when it can.
        let own = dir.path().join("own");
        let status = server.run("pg_dump", "postgres").args(["-Fc", "-Z0", "-f"]).arg(&own).status().unwrap();
        assert!(status.success());
        let own = std::fs::read(own).unwrap();
        assert_eq!(own.len(), seekable.len());
        let differing = own.iter().zip(&seekable).filter(|(a, b)| a != b).count();
        // Only the time in the head differs: seconds and perhaps minutes.
        assert!(differing <= 3, "{major}: {differing} bytes differ");
        for (database, arguments) in [("copy", &["-j2"][..]), ("copy2", &[])] {
            let status = server
                .run("pg_restore", database)
                .args(["--exit-on-error", "-d", database])
                .args(arguments)
                .arg(dir.path().join("seekable"))
                .status()
                .unwrap();
            assert!(status.success());
            assert_eq!(server.plain_dump(database), server.plain_dump("postgres"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_selection_restores_all_definitions_and_the_selected_rows() {
    let Some(server) = server() else { return };
    server.sql("postgres", SMALL);
    for format in [DumpFormat::Custom, DumpFormat::Parallel] {
        let kept =
            drive::backup(&PgDump::connect(server.url("postgres")).unwrap().format(format)).await.unwrap();
        let target = PgRestore::database(server.url("postgres"), "part").unwrap();
        let only = Selection::globs(["public.b"]).unwrap();
        drive::restore(&kept, &target, only, false).await.unwrap_or_else(|e| panic!("{}", e.chain()));
        let counts = "SELECT (SELECT count(*) FROM a), (SELECT count(*) FROM b)";
        assert_eq!(server.sql("part", counts), "0|99");
        server.sql("postgres", "DROP DATABASE part");
    }
}
