//! Redis and Valkey as harnesses: a user of its own on a server in a container.

use std::{
    marker::PhantomData,
    net::SocketAddr,
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, IntoConnectionInfo as _, RedisConnectionInfo, Value,
    aio::MultiplexedConnection, cmd,
};
use tokio::sync::Mutex;
use winddown_core::BoxError;
use winddown_redis::{Config, Redis, redis};
use winddown_testkit::{
    CheckoutOf, Harness, Leasable, Leased, Need, ServerUse, Servers, Setup, Stranger, containers,
    containers::Container, gone, proxy::Proxy,
};

/// A server there is an image of.
pub(crate) trait Version: Send + Sync + 'static {
    const IMAGE: &'static str;
    /// What its harness is called where each checkout has its own connection, and where all share one.
    const NAMES: [&'static str; 2];
    /// Those that the tests of this process use.
    fn servers() -> &'static Servers<Server>;

    /// One more.
    fn start() -> impl Future<Output = Result<Server, BoxError>> + Send {
        Server::start(containers::Setup::image(Self::IMAGE))
    }
}

pub(crate) struct Redis8;

impl Version for Redis8 {
    const IMAGE: &'static str = "redis:8";
    const NAMES: [&'static str; 2] = ["redis_8", "redis_8_shared"];

    fn servers() -> &'static Servers<Server> {
        static SERVERS: Servers<Server> = Servers::new(Redis8::NAMES[0], LEASED);
        &SERVERS
    }
}

pub(crate) struct Valkey8;

impl Version for Valkey8 {
    const IMAGE: &'static str = "valkey:8";
    const NAMES: [&'static str; 2] = ["valkey_8", "valkey_8_shared"];

    fn servers() -> &'static Servers<Server> {
        static SERVERS: Servers<Server> = Servers::new(Valkey8::NAMES[0], LEASED);
        &SERVERS
    }
}

/// How many servers of a version are leased at the same time.
const LEASED: usize = 4;

/// How many clients a server takes if nothing else is said.
const MOST_CLIENTS: usize = 10_000;

/// Where a server listens if nothing else is said.
pub(crate) const PORT: u16 = 6379;

/// How checkouts are connected.
pub(crate) trait Mode: Send + Sync + 'static {
    const LACKS: &'static [(Need, &'static str)];
    /// Its place among the names of a version.
    const NAME: usize;

    fn config(config: Config, setup: &Setup) -> Config;
}

/// Each has a connection of its own.
pub(crate) struct OfItsOwn;

impl Mode for OfItsOwn {
    const LACKS: &'static [(Need, &'static str)] = &[];
    const NAME: usize = 0;

    fn config(config: Config, setup: &Setup) -> Config {
        config.pooled(setup.size)
    }
}

/// All share one.
pub(crate) struct SharedByAll;

impl Mode for SharedByAll {
    const LACKS: &'static [(Need, &'static str)] = &[(Need::Slots, "all checkouts share one connection")];
    const NAME: usize = 1;

    fn config(mut config: Config, _: &Setup) -> Config {
        // The statements of the suite wait.
        config.response_timeout = None;
        config
    }
}

/// A server in a container of its own.
pub(crate) struct Server {
    pub(crate) container: Mutex<Container>,
    pub(crate) address: SocketAddr,
}

impl Server {
    pub(crate) async fn start(setup: containers::Setup) -> Result<Self, BoxError> {
        let setup = setup.args(["--save", "", "--loglevel", "verbose"]).ready(["Ready to accept connections"]);
        Self::start_on(PORT, setup).await
    }

    /// One that listens on this port.
    pub(crate) async fn start_on(port: u16, setup: containers::Setup) -> Result<Self, BoxError> {
        let container = setup.start().await?;
        let address = container.address(port);
        Ok(Self { container: Mutex::new(container), address })
    }

    /// A session of the superuser, on the runtime of the caller.
    pub(crate) async fn superuser(&self) -> Result<MultiplexedConnection, BoxError> {
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(10)));
        let began = Instant::now();
        loop {
            let client = Client::open(information(self.address, RedisConnectionInfo::default())?)?;
            match client.get_multiplexed_async_connection_with_config(&config).await {
                // The host has given up looking for one that was cut off. It begins anew when it is asked again.
                Err(_) if began.elapsed() < Duration::from_secs(10) => {}
                connected => return Ok(connected?),
            }
        }
    }
}

impl Leasable for Server {
    async fn restore(&mut self) -> Result<(), BoxError> {
        self.container.get_mut().restore().await?;
        let mut superuser = self.superuser().await?;
        is_replica(&mut superuser, false).await?;
        forget_clients(&mut superuser).await?;
        forget_data(&mut superuser).await
    }

    async fn remove(self) -> Result<(), BoxError> {
        Ok(self.container.into_inner().remove().await?)
    }
}

/// Whether it is a replica, which nobody may write to. It keeps its data: the primary that it is told to follow is not there.
pub(crate) async fn is_replica(superuser: &mut MultiplexedConnection, is_replica: bool) -> Result<(), BoxError> {
    let [host, port] = if is_replica { ["127.0.0.1", "1"] } else { ["NO", "ONE"] };
    Ok(cmd("REPLICAOF").arg(host).arg(port).exec_async(superuser).await?)
}

/// Makes a server what it was when it was started, as far as its clients can change it.
pub(crate) async fn forget_clients(superuser: &mut MultiplexedConnection) -> Result<(), BoxError> {
    let mut set = cmd("CONFIG");
    set.arg("SET").arg("maxclients").arg(MOST_CLIENTS).arg("timeout").arg(0);
    set.exec_async(superuser).await?;
    cmd("CLIENT").arg("UNPAUSE").exec_async(superuser).await?;
    let users: Vec<String> = cmd("ACL").arg("USERS").query_async(superuser).await?;
    for user in users.iter().filter(|user| user.starts_with(TENANT)) {
        cmd("ACL").arg("DELUSER").arg(user).exec_async(superuser).await?;
    }
    let own: u64 = cmd("CLIENT").arg("ID").query_async(superuser).await?;
    let others = async || {
        let mut listed = Listed::all(&mut superuser.clone()).await?;
        listed.retain(|session| session.id != own && !session.is_of_another_server());
        Ok::<_, BoxError>(listed)
    };
    for session in others().await? {
        cmd("CLIENT").arg("KILL").arg("ID").arg(session.id).exec_async(&mut superuser.clone()).await?;
    }
    match gone(async || Ok(others().await?.len())).await? {
        0 => Ok(()),
        left => Err(format!("{left} sessions do not end").into()),
    }
}

/// The same for its data. It takes writes, or this is an error.
pub(crate) async fn forget_data(superuser: &mut MultiplexedConnection) -> Result<(), BoxError> {
    cmd("FLUSHALL").exec_async(superuser).await?;
    cmd("SCRIPT").arg("FLUSH").exec_async(superuser).await?;
    cmd("SET").arg(TENANT).arg(1).exec_async(superuser).await?;
    cmd("DEL").arg(TENANT).exec_async(superuser).await?;
    Ok(())
}

fn information(address: SocketAddr, settings: RedisConnectionInfo) -> Result<ConnectionInfo, BoxError> {
    Ok((address.ip().to_string(), address.port()).into_connection_info()?.set_redis_settings(settings))
}

/// How the names of tenants begin.
const TENANT: &str = "tenant_";

/// A user, who may use the keys that begin with its name.
#[derive(Clone)]
pub(crate) struct Tenant {
    pub(crate) name: String,
    pub(crate) password: String,
}

impl Tenant {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Nobody logs on as one of another case, no log has it by chance, and no name begins with another.
        Self { name: format!("{TENANT}{number:05}"), password: format!("s3cret-{number}-{:016x}", fastrand::u64(..)) }
    }

    pub(crate) async fn create(superuser: &mut MultiplexedConnection) -> Result<Self, BoxError> {
        let tenant = Self::new();
        tenant.create_on(superuser).await?;
        Ok(tenant)
    }

    pub(crate) async fn create_on(&self, superuser: &mut MultiplexedConnection) -> Result<(), BoxError> {
        let Self { name, password } = self;
        let mut create = cmd("ACL");
        create.arg("SETUSER").arg(name).arg("on").arg(format!(">{password}")).arg(format!("~{}", self.key("*")));
        create.arg("&*").arg("+@all");
        Ok(create.exec_async(superuser).await?)
    }

    pub(crate) async fn drop_on(&self, superuser: &mut MultiplexedConnection) -> Result<(), BoxError> {
        cmd("ACL").arg("DELUSER").arg(&self.name).exec_async(superuser).await?;
        let keys: Vec<String> = cmd("KEYS").arg(self.key("*")).query_async(superuser).await?;
        if !keys.is_empty() {
            cmd("DEL").arg(keys).exec_async(superuser).await?;
        }
        Ok(())
    }

    pub(crate) fn config(&self, address: SocketAddr, setup: &Setup) -> Config {
        let password = if setup.wrong_password { "not it" } else { &self.password };
        let settings = RedisConnectionInfo::default().set_username(&self.name).set_password(password);
        let mut config = Config::from(information(address, settings).expect("an address is one"));
        config.check_after = setup.check_after_idle.unwrap_or(config.check_after);
        // On a machine that does other work an answer may take its time, and no test is about that by the way.
        config.response_timeout = Some(Duration::from_secs(20));
        config.connect_timeout = Some(Duration::from_secs(5));
        config
    }

    /// One of its keys. All of them are in one slot of a cluster.
    pub(crate) fn key(&self, name: &str) -> String {
        format!("{{{}}}:{name}", self.name)
    }
}

/// One server, spoken to directly.
pub(crate) struct RedisServer<V, M> {
    pub(crate) server: Leased<Server>,
    pub(crate) tenant: Tenant,
    /// Between the resource and the server, where the case may want to slow it down.
    proxy: Option<Proxy>,
    superuser: Mutex<MultiplexedConnection>,
    feeder: Feeder,
    kind: PhantomData<(V, M)>,
}

impl<V: Version, M: Mode> RedisServer<V, M> {
    /// What the server says of each of the tenant's sessions.
    pub(crate) async fn listed(&self) -> Result<Vec<Listed>, BoxError> {
        Listed::of(&self.tenant, &mut self.superuser().await).await
    }

    pub(crate) async fn superuser(&self) -> MultiplexedConnection {
        self.superuser.lock().await.clone()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.proxy.as_ref().map_or(self.server.address, Proxy::address)
    }

    /// Ends these of the tenant's sessions. They are gone when this returns.
    pub(crate) async fn end_sessions(&self, which: impl Fn(&Listed) -> bool + Send + Sync) -> Result<(), BoxError> {
        end_sessions(&self.tenant, &self.superuser().await, which).await
    }
}

/// Ends these of a tenant's sessions with a server. They are gone when this returns.
pub(crate) async fn end_sessions(
    tenant: &Tenant,
    superuser: &MultiplexedConnection,
    which: impl Fn(&Listed) -> bool + Send + Sync,
) -> Result<(), BoxError> {
    let mut asking = superuser.clone();
    for session in Listed::of(tenant, &mut asking).await?.into_iter().filter(|session| which(session)) {
        cmd("CLIENT").arg("KILL").arg("ID").arg(session.id).exec_async(&mut asking).await?;
    }
    // One that the server was told to end may be listed until it has turned round once.
    let listed = || async {
        let listed = Listed::of(tenant, &mut superuser.clone()).await?;
        Ok(listed.iter().filter(|session| which(session)).count())
    };
    match gone(listed).await? {
        0 => Ok(()),
        left => Err(format!("{left} sessions were not ended").into()),
    }
}

/// What a stranger's sessions are called.
const STRANGER: &str = "stranger";

/// A stranger with the tenant's user: one session waits for what the other one pushes.
pub(crate) async fn stranger(tenant: &Tenant, address: SocketAddr) -> Result<Stranger, BoxError> {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let list = tenant.key(&format!("stranger_{}", NEXT.fetch_add(1, Ordering::Relaxed)));
    let settings = RedisConnectionInfo::default().set_username(&tenant.name).set_password(&tenant.password);
    let client = Client::open(information(address, settings)?)?;
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let connected = async || {
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        cmd("CLIENT").arg("SETNAME").arg(STRANGER).exec_async(&mut connection).await?;
        let id: u64 = cmd("CLIENT").arg("ID").query_async(&mut connection).await?;
        Ok::<_, BoxError>((connection, id))
    };
    let (mut pushes, own) = connected().await?;
    let (mut pops, id) = connected().await?;
    let mut pop = cmd("BLPOP");
    pop.arg(&list).arg(0);
    let waits = async move {
        let popped: Option<(String, String)> = pop.query_async(&mut pops).await?;
        match popped {
            Some((_, element)) if element == STRANGER => Ok(()),
            other => Err(format!("it was unblocked: {other:?}").into()),
        }
    };
    let lets_go = {
        let mut pushes = pushes.clone();
        async move {
            let id: u64 = cmd("CLIENT").arg("ID").query_async(&mut pushes).await?;
            if id != own {
                return Err(format!("it was {own}, and is {id}").into());
            }
            Ok(cmd("RPUSH").arg(list).arg(STRANGER).exec_async(&mut pushes).await?)
        }
    };
    let stranger = Stranger::new(waits, lets_go);
    let began = Instant::now();
    while !Listed::all(&mut pushes).await?.iter().any(|line| line.id == id && line.is_blocked()) {
        if began.elapsed() > Duration::from_secs(30) {
            // What it was told instead, if anything.
            stranger.untouched().await?;
            return Err("the stranger's BLPOP does not block".into());
        }
    }
    Ok(stranger)
}

/// Whether a server is to refuse every new session.
pub(crate) async fn refuse_all(superuser: &mut MultiplexedConnection, full: bool) -> Result<(), BoxError> {
    let most = if full { Listed::all(superuser).await?.len() } else { MOST_CLIENTS };
    Ok(cmd("CONFIG").arg("SET").arg("maxclients").arg(most).exec_async(superuser).await?)
}

/// A line of the server's list of clients.
pub(crate) struct Listed {
    pub(crate) id: u64,
    pub(crate) user: String,
    pub(crate) name: String,
    pub(crate) flags: String,
}

impl Listed {
    /// What a server says of each of its sessions.
    pub(crate) async fn all(superuser: &mut MultiplexedConnection) -> Result<Vec<Self>, BoxError> {
        let list: String = cmd("CLIENT").arg("LIST").query_async(superuser).await?;
        list.lines().map(Self::parse).collect()
    }

    /// What a server says of each of the tenant's sessions. Those of strangers are somebody else's.
    pub(crate) async fn of(tenant: &Tenant, superuser: &mut MultiplexedConnection) -> Result<Vec<Self>, BoxError> {
        let mut listed = Self::all(superuser).await?;
        listed.retain(|line| line.user == tenant.name && line.name != STRANGER);
        Ok(listed)
    }

    fn parse(line: &str) -> Result<Self, BoxError> {
        let field = |name: &str| {
            let mut fields = line.split(' ').filter_map(|field| field.split_once('='));
            let found = fields.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned());
            found.ok_or_else(|| format!("the list of clients has no {name}: {line}"))
        };
        Ok(Self { id: field("id")?.parse()?, user: field("user")?, name: field("name")?, flags: field("flags")? })
    }

    /// Whether it is a sentinel's, a replica's, or the primary's.
    fn is_of_another_server(&self) -> bool {
        self.name.starts_with("sentinel-") || self.flags.contains(['S', 'M'])
    }

    /// Whether it waits in a command.
    pub(crate) fn is_blocked(&self) -> bool {
        self.flags.contains('b')
    }
}

impl<V: Version, M: Mode> Harness for RedisServer<V, M> {
    type Resource = Redis;

    const NAME: &'static str = V::NAMES[M::NAME];
    const LACKS: &'static [(Need, &'static str)] = M::LACKS;

    fn skipped() -> Option<String> {
        containers::skipped().map(Into::into)
    }

    async fn start(use_of_it: ServerUse) -> Result<Self, BoxError> {
        let server = V::servers().get(use_of_it, V::start).await?;
        let proxy = match use_of_it {
            ServerUse::Shared => None,
            ServerUse::Own => Some(Proxy::start(server.address).await?),
        };
        let mut superuser = server.superuser().await?;
        let tenant = Tenant::create(&mut superuser).await?;
        let feeder = Feeder::start(server.address)?;
        Ok(Self { server, tenant, proxy, superuser: Mutex::new(superuser), feeder, kind: PhantomData })
    }

    fn resource(&self, setup: &Setup) -> Redis {
        Redis::new(M::config(self.tenant.config(self.address(), setup), setup))
    }

    async fn run(&self, connection: &mut CheckoutOf<Self>, takes: Duration) -> Result<(), BoxError> {
        self.feeder.run(&self.tenant, connection, takes).await
    }

    async fn ping(&self, connection: &mut CheckoutOf<Self>) -> Result<(), BoxError> {
        Ok(cmd("PING").exec_async(connection).await?)
    }

    async fn stranger(&self) -> Result<Stranger, BoxError> {
        stranger(&self.tenant, self.server.address).await
    }

    async fn rows(&self) -> Result<usize, BoxError> {
        Ok(cmd("LLEN").arg(self.tenant.key(ROWS)).query_async(&mut self.superuser().await).await?)
    }

    async fn sessions(&self) -> Result<usize, BoxError> {
        Ok(self.listed().await?.len())
    }

    async fn running(&self) -> Result<usize, BoxError> {
        Ok(self.listed().await?.iter().filter(|session| session.is_blocked()).count())
    }

    fn container(&self) -> Option<&Mutex<Container>> {
        Some(&self.server.container)
    }

    fn proxy(&self) -> Option<&Proxy> {
        self.proxy.as_ref()
    }

    async fn ask_anew(&self) -> Result<(), BoxError> {
        let mut superuser = self.server.superuser().await?;
        // One that was started again has forgotten its users.
        self.tenant.create_on(&mut superuser).await?;
        *self.superuser.lock().await = superuser;
        Ok(())
    }

    async fn full(&self, full: bool) -> Result<(), BoxError> {
        refuse_all(&mut self.superuser().await, full).await
    }

    async fn close_idle(&self) -> Result<(), BoxError> {
        self.end_sessions(|session| !session.is_blocked()).await
    }

    fn secret(&self) -> Option<&str> {
        Some(&self.tenant.password)
    }

    async fn end(self) -> Result<(), BoxError> {
        if !self.server.is_shared() {
            // It is put back, whatever the case has done to it.
            return Ok(());
        }
        let left = gone(|| self.sessions()).await?;
        let mut superuser = self.superuser().await;
        self.tenant.drop_on(&mut superuser).await?;
        match left {
            0 => Ok(()),
            left => Err(format!("the server still lists {left} sessions").into()),
        }
    }
}

/// The list that statements leave their rows in.
pub(crate) const ROWS: &str = "rows";

/// Ends the statements of the suite when it is time: each waits for an element of a list, and moves it to the list of rows.
/// Cancelled it moves none. Nothing else takes a time that can be said on a server with one thread.
pub(crate) struct Feeder {
    feeds: mpsc::Sender<(Instant, String)>,
    next: AtomicU32,
}

impl Feeder {
    /// On a thread of its own: a case may have stopped its runtimes.
    pub(crate) fn start(address: SocketAddr) -> Result<Self, BoxError> {
        let client = Client::open(information(address, RedisConnectionInfo::default())?)?;
        let (feeds, due) = mpsc::channel();
        thread::Builder::new().name("feeder".to_owned()).spawn(move || feed(&client, &due))?;
        Ok(Self { feeds, next: AtomicU32::new(1) })
    }

    pub(crate) async fn run(
        &self,
        tenant: &Tenant,
        connection: &mut impl redis::aio::ConnectionLike,
        takes: Duration,
    ) -> Result<(), BoxError> {
        let source = tenant.key(&format!("source_{}", self.next.fetch_add(1, Ordering::Relaxed)));
        self.feeds.send((Instant::now() + takes, source.clone()))?;
        let mut wait = cmd("BLMOVE");
        wait.arg(source).arg(tenant.key(ROWS)).arg("LEFT").arg("RIGHT").arg(0);
        match wait.query_async(connection).await? {
            Value::BulkString(_) => Ok(()),
            other => Err(format!("nothing was moved: {other:?}").into()),
        }
    }
}

/// Until nobody can ask any more.
fn feed(client: &Client, due: &mpsc::Receiver<(Instant, String)>) {
    let mut waiting: Vec<(Instant, String)> = Vec::new();
    loop {
        let next = waiting.iter().map(|(when, _)| *when).min();
        let wait = next.map_or(Duration::from_secs(3600), |when| when.saturating_duration_since(Instant::now()));
        match due.recv_timeout(wait) {
            Ok(feed) => waiting.push(feed),
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        let now = Instant::now();
        for (_, source) in waiting.extract_if(.., |(when, _)| *when <= now) {
            let fed = client.get_connection_with_timeout(Duration::from_secs(1));
            let fed = fed.and_then(|mut connection| cmd("RPUSH").arg(&source).arg(1).exec(&mut connection));
            if let Err(error) = fed {
                // The server may be gone, as the case wants it; a statement that is not fed does not end.
                eprintln!("{source} was not fed: {error}");
            }
        }
    }
}
