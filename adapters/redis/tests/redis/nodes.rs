//! A cluster: sessions with every node, also with one that is new, or gone.

use std::time::Duration;

use redis::{RedisResult, cmd};
use tokio::time::timeout;
use winddown_core::{ErrorKind, Outcome};
use winddown_redis::{Config, Connection, Redis, redis};
use winddown_testkit::{Harness, ServerUse, Setup};

use crate::{
    cluster::{RedisCluster, node},
    scene::{QUICK, Scene, in_full, ping, until},
    server::{Listed, PORT, Server},
};

async fn start(use_of_it: ServerUse) -> RedisCluster {
    RedisCluster::start(use_of_it).await.unwrap()
}

fn scene(cluster: &RedisCluster) -> Scene {
    Scene::new(cluster.resource(&Setup::default()))
}

/// How many sessions each node lists.
async fn listed(cluster: &RedisCluster) -> Vec<usize> {
    cluster.watch.listed().await.unwrap().iter().map(Vec::len).collect()
}

pub(crate) async fn commands_that_nobody_waits_for_are_executed_on_every_node() {
    let cluster = start(ServerUse::Shared).await;
    let scene = scene(&cluster);
    let mut connection = scene.get().await;
    // Any slot: the tenant's own keys are in one.
    for superuser in &mut cluster.watch.superusers().await {
        cmd("ACL").arg("SETUSER").arg(&cluster.watch.tenant.name).arg("~*").exec_async(superuser).await.unwrap();
    }
    let keys: Vec<String> = (0..300).map(|key| format!("{}:{key}", cluster.watch.tenant.name)).collect();
    for key in &keys {
        cmd("INCR").arg(key).set_no_response(true).exec_async(&mut *connection).await.unwrap();
    }
    drop(connection);
    assert_eq!(listed(&cluster).await, [1, 1, 1]);
    let drained = scene.drain().await;
    drained.assert_clean(3);
    assert_eq!(listed(&cluster).await, [0, 0, 0]);
    let records = drained.row().records.as_ref().unwrap();
    assert_eq!((records.accepted, records.written, records.lost), (300, 300, 0), "{}", drained.report);
    let mut executed = Vec::new();
    for superuser in &mut cluster.watch.superusers().await {
        let pattern = format!("{}:*", cluster.watch.tenant.name);
        let here: Vec<String> = cmd("KEYS").arg(pattern).query_async(superuser).await.unwrap();
        for key in &here {
            // One by one: they are in different slots.
            cmd("DEL").arg(key).exec_async(superuser).await.unwrap();
        }
        executed.push(here.len());
    }
    assert_eq!(executed.iter().sum::<usize>(), 300);
    assert!(executed.iter().all(|count| *count > 0), "each node had some of the keys: {executed:?}");
    cluster.end().await.unwrap();
}

pub(crate) async fn a_node_that_was_killed_does_not_hold_up_the_drain() {
    let cluster = start(ServerUse::Own).await;
    let scene = scene(&cluster);
    drop(scene.get().await);
    let killed = (cluster.home + 1) % cluster.watch.group.servers.len();
    cluster.watch.group.servers[killed].container.lock().await.kill().await.unwrap();
    let drained = scene.drain().await;
    assert!(drained.took < QUICK, "{:?}: {}", drained.took, drained.report);
    let (closed, cut) = drained.ended();
    assert!(closed == 2 && cut <= 1, "{}", drained.report);
    for (node, mut superuser) in cluster.watch.superusers().await.into_iter().enumerate() {
        if node != killed {
            assert_eq!(Listed::of(&cluster.watch.tenant, &mut superuser).await.unwrap().len(), 0, "{}", drained.report);
        }
    }
    cluster.end().await.unwrap();
}

/// A fourth node, which has the tenant's slot now. Nobody has told the clients.
async fn moved(cluster: &RedisCluster) -> Server {
    let tenant = &cluster.watch.tenant;
    let network = cluster.watch.group.servers[0].container.lock().await.network().clone();
    let fourth = Server::start(node().network(&network)).await.unwrap();
    let mut superuser = fourth.superuser().await.unwrap();
    tenant.create_on(&mut superuser).await.unwrap();
    let id: String = cmd("CLUSTER").arg("MYID").query_async(&mut superuser).await.unwrap();
    let mut others = cluster.watch.superusers().await;
    for (other, address) in others.iter_mut().zip(cluster.watch.group.servers.iter().map(|server| server.address)) {
        let meet = cmd("CLUSTER").arg("MEET").arg(address.ip().to_string()).arg(PORT).take();
        meet.exec_async(&mut superuser).await.unwrap();
        until("the nodes have met", || async {
            let nodes: String = cmd("CLUSTER").arg("NODES").query_async(&mut other.clone()).await.unwrap();
            nodes.lines().any(|line| line.contains(&id) && !line.contains("handshake"))
        })
        .await;
    }
    let slot: usize = cmd("CLUSTER").arg("KEYSLOT").arg(tenant.key("")).query_async(&mut superuser).await.unwrap();
    // Only a node that imports a slot gets an epoch of its own with it; without one the node that had the slot might claim it
    // back before it is told.
    let one_of_them: String = cmd("CLUSTER").arg("MYID").query_async(&mut others[0]).await.unwrap();
    until("the new node knows the others", || async {
        let import = cmd("CLUSTER").arg("SETSLOT").arg(slot).arg("IMPORTING").arg(&one_of_them).take();
        import.exec_async(&mut superuser.clone()).await.is_ok()
    })
    .await;
    // The new one first: it is the one who tells the rest.
    for superuser in [&mut superuser].into_iter().chain(&mut others) {
        let give = cmd("CLUSTER").arg("SETSLOT").arg(slot).arg("NODE").arg(&id).take();
        give.exec_async(superuser).await.unwrap();
    }
    until("the new node serves", || async {
        let set = cmd("SET").arg(tenant.key("there")).arg(1).take();
        set.exec_async(&mut superuser.clone()).await.is_ok()
    })
    .await;
    fourth
}

async fn increase(cluster: &RedisCluster, connection: &mut Connection) -> RedisResult<usize> {
    cmd("INCR").arg(cluster.watch.tenant.key("there")).query_async(connection).await
}

pub(crate) async fn a_slot_that_moves_is_followed_and_its_new_node_is_drained_too() {
    let cluster = RedisCluster::open().await.unwrap();
    let scene = scene(&cluster);
    ping(&mut *scene.get().await).await;
    let fourth = moved(&cluster).await;
    assert_eq!(increase(&cluster, &mut *scene.get().await).await.unwrap(), 2);
    let mut superuser = fourth.superuser().await.unwrap();
    assert_eq!(Listed::of(&cluster.watch.tenant, &mut superuser).await.unwrap().len(), 1);
    scene.drain().await.assert_clean(4);
    assert_eq!(Listed::of(&cluster.watch.tenant, &mut superuser).await.unwrap().len(), 0);
    assert_eq!(listed(&cluster).await, [0, 0, 0]);
    fourth.container.into_inner().remove().await.unwrap();
    cluster.end().await.unwrap();
}

pub(crate) async fn a_redirect_while_draining_is_followed_and_nothing_is_left_of_it() {
    let cluster = RedisCluster::open().await.unwrap();
    let scene = scene(&cluster);
    let mut connection = scene.get().await;
    ping(&mut connection).await;
    let fourth = moved(&cluster).await;
    let (drained, ()) = tokio::join!(scene.drain(), async {
        scene.lifecycle.draining().await;
        assert_eq!(increase(&cluster, &mut connection).await.unwrap(), 2);
        drop(connection);
    });
    // The client may open two sessions with a node that is new to it, and let one go.
    let (closed, cut) = drained.ended();
    assert!((4..=5).contains(&closed) && cut == 0, "{}", drained.report);
    assert_eq!(drained.row().outcome, Outcome::Drained, "{}", drained.report);
    let mut superuser = fourth.superuser().await.unwrap();
    assert_eq!(Listed::of(&cluster.watch.tenant, &mut superuser).await.unwrap().len(), 0);
    assert_eq!(listed(&cluster).await, [0, 0, 0]);
    fourth.container.into_inner().remove().await.unwrap();
    cluster.end().await.unwrap();
}

pub(crate) async fn a_command_without_an_answer_whose_slot_has_moved_is_reported_lost() {
    let cluster = RedisCluster::open().await.unwrap();
    let scene = scene(&cluster);
    let mut connection = scene.get().await;
    ping(&mut connection).await;
    let fourth = moved(&cluster).await;
    let key = cluster.watch.tenant.key("there");
    cmd("INCR").arg(&key).set_no_response(true).exec_async(&mut *connection).await.unwrap();
    drop(connection);
    let drained = scene.drain().await;
    let records = drained.row().records.as_ref().unwrap();
    assert_eq!((records.accepted, records.written, records.lost), (1, 0, 1), "{}", drained.report);
    let mut superuser = fourth.superuser().await.unwrap();
    assert_eq!(cmd("GET").arg(&key).query_async::<usize>(&mut superuser).await.unwrap(), 1, "it was not executed");
    fourth.container.into_inner().remove().await.unwrap();
    cluster.end().await.unwrap();
}

pub(crate) async fn nothing_is_opened_after_the_drain() {
    let cluster = start(ServerUse::Shared).await;
    let scene = Scene::patient(cluster.resource(&Setup::default()));
    let mut connection = scene.get().await;
    ping(&mut connection).await;
    let drained = scene.drain().await;
    drained.assert_in_time();
    assert_eq!(drained.row().left_out, 1, "{}", drained.report);
    let cluster_connection = connection.as_cluster().expect("it is one");
    let late = timeout(Duration::from_secs(2), async {
        cmd("GET").arg(cluster.watch.tenant.key("late")).exec_async(cluster_connection).await
    });
    assert!(!matches!(late.await, Ok(Ok(()))), "its sessions have ended");
    assert_eq!(listed(&cluster).await, [0, 0, 0]);
    drop(connection);
    cluster.end().await.unwrap();
}

pub(crate) async fn what_cannot_be_a_cluster_says_what_to_do() {
    let none = Config::cluster([""; 0]).unwrap_err();
    assert_eq!(
        (none.kind(), none.to_string().as_str()),
        (ErrorKind::Config, "there is no node: give the URL of one or more",)
    );
    let server = crate::scene::redis_8().await;
    let mut config = crate::scene::config_at(&server, server.server.address);
    config.cluster = Config::cluster([format!("redis://{}", server.server.address)]).unwrap().cluster;
    let scene = Scene::new(Redis::new(config.clone()));
    let error = scene.db.get().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{}", in_full(&error));
    assert!(in_full(&error).contains("the server is no node of a cluster"), "{}", in_full(&error));
    let scene = Scene::new(Redis::new(config.pooled(2)));
    let error = scene.db.get().await.unwrap_err();
    assert!(in_full(&error).contains("leave Config::pooled out"), "{}", in_full(&error));
    server.end().await.unwrap();
}

#[cfg(feature = "buffer")]
pub(crate) async fn a_batch_is_written_once_in_a_cluster_whatever_its_slot() {
    use winddown_buffer::{Batch, Delivery, Sink as _};
    use winddown_redis::List;

    let cluster = start(ServerUse::Shared).await;
    let name = &cluster.watch.tenant.name;
    // Any slot.
    for superuser in &mut cluster.watch.superusers().await {
        cmd("ACL").arg("SETUSER").arg(name).arg("~*").exec_async(superuser).await.unwrap();
    }
    let lifecycle = winddown_testkit::scene::lifecycle(QUICK);
    let db = lifecycle.guard(cluster.resource(&Setup::default()));
    let mut connection = db.get().await.unwrap();
    let keys = (0..30).map(|key| format!("{name}:{key}"));
    // With a tag, and with what looks like one.
    for key in keys.chain([cluster.watch.tenant.key("list"), format!("{name}:{{x"), format!("x{{{name}}}y")]) {
        let batch = Batch::from(vec![1, 2]);
        for delivery in [Delivery::ExactlyOnce, Delivery::ExactlyOnce, Delivery::AtLeastOnce] {
            List::to(&*key).delivery(delivery).write(&mut connection, &batch).await.unwrap();
        }
        let there: Vec<i64> = cmd("LRANGE").arg(&key).arg(0).arg(-1).query_async(&mut *connection).await.unwrap();
        assert_eq!(there, [1, 2, 1, 2], "{key}");
        cmd("DEL").arg(&key).exec_async(&mut *connection).await.unwrap();
    }
    // Nothing can be in its slot but what has its name.
    let outside = List::to(format!("{name}}}")).write(&mut connection, &Batch::from(vec![1])).await.unwrap_err();
    assert!(matches!(outside, winddown_buffer::WriteError::Failed(_)), "{outside:?}");
    drop(connection);
    assert!(lifecycle.drain().await.is_clean());
    assert_eq!(listed(&cluster).await, [0, 0, 0]);
    cluster.end().await.unwrap();
}
