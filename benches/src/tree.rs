//! The tree that `compare fs` backs up: many small text files, some that do not compress, a few large logs.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::Path;

/// Numbers without a pattern, the same in every run (xorshift64).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Begins at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        u64::try_from((u128::from(self.number()) * u128::from(limit)) >> 64).unwrap_or(0)
    }
}

const WORDS: [&str; 48] = [
    "backup", "restore", "chapter", "reader", "library", "the", "of", "and", "in", "to", "a", "is", "that",
    "for", "it", "as", "was", "with", "be", "by", "on", "not", "he", "his", "but", "at", "are", "this",
    "have", "from", "which", "one", "had", "were", "her", "all", "she", "there", "would", "their",
    "manifest", "segment", "archive", "light", "river", "winter", "garden", "window",
];

/// Writes about `bytes` bytes below `root`: `files` small text files and four logs that together make four fifths,
/// and 200 incompressible files the rest.
///
/// # Errors
///
/// Those of the file system.
pub fn make(root: &Path, bytes: u64, files: u64) -> io::Result<()> {
    let mut random = Random::new(20_261_120);
    let small = bytes * 2 / 5 / files.max(1);
    for n in 0..files {
        let directory = root.join(format!("books/{:03}", n / 100));
        if n % 100 == 0 {
            fs::create_dir_all(&directory)?;
        }
        let mut file = BufWriter::new(File::create(directory.join(format!("chapter-{n:05}.txt")))?);
        // Sizes spread from half to one and a half times the average.
        text(&mut file, small / 2 + random.below(small.max(1)), &mut random)?;
        file.flush()?;
    }
    fs::create_dir_all(root.join("images"))?;
    for n in 0..200 {
        let mut file = BufWriter::new(File::create(root.join(format!("images/cover-{n:03}.jpg")))?);
        for _ in 0..bytes / 5 / 200 / 8 {
            file.write_all(&random.number().to_le_bytes())?;
        }
        file.flush()?;
    }
    fs::create_dir_all(root.join("logs"))?;
    for n in 0..4 {
        let mut file = BufWriter::new(File::create(root.join(format!("logs/access-{n}.log")))?);
        log(&mut file, bytes * 2 / 5 / 4, &mut random)?;
        file.flush()?;
    }
    Ok(())
}

/// Adds a line of words and numbers, without a line feed.
pub fn words(line: &mut String, random: &mut Random) {
    for _ in 0..8 + random.below(10) {
        // Common words come more often, as they do in a language.
        let word = random.below(48).min(random.below(48));
        line.push_str(WORDS[usize::try_from(word).unwrap_or(0)]);
        line.push(if random.below(12) == 0 { ',' } else { ' ' });
        if random.below(9) == 0 {
            line.push_str(&random.below(10_000).to_string());
            line.push(' ');
        }
    }
}

fn text(out: &mut impl io::Write, bytes: u64, random: &mut Random) -> io::Result<()> {
    let (mut written, mut line) = (0, String::new());
    while written < bytes {
        line.clear();
        words(&mut line, random);
        line.push('\n');
        out.write_all(line.as_bytes())?;
        written += line.len() as u64;
    }
    Ok(())
}

fn log(out: &mut impl io::Write, bytes: u64, random: &mut Random) -> io::Result<()> {
    let (mut written, mut line, mut clock) = (0, Vec::new(), 1_763_600_000_u64);
    while written < bytes {
        clock += random.below(3);
        line.clear();
        writeln!(
            line,
            "10.{}.{}.{} - - [{clock}] \"GET /api/v1/books/{}/chapters/{} HTTP/1.1\" {} {} \"{:016x}\"",
            random.below(4),
            random.below(256),
            random.below(256),
            random.below(50_000),
            random.below(60),
            [200, 200, 200, 304, 404, 500][usize::try_from(random.below(6)).unwrap_or(0)],
            random.below(100_000),
            random.number()
        )?;
        out.write_all(&line)?;
        written += line.len() as u64;
    }
    Ok(())
}
