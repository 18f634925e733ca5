//! Where the ends of sessions are seen whose sockets their driver has: in the kernel.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::time::sleep;
use winddown_net::own_sockets::{Connection, Open, OwnSockets, Peer};

/// How often it is looked: at first, and at most. The kernel has no event for that.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// What one drain has seen. Looking takes the kernel some milliseconds, in which nobody else gets on: so all look together.
#[derive(Default)]
pub(crate) struct Sight {
    own: Mutex<Option<OwnSockets>>,
    open: Mutex<Option<Seen>>,
}

struct Seen {
    open: Open,
    /// When the look began: what has been opened since may not be in it.
    at: Instant,
    /// When it is worth another look.
    until: Instant,
}

impl Sight {
    /// The connection of the session with this at its server's other end. `None` where that is none of this process.
    pub(crate) fn connection(&self, peer: &Peer) -> Option<Connection> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = own.as_ref().and_then(|own| own.of(peer)) {
            return Some(known);
        }
        own.insert(OwnSockets::now()).of(peer)
    }

    /// Ready when the server has closed its side.
    pub(crate) async fn ended(&self, connection: Connection) {
        let (mut since, mut pause) = (Instant::now(), PAUSES.0);
        loop {
            let until = match self.look(&connection, since) {
                Look::Open(until) => {
                    since = Instant::now();
                    until
                }
                Look::Early(until) => until,
                Look::Ended => return,
            };
            sleep(pause.max(until.saturating_duration_since(Instant::now()))).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Whether this one is open, by a look that began at this moment or later.
    fn look(&self, connection: &Connection, since: Instant) -> Look {
        let mut seen = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match &*seen {
            Some(seen) if now < seen.until && seen.at < since => return Look::Early(seen.until),
            Some(seen) if now < seen.until => {}
            _ => {
                let open = Open::now();
                let until = Instant::now() + PAUSES.0.max(open.rest());
                *seen = Some(Seen { open, at: now, until });
            }
        }
        match &*seen {
            Some(seen) if seen.open.contains(connection) => Look::Open(seen.until),
            _ => Look::Ended,
        }
    }
}

/// What a look says of a connection.
enum Look {
    /// It was open; until when another look is not worth it.
    Open(Instant),
    /// Until when none is made, where the last one was too early for it.
    Early(Instant),
    Ended,
}

impl fmt::Debug for Sight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sight").finish_non_exhaustive()
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn what_was_opened_after_a_look_has_not_ended_by_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = || TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let sight = Sight::default();
        let connection = |ours: &TcpStream| sight.connection(&Peer::new(ours.local_addr().unwrap(), None)).unwrap();

        let before = connect();
        assert!(matches!(sight.look(&connection(&before), Instant::now()), Look::Open(_)));
        sight.open.lock().unwrap().as_mut().unwrap().until += Duration::from_secs(3600);
        let after = connect();
        assert!(matches!(sight.look(&connection(&after), Instant::now()), Look::Early(_)));
        sight.open.lock().unwrap().as_mut().unwrap().until = Instant::now();
        assert!(matches!(sight.look(&connection(&after), Instant::now()), Look::Open(_)));
    }
}
