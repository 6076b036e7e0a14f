//! Connections: TCP or TLS, authenticated, with a time-out on everything.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use backup_core::{Error, ErrorKind, Result};
use bytes::{Buf as _, BytesMut};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::config::{Address, Login, RedisConfig, Tls};
use crate::error::{ServerError, closed, protocol, stalled};
use crate::resp::{self, Parsed, Reply};

/// A stream of bytes both ways.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// A connection to a server.
pub(crate) struct Connection {
    pub(crate) wire: Box<dyn Wire>,
    pub(crate) input: BytesMut,
    pub(crate) address: Address,
    pub(crate) stall: Duration,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({})", self.address)
    }
}

/// Bytes asked of the socket at a time.
const READ: usize = 64 * 1024;

impl Connection {
    /// Connects to `address` and authenticates.
    pub(crate) async fn open(address: &Address, config: &RedisConfig, login: Option<&Login>) -> Result<Self> {
        let connecting = async {
            let tcp = TcpStream::connect((address.host.as_str(), address.port))
                .await
                .map_err(|e| Error::io("connect to Redis", e).with("server", address))?;
            tcp.set_nodelay(true).map_err(|e| Error::io("connect to Redis", e))?;
            let wire: Box<dyn Wire> = match &config.tls {
                None => Box::new(tcp),
                Some(tls) => Box::new(encrypt(tcp, tls, address).await?),
            };
            let mut connection =
                Self { wire, input: BytesMut::new(), address: address.clone(), stall: config.stall_timeout };
            if let Some(login) = login {
                connection.authenticate(login).await?;
            }
            Ok(connection)
        };
        match timeout(config.connect_timeout, connecting).await {
            Ok(done) => done,
            Err(_) => Err(Error::new(ErrorKind::Timeout, "connect to Redis")
                .message("the server did not answer in time")
                .with("server", address)),
        }
    }

    async fn authenticate(&mut self, login: &Login) -> Result<()> {
        let password = login.password.as_str();
        let reply = match &login.user {
            Some(user) => self.command(&["AUTH", user, password]).await?,
            None => self.command(&["AUTH", password]).await?,
        };
        match reply {
            Reply::Error(e) => Err(e
                .into_error("log in to Redis", ErrorKind::PermissionDenied)
                .with("server", &self.address)),
            _ => Ok(()),
        }
    }

    /// One connection to read from and one to write to.
    pub(crate) fn split(self) -> (Self, Self) {
        let (read, write) = tokio::io::split(self.wire);
        (
            Self {
                wire: Box::new(tokio::io::join(read, tokio::io::sink())),
                input: self.input,
                address: self.address.clone(),
                stall: self.stall,
            },
            Self {
                wire: Box::new(tokio::io::join(tokio::io::empty(), write)),
                input: BytesMut::new(),
                address: self.address,
                stall: self.stall,
            },
        )
    }

    /// Sends a command and waits for its reply, which may be an error reply.
    pub(crate) async fn command<A: AsRef<[u8]>>(&mut self, arguments: &[A]) -> Result<Reply> {
        let mut out = Vec::new();
        resp::command(&mut out, arguments);
        self.send(&out).await?;
        self.reply().await
    }

    /// As [`command`](Self::command); an error reply is an error of `operation`.
    pub(crate) async fn call<A: AsRef<[u8]>>(
        &mut self,
        operation: &'static str,
        arguments: &[A],
    ) -> Result<Reply> {
        match self.command(arguments).await? {
            Reply::Error(e) => {
                let name = arguments.first().map_or(&b""[..], AsRef::as_ref);
                Err(e
                    .into_error(operation, ErrorKind::TargetFailed)
                    .with("command", String::from_utf8_lossy(name))
                    .with("server", &self.address))
            }
            reply => Ok(reply),
        }
    }

    /// Sends bytes.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let sending = async {
            // A server that takes some and then waits is not stalled: each piece has the whole time.
            for piece in bytes.chunks(READ) {
                match timeout(self.stall, self.wire.write_all(piece)).await {
                    Ok(done) => done.map_err(|e| Error::io("send to Redis", e))?,
                    Err(_) => return Err(stalled("send to Redis", self.stall.as_secs())),
                }
            }
            self.wire.flush().await.map_err(|e| Error::io("send to Redis", e))
        };
        sending.await.map_err(|e| e.with("server", &self.address))
    }

    /// Reads more bytes into the input. 0 when the server closed.
    pub(crate) async fn read(&mut self) -> Result<usize> {
        self.input.reserve(READ);
        match timeout(self.stall, self.wire.read_buf(&mut self.input)).await {
            Ok(done) => done.map_err(|e| Error::io("read from Redis", e).with("server", &self.address)),
            Err(_) => Err(stalled("read from Redis", self.stall.as_secs()).with("server", &self.address)),
        }
    }

    /// Reads until the input holds `n` bytes.
    pub(crate) async fn fill(&mut self, n: usize) -> Result<()> {
        while self.input.len() < n {
            if self.read().await? == 0 {
                return Err(closed("read from Redis").with("server", &self.address));
            }
        }
        Ok(())
    }

    /// Waits for a reply.
    pub(crate) async fn reply(&mut self) -> Result<Reply> {
        loop {
            match resp::parse(&self.input)? {
                Parsed::Reply(reply, used) => {
                    self.input.advance(used);
                    return Ok(reply);
                }
                Parsed::Needs(n) => self.fill(n).await?,
            }
        }
    }

    /// Waits for the reply to a write: what kept it from being done, if something did.
    pub(crate) async fn outcome(&mut self) -> Result<Option<ServerError>> {
        // Nearly all are of this kind, millions of them.
        const DONE: &[u8] = b"+OK\r\n";
        if self.input.starts_with(DONE) {
            self.input.advance(DONE.len());
            return Ok(None);
        }
        Ok(self.reply().await?.failure())
    }

    /// Waits for the header of a reply that is a string and may be long. The string's bytes and the end of line
    /// after them are then the caller's to read. `Err` within is another reply: none, or an error.
    pub(crate) async fn long_string(&mut self) -> Result<std::result::Result<u64, Reply>> {
        loop {
            self.fill(1).await?;
            if self.input.first() != Some(&b'$') {
                return self.reply().await.map(Err);
            }
            if let Some(end) = self.input.iter().take(32).position(|&b| b == b'\n') {
                let line = self.input.split_to(end + 1);
                let length = std::str::from_utf8(line.get(1..).unwrap_or_default())
                    .ok()
                    .and_then(|t| t.trim_end().parse::<i64>().ok())
                    .ok_or_else(|| protocol("read from Redis", "the length of a reply cannot be read"))?;
                return Ok(u64::try_from(length).map_err(|_| Reply::Nil));
            }
            if self.input.len() >= 32 {
                return Err(protocol("read from Redis", "the length of a reply cannot be read"));
            }
            self.fill(self.input.len() + 1).await?;
        }
    }
}

async fn encrypt(tcp: TcpStream, tls: &Tls, address: &Address) -> Result<impl Wire + use<>> {
    let wrong = |message: &'static str| Error::invalid("connect to Redis over TLS", message);
    let mut roots = RootCertStore::empty();
    match &tls.authorities {
        Some(pem) => {
            for authority in CertificateDer::pem_slice_iter(pem) {
                let authority =
                    authority.map_err(|e| wrong("the authorities' PEM cannot be read").caused_by(e))?;
                roots
                    .add(authority)
                    .map_err(|e| wrong("an authority's certificate is wrong").caused_by(e))?;
            }
        }
        // Certificates of the system that cannot be read are not trusted; the rest is.
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(wrong("no certificate authority is known: give one with `tls_authorities`"));
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| wrong("no protocol version is usable").caused_by(e))?
        .with_root_certificates(roots);
    let config = match &tls.client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = CertificateDer::pem_slice_iter(certificate)
                .collect::<std::result::Result<Vec<_>, _>>()
                .map_err(|e| wrong("the client certificate's PEM cannot be read").caused_by(e))?;
            // The parser's error may quote its input: it is left out.
            let key = PrivateKeyDer::from_pem_slice(key)
                .map_err(|_| wrong("the client key's PEM cannot be read"))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|e| wrong("client certificate and key do not fit").caused_by(e))?
        }
    };
    let name = tls.server_name.clone().unwrap_or_else(|| address.host.clone());
    let name =
        ServerName::try_from(name).map_err(|e| wrong("the server's name is not a name").caused_by(e))?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(|e| {
        let refused = matches!(e.get_ref(), Some(inner) if inner.is::<tokio_rustls::rustls::Error>());
        if refused {
            Error::new(ErrorKind::PermissionDenied, "connect to Redis over TLS")
                .message("server and client could not agree, or one does not trust the other's certificate")
                .caused_by(e)
        } else {
            Error::io("connect to Redis over TLS", e)
        }
        .with("server", address)
    })?;
    Ok(stream)
}
