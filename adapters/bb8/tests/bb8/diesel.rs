//! A pool of `diesel-async` on PostgreSQL, as a harness.

use std::time::Duration;

use tokio::sync::Mutex;
use winddown_bb8::{Bb8, Establish, bb8::Pool};
use winddown_core::BoxError;
use winddown_testkit::{CheckoutOf, Harness, Need, ServerUse, Setup, containers::Container, proxy::Proxy};

use crate::{
    built::{LACKS, url},
    diesel_async::{Manager, ping, run},
    server::{PostgreSql, Seventeen},
};

/// The pool as an application builds it.
pub(crate) fn pool(manager: Manager, size: usize) -> Pool<Manager> {
    let patience = Duration::from_secs(20);
    Pool::builder().max_size(u32::try_from(size).unwrap()).connection_timeout(patience).build_unchecked(manager)
}

pub(crate) struct Bb8Diesel(pub(crate) PostgreSql<Seventeen>);

impl Harness for Bb8Diesel {
    type Resource = Bb8<Manager, Establish>;

    const NAME: &'static str = "bb8_diesel";
    const LACKS: &'static [(Need, &'static str)] = LACKS;
    const CUTS_HOLDERS: bool = false;

    fn skipped() -> Option<String> {
        PostgreSql::<Seventeen>::skipped()
    }

    async fn start(use_of_it: ServerUse) -> Result<Self, BoxError> {
        PostgreSql::start(use_of_it).await.map(Self)
    }

    fn resource(&self, setup: &Setup) -> Bb8<Manager, Establish> {
        let establish = Establish::new();
        Bb8::wrap(pool(establish.manager(url(&self.0, setup)), setup.size)).session_with(establish)
    }

    async fn run(&self, connection: &mut CheckoutOf<Self>, takes: Duration) -> Result<(), BoxError> {
        run(connection, takes).await
    }

    async fn ping(&self, connection: &mut CheckoutOf<Self>) -> Result<(), BoxError> {
        ping(connection).await
    }

    fn container(&self) -> Option<&Mutex<Container>> {
        self.0.container()
    }

    fn proxy(&self) -> Option<&Proxy> {
        self.0.proxy()
    }

    fn secret(&self) -> Option<&str> {
        self.0.secret()
    }

    winddown_testkit::harness_of!(server of 0);
}
