//! A TCP proxy between a client and its server, with faults that kernels cannot always make.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// How much one read takes.
const PIECE: usize = 64 * 1024;

/// How many pieces are on their way in one direction before the sender has to wait, as on a line that is full.
const ON_THE_WAY: usize = 256;

/// A proxy in front of one server, on a port of its own of 127.0.0.1.
///
/// The end of one direction (FIN) is passed on as such; the other direction stays open. A reset is made up only when
/// [asked for](Self::reset): when one side's connection breaks, the other side's is closed in an orderly way. Dropping the
/// proxy closes everything.
///
/// It lives on the runtime that it was started on.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<ProxyState>,
    /// The listener and its connections, aborted when dropped.
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct ProxyState {
    upstream: Mutex<SocketAddr>,
    faults: watch::Sender<Faults>,
    /// How often all connections were reset.
    resets: watch::Sender<usize>,
    open: watch::Sender<usize>,
    accepted: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
    round_trips: AtomicU64,
}

/// What is done to everything that passes.
#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    delay: Duration,
    blackhole: bool,
    /// No answer passes that would make it more round trips than these.
    mute_after: Option<u64>,
    /// Nothing goes up once there have been so many.
    cut_after: Option<u64>,
}

/// Which way data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    /// To the server.
    Up,
    /// To the client.
    Down,
}

impl Proxy {
    /// Starts a proxy for the server at `upstream`.
    ///
    /// # Errors
    ///
    /// When no port can be had.
    pub async fn start(upstream: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(ProxyState {
            upstream: Mutex::new(upstream),
            faults: watch::Sender::default(),
            resets: watch::Sender::default(),
            open: watch::Sender::default(),
            accepted: AtomicU64::default(),
            up: AtomicU64::default(),
            down: AtomicU64::default(),
            round_trips: AtomicU64::default(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, _tasks: tasks })
    }

    /// Where clients connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections that come from now on go to this server, as after a failover. Those that are open stay where they are.
    pub fn set_upstream(&self, upstream: SocketAddr) {
        *self.shared.upstream.lock().unwrap_or_else(PoisonError::into_inner) = upstream;
    }

    /// From now on everything, in each direction, arrives this much later. What is on its way keeps its time.
    ///
    /// So a round trip takes twice as much longer. The order is kept.
    pub fn set_delay(&self, delay: Duration) {
        self.shared.faults.send_modify(|faults| faults.delay = delay);
    }

    /// While set, nothing passes in either direction, no end either: connections are accepted, and nobody answers. What
    /// came meanwhile passes once it is unset.
    pub fn set_blackhole(&self, blackhole: bool) {
        self.shared.faults.send_modify(|faults| faults.blackhole = blackhole);
    }

    /// After so many more round trips no answer comes back any more; what clients send arrives.
    pub fn mute_after(&self, round_trips: u64) {
        let last = self.round_trips() + round_trips;
        self.shared.faults.send_modify(|faults| faults.mute_after = Some(last));
    }

    /// After so many more round trips nothing that clients send arrives any more.
    pub fn cut_after(&self, round_trips: u64) {
        let last = self.round_trips() + round_trips;
        self.shared.faults.send_modify(|faults| faults.cut_after = Some(last));
    }

    /// Resets every connection that is open, on both sides, as a firewall does that has forgotten them. What was on its way is
    /// lost. Later ones are not touched.
    pub fn reset(&self) {
        self.shared.resets.send_modify(|resets| *resets += 1);
    }

    /// How many connections are open; one is until both its directions have ended.
    #[must_use]
    pub fn connections(&self) -> usize {
        *self.shared.open.borrow()
    }

    /// Waits until this many connections are open.
    pub async fn wait_for_connections(&self, count: usize) {
        let mut open = self.shared.open.subscribe();
        // the sender is ours: it does not go while we wait
        let _ = open.wait_for(|open| *open == count).await;
    }

    /// How many connections there have been.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// How many bytes have been passed to the server.
    #[must_use]
    pub fn bytes_up(&self) -> u64 {
        self.shared.up.load(Ordering::Relaxed)
    }

    /// How many bytes have been passed to clients.
    #[must_use]
    pub fn bytes_down(&self) -> u64 {
        self.shared.down.load(Ordering::Relaxed)
    }

    /// How many times a client had to wait for its server: answers that followed a question, over all connections.
    ///
    /// Questions sent without waiting for the answer to the one before count as one; so do answers.
    #[must_use]
    pub fn round_trips(&self) -> u64 {
        self.shared.round_trips.load(Ordering::Relaxed)
    }
}

async fn accept(listener: TcpListener, shared: Arc<ProxyState>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    shared.accepted.fetch_add(1, Ordering::Relaxed);
                    let open = Open::new(Arc::clone(&shared));
                    let upstream = *shared.upstream.lock().unwrap_or_else(PoisonError::into_inner);
                    let reset = shared.resets.subscribe();
                    connections.spawn(connection(client, upstream, open, reset));
                }
                // out of file descriptors: the next connection that ends gives some back
                Err(_) => match connections.join_next().await {
                    Some(_) => {}
                    None => return,
                },
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Counts a connection for as long as it is open.
struct Open(Arc<ProxyState>);

impl Open {
    fn new(shared: Arc<ProxyState>) -> Self {
        shared.open.send_modify(|open| *open += 1);
        Self(shared)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| *open -= 1);
    }
}

async fn connection(mut client: TcpStream, upstream: SocketAddr, open: Open, mut reset: watch::Receiver<usize>) {
    // the sender outlives every connection
    let connected = tokio::select! {
        connected = TcpStream::connect(upstream) => connected,
        _ = reset.changed() => return reset_at_the_end(&[&client]),
    };
    // one that cannot be made ends the client's, in order
    let Ok(mut server) = connected else { return };
    // small pieces are what is measured here
    let _ = client.set_nodelay(true).and_then(|()| server.set_nodelay(true));
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let asked = &AtomicU64::default();
    let passing = async {
        tokio::join!(
            pass(from_client, to_server, Direction::Up, &open.0, asked),
            pass(from_server, to_client, Direction::Down, &open.0, asked),
        );
    };
    tokio::select! {
        () = passing => {}
        _ = reset.changed() => reset_at_the_end(&[&client, &server]),
    }
}

/// What is dropped then is reset, and not ended in order.
fn reset_at_the_end(connections: &[&TcpStream]) {
    for connection in connections {
        // one that has broken by itself needs none
        let _ = connection.set_zero_linger();
    }
}

/// Passes one direction on until it ends, and then the end.
async fn pass(from: ReadHalf<'_>, to: WriteHalf<'_>, direction: Direction, shared: &ProxyState, asked: &AtomicU64) {
    let (sender, pieces) = mpsc::channel(ON_THE_WAY);
    tokio::join!(read(from, sender, shared), write(to, pieces, direction, shared, asked));
}

/// Stamps each piece with the instant at which it may arrive; an empty one is the end.
async fn read(mut from: ReadHalf<'_>, pieces: mpsc::Sender<(Instant, Vec<u8>)>, shared: &ProxyState) {
    let mut buffer = vec![0; PIECE];
    loop {
        // one side's reset is the other side's end
        let length = from.read(&mut buffer).await.unwrap_or(0);
        let due = Instant::now() + shared.faults.borrow().delay;
        if pieces.send((due, buffer[..length].to_vec())).await.is_err() || length == 0 {
            return;
        }
    }
}

async fn write(
    mut to: WriteHalf<'_>,
    mut pieces: mpsc::Receiver<(Instant, Vec<u8>)>,
    direction: Direction,
    shared: &ProxyState,
    asked: &AtomicU64,
) {
    let mut faults = shared.faults.subscribe();
    while let Some((due, piece)) = pieces.recv().await {
        sleep_until(due).await;
        // the sender outlives every connection
        let passes = |faults: &Faults| {
            let trips = shared.round_trips.load(Ordering::Relaxed);
            let stays_below = |last: Option<u64>, trips| last.is_none_or(|last| trips <= last);
            !faults.blackhole
                && match direction {
                    Direction::Up => stays_below(faults.cut_after, trips + 1),
                    Direction::Down => stays_below(faults.mute_after, trips + asked.load(Ordering::Relaxed)),
                }
        };
        let _ = faults.wait_for(passes).await;
        if piece.is_empty() {
            break;
        }
        let length = piece.len() as u64;
        // counted before it can be seen at the other end
        match direction {
            Direction::Up => {
                asked.store(1, Ordering::Relaxed);
                shared.up.fetch_add(length, Ordering::Relaxed);
            }
            Direction::Down => {
                shared.round_trips.fetch_add(asked.swap(0, Ordering::Relaxed), Ordering::Relaxed);
                shared.down.fetch_add(length, Ordering::Relaxed);
            }
        }
        if to.write_all(&piece).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}
