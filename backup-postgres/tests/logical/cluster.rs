//! Several databases, and the globals of a cluster.

use backup_core::{ErrorKind, Selection};
use backup_postgres::{DumpFormat, PgDump, PgRestore};

use super::server::Server;
use super::{drive, server};

const ROLES: &str = "SELECT r.rolname, r.rolsuper, r.rolcanlogin, r.rolconnlimit, r.rolpassword,
    (SELECT array_agg(m.roleid::regrole::text ORDER BY 1) FROM pg_auth_members m WHERE m.member = r.oid)
    FROM pg_authid r WHERE r.rolname !~ '^pg_' ORDER BY 1";

fn filled(major: u32) -> Server {
    let server = Server::start(major);
    server.sql(
        "postgres",
        "CREATE ROLE readers; CREATE ROLE \"Ann B\" LOGIN PASSWORD 'x' CONNECTION LIMIT 3 IN ROLE readers;
         CREATE DATABASE one OWNER \"Ann B\"; CREATE DATABASE \"Zwei ü/2\"; ALTER DATABASE one SET work_mem = '9MB';
         CREATE TABLE here (a int); INSERT INTO here VALUES (1)",
    );
    for database in ["one", "Zwei ü/2"] {
        server.sql(
            database,
            "CREATE TABLE t (id serial, v text); INSERT INTO t (v) SELECT 'x' || i FROM generate_series(1, 50) i;
             ALTER TABLE t OWNER TO \"Ann B\"; GRANT SELECT ON t TO readers",
        );
    }
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_comes_back_on_another_server_with_its_roles() {
    for major in server::versions(&[15, 17]) {
        let server = filled(major);
        for format in [DumpFormat::Custom, DumpFormat::Plain, DumpFormat::Parallel] {
            let source = PgDump::connect(server.url("postgres"))
                .unwrap()
                .cluster()
                .format(format)
                .pg_dump(&server.bin);
            let kept = drive::backup(&source).await.unwrap_or_else(|e| panic!("{}", e.chain()));
            assert_eq!(kept.report.proofs["Zwei ü/2/public.t"].count, 50);
            assert!(kept.report.warnings.iter().any(|w| w.code == "databases-at-different-moments"));

            let other = Server::start(major);
            other.sql("postgres", "CREATE ROLE readers LOGIN");
            let target = PgRestore::cluster(other.url("template1")).unwrap().pg_restore(&server.bin);
            drive::restore(&kept, &target, Selection::all(), false)
                .await
                .unwrap_or_else(|e| panic!("{format:?}: {}", e.chain()));
            for database in ["one", "Zwei ü/2", "postgres"] {
                assert_eq!(other.plain_dump(database), server.plain_dump(database));
            }
            assert_eq!(other.sql("one", "SHOW work_mem"), "9MB");
            assert_eq!(
                other
                    .sql("postgres", "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'one'"),
                "Ann B"
            );
            // What existed stays as it was; everything else is the same.
            assert_eq!(
                other.sql("postgres", "SELECT rolcanlogin FROM pg_roles WHERE rolname = 'readers'"),
                "t"
            );
            other.sql("postgres", "ALTER ROLE readers NOLOGIN");
            assert_eq!(other.sql("postgres", ROLES), server.sql("postgres", ROLES));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_database_of_several_can_be_chosen() {
    let Some(major) = server::versions(&[15]).first().copied() else { return };
    let server = filled(major);
    let source = PgDump::connect(server.url("postgres")).unwrap().databases(["one", "Zwei ü/2"]);
    let kept = drive::backup(&source).await.unwrap();
    let target = PgRestore::database(server.url("postgres"), "copy").unwrap();
    let error = drive::restore(&kept, &target, Selection::all(), false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.chain().contains("from_database"), "{}", error.chain());
    drive::restore(&kept, &target.from_database("Zwei ü/2"), Selection::all(), false)
        .await
        .unwrap_or_else(|e| panic!("{}", e.chain()));
    assert_eq!(server.plain_dump("copy"), server.plain_dump("Zwei ü/2"));
}
