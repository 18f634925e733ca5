//! A pooler between the pool and its server.

use std::time::Duration;

use winddown_core::Outcome;
use winddown_sqlx::{
    Sqlx,
    sqlx::{self, postgres::PgPoolOptions},
};
use winddown_testkit::{Harness as _, ServerUse};

use crate::{
    bouncer::PgBouncer,
    postgres::connect_options,
    scene::{SLEEP, Scene, until},
};

/// PgBouncer has closed each as told, and what PostgreSQL would say of a session is about PgBouncer's own: nobody is stopped for it.
pub(crate) async fn behind_a_pooler_sessions_say_goodbye_and_nobody_elses_statement_is_stopped() {
    for capacity in [100, 0] {
        let bouncer = PgBouncer::start(ServerUse::Shared).await.unwrap();
        let (address, _) = bouncer.direct();
        // It knows no such parameter.
        let plain = connect_options(&bouncer.tenant, address).extra_float_digits(None);
        let connect = plain.clone().statement_cache_capacity(capacity);
        let pool = PgPoolOptions::new().max_connections(4).connect_lazy_with(connect);
        // Somebody else has a session of PgBouncer's that was ours a moment ago.
        let stranger =
            PgPoolOptions::new().max_connections(1).connect_lazy_with(plain.application_name(crate::server::STRANGER));
        let scene = Scene::patient(Sqlx::wrap(pool.clone()));
        let mut out = Vec::new();
        for _ in 0..3 {
            let mut connection = scene.get().await;
            sqlx::query("SELECT 1").execute(connection.as_mut()).await.unwrap();
            out.push(connection);
        }
        let holder = out.pop().unwrap();
        drop(out);
        let statement = {
            let stranger = stranger.clone();
            tokio::spawn(async move {
                sqlx::query(SLEEP).bind(Duration::from_secs(10).as_secs_f64()).execute(&stranger).await.map(drop)
            })
        };
        until("it runs", || async { bouncer.running().await.unwrap() == 1 }).await;
        let drained = tokio::join!(scene.drain(), async move {
            tokio::time::sleep(Duration::from_secs(8)).await;
            drop(holder);
        })
        .0;
        drained.assert_in_time();
        let (row, report) = (drained.row(), &drained.report);
        assert_eq!((row.outcome, row.sessions.cut, row.sessions.cancelled), (Outcome::Drained, 0, 0), "{report}");
        assert_eq!(row.sessions.closed + row.sessions.unconfirmed, 3, "{report}");
        statement.await.unwrap().unwrap();
        assert_eq!(bouncer.rows().await.unwrap(), 1);
        assert_eq!(bouncer.complaints().await.unwrap(), Vec::<String>::new());
        stranger.close().await;
        bouncer.end().await.unwrap();
    }
}
