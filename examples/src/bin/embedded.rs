//! A service that keeps its own data safe: it takes notes, backs the directory of notes up on a timer, and shows what it has.
//!
//! `cargo run --release --bin embedded -- DATA BACKUPS [--listen ADDRESS] [--every SECONDS]`
//!
//! * `PUT /notes/{name}` stores a note, `GET /notes/{name}` returns it.
//! * `GET /backups`: the newest backups as JSON, newest first.
//! * `GET /health`: 200 while the newest backup is young enough, else 503, with the reason.
//!
//! Ctrl-C or SIGTERM ends it: a backup under way stops cleanly and leaves nothing behind.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "this program talks to a person and to a log")]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Path as Name, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use backup_core::{BackupSummary, CancellationToken, ErrorKind, Event, KeepLast, Repository, Zstd};
use backup_fs::{DirectorySource, LocalSink};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

const SET: &str = "embedded/notes";
/// Backups that are kept, and that `/backups` shows.
const KEPT: usize = 24;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

/// What the command line asks for.
struct Options {
    data: PathBuf,
    backups: PathBuf,
    listen: String,
    every: Duration,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Fallible<Self> {
        let mut directory = || {
            words
                .next()
                .map(PathBuf::from)
                .ok_or("usage: embedded DATA BACKUPS [--listen ADDRESS] [--every SECONDS]")
        };
        let (data, backups) = (directory()?, directory()?);
        let mut options =
            Self { data, backups, listen: "127.0.0.1:8080".to_owned(), every: Duration::from_secs(3600) };
        while let Some(word) = words.next() {
            let value = words.next().ok_or(format!("{word} needs a value"))?;
            match word.as_str() {
                "--listen" => options.listen = value,
                "--every" => options.every = Duration::from_secs(value.parse::<u64>()?.max(1)),
                other => return Err(format!("unknown option {other}").into()),
            }
        }
        Ok(options)
    }
}

/// What the handlers and the timer share.
struct Service {
    repo: Repository,
    data: PathBuf,
    every: Duration,
    /// Why the last backup or prune failed, if it did.
    trouble: Mutex<Option<String>>,
}

#[tokio::main]
async fn main() -> Fallible<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    std::fs::create_dir_all(&options.data)?;
    let service = Arc::new(Service {
        repo: Repository::builder()
            .sink(sink(&options.backups)?)
            .transform(Zstd::default())
            .observer(log)
            .build()?,
        data: options.data,
        every: options.every,
        trouble: Mutex::default(),
    });
    let shutdown = CancellationToken::new();
    let timer = tokio::spawn(back_up_for_ever(Arc::clone(&service), shutdown.clone()));

    let app = Router::new()
        .route("/notes/{name}", get(note).put(take_note))
        .route("/backups", get(backups))
        .route("/health", get(health))
        .with_state(service);
    let listener = tokio::net::TcpListener::bind(&options.listen).await?;
    println!("listening on {}", listener.local_addr()?);
    axum::serve(listener, app).with_graceful_shutdown(stop_signal(shutdown)?).await?;
    timer.await?;
    Ok(())
}

/// The directory of backups, made if it is not there. One that is there must be a sink already: a disk that is not mounted
/// is an error and not an empty place to begin in.
fn sink(path: &Path) -> backup_core::Result<LocalSink> {
    if path.exists() { LocalSink::open(path) } else { LocalSink::init(path) }
}

/// Completes when the process is told to end, and tells the timer.
fn stop_signal(shutdown: CancellationToken) -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        shutdown.cancel();
    })
}

/// A backup now and then every so often, and a prune after each.
async fn back_up_for_ever(service: Arc<Service>, shutdown: CancellationToken) {
    let source = DirectorySource::new(&service.data);
    let mut timer = tokio::time::interval(service.every);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = timer.tick() => {}
        }
        let result = async {
            let stop = shutdown.clone().cancelled_owned();
            service.repo.backup(SET, &source).incremental().run_until(stop).await?;
            service.repo.prune(SET, &KeepLast::new(KEPT)).await?.into_result()
        };
        let trouble = result.await.err().filter(|error| error.kind() != ErrorKind::Cancelled);
        *service.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble.map(|error| error.chain());
    }
}

/// A log line for what matters. A service with `tracing` or metrics would feed them here.
fn log(event: &Event<'_>) {
    match event {
        Event::Finished { verb, set, id, error: None, elapsed } => {
            eprintln!("{verb} {set}/{id}: done in {elapsed:.1?}");
        }
        Event::Finished { verb, set, id, error: Some(error), .. } => {
            eprintln!("{verb} {set}/{id}: failed: {}", error.chain());
        }
        Event::SinkFailed { sink, error } => eprintln!("sink {sink} failed: {}", error.chain()),
        Event::Warning(warning) => eprintln!("warning {}: {}", warning.code, warning.message),
        Event::Deleted { set, id, freed, .. } => eprintln!("deleted {set}/{id}: {freed} bytes"),
        _ => {}
    }
}

/// An answer that is an error, in words.
type Refusal = (StatusCode, String);

fn internal(error: impl std::fmt::Display) -> Refusal {
    (StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

async fn backups(State(service): State<Arc<Service>>) -> Result<Json<Vec<BackupSummary>>, Refusal> {
    let list = service.repo.backups(SET).await.map_err(|error| internal(error.chain()))?;
    Ok(Json(list.into_iter().take(KEPT).collect()))
}

async fn health(State(service): State<Arc<Service>>) -> (StatusCode, Json<Value>) {
    let trouble = service.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let newest = match service.repo.backups(SET).await {
        Ok(list) => list.first().filter(|backup| !backup.degraded).map(|backup| backup.started),
        Err(error) => {
            return (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "ok": false, "trouble": error.chain() })));
        }
    };
    // A backup may be late by as long as one interval before somebody has to look.
    let age = newest.and_then(|time| (chrono::Utc::now() - time).to_std().ok());
    let ok = trouble.is_none() && age.is_some_and(|age| age < service.every * 2);
    let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ok": ok, "newest": newest, "trouble": trouble })))
}

/// Where a note lies. Only plain names, so that none leads elsewhere.
fn place(service: &Service, name: &str) -> Result<PathBuf, Refusal> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if name.len() > 100 || !name.bytes().all(plain) {
        return Err((StatusCode::BAD_REQUEST, "a name has letters, digits, `-` and `_`".to_owned()));
    }
    Ok(service.data.join(format!("{name}.txt")))
}

async fn note(State(service): State<Arc<Service>>, Name(name): Name<String>) -> Result<String, Refusal> {
    tokio::fs::read_to_string(place(&service, &name)?).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => (StatusCode::NOT_FOUND, "there is no such note".to_owned()),
        _ => internal(error),
    })
}

async fn take_note(
    State(service): State<Arc<Service>>,
    Name(name): Name<String>,
    text: String,
) -> Result<(), Refusal> {
    tokio::fs::write(place(&service, &name)?, text).await.map_err(internal)
}
