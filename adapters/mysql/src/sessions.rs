//! The book of sessions: which the server may list, who has their connections, and how each one ended.
//!
//! A session is in the book from when it is open until the server does not list it any more. The driver tells nobody of
//! the end of a connection, and where the future of a statement is dropped it forgets the session while the statement
//! runs on; so what stands here is settled by asking the server.

use std::{
    collections::HashMap,
    fmt, mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Waker},
    time::{Duration, Instant},
};

use deadpool::managed::Object;
use mysql_async::{Conn, Opts};
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    time::timeout,
};
use winddown_core::{
    Error, ErrorKind,
    adapter::{End, Ends, Latency, SpareDescriptors},
};
use winddown_net::Address;

use crate::{
    connect::Connection,
    error,
    gauges::Gauges,
    origin::{Origin, Relation},
    watcher::{Found, Listed},
};

/// How many sessions that the driver has dropped may be in the book before somebody asks which of them are over.
const MANY: usize = 100;

/// How long a session that nobody wants any more may go on opening, or take to say goodbye.
pub(crate) const LEAVE_PATIENCE: Duration = Duration::from_secs(1);

/// All sessions of one pool.
pub(crate) struct Sessions {
    state: Mutex<SessionTable>,
    /// There is news for the drain.
    pub(crate) changed: Notify,
    /// A server was asked, or it was given up.
    pub(crate) answered: Notify,
    /// What the drain wants of those who watch the servers.
    wanted: watch::Sender<Wanted>,
    /// How long the servers take to answer.
    pub(crate) latency: Arc<Latency>,
    /// For the session that asks about the others, where the process has no descriptor left: the driver opens its socket by itself.
    pub(crate) spare: SpareDescriptors,
    /// Where the connections are in a pool of the driver's: it is that which says goodbye to what it has.
    driver: Option<Gauges>,
}

/// What that opens: two sockets for each half of its way, the one that it is reached at, and a file with certificates.
const ASKING: usize = 6;

#[derive(Default)]
struct SessionTable {
    phase: Phase,
    /// How many are being opened.
    opening: usize,
    /// Counts the sessions that were entered.
    entered: u64,
    servers: Vec<Arc<Server>>,
    open: HashMap<Key, Entry>,
    /// Given back, and not yet tidied up: nobody has begun.
    needs_reset: HashMap<Key, Connection>,
    /// The same of those that the guard has lent from a pool of the driver's.
    lent_needs_reset: HashMap<Key, Conn>,
    /// While draining: those that came back, to be said goodbye to.
    returned: Vec<(Key, Conn)>,
    /// While draining: one for each server that had no room, to ask it.
    spare: HashMap<usize, (Key, Conn)>,
    /// The last session that was to be opened found no room.
    is_full: bool,
    /// Why nobody can ask a server now.
    why_unseen: Option<Error>,
    ended: Ends,
    /// How many of those who watch have a session that was not seen to end.
    watchers: usize,
    /// When the drain began.
    draining_since: Option<Instant>,
    unknown: Unknown,
}

/// What there is to know of those that others have taken from a pool of the driver's, and that are not in the book.
#[derive(Default)]
struct Unknown {
    /// What was idle is in the book, so that whatever is out and is not there is one of these.
    counts: bool,
    /// There is a server that can be asked which they are.
    seeks: bool,
    /// How many checkouts of the guard are out.
    lent: usize,
    /// How many were out together with those that were found, at most.
    most: usize,
    /// How many were found on the server, and are in the book since.
    found: usize,
    /// How many have ended whose connection somebody has nevertheless.
    ended_out: usize,
    /// Why some were left alone.
    reason: Option<String>,
}

impl SessionTable {
    /// The one place where the end of a session is recorded: it is taken out of the book for it, so there is no second time.
    fn end(&mut self, key: Key, end: End) {
        let Some(entry) = self.open.remove(&key) else { return };
        if entry.holder == Holder::Others && entry.standing == Standing::Killed {
            self.unknown.ended_out += 1;
        }
        match end {
            End::Cut(_) if entry.is_the_drains => self.watchers += 1,
            _ if entry.is_the_drains => {}
            end => self.ended.record(end),
        }
    }

    /// How many are out of a pool of the driver's, and not in the book.
    fn unknown(&self, driver: Option<&Gauges>) -> usize {
        let Some(driver) = driver.filter(|_| self.unknown.counts) else { return 0 };
        let is_out = |entry: &&Entry| matches!(entry.holder, Holder::Others | Holder::Drain);
        let known = self.open.values().filter(is_out).count();
        driver.out().saturating_sub(known + self.unknown.lent + self.unknown.ended_out)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Open,
    Draining,
    /// Drained, or given up: nothing is opened any more.
    Over,
}

/// What a drain wants of those who watch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Be ready: time runs out.
    pub(crate) prepare: bool,
    /// Nobody has a connection any more: look until nothing is listed.
    pub(crate) watch: bool,
    /// Stop whatever runs.
    pub(crate) cancel: bool,
    /// Stop what nobody waits for: that has had its time.
    pub(crate) abandoned: bool,
    /// End whatever is listed.
    pub(crate) cut: bool,
    /// How many nobody has any more, and how many of those have said goodbye: each is a reason to look.
    pub(crate) left: usize,
}

impl Wanted {
    /// Whether the server is to be asked.
    pub(crate) fn asks(self) -> bool {
        self.watch || self.cancel || self.cut
    }
}

/// Where sessions are, and who can ask for them: without a privilege a user sees their own.
pub(crate) struct Server {
    pub(crate) index: usize,
    pub(crate) address: Address,
    /// What the last session was opened with.
    pub(crate) opts: Mutex<Opts>,
}

impl Server {
    pub(crate) fn opts(&self) -> Opts {
        self.opts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Names a session: its server, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) server: usize,
    pub(crate) id: u32,
    /// How many were entered before it: a server that was started again gives a number again.
    entered: u64,
}

struct Entry {
    /// What tells it from all others, besides its number; where its server has said so.
    origin: Option<Arc<Origin>>,
    standing: Standing,
    /// Its goodbye is on the way: that is all that can be done from here.
    has_said: bool,
    /// When somebody last waited for it.
    waited_for: Instant,
    /// When its connection was dropped because it did not answer when it was to be tidied up, or because a statement failed of
    /// whose results something was left: as far as anybody knows it was open until then.
    dropped: Option<Instant>,
    /// What the server said of it, if it listed it while draining.
    seen: Option<Listed>,
    /// Where its connection is, if it is of a pool of the driver's.
    holder: Holder,
    /// Tells its connection from others of the driver's pool that had the same number, on a server that was started again.
    conn: usize,
    /// Nobody has entered it but the drain, which has found it on the server's list.
    is_found: bool,
    /// It was opened for the drain, and is in no count of the pool's.
    is_the_drains: bool,
}

/// Who has a connection of a pool of the driver's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    /// Others, as far as anybody knows.
    Others,
    /// The drain.
    Drain,
    /// The guard has lent it.
    Guard,
    /// Nobody any more.
    Nobody,
}

/// Where a connection is, as long as it is there: the driver keeps it in a box.
fn place(conn: &Conn) -> usize {
    std::ptr::from_ref(conn.opts()).addr()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// The pool or somebody else has its connection.
    Held,
    /// It was asked something between two checkouts, and has not answered in time: nobody is handed it again.
    Unwanted,
    /// The drain says goodbye, or has said it.
    Leaving,
    /// The driver has dropped its connection: after a goodbye of its own, or without one where the future of a statement
    /// was dropped or the connection broke. It may have ended long before the drain.
    Left,
    /// The same with a connection that was found broken while nothing ran on it.
    Broken,
    /// It could not say goodbye.
    Failed,
    /// The server was told to end it.
    Killed,
}

/// What has happened since the drain last asked.
pub(crate) struct News {
    /// To be said goodbye to.
    pub(crate) returned: Vec<(Key, Conn)>,
    pub(crate) ended: Ends,
    /// How many are in the book.
    pub(crate) open: usize,
    /// How many are not, and others have taken them from a pool of the driver's.
    pub(crate) unknown: usize,
    /// How many of both somebody has, or is about to have.
    pub(crate) held: usize,
    /// Where they are.
    pub(crate) servers: Vec<Whereabouts>,
}

/// A server with sessions in the book.
pub(crate) struct Whereabouts {
    pub(crate) server: Arc<Server>,
    /// Nobody has some of them.
    pub(crate) abandoned: bool,
}

/// What somebody who watches a server asks about.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) key: Key,
    pub(crate) origin: Option<Arc<Origin>>,
    /// The drain says goodbye, or nobody will be handed it again.
    pub(crate) is_leaving: bool,
    /// The driver has dropped its connection.
    pub(crate) has_left: bool,
    /// When somebody last waited for what it does.
    pub(crate) waited_for: Instant,
    /// Nobody has entered it but the drain.
    pub(crate) is_found: bool,
}

impl Asked {
    /// Nobody has waited for what it does for that long. Where the drain says goodbye on its connection something runs only if
    /// results were read by half, and a server may be listed as busy for a moment that has answered: that is given longer.
    pub(crate) fn is_abandoned_for(&self, grace: Duration, leaving: Duration) -> bool {
        let waited_for = self.waited_for.elapsed();
        (self.has_left && waited_for >= grace) || (self.is_leaving && waited_for >= grace.max(leaving))
    }
}

impl Default for Sessions {
    fn default() -> Self {
        let (changed, answered) = (Notify::new(), Notify::new());
        let (wanted, latency) = (watch::Sender::new(Wanted::default()), Arc::default());
        let spare = SpareDescriptors::new(ASKING);
        Self { state: Mutex::default(), changed, answered, wanted, latency, spare, driver: None }
    }
}

impl Sessions {
    fn state(&self) -> MutexGuard<'_, SessionTable> {
        // Each change is complete before anything can panic, so a poisoned lock carries no broken state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A life of the pool begins.
    pub(crate) fn restart(&self) {
        self.state().phase = Phase::Open;
        self.wanted.send_replace(Wanted::default());
    }

    /// A session is about to be opened; `None` when it is too late for that.
    pub(crate) fn begin_opening(self: &Arc<Self>) -> Option<BeingOpened> {
        if self.is_open() {
            self.spare.keep();
        }
        let mut state = self.state();
        if state.phase == Phase::Over {
            return None;
        }
        state.opening += 1;
        Some(BeingOpened { began: Instant::now(), sessions: Arc::clone(self), has_entered: AtomicBool::new(false) })
    }

    /// The sessions that the driver has dropped from this server, if they are so many that it should be asked which of
    /// them are over.
    pub(crate) fn many_left(&self, server: usize) -> Option<Vec<Asked>> {
        let mut left = self.on(server);
        left.retain(|asked| asked.has_left);
        (left.len() >= MANY).then_some(left)
    }

    /// These are over.
    pub(crate) fn forget(&self, keys: impl IntoIterator<Item = Key>) {
        let mut state = self.state();
        for key in keys {
            state.open.remove(&key);
        }
    }

    /// Nobody can tell whether these, which the driver has dropped, are over: those that were opened last stay in the book.
    pub(crate) fn forget_oldest(&self, mut keys: Vec<Key>) {
        keys.sort_unstable_by_key(|key| key.entered);
        let surplus = keys.len().saturating_sub(MANY / 2);
        self.forget(keys.into_iter().take(surplus));
    }

    /// The connection of a session is nobody's any more. One that was given up has hung: no goodbye is waited for.
    pub(crate) fn came_back(&self, key: Key, conn: Conn, is_given_up: bool) {
        let mut state = self.state();
        let is_taken_over = state.phase == Phase::Draining && !conn.is_disconnected() && !is_given_up;
        if let Some(entry) = state.open.get_mut(&key) {
            entry.holder = if is_taken_over { Holder::Drain } else { Holder::Nobody };
        }
        let dropped = if is_taken_over {
            state.returned.push((key, conn));
            None
        } else {
            if let Some(entry) = state.open.get_mut(&key) {
                match entry.standing {
                    Standing::Held => (entry.standing, entry.waited_for) = (Standing::Left, Instant::now()),
                    Standing::Unwanted => entry.standing = Standing::Left,
                    _ => {}
                }
            }
            Some(conn)
        };
        let is_draining = state.phase == Phase::Draining;
        drop(state);
        self.changed.notify_one();
        if is_draining {
            self.want(|wanted| wanted.left += 1);
        }
        // The driver would close the socket, and nothing else: it forgets its goodbye where a connection is dropped.
        let Some(conn) = dropped.filter(|conn| !conn.is_disconnected()) else { return };
        let mut goodbye = Box::pin(conn.disconnect());
        // Most need no more than this, and where the runtime ends nobody would poll it again.
        let is_said = goodbye.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
        if let (false, Ok(runtime)) = (is_said, Handle::try_current()) {
            runtime.spawn(timeout(LEAVE_PATIENCE, goodbye));
        }
    }

    /// Nobody waits any more for what goes on there: whatever it was asked, its connection is not handed out again.
    pub(crate) fn nobody_waits(&self, key: Key) {
        if let Some(entry) = self.state().open.get_mut(&key)
            && entry.standing == Standing::Held
        {
            (entry.standing, entry.waited_for) = (Standing::Unwanted, Instant::now());
        }
        self.changed.notify_one();
    }

    /// The connection of this session was found to be closed while nothing ran on it.
    pub(crate) fn is_broken(&self, key: Key) {
        if let Some(entry) = self.state().open.get_mut(&key)
            && entry.standing == Standing::Left
        {
            entry.standing = Standing::Broken;
        }
    }

    /// What to ask about this session, and where. `None` if it is not in the book any more.
    #[cfg(feature = "buffer")]
    pub(crate) fn asked(&self, key: Key) -> Option<(Arc<Server>, Asked)> {
        let state = self.state();
        let server = state.servers.iter().find(|server| server.index == key.server)?;
        Some((Arc::clone(server), state.open.get(&key)?.asked(key)))
    }

    /// This session has not answered in time, and its connection is dropped for that.
    pub(crate) fn is_mute(&self, key: Key) {
        if let Some(entry) = self.state().open.get_mut(&key) {
            entry.dropped = Some(Instant::now());
        }
    }

    /// The guard lends this connection of a pool of the driver's. Whether it is in the book.
    pub(crate) fn lend(&self, conn: &Conn) -> bool {
        let mut state = self.state();
        state.unknown.lent += 1;
        let entry = state.entry_of(conn);
        entry.map(|(_, entry)| entry.holder = Holder::Guard).is_some()
    }

    /// What was lent is back, or was not lent after all.
    pub(crate) fn is_back(&self, key: Option<Key>) {
        let mut state = self.state();
        state.unknown.lent -= 1;
        if let Some(entry) = key.and_then(|key| state.open.get_mut(&key)).filter(|entry| entry.holder == Holder::Guard)
        {
            entry.holder = Holder::Others;
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Its place in the book.
    pub(crate) fn key_of(&self, conn: &Conn) -> Option<Key> {
        Some(self.state().entry_of(conn)?.0)
    }

    /// It was entered, and this is its connection; `is_lent` by the guard.
    pub(crate) fn is_of(&self, key: Key, conn: &Conn, is_lent: bool) {
        if let Some(entry) = self.state().open.get_mut(&key) {
            entry.conn = place(conn);
            if is_lent {
                entry.holder = Holder::Guard;
            }
        }
    }

    /// It was opened for the drain.
    pub(crate) fn is_the_drains(&self, key: Key) {
        if let Some(entry) = self.state().open.get_mut(&key) {
            entry.is_the_drains = true;
        }
    }

    /// What was idle in the driver's pool is in the book, so that others have what is out and is not there.
    pub(crate) fn count_unknown(&self) {
        let mut state = self.state();
        (state.unknown.counts, state.unknown.seeks) = (true, true);
    }

    /// No server has been heard of.
    pub(crate) fn are_nowhere(&self) -> bool {
        self.state().servers.is_empty()
    }

    /// This one can be asked.
    pub(crate) fn are_at(&self, address: &Address, opts: &Opts) {
        self.state().server(address, opts);
    }

    /// Whether there are sessions that others than the guard have, as far as anybody knows.
    pub(crate) fn are_with_others(&self) -> bool {
        let state = self.state();
        let is_with_others = |entry: &Entry| entry.standing == Standing::Held && entry.holder == Holder::Others;
        state.open.values().any(is_with_others) || state.unknown(self.driver.as_ref()) > 0
    }

    /// How many others have that are not in the book.
    pub(crate) fn unknown(&self) -> usize {
        self.state().unknown(self.driver.as_ref())
    }

    /// Whether a server is to be asked which they are.
    pub(crate) fn seeks(&self) -> bool {
        let state = self.state();
        state.seeks(self.driver.as_ref())
    }

    /// No server can be asked which they are.
    pub(crate) fn cannot_seek(&self) {
        self.state().unknown.seeks = false;
    }

    /// Nobody is given any more: so many there are now at most.
    pub(crate) fn note_unknown(&self) {
        let mut state = self.state();
        let now = state.unknown(self.driver.as_ref()) + state.unknown.found;
        state.unknown.most = state.unknown.most.max(now);
    }

    /// All that others have were found: it is these.
    pub(crate) fn found(&self, server: &Server, found: Vec<Found>) {
        self.note_unknown();
        let mut state = self.state();
        state.unknown.found += found.len();
        for Found { id, origin, listed } in found {
            let (origin, seen) = (Some(Arc::new(origin)), Some(listed));
            let entry = Entry { origin, seen, is_found: true, ..Entry::new() };
            state.enter(server.index, id, entry);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Which of those that the server lists are the unknown ones is not to be told.
    pub(crate) fn left_alone(&self, unknown: usize, could_be: usize) {
        self.state().unknown.reason.get_or_insert_with(|| {
            format!(
                "{unknown} taken from the pool directly, and the server lists {could_be} of this process that could be these: what \
                 they run was left alone"
            )
        });
    }

    /// What was to be cut is left as it is.
    pub(crate) fn left(&self, key: Key) {
        let mut state = self.state();
        state.unknown.ended_out += 1;
        state.end(key, End::Cut(None));
        drop(state);
        self.changed.notify_one();
    }

    /// The driver has said goodbye on all connections that it had.
    pub(crate) fn all_leave(&self) {
        for entry in self.state().open.values_mut() {
            if entry.standing == Standing::Held {
                (entry.standing, entry.has_said) = (Standing::Leaving, true);
            }
            entry.holder = Holder::Nobody;
        }
        self.changed.notify_one();
    }

    /// The driver has let go of all connections, and said nothing on any.
    pub(crate) fn all_left(&self) {
        let mut state = self.state();
        state.unknown.counts = false;
        for entry in state.open.values_mut() {
            if entry.standing == Standing::Held {
                (entry.standing, entry.waited_for) = (Standing::Left, Instant::now());
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Keeps a connection until somebody tidies it up. Gives it back where a drain has begun.
    #[expect(clippy::result_large_err, reason = "it is the connection that was given")]
    pub(crate) fn keep_untidy(&self, key: Key, connection: Connection) -> Result<(), Connection> {
        let mut state = self.state();
        if state.phase != Phase::Open {
            return Err(connection);
        }
        state.needs_reset.insert(key, connection);
        Ok(())
    }

    pub(crate) fn take_untidy(&self, key: Key) -> Option<Connection> {
        self.state().needs_reset.remove(&key)
    }

    /// As [`keep_untidy`](Self::keep_untidy), of a connection that the guard has lent from a pool of the driver's.
    pub(crate) fn keep_lent(&self, key: Key, conn: Conn) -> Result<(), Conn> {
        let mut state = self.state();
        if state.phase != Phase::Open {
            return Err(conn);
        }
        state.lent_needs_reset.insert(key, conn);
        Ok(())
    }

    pub(crate) fn take_lent(&self, key: Key) -> Option<Conn> {
        self.state().lent_needs_reset.remove(&key)
    }

    pub(crate) fn is_open(&self) -> bool {
        self.state().phase == Phase::Open
    }

    /// The connections are in a pool of the driver's.
    pub(crate) fn of_driver(gauges: Gauges) -> Self {
        Self { driver: Some(gauges), ..Self::default() }
    }

    /// Begins to drain; the drain is over when what this returns is dropped.
    pub(crate) fn begin_drain(&self) -> Draining<'_> {
        let (needs_reset, lent) = {
            let mut state = self.state();
            state.phase = Phase::Draining;
            state.draining_since = Some(Instant::now());
            state.ended = Ends::default();
            state.why_unseen = None;
            state.watchers = 0;
            state.unknown.lent -= state.lent_needs_reset.len();
            (mem::take(&mut state.needs_reset), mem::take(&mut state.lent_needs_reset))
        };
        for (key, conn) in lent {
            self.came_back(key, conn, false);
        }
        for connection in needs_reset.into_values() {
            drop(Object::take(connection));
        }
        Draining(self)
    }

    pub(crate) fn news(&self) -> News {
        let mut state = self.state();
        let (returned, ended) = (mem::take(&mut state.returned), mem::take(&mut state.ended));
        for (key, _) in &returned {
            if let Some(entry) = state.open.get_mut(key) {
                (entry.standing, entry.waited_for) = (Standing::Leaving, Instant::now());
            }
        }
        let unknown = state.unknown(self.driver.as_ref());
        let held =
            state.open.values().filter(|entry| entry.standing == Standing::Held).count() + state.opening + unknown;
        let seeks = state.seeks(self.driver.as_ref());
        let on = |server: &Arc<Server>| {
            let standings =
                state.open.iter().filter(|(key, _)| key.server == server.index).map(|(_, entry)| entry.standing);
            let standings: Vec<_> = standings.collect();
            let is_abandoned = |standing: &Standing| {
                matches!(standing, Standing::Unwanted | Standing::Leaving | Standing::Left | Standing::Broken)
            };
            let abandoned = standings.iter().any(is_abandoned);
            (seeks || !standings.is_empty()).then(|| Whereabouts { server: Arc::clone(server), abandoned })
        };
        let servers = state.servers.iter().filter_map(on).collect();
        News { returned, ended, open: state.open.len(), unknown, held, servers }
    }

    /// A server had no room for another session; and why nobody can ask it, if it is that.
    pub(crate) fn found_full(&self, why_unseen: Option<Error>) {
        let mut state = self.state();
        state.is_full = true;
        state.why_unseen = why_unseen.or_else(|| state.why_unseen.take());
    }

    /// Somebody can ask this server: nobody of the pool has to.
    pub(crate) fn found_room(&self, server: usize) {
        let spare = {
            let mut state = self.state();
            (state.is_full, state.why_unseen) = (false, None);
            state.spare.remove(&server)
        };
        if let Some((key, conn)) = spare {
            self.give_back(key, conn);
        }
    }

    /// Keeps this connection to ask its server with, where that had no room for another session and has work that somebody may
    /// have to stop. Otherwise it is to say goodbye.
    pub(crate) fn keep_spare(&self, key: Key, conn: Conn) -> Option<(Key, Conn)> {
        let mut state = self.state();
        let may_run = |(other, entry): (&Key, &Entry)| {
            *other != key
                && other.server == key.server
                && matches!(entry.standing, Standing::Held | Standing::Unwanted | Standing::Left)
        };
        if !state.is_full || state.spare.contains_key(&key.server) || !state.open.iter().any(may_run) {
            return Some((key, conn));
        }
        state.spare.insert(key.server, (key, conn));
        None
    }

    pub(crate) fn take_spare(&self, server: usize) -> Option<(Key, Conn)> {
        self.state().spare.remove(&server)
    }

    /// A connection that was kept is not needed any more.
    pub(crate) fn give_back(&self, key: Key, conn: Conn) {
        self.state().returned.push((key, conn));
        self.changed.notify_one();
    }

    pub(crate) fn wanted(&self) -> watch::Receiver<Wanted> {
        self.wanted.subscribe()
    }

    /// Wants more of those who watch.
    pub(crate) fn want(&self, more: impl FnOnce(&mut Wanted)) {
        let changed = self.wanted.send_if_modified(|wanted| {
            let before = *wanted;
            more(wanted);
            *wanted != before
        });
        if changed {
            self.changed.notify_one();
        }
    }

    /// The sessions that this server may list.
    pub(crate) fn on(&self, server: usize) -> Vec<Asked> {
        let state = self.state();
        let entries = state.open.iter().filter(|(key, _)| key.server == server);
        entries.map(|(key, entry)| entry.asked(*key)).collect()
    }

    /// The server was asked about a session, and this is what it said.
    pub(crate) fn saw(&self, key: Key, listed: Option<Listed>) {
        let mut state = self.state();
        let draining_since = state.draining_since;
        let Some(entry) = state.open.get_mut(&key) else { return };
        if listed.is_some() {
            entry.seen = listed;
            return;
        }
        // Its connection was dropped in the drain.
        let left_open = entry.dropped.is_some_and(|dropped| draining_since.is_some_and(|since| dropped >= since));
        let end = match (entry.standing, entry.seen) {
            (Standing::Left, None) if left_open => End::Closed,
            (Standing::Leaving, _) | (Standing::Unwanted | Standing::Left | Standing::Broken, Some(_)) => End::Closed,
            (Standing::Failed | Standing::Killed, _) => End::Cut(None),
            // The server has ended it while somebody had it: in order if that was no loss.
            (Standing::Held, Some(seen)) if self.driver.is_some() || !seen.is_busy => End::Closed,
            (Standing::Held, Some(_)) => End::Cut(Some(ended_by_server())),
            // It had ended before.
            (Standing::Held | Standing::Unwanted | Standing::Left | Standing::Broken, None) => End::Uncounted,
        };
        state.end(key, end);
        drop(state);
        self.changed.notify_one();
    }

    /// Nobody can tell these from others that the server lists, which is why. What they have left undone is not waited for; they
    /// are told nothing, and whoever has a connection of one keeps it until what is left is to be `cut`.
    pub(crate) fn unproven(&self, keys: impl IntoIterator<Item = Key>, why: &Error, cut: bool) {
        let mut state = self.state();
        for key in keys {
            let Some(entry) = state.open.get(&key) else { continue };
            let end = match entry.standing {
                Standing::Leaving if entry.has_said => End::Unconfirmed,
                Standing::Held | Standing::Unwanted | Standing::Leaving if !cut => continue,
                Standing::Held | Standing::Unwanted | Standing::Leaving | Standing::Left => End::Cut(Some(why.clone())),
                Standing::Broken => End::Uncounted,
                Standing::Failed | Standing::Killed => End::Cut(None),
            };
            state.end(key, end);
        }
        drop(state);
        self.answered.notify_one();
        self.changed.notify_one();
    }

    /// The goodbye of a session is on its way.
    pub(crate) fn said(&self, key: Key) {
        if let Some(entry) = self.state().open.get_mut(&key) {
            (entry.has_said, entry.holder) = (true, Holder::Nobody);
        }
    }

    /// The connection of this session was dropped in the middle of an answer.
    pub(crate) fn gave_up(&self, key: Key) {
        if let Some(entry) = self.state().open.get_mut(&key) {
            (entry.standing, entry.waited_for, entry.holder) = (Standing::Left, Instant::now(), Holder::Nobody);
        }
    }

    /// The goodbye of a session has failed.
    pub(crate) fn failed(&self, key: Key, failure: mysql_async::Error) {
        let mut state = self.state();
        if let Some(entry) = state.open.get_mut(&key)
            && entry.standing == Standing::Leaving
        {
            entry.holder = Holder::Nobody;
            match failure {
                // Of what was left of results: a statement that was stopped, for one. The driver takes it for the goodbye's, and has
                // closed the connection instead.
                mysql_async::Error::Server(_) => {
                    (entry.standing, entry.dropped) = (Standing::Left, Some(Instant::now()));
                }
                // A connection that is broken was so before: the server's side of it may have ended long ago.
                _ if error::is_broken(&failure) => entry.standing = Standing::Broken,
                _ => entry.standing = Standing::Failed,
            }
        }
        tracing::debug!(session = key.id, error = %failure, "a session could not say goodbye");
    }

    /// The server was told to stop so many statements.
    pub(crate) fn cancelled(&self, statements: usize) {
        self.state().ended.cancelled += statements;
        self.changed.notify_one();
    }

    /// The server was told to end this session.
    pub(crate) fn killed(&self, key: Key) {
        if let Some(entry) = self.state().open.get_mut(&key) {
            entry.standing = Standing::Killed;
        }
    }

    /// Nothing is opened any more, and what is still in the book is cut.
    pub(crate) fn close_book(&self) -> Ends {
        let (ended, returned) = {
            let mut state = self.state();
            state.phase = Phase::Over;
            // What has come back without having been found was said goodbye to by the driver.
            let unknown = state.unknown(self.driver.as_ref());
            let unseen = state.unknown.most.saturating_sub(state.unknown.found + unknown);
            state.ended.cut += unknown;
            if mem::take(&mut state.unknown.counts) {
                state.ended.unconfirmed += unseen;
            }
            let open: Vec<Key> = state.open.keys().copied().collect();
            let why = state.why_unseen.take();
            for key in open {
                state.end(key, End::Cut(why.clone()));
            }
            (mem::take(&mut state.ended), (mem::take(&mut state.returned), mem::take(&mut state.spare)))
        };
        drop(returned);
        ended
    }

    /// Why some of those that others have were left alone, if they were.
    pub(crate) fn why_left_alone(&self) -> Option<String> {
        self.state().unknown.reason.take()
    }

    /// Somebody who watches has opened a session, which is in nobody's way until it is left behind.
    pub(crate) fn watcher_came(&self) {
        self.state().watchers += 1;
    }

    pub(crate) fn watcher_left(&self) {
        self.state().watchers -= 1;
    }

    /// How many of those who watch have left a session behind.
    pub(crate) fn watchers(&self) -> usize {
        self.state().watchers
    }

    /// Nobody can ask for these, which is why: whether they have ended will not be known.
    pub(crate) fn unseen(&self, keys: impl IntoIterator<Item = Key>, why: &Error) {
        let mut state = self.state();
        for key in keys {
            state.end(key, End::Cut(Some(why.clone())));
        }
        drop(state);
        self.answered.notify_one();
        self.changed.notify_one();
    }
}

impl SessionTable {
    /// This server, which is entered where it is new.
    fn server(&mut self, address: &Address, opts: &Opts) -> Arc<Server> {
        let known =
            self.servers.iter().find(|server| server.address == *address && server.opts().user() == opts.user());
        known.cloned().unwrap_or_else(|| {
            let index = self.servers.len();
            let server = Arc::new(Server { index, address: address.clone(), opts: Mutex::new(opts.clone()) });
            self.servers.push(Arc::clone(&server));
            server
        })
    }

    fn enter(&mut self, server: usize, id: u32, entry: Entry) -> Key {
        let key = Key { server, id, entered: self.entered };
        self.entered += 1;
        self.open.insert(key, entry);
        key
    }

    fn entry_of(&mut self, conn: &Conn) -> Option<(Key, &mut Entry)> {
        let (id, place) = (conn.id(), place(conn));
        let found = self.open.iter_mut().find(|(key, entry)| key.id == id && entry.conn == place);
        found.map(|(key, entry)| (*key, entry))
    }

    /// Whether the pool's one server is to be asked which of its sessions others have.
    fn seeks(&self, driver: Option<&Gauges>) -> bool {
        self.unknown.seeks && self.servers.len() == 1 && self.unknown(driver) > 0
    }
}

impl Entry {
    fn new() -> Self {
        Self {
            origin: None,
            standing: Standing::Held,
            has_said: false,
            waited_for: Instant::now(),
            dropped: None,
            seen: None,
            holder: Holder::Others,
            conn: 0,
            is_found: false,
            is_the_drains: false,
        }
    }

    fn has_left(&self) -> bool {
        matches!(self.standing, Standing::Left | Standing::Broken)
    }

    fn asked(&self, key: Key) -> Asked {
        Asked {
            key,
            origin: self.origin.clone(),
            is_leaving: matches!(self.standing, Standing::Unwanted | Standing::Leaving),
            has_left: self.has_left(),
            waited_for: self.waited_for,
            is_found: self.is_found,
        }
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Sessions").field("phase", &state.phase).field("open", &state.open.len()).finish()
    }
}

fn ended_by_server() -> Error {
    Error::new(ErrorKind::Incomplete, "the server has ended a session in the middle of a statement")
}

/// A session that is being opened.
pub(crate) struct BeingOpened {
    began: Instant,
    sessions: Arc<Sessions>,
    has_entered: AtomicBool,
}

impl BeingOpened {
    /// Whether its session is in the book.
    pub(crate) fn has_entered(&self) -> bool {
        // Relaxed: only who enters it asks.
        self.has_entered.load(Ordering::Relaxed)
    }

    /// Enters the session in the book.
    pub(crate) fn enter(&self, address: &Address, opts: &Opts, id: u32) -> Key {
        let mut state = self.sessions.state();
        let server = state.server(address, opts);
        *server.opts.lock().unwrap_or_else(PoisonError::into_inner) = opts.clone();
        let key = state.enter(server.index, id, Entry::new());
        self.has_entered.store(true, Ordering::Relaxed);
        key
    }

    /// The session is open, and its server has said which one it is, if it does.
    pub(crate) fn is_open(&self, key: Key, origin: Option<Origin>) {
        self.sessions.latency.saw(self.began.elapsed());
        let mut state = self.sessions.state();
        state.is_full = false;
        let Some(origin) = origin.map(Arc::new) else { return };
        // Those from before the server was started again.
        state.open.retain(|other, entry| {
            let is_over = other.server == key.server && origin.relation(entry.origin.as_deref()) == Relation::Over;
            !(is_over && entry.has_left())
        });
        if let Some(entry) = state.open.get_mut(&key) {
            entry.origin = Some(origin);
        }
    }
}

impl Drop for BeingOpened {
    fn drop(&mut self) {
        self.sessions.state().opening -= 1;
        self.sessions.changed.notify_one();
    }
}

/// Ends the drain, also where it is dropped at its deadline.
pub(crate) struct Draining<'a>(&'a Sessions);

impl Drop for Draining<'_> {
    fn drop(&mut self) {
        self.0.close_book();
        self.0.spare.let_go();
    }
}
