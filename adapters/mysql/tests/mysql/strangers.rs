//! Sessions of others, of the same user, that have the numbers that ours had before the server was started again.

use std::pin::pin;

use winddown_mysql::{
    Mysql,
    mysql_async::{Conn, prelude::Queryable as _},
};
use winddown_testkit::Harness as _;

use crate::{
    scene::{ENDLESS, Scene, Speaks as _, config, own, ping, start, until_running},
    server::{MariaDb, MySql, Tenancy, Version, run},
};

/// Numbers begin anew.
async fn start_again<V: Version>(server: &Tenancy<V>) {
    server.kill().await.unwrap();
    server.start_again().await.unwrap();
}

/// Sessions of the tenant's user with these numbers, which rise.
async fn strangers<V: Version>(server: &Tenancy<V>, numbers: &[u32]) -> Vec<Conn> {
    let opts = config(server).driver;
    let mut found = Vec::new();
    for number in numbers {
        loop {
            let stranger = Conn::new(opts.clone()).await.unwrap();
            assert!(stranger.id() <= *number, "the number was given away already");
            if stranger.id() == *number {
                break found.push(stranger);
            }
            stranger.disconnect().await.unwrap();
        }
    }
    found
}

pub(crate) async fn sessions_that_have_our_numbers_after_a_restart_are_left_alone() {
    left_alone::<MySql>().await;
    left_alone::<MariaDb>().await;
}

async fn left_alone<V: Version>() {
    let server = own::<V>().await;
    // So that numbers are low.
    start_again(&server).await;
    let scene = Scene::patient(Mysql::new(config(&server)));
    // One is out, and nobody waits for what two others ran.
    let mut held = scene.get().await;
    ping(&mut held).await;
    let mut numbers = vec![held.id()];
    for running in 1..=2 {
        let mut connection = scene.get().await;
        numbers.push(connection.id());
        let mut run = pin!(run(&mut connection, ENDLESS));
        tokio::select! {
            result = &mut run => panic!("it ended at once: {:?}", result.err()),
            () = until_running(&server, running) => {}
        }
    }
    start_again(&server).await;
    let mut strangers = strangers(&server, &numbers).await;
    let mut runs = strangers.pop().unwrap();
    let runs = tokio::spawn(async move { run(&mut runs, ENDLESS).await.map_err(|error| error.to_string()) });
    until_running(&server, 1).await;
    let drained = scene.drain().await;
    drained.assert_in_time();
    assert!(!runs.is_finished(), "its statement has ended: {:?}: {}", runs.await, drained.report);
    for stranger in &mut strangers {
        stranger.query_drop("SELECT 1").await.unwrap_or_else(|error| panic!("{error}: {}", drained.report));
    }
    // Ours went with the server that had them, before the drain; one is still out.
    assert_eq!((drained.row().sessions.cancelled, drained.ended()), (0, (0, 0)), "{}", drained.report);
    assert_eq!(drained.row().left_out, 1, "{}", drained.report);
    runs.abort();
    drop((held, strangers));
    server.end().await.unwrap();
}

pub(crate) async fn sessions_are_told_from_those_of_others_while_one_of_them_runs_what_is_no_text() {
    beside_bytes::<MySql>().await;
    beside_bytes::<MariaDb>().await;
}

/// MySQL answers no question to `information_schema.processlist` as long as such a statement is to be shown.
async fn beside_bytes<V: Version>() {
    let server = start::<V>().await;
    let mut stranger = Conn::new(config(&server).driver).await.unwrap();
    let number = u64::from(stranger.id());
    let bytes =
        tokio::spawn(async move { stranger.query_drop(&b"SELECT SLEEP(300), _binary'\xff\xfe\x80'"[..]).await });
    until_running(&server, 1).await;

    let scene = Scene::new(Mysql::new(config(&server)));
    drop(scene.out(3).await);
    let drained = scene.drain().await;
    drained.assert_clean(3);
    assert_eq!(drained.row().sessions.unconfirmed, 0, "{}", drained.report);
    let complaints = server.complaints().await.unwrap();
    assert!(complaints.is_empty(), "{complaints:#?}");

    let scene = Scene::patient(Mysql::new(config(&server)));
    {
        let mut connection = scene.get().await;
        let mut run = pin!(run(&mut connection, ENDLESS));
        tokio::select! {
            result = &mut run => panic!("it ended at once: {:?}", result.err()),
            () = until_running(&server, 2) => {}
        }
    }
    let drained = scene.drain().await;
    drained.assert_in_time();
    assert_eq!((drained.row().sessions.cancelled, drained.ended()), (1, (1, 0)), "{}", drained.report);

    assert!(!bytes.is_finished(), "the stranger's");
    server.execute(&format!("KILL {number}")).await.unwrap();
    bytes.await.unwrap().unwrap_err();
    server.end().await.unwrap();
}
