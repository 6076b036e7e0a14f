//! Replacing a database, and tables in one that is in use.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::server::Server;
use super::{drive, server};
use backup_core::{ErrorKind, Selection};
use backup_postgres::{DumpFormat, PgDump, PgRestore};

const FORMATS: [DumpFormat; 3] = [DumpFormat::Custom, DumpFormat::Plain, DumpFormat::Parallel];

fn server() -> Option<Server> {
    server::versions(&[15]).first().map(|major| Server::start(*major))
}

fn shop(server: &Server) {
    server.sql("postgres", "CREATE ROLE app LOGIN; CREATE ROLE other LOGIN; CREATE DATABASE shop OWNER app");
    server.sql(
        "postgres",
        "ALTER DATABASE shop SET work_mem = '7MB'; ALTER DATABASE shop SET search_path TO app, \"$user\", public;
         ALTER ROLE other IN DATABASE shop SET statement_timeout = '9s'; REVOKE CONNECT ON DATABASE shop FROM PUBLIC;
         GRANT CONNECT ON DATABASE shop TO other WITH GRANT OPTION; ALTER DATABASE shop CONNECTION LIMIT 33;
         COMMENT ON DATABASE shop IS 'the shop';",
    );
    server.sql(
        "shop",
        "CREATE TABLE customers (id serial PRIMARY KEY, name text UNIQUE);
         CREATE TABLE orders (id serial PRIMARY KEY, customer int NOT NULL REFERENCES customers ON DELETE CASCADE, note text);
         INSERT INTO customers (name) SELECT 'c' || i FROM generate_series(1, 100) i;
         INSERT INTO orders (customer, note) SELECT 1 + i % 100, 'o' || i FROM generate_series(1, 300) i;
         CREATE VIEW named AS SELECT o.id, c.name FROM orders o JOIN customers c ON c.id = o.customer;
         CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'a trigger fired'; END $$;
         CREATE TRIGGER log BEFORE DELETE OR TRUNCATE ON customers EXECUTE FUNCTION log();",
    );
}

fn url_with(server: &Server, application: &str) -> String {
    server.url("shop").replace('?', &format!("?application_name={application}&"))
}

fn properties(server: &Server) -> String {
    server.sql(
        "postgres",
        "SELECT pg_get_userbyid(datdba), encoding, datcollate, datctype, datconnlimit, (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(datacl) a),
           shobj_description(oid, 'pg_database'), datallowconn,
           (SELECT array_agg(setrole::regrole::text || setconfig::text ORDER BY setrole) FROM pg_db_role_setting
            WHERE setdatabase = d.oid)
         FROM pg_database d WHERE datname = 'shop'",
    )
}

fn databases(server: &Server) -> Vec<String> {
    let list = server.sql("postgres", "SELECT datname FROM pg_database WHERE NOT datistemplate ORDER BY 1");
    list.lines().map(ToOwned::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_database_keeps_its_properties_and_the_old_one_until_it_is_dropped() {
    let Some(server) = server() else { return };
    shop(&server);
    let before = properties(&server);
    for format in FORMATS {
        let kept = drive::backup(&PgDump::connect(server.url("shop")).unwrap().format(format)).await.unwrap();
        let good = server.plain_dump("shop");
        server.sql("shop", "UPDATE orders SET note = 'damaged'");

        let target = PgRestore::database(server.url("postgres"), "shop").unwrap();
        let refused = drive::restore(&kept, &target, Selection::all(), false).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::TargetNotEmpty);

        let (report, undo) = drive::restore(&kept, &target, Selection::all(), true)
            .await
            .unwrap_or_else(|e| panic!("{}", e.chain()));
        assert_eq!(server.plain_dump("shop"), good);
        assert_eq!(properties(&server), before);
        let old = report.old_kept_at.unwrap();
        assert_eq!(server.sql(&old, "SELECT DISTINCT note FROM orders"), "damaged");

        undo.unwrap().undo().await.unwrap();
        assert_eq!(server.sql("shop", "SELECT DISTINCT note FROM orders"), "damaged");
        assert_eq!(databases(&server), ["postgres", "shop"]);

        let (_, undo) = drive::restore(&kept, &target, Selection::all(), true).await.unwrap();
        undo.unwrap().drop_old().await.unwrap();
        assert_eq!(server.plain_dump("shop"), good);
        assert_eq!(databases(&server), ["postgres", "shop"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_database_takes_the_restored_one_without_being_asked() {
    let Some(server) = server() else { return };
    shop(&server);
    let kept = drive::backup(&PgDump::connect(server.url("shop")).unwrap()).await.unwrap();
    server.sql("postgres", "CREATE DATABASE fresh OWNER other; ALTER DATABASE fresh SET work_mem = '5MB'");
    let target = PgRestore::database(server.url("postgres"), "fresh").unwrap();
    let (_, undo) = drive::restore(&kept, &target, Selection::all(), false).await.unwrap();
    assert!(undo.is_none());
    assert_eq!(server.plain_dump("fresh"), server.plain_dump("shop"));
    assert_eq!(server.sql("fresh", "SHOW work_mem"), "5MB");
    assert_eq!(databases(&server), ["fresh", "postgres", "shop"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_in_the_way_are_named_and_ended_only_on_request() {
    let Some(server) = server() else { return };
    shop(&server);
    let kept = drive::backup(&PgDump::connect(server.url("shop")).unwrap()).await.unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let connected = Arc::new(AtomicU64::new(0));
    let url = url_with(&server, "passer-by");
    let client = {
        let (stop, connected) = (Arc::clone(&stop), Arc::clone(&connected));
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                if let Ok((client, connection)) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await {
                    let task = tokio::spawn(connection);
                    connected.fetch_add(1, Ordering::Relaxed);
                    let _ = client.batch_execute("SELECT pg_sleep(0.5)").await;
                    task.abort();
                } else {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            }
        })
    };
    while connected.load(Ordering::Relaxed) == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }

    let target = PgRestore::database(server.url("postgres"), "shop").unwrap();
    let steady = url_with(&server, "shopkeeper");
    let (steady, connection) = tokio_postgres::connect(&steady, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let refused = drive::restore(&kept, &target, Selection::all(), true).await.unwrap_err();
    steady.batch_execute("SELECT 1").await.unwrap();
    assert!(refused.chain().contains("shopkeeper"), "{}", refused.chain());
    assert!(refused.chain().contains("disconnect_others"), "{}", refused.chain());

    let oid = server.sql("postgres", "SELECT oid FROM pg_database WHERE datname = 'shop'");
    let (_, undo) = drive::restore(&kept, &target.disconnect_others(), Selection::all(), true)
        .await
        .unwrap_or_else(|e| panic!("{}", e.chain()));
    assert_ne!(server.sql("postgres", "SELECT oid FROM pg_database WHERE datname = 'shop'"), oid);
    let before = connected.load(Ordering::Relaxed);
    while connected.load(Ordering::Relaxed) == before {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    stop.store(true, Ordering::Relaxed);
    client.await.unwrap();
    undo.unwrap().drop_old().await.unwrap();
    assert_eq!(databases(&server), ["postgres", "shop"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_proof_leaves_everything_as_it_was() {
    let Some(server) = server() else { return };
    shop(&server);
    for format in FORMATS {
        let mut kept =
            drive::backup(&PgDump::connect(server.url("shop")).unwrap().format(format)).await.unwrap();
        kept.report.proofs.get_mut("public.orders").unwrap().sum[0] ^= 1;
        for item in &mut kept.items {
            if item.path.to_string() == "public.orders" {
                item.proof.as_mut().unwrap().proof.sum[0] ^= 1;
            }
        }
        let before = (databases(&server), server.plain_dump("shop"));
        let target = PgRestore::database(server.url("postgres"), "shop").unwrap();
        let error = drive::restore(&kept, &target, Selection::all(), true).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ProofMismatch);
        assert_eq!((databases(&server), server.plain_dump("shop")), before);
        let target = PgRestore::tables(server.url("shop")).unwrap();
        let only = Selection::globs(["public.orders"]).unwrap();
        let error = drive::restore(&kept, &target, only, true).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ProofMismatch, "{}", error.chain());
        assert_eq!((databases(&server), server.plain_dump("shop")), before);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_changed_by_hand_breaks_the_proof() {
    let Some(server) = server() else { return };
    shop(&server);
    let before = (databases(&server), server.plain_dump("shop"));
    for format in FORMATS {
        let kept = drive::backup(&PgDump::connect(server.url("shop")).unwrap().format(format)).await.unwrap();
        for change in [
            "UPDATE orders SET note = note || ' ' WHERE id = 7",
            "DELETE FROM orders WHERE id = 7",
            "INSERT INTO orders (id, customer, note) SELECT 1000, customer, note FROM orders WHERE id = 8",
            "SELECT setval('orders_id_seq', 301)",
        ] {
            let meddle = || {
                let staged = databases(&server).into_iter().find(|d| d.starts_with("shop_restoring_"));
                server.sql(&staged.unwrap(), change);
            };
            let target = PgRestore::database(server.url("postgres"), "shop").unwrap();
            let error = drive::restore_meddled_with(&kept, &target, Selection::all(), true, meddle)
                .await
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ProofMismatch, "{format:?} {change}: {}", error.chain());
            assert_eq!((databases(&server), server.plain_dump("shop")), before);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_table_is_replaced_without_losing_rows_that_refer_to_it() {
    let Some(server) = server() else { return };
    shop(&server);
    for format in FORMATS {
        let kept = drive::backup(&PgDump::connect(server.url("shop")).unwrap().format(format)).await.unwrap();
        let good = server.plain_dump("shop");
        server.sql("shop", "UPDATE customers SET name = 'damaged ' || id");
        let damaged = server.plain_dump("shop");
        let only = Selection::globs(["public.customers"]).unwrap();
        let target = PgRestore::tables(server.url("shop")).unwrap();

        let (report, undo) = drive::restore(&kept, &target, only.clone(), true)
            .await
            .unwrap_or_else(|e| panic!("{}", e.chain()));
        assert_eq!(server.sql("shop", "SELECT count(*) FROM orders"), "300");
        assert_eq!(server.sql("shop", "SELECT count(*) FROM named WHERE name LIKE 'c%'"), "300");
        let old = report.old_kept_at.unwrap();
        assert_eq!(
            server.sql("shop", &format!("SELECT count(*) FROM {old}.customers WHERE name LIKE 'damaged%'")),
            "100"
        );
        undo.unwrap().undo().await.unwrap();
        assert_eq!(server.plain_dump("shop"), damaged);

        let (_, undo) = drive::restore(&kept, &target, only, true).await.unwrap();
        undo.unwrap().drop_old().await.unwrap();
        assert_eq!(server.plain_dump("shop"), good);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_would_lose_what_they_refer_to_stop_the_replacement() {
    let Some(server) = server() else { return };
    shop(&server);
    let kept = drive::backup(&PgDump::connect(server.url("shop")).unwrap()).await.unwrap();
    server
        .sql("shop", "INSERT INTO customers VALUES (500, 'new'); INSERT INTO orders (customer) VALUES (500)");
    let _before = server.plain_dump("shop");
    let target = PgRestore::tables(server.url("shop")).unwrap();
    let only = Selection::globs(["public.customers"]).unwrap();
    let error = drive::restore(&kept, &target, only, true).await.unwrap_err();
    assert!(error.chain().contains("orders_customer_fkey"), "{}", error.chain());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_go_into_a_schema_of_their_own_or_only_missing_rows_are_added() {
    let Some(server) = server() else { return };
    shop(&server);
    for format in FORMATS {
        let kept = drive::backup(&PgDump::connect(server.url("shop")).unwrap().format(format)).await.unwrap();
        let before = server.plain_dump("shop");
        let only = Selection::globs(["public.orders", "public.customers"]).unwrap();
        let target = PgRestore::tables(server.url("shop")).unwrap().side_schema("from backup");
        let (report, undo) = drive::restore(&kept, &target, only.clone(), false)
            .await
            .unwrap_or_else(|e| panic!("{}", e.chain()));
        assert!(undo.is_none());
        assert_eq!(report.details["schema"], "from backup");
        let same = "SELECT count(*) FROM (TABLE public.orders EXCEPT TABLE \"from backup\".orders) x";
        assert_eq!(server.sql("shop", same), "0");
        let parts = "SELECT count(*) FROM pg_class WHERE relnamespace = '\"from backup\"'::regnamespace";
        // Two tables, three keys, two sequences.
        assert_eq!(server.sql("shop", parts), "7");
        server.sql("shop", "DROP SCHEMA \"from backup\" CASCADE");
        assert_eq!(server.plain_dump("shop"), before);

        server.sql(
            "shop",
            "DELETE FROM orders WHERE id % 3 = 0; UPDATE orders SET note = 'newer' WHERE id = 1",
        );
        let target = PgRestore::tables(server.url("shop")).unwrap().insert_missing();
        let orders = Selection::globs(["public.orders"]).unwrap();
        let (report, _) =
            drive::restore(&kept, &target, orders, false).await.unwrap_or_else(|e| panic!("{}", e.chain()));
        assert_eq!(report.details["inserted"]["public.orders"], 100);
        assert_eq!(
            server.sql("shop", "SELECT count(*), min(note) FILTER (WHERE id = 1) FROM orders"),
            "300|newer"
        );
        server.sql("shop", "UPDATE orders SET note = 'o1' WHERE id = 1");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_gone_is_created_as_the_backup_has_it() {
    let Some(server) = server() else { return };
    shop(&server);
    for format in FORMATS {
        let kept = drive::backup(&PgDump::connect(server.url("shop")).unwrap().format(format)).await.unwrap();
        let definition =
            "SELECT string_agg(pg_get_constraintdef(oid), ',' ORDER BY conname) FROM pg_constraint
            WHERE conrelid = 'orders'::regclass";
        let before = server.sql("shop", definition);
        server.sql("shop", "DROP VIEW named; DROP TABLE orders");
        let target = PgRestore::tables(server.url("shop")).unwrap();
        let only = Selection::globs(["public.orders"]).unwrap();
        drive::restore(&kept, &target, only, true).await.unwrap_or_else(|e| panic!("{}", e.chain()));
        assert_eq!(server.sql("shop", definition), before);
        assert_eq!(server.sql("shop", "INSERT INTO orders (customer) VALUES (1) RETURNING id > 300"), "t");
        server.sql("shop", "DELETE FROM orders WHERE id > 300; CREATE VIEW named AS SELECT o.id, c.name FROM orders o JOIN customers c ON c.id = o.customer");
    }
}
