//! The least that a harness is: four methods, and a server that can only be asked. The same for a resource that hides its sockets.

use winddown_core::{
    BoxError, Error,
    adapter::{Capabilities, Checkouts, Drain, Resource},
    memory::{Memory, MemoryPool, MemorySession, Server},
};
use winddown_testkit::{CheckoutOf, Harness, ServerUse, Setup};

struct Minimal(Server);

impl Harness for Minimal {
    type Resource = Memory;

    const NAME: &'static str = "minimal";

    async fn start(_: ServerUse) -> Result<Self, BoxError> {
        Ok(Self(Server::new()))
    }

    fn resource(&self, setup: &Setup) -> Memory {
        Memory::on(&self.0, "minimal").size(setup.size)
    }

    async fn ping(&self, session: &mut MemorySession) -> Result<(), BoxError> {
        Ok(session.ping().await?)
    }

    async fn sessions(&self) -> Result<usize, BoxError> {
        Ok(self.0.sessions())
    }
}

/// Does not see the server's end.
#[derive(Debug)]
struct Blind(Memory);

impl Resource for Blind {
    type Pool = MemoryPool;

    fn name(&self) -> &str {
        self.0.name()
    }

    async fn init(&self) -> Result<MemoryPool, Error> {
        self.0.init().await
    }

    async fn goodbye(&self, pool: &MemoryPool, drain: &Drain) -> Result<(), Error> {
        self.0.goodbye(pool, drain).await
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities().without_confirmed_end()
    }
}

impl Checkouts for Blind {
    type Checkout = MemorySession;

    async fn checkout(&self, pool: &MemoryPool) -> Result<MemorySession, Error> {
        self.0.checkout(pool).await
    }

    fn give_back(&self, pool: &MemoryPool, session: MemorySession) {
        self.0.give_back(pool, session);
    }
}

struct Unconfirmed(Minimal);

impl Harness for Unconfirmed {
    type Resource = Blind;

    const NAME: &'static str = "unconfirmed";

    async fn start(server: ServerUse) -> Result<Self, BoxError> {
        Minimal::start(server).await.map(Self)
    }

    fn resource(&self, setup: &Setup) -> Blind {
        Blind(self.0.resource(setup))
    }

    async fn ping(&self, session: &mut CheckoutOf<Self>) -> Result<(), BoxError> {
        self.0.ping(session).await
    }

    async fn sessions(&self) -> Result<usize, BoxError> {
        self.0.sessions().await
    }
}

winddown_testkit::conformance!(Minimal, Unconfirmed);
