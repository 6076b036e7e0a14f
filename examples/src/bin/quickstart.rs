//! The main job in one program, without any server: back a directory up, encrypted, to two places; lose a part of
//! one; notice it; restore everything from the other.
//!
//! `cargo run --release --bin quickstart`
#![expect(clippy::print_stdout, reason = "this program talks to a person")]

use std::fs;
use std::path::{Path, PathBuf};

use backup_core::{AesGcm, Event, Keyring, Repository, Result, Zstd};
use backup_fs::{DirectorySource, DirectoryTarget, LocalSink};

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let place = tempfile::tempdir()?;
    let site = place.path().join("site");
    let files = make_tree(&site)?;
    println!("1. made a small site of {files} files");

    // In a service the passphrase comes from a secret store or a file; see `Keyring::builder`.
    let keyring = Keyring::from_passphrase("correct horse battery staple")?;
    let repo = Repository::builder()
        .sink(LocalSink::init(place.path().join("disk-a"))?.named("disk-a"))
        .sink(LocalSink::init(place.path().join("disk-b"))?.named("disk-b"))
        .require_copies(2)
        .require_encryption()
        .transform(Zstd::default())
        .transform(AesGcm::new(keyring))
        .build()?;

    let done =
        repo.backup("site/content", &DirectorySource::new(&site)).label("reason", "quickstart").await?;
    println!(
        "2. backup {}: {} items, {} bytes stored as {} encrypted bytes on each of {} sinks",
        done.id,
        done.items,
        done.plain_size,
        done.stored_size,
        done.copies.len()
    );

    let victim = largest_file(&place.path().join("disk-a"))?;
    flip_a_bit(&victim)?;
    println!("3. flipped one bit of {} on disk-a", victim.file_name().unwrap_or_default().display());

    let report = repo.verify("site/content", done.id).await?;
    for problem in &report.problems {
        println!("4. verify: {}: {}: {}", problem.sink, problem.object.file_name(), problem.error);
    }
    println!("5. verify: intact copies: {:?}", report.intact);

    let back = place.path().join("restored");
    let target = DirectoryTarget::new(&back);
    let outcome = repo
        .restore("site/content")
        .latest()
        .into(&target)
        .observer(|event: &Event<'_>| {
            if let Event::CopyDamaged { sink, .. } = event {
                println!("6. restore: {sink} has a damaged block, reading on from the other copy");
            }
        })
        .await?;
    println!("7. restored {} items and proved them equal to what was backed up", outcome.report.items);

    compare(&site, &back)?;
    println!("8. compared every file: the restored site is the original");

    let one = place.path().join("one-page");
    repo.restore("site/content")
        .latest()
        .into(&DirectoryTarget::new(&one))
        .only(["docs/page-007.mdx"])
        .await?;
    println!("9. and one page alone: {} bytes", fs::read(one.join("docs/page-007.mdx"))?.len());
    Ok(())
}

fn make_tree(root: &Path) -> Result<usize> {
    let io = |e| backup_core::Error::io("make tree", e);
    fs::create_dir_all(root.join("docs")).map_err(io)?;
    fs::create_dir_all(root.join("images")).map_err(io)?;
    fs::write(root.join("config.json"), r#"{ "title": "A small site" }"#).map_err(io)?;
    for n in 0..40 {
        let text =
            format!("# Page {n}\n\n{}\n", "Some words that a reader will miss if they are gone. ".repeat(50));
        fs::write(root.join(format!("docs/page-{n:03}.mdx")), text).map_err(io)?;
    }
    // A generator of numbers that do not compress stands in for an image.
    let mut state = 1_u32;
    let image: Vec<u8> = (0..3_000_000)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_le_bytes()[3]
        })
        .collect();
    fs::write(root.join("images/cover.jpg"), image).map_err(io)?;
    std::os::unix::fs::symlink("docs/page-000.mdx", root.join("index.mdx")).map_err(io)?;
    Ok(43)
}

fn files_below(root: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            files.extend(files_below(&path)?);
        } else {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn largest_file(root: &Path) -> std::result::Result<PathBuf, Box<dyn std::error::Error>> {
    let files = files_below(root)?;
    files.into_iter().max_by_key(|f| fs::metadata(f).map_or(0, |m| m.len())).ok_or_else(|| "no file".into())
}

fn flip_a_bit(file: &Path) -> std::io::Result<()> {
    let mut bytes = fs::read(file)?;
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 1;
    }
    fs::write(file, bytes)
}

fn compare(a: &Path, b: &Path) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let names = |root: &Path| -> std::io::Result<Vec<PathBuf>> {
        Ok(files_below(root)?.iter().filter_map(|f| f.strip_prefix(root).ok().map(Path::to_owned)).collect())
    };
    let (left, right) = (names(a)?, names(b)?);
    if left != right {
        return Err("the trees hold different names".into());
    }
    for name in left {
        if fs::read(a.join(&name))? != fs::read(b.join(&name))? {
            return Err(format!("{} differs", name.display()).into());
        }
    }
    Ok(())
}
