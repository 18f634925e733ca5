//! What becomes of a session whose write hung: its locks are to go, and nobody else's session with it.

use std::{
    slice,
    time::{Duration, Instant},
};

use deadpool::managed::Object;
use tokio::time::{sleep, timeout};
use winddown_core::{Checkout, Error, ErrorKind};

use crate::{
    Mysql,
    connect::Connector,
    error::error,
    goodbye,
    sessions::{Asked, Server},
    watcher::{Kill, Sight, unproven},
};

/// How long it may take to end a session over another one. The server that does not answer that one either ends both
/// when it sees fit.
const PATIENCE: Duration = Duration::from_secs(2);

/// Between two questions whether it has ended, at most: the server has no event for that.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Gives up the session of this checkout: its connection leaves the pool, its socket is closed, and the server is told over
/// another connection to end it.
///
/// # Cancel safety
/// Cancel safe: a session that was not ended yet stays in the book, and a drain asks about it.
pub(crate) async fn session(mut checkout: Checkout<Mysql>) {
    let key = checkout.give_up();
    let pool = Object::pool(&checkout);
    drop(checkout);
    let Some(pool) = pool else { return };
    let connector = &pool.manager().connector;
    connector.outdated.unused_until_now();
    let Some((server, asked)) = connector.sessions.asked(key) else { return };
    match timeout(PATIENCE, end(connector, &server, &asked)).await {
        Ok(Ok(())) => tracing::debug!(session = key.id, "a session that hung has ended"),
        Ok(Err(error)) => tracing::warn!(session = key.id, %error, "a session that hung was not ended"),
        Err(_) => {
            let address = &server.address;
            tracing::warn!(session = key.id, %address, "a session that hung has not ended within {PATIENCE:?}");
        }
    }
}

/// Ends a session that is proven ours, and returns when the server lists it no more.
async fn end(connector: &Connector, server: &Server, asked: &Asked) -> Result<(), Error> {
    let failed = |failure| {
        let text = format!("cannot ask {} to end a session", server.address);
        error(ErrorKind::Incomplete, text, failure)
    };
    let mut watcher = goodbye::open(connector, server).await.map_err(failed)?;
    let began = Instant::now();
    let mut was_told = false;
    loop {
        let sight = watcher.look(slice::from_ref(asked)).await.map_err(failed)?.pop();
        let ours = match sight {
            Some(Sight::Ours(ours)) => ours,
            Some(Sight::Gone) => break connector.sessions.saw(asked.key, None),
            Some(Sight::Unproven) | None => return Err(unproven(&server.address)),
        };
        connector.sessions.saw(asked.key, Some(ours.listed));
        if !was_told {
            was_told = true;
            for key in watcher.kill(Kill::Session, &[ours]).await.map_err(failed)? {
                connector.sessions.killed(key);
            }
        }
        sleep((began.elapsed() / 8).clamp(Duration::from_millis(1), LONGEST_PAUSE)).await;
    }
    watcher.leave().await
}
