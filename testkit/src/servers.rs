//! The servers that the tests of one process use: one that all share, and some that are leased to one test at a time.

use std::{
    fmt,
    future::Future,
    ops::Deref,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, Once, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    runtime::{Builder, Runtime},
    sync::{Mutex as AsyncMutex, Semaphore, SemaphorePermit},
    task::JoinSet,
    time::timeout,
};
use winddown_core::BoxError;

use crate::{ServerUse, limit::Waiting, scene::in_full, size};

/// What a server may take to start, on a machine that starts others at the same time.
const START_LIMIT: Duration = Duration::from_secs(180);

/// What it may take to put one back, which may start it again.
const RESTORE_LIMIT: Duration = Duration::from_secs(90);

/// What all of them may take to end. Those that were given back last are put back first.
const STOP_LIMIT: Duration = Duration::from_secs(120);

/// How long a server may take to see that a client is gone, on a machine that is busy.
const MOMENT: Duration = Duration::from_secs(20);

/// A server that more than one test has, one after the other.
pub trait Leasable: Send + Sync + Sized + 'static {
    /// Puts it back to what it was when it was started, whatever was done to it, and asks it something to see that it works.
    /// Nobody else uses it meanwhile.
    ///
    /// # Errors
    /// When that cannot be done. It is removed then.
    fn restore(&mut self) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Removes it, and waits until it is gone.
    ///
    /// # Errors
    /// When it may still be there.
    fn remove(self) -> impl Future<Output = Result<(), BoxError>> + Send;
}

/// The servers of one kind, for a `static` of a harness: started when they are wanted, ended when the
/// [`Suite`](crate::Suite) is over.
pub struct Servers<S: 'static> {
    kind: &'static str,
    /// How many are leased at most.
    most: usize,
    shared: AsyncMutex<Option<Arc<S>>>,
    /// Whoever has one of these may have a server. It comes back after its server.
    places: Semaphore,
    /// Put back, and in nobody's hands.
    idle: Mutex<Vec<S>>,
    started: AtomicUsize,
    leases: AtomicUsize,
    removed: AtomicUsize,
    known: Once,
}

impl<S: Leasable> Servers<S> {
    /// None is started yet. So many at most are leased at the same time.
    #[must_use]
    pub const fn new(kind: &'static str, most: usize) -> Self {
        Self {
            kind,
            most,
            shared: AsyncMutex::const_new(None),
            places: Semaphore::const_new(most),
            idle: Mutex::new(Vec::new()),
            started: AtomicUsize::new(0),
            leases: AtomicUsize::new(0),
            removed: AtomicUsize::new(0),
            known: Once::new(),
        }
    }

    /// One for this use; `start` starts it if there is none.
    ///
    /// # Errors
    /// When it does not start, or none was free for too long.
    pub async fn get<F>(
        &'static self,
        server: ServerUse,
        start: impl FnOnce() -> F + Send,
    ) -> Result<Leased<S>, BoxError>
    where
        F: Future<Output = Result<S, BoxError>> + Send,
    {
        self.known.call_once(|| lock(&KNOWN).push(self));
        let _waiting = Waiting::begin();
        match server {
            ServerUse::Shared => self.shared(start).await,
            ServerUse::Own => self.lease(start).await,
        }
    }

    async fn shared<F>(&self, start: impl FnOnce() -> F + Send) -> Result<Leased<S>, BoxError>
    where
        F: Future<Output = Result<S, BoxError>> + Send,
    {
        // Held while it starts: whoever comes meanwhile wants the same. If it does not start, the next one tries again.
        let mut shared = self.shared.lock().await;
        let server = match shared.as_ref() {
            Some(server) => Arc::clone(server),
            None => Arc::clone(shared.insert(Arc::new(self.start(start).await?))),
        };
        Ok(Leased(Lease::Shared(server)))
    }

    async fn lease<F>(&'static self, start: impl FnOnce() -> F + Send) -> Result<Leased<S>, BoxError>
    where
        F: Future<Output = Result<S, BoxError>> + Send,
    {
        let limit = self.wait_limit();
        let place = timeout(limit, self.places.acquire()).await.map_err(|_| {
            format!(
                "none of the {} servers of {} was given back within {limit:?}: some test hangs",
                self.most, self.kind
            )
        })??;
        let idle = lock(&self.idle).pop();
        let server = match idle {
            Some(server) => server,
            None => self.start(start).await?,
        };
        self.leases.fetch_add(1, Ordering::Relaxed);
        Ok(Leased(Lease::Own(Some(Own { server, place, servers: self }))))
    }

    /// Tests have limits of their own, so this is only for those that block their thread for ever. At full size a soak may
    /// take an hour.
    fn wait_limit(&self) -> Duration {
        Duration::from_secs(60 * size::rounds(600, 20) as u64)
    }

    async fn start<F>(&self, start: impl FnOnce() -> F + Send) -> Result<S, BoxError>
    where
        F: Future<Output = Result<S, BoxError>> + Send,
    {
        let started = timeout(START_LIMIT, start()).await;
        let started = started.map_err(|_| format!("{} did not start within {START_LIMIT:?}", self.kind))??;
        self.started.fetch_add(1, Ordering::Relaxed);
        Ok(started)
    }

    /// For the next test, as it was when it was started; or not at all.
    async fn take_back(&self, mut server: S) {
        let why: BoxError = match timeout(RESTORE_LIMIT, server.restore()).await {
            Ok(Ok(())) => return lock(&self.idle).push(server),
            Ok(Err(error)) => error,
            Err(_) => format!("not within {RESTORE_LIMIT:?}").into(),
        };
        self.removed.fetch_add(1, Ordering::Relaxed);
        eprintln!("a server of {} could not be put back, and is removed: {}", self.kind, in_full(why.as_ref()));
        if let Err(error) = server.remove().await {
            eprintln!("error: a server of {} was not removed: {}", self.kind, in_full(error.as_ref()));
        }
    }

    async fn stop(&self) -> Result<(), BoxError> {
        let most = u32::try_from(self.most)?;
        let all = timeout(STOP_LIMIT, self.places.acquire_many(most)).await;
        // One that a test has kept goes with this process.
        let kept = all.is_err();
        let mut left = std::mem::take(&mut *lock(&self.idle));
        left.extend(self.shared.lock().await.take().and_then(Arc::into_inner));
        let mut removing = JoinSet::new();
        for server in left {
            removing.spawn(server.remove());
        }
        for removed in removing.join_all().await {
            removed?;
        }
        if kept { Err(format!("a test still has a server of {}", self.kind).into()) } else { Ok(()) }
    }
}

impl<S> fmt::Debug for Servers<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        f.debug_struct("Servers")
            .field("kind", &self.kind)
            .field("most", &self.most)
            .field("started", &count(&self.started))
            .field("leases", &count(&self.leases))
            .field("removed", &count(&self.removed))
            .finish_non_exhaustive()
    }
}

/// A server in the hands of a test. One that it has alone is put back when this is dropped, for the next.
#[must_use = "dropped it is given back"]
pub struct Leased<S: Leasable>(Lease<S>);

enum Lease<S: Leasable> {
    Shared(Arc<S>),
    /// `None` only while being dropped.
    Own(Option<Own<S>>),
    /// Of no [`Servers`].
    Only(S),
}

struct Own<S: Leasable> {
    server: S,
    place: SemaphorePermit<'static>,
    servers: &'static Servers<S>,
}

impl<S: Leasable> Leased<S> {
    /// A server that no other test will have: for what cannot be put back. It is dropped with this.
    pub fn once(server: S) -> Self {
        Self(Lease::Only(server))
    }

    /// Whether others may use it at the same time.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        matches!(self.0, Lease::Shared(_))
    }
}

impl<S: Leasable> Deref for Leased<S> {
    type Target = S;

    fn deref(&self) -> &S {
        match &self.0 {
            Lease::Shared(server) => server,
            Lease::Own(own) => &own.as_ref().expect("it is there until it is dropped").server,
            Lease::Only(server) => server,
        }
    }
}

impl<S: Leasable + fmt::Debug> fmt::Debug for Leased<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Leased").field(&**self).finish()
    }
}

impl<S: Leasable> Drop for Leased<S> {
    /// The only way back, whatever became of the test. Its runtime may be about to end, so another one does the work.
    fn drop(&mut self) {
        let Lease::Own(own) = &mut self.0 else { return };
        let (Some(Own { server, place, servers }), Ok(runtime)) = (own.take(), runtime()) else { return };
        runtime.spawn(async move {
            servers.take_back(server).await;
            drop(place);
        });
    }
}

/// Servers of any kind.
trait Kind: Sync {
    fn stop(&'static self) -> Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

    /// A line about how they were used.
    fn summary(&self) -> String;
}

impl<S: Leasable> Kind for Servers<S> {
    fn stop(&'static self) -> Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>> {
        Box::pin(self.stop())
    }

    fn summary(&self) -> String {
        let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        let (started, leases, removed) = (count(&self.started), count(&self.leases), count(&self.removed));
        format!("{}: {started} started, leased {leases} times, {removed} could not be put back", self.kind)
    }
}

/// All that somebody has wanted.
static KNOWN: Mutex<Vec<&'static dyn Kind>> = Mutex::new(Vec::new());

/// Ends all servers of this process, and prints how they were used. Whether all went well.
pub(crate) fn stop_all() -> bool {
    let known = std::mem::take(&mut *lock(&KNOWN));
    if known.is_empty() {
        return true;
    }
    let began = Instant::now();
    let outcomes = runtime().map(|runtime| {
        runtime.block_on(async {
            let mut stopping = JoinSet::new();
            for kind in &known {
                stopping.spawn(kind.stop());
            }
            stopping.join_all().await
        })
    });
    for kind in &known {
        println!("servers: {}", kind.summary());
    }
    println!("servers: ended in {:.0?}", began.elapsed());
    let errors: Vec<BoxError> = match outcomes {
        Ok(outcomes) => outcomes.into_iter().filter_map(Result::err).collect(),
        Err(error) => vec![error],
    };
    for error in &errors {
        eprintln!("error: {}", in_full(error.as_ref()));
    }
    errors.is_empty()
}

/// What servers are put back and ended on: it belongs to no test.
fn runtime() -> Result<&'static Runtime, BoxError> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    let start = || {
        let builder = &mut Builder::new_multi_thread();
        builder.worker_threads(2).thread_name("servers").enable_all().build().map_err(|error| error.to_string())
    };
    RUNTIME.get_or_init(start).as_ref().map_err(|error| format!("no runtime to put servers back: {error}").into())
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many sessions are left when those that were cut have had a moment to end.
///
/// # Errors
/// The one of `sessions`.
pub async fn gone<F: Future<Output = Result<usize, BoxError>>>(sessions: impl Fn() -> F) -> Result<usize, BoxError> {
    gone_within(MOMENT, sessions).await
}

/// How many are left when there are none, or after this time: the server has no event for that.
pub(crate) async fn gone_within<F: Future<Output = Result<usize, BoxError>>>(
    limit: Duration,
    sessions: impl Fn() -> F,
) -> Result<usize, BoxError> {
    let began = Instant::now();
    loop {
        let left = sessions().await?;
        if left == 0 || began.elapsed() > limit {
            return Ok(left);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Notify;

    use super::*;

    /// Is broken by whoever has it.
    #[derive(Debug, Default)]
    struct Fragile {
        is_broken: Mutex<bool>,
        /// It cannot be put back.
        is_beyond_repair: Mutex<bool>,
        /// When it may be put back.
        repair: Option<Arc<Notify>>,
    }

    impl Leasable for Fragile {
        async fn restore(&mut self) -> Result<(), BoxError> {
            if let Some(repair) = &self.repair {
                repair.notified().await;
            }
            *lock(&self.is_broken) = false;
            if *lock(&self.is_beyond_repair) { Err("it is beyond repair".into()) } else { Ok(()) }
        }

        async fn remove(self) -> Result<(), BoxError> {
            Ok(())
        }
    }

    async fn start() -> Result<Fragile, BoxError> {
        Ok(Fragile::default())
    }

    fn started(servers: &Servers<Fragile>) -> usize {
        servers.started.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn one_is_shared_by_all_and_others_are_leased() {
        static SERVERS: Servers<Fragile> = Servers::new("shared", 2);
        let (one, other) = (SERVERS.get(ServerUse::Shared, start), SERVERS.get(ServerUse::Shared, start));
        let (one, other) = tokio::join!(one, other);
        assert!(std::ptr::eq(&*one.unwrap(), &*other.unwrap()));
        let leased = SERVERS.get(ServerUse::Own, start).await.unwrap();
        assert_eq!((leased.is_shared(), started(&SERVERS)), (false, 2));
        drop(leased);
        SERVERS.stop().await.unwrap();
    }

    #[tokio::test]
    async fn nobody_gets_a_server_before_it_was_put_back() {
        static SERVERS: Servers<Fragile> = Servers::new("fragile", 1);
        let repair: Arc<Notify> = Arc::default();
        let start = || async { Ok(Fragile { repair: Some(Arc::clone(&repair)), ..Fragile::default() }) };
        let first = SERVERS.get(ServerUse::Own, start).await.unwrap();
        *lock(&first.is_broken) = true;
        let mut second = std::pin::pin!(SERVERS.get(ServerUse::Own, start));
        assert!(timeout(Duration::from_millis(50), &mut second).await.is_err(), "somebody has it");
        // As a test does that has failed.
        let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _first = first;
            panic!("as it was asked to");
        }));
        assert!(failed.is_err());
        assert!(timeout(Duration::from_millis(50), &mut second).await.is_err(), "it is not put back yet");
        repair.notify_one();
        let second = second.await.unwrap();
        assert_eq!((*lock(&second.is_broken), started(&SERVERS)), (false, 1));
        drop(second);
        repair.notify_one();
        SERVERS.stop().await.unwrap();
    }

    #[tokio::test]
    async fn one_that_cannot_be_put_back_is_removed_and_its_place_is_free() {
        static SERVERS: Servers<Fragile> = Servers::new("beyond repair", 1);
        let first = SERVERS.get(ServerUse::Own, start).await.unwrap();
        *lock(&first.is_beyond_repair) = true;
        drop(first);
        let second = SERVERS.get(ServerUse::Own, start).await.unwrap();
        assert_eq!((*lock(&second.is_beyond_repair), started(&SERVERS)), (false, 2));
        assert_eq!(SERVERS.removed.load(Ordering::Relaxed), 1);
        drop(second);
        SERVERS.stop().await.unwrap();
    }

    #[tokio::test]
    async fn one_that_does_not_start_leaves_its_place() {
        static SERVERS: Servers<Fragile> = Servers::new("does not start", 1);
        for server in [ServerUse::Own, ServerUse::Shared, ServerUse::Own] {
            let failed = SERVERS.get(server, || async { Err("there is no image".into()) }).await;
            assert_eq!(failed.unwrap_err().to_string(), "there is no image");
        }
        drop(SERVERS.get(ServerUse::Own, start).await.unwrap());
        SERVERS.stop().await.unwrap();
    }
}
