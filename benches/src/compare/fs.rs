//! A directory tree, beside `tar | compress | encrypt` and back.

use std::fs;
use std::path::{Path, PathBuf};

use backup_benches::measure::{Cost, median, pipeline, quote};
use backup_benches::tree;
use backup_core::{AesGcm, Gzip, Keyring, Repository, Zstd};
use backup_fs::{DirectorySource, DirectoryTarget, LocalSink};

use super::{Fallible, Options, Pair};

const SET: &str = "compare/fs";

/// A rival: how it backs a tree up into a file, and how it restores.
struct Rival {
    name: &'static str,
    chain: &'static str,
    pack: Vec<String>,
    unpack: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Fallible<Vec<Pair>> {
    let place = tempfile::tempdir()?;
    let tree = place.path().join("tree");
    fs::create_dir(&tree)?;
    println!("making a tree of {} MiB in {} files", options.size, options.files);
    tree::make(&tree, options.size << 20, options.files)?;
    fs::write(place.path().join("password"), "a password of some length\n")?;
    let key = place.path().join("key");
    fs::write(&key, [7; 32])?;
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    pipeline(place.path(), &[format!("age-keygen -o {}", quote(place.path().join("identity")))])?;
    pipeline(place.path(), &["sync".to_owned()])?;

    let mut pairs = Vec::new();
    for rival in rivals(place.path()) {
        pairs.extend(Bench { place: place.path(), tree: &tree, options, rival }.run()?);
    }
    Ok(pairs)
}

fn rivals(place: &Path) -> Vec<Rival> {
    let password = format!("-pbkdf2 -pass file:{}", quote(place.join("password")));
    let encrypt = format!("openssl enc -aes-256-cbc {password}");
    let decrypt = format!("openssl enc -d -aes-256-cbc {password}");
    let identity = quote(place.join("identity"));
    let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    vec![
        Rival {
            name: "tar·gzip·openssl",
            chain: "gzip6+aes",
            pack: words(&["gzip -6", &encrypt]),
            unpack: words(&[&decrypt, "gzip -dc"]),
        },
        Rival {
            name: "tar·pigz·openssl",
            chain: "gzip6+aes",
            pack: words(&["pigz -6 -p2", &encrypt]),
            unpack: words(&[&decrypt, "pigz -dc -p2"]),
        },
        Rival {
            name: "tar·zstd·age",
            chain: "zstd3+aes",
            pack: words(&["zstd -3 -T0 -q -c", &format!("age --encrypt --identity {identity}")]),
            unpack: words(&[&format!("age --decrypt --identity {identity}"), "zstd -dc -q"]),
        },
    ]
}

struct Bench<'a> {
    place: &'a Path,
    tree: &'a Path,
    options: &'a Options,
    rival: Rival,
}

impl Bench<'_> {
    fn run(&self) -> Fallible<Vec<Pair>> {
        let (mut ours, mut theirs, mut ours_back, mut theirs_back) = (vec![], vec![], vec![], vec![]);
        let (mut size, mut rival_size) = (0, 0);
        for _ in 0..self.options.runs {
            let repository = self.place.join("repository");
            ours.push(self.worker("backup", &repository)?);
            size = size_below(&repository)?;
            let archive = self.place.join("archive");
            theirs.push(self.pack(&archive)?);
            rival_size = fs::metadata(&archive)?.len();

            let (back, rival_back) = (self.place.join("back"), self.place.join("rival-back"));
            ours_back.push(self.worker("restore", &repository)?);
            fs::create_dir(&rival_back)?;
            theirs_back.push(self.unpack(&archive, &rival_back)?);
            for restored in [&back, &rival_back] {
                let same = format!("diff -r --no-dereference {} {}", quote(self.tree), quote(restored));
                pipeline(self.place, &[same])?;
                fs::remove_dir_all(restored)?;
            }
            fs::remove_dir_all(&repository)?;
            fs::remove_file(&archive)?;
            pipeline(self.place, &["sync".to_owned()])?;
        }
        let pair = |verb, ours, theirs| -> Fallible<Pair> {
            let pair = Pair {
                store: "fs",
                verb,
                ours: self.rival.chain.to_owned(),
                rival: self.rival.name.to_owned(),
                cost: median(ours).ok_or("no run")?,
                rival_cost: median(theirs).ok_or("no run")?,
                size,
                rival_size,
            };
            pair.print();
            Ok(pair)
        };
        Ok(vec![pair("backup", ours, theirs)?, pair("restore", ours_back, theirs_back)?])
    }

    /// Runs this program again as a process of its own, so that it is measured as the rivals are.
    fn worker(&self, verb: &str, repository: &Path) -> Fallible<Cost> {
        let program = quote(std::env::current_exe()?);
        let (key, tree, back) = (self.place.join("key"), self.tree, self.place.join("back"));
        let paths: Vec<_> = [key.as_path(), repository, tree, &back].iter().map(quote).collect();
        let command = format!("{program} --worker {verb} {} {}", self.rival.chain, paths.join(" "));
        pipeline(self.place, &[command])
    }

    fn pack(&self, archive: &Path) -> Fallible<Cost> {
        let mut stages = vec![format!("tar -C {} -cf - .", quote(self.tree))];
        stages.extend(self.rival.pack.iter().cloned());
        stages.push(format!("dd of={} bs=1M iflag=fullblock conv=fsync status=none", quote(archive)));
        pipeline(self.place, &stages)
    }

    fn unpack(&self, archive: &Path, into: &Path) -> Fallible<Cost> {
        let mut stages = self.rival.unpack.clone();
        if let Some(first) = stages.first_mut() {
            first.push_str(&format!(" < {}", quote(archive)));
        }
        stages.push(format!("tar -C {} -xpf -", quote(into)));
        let mut cost = pipeline(self.place, &stages)?;
        let durable = pipeline(self.place, &[format!("sync -f {}", quote(into))])?;
        cost.wall += durable.wall;
        cost.cpu += durable.cpu;
        Ok(cost)
    }
}

pub(crate) fn size_below(root: &Path) -> Fallible<u64> {
    let mut size = 0;
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        size += if metadata.is_dir() { size_below(&entry.path())? } else { metadata.len() };
    }
    Ok(size)
}

/// `--worker <backup|restore> <chain> <key> <repository> <tree> <restored>`, or `--worker tree <directory> <MiB> <files>`
/// to make only the tree, for profiling one side by hand.
pub(crate) fn worker(words: &[String]) -> Fallible<()> {
    if let [verb, directory, size, files] = words
        && verb == "tree"
    {
        return Ok(tree::make(Path::new(directory), size.parse::<u64>()? << 20, files.parse()?)?);
    }
    let [verb, chain, key, repository, tree, back] = words else {
        return Err("a worker takes six words".into());
    };
    let sink = if verb == "backup" { LocalSink::init(repository)? } else { LocalSink::open(repository)? };
    let builder = Repository::builder().sink(sink);
    let builder = match chain.as_str() {
        "gzip6+aes" => builder.transform(Gzip::default()),
        _ => builder.transform(Zstd::default()),
    };
    let repository = builder.transform(AesGcm::new(Keyring::from_key_file(PathBuf::from(key))?)).build()?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        if verb == "backup" {
            repository.backup(SET, &DirectorySource::new(tree)).await?;
        } else {
            repository.restore(SET).latest().into(&DirectoryTarget::new(back)).await?;
        }
        Ok(())
    })
}
