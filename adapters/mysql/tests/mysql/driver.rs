//! The driver behind the guard: all that it has can be reached and works.

use winddown_core::ErrorKind;
use winddown_mysql::{
    Mysql,
    mysql_async::{self, TxOpts, prelude::Queryable as _},
};
use winddown_testkit::Harness as _;

use crate::scene::{Scene, Speaks, assert_nothing_left, code, config, mysql, text, url};

pub(crate) async fn sessions_are_listed_under_the_programs_name_or_the_one_that_is_configured() {
    const NAME: &str = "SELECT attr_value FROM performance_schema.session_account_connect_attrs \
                        WHERE processlist_id = CONNECTION_ID() AND attr_name = 'program_name'";
    let server = mysql().await;
    for (given, expected) in [(None, "mysql-"), (Some("orders"), "orders")] {
        let mut config = config(&server);
        if let Some(given) = given {
            let builder = mysql_async::OptsBuilder::from_opts(config.driver);
            config.driver = builder.connect_attribute("program_name", given).into();
        }
        let scene = Scene::new(Mysql::new(config));
        let name = text(&mut *scene.get().await, NAME).await.unwrap();
        assert!(name.starts_with(expected), "{name}");
        scene.drain().await.assert_clean(1);
    }
    server.end().await.unwrap();
}

/// Variables, locks and transactions.
async fn leave_traces(scene: &Scene) {
    let mut connection = scene.get().await;
    connection.query_drop("SET @trace = 'here'").await.unwrap();
    assert_eq!(text(&mut connection, "SELECT GET_LOCK(CURRENT_USER(), 0)").await.as_deref(), Some("1"));
    let mut transaction = connection.start_transaction(TxOpts::default()).await.unwrap();
    transaction.query_drop("INSERT INTO rows_left VALUES (1)").await.unwrap();
}

pub(crate) async fn what_a_caller_leaves_behind_the_next_one_does_not_find() {
    let server = mysql().await;
    let mut config = config(&server);
    config.pool.max_size = 1;
    let scene = Scene::new(Mysql::new(config));
    leave_traces(&scene).await;
    let mut connection = scene.get().await;
    let id = connection.id();
    assert_eq!(text(&mut connection, "SELECT @trace").await, None);
    assert_eq!(text(&mut connection, "SELECT IS_USED_LOCK(CURRENT_USER())").await, None);
    assert_eq!(text(&mut connection, "SELECT COUNT(*) FROM rows_left").await.as_deref(), Some("0"));

    // What was begun in SQL, of which the driver knows nothing.
    connection.query_drop("START TRANSACTION").await.unwrap();
    connection.query_drop("INSERT INTO rows_left VALUES (1)").await.unwrap();
    drop(connection);
    let mut connection = scene.get().await;
    assert_eq!(connection.id(), id);
    connection.query_drop("COMMIT").await.unwrap();
    assert_eq!(server.rows().await.unwrap(), 0);
    drop(connection);
    scene.drain().await.assert_clean(1);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn without_a_reset_a_session_keeps_its_variables_and_no_transaction() {
    let server = mysql().await;
    let host = server.server.address.to_string();
    let scene = Scene::new(Mysql::open(&url(&server, &host, "reset_connection=false&pool_min=0&pool_max=1")).unwrap());
    leave_traces(&scene).await;
    let mut connection = scene.get().await;
    assert_eq!(text(&mut connection, "SELECT @trace").await.as_deref(), Some("here"));
    connection.query_drop("COMMIT").await.unwrap();
    assert_eq!(server.rows().await.unwrap(), 0);
    drop(connection);
    scene.drain().await.assert_clean(1);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn a_connection_that_was_taken_from_the_pool_directly_is_tidied_up_too() {
    let server = mysql().await;
    let mut config = config(&server);
    config.pool.max_size = 1;
    let scene = Scene::new(Mysql::new(config));
    let pool = scene.db.pool().await.unwrap();
    let mut connection = pool.get().await.unwrap();
    connection.query_drop("SET @trace = 'here'").await.unwrap();
    drop(connection);
    let mut connection = pool.get().await.unwrap();
    assert_eq!(text(&mut connection, "SELECT @trace").await, None);
    drop(connection);
    scene.drain().await.assert_clean(1);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}

pub(crate) async fn the_drivers_pool_and_errors_can_be_reached() {
    let server = mysql().await;
    let mut config = config(&server);
    config.pool.max_size = 3;
    let limit = |most: u32| format!("ALTER USER {}@'%' WITH MAX_USER_CONNECTIONS {most}", server.tenant.name);
    server.execute(&limit(1)).await.unwrap();
    let scene = Scene::new(Mysql::new(config));
    let mut held = scene.get().await;
    let status = scene.db.pool().await.unwrap().status();
    assert_eq!((status.max_size, status.size, status.available), (3, 1, 0));

    let error = held.query_drop("SELECT * FROM nowhere").await.unwrap_err();
    assert!(matches!(error, mysql_async::Error::Server(error) if error.code == 1146));

    let error = scene.db.get().await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Checkout, true), "{error}");
    assert_eq!(code(&error), Some(1226), "{error}");
    server.execute(&limit(0)).await.unwrap();

    let other = scene.out(1).await;
    drop((held, other));
    scene.drain().await.assert_clean(2);
    assert_nothing_left(&server).await;
    server.end().await.unwrap();
}
