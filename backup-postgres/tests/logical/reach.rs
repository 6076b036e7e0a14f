//! Ways to reach a server: TLS with a private authority, and programs that run elsewhere. No password in an argument.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use backup_core::{Selection, Source as _};
use backup_postgres::{DumpFormat, PgConfig, PgDump, PgRestore};

use super::server::{Server, give_to_server};
use super::{drive, server};

/// Makes an authority `<name>.pem`, and a certificate for `localhost` of it in `server.pem`.
fn certificates(dir: &Path, name: &str) {
    let script = format!(
        "exec 2>/dev/null; key='-nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1'
         openssl req -x509 $key -keyout {name}.key -out {name}.pem -subj /CN={name} -days 2
         openssl req $key -keyout server.key -out server.csr -subj /CN=localhost
         printf 'subjectAltName=DNS:localhost' > names
         openssl x509 -req -in server.csr -CA {name}.pem -CAkey {name}.key -CAcreateserial -days 2 -extfile names -out server.pem"
    );
    let status = Command::new("bash").args(["-e", "-c", &script]).current_dir(dir).status().unwrap();
    assert!(status.success(), "openssl failed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_checked_as_libpq_checks_it() {
    if server::versions(&[15]).is_empty() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path(), "stranger");
    certificates(dir.path(), "authority");
    let key = dir.path().join("server.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    give_to_server(&key);
    give_to_server(dir.path());
    let place = dir.path().display();
    let settings = [
        "ssl=on".to_owned(),
        format!("ssl_cert_file={place}/server.pem"),
        format!("ssl_key_file={place}/server.key"),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let server = Server::start_with(15, &settings);
    server.sql(
        "postgres",
        "CREATE TABLE t AS SELECT i FROM generate_series(1, 1000) i;
         COPY (SELECT 'hostssl all all all trust') TO PROGRAM 'cat > pg_hba.conf'; SELECT pg_reload_conf()",
    );
    let url = |host: &str, rest: &str| format!("postgres://postgres@{host}:{}/postgres?{rest}", server.port);
    let root = |name: &str| format!("sslrootcert={place}/{name}.pem");

    let trusted = [
        ("127.0.0.1", "sslmode=require".to_owned()),
        ("127.0.0.1", "sslmode=prefer".to_owned()),
        ("127.0.0.1", format!("sslmode=verify-ca&{}", root("authority"))),
        ("localhost", format!("sslmode=verify-full&{}", root("authority"))),
    ];
    for (host, rest) in &trusted {
        for format in [DumpFormat::Custom, DumpFormat::Parallel] {
            let source = PgDump::connect(url(host, rest)).unwrap().format(format).pg_dump(&server.bin);
            let kept = drive::backup(&source).await.unwrap_or_else(|e| panic!("{rest}: {}", e.chain()));
            let target = PgRestore::database(url(host, rest), "copy").unwrap();
            drive::restore(&kept, &target, Selection::all(), false).await.unwrap();
            assert_eq!(server.sql("copy", "SELECT count(*) FROM t"), "1000");
            server.sql("postgres", "DROP DATABASE copy");
        }
    }
    let refused = [
        ("127.0.0.1", "sslmode=disable".to_owned()),
        // Another authority, and another host than the certificate is for.
        ("localhost", format!("sslmode=verify-ca&{}", root("stranger"))),
        ("localhost", format!("sslmode=verify-full&{}", root("stranger"))),
        ("127.0.0.1", format!("sslmode=verify-full&{}", root("authority"))),
        ("localhost", "sslmode=verify-full&sslrootcert=system".to_owned()),
    ];
    for (host, rest) in &refused {
        let began = Instant::now();
        let checked = PgDump::connect(url(host, rest)).unwrap().check().await;
        assert!(checked.is_err(), "{host} {rest} was believed");
        assert!(began.elapsed() < Duration::from_secs(10), "{rest}: waited for what cannot come");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_run_through_a_prefix_and_never_see_the_password_as_an_argument() {
    let Some(server) = server::versions(&[15]).first().map(|major| Server::start(*major)) else { return };
    server.sql("postgres", "CREATE TABLE t AS SELECT i FROM generate_series(1, 1000) i");
    let dir = tempfile::tempdir().unwrap();
    let (prefix, log) = (dir.path().join("elsewhere"), dir.path().join("log"));
    let script = format!("#!/bin/sh\necho \"$PGPASSWORD:$*\" >> '{}'\nexec \"$@\"\n", log.display());
    std::fs::write(&prefix, script).unwrap();
    std::fs::set_permissions(&prefix, std::fs::Permissions::from_mode(0o755)).unwrap();
    let config = server.config("postgres").with_password("secret-word");
    let inside = format!("postgres://postgres@localhost:{}/?sslmode=disable", server.port);
    for format in [DumpFormat::Custom, DumpFormat::Plain, DumpFormat::Parallel] {
        std::fs::write(&log, "").unwrap();
        let source = PgDump::new(config.clone())
            .format(format)
            .pg_dump(&server.bin)
            .command_prefix([prefix.display().to_string()])
            .programs_connect_to(PgConfig::parse(&inside).unwrap().with_password("secret-word"));
        let kept = drive::backup(&source).await.unwrap_or_else(|e| panic!("{}", e.chain()));
        assert_eq!(kept.report.proofs["public.t"].count, 1000);
        let log = std::fs::read_to_string(&log).unwrap();
        let runs: Vec<&str> = log.lines().filter(|l| !l.ends_with("--version")).collect();
        assert!(!runs.is_empty());
        for run in runs {
            let (password, arguments) = run.split_once(':').unwrap();
            assert_eq!(password, "secret-word");
            assert!(!arguments.contains("secret-word"), "{arguments}");
            assert!(arguments.contains("PGHOST=localhost") && arguments.contains("PGDATABASE=postgres"));
        }
    }
}
