//! A pool that the application has built as a harness, on the same file.

use std::time::Duration;

use winddown_core::BoxError;
use winddown_sqlite::{
    Connection, Sqlite,
    deadpool_sqlite::{Config, Runtime},
};
use winddown_testkit::{Harness, Need, ServerUse, Setup, Stranger};

use crate::server::Embedded;

pub(crate) struct WrappedPool(Embedded);

impl Harness for WrappedPool {
    type Resource = Sqlite;

    const NAME: &'static str = "sqlite_wrapped";
    const LACKS: &'static [(Need, &'static str)] = {
        let mut lacks = [(Need::Init, "the application has built the pool"); Embedded::LACKS.len() + 1];
        let mut i = 0;
        while i < Embedded::LACKS.len() {
            lacks[i] = Embedded::LACKS[i];
            i += 1;
        }
        &{ lacks }
    };

    fn skipped() -> Option<String> {
        Embedded::skipped()
    }

    async fn start(server: ServerUse) -> Result<Self, BoxError> {
        Embedded::start(server).await.map(Self)
    }

    fn resource(&self, setup: &Setup) -> Sqlite {
        let mut config = Config::new(&self.0.path);
        let mut pool = config.get_pool_config();
        pool.max_size = setup.size;
        config.pool = Some(pool);
        Sqlite::wrap(config.create_pool(Runtime::Tokio1).expect("the configuration is one"))
    }

    async fn run(&self, connection: &mut Connection, takes: Duration) -> Result<(), BoxError> {
        self.0.run(connection, takes).await
    }

    async fn ping(&self, connection: &mut Connection) -> Result<(), BoxError> {
        self.0.ping(connection).await
    }

    async fn stranger(&self) -> Result<Stranger, BoxError> {
        self.0.stranger().await
    }

    async fn rows(&self) -> Result<usize, BoxError> {
        self.0.rows().await
    }

    async fn sessions(&self) -> Result<usize, BoxError> {
        self.0.sessions().await
    }

    async fn running(&self) -> Result<usize, BoxError> {
        self.0.running().await
    }

    async fn complaints(&self) -> Result<Vec<String>, BoxError> {
        self.0.complaints().await
    }

    async fn end(self) -> Result<(), BoxError> {
        self.0.end().await
    }
}
