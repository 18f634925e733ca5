//! `Stream` and `List`: each batch as a whole, exactly once.

use std::{collections::BTreeMap, pin::pin, time::Duration};

use redis::{
    Client, RedisResult, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cmd,
};
use winddown_buffer::{Batch, BatchWriter, Delivery, Push as _, Sink, WriteError};
use winddown_core::{Checkout, ErrorKind, Lifecycle, ShutdownGuard};
use winddown_redis::{List, Redis, Stream, redis};
use winddown_testkit::{Harness as _, proxy::Proxy, scene::lifecycle};

use crate::{
    scene::{Server, assert_nothing_left, config, config_at, driver_error, own, own_of, start, until},
    server::{Redis8, Valkey8, Version},
};

pub(crate) type Entry = [(&'static str, String); 2];

pub(crate) fn entry(id: i64) -> Entry {
    [("id", id.to_string()), ("what", format!("did {id}"))]
}

pub(crate) fn entries(ids: impl IntoIterator<Item = i64>) -> Batch<Entry> {
    ids.into_iter().map(entry).collect::<Vec<_>>().into()
}

pub(crate) fn elements(ids: impl IntoIterator<Item = i64>) -> Batch<i64> {
    ids.into_iter().collect::<Vec<_>>().into()
}

pub(crate) struct Scene<V> {
    pub(crate) server: Server<V>,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) db: ShutdownGuard<Redis>,
    pub(crate) stream: String,
    pub(crate) list: String,
}

impl<V: Version> Scene<V> {
    pub(crate) async fn new() -> Self {
        let server = start::<V>().await;
        let redis = Redis::new(config(&server));
        Self::of(server, redis)
    }

    pub(crate) fn of(server: Server<V>, redis: Redis) -> Self {
        let lifecycle = lifecycle(Duration::from_secs(30));
        let db = lifecycle.guard_as("db", redis);
        let (stream, list) = (server.tenant.key("stream"), server.tenant.key("list"));
        Self { server, lifecycle, db, stream, list }
    }

    pub(crate) fn stream(&self) -> Stream {
        Stream::to(&*self.stream)
    }

    pub(crate) fn list(&self) -> List {
        List::to(&*self.list)
    }

    pub(crate) async fn get(&self) -> Checkout<Redis> {
        self.db.get().await.unwrap()
    }

    pub(crate) async fn write<T: Send + Sync + 'static>(
        &self,
        sink: &impl Sink<T, Target = Redis>,
        batch: &Batch<T>,
    ) -> Result<(), WriteError> {
        sink.write(&mut self.get().await, batch).await
    }

    /// What is in the stream and in the list, by its number, as another session sees it.
    pub(crate) async fn ids(&self) -> (Vec<i64>, Vec<i64>) {
        ids(&mut self.server.superuser().await, &self.stream, &self.list).await
    }

    /// The keys of batches.
    pub(crate) async fn keys(&self) -> Vec<String> {
        let pattern = self.server.tenant.key("winddown_batch:*");
        cmd("KEYS").arg(pattern).query_async(&mut self.server.superuser().await).await.unwrap()
    }

    /// Changes what the tenant may do.
    pub(crate) async fn rules(&self, rules: &[&str]) {
        let mut set = cmd("ACL");
        set.arg("SETUSER").arg(&self.server.tenant.name).arg(rules);
        set.exec_async(&mut self.server.superuser().await).await.unwrap();
    }

    pub(crate) async fn end(self) {
        let report = self.lifecycle.drain().await;
        assert!(report.is_clean(), "{report}");
        assert_nothing_left(&self.server).await;
        self.server.end().await.unwrap();
    }
}

async fn ids(superuser: &mut MultiplexedConnection, stream: &str, list: &str) -> (Vec<i64>, Vec<i64>) {
    let range = cmd("XRANGE").arg(stream).arg("-").arg("+").take();
    let entries: Vec<(String, BTreeMap<String, String>)> = range.query_async(superuser).await.unwrap();
    let streamed = entries.iter().map(|(_, fields)| {
        assert_eq!(fields["what"], format!("did {}", fields["id"]));
        fields["id"].parse().unwrap()
    });
    let range = cmd("LRANGE").arg(list).arg(0).arg(-1).take();
    (streamed.collect(), range.query_async(superuser).await.unwrap())
}

/// The same on Redis and on Valkey.
macro_rules! on_both {
    ($($case:ident $on:ident;)*) => {
        $(pub(crate) async fn $case() {
            $on::<Redis8>().await;
            $on::<Valkey8>().await;
        })*
    };
}
pub(crate) use on_both;

on_both! {
    a_batch_is_written_whole_or_not_at_all whole;
    a_batch_that_comes_again_is_written_once once;
    what_is_wrong_with_a_record_is_told_from_what_is_wrong_with_the_target told;
    what_a_user_may_not_do_leaves_nothing_behind denied;
    a_batch_whose_answer_was_cut_off_is_written_once cut;
    batches_are_forgotten_when_they_are_old forgotten;
    a_large_batch_is_as_whole_as_a_small_one large;
    everything_that_was_accepted_is_there_after_the_drain drained;
    s8_a_batch_that_was_only_queued_or_aborted_is_not_called_written queued;
}

/// On a connection that others have changed, which only the driver's own manager lets them.
async fn queued<V: Version>() {
    let server = own_of::<V>().await;
    let manager = Client::open(config(&server).driver).unwrap().get_connection_manager().await.unwrap();
    let scene = Scene::of(server, Redis::wrap(manager));
    let mut connection = scene.get().await;
    let element = elements([1]);
    run(&mut *connection, "MULTI").await.unwrap();
    let error = scene.list().write(&mut connection, &element).await.unwrap_err();
    assert!(matches!(error, WriteError::Unknown(_)), "{error:?}");
    run(&mut *connection, "DISCARD").await.unwrap();
    assert_eq!(scene.ids().await.1, [0; 0]);
    run(&mut *connection, &format!("WATCH {}", scene.list)).await.unwrap();
    cmd("SET").arg(&scene.list).arg(1).exec_async(&mut scene.server.superuser().await).await.unwrap();
    cmd("DEL").arg(&scene.list).exec_async(&mut scene.server.superuser().await).await.unwrap();
    let list = scene.list().delivery(Delivery::AtLeastOnce);
    let error = list.write(&mut connection, &element).await.unwrap_err();
    assert!(matches!(error, WriteError::Retry(_)), "{error:?}");
    list.write(&mut connection, &element).await.unwrap();
    assert_eq!(scene.ids().await.1, [1]);
    let Scene { server, lifecycle, db, .. } = scene;
    drop(connection);
    lifecycle.drain().await;
    drop((db, lifecycle));
    until("it is gone", || async { server.sessions().await.unwrap() == 0 }).await;
    server.end().await.unwrap();
}

pub(crate) async fn s8_no_record_is_lost_to_what_a_caller_has_left() {
    let server = own().await;
    let redis = Redis::new(config(&server).pooled(1));
    let scene = Scene::of(server, redis);
    let audit = scene.lifecycle.guard_as("audit", BatchWriter::new(&scene.db, scene.list()));
    scene.lifecycle.init().await.unwrap();
    for (id, left) in (1..).zip(["MULTI", "WATCH", "SELECT 3"]) {
        let mut connection = scene.get().await;
        let left = if left == "WATCH" { format!("WATCH {}", scene.list) } else { left.to_owned() };
        run(&mut *connection, &left).await.unwrap();
        drop(connection);
        audit.push(id).await.unwrap();
        scene.lifecycle.flush().await.unwrap();
    }
    assert_eq!(scene.ids().await.1, [1, 2, 3]);
    let report = scene.lifecycle.drain().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.resource("audit").unwrap().records.unwrap().written, 3, "{report}");
    scene.server.end().await.unwrap();
}

async fn whole<V: Version>() {
    let scene = Scene::<V>::new().await;
    for delivery in [Delivery::ExactlyOnce, Delivery::AtLeastOnce] {
        let (stream, list) = (scene.stream().delivery(delivery), scene.list().delivery(delivery));
        assert_eq!(Sink::<Entry>::delivery(&stream), delivery);
        scene.write(&stream, &entries([3, 1, 2])).await.unwrap();
        scene.write(&list, &elements([3, 1, 2])).await.unwrap();
        // Each is of another type than the other wants.
        let mut connection = scene.get().await;
        let (stream, list) = (Stream::to(&*scene.list).delivery(delivery), List::to(&*scene.stream).delivery(delivery));
        let (not_there, nor_here) = (entries([4]), elements([4]));
        for result in [
            stream.write(&mut connection, &not_there).await,
            list.write(&mut connection, &nor_here).await,
            // Again, at once: it does not count as written.
            stream.write(&mut connection, &not_there).await,
        ] {
            let error = result.unwrap_err();
            assert!(matches!(error, WriteError::Failed(_)), "{error:?}");
            assert_eq!(error.error().kind(), ErrorKind::Write, "{error}");
            assert!(error.to_string().contains("wrong kind of value"), "{error}");
        }
    }
    assert_eq!(scene.ids().await, (vec![3, 1, 2, 3, 1, 2], vec![3, 1, 2, 3, 1, 2]));
    until("nothing says that what was refused was written", || async { scene.keys().await.len() == 2 }).await;
    scene.end().await;
}

async fn once<V: Version>() {
    let server = own_of::<V>().await;
    let manager = Client::open(config(&server).driver).unwrap().get_connection_manager().await.unwrap();
    // Each has its own connection, all share one, and as an application has built it.
    let others = [Redis::new(config_at(&server, server.server.address)), Redis::wrap(manager)];
    let redis = Redis::new(config(&server));
    let scene = Scene::of(server, redis);
    let dbs: Vec<_> = others.into_iter().map(|other| scene.lifecycle.guard(other)).chain([scene.db.clone()]).collect();
    for (id, db) in (1..).zip(&dbs) {
        let (entries, elements) = (entries([id]), elements([id]));
        let writers = (0..8).map(|_| {
            let (db, entries, elements) = (db.clone(), entries.clone(), elements.clone());
            let (stream, list) = (scene.stream(), scene.list());
            tokio::spawn(async move {
                stream.write(&mut db.get().await.unwrap(), &entries).await?;
                list.write(&mut db.get().await.unwrap(), &elements).await
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.unwrap().unwrap();
        }
        // The server may forget the script.
        cmd("SCRIPT").arg("FLUSH").exec_async(&mut scene.server.superuser().await).await.unwrap();
        scene.write(&scene.stream(), &entries).await.unwrap();
    }
    assert_eq!(scene.ids().await, (vec![1, 2, 3], vec![1, 2, 3]));
    let (twice, batch) = (scene.list().delivery(Delivery::AtLeastOnce), elements([4]));
    for _ in 0..2 {
        scene.write(&twice, &batch).await.unwrap();
    }
    assert_eq!(scene.ids().await.1, [1, 2, 3, 4, 4]);
    assert_eq!(scene.keys().await.len(), 6);
    let Scene { server, lifecycle, db, .. } = scene;
    lifecycle.drain().await;
    // That of the manager goes with it.
    drop((dbs, db, lifecycle));
    until("it is gone", || async { server.sessions().await.unwrap() == 0 }).await;
    server.end().await.unwrap();
}

async fn told<V: Version>() {
    let scene = Scene::<V>::new().await;
    let mut connection = scene.get().await;
    let stream = scene.stream();
    for fields in [vec![], vec!["id"], vec!["id", "1", "what"], vec!["x"; 5000]] {
        let batch = vec![vec!["id", "1"], fields].into();
        let error = stream.write(&mut connection, &batch).await.unwrap_err();
        assert!(matches!(error, WriteError::Rejected(_)), "{error:?}");
        println!("{error}");
    }
    for element in [vec![], vec!["one", "two"]] {
        let batch = vec![vec!["one"], element].into();
        let error = scene.list().write(&mut connection, &batch).await.unwrap_err();
        assert!(matches!(error, WriteError::Rejected(_)), "{error:?}");
        println!("{error}");
    }
    drop(connection);
    assert_eq!((scene.ids().await, scene.keys().await.len()), ((vec![], vec![]), 0));
    scene.end().await;
}

async fn denied<V: Version>() {
    let server = own_of::<V>().await;
    let redis = Redis::new(config(&server));
    let scene = Scene::of(server, redis);
    let mut connection = scene.get().await;
    let (entries, elements) = (entries([1, 2]), elements([1, 2]));
    for rule in ["-xadd", "-rpush", "-set", "-get", "-evalsha", "-script|load"] {
        scene.rules(&["+@all", rule]).await;
        cmd("SCRIPT").arg("FLUSH").exec_async(&mut scene.server.superuser().await).await.unwrap();
        for result in [
            scene.stream().write(&mut connection, &entries).await,
            scene.list().write(&mut connection, &elements).await,
        ] {
            // One of the two needs the other's command not.
            let Err(error) = result else { continue };
            assert!(matches!(error, WriteError::Failed(_)), "{error:?}");
            let source = driver_error(error.error()).unwrap();
            assert!(source.to_string().to_lowercase().contains("no permission"), "{rule}: {source}");
        }
        let (streamed, listed) = scene.ids().await;
        assert_eq!((streamed.len(), listed.len()), (if rule == "-xadd" { 0 } else { 2 }, 2), "{rule}");
        scene.rules(&["+@all"]).await;
        scene.stream().write(&mut connection, &entries).await.unwrap();
        scene.list().write(&mut connection, &elements).await.unwrap();
    }
    // A transaction needs no script, and is aborted as a whole.
    scene.rules(&["+@all", "-@scripting"]).await;
    let at_least = scene.list().delivery(Delivery::AtLeastOnce);
    at_least.write(&mut connection, &self::elements([3])).await.unwrap();
    scene.rules(&["+@all", "-rpush"]).await;
    let error = at_least.write(&mut connection, &self::elements([4])).await.unwrap_err();
    assert!(matches!(error, WriteError::Failed(_)), "{error:?}");
    scene.rules(&["+@all"]).await;
    drop(connection);
    assert_eq!(scene.ids().await, (vec![1, 2], vec![1, 2, 3]));
    scene.end().await;
}

async fn cut<V: Version>() {
    for delivery in [Delivery::ExactlyOnce, Delivery::AtMostOnce] {
        for arrives in [true, false] {
            cut_by::<V>(delivery, arrives).await;
        }
    }
}

/// The connection is cut while the batch is on its way to the server, or its answer is on its way back.
async fn cut_by<V: Version>(delivery: Delivery, arrives: bool) {
    let server = start::<V>().await;
    let proxy = Proxy::start(server.server.address).await.unwrap();
    let redis = Redis::new(config_at(&server, proxy.address()).pooled(1));
    let scene = Scene::of(server, redis);
    let list = scene.list().delivery(delivery);
    scene.write(&list, &elements([1])).await.unwrap();
    let mut connection = scene.get().await;
    let sent = proxy.bytes_up();
    // It arrives, and its answer does not come back; or it does not arrive.
    if arrives {
        proxy.mute_after(0)
    } else {
        proxy.set_blackhole(true)
    }
    let doubtful = elements([2]);
    let error = {
        let mut write = pin!(list.write(&mut connection, &doubtful));
        tokio::select! {
            result = &mut write => panic!("nobody can have answered: {result:?}"),
            // Either it has been executed, or it has been on its way for a while.
            () = async {
                if arrives {
                    until("it is there", || async { scene.ids().await.1.len() == 2 }).await;
                } else {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            } => {}
        }
        assert_eq!(proxy.bytes_up() > sent, arrives);
        drop(proxy);
        write.await.unwrap_err()
    };
    assert!(matches!(error, WriteError::Unknown(_)), "{error:?}");
    drop(connection);
    assert_eq!(scene.ids().await.1.len(), if arrives { 2 } else { 1 });
    if delivery == Delivery::ExactlyOnce {
        // Another process writes it again, and again.
        let lifecycle = lifecycle(Duration::from_secs(30));
        let db = lifecycle.guard(Redis::new(config(&scene.server)));
        for _ in 0..2 {
            list.write(&mut db.get().await.unwrap(), &doubtful).await.unwrap();
        }
        assert!(lifecycle.drain().await.is_clean());
        assert_eq!(scene.ids().await.1, [1, 2]);
    }
    // Nothing can be said to the server any more.
    scene.lifecycle.drain().await;
    scene.server.end().await.unwrap();
}

async fn forgotten<V: Version>() {
    let scene = Scene::<V>::new().await;
    let ttl = async |key: &str| -> i64 {
        cmd("TTL").arg(key).query_async(&mut scene.server.superuser().await).await.unwrap()
    };
    scene.write(&scene.list(), &elements([1])).await.unwrap();
    let left = ttl(&scene.keys().await[0]).await;
    assert!((86_000..=86_400).contains(&left), "{left} s");
    let (short, batch) = (scene.list().remember(Duration::ZERO), elements([2]));
    scene.write(&short, &batch).await.unwrap();
    until("it is forgotten", || async { scene.keys().await.len() == 1 }).await;
    scene.write(&short, &batch).await.unwrap();
    scene.write(&scene.stream().remember(Duration::MAX), &entries([1])).await.unwrap();
    until("the short one is forgotten", || async { scene.keys().await.len() == 2 }).await;
    let mut left = 0;
    for key in scene.keys().await {
        left = left.max(ttl(&key).await);
    }
    assert!(left > 100 * 365 * 86_400, "{left} s");
    assert_eq!(scene.ids().await, (vec![1], vec![1, 2, 2]));
    scene.end().await;
}

async fn large<V: Version>() {
    let scene = Scene::<V>::new().await;
    // As long as it takes; the shared connection would give up after half a second.
    scene.write(&scene.stream(), &entries(0..20_000)).await.unwrap();
    scene.write(&scene.list(), &elements(0..200_000)).await.unwrap();
    let (streamed, listed) = scene.ids().await;
    assert_eq!((streamed, listed), ((0..20_000).collect(), (0..200_000).collect()));
    let wide: Batch<Vec<(u32, u32)>> = vec![(0..2048).map(|field| (field, field)).collect(); 2].into();
    let other = Stream::to(scene.server.tenant.key("wide"));
    scene.write(&other, &wide).await.unwrap();
    // Too much for one request is not for the server to say.
    let error = scene.write(&scene.list(), &elements(0..1_000_001)).await.unwrap_err();
    assert!(matches!(error, WriteError::TooLarge(_)), "{error:?}");
    // The oldest go.
    scene.write(&scene.stream().max_len_approx(1000), &entries(20_000..20_500)).await.unwrap();
    let (streamed, _) = scene.ids().await;
    assert!((1000..1200).contains(&streamed.len()), "{}", streamed.len());
    assert_eq!(streamed.last(), Some(&20_499));
    scene.end().await;
}

async fn drained<V: Version>() {
    let server = start::<V>().await;
    let redis = Redis::new(config_at(&server, server.server.address));
    let scene = Scene::of(server, redis);
    let stream = BatchWriter::new(&scene.db, scene.stream()).name("stream").max_age(Duration::from_secs(60));
    let list = BatchWriter::new(&scene.db, scene.list()).name("list").max_age(Duration::from_secs(60));
    let (stream, list) = (scene.lifecycle.guard(stream), scene.lifecycle.guard(list));
    for id in 0..1234 {
        stream.push(entry(id)).await.unwrap();
        list.push(id).await.unwrap();
    }
    let report = scene.lifecycle.drain().await;
    assert!(report.is_clean(), "{report}");
    for name in ["stream", "list"] {
        let records = report.resource(name).unwrap().records.unwrap();
        assert_eq!((records.accepted, records.written), (1234, 1234), "{report}");
    }
    let (mut streamed, mut listed) = scene.ids().await;
    streamed.sort_unstable();
    listed.sort_unstable();
    assert_eq!((streamed, listed), ((0..1234).collect(), (0..1234).collect()));
    assert_nothing_left(&scene.server).await;
    scene.server.end().await.unwrap();
}

pub(crate) async fn what_passes_can_be_written_again() {
    let server = own().await;
    let redis = Redis::new(config(&server));
    let scene = Scene::of(server, redis);
    let mut connection = scene.get().await;
    let mut superuser = scene.server.superuser().await;
    let mut ids = Vec::new();
    // Full, without its disk, a replica, and without enough replicas.
    let faults = [
        ("OOM", ["CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"]),
        ("READONLY", ["REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"]),
        ("NOREPLICAS", ["CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0"]),
    ];
    for (id, (code, [begin, end])) in (1..).zip(faults) {
        let (once, more) = (elements([id]), elements([-id]));
        let (exactly, at_least) = (scene.list(), scene.list().delivery(Delivery::AtLeastOnce));
        run(&mut superuser, begin).await.unwrap();
        for result in [exactly.write(&mut connection, &once).await, at_least.write(&mut connection, &more).await] {
            let error = result.unwrap_err();
            assert!(matches!(error, WriteError::Retry(_)), "{code}: {error:?}");
            let source = driver_error(error.error()).unwrap();
            let refusals = source.clone().into_server_errors().unwrap();
            assert_eq!(refusals[0].1.code(), code, "{source}");
        }
        run(&mut superuser, end).await.unwrap();
        exactly.write(&mut connection, &once).await.unwrap();
        at_least.write(&mut connection, &more).await.unwrap();
        ids.extend([id, -id]);
    }
    assert_eq!(scene.ids().await.1, ids);
    drop(connection);
    scene.end().await;
}

pub(crate) async fn run(superuser: &mut impl ConnectionLike, command: &str) -> RedisResult<Value> {
    let mut words = command.split(' ');
    let mut command = cmd(words.next().unwrap());
    command.arg(words.collect::<Vec<_>>());
    command.query_async(superuser).await
}
