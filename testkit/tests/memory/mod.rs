//! The in-memory resource as a harness.

use std::time::Duration;

use winddown_core::{
    BoxError,
    memory::{Memory, MemorySession, Server},
};
use winddown_testkit::{Harness, Need, ServerUse, Setup, gone};

/// The server is a value in the same process. Its network is no other thing than itself: cut, it looks as it does paused.
pub(crate) struct InMemory {
    server: Server,
}

impl Harness for InMemory {
    type Resource = Memory;

    const NAME: &'static str = "memory";
    const LACKS: &'static [(Need, &'static str)] = &[(Need::Password, "nobody logs in")];

    async fn start(_: ServerUse) -> Result<Self, BoxError> {
        Ok(Self { server: Server::new() })
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

    async fn rows(&self) -> Result<usize, BoxError> {
        Ok(self.server.rows())
    }

    async fn sessions(&self) -> Result<usize, BoxError> {
        Ok(self.server.sessions())
    }

    async fn running(&self) -> Result<usize, BoxError> {
        Ok(self.server.running())
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
