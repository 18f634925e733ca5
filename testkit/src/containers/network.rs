//! A network of a test's own.

use std::{net::Ipv4Addr, sync::Arc};

use anyhow::{Context, Result, bail};
use testcontainers::bollard::{
    Docker,
    errors::Error,
    models::{
        EndpointIpamConfig, EndpointSettings, Ipam, IpamConfig, NetworkConnectRequest, NetworkCreateRequest,
        NetworkDisconnectRequest,
    },
};
use tokio::sync::{Semaphore, SemaphorePermit, watch};

use super::engine;

/// How many subnets are tried.
const TRIES: u32 = 64;

/// A network, removed when neither this handle nor a container on it is left.
///
/// Containers that are to reach each other are put on the same one; a container that is given none gets its own.
#[derive(Clone, Debug)]
pub struct Network {
    shared: Arc<NetworkState>,
}

impl Network {
    /// Makes a network.
    ///
    /// # Errors
    ///
    /// When the engine does not answer, or no subnet is free.
    pub async fn create() -> Result<Self> {
        engine::run(async { Self::make(&engine::connect().await?).await }).await
    }

    /// As [`Network::create`], where there is a client already.
    pub(super) async fn make(docker: &Docker) -> Result<Self> {
        engine::act("make a network", Self::try_subnets(docker)).await
    }

    async fn try_subnets(docker: &Docker) -> Result<Self> {
        let name = format!("winddown-{}-{:08x}", std::process::id(), fastrand::u32(..));
        for _ in 0..TRIES {
            match docker.create_network(request(&name, &subnet())).await {
                Ok(_) => {
                    let (turns, away) = (Semaphore::new(1), watch::Sender::new(0));
                    let shared = NetworkState { name, docker: docker.clone(), turns, away };
                    return Ok(Self { shared: Arc::new(shared) });
                }
                // another run has taken it
                Err(Error::DockerResponseServerError { message, .. }) if message.contains("overlap") => {}
                Err(error) => return Err(error).context("cannot make a container network"),
            }
        }
        bail!("no subnet for a container network is free, {TRIES} were tried: see `docker network ls`");
    }

    /// What the engine knows it as.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Has the engine do something by which a container comes to the network or leaves it, one at a time.
    ///
    /// Docker Engine 20.10 can lock up for good when two do so at once on the same network
    /// (<https://github.com/moby/moby/issues/46661>).
    pub(super) async fn in_turn<T>(&self, what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        let _turn = self.turn().await?;
        engine::act(what, work).await
    }

    async fn turn(&self) -> Result<SemaphorePermit<'_>> {
        self.shared.turns.acquire().await.context("a network's turns do not end before it")
    }

    /// The same for a container that is new here, once none is away: the engine would give it the address of one who is.
    pub(super) async fn enter<T>(&self, what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut away = self.shared.away.subscribe();
        loop {
            away.wait_for(|away| *away == 0).await.context("a network does not end before its users")?;
            let _turn = self.turn().await?;
            // Whoever goes away does so in a turn.
            if *away.borrow_and_update() == 0 {
                return engine::act(what, work).await;
            }
        }
    }

    /// A container is about to leave, in its turn, and may come back to its address until what this returns is dropped.
    pub(super) fn leave(&self) -> Away {
        self.shared.away.send_modify(|away| *away += 1);
        Away(Arc::clone(&self.shared))
    }

    /// Takes a container off: nothing that is sent to it arrives, and nothing it sends.
    pub(super) async fn disconnect(&self, container: &str) -> Result<()> {
        let request = NetworkDisconnectRequest { container: container.to_owned(), force: Some(false) };
        self.shared.docker.disconnect_network(self.name(), request).await.context("cannot take a container off")
    }

    /// Puts a container back on, where it was.
    pub(super) async fn connect(&self, container: &str, address: Ipv4Addr) -> Result<()> {
        let address = EndpointIpamConfig { ipv4_address: Some(address.to_string()), ..Default::default() };
        let endpoint = EndpointSettings { ipam_config: Some(address), ..Default::default() };
        let request = NetworkConnectRequest { container: container.to_owned(), endpoint_config: Some(endpoint) };
        self.shared.docker.connect_network(self.name(), request).await.context("cannot put a container back on")
    }
}

#[derive(Debug)]
struct NetworkState {
    name: String,
    docker: Docker,
    /// One: see [`Network::in_turn`].
    turns: Semaphore,
    /// How many containers have left and may come back.
    away: watch::Sender<usize>,
}

/// A container that is away from its network.
#[derive(Debug)]
#[must_use = "dropped it is back, or gone for good"]
pub(super) struct Away(Arc<NetworkState>);

impl Drop for Away {
    fn drop(&mut self) {
        self.0.away.send_modify(|away| *away -= 1);
    }
}

impl Drop for NetworkState {
    fn drop(&mut self) {
        let (docker, name) = (self.docker.clone(), self.name.clone());
        // an error is left to the reaper
        engine::spawn(async move { drop(docker.remove_network(&name).await) });
    }
}

/// One of a thousand, out of the range from which Docker takes its own subnets: what is used there is Docker's, and it
/// says so. A container gets the same address again only where the subnet was asked for.
fn subnet() -> String {
    format!("172.{}.{}.0/24", fastrand::u8(28..32), fastrand::u8(..))
}

fn request(name: &str, subnet: &str) -> NetworkCreateRequest {
    let pool = IpamConfig { subnet: Some(subnet.to_owned()), ..Default::default() };
    NetworkCreateRequest {
        name: name.to_owned(),
        ipam: Some(Ipam { config: Some(vec![pool]), ..Default::default() }),
        labels: Some(engine::labels().into()),
        ..Default::default()
    }
}
