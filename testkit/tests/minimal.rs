//! The least that a harness is: four methods, and a server that can only be asked.

use winddown_core::{
    BoxError,
    memory::{Memory, MemorySession, Server},
};
use winddown_testkit::{Harness, ServerUse, Setup};

struct Mine(Server);

impl Harness for Mine {
    type Resource = Memory;

    const NAME: &'static str = "minimal";

    async fn start(_: ServerUse) -> Result<Self, BoxError> {
        Ok(Self(Server::new()))
    }

    fn resource(&self, setup: &Setup) -> Memory {
        Memory::on(&self.0, "mine").size(setup.size)
    }

    async fn ping(&self, session: &mut MemorySession) -> Result<(), BoxError> {
        Ok(session.ping().await?)
    }

    async fn sessions(&self) -> Result<usize, BoxError> {
        Ok(self.0.sessions())
    }
}

winddown_testkit::conformance!(Mine);
