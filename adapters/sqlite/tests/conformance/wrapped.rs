//! A pool that the application has built as a harness, on the same file.

use winddown_core::BoxError;
use winddown_sqlite::{
    Sqlite,
    deadpool_sqlite::{Config, Runtime},
};
use winddown_testkit::{Harness, Need, ServerUse, Setup};

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

    winddown_testkit::harness_of!(0);
}
