//! Rows without definitions, and files that other people's `pg_dump` made.

use std::io::Write as _;
use std::process::Stdio;

use backup_core::{ArtifactFormat, ArtifactMeta, ErrorKind, Selection, SourceReport};
use backup_postgres::{DumpFormat, PgDump, PgRestore};

use super::drive::Kept;
use super::server::Server;
use super::{drive, server};

const FORMATS: [DumpFormat; 3] = [DumpFormat::Custom, DumpFormat::Plain, DumpFormat::Parallel];

const BOOKS: &str = "CREATE TABLE authors (id serial PRIMARY KEY, name text);
    CREATE TABLE books (id serial PRIMARY KEY, author int REFERENCES authors, title text);
    INSERT INTO authors (name) SELECT 'a' || i FROM generate_series(1, 50) i;
    INSERT INTO books (author, title) SELECT 1 + i % 50, 'b' || i FROM generate_series(1, 500) i;
    CREATE MATERIALIZED VIEW counted AS SELECT author, count(*) FROM books GROUP BY 1;
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'a trigger fired'; END $$;
    CREATE TABLE log (v text)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_alone_come_back_into_the_definitions_that_are_there() {
    for major in server::versions(&[15, 18]) {
        let server = Server::start(major);
        server.sql("postgres", "CREATE DATABASE books");
        server.sql("books", BOOKS);
        for (format, rows_only) in FORMATS.into_iter().flat_map(|f| [(f, false), (f, true)]) {
            let mut source =
                PgDump::connect(server.url("books")).unwrap().format(format).pg_dump(&server.bin);
            if rows_only {
                source = source.data_only();
            }
            let kept = drive::backup(&source).await.unwrap_or_else(|e| panic!("{}", e.chain()));
            // What the definitions have become since must stay.
            server.sql(
                "books",
                "CREATE INDEX later ON books (title); ALTER TABLE books ADD COLUMN stars int DEFAULT 3;
                 CREATE TRIGGER refuse BEFORE INSERT ON books FOR EACH ROW EXECUTE FUNCTION refuse()",
            );
            let before = server.plain_dump("books");
            server.sql(
                "books",
                "DELETE FROM books WHERE id % 2 = 0; UPDATE authors SET name = 'damaged'; SELECT setval('books_id_seq', 9);
                 REFRESH MATERIALIZED VIEW counted; INSERT INTO log VALUES ('since')",
            );
            let target = PgRestore::database(server.url("postgres"), "books")
                .unwrap()
                .pg_restore(&server.bin)
                .data_only();
            let refused = drive::restore(&kept, &target, Selection::all(), false).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::TargetNotEmpty);
            let (_, undo) = drive::restore(&kept, &target, Selection::all(), true)
                .await
                .unwrap_or_else(|e| panic!("{major} {format:?} {rows_only}: {}", e.chain()));
            assert_eq!(server.plain_dump("books"), before, "{major} {format:?} {rows_only}");
            assert_eq!(server.sql("books", "SELECT sum(count) FROM counted"), "500");
            undo.unwrap().drop_old().await.unwrap();

            let nowhere = PgRestore::database(server.url("postgres"), "none").unwrap().data_only();
            let error = drive::restore(&kept, &nowhere, Selection::all(), true).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.chain());
            server.sql(
                "books",
                "DROP TRIGGER refuse ON books; ALTER TABLE books DROP COLUMN stars; DROP INDEX later",
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_alone_never_create_a_table_in_use() {
    let Some(server) = server::versions(&[15]).first().map(|major| Server::start(*major)) else { return };
    server.sql("postgres", BOOKS);
    for format in FORMATS {
        let kept =
            drive::backup(&PgDump::connect(server.url("postgres")).unwrap().format(format)).await.unwrap();
        server.sql("postgres", "ALTER TABLE log RENAME TO moved");
        let target = PgRestore::tables(server.url("postgres")).unwrap().data_only();
        let only = || Selection::globs(["public.log"]).unwrap();
        let error = drive::restore(&kept, &target, only(), true).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.chain());
        let error = drive::restore(&kept, &target, only(), false).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{}", error.chain());
        server.sql("postgres", "ALTER TABLE moved RENAME TO log");
        let books = Selection::globs(["public.books"]).unwrap();
        server.sql("postgres", "DELETE FROM books");
        let (_, undo) = drive::restore(&kept, &target, books, true).await.unwrap();
        assert_eq!(server.sql("postgres", "SELECT count(*) FROM books"), "500");
        undo.unwrap().drop_old().await.unwrap();
    }
}

/// A backup that is nothing but one file.
fn file(format: ArtifactFormat, bytes: Vec<u8>) -> Kept {
    let meta = ArtifactMeta::new("database", format);
    Kept { artifacts: vec![(meta, bytes.into())], report: SourceReport::default(), items: Vec::new() }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut child = std::process::Command::new("gzip")
        .arg("-c")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&bytes));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    output.stdout
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_plain_pg_dump_are_restored() {
    const SQL: ArtifactFormat = ArtifactFormat::new("pg_dump.plain", "sql");
    const DUMP: ArtifactFormat = ArtifactFormat::new("pg_dump.custom", "dump");
    for major in server::versions(&[15, 16, 17, 18]) {
        let server = Server::start(major);
        server.sql("postgres", "CREATE ROLE reader; CREATE DATABASE books");
        server.sql("books", include_str!("everything.sql"));
        let before = server.plain_dump("books");
        let dumped = |arguments: &[&str]| {
            let output = server.run("pg_dump", "books").args(arguments).output().unwrap();
            assert!(output.status.success());
            output.stdout
        };
        let sql = dumped(&[]);
        let compressed = gzip(&sql);
        // Cut off, it must not pass for whole.
        let short = file(SQL, compressed[..compressed.len() - 20].to_vec());
        let target = PgRestore::database(server.url("postgres"), "copy").unwrap().pg_restore(&server.bin);
        assert!(drive::restore(&short, &target, Selection::all(), false).await.is_err());
        // An INSERT of -0 is one of 0: what psql makes of it is what counts.
        let inserts = dumped(&["--inserts"]);
        server.sql("postgres", "CREATE DATABASE by_psql TEMPLATE template0");
        server.sql("by_psql", std::str::from_utf8(&inserts).unwrap());
        let by_psql = server.plain_dump("by_psql");
        let files = [
            ("sql", SQL, sql),
            ("sql.gz", SQL, compressed),
            ("inserts", SQL, inserts),
            ("create", SQL, dumped(&["--create"])),
            ("dump", DUMP, dumped(&["-Fc"])),
            ("dump -Z0", DUMP, dumped(&["-Fc", "-Z0"])),
        ];
        for (name, format, bytes) in files {
            drive::restore(&file(format, bytes), &target, Selection::all(), false)
                .await
                .unwrap_or_else(|e| panic!("{major} {name}: {}", e.chain()));
            let expected = if name == "inserts" { &by_psql } else { &before };
            assert!(server.plain_dump("copy") == *expected, "{major} {name}");
            server.sql("postgres", "DROP DATABASE copy");
        }
    }
}
