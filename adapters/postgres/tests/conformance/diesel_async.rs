//! What is run on connections of `diesel-async`, whoever pools them.

use std::time::Duration;

use diesel::{
    dsl::sql,
    sql_query,
    sql_types::{Double, Integer},
};
use diesel_async::{AsyncPgConnection, RunQueryDsl as _, pooled_connection::AsyncDieselConnectionManager};
use winddown_core::BoxError;

pub(crate) type Manager = AsyncDieselConnectionManager<AsyncPgConnection>;

/// A statement that sleeps on the server and leaves a row. Cancelled, it leaves none.
pub(crate) async fn run(connection: &mut AsyncPgConnection, takes: Duration) -> Result<(), BoxError> {
    let statement = sql_query("INSERT INTO rows SELECT now() FROM pg_sleep($1)");
    statement.bind::<Double, _>(takes.as_secs_f64()).execute(connection).await?;
    Ok(())
}

pub(crate) async fn ping(connection: &mut AsyncPgConnection) -> Result<(), BoxError> {
    let one: i32 = sql::<Integer>("SELECT 1").get_result(connection).await?;
    assert_eq!(one, 1);
    Ok(())
}
