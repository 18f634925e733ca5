//! What the sinks find before the first record comes, and what they do about a server that does not take a batch.

use std::{pin::pin, time::Duration};

use redis::cmd;
use winddown_buffer::{Delivery, Sink};
use winddown_core::{Checkout, Error, ErrorKind};
use winddown_redis::{List, Redis, Stream, redis};
use winddown_testkit::{Harness as _, proxy::Proxy};

use crate::{
    scene::{config, config_at, own, start, until},
    server::{Redis8, Valkey8, Version},
    sink::{Entry, Scene, elements, entries, on_both, run},
};

on_both! {
    what_can_be_appended_to_passes_the_check_and_nothing_is_changed good;
    a_key_of_another_type_is_found another_type;
    a_write_that_hangs_is_given_up_and_written_once hung;
}

async fn check_stream(stream: &Stream, connection: &mut Checkout<Redis>) -> Result<(), Error> {
    Sink::<Entry>::check(stream, connection).await
}

async fn check_list(list: &List, connection: &mut Checkout<Redis>) -> Result<(), Error> {
    Sink::<i64>::check(list, connection).await
}

/// What the check says to do.
fn advice(checked: Result<(), Error>) -> String {
    let error = checked.unwrap_err();
    println!("{error}");
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(!error.is_retryable(), "{error}");
    error.to_string()
}

async fn good<V: Version>() {
    let scene = Scene::<V>::new().await;
    let mut connection = scene.get().await;
    for _ in 0..2 {
        for delivery in [Delivery::ExactlyOnce, Delivery::AtLeastOnce] {
            check_stream(&scene.stream().delivery(delivery), &mut connection).await.unwrap();
            check_list(&scene.list().delivery(delivery), &mut connection).await.unwrap();
        }
        if scene.ids().await.1.is_empty() {
            assert_eq!((scene.ids().await, scene.keys().await.len()), ((vec![], vec![]), 0));
            scene.stream().write(&mut connection, &entries([1])).await.unwrap();
            scene.list().write(&mut connection, &elements([1])).await.unwrap();
        }
    }
    drop(connection);
    assert_eq!((scene.ids().await, scene.keys().await.len()), ((vec![1], vec![1]), 2));
    assert_eq!(Sink::<Entry>::target(&scene.stream()), Some(&*scene.stream));
    assert_eq!(Sink::<i64>::target(&List::to(vec![0xff])), None);
    scene.end().await;
}

async fn another_type<V: Version>() {
    let scene = Scene::<V>::new().await;
    let mut connection = scene.get().await;
    scene.stream().write(&mut connection, &entries([1])).await.unwrap();
    scene.list().write(&mut connection, &elements([1])).await.unwrap();
    let error = advice(check_list(&List::to(&*scene.stream), &mut connection).await);
    assert!(error.contains("is a stream, and RPUSH needs a list"), "{error}");
    let error = advice(check_stream(&Stream::to(&*scene.list), &mut connection).await);
    assert!(error.contains("is a list, and XADD needs a stream"), "{error}");
    drop(connection);
    scene.end().await;
}

/// On a server of its own: it takes away scripts that others have loaded.
pub(crate) async fn a_user_who_may_not_append_is_told_so() {
    let server = own().await;
    let redis = Redis::new(config(&server));
    let scene = Scene::of(server, redis);
    let mut connection = scene.get().await;
    for (rule, says) in
        [("-xadd", "+xadd"), ("-set", "+set"), ("-get", "+get"), ("-evalsha", "+evalsha"), ("-script|load", "+evalsha")]
    {
        scene.rules(&["+@all", rule]).await;
        cmd("SCRIPT").arg("FLUSH").exec_async(&mut scene.server.superuser().await).await.unwrap();
        let error = advice(check_stream(&scene.stream(), &mut connection).await);
        assert!(error.contains(says), "{error}");
    }
    // A transaction needs neither the marker nor a script; whether the rest is allowed nobody says.
    scene.rules(&["+@all", "-@scripting", "-set", "-type"]).await;
    check_list(&scene.list().delivery(Delivery::AtLeastOnce), &mut connection).await.unwrap();
    scene.rules(&["+@all", "-rpush"]).await;
    let error = advice(check_list(&scene.list().delivery(Delivery::AtLeastOnce), &mut connection).await);
    assert!(error.contains("+rpush"), "{error}");
    scene.rules(&["+@all"]).await;
    let error = advice(check_list(&List::to("nobody's"), &mut connection).await);
    assert!(error.contains("nobody's"), "{error}");
    check_list(&scene.list(), &mut connection).await.unwrap();
    drop(connection);
    assert_eq!((scene.ids().await, scene.keys().await.len()), ((vec![], vec![]), 0));
    scene.end().await;
}

pub(crate) async fn a_server_that_takes_no_writes_now_is_worth_another_try() {
    let server = own().await;
    let redis = Redis::new(config(&server));
    let scene = Scene::of(server, redis);
    let mut connection = scene.get().await;
    let mut superuser = scene.server.superuser().await;
    let faults = [
        ["CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"],
        ["REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"],
        ["CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0"],
    ];
    for [begin, end] in faults {
        run(&mut superuser, begin).await.unwrap();
        for delivery in [Delivery::ExactlyOnce, Delivery::AtLeastOnce] {
            let error = check_list(&scene.list().delivery(delivery), &mut connection).await.unwrap_err();
            println!("{error}");
            assert!(error.is_retryable(), "{error}");
        }
        run(&mut superuser, end).await.unwrap();
        check_list(&scene.list(), &mut connection).await.unwrap();
    }
    drop(connection);
    scene.end().await;
}

async fn hung<V: Version>() {
    for is_shared in [false, true] {
        let server = start::<V>().await;
        let proxy = Proxy::start(server.server.address).await.unwrap();
        let config = config_at(&server, proxy.address());
        let redis = Redis::new(if is_shared { config } else { config.pooled(2) });
        let scene = Scene::of(server, redis);
        let (list, again) = (scene.list(), elements([2]));
        scene.write(&list, &elements([1])).await.unwrap();
        let mut connection = scene.get().await;
        proxy.set_blackhole(true);
        {
            let mut write = pin!(list.write(&mut connection, &again));
            tokio::select! {
                result = &mut write => panic!("nobody can have answered: {result:?}"),
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
            }
        }
        Sink::<i64>::abandon(&list, connection).await;
        // What was on its way arrives after all.
        proxy.set_blackhole(false);
        scene.write(&list, &again).await.unwrap();
        until("what was on its way has arrived", || async { scene.ids().await.1.len() >= 2 }).await;
        let report = scene.lifecycle.drain().await;
        assert!(report.is_clean(), "{report}");
        assert_eq!(scene.ids().await.1, [1, 2]);
        scene.server.end().await.unwrap();
    }
}
