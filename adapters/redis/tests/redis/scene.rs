//! What the tests share.

use std::{future::Future, net::SocketAddr, pin::pin};

use redis::{AsyncCommands as _, RedisError, aio::ConnectionLike, cmd};
use winddown_core::{Checkout, Checkouts, Error, ShutdownGuard};
use winddown_redis::{Config, Connection, Redis, redis};
pub(crate) use winddown_testkit::scene::{Drained, QUICK, chain, in_full, until, until_open};
use winddown_testkit::{Directed, Harness, ServerUse, Setup, scene};

use crate::server::{OfItsOwn, Redis8, RedisServer, Version};

/// A server, and its tenant.
pub(crate) type Server<V = Redis8> = RedisServer<V, OfItsOwn>;

/// A user of its own on the server that is shared.
pub(crate) async fn start<V: Version>() -> Server<V> {
    RedisServer::start(ServerUse::Shared).await.unwrap()
}

/// The same on Redis 8.
pub(crate) async fn redis_8() -> Server {
    start().await
}

/// Redis 8, a server of its own.
pub(crate) async fn own() -> Server {
    own_of().await
}

/// The same of either kind: for tests that take scripts away, which the others on a server may have just loaded.
pub(crate) async fn own_of<V: Version>() -> Server<V> {
    RedisServer::start(ServerUse::Own).await.unwrap()
}

/// The tenant's configuration for the server itself: a connection for each checkout, four at most.
pub(crate) fn config<V: Version>(server: &Server<V>) -> Config {
    config_at(server, server.server.address).pooled(4)
}

/// The same for the server at another address, with one connection for all.
pub(crate) fn config_at<V: Version>(server: &Server<V>, address: SocketAddr) -> Config {
    server.tenant.config(address, &Setup::default())
}

/// The tenant's URL, with this for the host and the rest.
pub(crate) fn url<V: Version>(server: &Server<V>, scheme: &str, rest: &str) -> String {
    let tenant = &server.tenant;
    format!("{scheme}://{}:{}@{rest}", tenant.name, tenant.password)
}

/// A lifecycle with one server in it.
pub(crate) type Scene = scene::Scene<Redis>;

/// What a scene with a server can do besides.
pub(crate) trait Speaks {
    /// So many checkouts at once, each of which has spoken to the server.
    async fn out(&self, count: usize) -> Vec<Checkout<Directed<Redis>>>;

    /// One round trip on a checkout of its own.
    async fn ping(&self);
}

impl Speaks for Scene {
    async fn out(&self, count: usize) -> Vec<Checkout<Directed<Redis>>> {
        let mut out = Vec::new();
        for _ in 0..count {
            let mut connection = self.get().await;
            ping(&mut connection).await;
            out.push(connection);
        }
        out
    }

    async fn ping(&self) {
        ping(&mut *self.get().await).await;
    }
}

/// One round trip.
pub(crate) async fn ping(connection: &mut Connection) {
    cmd("PING").exec_async(connection).await.unwrap();
}

/// A number that the server has under this key.
pub(crate) async fn number(connection: &mut impl ConnectionLike, key: &str) -> u64 {
    let mut get = cmd("GET");
    let number: Option<u64> = get.arg(key).query_async(connection).await.unwrap();
    number.unwrap_or(0)
}

/// Nothing is listed and nothing waits: right now.
#[track_caller]
pub(crate) fn assert_nothing_left<V: Version>(server: &Server<V>) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let listed = (server.sessions().await.unwrap(), server.running().await.unwrap());
        assert_eq!(listed, (0, 0), "sessions and commands that the server lists at {caller}");
    }
}

pub(crate) async fn until_waiting<V: Version>(server: &Server<V>, commands: usize) {
    until("the server lists the command", || async { server.running().await.unwrap() == commands }).await;
}

/// Begins a command that waits for ever, and drains once the server lists it; what became of both.
pub(crate) async fn drain_under_a_command<V: Version>(
    server: &Server<V>,
    scene: &Scene,
) -> (Result<(), String>, Drained) {
    let mut connection = scene.get().await;
    let key = server.tenant.key("never");
    let straggler = async move {
        let result: Result<(), RedisError> = connection.blpop(key, 0.0).await;
        drop(connection);
        result.map_err(|error| error.to_string())
    };
    tokio::join!(straggler, async {
        until_waiting(server, 1).await;
        scene.drain().await
    })
}

/// Begins a command that waits for ever, and gives up on it once the server lists it: it waits on.
pub(crate) async fn abandon_command<V: Version, R: Checkouts<Checkout = Connection>>(
    server: &Server<V>,
    db: &ShutdownGuard<R>,
) {
    let mut connection = db.get().await.unwrap();
    let mut waits = pin!(connection.blpop::<_, ()>(server.tenant.key("never"), 0.0));
    tokio::select! {
        result = &mut waits => panic!("it ended at once: {:?}", result.err()),
        () = until_waiting(server, 1) => {}
    }
}

/// The driver's error behind one of ours.
pub(crate) fn driver_error(error: &Error) -> Option<&RedisError> {
    chain(error).find_map(|error| error.downcast_ref())
}
