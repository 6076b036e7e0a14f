//! Which servers there are: what a server says of itself, sentinels, and the primaries of a cluster.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use backup_core::{Error, ErrorKind, Result};

use crate::config::{Address, Place, RedisConfig};
use crate::connect::Connection;
use crate::error::stalled;
use crate::resp::Reply;

/// What a server says of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Server {
    /// `redis` or `valkey`.
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) cluster: bool,
    pub(crate) replica: bool,
}

impl Server {
    /// As it goes into a manifest: `7.0.15`, `valkey 8.0.1`.
    pub(crate) fn describe(&self) -> Option<String> {
        match (self.name.as_str(), self.version.as_str()) {
            (_, "") => None,
            ("redis", version) => Some(version.to_owned()),
            (name, version) => Some(format!("{name} {version}")),
        }
    }
}

/// The newest RDB version that a server is known to read. Newer releases than this build knows are taken for the
/// newest it does.
pub(crate) fn rdb_version(server: &Server) -> u32 {
    let mut numbers = server.version.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    let (major, minor) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    match (server.name == "valkey", major, minor) {
        // Valkey 9 writes 80, and reads the versions it shares with Redis: up to 11.
        (true, _, _) | (false, 7, 2 | 3) => 11,
        (false, 7, 4..) | (false, 8.., _) => 12,
        (false, 7, _) => 10,
        _ => 9,
    }
}

/// Connects to the server that `config` names, through its sentinels if it names those.
pub(crate) async fn connect(config: &RedisConfig) -> Result<(Connection, Server)> {
    let address = match &config.place {
        Place::Server(address) => address.clone(),
        Place::Sentinels { sentinels, name, replica } => {
            ask_sentinels(config, sentinels, name, *replica).await?
        }
    };
    connect_to(config, &address).await
}

/// Connects to one server.
pub(crate) async fn connect_to(config: &RedisConfig, address: &Address) -> Result<(Connection, Server)> {
    let mut connection = Connection::open(address, config, config.login.as_ref()).await?;
    // Greeting is part of connecting: what listens there may not be a server at all.
    match tokio::time::timeout(config.connect_timeout, hello(&mut connection)).await {
        Ok(server) => Ok((connection, server?)),
        Err(_) => Err(stalled("greet Redis", config.connect_timeout.as_secs()).with("server", address)),
    }
}

/// `HELLO` is open to every user whatever its ACL, and to nobody who has not logged in. Servers before 6.0 do not
/// have it: they are asked with `PING`.
async fn hello(connection: &mut Connection) -> Result<Server> {
    let reply = connection.command(&["HELLO", "2"]).await?;
    if let Reply::Error(error) = reply {
        if !error.is_unknown_command() {
            return Err(error
                .into_error("greet Redis", ErrorKind::Unavailable)
                .with("server", &connection.address));
        }
        connection.call("greet Redis", &["PING"]).await?;
        return Ok(Server { name: "redis".to_owned(), ..Server::default() });
    }
    let mut server = Server::default();
    for pair in reply.array().chunks_exact(2) {
        let [name, value] = pair else { continue };
        let text = value.text().unwrap_or_default();
        match name.text() {
            Some("server") => text.clone_into(&mut server.name),
            Some("version") => text.clone_into(&mut server.version),
            Some("mode") if text == "sentinel" => {
                return Err(Error::invalid(
                    "greet Redis",
                    "this is a sentinel: write `redis+sentinel://host/name` to ask it for the server",
                )
                .with("server", &connection.address));
            }
            Some("mode") => server.cluster = text == "cluster",
            Some("role") => server.replica = text != "master",
            _ => {}
        }
    }
    Ok(server)
}

/// The fields of an `INFO` section, or nothing where the user may not ask.
pub(crate) async fn info(connection: &mut Connection, section: &str) -> Result<BTreeMap<String, String>> {
    let reply = connection.command(&["INFO", section]).await?;
    Ok(reply
        .text()
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect())
}

async fn ask_sentinels(
    config: &RedisConfig,
    sentinels: &[Address],
    name: &str,
    replica: bool,
) -> Result<Address> {
    let mut failure = Error::invalid("ask sentinels", "no sentinel is named");
    for sentinel in sentinels {
        match ask_sentinel(config, sentinel, name, replica).await {
            Ok(address) => return Ok(address),
            Err(e) => failure = e,
        }
    }
    Err(failure)
}

async fn ask_sentinel(
    config: &RedisConfig,
    sentinel: &Address,
    name: &str,
    replica: bool,
) -> Result<Address> {
    let mut connection = Connection::open(sentinel, config, config.sentinel_login.as_ref()).await?;
    if replica {
        let replicas = connection.call("ask sentinel", &["SENTINEL", "replicas", name]).await?;
        for replica in replicas.array() {
            let field = |wanted: &str| {
                replica
                    .array()
                    .chunks_exact(2)
                    .find(|pair| pair.first().and_then(Reply::text) == Some(wanted))
                    .and_then(|pair| pair.get(1))
            };
            let flags = field("flags").and_then(Reply::text).unwrap_or_default();
            let linked = field("master-link-status").and_then(Reply::text) == Some("ok");
            if flags == "slave"
                && linked
                && let (Some(host), Some(port)) =
                    (field("ip").and_then(Reply::text), field("port").and_then(port))
            {
                return Ok(Address { host: host.to_owned(), port });
            }
        }
    }
    let reply = connection.call("ask sentinel", &["SENTINEL", "get-master-addr-by-name", name]).await?;
    match reply.array() {
        [host, number] if host.text().is_some() => Ok(Address {
            host: host.text().unwrap_or_default().to_owned(),
            port: port(number)
                .ok_or_else(|| crate::error::protocol("ask sentinel", "the primary's port cannot be read"))?,
        }),
        _ => Err(Error::new(ErrorKind::NotFound, "ask sentinel")
            .message("the sentinel knows no primary of this name")
            .with("name", name)
            .with("sentinel", sentinel)),
    }
}

fn port(reply: &Reply) -> Option<u16> {
    reply.int().and_then(|n| u16::try_from(n).ok())
}

/// A range of slots and the primary that owns it.
pub(crate) type Slots = Vec<(RangeInclusive<u16>, Address)>;

/// Which primary owns which slots of the cluster.
///
/// # Errors
///
/// When slots are not owned by anyone: a backup or restore would then miss keys.
pub(crate) async fn cluster_slots(connection: &mut Connection) -> Result<Slots> {
    let reply = connection.command(&["CLUSTER", "SLOTS"]).await?;
    if let Reply::Error(error) = reply {
        return Err(error
            .into_error("read cluster slots", ErrorKind::Unavailable)
            .with("server", &connection.address)
            .with("needed", "+cluster|slots"));
    }
    let mut slots = Slots::new();
    for range in reply.array() {
        if let [first, last, node, ..] = range.array()
            && let (Some(first), Some(last)) = (port(first), port(last))
            && let [host, number, ..] = node.array()
            && let Some(port) = port(number)
        {
            // A node that does not know its own address means the one it was reached at.
            let host = match host.text() {
                None | Some("") => connection.address.host.clone(),
                Some(host) => host.to_owned(),
            };
            slots.push((first..=last, Address { host, port }));
        }
    }
    slots.sort_by_key(|(range, _)| *range.start());
    let mut next = 0u32;
    for (range, _) in &slots {
        if u32::from(*range.start()) > next {
            break;
        }
        next = next.max(u32::from(*range.end()) + 1);
    }
    if next < u32::from(SLOTS) {
        return Err(Error::new(ErrorKind::Unavailable, "read cluster slots")
            .message("no primary owns some slots: repair the cluster first")
            .with("slot", next));
    }
    Ok(slots)
}

/// Slots of a cluster.
pub(crate) const SLOTS: u16 = 16384;

/// The primaries, each once, in the order of their slots.
pub(crate) fn primaries(slots: &Slots) -> Vec<Address> {
    let mut found: Vec<Address> = Vec::new();
    for (_, address) in slots {
        if !found.contains(address) {
            found.push(address.clone());
        }
    }
    found
}
