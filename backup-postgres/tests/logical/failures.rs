//! What must not look like a backup, and what a failure leaves behind: nothing.

use std::future::IntoFuture as _;
use std::time::Duration;

use super::server::Server;
use super::{drive, server};
use backup_core::{
    CancellationToken, ErrorKind, MemorySink, Outcome, Repository, Selection, SnapshotRequest, Source as _,
};
use backup_postgres::{DumpFormat, PgConfig, PgDump, PgRestore};
use futures::StreamExt as _;

const FORMATS: [DumpFormat; 3] = [DumpFormat::Custom, DumpFormat::Plain, DumpFormat::Parallel];

fn big(rows: u32) -> Option<Server> {
    let server = server::versions(&[15]).first().map(|major| Server::start(*major))?;
    server.sql(
        "postgres",
        &format!("CREATE TABLE big AS SELECT i, md5(i::text) || md5((i + 1)::text) AS v FROM generate_series(1, {rows}) i"),
    );
    Some(server)
}

/// Waits until the server has no session of ours and no transaction is open.
async fn is_quiet(server: &Server) {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'backup-postgres' AND pid <> pg_backend_pid()";
    for _ in 0..100 {
        if server.sql("postgres", sql) == "0" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!(
        "a session of the backup is left: {}",
        server.sql("postgres", "SELECT query, state FROM pg_stat_activity")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_midway_leaves_no_backup() {
    for format in FORMATS {
        let Some(server) = big(400_000) else { return };
        let config = server.config("postgres").patience(Duration::from_millis(300));
        let source = PgDump::new(config).format(format);
        let mut snapshot = source.snapshot(SnapshotRequest::full()).await.unwrap();
        let mut failed = false;
        let mut killed = false;
        while let Ok(Some(artifact)) = snapshot.next().await {
            let mut data = artifact.data;
            while let Some(chunk) = data.next().await {
                failed |= chunk.is_err();
                if !killed && artifact.meta.name != "schema" {
                    server.kill();
                    killed = true;
                }
            }
        }
        assert!(killed);
        let finished = snapshot.finish().await;
        assert!(finished.is_err(), "{format:?}");
        assert!(failed || format == DumpFormat::Parallel, "{format:?}");
        snapshot.close(Outcome::Aborted).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_or_program_that_is_killed_midway_leaves_no_backup() {
    let Some(server) = big(400_000) else { return };
    for format in FORMATS {
        let source = PgDump::connect(server.url("postgres")).unwrap().format(format);
        let mut snapshot = source.snapshot(SnapshotRequest::full()).await.unwrap();
        let mut failed = false;
        let mut killed = false;
        while let Ok(Some(artifact)) = snapshot.next().await {
            let mut data = artifact.data;
            while let Some(chunk) = data.next().await {
                failed |= chunk.is_err();
                if !killed && artifact.meta.name != "schema" {
                    // The session that copies, whichever program has it.
                    let ended = server.sql("postgres", "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query ILIKE 'copy%' AND state = 'active' AND pid <> pg_backend_pid()");
                    killed = ended != "0";
                }
            }
        }
        assert!(killed && failed, "{format:?}");
        let error = snapshot.finish().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::SourceFailed);
        snapshot.close(Outcome::Aborted).await.unwrap();
        is_quiet(&server).await;
    }
}

/// What is killed while the backup runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    /// `pg_dump`, by SIGKILL.
    Program,
    /// The connection that holds the snapshot.
    Holder,
    /// The server, by an immediate stop.
    Server,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_listed_and_nothing_is_left_after_a_kill() {
    use std::os::unix::fs::PermissionsExt as _;
    for (format, victim) in [
        (DumpFormat::Custom, Victim::Program),
        (DumpFormat::Plain, Victim::Program),
        (DumpFormat::Custom, Victim::Holder),
        (DumpFormat::Parallel, Victim::Holder),
        (DumpFormat::Parallel, Victim::Server),
    ] {
        let Some(server) = big(200_000) else { return };
        let dir = tempfile::tempdir().unwrap();
        let (program, pid) = (dir.path().join("pg_dump"), dir.path().join("pid"));
        let (own, pid_file) = (server.bin.join("pg_dump"), pid.display());
        let script = format!("#!/bin/sh\necho $$ > '{pid_file}'\nexec '{}' \"$@\"\n", own.display());
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();

        let repo = Repository::builder().sink(MemorySink::new()).build().unwrap();
        let config = server.config("postgres").patience(Duration::from_millis(300));
        let source = PgDump::new(config).format(format).pg_dump(&program);
        // Slow enough that the kill comes midway.
        let backup = repo.backup("books", &source).rate_limit(2 * 1024 * 1024).into_future();
        let kill = async {
            let copying =
                "SELECT count(*) FROM pg_stat_activity WHERE query ILIKE 'copy%' AND state = 'active'";
            while server.sql("postgres", copying) == "0" {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            match victim {
                Victim::Program => {
                    let pid = std::fs::read_to_string(&pid).unwrap();
                    let killed =
                        std::process::Command::new("kill").args(["-9", pid.trim()]).status().unwrap();
                    assert!(killed.success());
                }
                Victim::Holder => {
                    let holder = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                        WHERE application_name = 'backup-postgres' AND state = 'idle in transaction'";
                    assert_ne!(server.sql("postgres", holder), "0");
                }
                Victim::Server => server.kill(),
            }
        };
        let (done, ()) = tokio::join!(backup, kill);
        let error = done.err().unwrap_or_else(|| panic!("{format:?} {victim:?}: a backup was made"));
        println!("{format:?} {victim:?}: {}", error.chain());
        let list = repo.backups("books").await.unwrap();
        assert!(list.is_empty() && list.unreadable.is_empty(), "{format:?} {victim:?}");
        if victim != Victim::Server {
            is_quiet(&server).await;
            let left = "SELECT (SELECT count(*) FROM pg_replication_slots), (SELECT count(*) FROM pg_ls_dir('pg_snapshots'))";
            assert_eq!(server.sql("postgres", left), "0|0");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_or_cancelling_at_any_moment_leaves_nothing_on_the_server() {
    let Some(server) = big(200_000) else { return };
    for format in FORMATS {
        for after in [0, 1, 3, 10] {
            let cancelled = CancellationToken::new();
            let request = SnapshotRequest { cancelled: cancelled.clone(), ..SnapshotRequest::full() };
            let source = PgDump::connect(server.url("postgres")).unwrap().format(format);
            let mut snapshot = source.snapshot(request).await.unwrap();
            let mut artifact = snapshot.next().await.unwrap().unwrap();
            if artifact.meta.name == "schema" {
                while artifact.data.next().await.is_some() {}
                artifact = snapshot.next().await.unwrap().unwrap();
            }
            for _ in 0..after {
                artifact.data.next().await.unwrap().unwrap();
            }
            if after % 2 == 0 {
                drop(artifact);
                drop(snapshot);
            } else {
                cancelled.cancel();
                let error = artifact.data.next().await.unwrap().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Cancelled);
                assert!(artifact.data.next().await.is_none());
                assert!(snapshot.finish().await.is_err());
                snapshot.close(Outcome::Aborted).await.unwrap();
            }
            is_quiet(&server).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sum_of_balances_is_constant_while_writers_run() {
    let Some(server) = server::versions(&[15]).first().map(|major| Server::start(*major)) else { return };
    server.sql(
        "postgres",
        "CREATE TABLE a (id int PRIMARY KEY, balance int); CREATE TABLE b (LIKE a INCLUDING ALL);
         INSERT INTO a SELECT i, 100 FROM generate_series(1, 2000) i; INSERT INTO b TABLE a;
         CREATE TABLE padding AS SELECT i, repeat(md5(i::text), 20) AS v FROM generate_series(1, 60000) i",
    );
    let stop = CancellationToken::new();
    let writers: Vec<_> = (0..3)
        .map(|_| {
            let (url, stop) = (server.url("postgres"), stop.clone());
            tokio::spawn(async move {
                let (client, connection) =
                    tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
                tokio::spawn(connection);
                let mut moved = 0_u32;
                while !stop.is_cancelled() {
                    // Ids are 1 to 2000, so each update finds exactly one row.
                    let (from, to) = (1 + moved * 7 % 2000, 1 + moved * 13 % 2000);
                    let sql = format!(
                        "BEGIN; UPDATE a SET balance = balance - 1 WHERE id = {from};
                         UPDATE b SET balance = balance + 1 WHERE id = {to}; COMMIT"
                    );
                    client.batch_execute(&sql).await.unwrap();
                    moved += 1;
                }
                moved
            })
        })
        .collect();
    for format in FORMATS {
        let kept =
            drive::backup(&PgDump::connect(server.url("postgres")).unwrap().format(format)).await.unwrap();
        let name = format!("copy_{format:?}").to_lowercase();
        let target = PgRestore::database(server.url("template1"), &name).unwrap();
        drive::restore(&kept, &target, Selection::all(), false).await.unwrap();
        let sum = server.sql(&name, "SELECT (SELECT sum(balance) FROM a) + (SELECT sum(balance) FROM b)");
        assert_eq!(sum, "400000", "{format:?}");
        assert_ne!(server.sql(&name, "SELECT sum(balance) FROM a"), "200000", "the writers did nothing");
    }
    stop.cancel();
    for writer in writers {
        assert!(writer.await.unwrap() > 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_fails_is_named_and_the_target_is_as_before() {
    let Some(server) = big(10) else { return };
    server.sql("postgres", "CREATE ROLE gone; ALTER TABLE big OWNER TO gone");
    for format in FORMATS {
        let kept =
            drive::backup(&PgDump::connect(server.url("postgres")).unwrap().format(format)).await.unwrap();
        server.sql("postgres", "ALTER TABLE big OWNER TO postgres; DROP ROLE gone");
        let target = PgRestore::database(server.url("postgres"), "copy").unwrap();
        let error = drive::restore(&kept, &target, Selection::all(), false).await.unwrap_err();
        let said = error.chain();
        assert!(said.contains("ALTER TABLE public.big OWNER TO gone") && said.contains("no_owner"), "{said}");
        assert_eq!(
            server.sql("postgres", "SELECT count(*) FROM pg_database WHERE datname LIKE 'copy%'"),
            "0"
        );

        server.sql("postgres", "CREATE ROLE stays");
        drive::restore(&kept, &target.clone().role("gone", "stays"), Selection::all(), false).await.unwrap();
        assert_eq!(server.sql("copy", "SELECT tableowner FROM pg_tables WHERE tablename = 'big'"), "stays");
        server.sql("postgres", "DROP DATABASE copy");
        drive::restore(&kept, &target.no_owner(), Selection::all(), false).await.unwrap();
        server.sql(
            "postgres",
            "DROP DATABASE copy; DROP ROLE stays; CREATE ROLE gone; ALTER TABLE big OWNER TO gone",
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_pg_dump_is_refused_with_the_way_out() {
    let found = server::versions(&[15, 18]);
    if found.len() < 2 {
        return;
    }
    let (old, new) = (Server::start(15), Server::start(18));
    let source = PgDump::connect(new.url("postgres")).unwrap().pg_dump(&old.bin);
    let error = drive::backup(&source).await.err().unwrap();
    assert!(error.chain().contains("install client programs"), "{}", error.chain());
    let report = source.check().await.unwrap();
    assert_eq!(report.findings.first().unwrap().code, "pg-dump");
    // The other way round works, and what the newer program sets is not known to the older server.
    let source = PgDump::connect(old.url("postgres")).unwrap().pg_dump(&new.bin);
    let kept = drive::backup(&source).await.unwrap();
    let target = PgRestore::database(old.url("postgres"), "copy").unwrap().pg_restore(&new.bin);
    drive::restore(&kept, &target, Selection::all(), false).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_answer_is_waited_for_and_then_named() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = PgConfig::parse(&format!("postgres://x:secret-word@127.0.0.1:{port}/db")).unwrap();
    let began = std::time::Instant::now();
    let source = PgDump::new(config.patience(Duration::from_millis(700)));
    let error = source.check().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert!(!error.chain().contains("secret-word") && !format!("{source:?}").contains("secret-word"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_database_outlives_a_crash_of_the_server_right_after() {
    let Some(major) = server::versions(&[15]).first().copied() else { return };
    // Commits do not wait by themselves on this server, and nobody else writes its log for a while.
    let server = Server::start_with(major, &["synchronous_commit=off", "wal_writer_delay=10s"]);
    server.sql(
        "postgres",
        "CREATE TABLE books (id int PRIMARY KEY, title text); CREATE INDEX ON books (title);
         INSERT INTO books SELECT i, md5(i::text) FROM generate_series(1, 2000) i",
    );
    let same = "SET enable_seqscan = off; SELECT count(*), sum(hashtext(title)) FROM books WHERE id > 0 AND title > ''";
    let expected = server.sql("postgres", same);
    let repo = Repository::builder().sink(MemorySink::new()).build().unwrap();
    let source = PgDump::connect(server.url("postgres")).unwrap().format(DumpFormat::Parallel);
    repo.backup("books", &source).await.unwrap_or_else(|e| panic!("{}", e.chain()));
    let target = PgRestore::database(server.url("postgres"), "copy").unwrap();
    repo.restore("books").latest().into(&target).await.unwrap_or_else(|e| panic!("{}", e.chain()));
    server.kill();
    server.start_again();
    assert_eq!(server.sql("copy", same), expected);
}
