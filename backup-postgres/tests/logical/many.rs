//! Many small tables, and one large one in parts: a tenth of the sizes, unless `BACKUP_TORTURE` is set.

use backup_core::{MemorySink, Repository, Zstd};
use backup_postgres::{DumpFormat, PgDump, PgRestore};

use super::server;
use super::server::Server;

fn tenths(full: u32) -> u32 {
    if std::env::var_os("BACKUP_TORTURE").is_some() { full } else { full / 10 }
}

#[expect(clippy::print_stdout, reason = "times of a torture run are quoted from here")]
async fn comes_back(server: &Server, format: DumpFormat, same: &str) {
    let repo = Repository::builder().sink(MemorySink::new()).transform(Zstd::default()).build().unwrap();
    let began = std::time::Instant::now();
    let source = PgDump::connect(server.url("books")).unwrap().format(format);
    repo.backup("books", &source).await.unwrap_or_else(|e| panic!("{}", e.chain()));
    let out = began.elapsed();
    let target = PgRestore::database(server.url("postgres"), "copy").unwrap();
    repo.restore("books").latest().into(&target).await.unwrap_or_else(|e| panic!("{}", e.chain()));
    println!("{format:?}: out in {out:.1?}, all in {:.1?}", began.elapsed());
    assert_eq!(server.sql("copy", same), server.sql("books", same), "{format:?}");
    server.sql("postgres", "DROP DATABASE copy");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_tables_come_back() {
    let Some(server) = server::versions(&[15]).first().map(|major| Server::start(*major)) else { return };
    let tables = tenths(2_000);
    server.sql("postgres", "CREATE DATABASE books");
    for from in (0..tables).step_by(500) {
        server.sql(
            "books",
            &format!(
                "DO $$ BEGIN FOR n IN {from} .. {} LOOP
                   EXECUTE format('CREATE TABLE t_%s (id serial PRIMARY KEY, v text)', n);
                   EXECUTE format('INSERT INTO t_%s (v) SELECT md5(i::text) FROM generate_series(1, %s) i', n, n % 30);
                 END LOOP; END $$",
                (from + 499).min(tables - 1)
            ),
        );
    }
    let same = "SELECT count(*), sum((xpath('//n/text()', query_to_xml(
            format('SELECT count(*) * ' || hashtext(relname) || ' AS n FROM %I', relname), false, true, '')))[1]::text::bigint)
        FROM pg_class WHERE relkind = 'r' AND relname LIKE 't\\_%'";
    assert!(server.sql("books", same).starts_with(&format!("{tables}|")));
    for format in [DumpFormat::Custom, DumpFormat::Plain, DumpFormat::Parallel] {
        comes_back(&server, format, same).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_table_comes_back() {
    let Some(server) = server::versions(&[15]).first().map(|major| Server::start(*major)) else { return };
    server.sql("postgres", "CREATE DATABASE books");
    // Some 230 bytes a row on disk.
    let rows = tenths(4_700_000);
    server.sql(
        "books",
        &format!(
            "CREATE TABLE big AS SELECT i AS id, repeat(md5(i::text), 6) AS v FROM generate_series(1, {rows}) i;
             ALTER TABLE big ADD PRIMARY KEY (id)"
        ),
    );
    println!("{} bytes", server.sql("books", "SELECT pg_table_size('big')"));
    let same = "SELECT count(*), sum(hashtextextended(big::text, 0)::numeric) FROM big";
    for format in [DumpFormat::Custom, DumpFormat::Plain, DumpFormat::Parallel] {
        comes_back(&server, format, same).await;
    }
}
