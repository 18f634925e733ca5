//! What a session is between two checkouts: what it was when it was opened, whatever its last user has done.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, resume_unwind},
};

use futures_util::FutureExt as _;
use winddown_mysql::{
    Mysql,
    mysql_async::{Conn, OptsBuilder, Pool, PoolConstraints, PoolOpts, prelude::Queryable as _},
};
use winddown_testkit::{Harness as _, scene::Scene as AnyScene};

use crate::{
    scene::{Scene, config, own, start, text},
    server::{MariaDb, MySql, Tenancy, Version},
};

const GREETING: &str = "Grüße";

/// In UTF-8, in hexadecimal digits.
const BYTES: &str = "4772C3BCC39F65";

/// Runs this while the server has these settings, and gives it its own again whatever becomes of it.
pub(crate) async fn with_settings<V: Version>(
    server: &Tenancy<V>,
    settings: &[(&str, &str)],
    doing: impl Future<Output = ()>,
) {
    let mut superuser = server.server.superuser().await.unwrap();
    let mut before = Vec::new();
    for (name, value) in settings {
        before.push((name, text(&mut superuser, &format!("SELECT @@GLOBAL.{name}")).await.unwrap()));
        superuser.query_drop(format!("SET GLOBAL {name} = {value}")).await.unwrap();
    }
    let result = AssertUnwindSafe(doing).catch_unwind().await;
    for (name, value) in before {
        superuser.query_drop(format!("SET GLOBAL {name} = {value}")).await.unwrap();
    }
    if let Err(panic) = result {
        resume_unwind(panic);
    }
}

/// What a server is told by `--character-set-server=latin1`.
const LATIN1: &[(&str, &str)] = &[
    ("character_set_server", "latin1"),
    ("character_set_client", "latin1"),
    ("character_set_results", "latin1"),
    ("collation_connection", "latin1_swedish_ci"),
];

/// Creates a table, and writes a text by the first and the second user of one session.
async fn greet(first: &mut Conn, round: u32) {
    first
        .query_drop("CREATE TABLE IF NOT EXISTS greeting(n INT, said VARCHAR(20) CHARACTER SET utf8mb4)")
        .await
        .unwrap();
    // Once as a value, and once as a statement's text.
    first.exec_drop("INSERT INTO greeting VALUES (?, ?)", (round, GREETING)).await.unwrap();
    first.query_drop(format!("INSERT INTO greeting VALUES ({round}, '{GREETING}')")).await.unwrap();
    assert_eq!(text(first, &format!("SELECT '{GREETING}'")).await.as_deref(), Some(GREETING));
}

/// What another client finds.
async fn said<V: Version>(server: &Tenancy<V>) -> Vec<String> {
    let mut other = server.server.superuser().await.unwrap();
    let sql = format!("SELECT HEX(CONVERT(said USING utf8mb4)) FROM {}.greeting ORDER BY n", server.tenant.name);
    other.query(sql).await.unwrap()
}

pub(crate) async fn text_is_the_same_before_and_after_a_reset() {
    async fn on<V: Version>() {
        let server = own::<V>().await;
        with_settings(&server, LATIN1, async {
            let mut config = config(&server);
            config.pool.max_size = 1;
            let scene = Scene::new(Mysql::new(config));
            let mut ids = Vec::new();
            for round in 0..3 {
                let mut connection = scene.get().await;
                ids.push(connection.id());
                greet(&mut connection, round).await;
            }
            assert!(ids.iter().all(|id| *id == ids[0]), "one session: {ids:?}");
            assert_eq!(said(&server).await, [BYTES; 6], "{}", V::NAME);
            scene.drain().await.assert_clean(1);
        })
        .await;
        server.end().await.unwrap();
    }
    on::<MySql>().await;
    on::<MariaDb>().await;
}

pub(crate) async fn text_is_the_same_in_a_pool_of_the_drivers() {
    let server = own::<MySql>().await;
    with_settings(&server, LATIN1, async {
        let constraints = PoolConstraints::new(1, 1).unwrap();
        let builder = OptsBuilder::from_opts(config(&server).driver).prefer_socket(false);
        let builder = builder.pool_opts(PoolOpts::new().with_constraints(constraints));
        let scene = AnyScene::new(Mysql::wrap(Pool::new(builder.clone()), builder));
        let mut ids = Vec::new();
        for round in 0..3 {
            let mut connection = scene.get().await;
            ids.push(connection.id());
            assert_eq!(text(&mut connection, "SELECT DATABASE()").await.as_deref(), Some(&*server.tenant.name));
            greet(&mut connection, round).await;
            connection.query_drop("USE information_schema").await.unwrap();
        }
        assert!(ids.iter().all(|id| *id == ids[0]), "one session: {ids:?}");
        assert_eq!(said(&server).await, [BYTES; 6]);
        scene.drain().await.assert_clean(1);
    })
    .await;
    server.end().await.unwrap();
}

async fn variables(conn: &mut Conn) -> BTreeMap<String, String> {
    let variables: Vec<(String, String)> = conn.query("SHOW SESSION VARIABLES").await.unwrap();
    // The time, and what the server counts.
    let moves = |name: &str| {
        matches!(name, "timestamp" | "statement_id" | "pseudo_thread_id" | "last_insert_id" | "identity")
            || name.starts_with("gtid")
            || name.starts_with("rand_seed")
            || name.contains("random")
    };
    variables.into_iter().filter(|(name, _)| !moves(name)).collect()
}

pub(crate) async fn every_variable_is_after_a_reset_what_it_was() {
    async fn on<V: Version>() {
        let server = start::<V>().await;
        let mut config = config(&server);
        config.pool.max_size = 1;
        let builder = OptsBuilder::from_opts(config.driver)
            .init(vec!["SET SESSION lock_wait_timeout = 1234"])
            .setup(vec!["SET SESSION time_zone = '+02:00'"]);
        config.driver = builder
            .after_connect(|conn| async move { conn.query_drop("SET SESSION sort_buffer_size = 65536").await }.boxed())
            .into();
        let scene = Scene::new(Mysql::new(config));
        let mut connection = scene.get().await;
        let (id, before) = (connection.id(), variables(&mut connection).await);
        assert_eq!((&*before["lock_wait_timeout"], &*before["time_zone"]), ("1234", "+02:00"));
        assert_eq!(before["sort_buffer_size"], "65536");
        connection.query_drop("SET NAMES latin1").await.unwrap();
        connection.query_drop("SET SESSION time_zone = '+05:00', lock_wait_timeout = 7").await.unwrap();
        drop(connection);
        let mut connection = scene.get().await;
        assert_eq!(connection.id(), id);
        let after = variables(&mut connection).await;
        let changed: Vec<_> = before.iter().filter(|(name, value)| after.get(*name) != Some(value)).collect();
        assert!(changed.is_empty(), "{}: {changed:?}", V::NAME);
        drop(connection);
        scene.drain().await.assert_clean(1);
        server.end().await.unwrap();
    }
    on::<MySql>().await;
    on::<MariaDb>().await;
}

/// Changes to another database, once with one configured and once without; the next caller is where the first one was.
pub(crate) async fn the_next_caller_is_in_the_configured_database() {
    async fn on<V: Version>(parameters: Option<&str>, named: bool) {
        let server = start::<V>().await;
        let mut config = config(&server);
        config.pool.max_size = 1;
        let mut builder = OptsBuilder::from_opts(config.driver);
        if !named {
            builder = builder.db_name(None::<String>);
        }
        if parameters.is_some() {
            builder = builder.pool_opts(PoolOpts::new().with_reset_connection(false));
        }
        config.driver = builder.into();
        let expected = named.then(|| server.tenant.name.clone());
        let scene = Scene::new(Mysql::new(config));
        let mut ids = Vec::new();
        for _ in 0..3 {
            let mut connection = scene.get().await;
            ids.push(connection.id());
            let database = text(&mut connection, "SELECT DATABASE()").await;
            assert_eq!(database, expected, "{}, reset {}", V::NAME, parameters.is_none());
            assert_eq!(text(&mut connection, &format!("SELECT '{GREETING}'")).await.as_deref(), Some(GREETING));
            connection.query_drop("USE information_schema").await.unwrap();
        }
        assert!(ids.iter().all(|id| *id == ids[0]), "one session: {ids:?}");
        scene.drain().await.assert_clean(1);
        server.end().await.unwrap();
    }
    for parameters in [None, Some("reset_connection=false")] {
        for named in [true, false] {
            on::<MySql>(parameters, named).await;
            on::<MariaDb>(parameters, named).await;
        }
    }
}

pub(crate) async fn without_a_reset_transactions_and_locks_end_all_the_same() {
    async fn on<V: Version>() {
        let server = start::<V>().await;
        let mut config = config(&server);
        config.pool.max_size = 1;
        let builder = OptsBuilder::from_opts(config.driver);
        config.driver = builder.pool_opts(PoolOpts::new().with_reset_connection(false)).into();
        let scene = Scene::new(Mysql::new(config));
        let mut connection = scene.get().await;
        let id = connection.id();
        connection.query_drop("SET @trace = 'here'").await.unwrap();
        assert_eq!(text(&mut connection, "SELECT GET_LOCK(DATABASE(), 0)").await.as_deref(), Some("1"));
        // By the statement, of which the driver knows nothing.
        connection.query_drop("START TRANSACTION").await.unwrap();
        connection.query_drop("INSERT INTO rows_left VALUES (1)").await.unwrap();
        drop(connection);
        let mut connection = scene.get().await;
        assert_eq!(connection.id(), id);
        assert_eq!(text(&mut connection, "SELECT @trace").await.as_deref(), Some("here"), "its variables stay");
        assert_eq!(text(&mut connection, "SELECT IS_USED_LOCK(DATABASE())").await, None, "{}", V::NAME);
        connection.query_drop("COMMIT").await.unwrap();
        assert_eq!(server.rows().await.unwrap(), 0, "{}", V::NAME);
        connection.query_drop("LOCK TABLES rows_left READ").await.unwrap();
        drop(connection);
        let mut connection = scene.get().await;
        assert_eq!(connection.id(), id);
        connection.query_drop("INSERT INTO rows_left VALUES (1)").await.unwrap();
        drop(connection);
        scene.drain().await.assert_clean(1);
        server.end().await.unwrap();
    }
    on::<MySql>().await;
    on::<MariaDb>().await;
}

/// A role that a user has taken is a privilege that the next one does not have.
pub(crate) async fn the_next_caller_has_the_roles_of_a_new_session() {
    async fn on<V: Version>(user: &str, role: &str) {
        let server = start::<V>().await;
        let user = user.replace("{}", &server.tenant.name);
        let role = role.replace("{}", &server.tenant.name);
        server.execute(&format!("CREATE ROLE {role}")).await.unwrap();
        server.execute(&format!("GRANT {role} TO {user}")).await.unwrap();
        let mut config = config(&server);
        config.pool.max_size = 1;
        let scene = Scene::new(Mysql::new(config));
        let mut connection = scene.get().await;
        let (id, before) = (connection.id(), text(&mut connection, "SELECT CURRENT_ROLE()").await);
        connection.query_drop(format!("SET ROLE {role}")).await.unwrap();
        assert_ne!(text(&mut connection, "SELECT CURRENT_ROLE()").await, before);
        drop(connection);
        let mut connection = scene.get().await;
        assert_eq!(connection.id(), id);
        assert_eq!(text(&mut connection, "SELECT CURRENT_ROLE()").await, before, "{}", V::NAME);
        drop(connection);
        scene.drain().await.assert_clean(1);
        server.execute(&format!("DROP ROLE {role}")).await.unwrap();
        server.end().await.unwrap();
    }
    on::<MySql>("{}@'%'", "{}_role").await;
    on::<MariaDb>("{}@'%'", "{}_role").await;
}
