//! Redis behind Sentinel as a harness.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::try_join_all;
use redis::{aio::MultiplexedConnection, cmd};
use tokio::time::sleep;
use winddown_core::BoxError;
use winddown_redis::{Config, Redis, redis};
use winddown_testkit::{
    CheckoutOf, Harness, Leasable, Leased, Need, ServerUse, Servers, Setup, Stranger, containers, containers::Network,
    gone,
};

use crate::{
    group::{Group, Watch},
    server::{Feeder, Listed, PORT, Server, forget_clients, forget_data},
};

const IMAGE: &str = "redis:8";

/// The name that the sentinels know the primary by.
pub(crate) const PRIMARY: &str = "orders";

/// Enough for two of them to outvote one.
const SENTINELS: usize = 3;

const SENTINEL_PORT: u16 = 26379;

/// What the replica may take to have the primary's data, and the sentinels to find each other: they say hello every two
/// seconds.
const LIMIT: Duration = Duration::from_secs(30);

/// After what time without an answer a primary is replaced where nothing is about that: one that is slow on a busy machine is not.
pub(crate) const PATIENT: Duration = Duration::from_secs(600);

/// Groups of servers are slow to start, and each has several containers.
static SERVERS: Servers<Watched> = Servers::new(RedisSentinel::NAME, 3);

/// A primary with one replica, and the sentinels that watch them.
pub(crate) struct Watched {
    /// The primary first, as long as nobody has made it fail over.
    pub(crate) servers: Arc<Group>,
    pub(crate) sentinels: Group,
}

impl Watched {
    /// A primary that has not answered for `down_after` is replaced.
    async fn start(down_after: Duration) -> Result<Self, BoxError> {
        let network = Network::create().await?;
        // Else a replica waits five seconds for others to come.
        let server = || containers::Setup::image(IMAGE).args(["--repl-diskless-sync-delay", "0"]).network(&network);
        let primary = Server::start(server()).await?;
        let (ip, port) = (primary.address.ip().to_string(), PORT.to_string());
        let replica = Server::start(server().args(["--replicaof", &format!("{ip} {port}")])).await?;
        // A sentinel asks the primary for its replicas at once, and then every ten seconds.
        replica.container.lock().await.wait_for(["REPLICA sync: Finished with success"], LIMIT).await?;
        let settings = format!(
            "port {SENTINEL_PORT}\nprotected-mode no\nsentinel monitor {PRIMARY} {ip} {port} 2\n\
             sentinel down-after-milliseconds {PRIMARY} {}\nsentinel failover-timeout {PRIMARY} 5000\n",
            down_after.as_millis(),
        );
        let sentinels = (0..SENTINELS).map(|_| {
            let setup = containers::Setup::image(IMAGE)
                // It writes to its settings and beside them.
                .file("/data/sentinel.conf", settings.clone(), 0o666)
                .args(["redis-server", "/data/sentinel.conf", "--sentinel"])
                .ready(["+monitor master"])
                .network(&network);
            Server::start_on(SENTINEL_PORT, setup)
        });
        let sentinels = Group { servers: try_join_all(sentinels).await? };
        Ok(Self { servers: Arc::new(Group { servers: vec![primary, replica] }), sentinels })
    }

    /// Waits until each sentinel knows the replica and the others: before that none can make it fail over.
    async fn can_fail_over(&self) -> Result<(), BoxError> {
        for sentinel in &self.sentinels.servers {
            let container = sentinel.container.lock().await;
            container.wait_for(["+slave slave"], LIMIT).await?;
            container.wait_for(vec!["+sentinel sentinel"; SENTINELS - 1], LIMIT).await?;
        }
        Ok(())
    }

    /// Whether the replica follows the primary, and each sentinel knows both of them as they were.
    async fn is_as_it_was(&self, servers: &[MultiplexedConnection]) -> Result<bool, BoxError> {
        for (mut superuser, role) in servers.iter().cloned().zip(["role:master", "master_link_status:up"]) {
            let said: String = cmd("INFO").arg("replication").query_async(&mut superuser).await?;
            if !said.lines().any(|line| line == role) {
                return Ok(false);
            }
        }
        let primary = self.servers.servers[0].address;
        for sentinel in &self.sentinels.servers {
            let mut asked = sentinel.superuser().await?;
            let mut ask = cmd("SENTINEL");
            ask.arg("GET-MASTER-ADDR-BY-NAME").arg(PRIMARY);
            let named: (String, u16) = ask.query_async(&mut asked).await?;
            if named != (primary.ip().to_string(), primary.port()) {
                return Err(format!("a sentinel names {named:?} and not {primary}").into());
            }
        }
        Ok(true)
    }
}

impl Leasable for Watched {
    async fn restore(&mut self) -> Result<(), BoxError> {
        self.servers.restore().await?;
        self.sentinels.restore().await?;
        let mut servers = try_join_all(self.servers.servers.iter().map(Server::superuser)).await?;
        for superuser in &mut servers {
            forget_clients(superuser).await?;
        }
        let began = Instant::now();
        while !self.is_as_it_was(&servers).await? {
            if began.elapsed() > LIMIT {
                return Err(format!("the replica does not follow within {LIMIT:?}").into());
            }
            // There is no event for it.
            sleep(Duration::from_millis(100)).await;
        }
        forget_data(&mut servers[0]).await
    }

    async fn remove(self) -> Result<(), BoxError> {
        self.sentinels.remove().await?;
        Arc::into_inner(self.servers).ok_or("somebody still holds the servers")?.remove().await
    }
}

pub(crate) struct RedisSentinel {
    pub(crate) watched: Leased<Watched>,
    pub(crate) watch: Watch,
    /// Sessions with the sentinels.
    witnesses: tokio::sync::Mutex<Vec<MultiplexedConnection>>,
    feeder: Feeder,
}

impl RedisSentinel {
    /// Servers that nobody else will have, where a primary is replaced that does not answer for so long, or when a sentinel is told to.
    pub(crate) async fn open(down_after: Duration) -> Result<Self, BoxError> {
        let watched = Watched::start(down_after).await?;
        watched.can_fail_over().await?;
        Self::of(Leased::once(watched)).await
    }

    async fn of(watched: Leased<Watched>) -> Result<Self, BoxError> {
        let watch = Watch::start(Arc::clone(&watched.servers)).await?;
        let feeder = Feeder::start(watched.servers.servers[0].address)?;
        let harness = Self { watched, watch, witnesses: Default::default(), feeder };
        harness.ask_anew().await?;
        Ok(harness)
    }

    pub(crate) fn config(&self, setup: &Setup) -> Config {
        let sentinels = self.watched.sentinels.servers.iter().map(|sentinel| format!("redis://{}", sentinel.address));
        let tenant = &self.watch.tenant;
        let password = if setup.wrong_password { "not it" } else { &tenant.password };
        let primary = format!("redis://{}:{password}@{PRIMARY}", tenant.name);
        let mut config = Config::sentinel(sentinels, &primary).expect("they are URLs");
        // Sentinels have no such user.
        config.client_name = Some(tenant.name.clone());
        config.check_after = setup.check_after_idle.unwrap_or(config.check_after);
        config.pooled(setup.size)
    }

    async fn ask_anew(&self) -> Result<(), BoxError> {
        let sentinels = &self.watched.sentinels.servers;
        *self.witnesses.lock().await = try_join_all(sentinels.iter().map(Server::superuser)).await?;
        Ok(())
    }

    /// The sessions with the sentinels.
    pub(crate) async fn with_sentinels(&self) -> Result<usize, BoxError> {
        let mut witnesses = self.witnesses.lock().await.clone();
        let listed = try_join_all(witnesses.iter_mut().map(Listed::all)).await?;
        Ok(listed.iter().flatten().filter(|session| session.name == self.watch.tenant.name).count())
    }
}

const NO_PROXY: &str = "sentinels tell the primary's own address, and no proxy stands there";

impl Harness for RedisSentinel {
    type Resource = Redis;

    const NAME: &'static str = "redis_sentinel";
    const LACKS: &'static [(Need, &'static str)] = &[(Need::Slow, NO_PROXY), (Need::Proxy, NO_PROXY)];

    fn skipped() -> Option<String> {
        containers::skipped().map(Into::into)
    }

    async fn start(use_of_it: ServerUse) -> Result<Self, BoxError> {
        Self::of(SERVERS.get(use_of_it, || Watched::start(PATIENT)).await?).await
    }

    fn resource(&self, setup: &Setup) -> Redis {
        Redis::new(self.config(setup))
    }

    async fn run(&self, connection: &mut CheckoutOf<Self>, takes: Duration) -> Result<(), BoxError> {
        self.feeder.run(&self.watch.tenant, connection, takes).await
    }

    async fn ping(&self, connection: &mut CheckoutOf<Self>) -> Result<(), BoxError> {
        Ok(cmd("PING").exec_async(connection).await?)
    }

    async fn stranger(&self) -> Result<Stranger, BoxError> {
        self.watch.stranger(0).await
    }

    async fn rows(&self) -> Result<usize, BoxError> {
        self.watch.rows(0).await
    }

    async fn sessions(&self) -> Result<usize, BoxError> {
        Ok(self.watch.sessions().await? + self.with_sentinels().await?)
    }

    async fn running(&self) -> Result<usize, BoxError> {
        self.watch.running().await
    }

    async fn pause(&self) -> Result<(), BoxError> {
        self.watched.sentinels.pause().await?;
        self.watched.servers.pause().await
    }

    async fn resume(&self) -> Result<(), BoxError> {
        self.watched.servers.resume().await?;
        self.watched.sentinels.resume().await
    }

    async fn kill(&self) -> Result<(), BoxError> {
        self.watched.sentinels.kill().await?;
        self.watched.servers.kill().await
    }

    async fn start_again(&self) -> Result<(), BoxError> {
        self.watched.servers.start_again().await?;
        self.watched.sentinels.start_again().await?;
        self.watch.ask_anew().await?;
        self.ask_anew().await
    }

    async fn partition(&self) -> Result<(), BoxError> {
        self.watched.sentinels.partition().await?;
        self.watched.servers.partition().await
    }

    async fn heal(&self) -> Result<(), BoxError> {
        self.watched.servers.heal().await?;
        self.watched.sentinels.heal().await?;
        self.watch.ask_anew().await?;
        self.ask_anew().await
    }

    async fn full(&self, full: bool) -> Result<(), BoxError> {
        self.watch.refuse_all(full).await
    }

    async fn close_idle(&self) -> Result<(), BoxError> {
        self.watch.close_idle().await
    }

    fn secret(&self) -> Option<&str> {
        Some(&self.watch.tenant.password)
    }

    async fn end(self) -> Result<(), BoxError> {
        if !self.watched.is_shared() {
            // They are put back, whatever the case has done to them.
            return Ok(());
        }
        let left = gone(|| self.with_sentinels()).await?;
        self.watch.end().await?;
        match left {
            0 => Ok(()),
            left => Err(format!("the sentinels still list {left} sessions").into()),
        }
    }
}
