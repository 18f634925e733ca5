//! What the pools of bb8 have in common.

use std::{
    error::Error as StdError,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bb8::{ManageConnection, Pool, PooledConnection, RunError};
use futures_util::future::poll_fn;
use tokio::{runtime::Builder, task::unconstrained, time::timeout};
use winddown_core::{Error, ErrorKind, adapter::Size};
use winddown_pools::{Leaving, Lends, Taking};

/// How long another session may take to open that the pool opens in the place of one that its server had closed.
const REPLACED: Duration = Duration::from_secs(1);

/// The pools of bb8 with this manager.
#[derive(Debug)]
pub struct Bb8Pools<M>(PhantomData<fn() -> M>);

type Got<M> = Result<PooledConnection<'static, M>, RunError<<M as ManageConnection>::Error>>;
type Getting<M> = Pin<Box<dyn Future<Output = Got<M>> + Send>>;

impl<M> Lends for Bb8Pools<M>
where
    M: ManageConnection<Error: StdError + Send + Sync + 'static>,
{
    const NAME: &'static str = "bb8";
    const KEEPS: bool = true;

    type Pool = Pool<M>;
    type Connection = M::Connection;
    type Object = PooledConnection<'static, M>;
    /// How many it holds, so that the pool begins with none.
    type Openings = usize;

    fn get(pool: &Pool<M>) -> impl Future<Output = Result<Self::Object, Error>> + Send + 'static {
        let pool = pool.clone();
        async move {
            pool.get_owned().await.map_err(|failure| match failure {
                RunError::User(source) => Error::new(ErrorKind::Init, "cannot open a session").with_source(source),
                RunError::TimedOut => Error::new(ErrorKind::Checkout, "no connection: the pool's time for one is over"),
            })
        }
    }

    /// One that gets a connection takes it at once, if there is one, and has none opened then.
    fn take_idle(pool: &Pool<M>) -> Vec<Taking<M::Connection>> {
        let mut taking = Vec::new();
        let mut context = Context::from_waker(Waker::noop());
        while pool.state().idle_connections > 0 {
            let mut getting = get(pool);
            match look(pool, &mut getting, &mut context) {
                Poll::Ready(Some(Ok(object))) => taking.push(Taking::Taken(Leaving::kept(object))),
                Poll::Ready(Some(Err(_))) => {}
                // The pool opens another one, and this is who gets it.
                Poll::Ready(None) => taking.push(Taking::Coming(Box::pin(replaced(getting)))),
                Poll::Pending => taking.push(Taking::Coming(Box::pin(tested(pool.clone(), getting)))),
            }
        }
        taking
    }

    fn take(object: Self::Object) -> Leaving<M::Connection> {
        Leaving::kept(object)
    }

    fn size(pool: &Pool<M>) -> Size {
        let state = pool.state();
        Size { open: state.connections as usize, idle: Some(state.idle_connections as usize) }
    }

    /// The pool opens one for whoever waits, in a task, until those that it has and those that are being opened are as many as it may
    /// have. It says only the former. So we wait for all that is left, where the tasks are never run: what it does not want to open
    /// then it is opening already.
    fn opening(pool: &Pool<M>, held: &mut usize) -> Option<usize> {
        let left = || pool.config().max_size.saturating_sub(pool.state().connections) as usize;
        if left() > *held {
            // It can not be built where the process has nothing left for it.
            let never_run = Builder::new_current_thread().enable_time().build().ok()?;
            {
                let _entered = never_run.enter();
                let mut context = Context::from_waker(Waker::noop());
                let mut waiting: Vec<_> = (0..left()).map(|_| get(pool)).collect();
                for getting in &mut waiting {
                    // One that came back meanwhile is idle again when this is dropped.
                    let _ = getting.as_mut().poll(&mut context);
                }
            }
            *held += never_run.metrics().num_alive_tasks();
            // It has nothing that it would wait for.
            never_run.shutdown_background();
        }
        Some(left().saturating_sub(*held))
    }

    /// It has no close. It [opens](Lends::opening) no more.
    fn close(_: &Pool<M>) {}
}

fn get<M: ManageConnection>(pool: &Pool<M>) -> Getting<M> {
    let pool = pool.clone();
    Box::pin(unconstrained(async move { pool.get_owned().await }))
}

/// One look at it. `Ready(None)` when the pool has found meanwhile that the connection was closed, and has another one opened.
fn look<M: ManageConnection>(
    pool: &Pool<M>,
    getting: &mut Getting<M>,
    context: &mut Context<'_>,
) -> Poll<Option<Got<M>>> {
    let closed = || pool.state().statistics.connections_closed_invalid;
    let before = closed();
    match getting.as_mut().poll(context) {
        Poll::Ready(got) => Poll::Ready(Some(got)),
        Poll::Pending if closed() > before => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    }
}

/// A connection that the pool tests.
async fn tested<M: ManageConnection>(pool: Pool<M>, mut getting: Getting<M>) -> Option<Leaving<M::Connection>> {
    match poll_fn(|context| look(&pool, &mut getting, context)).await {
        Some(got) => got.ok().map(Leaving::kept),
        None => replaced(getting).await,
    }
}

async fn replaced<M: ManageConnection>(getting: Getting<M>) -> Option<Leaving<M::Connection>> {
    timeout(REPLACED, getting).await.ok()?.ok().map(Leaving::kept)
}
