//! What `check` finds before a backup would fail, and the least role that can make one.

use backup_core::{Selection, Source as _};
use backup_postgres::{DumpFormat, PgDump, PgRestore};

use super::server::Server;
use super::{drive, server};

fn codes(report: &backup_core::CheckReport) -> Vec<&str> {
    report.findings.iter().map(|f| f.code.as_ref()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_least_role_can_back_up_and_restore() {
    for major in server::versions(&[15, 18]) {
        let server = Server::start(major);
        server.sql(
            "postgres",
            "CREATE ROLE owner; CREATE ROLE backup LOGIN IN ROLE pg_read_all_data; CREATE ROLE restorer LOGIN CREATEDB IN ROLE owner;
             CREATE DATABASE books OWNER owner; GRANT CREATE ON SCHEMA public TO owner;",
        );
        server.sql(
            "books",
            "SET ROLE owner; CREATE SCHEMA app; CREATE TABLE app.t (id serial PRIMARY KEY, v text);
             INSERT INTO app.t (v) SELECT 'x' || i FROM generate_series(1, 100) i",
        );
        for format in [DumpFormat::Custom, DumpFormat::Plain, DumpFormat::Parallel] {
            let source = PgDump::connect(server.url_as("backup", "books"))
                .unwrap()
                .format(format)
                .pg_dump(&server.bin);
            let report = source.check().await.unwrap();
            assert!(report.findings.is_empty(), "{:?}", report.findings);
            assert!(report.server_version.unwrap().starts_with(&major.to_string()));
            let kept = drive::backup(&source).await.unwrap_or_else(|e| panic!("{}", e.chain()));
            let target = PgRestore::database(server.url_as("restorer", "postgres"), "copy")
                .unwrap()
                .pg_restore(&server.bin);
            drive::restore(&kept, &target, Selection::all(), false)
                .await
                .unwrap_or_else(|e| panic!("{major} {format:?}: {}", e.chain()));
            assert_eq!(server.plain_dump("copy"), server.plain_dump("books"));
            server.sql("postgres", "DROP DATABASE copy");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_managed_server_denies_is_named_with_the_way_round() {
    let Some(server) = server::versions(&[15]).first().map(|major| Server::start(*major)) else { return };
    server.sql(
        "postgres",
        "CREATE ROLE backup LOGIN; CREATE TABLE t (a int); CREATE TABLE hidden (a int);
         ALTER TABLE hidden ENABLE ROW LEVEL SECURITY; GRANT SELECT ON hidden TO backup; SELECT lo_create(4711)",
    );
    let source = PgDump::connect(server.url_as("backup", "postgres")).unwrap();
    let report = source.check().await.unwrap();
    assert_eq!(codes(&report), ["tables-unreadable", "row-security", "large-objects-unreadable"]);
    assert!(!report.is_ok());
    // What check says is what happens, and each way round works.
    assert!(drive::backup(&source).await.is_err());
    server.sql("postgres", "GRANT pg_read_all_data TO backup");
    let report = source.check().await.unwrap();
    assert_eq!(codes(&report), ["row-security", "large-objects-unreadable"]);
    let error = drive::backup(&source).await.err().unwrap();
    assert!(error.chain().contains("row"), "{}", error.chain());
    server.sql("postgres", "ALTER ROLE backup BYPASSRLS");
    let error = drive::backup(&source).await.err().unwrap();
    assert!(error.chain().contains("large object 4711"), "{}", error.chain());
    let source = source.large_objects(false);
    assert!(source.check().await.unwrap().findings.is_empty());
    drive::backup(&source).await.unwrap();

    server.sql(
        "postgres",
        "REVOKE pg_read_all_data FROM backup; GRANT SELECT ON ALL TABLES IN SCHEMA public TO backup",
    );
    let cluster = source.cluster();
    assert_eq!(codes(&cluster.check().await.unwrap()), ["pg-authid-unreadable"]);
    let cluster = cluster.role_passwords(false);
    assert!(cluster.check().await.unwrap().findings.is_empty());
    drive::backup(&cluster).await.unwrap_or_else(|e| panic!("{}", e.chain()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_in_session_mode_works_and_one_in_transaction_mode_is_named() {
    let Some(pgbouncer) = server::pgbouncer() else { return };
    let Some(server) = server::versions(&[15]).first().map(|major| Server::start(*major)) else { return };
    server.sql("postgres", "CREATE TABLE t AS SELECT i, now() AS at FROM generate_series(1, 1000) i");
    for (mode, works) in [("session", true), ("transaction", false)] {
        let pool = server::Pool::start(&pgbouncer, &server, mode);
        for format in [DumpFormat::Custom, DumpFormat::Parallel] {
            let source = PgDump::connect(pool.url("postgres")).unwrap().format(format);
            let report = source.check().await.unwrap();
            if works {
                assert!(report.findings.is_empty(), "{:?}", report.findings);
                let kept = drive::backup(&source).await.unwrap_or_else(|e| panic!("{}", e.chain()));
                assert_eq!(kept.report.proofs["public.t"].count, 1000);
            } else {
                assert_eq!(codes(&report), ["transaction-pooler"]);
                assert!(report.findings[0].fatal && report.findings[0].message.contains("session mode"));
            }
        }
    }
}
