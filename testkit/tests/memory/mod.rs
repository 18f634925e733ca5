//! The in-memory resource as a harness.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use winddown_core::{
    BoxError,
    memory::{Memory, MemorySession, Server},
};
use winddown_testkit::{
    Harness, Need, ServerUse, Setup, Stranger, gone,
    scene::{BUDGET, ENDLESS, lifecycle},
};

/// The server is a value in the same process. Its network is no other thing than itself: cut, it looks as it does paused.
pub(crate) struct InMemory {
    server: Server,
    /// Who have a session, and are inside of a statement.
    strangers: Arc<AtomicUsize>,
}

impl InMemory {
    /// How many of these are the resource's.
    fn without_strangers(&self, listed: usize) -> Result<usize, BoxError> {
        let strangers = self.strangers.load(Ordering::SeqCst);
        listed.checked_sub(strangers).ok_or_else(|| format!("{listed} are listed, and {strangers} are others'").into())
    }
}

impl Harness for InMemory {
    type Resource = Memory;

    const NAME: &'static str = "memory";
    const LACKS: &'static [(Need, &'static str)] =
        &[(Need::Password, "nobody logs in"), (Need::Proxy, "there is no network")];

    async fn start(_: ServerUse) -> Result<Self, BoxError> {
        Ok(Self { server: Server::new(), strangers: Arc::default() })
    }

    fn resource(&self, setup: &Setup) -> Memory {
        Memory::on(&self.server, "memory").size(setup.size)
    }

    async fn run(&self, session: &mut MemorySession, takes: Duration) -> Result<(), BoxError> {
        Ok(session.run(takes).await?)
    }

    async fn ping(&self, session: &mut MemorySession) -> Result<(), BoxError> {
        Ok(session.ping().await?)
    }

    /// A session alone: the server ends all that are idle where it is told to, and does not ask whose they are.
    async fn stranger(&self) -> Result<Stranger, BoxError> {
        let lifecycle = lifecycle(BUDGET);
        let guard = lifecycle.guard_as("stranger", Memory::on(&self.server, "stranger"));
        let session = guard.get().await?;
        let (before, strangers) = (self.server.running(), Arc::clone(&self.strangers));
        let released = lifecycle.draining();
        let waits = async move {
            tokio::select! {
                ended = session.run(ENDLESS) => Err(format!("it has ended: {ended:?}").into()),
                () = released => Ok(()),
            }
        };
        let lets_go = async move {
            let report = lifecycle.drain().await;
            strangers.fetch_sub(1, Ordering::SeqCst);
            let ended = report.resource("stranger").map(|row| (row.sessions.closed, row.sessions.cancelled));
            if ended == Some((1, 1)) { Ok(()) } else { Err(format!("it was gone before: {report}").into()) }
        };
        let stranger = Stranger::new(waits, lets_go);
        while self.server.running() == before {
            tokio::task::yield_now().await;
        }
        self.strangers.fetch_add(1, Ordering::SeqCst);
        Ok(stranger)
    }

    async fn rows(&self) -> Result<usize, BoxError> {
        Ok(self.server.rows())
    }

    async fn sessions(&self) -> Result<usize, BoxError> {
        self.without_strangers(self.server.sessions())
    }

    async fn running(&self) -> Result<usize, BoxError> {
        self.without_strangers(self.server.running())
    }

    async fn pause(&self) -> Result<(), BoxError> {
        self.server.pause();
        Ok(())
    }

    async fn resume(&self) -> Result<(), BoxError> {
        self.server.resume();
        Ok(())
    }

    async fn kill(&self) -> Result<(), BoxError> {
        self.server.kill();
        Ok(())
    }

    async fn start_again(&self) -> Result<(), BoxError> {
        self.server.start();
        Ok(())
    }

    async fn partition(&self) -> Result<(), BoxError> {
        self.pause().await
    }

    async fn heal(&self) -> Result<(), BoxError> {
        self.resume().await
    }

    async fn slow(&self, by: Duration) -> Result<(), BoxError> {
        self.server.slow(by);
        Ok(())
    }

    async fn full(&self, full: bool) -> Result<(), BoxError> {
        self.server.refuse(if full { usize::MAX } else { 0 });
        Ok(())
    }

    async fn close_idle(&self) -> Result<(), BoxError> {
        self.server.close_idle();
        Ok(())
    }

    async fn complaints(&self) -> Result<Vec<String>, BoxError> {
        let losses = self.server.losses();
        Ok(if losses == 0 { Vec::new() } else { vec![format!("{losses} sessions ended without a goodbye")] })
    }

    async fn end(self) -> Result<(), BoxError> {
        match gone(async || Ok(self.server.sessions())).await? {
            0 => Ok(()),
            listed => Err(format!("{listed} sessions are left").into()),
        }
    }
}
