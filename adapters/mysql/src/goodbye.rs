//! The goodbye of all sessions: each connection that comes back says it, and somebody watches each server until it lists
//! none of them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use mysql_async::{Conn, Opts};
use tokio::{
    select,
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::Instrument as _;
use winddown_core::{Error, adapter::Drain};
use winddown_net::own_sockets::OwnSockets;

use crate::{
    connect::Connector,
    error,
    sessions::{Asked, Key, News, Server, Sessions, Wanted, Whereabouts, say_goodbye},
    watcher::{Kill, Sight, Watcher, cannot_watch, unproven},
};

/// Between two tries to open a session on a server that is full: its own sessions are about to end.
const FULL_PAUSE: Duration = Duration::from_millis(10);

/// How long the credentials provider may take. What the last session was opened with is there besides.
const CREDENTIALS_PATIENCE: Duration = Duration::from_millis(100);

/// Between two questions about a statement that nobody waits for, at most: the server has no event for its end.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// A server that has not noticed within this time that the driver has closed a connection will not notice: something
/// between them has swallowed it.
const ORPHAN_TIMEOUT: Duration = Duration::from_millis(250);

/// How long one of the pool's sessions may take to be ready to ask: what is left of its results is read before.
const SPARE_PATIENCE: Duration = Duration::from_millis(250);

/// The session that asks does not leave to be opened again within this time.
const REOPENED_AFTER: Duration = Duration::from_secs(1);

/// Steps 2, 3 and 5 of the drain protocol, for sessions that nobody is handed any more. `empty` takes the idle ones out
/// of the pool.
pub(crate) async fn say(connector: &Arc<Connector>, empty: impl Fn() + Send, drain: &Drain) -> Result<(), Error> {
    let sessions = &connector.sessions;
    // Before those who watch, so that it is dropped after them.
    let _rest = Rest { sessions, drain };
    let mut leaving = JoinSet::new();
    let mut watching = JoinSet::new();
    let mut watched = HashSet::new();
    let mut settled = false;
    let mut limit = None;
    let wanted = sessions.wanted();
    // Later than that there is no time to open a session first: all reserves together are at most half of the time.
    let now = Instant::now();
    let half = drain.halfway();
    let grace = now + drain.grace();
    loop {
        empty();
        let News { returned, ended, open, unknown, held, servers } = sessions.news();
        drain.count(ended, open + unknown);
        if !returned.is_empty() {
            sessions.want(|wanted| wanted.left += returned.len());
        }
        for (key, conn) in returned.into_iter().filter_map(|(key, conn)| sessions.keep_spare(key, conn)) {
            // What is said of it belongs to this drain.
            leaving.spawn(leave(Arc::clone(sessions), key, conn).in_current_span());
        }
        if settled && held == 0 {
            sessions.want(|wanted| wanted.watch = true);
        }
        let now_wanted = *wanted.borrow();
        let Wanted { prepare, .. } = now_wanted;
        for Whereabouts { server, abandoned } in servers {
            let wants = prepare || now_wanted.asks() || (now_wanted.abandoned && abandoned);
            if wants && watched.insert(server.index) {
                let watch = Watch::new(connector, Arc::clone(&server), drain.grace(), half);
                watching.spawn(async move { (server.index, watch.run().await) }.in_current_span());
            }
        }
        let is_over = limit.is_some() || (settled && held == 0);
        if is_over && open == 0 && watching.is_empty() {
            break;
        }
        select! {
            () = sessions.changed.notified() => {}
            Some(_) = leaving.join_next() => {}
            Some(over) = watching.join_next() => match over {
                Ok((server, result)) => {
                    watched.remove(&server);
                    if let Err(failure) = result {
                        drain.note(&failure);
                    }
                }
                Err(panicked) => drain.note(&error::panicked(panicked)),
            },
            () = drain.until_returned(), if !settled => settled = true,
            () = sleep_until(half), if !prepare => sessions.want(|wanted| wanted.prepare = true),
            () = sleep_until(grace), if !now_wanted.abandoned => sessions.want(|wanted| wanted.abandoned = true),
            () = drain.until_cut(), if limit.is_none() => {
                sessions.want(|wanted| wanted.cut = true);
                // For the server's answers.
                limit = Some(drain.halfway());
            }
            () = sleep_until(limit.unwrap_or_else(Instant::now)), if limit.is_some() => break,
        }
    }
    Ok(())
}

/// Counts what is left as cut when it is dropped: at the end of a goodbye, also where the deadline drops that.
struct Rest<'a> {
    sessions: &'a Sessions,
    drain: &'a Drain,
}

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        self.drain.count(self.sessions.close_book(), 0);
        if let Some(reason) = self.sessions.why_left_alone() {
            self.drain.reason(reason);
        }
        self.drain.count_left_behind(self.sessions.watchers());
    }
}

async fn leave(sessions: Arc<Sessions>, key: Key, conn: Conn) {
    match say_goodbye(conn).await {
        Ok(()) => sessions.said(key),
        Err(failure) => sessions.failed(key, failure),
    }
    sessions.dropped();
    sessions.want(|wanted| wanted.left += 1);
}

/// Somebody who asks one server until it lists none of our sessions.
struct Watch {
    connector: Arc<Connector>,
    server: Arc<Server>,
    wanted: watch::Receiver<Wanted>,
    watcher: Option<Watcher>,
    /// Which of the pool's sessions it is, where there is no room for another.
    spare: Option<Key>,
    /// How long what nobody waits for may go on.
    grace: Duration,
    /// When its session must be there in any case.
    prepare_at: Instant,
    /// Whose statements were stopped.
    cancelled: HashSet<Key>,
    /// Which of those that the driver has dropped wait for it nevertheless, and since when.
    forsaken: HashMap<Key, Instant>,
    /// What was wanted when it was last looked at.
    last: Wanted,
    /// When there was last a reason to look closely: something has ended, or was told to.
    progress: Instant,
}

impl Watch {
    fn new(connector: &Arc<Connector>, server: Arc<Server>, grace: Duration, prepare_at: Instant) -> Self {
        Self {
            grace,
            prepare_at,
            connector: Arc::clone(connector),
            wanted: connector.sessions.wanted(),
            server,
            watcher: None,
            spare: None,
            cancelled: HashSet::new(),
            forsaken: HashMap::new(),
            last: Wanted::default(),
            progress: Instant::now(),
        }
    }

    async fn run(mut self) -> Result<(), Error> {
        let mut failed = false;
        loop {
            let mut asked = self.connector.sessions.on(self.server.index);
            asked.retain(|asked| Some(asked.key) != self.spare);
            if asked.is_empty() && self.give_back() {
                // Somebody asks about that one, too.
                continue;
            }
            let is_cut = self.wanted.borrow().cut;
            let seeks = !is_cut && self.connector.sessions.seeks();
            if !seeks && (asked.is_empty() || (self.spare.is_none() && self.is_of_no_use(&asked))) {
                break;
            }
            match self.step(asked).await {
                Ok(()) => failed = false,
                Err(failure) => {
                    let sessions = &self.connector.sessions;
                    let had_one = self.watcher.take().is_some();
                    if let Some(spare) = self.spare.take() {
                        sessions.failed(spare, failure);
                        continue;
                    }
                    // Once more: its session may have been ended by somebody else.
                    if had_one {
                        sessions.watcher_left();
                        if !failed {
                            failed = true;
                            continue;
                        }
                    }
                    let why = cannot_watch(&self.server.address, failure);
                    self.unseen(&why);
                    return Err(why);
                }
            }
        }
        if let Some(watcher) = self.watcher {
            watcher.leave().await?;
            self.connector.sessions.watcher_left();
        }
        Ok(())
    }

    /// The session of the pool that asks goes the way of the others. Whether there was one.
    fn give_back(&mut self) -> bool {
        let Some(spare) = self.spare.take() else { return false };
        if let Some(watcher) = self.watcher.take() {
            self.connector.sessions.give_back(spare, watcher.into_conn());
        }
        true
    }

    /// Gets the session that asks, as soon as the server has room for it; until then one of the pool's asks in its place, if
    /// there is one that nobody has.
    async fn open(&mut self) -> Result<(), mysql_async::Error> {
        let sessions = &self.connector.sessions;
        let mut way = Way::to(&self.connector, &self.server).await;
        loop {
            match way.open().await {
                Err(failure) if error::is_full(&failure) => {
                    sessions.found_full(Some(cannot_watch(&self.server.address, failure)));
                    let Some((key, conn)) = sessions.take_spare(self.server.index) else {
                        sleep(FULL_PAUSE).await;
                        continue;
                    };
                    match timeout(SPARE_PATIENCE, Watcher::over(conn)).await {
                        Ok(Ok(watcher)) => (self.watcher, self.spare) = (Some(watcher), Some(key)),
                        Ok(Err(failure)) => {
                            sessions.failed(key, failure);
                            continue;
                        }
                        Err(_) => {
                            sessions.gave_up(key);
                            continue;
                        }
                    }
                }
                opened => {
                    self.watcher = Some(opened?);
                    sessions.watcher_came();
                    sessions.found_room(self.server.index);
                }
            }
            return Ok(());
        }
    }

    /// What nobody waits for has ended, and nothing else is wanted yet: its session would stand among those that somebody has.
    fn is_of_no_use(&self, asked: &[Asked]) -> bool {
        let wanted = *self.wanted.borrow();
        // Not where it would be opened again at once.
        let is_early = self.prepare_at.saturating_duration_since(Instant::now()) > REOPENED_AFTER;
        is_early && !wanted.prepare && !wanted.asks() && !asked.iter().any(|asked| asked.is_leaving || asked.has_left)
    }

    /// What is wanted now: to be ready, or to ask.
    async fn step(&mut self, asked: Vec<Asked>) -> Result<(), mysql_async::Error> {
        let wanted = *self.wanted.borrow_and_update();
        if wanted != self.last {
            (self.last, self.progress) = (wanted, Instant::now());
        }
        if self.watcher.is_none() {
            // What is to be asked may be something else by then.
            self.open().await?;
        } else if wanted.asks() || (wanted.abandoned && asked.iter().any(|asked| asked.is_leaving || asked.has_left)) {
            self.ask(wanted, asked).await?;
            self.pause().await;
        } else {
            // Its sender is in the book.
            let _ = self.wanted.changed().await;
        }
        Ok(())
    }

    /// One question, and what follows from its answer.
    async fn ask(&mut self, wanted: Wanted, asked: Vec<Asked>) -> Result<(), mysql_async::Error> {
        let Some(watcher) = &mut self.watcher else { return Ok(()) };
        let sessions = &self.connector.sessions;
        let mut asked = asked;
        // The server of some has yet to say which one it is.
        asked.retain(|asked| asked.origin.is_some() || asked.is_leaving || asked.has_left || wanted.cut);
        let sights = watcher.look(&asked).await?;
        let mut busy = Vec::new();
        let mut to_kill = Vec::new();
        let mut elsewhere = Vec::new();
        for (asked, sight) in asked.iter().zip(sights) {
            let key = asked.key;
            let ours = match sight {
                Sight::Ours(ours) => ours,
                Sight::Gone => {
                    sessions.saw(key, None);
                    self.progress = Instant::now();
                    continue;
                }
                Sight::Unproven => {
                    elsewhere.push(key);
                    continue;
                }
            };
            sessions.saw(key, Some(ours.listed));
            let is_forsaken = asked.has_left && ours.listed.rests && {
                let since = self.forsaken.entry(key).or_insert_with(Instant::now);
                since.elapsed() > ORPHAN_TIMEOUT
            };
            if wanted.cut && asked.is_found {
                // It was found by counting, which is enough for a statement of nobody else's to be stopped, and no more.
                sessions.left(key);
            } else if wanted.cut || is_forsaken {
                to_kill.push(ours);
            } else if ours.listed.is_busy && (wanted.cancel || asked.is_abandoned_for(self.grace, ORPHAN_TIMEOUT)) {
                // Also of one that is to say goodbye: what is left of its results may take its time.
                busy.push(ours);
            }
        }
        if !elsewhere.is_empty() {
            sessions.unproven(elsewhere, &unproven(&self.server.address), wanted.cut);
        }
        let taken = watcher.kill(Kill::Query, &busy).await?;
        let fresh = taken.into_iter().filter(|key| self.cancelled.insert(*key)).count();
        sessions.cancelled(fresh);
        if fresh > 0 {
            self.progress = Instant::now();
        }
        for key in watcher.kill(Kill::Session, &to_kill).await? {
            sessions.killed(key);
        }
        self.seek(wanted).await?;
        self.connector.sessions.answered.notify_one();
        Ok(())
    }

    /// Looks for those that others have taken from a pool of the driver's, and that are not in the book. All of them are this
    /// user's, and on sockets of this process, in whatever database: where the server lists [exactly](OwnSockets::exactly) as many of
    /// such, it is these.
    async fn seek(&mut self, wanted: Wanted) -> Result<(), mysql_async::Error> {
        let sessions = &self.connector.sessions;
        let Some(watcher) = self.watcher.as_mut().filter(|_| !wanted.cut && sessions.seeks()) else { return Ok(()) };
        let expected = sessions.unknown();
        let Some(others) = watcher.others(&sessions.on(self.server.index), &self.server.address).await? else {
            return Ok(());
        };
        let found = OwnSockets::now().exactly(expected, others);
        // Where some have come back meanwhile it is asked anew.
        if sessions.unknown() == expected {
            match found {
                Ok(found) => sessions.found(&self.server, found),
                Err(could_be) if wanted.cancel => sessions.left_alone(expected, could_be),
                Err(_) => {}
            }
        }
        sessions.changed.notify_one();
        Ok(())
    }

    /// Asks again at once while sessions end, and less and less often where one takes its time.
    async fn pause(&mut self) {
        let pause = (self.progress.elapsed() / 8).min(LONGEST_PAUSE);
        if pause >= Duration::from_millis(1) {
            select! {
                () = sleep(pause) => {}
                // Its sender is in the book.
                _ = self.wanted.changed() => {}
            }
        }
    }

    fn unseen(&self, why: &Error) {
        let server = self.server.index;
        let sessions = &self.connector.sessions;
        sessions.cannot_seek();
        sessions.unseen(sessions.on(server).into_iter().map(|asked| asked.key), why);
    }
}

/// How the session that watches is opened.
struct Way<'a> {
    connector: &'a Connector,
    server: &'a Server,
    known: Opts,
    opts: Opts,
}

impl<'a> Way<'a> {
    async fn to(connector: &'a Connector, server: &'a Server) -> Self {
        let known = server.opts();
        let opts = fresh(connector, &known).await.unwrap_or_else(|| known.clone());
        Self { connector, server, known, opts }
    }

    async fn open(&mut self) -> Result<Watcher, mysql_async::Error> {
        let Self { connector, server, known, opts } = self;
        let wanted = connector.sessions.wanted();
        let is_draining = !connector.sessions.is_open();
        if is_draining {
            // What it opens takes their place.
            connector.sessions.spare.let_go();
        }
        loop {
            match Watcher::open(&server.address, opts, connector.limit).await {
                // Sessions that end give theirs back.
                Err(failure) if error::is_out_of_descriptors(&failure) && is_draining && !wanted.borrow().cut => {
                    sleep(FULL_PAUSE).await;
                }
                Err(failure) if error::is_refusal(&failure) && opts != known => *opts = known.clone(),
                opened => return opened,
            }
        }
    }
}

/// Opens the session that watches, as soon as the server has room for it.
#[cfg(feature = "buffer")]
pub(crate) async fn open(connector: &Connector, server: &Server) -> Result<Watcher, mysql_async::Error> {
    let mut way = Way::to(connector, server).await;
    loop {
        match way.open().await {
            Err(failure) if error::is_full(&failure) => sleep(FULL_PAUSE).await,
            opened => return opened,
        }
    }
}

/// Credentials that are valid now, of the user whose sessions are there: others are not shown to anybody else.
async fn fresh(connector: &Connector, known: &Opts) -> Option<Opts> {
    let opts = timeout(CREDENTIALS_PATIENCE, connector.login()).await.ok()?.ok()?;
    (opts.user() == known.user()).then_some(opts)
}
