//! How a pool of the driver's is emptied: what is idle in it is taken out, to say goodbye as other sessions do. The rest is the
//! driver's to end, when it comes back.

use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use mysql_async::{Conn, Pool};
use tokio::{
    task::{JoinSet, unconstrained},
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::Instrument as _;
use winddown_core::Error;

use crate::{
    connect::Connector,
    error,
    gauges::Gauges,
    sessions::{BeingOpened, LEAVE_PATIENCE},
    wrapped::Getting,
};

/// Between two looks at what is on its way back to the pool, which has no event for that: at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

pub(super) struct Emptying {
    pub(super) pool: Pool,
    pub(super) gauges: Gauges,
    pub(super) connector: Arc<Connector>,
    /// The runtime has ended that the driver's pool works on.
    pub(super) is_over: bool,
    /// How long what is on its way back to the pool is waited for, before anybody asks who has the others.
    pub(super) grace: Duration,
    /// When whoever has not answered by then is given up.
    pub(super) limit: Instant,
}

/// What the pool has given.
enum Given {
    Idle(Conn),
    /// It had none that works, and opens one.
    Opening(Getting),
    Nothing,
}

impl Emptying {
    /// Until the driver has let go of all connections. The drain is not over before what is idle is in the book: until then
    /// something is `opening`.
    pub(super) async fn run(self, opening: Option<BeingOpened>) -> Result<(), Error> {
        let sessions = &self.connector.sessions;
        let mut result = Ok(());
        if !self.is_over {
            self.take_idle(Instant::now() + self.grace).await;
            sessions.count_unknown();
            if sessions.unknown() > 0 && sessions.are_nowhere() {
                let at = self.connector.own_address().await;
                result = at.map(|address| sessions.are_at(&address, &self.connector.opts));
            }
            // What was out then is counted; what was on its way is so still, or idle by now.
            if sessions.are_with_others() || sessions.moving() > 0 || self.gauges.idle() > 0 {
                // What the driver has ended long ago is not to be counted, so somebody asks before the others end.
                sessions.want(|wanted| wanted.watch = true);
                // A server that does not answer is told all the same.
                let _ = timeout(LEAVE_PATIENCE, sessions.answered.notified()).await;
                // What the driver ends itself nobody sees end, and it waits for it as long as we would.
                self.take_idle(self.limit).await;
            }
            sessions.note_unknown();
            drop(opening);
        }
        // Waits for every connection, those that are out and those that are being opened, without a limit.
        match self.pool.disconnect().await {
            // Nobody was there to say it.
            Ok(()) if self.is_over => sessions.all_left(),
            Ok(()) => sessions.all_leave(),
            Err(failure) => tracing::debug!(error = %failure, "the driver's pool could not be disconnected"),
        }
        result
    }

    /// Takes out what is idle, and what comes back until then: it is being reset.
    async fn take_idle(&self, until: Instant) {
        let sessions = &self.connector.sessions;
        let mut adopting = JoinSet::new();
        let mut pause = PAUSES.0;
        loop {
            // Looked at first: what is not on its way any more is idle by then.
            let is_last = sessions.moving() == 0 || Instant::now() >= until;
            loop {
                let (connector, limit) = (Arc::clone(&self.connector), self.limit);
                match self.next() {
                    Given::Idle(conn) => match sessions.key_of_returned(&conn) {
                        Some(key) => sessions.came_back(key, conn, false),
                        None => drop(adopting.spawn(adopt(connector, conn, limit, false).in_current_span())),
                    },
                    Given::Opening(opening) => {
                        let opened = async move {
                            if let Ok(Ok(conn)) = timeout_at(limit, opening).await {
                                adopt(connector, conn, limit, true).await;
                            }
                        };
                        adopting.spawn(opened.in_current_span());
                        break;
                    }
                    Given::Nothing => break,
                }
            }
            if is_last {
                break;
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
        while let Some(adopted) = adopting.join_next().await {
            if let Err(panicked) = adopted {
                tracing::warn!(error = %error::panicked(panicked), "an idle connection was lost");
            }
        }
    }

    /// One that is idle. The driver has looked at its socket by then.
    fn next(&self) -> Given {
        if self.gauges.idle() == 0 {
            return Given::Nothing;
        }
        let mut getting: Getting = Box::pin(unconstrained(self.pool.get_conn()));
        // One that is idle is had at once.
        match getting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(conn)) => Given::Idle(conn),
            // It is closed.
            Poll::Ready(Err(_)) => Given::Nothing,
            // Others were there before.
            Poll::Pending if self.gauges.is_waited_for() => Given::Nothing,
            Poll::Pending => Given::Opening(getting),
        }
    }
}

/// Enters one in the book, and has it say goodbye.
async fn adopt(connector: Arc<Connector>, mut conn: Conn, limit: Instant, is_the_drains: bool) {
    let sessions = &connector.sessions;
    // Others may have had it until now.
    sessions.note_unknown();
    let adopted = timeout_at(limit, connector.adopt(&mut conn, false)).await;
    // What is not entered is ended by the driver.
    let Some(key) = sessions.key_of(&conn) else { return };
    if is_the_drains {
        sessions.is_the_drains(key);
    }
    match adopted {
        Ok(Ok(())) => sessions.came_back(key, conn, false),
        Ok(Err(failure)) => tracing::debug!(session = key.id, error = %failure, "an idle connection is of no use"),
        Err(_) => {
            tracing::debug!(session = key.id, "an idle connection has not answered");
            sessions.gave_up(key);
        }
    }
}
