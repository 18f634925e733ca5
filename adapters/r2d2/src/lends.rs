//! What the pools of r2d2 have in common.

use std::{marker::PhantomData, time::Duration};

use r2d2::{ManageConnection, PooledConnection};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep, timeout},
};
use winddown_core::{Error, ErrorKind, adapter::Size};
use winddown_pools::{Leaving, Lends, Taking};

use crate::{manager::Manager, pool::Pool, session::Session};

/// Between two looks of one who waits: at first, and at most. r2d2 has an event for threads that block alone, which nobody could wake when
/// their caller has gone. What our manager sees comes a moment before a connection is idle.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// How long nothing must come before one who waits asks again that one be opened: the pool's threads may be busy.
const ASKS_AGAIN: Duration = Duration::from_secs(1);

/// The pools of r2d2 with this manager.
#[derive(Debug)]
pub struct R2d2Pools<M>(PhantomData<fn() -> M>);

impl<M: ManageConnection> Lends for R2d2Pools<M> {
    const NAME: &'static str = "r2d2";
    const KEEPS: bool = true;

    type Pool = Pool<M>;
    type Connection = Session<M::Connection>;
    type Object = PooledConnection<Manager<M>>;
    type Openings = ();

    fn get(pool: &Pool<M>) -> impl Future<Output = Result<Self::Object, Error>> + Send + 'static {
        get(pool.clone())
    }

    /// The pool tests each one that is taken, and that blocks.
    fn take_idle(pool: &Pool<M>) -> Vec<Taking<Session<M::Connection>>> {
        let idle = (pool.state().idle_connections as usize).saturating_sub(pool.control.claimed());
        let taken = (0..idle).map(|_| {
            let (pool, claim) = (pool.clone(), pool.control.claim());
            Taking::Coming(Box::pin(async move {
                let taking = spawn_blocking(move || {
                    let got = pool.try_get();
                    drop(claim);
                    got
                });
                taking.await.ok().flatten().map(Leaving::kept)
            }))
        });
        taken.collect()
    }

    fn take(object: Self::Object) -> Leaving<Session<M::Connection>> {
        Leaving::kept(object)
    }

    /// By our own count: the pool's has one only a moment after it was opened.
    fn size(pool: &Pool<M>) -> Size {
        let idle = (pool.state().idle_connections as usize).saturating_sub(pool.control.claimed());
        Size { open: pool.control.sessions(), idle: Some(idle) }
    }

    fn opening(pool: &Pool<M>, (): &mut ()) -> Option<usize> {
        Some(pool.control.refuse())
    }

    /// It has no close: what it opens no more it is told by [`opening`](Lends::opening).
    fn close(_: &Pool<M>) {}

    async fn stopped(pool: &Pool<M>) {
        if let Some(stopped) = &pool.stopped {
            stopped().await;
        }
    }

    fn over(pool: &Pool<M>) {
        pool.control.close();
        if let Some(stopped) = &pool.stopped {
            // Nobody waits for it any more.
            drop(stopped());
        }
    }
}

/// For as long as the pool lets its own callers wait. No thread is blocked meanwhile.
async fn get<M: ManageConnection>(pool: Pool<M>) -> Result<PooledConnection<Manager<M>>, Error> {
    let (began, patience) = (Instant::now(), pool.connection_timeout());
    let mut pause = PAUSES.0;
    let mut asked = None;
    loop {
        let comes = pool.control.comes.notified();
        let asks = match asked {
            None => !pool.control.refuses(),
            Some(asked) => Instant::now() >= asked + ASKS_AGAIN && pool.control.is_nothing_to_come(),
        };
        if asks || pool.state().idle_connections > 0 {
            asked = Some(Instant::now());
            let pool = pool.clone();
            // Tests what it finds, which blocks. Where there is none it has one opened, if it may have more.
            let taking = spawn_blocking(move || pool.get_timeout(Duration::ZERO));
            // What comes too late is with the pool again.
            match timeout(patience.saturating_sub(began.elapsed()), taking).await {
                Ok(Ok(Ok(object))) => return Ok(object),
                Ok(Err(ended)) => {
                    return Err(Error::new(ErrorKind::Checkout, "the runtime has ended").with_source(ended));
                }
                Ok(Ok(Err(_))) | Err(_) => {}
            }
        }
        let left = patience.saturating_sub(began.elapsed());
        if left.is_zero() {
            let error = Error::new(ErrorKind::Checkout, "no connection: the pool's time for one is over");
            return Err(match pool.control.failure() {
                Some(reason) => error.with_source(reason),
                None => error,
            });
        }
        tokio::select! {
            () = comes => pause = PAUSES.0,
            () = sleep(pause.min(left)) => pause = (pause * 2).min(PAUSES.1),
        }
    }
}
