//! Three nodes of a Redis cluster as a harness.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::try_join_all;
use redis::{RedisResult, Value, aio::MultiplexedConnection, cmd};
use tokio::time::sleep;
use winddown_core::BoxError;
use winddown_redis::{Config, Redis, redis};
use winddown_testkit::{
    CheckoutOf, Harness, Leasable, Leased, Need, ServerUse, Servers, Setup, Stranger, containers, containers::Network,
    proxy::Proxy, scene::until,
};

use crate::{
    group::{Group, Watch},
    server::{Feeder, PORT, Server, forget_clients},
};

const IMAGE: &str = "redis:8";

/// The least that go on when one is gone.
const NODES: usize = 3;

/// <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>
const SLOTS: usize = 16_384;

/// What a cluster may take until all of its nodes serve: each waits for two seconds before it does so anew.
const LIMIT: Duration = Duration::from_secs(90);

/// What `CLUSTER SLOTS` says of a range: the first, the last, and the host, port, id and more of the node.
type Served = (usize, usize, (String, u16, String, Value));

/// Groups of servers are slow to start, and each has several containers.
static SERVERS: Servers<Cluster> = Servers::new(RedisCluster::NAME, 3);

/// The nodes of a cluster.
pub(crate) struct Cluster(Arc<Group>);

impl Leasable for Cluster {
    async fn restore(&mut self) -> Result<(), BoxError> {
        self.0.restore().await?;
        let mut superusers = try_join_all(self.0.servers.iter().map(Server::superuser)).await?;
        for superuser in &mut superusers {
            forget_clients(superuser).await?;
            let mut tell = cmd("CONFIG");
            tell.arg("SET").arg("cluster-preferred-endpoint-type").arg("ip");
            tell.arg("cluster-announce-hostname").arg("").arg("cluster-announce-port").arg(0);
            tell.exec_async(superuser).await?;
        }
        // They tell each other when they meet next, and each waits before it serves again. There is no event for either.
        for superuser in &mut superusers {
            let began = Instant::now();
            while !is_as_it_was(superuser).await? {
                if began.elapsed() > LIMIT {
                    return Err(format!("a node is not as it was within {LIMIT:?}").into());
                }
                sleep(Duration::from_millis(50)).await;
            }
            cmd("FLUSHALL").exec_async(superuser).await?;
            cmd("SCRIPT").arg("FLUSH").exec_async(superuser).await?;
        }
        Ok(())
    }

    async fn remove(self) -> Result<(), BoxError> {
        Arc::into_inner(self.0).ok_or("somebody still holds the nodes")?.remove().await
    }
}

/// Whether a node serves, and knows all at their own ports.
async fn is_as_it_was(superuser: &mut MultiplexedConnection) -> Result<bool, BoxError> {
    let state: String = cmd("CLUSTER").arg("INFO").query_async(superuser).await?;
    let slots: RedisResult<Vec<Served>> = cmd("CLUSTER").arg("SLOTS").query_async(superuser).await;
    let at_their_ports = slots.is_ok_and(|slots| slots.iter().all(|(_, _, (_, port, ..))| *port == PORT));
    Ok(state.contains("cluster_state:ok") && at_their_ports)
}

/// A node that knows no other yet.
pub(crate) fn node() -> containers::Setup {
    // Where one is missed, the others end whatever waits there and refuse everybody: one that is only slow, or starts late, on a busy
    // machine is not to be. No case needs that it is, and none keeps one away for so long.
    containers::Setup::image(IMAGE).args(["--cluster-enabled", "yes", "--cluster-node-timeout", "30000"])
}

/// Three primaries without replicas, each with a third of the slots.
async fn start() -> Result<Cluster, BoxError> {
    let network = Network::create().await?;
    let nodes = (0..NODES).map(|_| Server::start(node().network(&network)));
    let cluster = Group { servers: try_join_all(nodes).await? };
    for (index, node) in cluster.servers.iter().enumerate() {
        let mut superuser = node.superuser().await?;
        let (first, last) = (index * SLOTS / NODES, (index + 1) * SLOTS / NODES - 1);
        cmd("CLUSTER").arg("ADDSLOTSRANGE").arg(first).arg(last).exec_async(&mut superuser).await?;
        // Else all begin with the same one, and argue about it.
        cmd("CLUSTER").arg("SET-CONFIG-EPOCH").arg(index + 1).exec_async(&mut superuser).await?;
    }
    for (index, node) in cluster.servers.iter().enumerate() {
        let mut superuser = node.superuser().await?;
        for other in &cluster.servers[index + 1..] {
            let meet = cmd("CLUSTER").arg("MEET").arg(other.address.ip().to_string()).arg(PORT).take();
            meet.exec_async(&mut superuser).await?;
        }
    }
    all_serve(&cluster).await?;
    Ok(Cluster(Arc::new(cluster)))
}

/// Waits until each node, since its latest start, has seen that all slots are served.
async fn all_serve(cluster: &Group) -> Result<(), BoxError> {
    for node in &cluster.servers {
        node.container.lock().await.wait_for(["Cluster state changed: ok"], LIMIT).await?;
    }
    Ok(())
}

pub(crate) struct RedisCluster {
    pub(crate) watch: Watch,
    cluster: Leased<Cluster>,
    /// Between the resource and each node, where the case may want to slow them down.
    proxies: Vec<Proxy>,
    /// The node that has the tenant's keys.
    pub(crate) home: usize,
    feeder: Feeder,
}

impl RedisCluster {
    /// Proxies in front of the nodes, which tell their clients to come that way.
    async fn proxies(watch: &Watch) -> Result<Vec<Proxy>, BoxError> {
        let mut proxies = Vec::new();
        for (node, mut superuser) in watch.group.servers.iter().zip(watch.superusers().await) {
            let proxy = Proxy::start(node.address).await?;
            let (host, port) = (proxy.address().ip().to_string(), proxy.address().port());
            let mut tell = cmd("CONFIG");
            tell.arg("SET").arg("cluster-preferred-endpoint-type").arg("hostname");
            // Nodes go on meeting each other at their addresses.
            tell.arg("cluster-announce-hostname").arg(host).arg("cluster-announce-port").arg(port);
            tell.exec_async(&mut superuser).await?;
            proxies.push(proxy);
        }
        // They tell each other when they meet next.
        for superuser in &watch.superusers().await {
            until("a node knows all proxies", || async {
                let slots = cmd("CLUSTER").arg("SLOTS").take();
                let slots: RedisResult<Vec<Served>> = slots.query_async(&mut superuser.clone()).await;
                slots.is_ok_and(|slots| slots.iter().all(|(_, _, (_, port, ..))| *port != PORT))
            })
            .await;
        }
        Ok(proxies)
    }

    /// Nodes that nobody else will have and that clients reach directly, so that others can join them.
    pub(crate) async fn open() -> Result<Self, BoxError> {
        let cluster = Leased::once(start().await?);
        Self::of(Watch::start(Arc::clone(&cluster.0)).await?, cluster, Vec::new()).await
    }

    async fn of(watch: Watch, cluster: Leased<Cluster>, proxies: Vec<Proxy>) -> Result<Self, BoxError> {
        let key = watch.tenant.key("");
        let slot: usize = cmd("CLUSTER").arg("KEYSLOT").arg(key).query_async(&mut watch.superusers().await[0]).await?;
        let home = (0..NODES).rposition(|node| node * SLOTS / NODES <= slot).ok_or("there is no such slot")?;
        let feeder = Feeder::start(watch.group.servers[home].address)?;
        Ok(Self { watch, cluster, proxies, home, feeder })
    }

    pub(crate) fn config(&self, setup: &Setup) -> Config {
        let direct = self.watch.group.servers.iter().map(|node| node.address);
        let addresses: Vec<_> = match &self.proxies[..] {
            [] => direct.collect(),
            proxies => proxies.iter().map(Proxy::address).collect(),
        };
        let nodes = Config::cluster(addresses.iter().map(|address| format!("redis://{address}")));
        let mut config = self.watch.tenant.config(addresses[0], setup);
        config.cluster = nodes.expect("an address is one").cluster;
        // The statements of the suite wait.
        config.response_timeout = None;
        config
    }
}

impl Harness for RedisCluster {
    type Resource = Redis;

    const NAME: &'static str = "redis_cluster";
    const LACKS: &'static [(Need, &'static str)] = &[
        (Need::Slots, "all checkouts share one connection with each node"),
        (Need::OutlivesRuntime, "the driver's cluster client is a task, and its connections end with its runtime"),
    ];
    // Nodes that do not see each other refuse everybody.
    const ENDS_ALL: &'static [Need] = &[Need::Kill, Need::Partition];

    fn skipped() -> Option<String> {
        containers::skipped().map(Into::into)
    }

    async fn start(use_of_it: ServerUse) -> Result<Self, BoxError> {
        let cluster = SERVERS.get(use_of_it, start).await?;
        let watch = Watch::start(Arc::clone(&cluster.0)).await?;
        let proxies = match use_of_it {
            ServerUse::Shared => Vec::new(),
            ServerUse::Own => Self::proxies(&watch).await?,
        };
        Self::of(watch, cluster, proxies).await
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
        self.watch.stranger(self.home).await
    }

    async fn rows(&self) -> Result<usize, BoxError> {
        self.watch.rows(self.home).await
    }

    async fn sessions(&self) -> Result<usize, BoxError> {
        self.watch.sessions().await
    }

    async fn running(&self) -> Result<usize, BoxError> {
        self.watch.running().await
    }

    async fn pause(&self) -> Result<(), BoxError> {
        self.watch.group.pause().await
    }

    async fn resume(&self) -> Result<(), BoxError> {
        self.watch.group.resume().await
    }

    async fn kill(&self) -> Result<(), BoxError> {
        self.watch.group.kill().await
    }

    async fn start_again(&self) -> Result<(), BoxError> {
        self.watch.group.start_again().await?;
        all_serve(&self.watch.group).await?;
        self.watch.ask_anew().await
    }

    async fn partition(&self) -> Result<(), BoxError> {
        self.watch.group.partition().await
    }

    async fn heal(&self) -> Result<(), BoxError> {
        self.watch.group.heal().await?;
        self.watch.ask_anew().await
    }

    async fn slow(&self, by: Duration) -> Result<(), BoxError> {
        if self.proxies.is_empty() {
            return Err("only servers of one's own can be slowed down".into());
        }
        self.proxies.iter().for_each(|proxy| proxy.set_delay(by));
        Ok(())
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
        // One that the case had alone is put back, whatever the case has done to it.
        if self.cluster.is_shared() { self.watch.end().await } else { Ok(()) }
    }
}
