//! The drain of a pool.

use std::{future::pending, sync::Arc};

use sqlx::Connection;
use tokio::{
    sync::{Mutex, oneshot},
    time::{Instant, sleep},
};
use winddown_core::{
    Error, ErrorKind,
    adapter::{Drain, Latency, News, Source},
};

use crate::{
    asker::Asker,
    backend::{Backend, Known},
    book::{Book, Taken},
    error::error,
};

/// Ends every session: what is idle at once, what comes back as it comes, and what others have taken from the pool when they give it
/// back.
pub(crate) async fn say<DB: Backend>(
    book: &Arc<Book<DB>>,
    known: &Arc<Known<DB>>,
    latency: &Arc<Latency>,
    drain: &Drain,
) -> Result<(), Error> {
    let draining = Draining { book, known, turn: Arc::default(), began: Instant::now() };
    book.begin_drain();
    let (over, is_over) = oneshot::channel();
    let asking = async {
        if DB::IS_SERVER {
            Asker::new(book, latency).run(drain, is_over).await;
        }
    };
    let ending = async {
        let ended = tokio::select! {
            ended = drain.sessions(&draining) => ended,
            never = close(book, drain) => never,
        };
        drain.count(book.close(), 0);
        if book.is_known_to_be_behind_another() {
            drain.reason(BEHIND_ANOTHER.to_owned());
        }
        drop(over);
        ended
    };
    let (ended, ()) = tokio::join!(ending, asking);
    ended.map(drop)
}

const BEHIND_ANOTHER: &str = "the server does not see this process at the other end of its sessions, but a pooler, or an address that was \
                              translated: none is asked about, and nothing is stopped there";

/// Closes the pool: the driver refuses from then on, closes what comes back to it, and tells when there is nothing left, in the book.
/// Not before what is on its way back is there: a pool that is closed does not give it.
async fn close<DB: Backend, T>(book: &Arc<Book<DB>>, drain: &Drain) -> T {
    let are_back = async {
        while book.are_returning() {
            book.came_back.notified().await;
        }
    };
    tokio::select! {
        () = are_back => {}
        () = drain.until_cancel() => {}
    }
    book.take_idle();
    if book.others() > 0 {
        // The driver gives back in a task what was dropped a moment ago, and tells nobody.
        sleep(drain.grace()).await;
        book.take_idle();
    }
    let closing = book.pool.close();
    let looking = async {
        while book.are_saying() {
            book.came_back.notified().await;
        }
        book.set_others(book.others());
    };
    tokio::join!(closing, looking);
    book.pool_is_empty();
    pending().await
}

/// Ready when nothing runs on it any more. What a statement whose future was dropped has come to is nobody's business.
pub(crate) async fn until_answered(conn: &mut impl Connection) -> Result<(), sqlx::Error> {
    for _ in 0..MOST_ANSWERS {
        match conn.ping().await {
            Err(sqlx::Error::Database(_)) => {}
            answered => return answered,
        }
    }
    conn.ping().await
}

/// One refusal is read for each: a future that was dropped has left one statement, and perhaps what sqlx rolls back behind it.
const MOST_ANSWERS: usize = 4;

/// A pool, as a drain ends its sessions.
struct Draining<'a, DB: Backend> {
    book: &'a Arc<Book<DB>>,
    known: &'a Arc<Known<DB>>,
    /// Two connections with one file that close at the same moment each take the other for one that stays, and leave its log.
    turn: Arc<Mutex<()>>,
    began: Instant,
}

impl<DB: Backend> Source for Draining<'_, DB> {
    type Session = Taken<DB>;

    fn news(&self, _: &Drain) -> News<Taken<DB>> {
        self.book.news()
    }

    async fn changed(&self) {
        self.book.changed.notified().await;
    }

    fn close(&self, taken: Taken<DB>) -> impl Future<Output = ()> + Send + 'static {
        let (known, turn) = (Arc::clone(self.known), Arc::clone(&self.turn));
        async move {
            let Taken { mut conn, place } = taken;
            // Answered when all that was asked for before is, and by a server that is there.
            if until_answered(&mut *conn).await.is_err() {
                drop(conn.detach());
                return place.has_ended(None);
            }
            if place.session().is_none()
                && let Ok(session) = DB::introduce(&mut conn, &known).await
            {
                place.set_session(place.book().proven(session).await);
            }
            let _turn = if DB::IS_SERVER { None } else { Some(turn.lock().await) };
            place.says_goodbye();
            match conn.close().await {
                Ok(()) => place.has_said_goodbye(),
                // It was ended by somebody else.
                Err(sqlx::Error::Io(_)) => place.has_ended(None),
                Err(source) => {
                    place.has_ended(Some(error(ErrorKind::Incomplete, "a session could not say goodbye", source)));
                }
            }
        }
    }

    fn stop_abandoned(&self, drain: &Drain) -> Option<Instant> {
        if DB::IS_SERVER { None } else { self.book.interrupt(drain, self.began) }
    }
}
