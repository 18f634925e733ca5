//! Writes on a connection that is dead, which nobody was told.

use std::{pin::pin, time::Duration};

use tokio::time::timeout;
use winddown_buffer::Sink;
use winddown_mysql::{
    Mysql,
    mysql_async::{Conn, prelude::Queryable as _},
};
use winddown_testkit::{Harness as _, scene::until, wire::Wire};

use crate::{
    scene::{config, config_at, own, start},
    server::{MariaDb, MySql, Version, listed},
    sink::{Record, Scene, batch, insert, load, on_both},
};

on_both! {
    a_write_that_hangs_is_given_up_and_written_once_over_another_connection hung;
    a_session_that_may_be_somebody_elses_is_not_ended elses;
}

async fn hung<V: Version>() {
    hung_by::<V>(insert()).await;
    hung_by::<V>(load()).await;
}

async fn hung_by<V: Version>(sink: impl Sink<Record, Target = Mysql>) {
    let server = start::<V>().await;
    let wire = Wire::to(server.server.address).await.unwrap();
    // One that was started this moment could as well have been started again.
    until("the server has been running for a while", || async {
        let mut superuser = server.server.superuser().await.unwrap();
        let uptime: Option<(String, u64)> = superuser.query_first("SHOW GLOBAL STATUS LIKE 'Uptime'").await.unwrap();
        uptime.is_some_and(|(_, seconds)| seconds > 2)
    })
    .await;
    let mysql = Mysql::new(config_at(&server, wire.address()));
    let scene = Scene::of(server, mysql).await;
    scene.write(&sink, &batch([1])).await.unwrap();
    // Another has the row for a moment, so that the write is in its middle.
    let mut other = scene.server.server.superuser().await.unwrap();
    other.query_drop(format!("USE {}", scene.server.tenant.name)).await.unwrap();
    other.query_drop("BEGIN; INSERT INTO audit(id, what) VALUES (5, '')").await.unwrap();
    let mut connection = scene.db.get().await.unwrap();
    let (session, again) = (connection.id(), batch([4, 5, 6]));
    {
        let mut write = pin!(sink.write(&mut connection, &again));
        tokio::select! {
            result = &mut write => panic!("nobody can have answered: {result:?}"),
            () = until("it waits for the lock", || async {
                let waits: Vec<(String, u64)> =
                    scene.rows("SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_current_waits'").await;
                waits[0].1 > 0
            }) => {}
        }
        wire.cut();
        // Now it is done, but for the commit, and nobody hears of that.
        other.query_drop("ROLLBACK").await.unwrap();
    }
    let mut superuser = scene.server.server.superuser().await.unwrap();
    let mut is_listed =
        async || !listed(&mut superuser, |line| line.id == u64::from(session)).await.unwrap().is_empty();
    assert!(is_listed().await);
    timeout(Duration::from_secs(20), sink.abandon(connection)).await.expect("it is bounded");
    assert!(!is_listed().await, "the server has ended it");
    let written = timeout(Duration::from_secs(20), scene.write(&sink, &again)).await;
    written.expect("no lock is in its way").unwrap();
    assert_eq!(scene.ids().await, [1, 4, 5, 6]);
    // Whatever is idle on the dead wire is told to end now.
    scene.lifecycle.drain().await;
    assert_eq!(scene.server.sessions().await.unwrap(), 0);
    scene.server.end().await.unwrap();
}

async fn elses<V: Version>() {
    let server = own::<V>().await;
    // So that numbers are low.
    server.kill().await.unwrap();
    server.start_again().await.unwrap();
    let mysql = Mysql::new(config(&server));
    let scene = Scene::of(server, mysql).await;
    let connection = scene.db.get().await.unwrap();
    let number = connection.id();
    scene.server.kill().await.unwrap();
    scene.server.start_again().await.unwrap();
    // The same user has a session of the same number now, in another process.
    let opts = config(&scene.server).driver;
    let mut stranger = Conn::new(opts.clone()).await.unwrap();
    while stranger.id() < number {
        let next = Conn::new(opts.clone()).await.unwrap();
        std::mem::replace(&mut stranger, next).disconnect().await.unwrap();
    }
    assert_eq!(stranger.id(), number);
    timeout(Duration::from_secs(20), Sink::<Record>::abandon(&insert(), connection)).await.expect("it is bounded");
    stranger.query_drop("SELECT 1").await.unwrap();
    stranger.disconnect().await.unwrap();
    // And the pool works.
    scene.write(&insert(), &batch([1])).await.unwrap();
    assert_eq!(scene.ids().await, [1]);
    assert!(scene.lifecycle.drain().await.is_clean());
    scene.server.end().await.unwrap();
}
