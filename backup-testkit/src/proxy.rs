//! [`FaultProxy`]: a bad network between a client and a server.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::http;

/// Bytes moved at a time.
const CHUNK: usize = 16 * 1024;

/// What happens to one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NetworkFault {
    /// Nothing.
    None,
    /// The connection is reset after so many bytes went to the server.
    ResetRequest(u64),
    /// The connection is reset after so many bytes came from the server.
    ResetResponse(u64),
    /// The connection ends in good order after so many bytes came from the server.
    CutResponse(u64),
    /// The first byte of the first answer waits.
    Delay(Duration),
    /// At most so many bytes a second, in each direction.
    Throttle(u64),
    /// The first request is answered by the proxy: 500 `InternalError`.
    ServerError,
    /// The first request is answered by the proxy: 503 `SlowDown`.
    SlowDown,
}

/// Decides the fault of each connection from a seed: the same seed gives the same faults, in order of connections.
#[derive(Debug)]
pub struct FaultSchedule {
    state: u64,
    /// Connections of 100 that meet a fault.
    percent: u64,
    /// Connections that may still meet a fault.
    left: u64,
    /// Bytes within which a connection breaks.
    within: u64,
}

impl FaultSchedule {
    /// Faults for 40 of 100 connections.
    pub fn new(seed: u64) -> Self {
        Self { state: seed, percent: 40, left: u64::MAX, within: 1024 * 1024 }
    }

    /// How many of 100 connections meet a fault.
    pub fn percent(mut self, percent: u64) -> Self {
        self.percent = percent;
        self
    }

    /// After so many faults the network is good.
    pub fn at_most(mut self, faults: u64) -> Self {
        self.left = faults;
        self
    }

    /// Connections break within so many bytes: 1 MiB unless set.
    pub fn within(mut self, bytes: u64) -> Self {
        self.within = bytes.max(1);
        self
    }

    /// The next number of the sequence (splitmix64, Steele, Lea and Flood 2014).
    fn random(&mut self, below: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % below.max(1)
    }

    fn next_fault(&mut self) -> NetworkFault {
        // Always as many numbers, so that one fault more or less does not change the kind of the others.
        let (chance, kind, bytes) = (self.random(100), self.random(7), self.random(self.within));
        if chance >= self.percent || self.left == 0 {
            return NetworkFault::None;
        }
        self.left -= 1;
        match kind {
            0 => NetworkFault::ResetRequest(bytes),
            1 => NetworkFault::ResetResponse(bytes % 2048),
            2 => NetworkFault::CutResponse(bytes % 2048),
            3 => NetworkFault::Delay(Duration::from_millis(bytes % 300)),
            4 => NetworkFault::Throttle(256 * 1024 + bytes),
            5 => NetworkFault::ServerError,
            _ => NetworkFault::SlowDown,
        }
    }
}

/// A TCP proxy on the loopback interface that does to each connection what its schedule says.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    schedule: Mutex<FaultSchedule>,
    faults: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
}

impl FaultProxy {
    /// Starts a proxy before the server at `upstream`.
    pub async fn start(upstream: SocketAddr, schedule: FaultSchedule) -> Self {
        let listener =
            TcpListener::bind(("127.0.0.1", 0)).await.expect("bind a port of the loopback interface");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            upstream,
            schedule: Mutex::new(schedule),
            faults: AtomicU64::new(0),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
        });
        let task = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { address, shared, task }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Replaces the schedule for the connections to come.
    pub fn schedule(&self, schedule: FaultSchedule) {
        *self.shared.schedule.lock().unwrap_or_else(PoisonError::into_inner) = schedule;
    }

    /// Faults that were handed out so far.
    pub fn faults(&self) -> u64 {
        self.shared.faults.load(Ordering::SeqCst)
    }

    /// Bytes that went to the server so far.
    pub fn sent(&self) -> u64 {
        self.shared.up.load(Ordering::SeqCst)
    }

    /// Bytes that came from the server so far.
    pub fn received(&self) -> u64 {
        self.shared.down.load(Ordering::SeqCst)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Ends with the proxy, and so do the connections.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let fault = shared.schedule.lock().unwrap_or_else(PoisonError::into_inner).next_fault();
            if fault != NetworkFault::None {
                shared.faults.fetch_add(1, Ordering::SeqCst);
            }
            // A broken connection is what this is for.
            let _ = serve(client, fault, &shared).await;
        });
    }
}

async fn serve(client: TcpStream, fault: NetworkFault, shared: &Shared) -> io::Result<()> {
    match fault {
        NetworkFault::ServerError => {
            return refuse(client, "500 Internal Server Error", "InternalError").await;
        }
        NetworkFault::SlowDown => return refuse(client, "503 Slow Down", "SlowDown").await,
        _ => {}
    }
    let server = TcpStream::connect(shared.upstream).await?;
    server.set_nodelay(true)?;
    client.set_nodelay(true)?;
    let mut plan = Plan::default();
    match fault {
        NetworkFault::ResetRequest(bytes) => plan.up = Some(bytes),
        NetworkFault::ResetResponse(bytes) => plan.down = Some(bytes),
        NetworkFault::CutResponse(bytes) => (plan.down, plan.graceful) = (Some(bytes), true),
        NetworkFault::Delay(delay) => plan.delay = delay,
        NetworkFault::Throttle(rate) => plan.rate = Some(rate),
        NetworkFault::None | NetworkFault::ServerError | NetworkFault::SlowDown => {}
    }
    let (mut client, mut server) = (client, server);
    {
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let pace = |delay| Pace { rate: plan.rate, delay };
        let up = forward(&mut from_client, &mut to_server, plan.up, pace(Duration::ZERO), &shared.up);
        let down = forward(&mut from_server, &mut to_client, plan.down, pace(plan.delay), &shared.down);
        // The side that ends first takes the other with it, as a broken cable does.
        tokio::select! { _ = up => {}, _ = down => {} }
    }
    if !plan.graceful && (plan.up.is_some() || plan.down.is_some()) {
        client.set_zero_linger()?;
        server.set_zero_linger()?;
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, Default)]
struct Plan {
    up: Option<u64>,
    down: Option<u64>,
    graceful: bool,
    delay: Duration,
    rate: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Pace {
    rate: Option<u64>,
    delay: Duration,
}

/// Moves bytes until the end, or until `limit` of them were moved; adds them to `count`.
async fn forward(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    limit: Option<u64>,
    Pace { rate, delay }: Pace,
    count: &AtomicU64,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut moved = 0u64;
    loop {
        let left = limit.map_or(CHUNK as u64, |limit| (limit - moved).min(CHUNK as u64));
        let room = usize::try_from(left).unwrap_or(CHUNK);
        if room == 0 {
            return Ok(());
        }
        let Some(space) = buffer.get_mut(..room) else { return Ok(()) };
        let n = from.read(space).await?;
        if n == 0 {
            return Ok(());
        }
        if moved == 0 {
            tokio::time::sleep(delay).await;
        }
        if let Some(rate) = rate {
            tokio::time::sleep(Duration::from_micros(n as u64 * 1_000_000 / rate.max(1))).await;
        }
        to.write_all(buffer.get(..n).unwrap_or_default()).await?;
        moved += n as u64;
        count.fetch_add(n as u64, Ordering::SeqCst);
    }
}

async fn refuse(client: TcpStream, status: &str, code: &str) -> io::Result<()> {
    let mut client = BufReader::new(client);
    let Some(head) = http::Head::read(&mut client).await? else { return Ok(()) };
    http::discard(&mut client, head.length()).await?;
    let body = format!("<Error><Code>{code}</Code><Message>Injected by the proxy.</Message></Error>");
    http::respond(&mut client, status, &[("connection", "close")], body.as_bytes()).await
}
