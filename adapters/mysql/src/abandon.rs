//! What becomes of a session whose write hung: its locks are to go, and nobody else's session with it.

use std::time::{Duration, Instant, SystemTime};

use deadpool::managed::Object;
use tokio::time::{sleep, timeout};
use winddown_core::{Checkout, Error, ErrorKind};

use crate::{
    Mysql,
    connect::Connector,
    error::error,
    farewell,
    sessions::{Identity, Key},
    watcher::Kill,
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
    let Some(identity) = connector.sessions.identity(key) else { return };
    match timeout(PATIENCE, end(connector, key, &identity)).await {
        Ok(Ok(())) => tracing::debug!(session = key.id, "a session that hung has ended"),
        Ok(Err(error)) => tracing::warn!(session = key.id, %error, "a session that hung was not ended"),
        Err(_) => {
            let address = &identity.server.address;
            tracing::warn!(session = key.id, %address, "a session that hung has not ended within {PATIENCE:?}");
        }
    }
}

/// Ends a session, and returns when the server lists it no more.
///
/// A server gives a number to one session at a time, and begins anew only when it is started again. So what the same server
/// lists under this number is ours, if it has been running since before ours was opened.
async fn end(connector: &Connector, key: Key, identity: &Identity) -> Result<(), Error> {
    let failed = |failure| {
        let text = format!("cannot ask {} to end a session", identity.server.address);
        error(ErrorKind::Incomplete, text, failure)
    };
    let mut watcher = farewell::open(connector, &identity.server).await.map_err(failed)?;
    let age = age(identity.opened);
    let uptime = Duration::from_secs(watcher.uptime().await.map_err(failed)?);
    // It counts in whole seconds, at both of its ends.
    if watcher.host() != &*identity.host || uptime < age + Duration::from_secs(1) {
        let text = format!("{} is another server now, or was started again", identity.server.address);
        return Err(Error::new(ErrorKind::Incomplete, text));
    }
    let began = Instant::now();
    let mut was_told = false;
    loop {
        let listed = watcher.listed(&[key.id]).await.map_err(failed)?;
        connector.sessions.saw(key, listed.first().copied());
        let Some(found) = listed.first() else { break };
        if !found.is_from_here {
            return Err(Error::new(ErrorKind::Incomplete, "it seems to be another host's"));
        }
        if !was_told {
            was_told = true;
            for id in watcher.kill(Kill::Session, &[key.id]).await.map_err(failed)? {
                connector.sessions.killed(Key { server: key.server, id });
            }
        }
        sleep((began.elapsed() / 8).clamp(Duration::from_millis(1), LONGEST_PAUSE)).await;
    }
    watcher.leave().await
}

/// How long ago that was, by the clock that says more.
fn age((instant, time): (Instant, SystemTime)) -> Duration {
    instant.elapsed().max(time.elapsed().unwrap_or_default())
}
