//! What becomes of sessions when the runtime ends that they were opened in.
//!
//! The driver's sockets are that runtime's, and without it nothing can be said on them. A pool may outlive it nevertheless, as a
//! static one does in tests that have a runtime each. So somebody is there when a runtime ends, while its sockets still work: what
//! is idle says goodbye and leaves the pool. Whoever asks next has a session opened in a runtime of their own.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use deadpool::managed::WeakPool;
use tokio::{
    runtime::{Handle, Id},
    sync::oneshot,
};

use crate::connect::{Connector, Manager};

/// The life of one runtime.
#[derive(Debug, Clone, Default)]
pub(crate) struct Life {
    is_over: Arc<AtomicBool>,
}

impl Life {
    /// Whether the runtime has ended, or is about to.
    pub(crate) fn is_over(&self) -> bool {
        // SeqCst, here and below: it is read under no lock, and nothing is gained by less.
        self.is_over.load(Ordering::SeqCst)
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.is_over, &other.is_over)
    }
}

/// The runtimes that sessions of one pool were opened in.
#[derive(Default)]
pub(crate) struct Runtimes {
    pool: OnceLock<WeakPool<Manager>>,
    /// Each until it ends, or until the second of these is dropped.
    known: Mutex<HashMap<Id, (Life, oneshot::Sender<()>)>>,
}

impl Runtimes {
    /// Where sessions are while nobody has them.
    pub(crate) fn of(&self, pool: WeakPool<Manager>) {
        // Whoever builds the pool says so, nobody else.
        let _ = self.pool.set(pool);
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Id, (Life, oneshot::Sender<()>)>> {
        // Each change is complete before anything can panic, so a poisoned lock carries no broken state.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The life of the runtime that this is called on, for a session that is opened there.
///
/// # Panics
/// Without a runtime.
pub(crate) fn current(connector: &Arc<Connector>) -> Life {
    let runtime = Handle::current();
    let id = runtime.id();
    let (life, over) = {
        let mut known = connector.runtimes.known();
        if let Some((life, _)) = known.get(&id) {
            return life.clone();
        }
        let (keep, over) = oneshot::channel();
        let life = Life::default();
        known.insert(id, (life.clone(), keep));
        (life, over)
    };
    let ends = Ends { connector: Arc::downgrade(connector), id, life: life.clone() };
    // It is dropped at once where the runtime takes no tasks any more.
    runtime.spawn(async move {
        let _ends = ends;
        // Until there is no pool any more.
        let _ = over.await;
    });
    life
}

/// Goes with its runtime.
struct Ends {
    connector: Weak<Connector>,
    id: Id,
    life: Life,
}

impl Drop for Ends {
    fn drop(&mut self) {
        let Self { connector, id, life } = self;
        // From now on nobody gets one of its sessions.
        life.is_over.store(true, Ordering::SeqCst);
        let Some(connector) = connector.upgrade() else { return };
        connector.runtimes.known().remove(id);
        if let Some(pool) = connector.runtimes.pool.get().and_then(WeakPool::upgrade) {
            // Each says goodbye when it is dropped.
            drop(pool.retain(|session, _| !session.life().is(life)).removed);
        }
    }
}
