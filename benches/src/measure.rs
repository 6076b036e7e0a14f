//! Running a pipeline of processes and measuring what it costs.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// What a pipeline cost.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Seconds from start to the last exit.
    pub wall: f64,
    /// Seconds of processor time, user and system, of all processes.
    pub cpu: f64,
    /// Sum of the processes' peak resident sizes, in bytes.
    pub rss: u64,
}

/// Quotes a word for the shell.
pub fn quote(word: impl AsRef<Path>) -> String {
    format!("'{}'", word.as_ref().display().to_string().replace('\'', r"'\''"))
}

/// Runs `stages` joined by pipes, each under GNU `time`, and fails when any of them does.
///
/// # Errors
///
/// Says which command failed.
pub fn pipeline(scratch: &Path, stages: &[String]) -> Result<Cost, Box<dyn std::error::Error>> {
    let logs: Vec<_> = (0..stages.len()).map(|n| scratch.join(format!("time-{n}"))).collect();
    let timed: Vec<String> = stages
        .iter()
        .zip(&logs)
        .map(|(stage, log)| format!("env time -q -f '%U %S %M' -o {} {stage}", quote(log)))
        .collect();
    let script = format!("set -euo pipefail; {}", timed.join(" | "));
    let start = Instant::now();
    let output = Command::new("bash").arg("-c").arg(&script).stdin(Stdio::null()).output()?;
    let wall = start.elapsed().as_secs_f64();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(format!("`{}` failed: {stderr}", stages.join(" | ")).into());
    }
    let (mut cpu, mut rss) = (0.0, 0);
    for log in logs {
        let text = fs::read_to_string(&log)?;
        let mut words = text.split_whitespace();
        let mut number =
            || words.next().and_then(|w| w.parse::<f64>().ok()).ok_or("GNU time printed something else");
        cpu += number()? + number()?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "kibibytes, printed whole"
        )]
        let peak = number()? as u64 * 1024;
        rss += peak;
    }
    Ok(Cost { wall, cpu, rss })
}

/// The run with the median wall time.
pub fn median(mut costs: Vec<Cost>) -> Option<Cost> {
    costs.sort_by(|a, b| a.wall.total_cmp(&b.wall));
    let middle = costs.len() / 2;
    costs.get(middle).copied()
}
