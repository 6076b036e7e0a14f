//! How to reach a server: [`PgConfig`].

mod passfile;
mod tls;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use backup_core::{Error, Result};
use tokio_postgres::config::{Host, SslMode};

pub(crate) use tls::connector;

/// How the connection is encrypted, as libpq's `sslmode` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsMode {
    /// Never.
    Disable,
    /// If the server can; the certificate is not checked. The default, as with libpq.
    Prefer,
    /// Always; the certificate is checked only if a root certificate was given.
    Require,
    /// Always, with a certificate from a trusted authority.
    VerifyCa,
    /// Always, with a certificate from a trusted authority for this very host.
    VerifyFull,
}

impl TlsMode {
    fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

/// How to reach a PostgreSQL server: host, database, role, TLS.
///
/// ```
/// let config = backup_postgres::PgConfig::parse("postgres://backup@db.example:5432/books?sslmode=verify-full")?;
/// assert_eq!(config.database(), "books");
/// # Ok::<(), backup_core::Error>(())
/// ```
///
/// A password that is not in the URL is looked up in `PGPASSWORD` and in the pass-file (`PGPASSFILE`, or
/// `~/.pgpass`), as libpq does.
#[derive(Clone)]
pub struct PgConfig {
    driver: tokio_postgres::Config,
    database: String,
    tls: TlsMode,
    root_cert: Option<PathBuf>,
    client_cert: Option<(PathBuf, PathBuf)>,
    patience: Duration,
}

impl PgConfig {
    /// Reads a URL (`postgres://role:password@host:port/database?sslmode=…`) or a `key=value` string.
    ///
    /// Of libpq's TLS parameters `sslmode`, `sslrootcert` (a PEM file, or `system`), `sslcert` and `sslkey` are
    /// understood.
    pub fn parse(text: &str) -> Result<Self> {
        let (rest, taken) = take_tls(text)?;
        let mut driver: tokio_postgres::Config = rest.parse().map_err(|_| {
            // The driver's own error may quote a part of the URL, and so of the password.
            Error::invalid("read connection URL", "this is neither a postgres:// URL nor a key=value string")
        })?;
        let tls = match taken.mode.as_deref() {
            None | Some("prefer" | "allow") => TlsMode::Prefer,
            Some("disable") => TlsMode::Disable,
            Some("require") => TlsMode::Require,
            Some("verify-ca") => TlsMode::VerifyCa,
            Some("verify-full") => TlsMode::VerifyFull,
            Some(other) => {
                return Err(Error::invalid("read connection URL", "this sslmode does not exist")
                    .with("sslmode", other.escape_debug()));
            }
        };
        driver.ssl_mode(match tls {
            TlsMode::Disable => SslMode::Disable,
            TlsMode::Prefer => SslMode::Prefer,
            _ => SslMode::Require,
        });
        if driver.get_hosts().is_empty() && driver.get_hostaddrs().is_empty() {
            driver.host("localhost");
        }
        if driver.get_user().is_none() {
            let user = std::env::var("PGUSER").or_else(|_| std::env::var("USER")).unwrap_or_default();
            driver.user(if user.is_empty() { "postgres".to_owned() } else { user });
        }
        let user = driver.get_user().unwrap_or("postgres").to_owned();
        let database = driver.get_dbname().unwrap_or(&user).to_owned();
        driver.dbname(&database);
        let client_cert = match (taken.cert, taken.key) {
            (Some(cert), Some(key)) => Some((cert.into(), key.into())),
            (None, None) => None,
            _ => {
                return Err(Error::invalid(
                    "read connection URL",
                    "sslcert and sslkey must be given together",
                ));
            }
        };
        let root_cert = taken.root.map(PathBuf::from);
        Ok(Self { driver, database, tls, root_cert, client_cert, patience: Duration::from_secs(30) })
    }

    /// The same server and role, but another database.
    pub fn with_database(&self, name: &str) -> Self {
        let mut other = self.clone();
        other.driver.dbname(name);
        name.clone_into(&mut other.database);
        other
    }

    /// Sets the password.
    pub fn with_password(mut self, password: &str) -> Self {
        self.driver.password(password);
        self
    }

    /// How long to keep trying while the server starts, wakes or cannot be reached: 30 s unless set.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The database this connects to.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The role.
    pub fn user(&self) -> &str {
        self.driver.get_user().unwrap_or("postgres")
    }

    pub(crate) fn wait(&self) -> Duration {
        self.patience
    }

    /// The driver's configuration, with the password looked up where libpq would look it up.
    pub(crate) fn driver(&self) -> tokio_postgres::Config {
        let mut driver = self.driver.clone();
        if driver.get_password().is_none() {
            let host = self.host();
            if let Some(password) = std::env::var("PGPASSWORD")
                .ok()
                .filter(|p| !p.is_empty())
                .or_else(|| passfile::lookup(&host, self.port(), &self.database, self.user()))
            {
                driver.password(password);
            }
        }
        driver.keepalives_idle(Duration::from_secs(60));
        driver
    }

    fn host(&self) -> String {
        let name = self.driver.get_hosts().iter().map(|host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.display().to_string(),
        });
        let addresses = self.driver.get_hostaddrs().iter().map(ToString::to_string);
        let mut all: Vec<String> = name.collect();
        if all.is_empty() {
            all.extend(addresses);
        }
        all.join(",")
    }

    fn port(&self) -> u16 {
        self.driver.get_ports().first().copied().unwrap_or(5432)
    }

    /// What libpq's programs need in their environment to reach the same server: names and values, the password
    /// last and apart.
    pub(crate) fn environment(&self) -> (Vec<(&'static str, String)>, Option<String>) {
        let ports: Vec<String> = self.driver.get_ports().iter().map(ToString::to_string).collect();
        let mut all = vec![
            ("PGHOST", self.host()),
            ("PGPORT", if ports.is_empty() { "5432".to_owned() } else { ports.join(",") }),
            ("PGUSER", self.user().to_owned()),
            ("PGDATABASE", self.database.clone()),
            ("PGSSLMODE", self.tls.as_str().to_owned()),
        ];
        if let Some(root) = &self.root_cert {
            all.push(("PGSSLROOTCERT", root.display().to_string()));
        }
        if let Some((cert, key)) = &self.client_cert {
            all.push(("PGSSLCERT", cert.display().to_string()));
            all.push(("PGSSLKEY", key.display().to_string()));
        }
        if let Some(options) = self.driver.get_options() {
            all.push(("PGOPTIONS", options.to_owned()));
        }
        if let Some(timeout) = self.driver.get_connect_timeout() {
            all.push(("PGCONNECT_TIMEOUT", timeout.as_secs().max(2).to_string()));
        }
        let password = self.driver.get_password().map(|p| String::from_utf8_lossy(p).into_owned());
        (all, password)
    }
}

impl fmt::Debug for PgConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "postgres://{}@{}:{}/{}?sslmode={}",
            self.user(),
            self.host(),
            self.port(),
            self.database,
            self.tls.as_str()
        )
    }
}

#[derive(Default)]
struct TlsParameters {
    mode: Option<String>,
    root: Option<String>,
    cert: Option<String>,
    key: Option<String>,
}

impl TlsParameters {
    fn slot(&mut self, name: &str) -> Option<&mut Option<String>> {
        match name {
            "sslmode" => Some(&mut self.mode),
            "sslrootcert" => Some(&mut self.root),
            "sslcert" => Some(&mut self.cert),
            "sslkey" => Some(&mut self.key),
            _ => None,
        }
    }
}

/// Takes the TLS parameters the driver does not know out of a URL or a key=value string.
fn take_tls(text: &str) -> Result<(String, TlsParameters)> {
    let mut taken = TlsParameters::default();
    if text.starts_with("postgres://") || text.starts_with("postgresql://") {
        let Some((base, query)) = text.split_once('?') else { return Ok((text.to_owned(), taken)) };
        let mut kept = Vec::new();
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match taken.slot(name) {
                Some(slot) => *slot = Some(percent_decoded(value)?),
                None => kept.push(pair),
            }
        }
        let rest = if kept.is_empty() { base.to_owned() } else { format!("{base}?{}", kept.join("&")) };
        return Ok((rest, taken));
    }
    let mut kept = Vec::new();
    for (name, value, raw) in key_values(text)? {
        match taken.slot(&name) {
            Some(slot) => *slot = Some(value),
            None => kept.push(raw),
        }
    }
    Ok((kept.join(" "), taken))
}

fn percent_decoded(text: &str) -> Result<String> {
    let refuse = || Error::invalid("read connection URL", "a % in the URL is not followed by two digits");
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit =
                || bytes.next().and_then(|b| char::from(b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
            let (high, low) = (digit().ok_or_else(refuse)?, digit().ok_or_else(refuse)?);
            out.push(high * 16 + low);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).map_err(|_| refuse())
}

/// The pairs of a libpq key=value string: name, value, and the text of the pair.
fn key_values(text: &str) -> Result<Vec<(String, String, String)>> {
    let refuse =
        || Error::invalid("read connection string", "expected name=value, or name='value with spaces'");
    let mut all = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let whole = rest;
        let (name, after) = rest.split_once('=').ok_or_else(refuse)?;
        let mut chars = after.trim_start().char_indices();
        let after = after.trim_start();
        let quoted = after.starts_with('\'');
        let mut value = String::new();
        let mut end = after.len();
        if quoted {
            chars.next();
        }
        let mut closed = !quoted;
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => value.push(chars.next().ok_or_else(refuse)?.1),
                '\'' if quoted => {
                    closed = true;
                    end = at + 1;
                    break;
                }
                c if !quoted && c.is_whitespace() => {
                    end = at;
                    break;
                }
                c => value.push(c),
            }
        }
        if !closed {
            return Err(refuse());
        }
        rest = after.get(end..).unwrap_or("");
        let raw = whole.get(..whole.len() - rest.len()).unwrap_or("").to_owned();
        all.push((name.trim().to_owned(), value, raw));
        rest = rest.trim_start();
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_parameters_are_understood_and_debug_shows_no_password() {
        for text in [
            "postgres://bob:s3cr%20et@db.example:5433/books?sslmode=verify-full&sslrootcert=%2Fca.pem&application_name=x",
            "host=db.example port=5433 user=bob password='s3cr et' dbname=books sslmode=verify-full sslrootcert=/ca.pem",
        ] {
            let config = PgConfig::parse(text).unwrap();
            assert_eq!(config.tls, TlsMode::VerifyFull);
            assert_eq!(config.root_cert.as_deref(), Some(std::path::Path::new("/ca.pem")));
            assert_eq!(config.driver.get_password(), Some(&b"s3cr et"[..]));
            let shown = format!("{config:?}");
            assert_eq!(shown, "postgres://bob@db.example:5433/books?sslmode=verify-full");
            assert!(!format!("{:?}", config.environment().0).contains("s3cr"));
        }
    }

    #[test]
    fn a_bad_url_is_refused_without_quoting_it() {
        let error = PgConfig::parse("postgres://bob:hunter2@host:notaport/x").unwrap_err();
        assert!(!error.chain().contains("hunter2"), "{}", error.chain());
        assert!(PgConfig::parse("postgres://h/x?sslmode=maybe").is_err());
        assert!(PgConfig::parse("host='unclosed").is_err());
    }
}
