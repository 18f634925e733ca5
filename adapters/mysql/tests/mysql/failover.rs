//! A server that takes no writes any more: another one is the primary, and the address leads there sooner or later.

use std::time::{Duration, Instant};

use winddown_buffer::{BatchWriter, Push as _};
use winddown_mysql::{Mysql, mysql_async::prelude::Queryable as _};
use winddown_testkit::{Harness as _, wire::Wire};

use crate::{
    scene::{QUICK, Scene, Speaks, config, config_at, own, start, text, until},
    server::{MariaDb, MySql, Version},
    sink::{AUDIT, Scene as SinkScene, insert, on_both, record},
    state::with_settings,
};

on_both! {
    writers_go_on_where_the_address_leads_to writers;
    a_buffer_loses_nothing_when_another_server_takes_over buffer;
    those_who_only_read_keep_their_sessions readers;
}

async fn writers<V: Version>() {
    let old = own::<V>().await;
    let new = start::<V>().await;
    old.tenant.create_on(&new.server).await.unwrap();
    let wire = Wire::to(old.server.address).await.unwrap();
    let mut config = config_at(&old, wire.address());
    config.pool.max_size = 4;
    let scene = Scene::new(Mysql::new(config));
    drop(scene.out(4).await);
    let write = async || {
        let mut connection = scene.get().await;
        connection.query_drop("INSERT INTO rows_left VALUES (1)").await
    };
    with_settings(&old, &[("read_only", "1")], async {
        // The address still leads to the old one. It is asked again nevertheless.
        until("another session is tried", || async { write().await.is_err() && wire.accepted() > 5 }).await;
        wire.lead_to(new.server.address);
        let began = Instant::now();
        until("a write goes well", || async { write().await.is_ok() }).await;
        assert!(began.elapsed() < QUICK, "{:?}", began.elapsed());
        // Whoever was told has come back; then all do.
        until("nobody is on the old one", || async {
            scene.out(4).await;
            old.sessions().await.unwrap() == 0
        })
        .await;
        for _ in 0..10 {
            write().await.unwrap();
        }
    })
    .await;
    assert_eq!(old.rows().await.unwrap(), 0);
    scene.drain().await;
    let tenant = old.tenant.clone();
    old.end().await.unwrap();
    tenant.drop(&new.server).await.unwrap();
    new.end().await.unwrap();
}

async fn buffer<V: Version>() {
    const RECORDS: i64 = 400;
    let old = own::<V>().await;
    let new = start::<V>().await;
    old.tenant.create_on(&new.server).await.unwrap();
    let wire = Wire::to(old.server.address).await.unwrap();
    let mut superuser = new.server.superuser().await.unwrap();
    superuser.query_drop(format!("USE {}", old.tenant.name)).await.unwrap();
    superuser.query_drop(AUDIT).await.unwrap();
    let mut config = config_at(&old, wire.address());
    // No second session is opened for any other reason.
    config.pool.max_size = 1;
    let scene = SinkScene::of(old, Mysql::new(config)).await;
    let audit = scene.lifecycle.guard(BatchWriter::new(&scene.db, insert()));
    with_settings(&scene.server, &[("read_only", "1")], async {
        for id in 0..RECORDS {
            audit.push(record(id)).await.unwrap();
            if id == RECORDS / 2 {
                wire.lead_to(new.server.address);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let report = scene.lifecycle.drain().await;
        let records = report.resources.iter().find_map(|row| row.records).unwrap();
        assert_eq!((records.accepted, records.written), (RECORDS as u64, RECORDS as u64), "{report}");
    })
    .await;
    let written: Vec<i64> = superuser.query("SELECT id FROM audit ORDER BY id").await.unwrap();
    assert_eq!(written, (0..RECORDS).collect::<Vec<_>>());
    assert_eq!(scene.ids().await, [0; 0]);
    let tenant = scene.server.tenant.clone();
    scene.server.end().await.unwrap();
    tenant.drop(&new.server).await.unwrap();
    new.end().await.unwrap();
}

async fn readers<V: Version>() {
    let server = own::<V>().await;
    let mut config = config(&server);
    config.pool.max_size = 1;
    let scene = Scene::new(Mysql::new(config.clone()));
    let first = scene.get().await.id();
    for _ in 0..3 {
        // What the application has begun as such says nothing of the server.
        let mut connection = scene.get().await;
        assert_eq!(connection.id(), first);
        connection.query_drop("START TRANSACTION READ ONLY").await.unwrap();
        connection.query_drop("INSERT INTO rows_left VALUES (1)").await.unwrap_err();
    }
    scene.drain().await.assert_clean(1);
    // A pool for those who read has a server that never took writes.
    with_settings(&server, &[("read_only", "1")], async {
        let scene = Scene::new(Mysql::new(config));
        let first = scene.get().await.id();
        tokio::time::sleep(Duration::from_millis(1200)).await;
        for _ in 0..3 {
            let mut connection = scene.get().await;
            assert_eq!(connection.id(), first);
            text(&mut connection, "SELECT 1").await;
        }
        scene.drain().await.assert_clean(1);
    })
    .await;
    server.end().await.unwrap();
}
