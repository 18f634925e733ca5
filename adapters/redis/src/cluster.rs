//! A cluster: the driver's client finds the node for each command, over sessions of ours.
//!
//! The client opens its connections by a type of ours, [`Node`], and gives it an address and nothing else: what a node is
//! opened with must be found by a text that the client passes on. That is the name of the user. Who really logs on, and what
//! with, is in [`Opener`], and the client does not know it.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, Pipeline, RedisFuture, RedisResult,
    Value,
    aio::ConnectionLike,
    cluster::{ClusterClient, ClusterClientBuilder},
    cluster_async::{self, Connect},
    cluster_routing::{MultipleNodeRoutingInfo, ResponsePolicy, RoutingInfo},
};
use tokio::time::timeout;
use winddown_core::{Error, ErrorKind, adapter::IdleCheck};
use winddown_net::Server;

use crate::{
    config::Config,
    connect::Connector,
    error::{closed, error, refused},
    handle::Handle,
};

/// Nodes of a cluster, and how the driver's client finds the others: see [`Config::cluster`].
#[derive(Clone)]
#[non_exhaustive]
pub struct Nodes {
    /// Who is asked for the nodes besides the first, `Config::driver`. What they say but where they are counts for nothing.
    pub others: Vec<ConnectionInfo>,
    /// Sets the client up: reading from replicas, retries, a map of addresses and so on.
    /// ([Its list](https://docs.rs/redis/latest/redis/cluster/struct.ClusterClientBuilder.html).) User, password, TLS, the
    /// protocol and the sender of pushes are those of [`Config`], whatever it sets.
    ///
    /// Defaults to `None`: the driver's defaults.
    pub client: Option<Arc<dyn Fn(ClusterClientBuilder) -> ClusterClientBuilder + Send + Sync>>,
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nodes").field("others", &self.others).field("client", &self.client.is_some()).finish()
    }
}

/// The driver's connection with a cluster, over our sessions with its nodes.
pub type ClusterConnection = cluster_async::ClusterConnection<Node>;

/// One session with one node of a cluster, as the driver's client uses it.
#[derive(Debug, Clone)]
pub struct Node(Handle);

impl ConnectionLike for Node {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(self.0.command(command))
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(self.0.pipeline(pipeline, offset, count))
    }

    fn get_db(&self) -> i64 {
        self.0.database()
    }
}

/// For the driver's client. What it connects for is over when nothing is opened any more, and then this is an error.
impl Connect for Node {
    fn connect_with_config<'a, T>(info: T, config: AsyncConnectionConfig) -> RedisFuture<'a, Self>
    where
        T: IntoConnectionInfo + Send + 'a,
    {
        Box::pin(async move {
            let info = info.into_connection_info()?;
            let opener = info.redis_settings().username().and_then(Opener::called).ok_or_else(closed)?;
            opener.open(&info, config).await.map(Node)
        })
    }
}

/// Opens sessions with the nodes of one cluster.
struct Opener {
    connector: Connector,
    /// All checkouts are back: nothing is opened any more.
    closed: AtomicBool,
    /// While draining: the nodes that could not be reached. The client would try them for as long as somebody waits.
    gone: Mutex<Option<HashSet<Server>>>,
    /// Why the last session could not be opened. The client makes a text of it.
    failed: Mutex<Option<Error>>,
}

/// What the clients of this process open nodes with.
static ALL: Mutex<BTreeMap<u64, Weak<Opener>>> = Mutex::new(BTreeMap::new());

/// What comes before its number in the name of an [`Opener`].
const NAME: &str = "winddown-cluster-";

impl Opener {
    fn all() -> MutexGuard<'static, BTreeMap<u64, Weak<Self>>> {
        ALL.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn called(name: &str) -> Option<Arc<Self>> {
        let number = name.strip_prefix(NAME)?.parse().ok()?;
        Self::all().get(&number)?.upgrade()
    }

    async fn open(&self, info: &ConnectionInfo, config: AsyncConnectionConfig) -> RedisResult<Handle> {
        let (ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. }) = info.addr() else {
            // The client has refused every other address.
            return Err(closed());
        };
        let server = Server::tcp(host, *port);
        if self.is_closed() || self.gone().as_ref().is_some_and(|gone| gone.contains(&server)) {
            return Err(closed());
        }
        match self.connector.open_with(&server, config).await {
            // Whoever closes meanwhile may have missed this one. Without its handle it says goodbye.
            Ok(_) if self.is_closed() => Err(closed()),
            Ok(handle) => Ok(handle),
            Err(error) => {
                *self.failed() = Some(error.clone());
                if let Some(gone) = &mut *self.gone() {
                    gone.insert(server);
                }
                Err(refused(error))
            }
        }
    }

    fn is_closed(&self) -> bool {
        // SeqCst, here and where it is set: read once for each session, and nothing is gained by less.
        self.closed.load(Ordering::SeqCst)
    }

    fn gone(&self) -> MutexGuard<'_, Option<HashSet<Server>>> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self) -> MutexGuard<'_, Option<Error>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection with a cluster for all.
pub(crate) struct Cluster {
    number: u64,
    opener: Arc<Opener>,
    connection: Mutex<Option<ClusterConnection>>,
    idle_check: IdleCheck<()>,
    /// When it was last handed out.
    used: Mutex<Instant>,
}

impl Cluster {
    pub(crate) fn new(connector: Connector) -> Result<Self, Error> {
        if connector.config.pool.is_some() {
            let text = "the checkouts of a cluster share a connection: leave Config::pooled out";
            return Err(Error::new(ErrorKind::Config, text));
        }
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let idle_check = IdleCheck::new(connector.config.check_after);
        let opener = Arc::new(Opener {
            connector,
            closed: AtomicBool::new(false),
            gone: Mutex::default(),
            failed: Mutex::default(),
        });
        Opener::all().insert(number, Arc::downgrade(&opener));
        Ok(Self { number, opener, connection: Mutex::default(), idle_check, used: Mutex::new(Instant::now()) })
    }

    fn config(&self) -> &Config {
        &self.opener.connector.config
    }

    fn connection(&self) -> MutexGuard<'_, Option<ClusterConnection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn client(&self) -> RedisResult<ClusterClient> {
        let Config { driver, cluster, push_sender, response_timeout, .. } = self.config();
        let protocol = driver.redis_settings().protocol();
        let others = cluster.iter().flat_map(|cluster| &cluster.others);
        // Where they are, and no more: the rest is ours.
        let nodes = [driver].into_iter().chain(others).map(|node| match node.addr() {
            ConnectionAddr::TcpTls { host, port, .. } => ConnectionAddr::Tcp(host.clone(), *port),
            address => address.clone(),
        });
        let mut builder = ClusterClientBuilder::new(nodes).overall_response_timeout(*response_timeout);
        // The driver's own are longer than the response_timeout is by default, and so no second try would come in time.
        builder = builder.min_retry_wait(50).max_retry_wait(500);
        if let Some(settings) = cluster.as_ref().and_then(|cluster| cluster.client.as_ref()) {
            builder = settings(builder);
        }
        builder = builder.username(format!("{NAME}{}", self.number)).use_protocol(protocol);
        if let Some(pushes) = push_sender {
            builder = builder.push_sender(Arc::clone(pushes));
        }
        builder.build()
    }

    /// Connects with a node, and with all those that it names.
    ///
    /// # Cancel safety
    /// Cancel safe: sessions that are open then say goodbye.
    pub(crate) async fn open(&self) -> Result<(), Error> {
        let bad = |source| Error::new(ErrorKind::Config, "the nodes of the cluster cannot be used").with_source(source);
        let client = self.client().map_err(bad)?;
        // Hidden in its documentation, and the only way to bring connections of one's own.
        let opened = client.get_async_generic_connection().await;
        let connection = opened.map_err(|source| {
            if source.detail().is_some_and(|text| text.starts_with("This instance has cluster support disabled")) {
                let text = "the server is no node of a cluster: open it without Config::cluster";
                return Error::new(ErrorKind::Config, text).with_source(source);
            }
            let failed = self.opener.failed().take();
            failed.unwrap_or_else(|| error(ErrorKind::Init, "cannot open the cluster", source))
        })?;
        *self.connection() = Some(connection);
        Ok(())
    }

    /// The connection; its sessions are looked at if it has been idle.
    pub(crate) async fn get(&self) -> Result<ClusterConnection, Error> {
        let gone = || Error::new(ErrorKind::ShuttingDown, "shutting down: the connection is let go");
        let mut connection = self.connection().clone().ok_or_else(gone)?;
        let used = std::mem::replace(&mut *self.used.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
        if self.idle_check.is_suspect(used) {
            // Boxed, since it happens seldom: else it nests too deep for the compiler.
            Box::pin(self.check(&mut connection)).await;
        }
        Ok(connection)
    }

    /// Lets sessions go that do not answer. The client opens others.
    async fn check(&self, connection: &mut ClusterConnection) {
        let sessions = &self.opener.connector.sessions;
        // What a server has closed meanwhile is known to the kernel.
        sessions.sweep(|_| true);
        let every = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllNodes, Some(ResponsePolicy::AllSucceeded)));
        let asked = sessions.open();
        let asking = connection.route_command(redis::cmd("PING"), every);
        if !matches!(timeout(self.config().check_timeout, asking).await, Ok(Ok(_))) {
            for session in asked.iter().filter(|session| session.part().is_busy()) {
                tracing::debug!(?session, "a node did not answer after a rest, replacing the session");
                session.part().leave();
            }
        }
    }

    /// Draining begins: a node is tried once more, and not for ever.
    pub(crate) fn begin_drain(&self) {
        self.opener.gone().get_or_insert_default();
    }

    /// No checkout is out any more. The client may be in the middle of something, on a runtime that does not run: its
    /// sessions say goodbye all the same.
    pub(crate) fn close(&self) {
        self.opener.closed.store(true, Ordering::SeqCst);
        let last = self.connection().take();
        drop(last);
        for session in self.opener.connector.sessions.open() {
            session.part().leave();
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        Opener::all().remove(&self.number);
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("nodes", &self.config().cluster).finish_non_exhaustive()
    }
}
