//! Memcached as a harness. It has no users by which the sessions of one test could be told from those of another, so each test
//! has a server to itself.

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{Mutex, oneshot},
    time::{sleep, timeout},
};
use winddown_core::BoxError;
use winddown_memcached_adapter::Memcached;
use winddown_testkit::{
    CheckoutOf, Harness, Leasable, Leased, Need, ServerUse, Servers, Setup, Stranger,
    containers::{self, Container},
    gone,
    proxy::Proxy,
};

/// A server in a container.
pub(crate) struct Server {
    container: Mutex<Container>,
    pub(crate) address: SocketAddr,
}

static SERVERS: Servers<Server> = Servers::new("memcached_1_6", 6);

impl Server {
    pub(crate) async fn lease() -> Result<Leased<Self>, BoxError> {
        SERVERS.get(ServerUse::Own, Self::start).await
    }

    async fn start() -> Result<Self, BoxError> {
        let container = containers::Setup::memcached("1.6").start().await?;
        Ok(Self { address: container.address(11211), container: Mutex::new(container) })
    }

    /// How many sessions it lists, but for the one that asks.
    async fn sessions(&self) -> Result<usize, BoxError> {
        let states = answer(connect(self.address).await?, "stats conns\r\nquit\r\n").await?;
        let states = states.lines().filter(|line| line.contains(":state ") && !line.ends_with("conn_listening"));
        states.count().checked_sub(1).ok_or_else(|| "it does not list who asks".into())
    }
}

impl Leasable for Server {
    async fn restore(&mut self) -> Result<(), BoxError> {
        self.container.get_mut().restore().await?;
        match gone(|| self.sessions()).await? {
            0 => Ok(()),
            listed => Err(format!("it still lists {listed} sessions").into()),
        }
    }

    async fn remove(self) -> Result<(), BoxError> {
        Ok(self.container.into_inner().remove().await?)
    }
}

/// A connection, when the way there is open.
async fn connect(address: SocketAddr) -> Result<TcpStream, BoxError> {
    let connecting = async {
        loop {
            match TcpStream::connect(address).await {
                Ok(stream) => return stream,
                // The host has given up looking for one that was cut off. It begins anew when it is asked again.
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    };
    Ok(timeout(Duration::from_secs(20), connecting).await?)
}

/// One round trip.
async fn speak(stream: &mut TcpStream) -> Result<(), BoxError> {
    stream.write_all(b"version\r\n").await?;
    let answered = async {
        while stream.read_u8().await? != b'\n' {}
        Ok::<_, io::Error>(())
    };
    Ok(timeout(Duration::from_secs(20), answered).await??)
}

/// What it answers, until it closes its side.
async fn answer(mut stream: TcpStream, request: &str) -> Result<String, BoxError> {
    let mut answer = String::new();
    stream.write_all(request.as_bytes()).await?;
    timeout(Duration::from_secs(20), stream.read_to_string(&mut answer)).await??;
    Ok(answer)
}

/// A server, and what is between it and the resource.
pub(crate) struct Memcached16 {
    server: Leased<Server>,
    /// For a case that breaks its server.
    proxy: Option<Proxy>,
    /// How many lines the server had written before.
    before: usize,
    /// How many sessions strangers have.
    strangers: Arc<AtomicUsize>,
}

impl Harness for Memcached16 {
    type Resource = Memcached;

    const NAME: &'static str = "memcached_1_6";
    const LACKS: &'static [(Need, &'static str)] = &[
        (Need::Statements, "every command is answered at once"),
        (Need::Cancel, "every command is answered at once"),
        (Need::Password, "nobody logs in"),
        (Need::Full, "how many clients it takes cannot be changed while it runs"),
        (Need::CloseIdle, "its idle timeout cannot be changed while it runs"),
    ];

    fn skipped() -> Option<String> {
        containers::skipped().map(Into::into)
    }

    async fn start(use_of_it: ServerUse) -> Result<Self, BoxError> {
        let server = Server::lease().await?;
        let proxy = match use_of_it {
            ServerUse::Shared => None,
            ServerUse::Own => Some(Proxy::start(server.address).await?),
        };
        let before = server.container.lock().await.logs().await?.lines().count();
        Ok(Self { server, proxy, before, strangers: Arc::default() })
    }

    fn resource(&self, setup: &Setup) -> Memcached {
        let address = self.proxy.as_ref().map_or(self.server.address, Proxy::address);
        Memcached::new(address.to_string()).size(setup.size)
    }

    async fn ping(&self, session: &mut CheckoutOf<Self>) -> Result<(), BoxError> {
        session.version().await?;
        Ok(())
    }

    async fn sessions(&self) -> Result<usize, BoxError> {
        Ok(self.server.sessions().await?.saturating_sub(self.strangers.load(Ordering::SeqCst)))
    }

    /// One session that waits, and one that is idle until it is asked.
    async fn stranger(&self) -> Result<Stranger, BoxError> {
        let (mut waits, mut asks) = (connect(self.server.address).await?, connect(self.server.address).await?);
        // It lists them when it has accepted them.
        speak(&mut waits).await?;
        speak(&mut asks).await?;
        let strangers = Arc::clone(&self.strangers);
        strangers.fetch_add(2, Ordering::SeqCst);
        let (let_go, is_let_go) = oneshot::channel();
        let waits = async move {
            tokio::select! {
                ended = waits.read_u8() => Err(format!("it has ended: {ended:?}").into()),
                released = is_let_go => {
                    released?;
                    answer(waits, "quit\r\n").await.map(drop)
                }
            }
        };
        let lets_go = async move {
            if !answer(asks, "version\r\nquit\r\n").await?.starts_with("VERSION ") {
                return Err("it does not answer any more".into());
            }
            strangers.fetch_sub(2, Ordering::SeqCst);
            let_go.send(()).map_err(|()| "it is gone".into())
        };
        Ok(Stranger::new(waits, lets_go))
    }

    fn container(&self) -> Option<&Mutex<Container>> {
        Some(&self.server.container)
    }

    fn proxy(&self) -> Option<&Proxy> {
        self.proxy.as_ref()
    }

    /// Sessions that were closed without `quit`.
    async fn complaints(&self) -> Result<Vec<String>, BoxError> {
        let log = self.server.container.lock().await.logs().await?;
        // Those that were opened in this test and have not said `quit`.
        let (mut silent, mut complaints) = (BTreeSet::new(), Vec::new());
        // `<28 new auto-negotiating client connection`, `<28 quit`, `<28 connection closed.`
        for (session, what) in log.lines().skip(self.before).filter_map(|line| line.strip_prefix('<')?.split_once(' '))
        {
            match what {
                "quit" => drop(silent.remove(session)),
                "connection closed." if silent.remove(session) => complaints.push(format!("{session}: no goodbye")),
                what if what.starts_with("new ") => drop(silent.insert(session)),
                _ => {}
            }
        }
        Ok(complaints)
    }
}
