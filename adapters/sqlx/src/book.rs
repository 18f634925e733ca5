//! Which of a pool's sessions are out, on their way back, and ending; each end is recorded once, here.

use std::{
    collections::{HashMap, HashSet},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sqlx::{ConnectOptions as _, Connection, Pool, pool::PoolConnection};
use tokio::{
    sync::{Notify, OnceCell},
    task::spawn_blocking,
    time::Instant,
};
use winddown_core::{
    Error,
    adapter::{Drain, End, Ends, News, SpareDescriptors},
};
use winddown_net::own_sockets::{OwnSockets, Peer};

use crate::backend::{Backend, Listed};

/// The book of one pool.
pub(crate) struct Book<DB: Backend> {
    pub(crate) pool: Pool<DB>,
    page: Mutex<Page<DB>>,
    /// There may be news for the drain.
    pub(crate) changed: Notify,
    /// There may be something to ask the server.
    pub(crate) wanted: Notify,
    /// Something may have come back to the pool.
    pub(crate) came_back: Notify,
    /// Whether the server sees this process at the other end of its sessions.
    is_direct: OnceCell<bool>,
    /// For the session that asks, and for what the kernel is asked (L7).
    spare: SpareDescriptors,
}

struct Page<DB: Backend> {
    phase: Phase,
    next: u64,
    /// Those that the guard has handed out, or the drain has taken.
    places: HashMap<u64, Entry<DB::Session>>,
    /// Callers that wait for one, or have left one behind that is being opened.
    getting: usize,
    /// Back from their callers, for the task that cleans them, or the drain, whoever comes first.
    to_clean: HashMap<u64, PoolConnection<DB>>,
    /// To be closed.
    returned: Vec<Taken<DB>>,
    /// They have said goodbye, and the server may list them still.
    leaving: HashSet<DB::Session>,
    ends: Ends,
    others: Others<DB::Session>,
    /// How many of them the pool had when somebody last looked.
    others_left: usize,
    /// What callers run is to be stopped.
    is_cancelling: bool,
    stopped: HashMap<DB::Session, Stopped>,
    /// Nobody can ask the server.
    cannot_ask: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// What comes back is the drain's.
    Draining,
    /// What comes back is closed by the driver, or left.
    Over,
}

struct Entry<S> {
    session: Option<S>,
    holder: Holder,
    /// It says goodbye: the pool may count it, or not any more.
    is_saying: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    Caller,
    /// What its caller has left is being ended.
    Cleaning(Instant),
    /// The driver puts it back.
    Returning,
    /// The drain closes it, since then.
    Closing(Instant),
}

/// Sessions that were taken from the pool itself, behind the guard's back.
#[derive(Debug)]
enum Others<S> {
    /// There are none, as far as is known.
    None,
    /// So many there are, and nobody has looked which.
    Expected(usize),
    /// So many there are, and nobody can tell which.
    Unproven(usize),
    Found(HashSet<S>),
}

struct Stopped {
    statement: Option<i64>,
    at: Instant,
}

/// A socket, a directory, and a file in it.
const ASKING: usize = 3;

/// How long a statement may take to end that the server was asked to stop, until it is asked again.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

/// One that the drain has.
pub(crate) struct Taken<DB: Backend> {
    pub(crate) conn: PoolConnection<DB>,
    pub(crate) place: Place<DB>,
}

/// A session's place in the book, until it is dropped.
pub(crate) struct Place<DB: Backend> {
    book: Arc<Book<DB>>,
    key: Option<u64>,
}

impl<DB: Backend> Book<DB> {
    pub(crate) fn new(pool: Pool<DB>) -> Arc<Self> {
        let spare = SpareDescriptors::new(if DB::IS_SERVER { ASKING } else { 0 });
        spare.keep();
        Arc::new(Self {
            pool,
            page: Mutex::new(Page {
                phase: Phase::Open,
                next: 0,
                places: HashMap::new(),
                getting: 0,
                to_clean: HashMap::new(),
                returned: Vec::new(),
                leaving: HashSet::new(),
                ends: Ends::default(),
                others: Others::None,
                others_left: 0,
                is_cancelling: false,
                stopped: HashMap::new(),
                cannot_ask: false,
            }),
            changed: Notify::new(),
            wanted: Notify::new(),
            came_back: Notify::new(),
            is_direct: OnceCell::new(),
            spare,
        })
    }

    fn page(&self) -> MutexGuard<'_, Page<DB>> {
        // Each change is complete before anything can panic.
        self.page.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same session, if what its server says of it is about us: what is between, a pooler or a router that translates addresses, has
    /// a session of its own with the server, which others may have next. Looked at once, for the first.
    pub(crate) async fn proven(&self, session: Option<DB::Session>) -> Option<DB::Session> {
        let session = session?;
        if !DB::IS_SERVER {
            return Some(session);
        }
        let is_ours = || async {
            let Some(peer) = DB::peer_of(&session).map(|peer| self.with_server(peer)) else { return false };
            // The kernel takes some milliseconds for it, on a busy machine more.
            spawn_blocking(move || OwnSockets::now().has(&peer)).await.unwrap_or(false)
        };
        self.is_direct.get_or_init(is_ours).await.then_some(session)
    }

    /// The same, of the server that the pool is told of, where it does not say itself where it is.
    pub(crate) fn with_server(&self, peer: Peer) -> Peer {
        peer.or_of(DB::address(&self.pool.connect_options()))
    }

    /// Whether it was found that it does not.
    pub(crate) fn is_known_to_be_behind_another(&self) -> bool {
        self.is_direct.get() == Some(&false)
    }

    /// How a session is opened that asks about the others.
    pub(crate) fn options_for_asking(&self) -> <DB::Connection as Connection>::Options {
        (*self.pool.connect_options()).clone().disable_statement_logging()
    }

    fn tell(&self) {
        self.changed.notify_one();
        self.wanted.notify_one();
        self.came_back.notify_one();
    }

    pub(crate) fn begin_getting(&self) {
        self.page().getting += 1;
    }

    pub(crate) fn end_getting(&self) {
        self.page().getting -= 1;
        self.tell();
    }

    /// From now on what is idle, and what comes back, is the drain's.
    pub(crate) fn begin_drain(self: &Arc<Self>) {
        self.spare.let_go();
        let mut page = self.page();
        page.phase = Phase::Draining;
        let to_clean: Vec<_> = page.to_clean.drain().collect();
        for (key, conn) in to_clean {
            let place = Place { book: Arc::clone(self), key: Some(key) };
            page.take(conn, place);
        }
        drop(page);
        self.take_idle();
    }

    /// Whether there was a drain, which takes nothing any more.
    pub(crate) fn is_over(&self) -> bool {
        self.page().phase == Phase::Over
    }

    /// What callers run is to be stopped, by whoever asks the server.
    pub(crate) fn cancel(&self) {
        self.page().is_cancelling = true;
        self.tell();
    }

    /// Takes what is idle.
    pub(crate) fn take_idle(self: &Arc<Self>) {
        while let Some(conn) = self.pool.try_acquire() {
            let place = Place::enter(self, None, Holder::Closing(Instant::now()));
            self.page().returned.push(Taken { conn, place });
        }
        self.tell();
    }

    /// Whether the driver puts some back that the guard has handed out.
    pub(crate) fn are_returning(&self) -> bool {
        self.page().places.values().any(|entry| matches!(entry.holder, Holder::Cleaning(_) | Holder::Returning))
    }

    /// Whether some are between being the pool's and having said goodbye.
    pub(crate) fn are_saying(&self) -> bool {
        self.page().places.values().any(|entry| entry.is_saying)
    }

    /// How many somebody has who has them from the pool itself. Fewer for a moment, while some [say](Self::are_saying) goodbye.
    pub(crate) fn others(&self) -> usize {
        self.others_of(&self.page())
    }

    fn others_of(&self, page: &Page<DB>) -> usize {
        (self.pool.size() as usize).saturating_sub(page.places.len() + page.getting)
    }

    /// Takes one that its caller has left. Whether somebody is to clean it, by the name that it has then.
    pub(crate) fn left(&self, conn: PoolConnection<DB>, mut place: Place<DB>) -> Option<u64> {
        let mut page = self.page();
        let key = place.key?;
        if page.phase == Phase::Draining {
            page.take(conn, place);
            drop(page);
            self.tell();
            return None;
        }
        if let Some(entry) = page.places.get_mut(&key) {
            entry.holder = Holder::Cleaning(Instant::now());
        }
        page.to_clean.insert(key, conn);
        // It is found again by its key.
        place.key = None;
        Some(key)
    }

    /// Gives one to be cleaned, unless a drain has it.
    pub(crate) fn take_to_clean(self: &Arc<Self>, key: u64) -> Option<(PoolConnection<DB>, Place<DB>)> {
        let conn = self.page().to_clean.remove(&key)?;
        Some((conn, Place { book: Arc::clone(self), key: Some(key) }))
    }

    /// Takes one that is clean, if there is a drain; gives it back otherwise, to go back to the pool.
    pub(crate) fn cleaned(
        &self,
        conn: PoolConnection<DB>,
        place: Place<DB>,
    ) -> Option<(PoolConnection<DB>, Place<DB>)> {
        let mut page = self.page();
        if page.phase == Phase::Draining {
            page.take(conn, place);
            drop(page);
            self.tell();
            return None;
        }
        if let Some(entry) = place.key.and_then(|key| page.places.get_mut(&key)) {
            entry.holder = Holder::Returning;
        }
        Some((conn, place))
    }

    pub(crate) fn news(&self) -> News<Taken<DB>> {
        let mut page = self.page();
        page.others_left = self.others_of(&page);
        // One that is closed is the pool's no more a moment before it is among those that leave. And one that the drain has found in the
        // pool can have ended before whoever has put it there is done: over then, the drain would call that one cut.
        let open = (self.pool.size() as usize).max(page.places.len()).max(page.getting) + page.leaving.len();
        News { returned: mem::take(&mut page.returned), ends: mem::take(&mut page.ends), open }
    }

    /// How many others there are is settled: the pool opens none any more. Whether somebody should look which they are.
    pub(crate) fn set_others(&self, others: usize) {
        if others > 0 {
            self.page().others = Others::Expected(others);
            self.wanted.notify_one();
        }
    }

    /// The pool has no session any more.
    pub(crate) fn pool_is_empty(&self) {
        let mut page = self.page();
        if let Others::Found(others) = &mut page.others {
            let others = mem::take(others);
            page.leaving.extend(others);
        }
        if page.cannot_ask {
            page.give_up_leaving();
        }
        drop(page);
        self.tell();
    }

    /// How many there are of others', and which are not. Once it is known of all that are ours which they are.
    pub(crate) fn wants_others(&self) -> Option<(usize, HashSet<DB::Session>)> {
        let page = self.page();
        let Others::Expected(expected) = page.others else { return None };
        if self.is_known_to_be_behind_another() {
            return None;
        }
        let ours: Option<HashSet<_>> = page.places.values().map(|entry| entry.session.clone()).collect();
        let mut ours = ours?;
        ours.extend(page.leaving.iter().cloned());
        Some((expected, ours))
    }

    /// Which so many are, if that is proven.
    pub(crate) fn found_others(&self, expected: usize, found: Option<Vec<DB::Session>>) {
        self.page().others =
            found.map_or(Others::Unproven(expected), |found| Others::Found(found.into_iter().collect()));
    }

    /// What the server is to be asked about now, or when.
    pub(crate) fn due(&self, grace: Duration, began: Instant) -> Due<DB::Session> {
        let page = self.page();
        let mut sessions: HashSet<_> = page.leaving.iter().cloned().collect();
        let (overdue, next) = page.overdue(grace, began);
        sessions.extend(overdue.into_iter().cloned());
        if page.is_cancelling
            && let Others::Found(others) = &page.others
        {
            sessions.extend(others.iter().cloned());
        }
        if !sessions.is_empty() {
            return Due::Now(sessions.into_iter().collect());
        }
        // Of those that are behind another none is asked about.
        let are_closing = !self.is_known_to_be_behind_another()
            && page.places.values().any(|entry| matches!(entry.holder, Holder::Closing(_)));
        next.map_or(if are_closing { Due::Soon } else { Due::Never }, Due::At)
    }

    /// What the server lists of those that it was asked about. Which of them run something that is to be stopped.
    pub(crate) fn seen(&self, asked: &[DB::Session], listed: &[Listed<DB::Session>]) -> Vec<Listed<DB::Session>> {
        let mut page = self.page();
        let mut has_news = false;
        for session in asked {
            if listed.iter().all(|listed| listed.session != *session) && page.leaving.remove(session) {
                page.ends.record(End::Closed);
                has_news = true;
            }
        }
        let may_be_stopped = |listed: &&Listed<DB::Session>| {
            let again = page
                .stopped
                .get(&listed.session)
                .is_none_or(|stopped| stopped.statement != listed.statement || stopped.at.elapsed() >= STOP_PATIENCE);
            listed.is_busy && again && !page.leaving.contains(&listed.session)
        };
        let to_stop = listed.iter().filter(may_be_stopped).cloned().collect();
        drop(page);
        if has_news {
            self.tell();
        }
        to_stop
    }

    pub(crate) fn have_stopped(&self, stopped: &[Listed<DB::Session>]) {
        let mut page = self.page();
        for listed in stopped {
            let stopped = Stopped { statement: listed.statement, at: Instant::now() };
            page.stopped.insert(listed.session.clone(), stopped);
        }
    }

    /// Nobody can ask the server: what has said goodbye is called unconfirmed.
    pub(crate) fn cannot_ask(&self) {
        let mut page = self.page();
        page.cannot_ask = true;
        page.give_up_leaving();
        drop(page);
        self.tell();
    }

    /// Interrupts what nobody waits for any more, where no server is asked for that. When to look again.
    pub(crate) fn interrupt(&self, drain: &Drain, began: Instant) -> Option<Instant> {
        let page = self.page();
        let (overdue, next) = page.overdue(drain.grace(), began);
        overdue.into_iter().for_each(DB::interrupt);
        next
    }

    /// The last word: what is open now is left, and what comes back later is closed by the driver, if at all.
    pub(crate) fn close(&self) -> Ends {
        let mut page = self.page();
        page.phase = Phase::Over;
        let returned = mem::take(&mut page.returned);
        drop(page);
        // Each of them is cut.
        returned.into_iter().for_each(|taken| drop(taken.conn.detach()));
        let mut page = self.page();
        let mut ends = mem::take(&mut page.ends);
        let held = page.places.values().filter(|entry| !matches!(entry.holder, Holder::Closing(_))).count();
        ends.cut += held + page.others_left + page.leaving.drain().count();
        if let Others::Expected(others) | Others::Unproven(others) = page.others {
            ends.unconfirmed += others.saturating_sub(page.others_left);
        }
        ends
    }
}

impl<DB: Backend> Page<DB> {
    /// For the drain to close it.
    fn take(&mut self, conn: PoolConnection<DB>, place: Place<DB>) {
        if let Some(entry) = place.key.and_then(|key| self.places.get_mut(&key)) {
            entry.holder = Holder::Closing(match entry.holder {
                // It has lasted since then.
                Holder::Cleaning(since) => since,
                _ => Instant::now(),
            });
        }
        self.returned.push(Taken { conn, place });
    }

    /// Those whose statements are to be stopped: what nobody has waited for for so long, and what callers run, once that is to be.
    /// And when there may be more of them.
    fn overdue(&self, grace: Duration, began: Instant) -> (Vec<&DB::Session>, Option<Instant>) {
        let (mut overdue, mut next) = (Vec::new(), None::<Instant>);
        let now = Instant::now();
        for entry in self.places.values() {
            let Some(session) = &entry.session else { continue };
            match entry.holder {
                Holder::Cleaning(since) | Holder::Closing(since) => {
                    let may_last_until = since.max(began) + grace;
                    if self.is_cancelling || may_last_until <= now {
                        overdue.push(session);
                    } else {
                        next = Some(next.map_or(may_last_until, |next| next.min(may_last_until)));
                    }
                }
                Holder::Caller if self.is_cancelling => overdue.push(session),
                Holder::Caller | Holder::Returning => {}
            }
        }
        (overdue, next)
    }

    fn give_up_leaving(&mut self) {
        for _ in self.leaving.drain() {
            self.ends.record(End::Unconfirmed);
        }
    }
}

/// What the server is to be asked about.
pub(crate) enum Due<S> {
    Now(Vec<S>),
    At(Instant),
    /// Some are about to say goodbye.
    Soon,
    Never,
}

impl<DB: Backend> Place<DB> {
    /// That of one which a caller gets.
    pub(crate) fn new(book: &Arc<Book<DB>>, session: Option<DB::Session>) -> Self {
        Self::enter(book, session, Holder::Caller)
    }

    fn enter(book: &Arc<Book<DB>>, session: Option<DB::Session>, holder: Holder) -> Self {
        let mut page = book.page();
        let key = page.next;
        page.next += 1;
        page.places.insert(key, Entry { session, holder, is_saying: false });
        drop(page);
        Self { book: Arc::clone(book), key: Some(key) }
    }

    /// The place itself, which this is no longer.
    pub(crate) fn take(&mut self) -> Self {
        Self { book: Arc::clone(&self.book), key: self.key.take() }
    }

    pub(crate) fn book(&self) -> &Arc<Book<DB>> {
        &self.book
    }

    pub(crate) fn session(&self) -> Option<DB::Session> {
        self.key.and_then(|key| self.book.page().places.get(&key)?.session.clone())
    }

    fn change(&self, change: impl FnOnce(&mut Entry<DB::Session>)) {
        if let Some(key) = self.key {
            self.book.page().places.get_mut(&key).map(change);
        }
    }

    pub(crate) fn set_session(&self, session: Option<DB::Session>) {
        self.change(|entry| entry.session = session);
        self.book.wanted.notify_one();
    }

    /// It is about to say goodbye.
    pub(crate) fn says_goodbye(&self) {
        self.change(|entry| entry.is_saying = true);
    }

    /// It has said goodbye: the server is asked whether it has ended, if it is known which one it is.
    pub(crate) fn has_said_goodbye(mut self) {
        let Some(key) = self.key.take() else { return };
        let mut page = self.book.page();
        let Some(entry) = page.places.remove(&key) else { return };
        match entry.session {
            Some(session) if DB::IS_SERVER && !page.cannot_ask => {
                page.leaving.insert(session);
            }
            Some(session) if !DB::IS_SERVER => {
                page.ends.cancelled += usize::from(DB::has_stopped(&session));
                page.ends.record(End::Closed);
            }
            Some(_) | None => page.ends.record(if DB::IS_SERVER { End::Unconfirmed } else { End::Closed }),
        }
        drop(page);
        self.book.tell();
    }

    /// It could not say goodbye, since it has ended.
    pub(crate) fn has_ended(mut self, error: Option<Error>) {
        let Some(key) = self.key.take() else { return };
        let mut page = self.book.page();
        page.places.remove(&key);
        page.ends.record(match error {
            None => End::Unconfirmed,
            error => End::Cut(error),
        });
        drop(page);
        self.book.tell();
    }
}

impl<DB: Backend> Drop for Place<DB> {
    fn drop(&mut self) {
        let Some(key) = self.key.take() else { return };
        let mut page = self.book.page();
        if let Some(entry) = page.places.remove(&key)
            && matches!(entry.holder, Holder::Closing(_))
        {
            page.ends.record(End::Cut(None));
        }
        drop(page);
        self.book.tell();
    }
}

#[cfg(all(test, feature = "sqlx-sqlite"))]
mod tests {
    use sqlx::{Sqlite, sqlite::SqlitePoolOptions};

    use super::{Book, Place, Taken};

    #[tokio::test]
    async fn a_drain_is_not_over_before_whoever_puts_one_back_is_done() {
        let pool = SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await.unwrap();
        let book = Book::<Sqlite>::new(pool);
        let conn = book.pool.acquire().await.unwrap();
        let (mut conn, returning) = book.cleaned(conn, Place::new(&book, None)).expect("there is no drain yet");
        conn.return_to_pool().await;

        book.begin_drain();
        let mut news = book.news();
        let Taken { conn, place } = news.returned.pop().expect("it is in the pool");
        conn.close().await.unwrap();
        place.has_said_goodbye();
        let news = book.news();
        assert_eq!((news.ends.closed, news.open), (1, 1), "over now, the drain would count it twice");
        drop(returning);
        assert_eq!(book.news().open, 0);
        let ends = book.close();
        assert_eq!((ends.closed, ends.cut), (0, 0));
    }
}
