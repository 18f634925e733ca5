//! What the pools of deadpool have in common.

use std::{error::Error as StdError, marker::PhantomData};

use deadpool::managed::{Manager, Object, Pool, PoolError};
use winddown_core::{Error, ErrorKind, adapter::Size};
use winddown_pools::{Leaving, Lends, Taking};

/// The pools of deadpool with this manager.
#[derive(Debug)]
pub struct DeadpoolPools<M>(PhantomData<fn() -> M>);

impl<M> Lends for DeadpoolPools<M>
where
    M: Manager<Type: Send + 'static, Error: StdError + Send + Sync + 'static> + 'static,
{
    const NAME: &'static str = "deadpool";
    const KEEPS: bool = false;

    type Pool = Pool<M>;
    type Connection = M::Type;
    type Object = Object<M>;
    type Openings = ();

    fn get(pool: &Pool<M>) -> impl Future<Output = Result<Object<M>, Error>> + Send + 'static {
        let pool = pool.clone();
        async move {
            pool.get().await.map_err(|failure| match failure {
                PoolError::Backend(source) => Error::new(ErrorKind::Init, "cannot open a session").with_source(source),
                failure => Error::new(ErrorKind::Checkout, "no connection").with_source(failure),
            })
        }
    }

    fn take_idle(pool: &Pool<M>) -> Vec<Taking<M::Type>> {
        let idle = pool.retain(|_, _| false).removed;
        idle.into_iter().map(|connection| Taking::Taken(Leaving::owned(connection))).collect()
    }

    fn take(object: Object<M>) -> Leaving<M::Type> {
        Leaving::owned(Object::take(object))
    }

    fn size(pool: &Pool<M>) -> Size {
        let status = pool.status();
        Size { open: status.size, idle: Some(status.available) }
    }

    /// One that is being tested for a caller is not told from others, and would be dropped with who waits for it. Closing tells those
    /// who wait for nothing.
    fn opening(_: &Pool<M>, (): &mut ()) -> Option<usize> {
        None
    }

    fn close(pool: &Pool<M>) {
        pool.close();
    }
}
