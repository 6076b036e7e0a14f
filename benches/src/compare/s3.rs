//! One large incompressible file to an S3 server and back, beside `aws s3 cp`.
//!
//! The server is s3s-fs (`BACKUP_TEST_S3S`, or in `PATH`), the rival `aws` (`BACKUP_TEST_AWS`, or in `PATH`); both come
//! from `BACKUP_TEST_COMPARE=1 scripts/servers`. Ours is a whole backup: one artifact with index and manifest, hashed
//! and proved, without compression or encryption, which the rival has not.

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use backup_benches::measure::{Cost, median, pipeline, quote};
use backup_benches::tree::Random;
use backup_core::Repository;
use backup_fs::{DirectorySource, DirectoryTarget};
use backup_s3::S3Sink;

use super::{Fallible, Options, Pair};

const SET: &str = "compare/s3";
const BUCKET: &str = "compare";
const KEY: &str = "compare-id";
const SECRET: &str = "compare-secret";

/// A server that ends with this value.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(root: &Path) -> Fallible<Self> {
        fs::create_dir_all(root.join(BUCKET))?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let program = std::env::var("BACKUP_TEST_S3S").unwrap_or_else(|_| "s3s-fs".to_owned());
        let child = Command::new(program)
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .args(["--access-key", KEY, "--secret-key", SECRET])
            .arg(root)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let server = Self { child, port };
        let limit = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if Instant::now() > limit {
                return Err("the S3 server does not start".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn run(options: &Options) -> Fallible<Vec<Pair>> {
    let place = tempfile::tempdir()?;
    let tree = place.path().join("tree");
    fs::create_dir(&tree)?;
    println!("making a file of {} MiB", options.size);
    let file = tree.join("file");
    incompressible(&file, options.size << 20)?;
    let root = place.path().join("server");
    let server = Server::start(&root)?;
    let aws = quote(std::env::var("BACKUP_TEST_AWS").unwrap_or_else(|_| "aws".to_owned()));
    let aws = format!(
        "env AWS_ACCESS_KEY_ID={KEY} AWS_SECRET_ACCESS_KEY={SECRET} AWS_DEFAULT_REGION=us-east-1 AWS_EC2_METADATA_DISABLED=true \
         {aws} --endpoint-url http://127.0.0.1:{} s3 cp --only-show-errors",
        server.port
    );

    let (mut ours, mut theirs, mut ours_back, mut theirs_back) = (vec![], vec![], vec![], vec![]);
    for _ in 0..options.runs {
        let rival = format!("s3://{BUCKET}/rival");
        ours.push(worker_process(place.path(), "backup", server.port, &tree)?);
        pipeline(place.path(), &["sync".to_owned()])?;
        theirs.push(pipeline(place.path(), &[format!("{aws} {} {rival}", quote(&file))])?);
        pipeline(place.path(), &["sync".to_owned()])?;

        let (back, rival_back) = (place.path().join("back"), place.path().join("rival-back"));
        ours_back.push(worker_process(place.path(), "restore", server.port, &back)?);
        theirs_back.push(fetched(
            place.path(),
            &format!("{aws} {rival} {}", quote(&rival_back)),
            &rival_back,
        )?);
        for restored in [back.join("file"), rival_back.clone()] {
            pipeline(place.path(), &[format!("cmp {} {}", quote(&file), quote(&restored))])?;
        }
        fs::remove_dir_all(&back)?;
        fs::remove_file(&rival_back)?;
        fs::remove_dir_all(root.join(BUCKET))?;
        fs::create_dir(root.join(BUCKET))?;
        pipeline(place.path(), &["sync".to_owned()])?;
    }
    let bytes = options.size << 20;
    let pair = |verb, ours, theirs| -> Fallible<Pair> {
        let pair = Pair {
            store: "s3",
            verb,
            ours: "stored".to_owned(),
            rival: "aws s3 cp".to_owned(),
            cost: median(ours).ok_or("no run")?,
            rival_cost: median(theirs).ok_or("no run")?,
            size: bytes,
            rival_size: bytes,
        };
        pair.print();
        Ok(pair)
    };
    Ok(vec![pair("backup", ours, theirs)?, pair("restore", ours_back, theirs_back)?])
}

/// A download that ends durable, as a restore of ours does.
fn fetched(scratch: &Path, command: &str, file: &Path) -> Fallible<Cost> {
    let mut cost = pipeline(scratch, &[command.to_owned()])?;
    let durable = pipeline(scratch, &[format!("sync -f {}", quote(file))])?;
    cost.wall += durable.wall;
    cost.cpu += durable.cpu;
    Ok(cost)
}

fn incompressible(file: &Path, bytes: u64) -> Fallible<()> {
    let mut random = Random::new(4);
    let mut out = std::io::BufWriter::with_capacity(1 << 20, fs::File::create(file)?);
    for _ in 0..bytes / 8 {
        out.write_all(&random.number().to_le_bytes())?;
    }
    out.into_inner()?.sync_all()?;
    Ok(())
}

/// Runs this program again as a process of its own, so that it is measured as the rival is.
fn worker_process(scratch: &Path, verb: &str, port: u16, directory: &Path) -> Fallible<Cost> {
    let program = quote(std::env::current_exe()?);
    pipeline(scratch, &[format!("{program} --s3-worker {verb} {port} {}", quote(directory))])
}

/// `--s3-worker <backup|restore> <port> <directory>`.
pub(crate) fn worker(words: &[String]) -> Fallible<()> {
    let [verb, port, directory] = words else { return Err("a worker takes three words".into()) };
    let sink = S3Sink::builder()
        .without_environment()
        .endpoint(format!("http://127.0.0.1:{port}"))
        .bucket(BUCKET)
        .credentials(KEY, SECRET)
        .build()?;
    let repository = Repository::builder().sink(sink).build()?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        if verb == "backup" {
            repository.backup(SET, &DirectorySource::new(directory)).await?;
        } else {
            repository.restore(SET).latest().into(&DirectoryTarget::new(directory)).await?;
        }
        Ok(())
    })
}
