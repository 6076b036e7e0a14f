//! libpq's pass-file: lines of `host:port:database:user:password`, `*` for any, `\` before `:` and `\`.
//! Source: PostgreSQL documentation, "The Password File".

use std::path::PathBuf;

/// The password of the first line that matches. A file that others can read is ignored, as libpq does.
pub(super) fn lookup(host: &str, port: u16, database: &str, user: &str) -> Option<String> {
    let path = std::env::var_os("PGPASSFILE")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".pgpass")))?;
    let metadata = std::fs::metadata(&path).ok()?;
    if !metadata.is_file() || is_open_to_others(&metadata) {
        return None;
    }
    find(&std::fs::read_to_string(&path).ok()?, host, port, database, user)
}

#[cfg(unix)]
fn is_open_to_others(metadata: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    metadata.permissions().mode() & 0o077 != 0
}

#[cfg(not(unix))]
fn is_open_to_others(_: &std::fs::Metadata) -> bool {
    false
}

fn find(text: &str, host: &str, port: u16, database: &str, user: &str) -> Option<String> {
    // A Unix socket directory matches `localhost`.
    let host = if host.starts_with('/') { "localhost" } else { host };
    let port = port.to_string();
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut fields = split(line);
        if fields.len() != 5 {
            return None;
        }
        let password = fields.pop()?;
        let wanted = [host, &port, database, user];
        fields.iter().zip(wanted).all(|(field, wanted)| field == "*" || field == wanted).then_some(password)
    })
}

fn split(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        let taken = match c {
            '\\' => chars.next(),
            ':' if fields.len() < 5 => {
                fields.push(String::new());
                None
            }
            c => Some(c),
        };
        if let (Some(c), Some(last)) = (taken, fields.last_mut()) {
            last.push(c);
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::find;

    #[test]
    fn the_first_matching_line_gives_the_password() {
        let file = "# comment\nother:*:*:*:no\n*:5432:books:bob:a\\:b\\\\c\n*:*:*:*:last";
        assert_eq!(find(file, "h", 5432, "books", "bob").as_deref(), Some("a:b\\c"));
        assert_eq!(find(file, "h", 5433, "books", "bob").as_deref(), Some("last"));
        assert_eq!(find("a:b", "h", 1, "d", "u"), None);
    }
}
