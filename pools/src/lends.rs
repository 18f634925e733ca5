//! What the pools of one kind have in common, whatever their manager.

use std::{fmt, ops::DerefMut};

use futures_util::future::BoxFuture;
use winddown_core::{Error, adapter::Size};

use crate::speaks::Leaving;

/// A kind of pools: what its adapter says of it. Nothing of it may block.
pub trait Lends: Send + Sync + Sized + 'static {
    /// What a resource of it is called in reports, unless the application says otherwise.
    const NAME: &'static str;
    /// Whether the pool still counts what is [leaving](Leaving): it does not part with its connections.
    const KEEPS: bool;

    /// The pool, as the application has it.
    type Pool: Clone + Send + Sync + 'static;
    /// What its connections are.
    type Connection: Send + 'static;
    /// What it hands out. Dropped, it goes back.
    type Object: DerefMut<Target = Self::Connection> + Send + 'static;
    /// What is known of its [openings](Self::opening) while a drain goes on.
    type Openings: Default + Send;

    /// Gets one.
    ///
    /// # Errors
    /// That of the pool, as ours.
    fn get(pool: &Self::Pool) -> impl Future<Output = Result<Self::Object, Error>> + Send + 'static;

    /// Those that are idle, which nobody gets any more. Called on the runtime of a drain.
    fn take_idle(pool: &Self::Pool) -> Vec<Taking<Self::Connection>>;

    /// One that came back, which nobody gets any more.
    fn take(object: Self::Object) -> Leaving<Self::Connection>;

    /// How many it counts, and how many of these are idle.
    fn size(pool: &Self::Pool) -> Size;

    /// How many are being opened that it does not count yet, if that is known. From then on it begins with no more.
    ///
    /// None is idle when this is called, unless it came back just now. If there is nothing that is being opened, who waits for a
    /// connection is refused: that is `Some(0)` only where none is lost by it.
    fn opening(pool: &Self::Pool, openings: &mut Self::Openings) -> Option<usize>;

    /// Hands out nothing more, where it can be told so. Those that come back then may be dropped by it.
    fn close(pool: &Self::Pool);

    /// Ready when what has been begun to stop statements has ended, with the session that was opened for it: none is stopped from then
    /// on. By default there is nothing.
    ///
    /// # Cancel safety
    /// Is dropped when there is no time for it: the session is left behind then.
    fn stopped(pool: &Self::Pool) -> impl Future<Output = ()> + Send {
        let _ = pool;
        std::future::ready(())
    }

    /// Its drain is over. What comes back from then on nobody ends but the pool. By default nothing follows from that.
    fn over(pool: &Self::Pool) {
        let _ = pool;
    }
}

/// A connection that is taken out of its pool.
#[expect(clippy::exhaustive_enums, reason = "adapters make it")]
pub enum Taking<C> {
    /// It is here.
    Taken(Leaving<C>),
    /// The pool looks at it first. Nothing if there is none then.
    Coming(BoxFuture<'static, Option<Leaving<C>>>),
}

impl<C> Taking<C> {
    pub(crate) async fn taken(self) -> Option<Leaving<C>> {
        match self {
            Self::Taken(leaving) => Some(leaving),
            Self::Coming(coming) => coming.await,
        }
    }
}

impl<C> fmt::Debug for Taking<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Taken(_) => "Taken",
            Self::Coming(_) => "Coming",
        })
    }
}
