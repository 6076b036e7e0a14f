//! Where a server is and how to get in: [`RedisConfig`].

use std::fmt;
use std::time::Duration;

use backup_core::{Error, Result};
use zeroize::Zeroizing;

/// Port of a server.
const PORT: u16 = 6379;
/// Port of a sentinel.
const SENTINEL_PORT: u16 = 26379;

/// How to reach a server.
///
/// ```
/// use backup_redis::RedisConfig;
/// let config = RedisConfig::parse("rediss://backup:s3cret@db.example:6380")?;
/// assert!(!format!("{config:?}").contains("s3cret"));
/// # Ok::<(), backup_core::Error>(())
/// ```
///
/// | URL | meaning |
/// |---|---|
/// | `redis://[user[:password]@]host[:6379]` | a server, or any node of a cluster |
/// | `rediss://…` | the same over TLS |
/// | `redis+sentinel://[user[:password]@]host[:26379][,host…]/name` | the primary that sentinels know as `name` |
/// | `rediss+sentinel://…` | the same, sentinels and servers over TLS |
///
/// User and password are %-decoded; `:password@` alone is the default user's. A database number is not accepted: a
/// snapshot covers all databases, and a restore can be given the databases it is to write.
#[derive(Clone)]
pub struct RedisConfig {
    pub(crate) place: Place,
    pub(crate) login: Option<Login>,
    pub(crate) sentinel_login: Option<Login>,
    pub(crate) tls: Option<Tls>,
    pub(crate) connect_timeout: Duration,
    pub(crate) stall_timeout: Duration,
}

/// A host and port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Place {
    Server(Address),
    Sentinels { sentinels: Vec<Address>, name: String, replica: bool },
}

/// User and password.
#[derive(Clone)]
pub(crate) struct Login {
    pub(crate) user: Option<String>,
    pub(crate) password: Zeroizing<String>,
}

/// Whom to trust, and who to be, under TLS.
#[derive(Clone, Default)]
pub(crate) struct Tls {
    /// PEM of certificate authorities; the system's otherwise.
    pub(crate) authorities: Option<Vec<u8>>,
    /// PEM of a certificate chain and of its key.
    pub(crate) client: Option<(Vec<u8>, Zeroizing<Vec<u8>>)>,
    pub(crate) server_name: Option<String>,
}

impl RedisConfig {
    /// Reads a URL.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](backup_core::ErrorKind::InvalidInput), without the URL, which holds a password.
    pub fn parse(url: &str) -> Result<Self> {
        let wrong = |message: &'static str| Error::invalid("read Redis URL", message);
        let (scheme, rest) =
            url.split_once("://").ok_or_else(|| wrong("it has no scheme: write `redis://host:6379`"))?;
        let (tls, sentinel) = match scheme {
            "redis" | "valkey" => (false, false),
            "rediss" | "valkeys" => (true, false),
            "redis+sentinel" | "valkey+sentinel" => (false, true),
            "rediss+sentinel" | "valkeys+sentinel" => (true, true),
            _ => return Err(wrong("the scheme must be redis, rediss, redis+sentinel or rediss+sentinel")),
        };
        if rest.contains(['?', '#']) {
            return Err(wrong(
                "options belong into the configuration, not into the URL; %-encode `?` and `#`",
            ));
        }
        let (login, rest) = match rest.rsplit_once('@') {
            None => (None, rest),
            Some((login, rest)) => (Some(Login::parse(login)?), rest),
        };
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let place = if sentinel {
            if path.is_empty() || path.contains('/') {
                return Err(wrong("name the primary the sentinels watch: `redis+sentinel://host/name`"));
            }
            let sentinels =
                hosts.split(',').map(|h| Address::parse(h, SENTINEL_PORT)).collect::<Result<Vec<_>>>()?;
            Place::Sentinels { sentinels, name: decode(path)?, replica: false }
        } else {
            if !path.is_empty() && path != "0" {
                return Err(wrong("a database number does not belong here: all databases are read"));
            }
            Place::Server(Address::parse(hosts, PORT)?)
        };
        Ok(Self {
            place,
            login,
            sentinel_login: None,
            tls: tls.then(Tls::default),
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(60),
        })
    }

    /// Under sentinels: takes a replica instead of the primary, if there is one in sync.
    pub fn prefer_replica(mut self) -> Self {
        if let Place::Sentinels { replica, .. } = &mut self.place {
            *replica = true;
        }
        self
    }

    /// User and password for the sentinels, where they differ from the servers'.
    pub fn sentinel_login(mut self, user: Option<&str>, password: &str) -> Self {
        self.sentinel_login =
            Some(Login { user: user.map(str::to_owned), password: Zeroizing::new(password.to_owned()) });
        self
    }

    /// Trusts these certificate authorities (PEM) instead of the system's. Turns TLS on.
    pub fn tls_authorities(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.tls.get_or_insert_default().authorities = Some(pem.into());
        self
    }

    /// Shows this certificate (PEM chain) with its key (PEM) to the server. Turns TLS on.
    pub fn tls_client(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.tls.get_or_insert_default().client = Some((certificate.into(), Zeroizing::new(key.into())));
        self
    }

    /// Expects this name in the server's certificate instead of the host of the URL. Turns TLS on.
    pub fn tls_server_name(mut self, name: impl Into<String>) -> Self {
        self.tls.get_or_insert_default().server_name = Some(name.into());
        self
    }

    /// Gives up connecting after this time. Default 10 seconds.
    pub fn connect_timeout(mut self, time: Duration) -> Self {
        self.connect_timeout = time;
        self
    }

    /// Gives up when nothing moves for this time. Default 60 seconds, as the servers' own `repl-timeout`.
    pub fn stall_timeout(mut self, time: Duration) -> Self {
        self.stall_timeout = time;
        self
    }
}

impl Address {
    pub(crate) fn parse(text: &str, default_port: u16) -> Result<Self> {
        let wrong = || Error::invalid("read Redis URL", "the host and port cannot be read");
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, after) = rest.split_once(']').ok_or_else(wrong)?;
            (host, after.strip_prefix(':'))
        } else {
            match text.split_once(':') {
                None => (text, None),
                Some((host, port)) => (host, Some(port)),
            }
        };
        if host.is_empty() {
            return Err(wrong());
        }
        let port = port.map_or(Ok(default_port), |p| p.parse().map_err(|_| wrong()))?;
        Ok(Self { host: host.to_owned(), port })
    }
}

impl Login {
    fn parse(text: &str) -> Result<Self> {
        let (user, password) = text.split_once(':').unwrap_or((text, ""));
        let user = decode(user)?;
        Ok(Self { user: (!user.is_empty()).then_some(user), password: Zeroizing::new(decode(password)?) })
    }
}

/// Undoes %-encoding.
fn decode(text: &str) -> Result<String> {
    let wrong =
        || Error::invalid("read Redis URL", "a `%` in user, password or name is not followed by two digits");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((plain, escaped)) = rest.split_once('%') {
        bytes.extend_from_slice(plain.as_bytes());
        let digits = escaped.get(..2).ok_or_else(wrong)?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| wrong())?);
        rest = escaped.get(2..).unwrap_or_default();
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).map_err(|_| wrong())
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:…", self.user.as_deref().unwrap_or_default())
    }
}

impl fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisConfig")
            .field("place", &self.place)
            .field("login", &self.login)
            .field("tls", &self.tls.is_some())
            .field("connect_timeout", &self.connect_timeout)
            .field("stall_timeout", &self.stall_timeout)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(url: &str) -> String {
        match RedisConfig::parse(url).unwrap().place {
            Place::Server(address) => address.to_string(),
            other @ Place::Sentinels { .. } => format!("{other:?}"),
        }
    }

    #[test]
    fn urls_are_read() {
        assert_eq!(server("redis://h"), "h:6379");
        assert_eq!(server("rediss://u:p@h:1/0"), "h:1");
        assert_eq!(server("redis://[::1]:7"), "[::1]:7");
        let login = RedisConfig::parse("redis://me:a%40b%3A@h").unwrap().login.unwrap();
        assert_eq!((login.user.as_deref(), login.password.as_str()), (Some("me"), "a@b:"));
        let login = RedisConfig::parse("redis://:only@h").unwrap().login.unwrap();
        assert_eq!((login.user.as_deref(), login.password.as_str()), (None, "only"));
        let config = RedisConfig::parse("redis+sentinel://a,b:2/mymaster").unwrap().prefer_replica();
        let Place::Sentinels { sentinels, name, replica } = config.place else { panic!() };
        assert_eq!((sentinels.len(), name.as_str(), replica), (2, "mymaster", true));
        for wrong in ["h:1", "http://h", "redis://", "redis://h/3", "redis+sentinel://h", "redis://u:%4@h"] {
            assert!(RedisConfig::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn no_secret_is_shown() {
        let config = RedisConfig::parse("redis://u:hunter2@h")
            .unwrap()
            .sentinel_login(None, "hunter3")
            .tls_client("c", "hunter4");
        let shown = format!("{config:?}");
        assert!(!shown.contains("hunter"), "{shown}");
        assert!(!RedisConfig::parse("redis://u:hunter2@h/7").unwrap_err().chain().contains("hunter"));
    }
}
