//! SQLite: a session is a file that this process has open, and what runs in it is interrupted in this process.

use std::{
    hash::{Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use sqlx::{Error, Sqlite, SqliteConnection};
use winddown_core::Capabilities;

use super::{Backend, Known, Server, roll_back};

impl Backend for Sqlite {}

/// Whether what a connection runs is to stop: SQLite asks that every few instructions.
#[derive(Debug, Clone, Default)]
#[doc(hidden)]
pub struct Interrupt(Arc<Asked>);

#[derive(Debug, Default)]
struct Asked {
    is_asked: AtomicBool,
    /// Something ran then, and has stopped.
    has_stopped: AtomicBool,
}

impl PartialEq for Interrupt {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Interrupt {}

impl Hash for Interrupt {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

/// How many instructions of its virtual machine there are between two of its questions: some microseconds.
const INSTRUCTIONS: i32 = 1000;

impl Server for Sqlite {
    const RESOURCE: &'static str = "sqlite";
    const URL: &'static str = "sqlite://";
    const CAPABILITIES: Capabilities = Capabilities::ALL.without_all_sessions();
    const IS_SERVER: bool = false;
    type Session = Interrupt;
    type Known = ();

    /// One for each checkout: the connection has nothing to know it by, and what it is asked stays in this process.
    async fn introduce(conn: &mut SqliteConnection, _: &Known<Self>) -> Result<Option<Interrupt>, Error> {
        let interrupt = Interrupt::default();
        let asked = interrupt.clone();
        let goes_on = move || {
            let is_asked = asked.0.is_asked.load(Ordering::Relaxed);
            if is_asked {
                asked.0.has_stopped.store(true, Ordering::Relaxed);
            }
            !is_asked
        };
        conn.lock_handle().await?.set_progress_handler(INSTRUCTIONS, goes_on);
        Ok(Some(interrupt))
    }

    async fn clean(conn: &mut SqliteConnection) -> Result<(), Error> {
        roll_back::<Self>(conn).await
    }

    fn interrupt(session: &Interrupt) {
        session.0.is_asked.store(true, Ordering::Relaxed);
    }

    fn has_stopped(session: &Interrupt) -> bool {
        session.0.has_stopped.load(Ordering::Relaxed)
    }
}
