//! How long sessions live, and how long they may be idle.

use deadpool_postgres::Client;
use winddown_postgres::Postgres;
use winddown_testkit::life::{Limits, Lives};

use crate::{
    scene::config,
    server::{PostgreSql, Seventeen},
};

impl Lives for PostgreSql<Seventeen> {
    const FLUSH_SEES_THE_END: bool = true;

    fn limited(&self, size: usize, limits: Limits) -> Postgres {
        let mut config = config(self);
        config.pool.max_size = size;
        config.max_lifetime = limits.max_lifetime;
        config.idle_timeout = limits.idle_timeout;
        config.idle_at_flush = limits.idle_at_flush;
        Postgres::new(config)
    }

    async fn session(client: &mut Client) -> i64 {
        let number: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
        number.into()
    }
}
