//! A database with something of everything goes out and comes back, in every format, on every server there is.

use super::server::Server;
use super::{drive, server};
use backup_core::Selection;
use backup_postgres::{DumpFormat, PgDump, PgRestore};

const EVERYTHING: &str = include_str!("everything.sql");

fn filled(major: u32) -> Server {
    let server = Server::start(major);
    server.sql("postgres", "CREATE ROLE reader; CREATE DATABASE books");
    server.sql("books", EVERYTHING);
    server
}

async fn comes_back(format: DumpFormat) {
    for major in server::versions(&[15, 16, 17, 18]) {
        let server = filled(major);
        let before = server.plain_dump("books");
        let source = PgDump::connect(server.url("books")).unwrap().format(format).pg_dump(&server.bin);
        let kept = drive::backup(&source).await.unwrap_or_else(|e| panic!("{major}: {}", e.chain()));
        assert_eq!(kept.report.proofs["public.kinds"].count, 15);
        assert_eq!(kept.report.proofs["public.no_columns"].count, 2);
        assert_eq!(kept.report.proofs["large-objects"].count, 3);
        assert!(kept.report.warnings.is_empty(), "{:?}", kept.report.warnings);
        let target = PgRestore::database(server.url("postgres"), "copy").unwrap().pg_restore(&server.bin);
        let (report, undo) = drive::restore(&kept, &target, Selection::all(), false)
            .await
            .unwrap_or_else(|e| panic!("{major} {format:?}: {}", e.chain()));
        assert!(undo.is_none());
        assert!(report.warnings.is_empty(), "{:?}", report.warnings);
        let after = server.plain_dump("copy");
        let differing: Vec<_> = before.lines().zip(after.lines()).filter(|(a, b)| a != b).take(5).collect();
        assert!(before == after, "{major} {format:?}: the dumps differ: {differing:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_comes_back_from_a_custom_archive() {
    comes_back(DumpFormat::Custom).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_comes_back_from_sql_text() {
    comes_back(DumpFormat::Plain).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_comes_back_from_a_parallel_backup() {
    comes_back(DumpFormat::Parallel).await;
}
