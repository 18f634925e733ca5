//! The drain of a wrapped pool.

use std::{
    future::Future,
    pin::pin,
    sync::{Arc, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt as _, future::join_all};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::Instrument as _;
use winddown_core::{
    Error, ErrorKind,
    adapter::{Drain, End, News, Source},
};

use winddown_net::own_sockets::unlisting;

use crate::{
    lends::{Lends, Taking},
    speaks::{Canceller, Leaving, Speaks},
    wrapped::{
        OPENING, Shared,
        state::{Phase, State},
    },
};

/// Between two looks at what comes back to the pool directly: no pool has an event for that but for who waits for a connection, and it
/// opens one for whoever does.
const LOOK: Duration = Duration::from_millis(5);

/// How long one whose end nobody sees has to say goodbye.
const UNSEEN: Duration = Duration::from_millis(20);

impl<L: Lends, S: Speaks<L::Connection>> Shared<L, S> {
    /// Has every connection say goodbye when everything on it is answered.
    pub(super) async fn goodbye(self: &Arc<Self>, drain: &Drain) -> Result<(), Error> {
        let _closed = Closed(self);
        self.state().phase = Phase::Draining(Instant::now());
        let ended = drain.sessions(&Draining(Arc::clone(self))).await;
        if timeout_at(drain.halfway(), L::stopped(&self.pool)).await.is_err() {
            drain.count_left_behind(1);
        }
        let opening = self.opening().unwrap_or(0);
        if opening > 0 || matches!(ended, Ok(false)) {
            let ends = {
                let mut state = self.state();
                state.phase = Phase::Over;
                let mut ends = std::mem::take(&mut state.ends);
                ends.cut += self.open(&state) + opening;
                if opening > 0 {
                    let text = "what the pool was opening has neither opened nor failed";
                    ends.error.get_or_insert_with(|| Error::new(ErrorKind::Incomplete, text));
                }
                ends
            };
            drain.count(ends, 0);
            // What the pool was testing is with it again, and ends there when its server answers.
            if let Some(runtime) = self.runtime.get() {
                let shared = Arc::clone(self);
                // The clock is that of the runtime it is on.
                runtime.spawn(async move { timeout(OPENING, shared.cut_idle()).await });
            }
        }
        ended.map(drop)
    }

    /// Until no more can come.
    async fn cut_idle(self: Arc<Self>) {
        loop {
            let cutting = L::take_idle(&self.pool).into_iter().map(async |taking| {
                let leaving = taking.taken().await;
                drop(Ending { speaks: &self.speaks, leaving });
            });
            join_all(cutting).await;
            if self.opening().unwrap_or(0) == 0 {
                return;
            }
            sleep(UNSEEN).await;
        }
    }

    /// How many have not ended.
    fn open(&self, state: &State<L::Object>) -> usize {
        let counted = L::size(&self.pool).open;
        if L::KEEPS { counted.saturating_sub(state.ended) } else { counted + state.taken() }
    }

    fn opening(&self) -> Option<usize> {
        let mut openings = self.openings.lock().unwrap_or_else(PoisonError::into_inner);
        L::opening(&self.pool, &mut openings)
    }

    /// How many others have taken from the pool. One that they gave back just now, which is idle, is among them: a pool that is closed
    /// would end it without a goodbye.
    fn with_others(&self, state: &State<L::Object>) -> usize {
        let known = if L::KEEPS { state.sessions.len() + state.ended } else { state.sessions.len() - state.taken() };
        L::size(&self.pool).open.saturating_sub(known)
    }

    async fn close(self: Arc<Self>, number: u64, taking: Taking<L::Connection>) {
        match taking.taken().await {
            Some(leaving) => self.leave(number, leaving).await,
            None => drop(self.state().sessions.remove(&number)),
        }
        self.changed.notify_one();
    }

    async fn leave(&self, number: u64, leaving: Leaving<L::Connection>) {
        let mut ending = Ending { speaks: &self.speaks, leaving: Some(leaving) };
        let end = match &mut ending.leaving {
            Some(leaving) => self.end(number, leaving).await,
            None => End::Uncounted,
        };
        if let Some(leaving) = ending.leaving.take() {
            leaving.over();
        }
        let mut state = self.state();
        state.sessions.remove(&number);
        if L::KEEPS {
            state.ended += 1;
        }
        // One that is cut is in the count of those already.
        if matches!(state.phase, Phase::Draining(_)) {
            state.ends.record(end);
        }
    }

    /// Waits until everything is answered, says goodbye, and sees that the server has closed its side, where that is to be seen.
    async fn end(&self, number: u64, leaving: &mut Leaving<L::Connection>) -> End {
        let Some(connection) = leaving.get() else { return End::Uncounted };
        if self.speaks.is_abandoned(connection) {
            let text = "whether a statement runs on is not known: its driver has given up the connection";
            return End::Cut(Some(Error::new(ErrorKind::Incomplete, text)));
        }
        {
            let mut state = self.state();
            if let Some(known) = state.sessions.get_mut(&number) {
                known.canceller = known.canceller.take().or_else(|| self.speaks.canceller(connection));
            }
            drop(state);
            // It may be overdue when it comes.
            self.changed.notify_one();
        }
        let peer = {
            let mut settled = pin!(self.speaks.settled(connection));
            match settled.as_mut().now_or_never() {
                // The server had closed it before.
                Some(Err(_)) => return End::Uncounted,
                Some(answer) => answer,
                None => settled.await,
            }
        };
        // Somebody else has ended it.
        let Ok(peer) = peer else { return End::Unconfirmed };
        self.state().is_answered(number);
        let connection = peer.and_then(|peer| self.sight.connection(&peer));
        let began = Instant::now();
        if self.speaks.goodbye(leaving).await {
            return End::Closed;
        }
        drop(leaving.take());
        match connection {
            Some(connection) => {
                self.sight.ended(connection).await;
                if self.speaks.unlists_late() {
                    sleep(unlisting(began.elapsed())).await;
                }
                End::Closed
            }
            None => {
                sleep(UNSEEN).await;
                End::Unconfirmed
            }
        }
    }

    /// Asks the server, and does not wait for longer than the drain lasts.
    async fn stop(self: Arc<Self>, (number, canceller): (u64, Canceller), deadline: Instant) {
        if let Ok(Err(source)) = timeout_at(deadline, canceller.cancel()).await {
            let text = "the server could not be asked to stop a statement";
            self.state().asked_in_vain(number, Error::new(ErrorKind::Incomplete, text).with_source(source));
            self.changed.notify_one();
        }
    }
}

/// One that ends. Dropped before that is over it is cut.
struct Ending<'a, C, S: Speaks<C>> {
    speaks: &'a S,
    leaving: Option<Leaving<C>>,
}

impl<C, S: Speaks<C>> Drop for Ending<'_, C, S> {
    fn drop(&mut self) {
        if let Some(mut leaving) = self.leaving.take() {
            if let Some(connection) = leaving.get() {
                self.speaks.cut(connection);
            }
            leaving.over();
        }
    }
}

/// Closes the pool at the end of a goodbye, also where the deadline drops that.
struct Closed<'a, L: Lends, S: Speaks<L::Connection>>(&'a Shared<L, S>);

impl<L: Lends, S: Speaks<L::Connection>> Drop for Closed<'_, L, S> {
    fn drop(&mut self) {
        let returned = {
            let mut state = self.0.state();
            state.phase = Phase::Over;
            std::mem::take(&mut state.returned)
        };
        for (_, mut object) in returned {
            self.0.speaks.cut(&mut object);
            L::take(object).over();
        }
        L::close(&self.0.pool);
        L::over(&self.0.pool);
    }
}

/// The drain's side of it.
struct Draining<L: Lends, S>(Arc<Shared<L, S>>);

impl<L: Lends, S: Speaks<L::Connection>> Source for Draining<L, S> {
    type Session = (u64, Taking<L::Connection>);

    fn news(&self, _: &Drain) -> News<Self::Session> {
        let Shared { pool, in_vain, .. } = &*self.0;
        let idle = L::take_idle(pool);
        let opening = self.0.opening();
        let mut state = self.0.state();
        let mut returned: Vec<_> = idle.into_iter().map(|taking| (state.take(None), taking)).collect();
        for (number, object) in std::mem::take(&mut state.returned) {
            returned.push((state.take(Some(number)), Taking::Taken(L::take(object))));
        }
        // What others have would be closed by it without a goodbye.
        if self.0.with_others(&state) == 0 {
            L::close(pool);
        }
        if opening == Some(0) {
            in_vain.notify_waiters();
        }
        // One that is being opened for a caller who has gone comes back too.
        let opening = state.opens(opening.unwrap_or(0)).max(state.getting);
        let open = self.0.open(&state) + opening;
        News { returned, ends: std::mem::take(&mut state.ends), open }
    }

    async fn changed(&self) {
        let is_looked_for = {
            let state = self.0.state();
            state.getting > 0 || state.is_opening() || self.0.with_others(&state) > 0
        };
        tokio::select! {
            () = self.0.changed.notified() => {}
            () = sleep(LOOK), if is_looked_for => {}
        }
    }

    fn close(&self, (number, taking): Self::Session) -> impl Future<Output = ()> + Send + 'static {
        Arc::clone(&self.0).close(number, taking)
    }

    fn stop_abandoned(&self, drain: &Drain) -> Option<Instant> {
        let (cancellers, next) = self.0.state().overdue(drain.grace());
        for asked in cancellers {
            tokio::spawn(Arc::clone(&self.0).stop(asked, drain.deadline()).in_current_span());
        }
        next
    }
}
