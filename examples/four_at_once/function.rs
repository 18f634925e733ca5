//! The function: what you would deploy.

use serde_json::{Value, json};
use winddown::{
    Error, Lifecycle, ShutdownGuard,
    lambda::{LambdaEvent, lambda_runtime, run, service_fn},
    mysql::{Mysql, mysql_async::prelude::Queryable as _},
    postgres::Postgres,
    redis::{Redis, redis},
    sqlite::Sqlite,
};

/// Each backend, by its guard.
struct Backends {
    postgres: ShutdownGuard<Postgres>,
    mysql: ShutdownGuard<Mysql>,
    redis: ShutdownGuard<Redis>,
    sqlite: ShutdownGuard<Sqlite>,
}

#[tokio::main]
pub(crate) async fn main() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let backends = Backends {
        postgres: lifecycle.guard(Postgres::from_env()?),
        mysql: lifecycle.guard(Mysql::from_env()?),
        redis: lifecycle.guard(Redis::from_env()?),
        sqlite: lifecycle.guard(Sqlite::from_env()?),
    };
    run(lifecycle, service_fn(|event| handler(&backends, event))).await
}

/// An order goes into every backend.
async fn handler(backends: &Backends, event: LambdaEvent<Value>) -> Result<Value, lambda_runtime::Error> {
    let order = event.payload["order"].as_i64().ok_or("the event has no number `order`")?;
    let Backends { postgres, mysql, redis, sqlite } = backends;

    postgres.get().await?.execute("INSERT INTO orders VALUES ($1)", &[&order]).await?;
    mysql.get().await?.exec_drop("INSERT INTO orders VALUES (?)", (order,)).await?;
    let insert = move |sqlite: &mut winddown::sqlite::rusqlite::Connection| {
        sqlite.execute("INSERT INTO orders VALUES (?1)", [order])
    };
    sqlite.get().await?.interact(insert).await.map_err(|error| error.to_string())??;
    // Nobody waits for the answer: the drain does.
    let mut redis = redis.get().await?;
    redis::cmd("INCR").arg("orders").set_no_response(true).exec_async(&mut *redis).await?;
    Ok(json!({ "accepted": order }))
}
