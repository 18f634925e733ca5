//! How long sessions live, and how long they may be idle.

use winddown_mysql::{Connection, Mysql};
use winddown_testkit::life::{Limits, Lives};

use crate::{
    scene::{config, ping},
    server::{MySql, Tenancy},
};

impl Lives for Tenancy<MySql> {
    const FLUSH_SEES_THE_END: bool = false;

    fn limited(&self, size: usize, limits: Limits) -> Mysql {
        let mut config = config(self);
        config.pool.max_size = size;
        config.max_lifetime = limits.max_lifetime;
        config.idle_timeout = limits.idle_timeout;
        config.idle_at_flush = limits.idle_at_flush;
        Mysql::new(config)
    }

    async fn session(connection: &mut Connection) -> i64 {
        ping(connection).await;
        connection.id().into()
    }
}
