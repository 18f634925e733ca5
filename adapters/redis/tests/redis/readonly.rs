//! A primary that has become a replica, and whose address leads to another server.

use std::{net::SocketAddr, time::Duration};

use redis::{RedisResult, cmd};
use tokio::{io::copy_bidirectional, net::TcpListener, net::TcpStream, sync::watch, task::JoinSet};
use winddown_core::ErrorKind;
use winddown_redis::{Config, Connection, Redis, redis};
use winddown_testkit::{Harness as _, Setup};

use crate::{
    scene::{Scene, Server, Speaks as _, config_at, own, until},
    sentinel::{PATIENT, RedisSentinel},
    server,
};

/// An address that leads to one server, and then to another: as a name does whose record was changed. Connections stay where
/// they are.
pub(crate) struct Name {
    pub(crate) address: SocketAddr,
    leads_to: watch::Sender<SocketAddr>,
    _tasks: JoinSet<()>,
}

impl Name {
    pub(crate) async fn of(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (leads_to, now) = watch::channel(server);
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                let server = *now.borrow();
                connections.spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(server).await {
                        let _ = copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        });
        Self { address, leads_to, _tasks: tasks }
    }

    pub(crate) fn lead_to(&self, server: SocketAddr) {
        self.leads_to.send_replace(server);
    }
}

/// Two servers that have the same user, and are both primaries.
pub(crate) async fn pair() -> (Server, Server) {
    let (one, other) = (own().await, own().await);
    one.tenant.create_on(&mut other.superuser().await).await.unwrap();
    (one, other)
}

pub(crate) async fn become_replica(server: &Server) {
    server::is_replica(&mut server.superuser().await, true).await.unwrap();
}

pub(crate) async fn become_primary(server: &Server) {
    server::is_replica(&mut server.superuser().await, false).await.unwrap();
}

async fn set(connection: &mut Connection, key: &str) -> RedisResult<()> {
    cmd("SET").arg(key).arg(1).exec_async(connection).await
}

async fn exists(server: &Server, key: &str) -> bool {
    cmd("EXISTS").arg(key).query_async(&mut server.superuser().await).await.unwrap()
}

/// Neither looks at a connection because it has been idle.
fn both(config: Config) -> [Config; 2] {
    let mut config = config;
    config.check_after = Duration::from_secs(600);
    let mut pooled = config.clone().pooled(3);
    pooled.response_timeout = config.response_timeout;
    [config, pooled]
}

pub(crate) async fn writers_follow_a_name_that_leads_to_another_primary() {
    let (old, new) = pair().await;
    for config in both(config_at(&old, old.server.address)) {
        let name = Name::of(old.server.address).await;
        let mut config = config;
        config.driver = config_at(&old, name.address).driver;
        let scene = Scene::new(Redis::new(config));
        drop(scene.out(3).await);
        let key = old.tenant.key("written");
        set(&mut *scene.get().await, &key).await.unwrap();
        name.lead_to(new.server.address);
        become_replica(&old).await;
        // The application's own command is told what the server says.
        let refused = set(&mut *scene.get().await, &key).await.unwrap_err();
        assert_eq!(refused.code(), Some("READONLY"), "{refused}");
        until("a write works", || async { set(&mut *scene.get().await, &key).await.is_ok() }).await;
        assert!(exists(&new, &key).await);
        // And from then on all of them, whichever connection they get.
        let mut all = scene.out(3).await;
        for connection in &mut all {
            set(connection, &key).await.unwrap();
        }
        drop(all);
        let drained = scene.drain().await;
        assert_eq!(drained.row().sessions.cut, 0, "{}", drained.report);
        become_primary(&old).await;
        cmd("DEL").arg(&key).exec_async(&mut new.superuser().await).await.unwrap();
    }
    for server in [old, new] {
        server.end().await.unwrap();
    }
}

pub(crate) async fn a_refusal_in_a_pipeline_or_to_nobody_counts_as_well() {
    let (old, new) = pair().await;
    let key = old.tenant.key("written");
    for way in ["pipeline", "transaction", "script", "no answer"] {
        let name = Name::of(old.server.address).await;
        let mut config = config_at(&old, name.address);
        config.check_after = Duration::from_secs(600);
        let scene = Scene::new(Redis::new(config));
        scene.ping().await;
        name.lead_to(new.server.address);
        become_replica(&old).await;
        let write = async || {
            let mut connection = scene.get().await;
            let mut pipeline = redis::pipe();
            pipeline.cmd("GET").arg(&key).cmd("SET").arg(&key).arg(1);
            match way {
                "pipeline" => pipeline.exec_async(&mut *connection).await,
                "transaction" => pipeline.atomic().exec_async(&mut *connection).await,
                "script" => {
                    let mut script = cmd("EVAL");
                    script.arg("return redis.pcall('SET', KEYS[1], 1)").arg(1).arg(&key);
                    script.exec_async(&mut *connection).await
                }
                _ => {
                    let mut write = cmd("SET");
                    write.arg(&key).arg(1).set_no_response(true);
                    write.exec_async(&mut *connection).await
                }
            }
        };
        until(way, || async {
            let _ = write().await;
            exists(&new, &key).await
        })
        .await;
        scene.drain().await;
        become_primary(&old).await;
        cmd("DEL").arg(&key).exec_async(&mut new.superuser().await).await.unwrap();
    }
    for server in [old, new] {
        server.end().await.unwrap();
    }
}

pub(crate) async fn who_reads_from_a_replica_keeps_its_sessions() {
    let server = own().await;
    become_replica(&server).await;
    for config in both(config_at(&server, server.server.address)) {
        let scene = Scene::new(Redis::new(config));
        drop(scene.out(2).await);
        let ids = async || server.listed().await.unwrap().iter().map(|session| session.id).collect::<Vec<_>>();
        let before = ids().await;
        let key = server.tenant.key("read");
        for _ in 0..50 {
            let read: Option<i64> = cmd("GET").arg(&key).query_async(&mut *scene.get().await).await.unwrap();
            assert_eq!(read, None);
        }
        assert_eq!(ids().await, before);
        scene.drain().await.assert_clean(before.len() as u64);
    }
    become_primary(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn writers_find_the_primary_that_sentinels_have_made() {
    let harness = RedisSentinel::open(PATIENT).await.unwrap();
    let mut config = harness.config(&Setup::default());
    // It does not rest: nothing but what is answered says that the server is another.
    config.check_after = Duration::from_secs(600);
    let scene = Scene::new(Redis::new(config));
    let key = harness.watch.tenant.key("written");
    set(&mut *scene.get().await, &key).await.unwrap();
    let mut sentinel = harness.watched.sentinels.servers[0].superuser().await.unwrap();
    cmd("SENTINEL").arg("FAILOVER").arg(crate::sentinel::PRIMARY).exec_async(&mut sentinel).await.unwrap();
    for sentinel in &harness.watched.sentinels.servers {
        let container = sentinel.container.lock().await;
        container.wait_for(["+switch-master"], Duration::from_secs(60)).await.unwrap();
    }
    // Somebody is faster than the sentinels: they would end its clients, and this does not.
    let [old, new] = &harness.watched.servers.servers[..] else { panic!("two servers") };
    let mut follow = cmd("REPLICAOF");
    follow.arg(new.address.ip().to_string()).arg(server::PORT);
    follow.exec_async(&mut old.superuser().await.unwrap()).await.unwrap();
    until("a write works", || async {
        match scene.db.get().await {
            Ok(mut connection) => set(&mut connection, &key).await.is_ok(),
            Err(error) => {
                assert_ne!(error.kind(), ErrorKind::Config, "{error}");
                false
            }
        }
    })
    .await;
    let drained = scene.drain().await;
    assert_eq!(drained.row().sessions.left_behind, 0, "{}", drained.report);
}

#[cfg(feature = "buffer")]
pub(crate) async fn a_buffer_loses_nothing_when_its_primary_becomes_a_replica() {
    use winddown_buffer::{BatchWriter, Push as _};
    use winddown_redis::List;
    use winddown_testkit::scene::lifecycle;

    const RECORDS: i64 = 600;
    let (old, new) = pair().await;
    for config in both(config_at(&old, old.server.address)) {
        let name = Name::of(old.server.address).await;
        let mut config = config;
        config.driver = config_at(&old, name.address).driver;
        let lifecycle = lifecycle(Duration::from_secs(30));
        let db = lifecycle.guard_as("db", Redis::new(config));
        let key = old.tenant.key("list");
        let list = BatchWriter::new(&db, List::to(&*key)).name("list").max_age(Duration::from_millis(5));
        let list = lifecycle.guard(list);
        for id in 0..RECORDS {
            list.push(id).await.unwrap();
            if id % 20 == 0 {
                // Some batches on either side.
                tokio::task::yield_now().await;
            }
            if id == RECORDS / 3 {
                lifecycle.flush().await.unwrap();
                become_replica(&old).await;
            }
            if id == RECORDS / 2 {
                name.lead_to(new.server.address);
            }
        }
        let report = lifecycle.drain().await;
        let records = report.resource("list").unwrap().records.unwrap();
        assert_eq!((records.accepted, records.written), (RECORDS as u64, RECORDS as u64), "{report}");
        let mut all = Vec::new();
        for server in [&old, &new] {
            let range = cmd("LRANGE").arg(&key).arg(0).arg(-1).take();
            let found: Vec<i64> = range.query_async(&mut server.superuser().await).await.unwrap();
            assert!(!found.is_empty(), "each has some");
            all.extend(found);
        }
        all.sort_unstable();
        assert_eq!(all, (0..RECORDS).collect::<Vec<_>>());
        become_primary(&old).await;
        for server in [&old, &new] {
            cmd("FLUSHALL").exec_async(&mut server.superuser().await).await.unwrap();
        }
    }
    for server in [old, new] {
        server.end().await.unwrap();
    }
}
