//! A container that runs, and what can be done to it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use testcontainers::{
    ContainerAsync, GenericImage,
    bollard::{
        Docker,
        container::LogOutput,
        errors::Error,
        exec::{CreateExecOptions, StartExecResults},
        models::ContainerUpdateBody,
        query_parameters::{
            InspectContainerOptions, KillContainerOptionsBuilder, StartContainerOptions, StopContainerOptionsBuilder,
            WaitContainerOptions,
        },
    },
};
use tokio::sync::Mutex as AsyncMutex;
use tokio_stream::StreamExt;

use super::{
    engine, log,
    network::{Away, Network},
};

/// How often the engine tries to freeze a container. Each time it does so itself for a while.
const FREEZES: usize = 20;

/// A container. It is removed when this is dropped; [`remove`](Self::remove) also waits for it.
#[derive(Debug)]
pub struct Container {
    /// `None` only while being dropped.
    started: Option<ContainerAsync<GenericImage>>,
    shared: Arc<Running>,
    /// How much of the log there was before the latest start.
    earlier: usize,
}

/// What every operation needs.
#[derive(Debug)]
struct Running {
    docker: Docker,
    id: String,
    network: Network,
    ip: Ipv4Addr,
    ready: Vec<String>,
    limit: Duration,
    /// While it is away from its network, to which it may come back.
    away: Mutex<Option<Away>>,
    /// One thing is done to it at a time, also when nobody waits for that any more.
    changes: Arc<AsyncMutex<()>>,
}

/// What came of a command in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub code: i64,
    /// What it wrote to its standard output.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
}

impl Container {
    pub(super) async fn new(
        started: ContainerAsync<GenericImage>,
        docker: Docker,
        network: Network,
        ready: Vec<String>,
        limit: Duration,
    ) -> Result<Self> {
        let id = started.id().to_owned();
        let ip = match address(&docker, &id, network.name()).await {
            Ok(ip) => ip,
            // one that has ended already has none, and has said why
            Err(error) => {
                let log = log::read(&docker, &id).await?;
                bail!("{error:#}; its last lines:\n{}", log::end(&log));
            }
        };
        let shared = Running { docker, id, network, ip, ready, limit, away: Mutex::default(), changes: Arc::default() };
        Ok(Self { started: Some(started), shared: Arc::new(shared), earlier: 0 })
    }

    pub(super) async fn wait_until_ready(&self) -> Result<()> {
        let Running { docker, id, ready, limit, .. } = &*self.shared;
        log::wait(docker, id, ready, self.earlier, *limit).await
    }

    /// Its address on its network, the same for as long as it exists.
    #[must_use]
    pub fn ip(&self) -> Ipv4Addr {
        self.shared.ip
    }

    /// Where its server listens.
    #[must_use]
    pub fn address(&self, port: u16) -> SocketAddr {
        (self.shared.ip, port).into()
    }

    /// The network it is on, for others to join.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.shared.network
    }

    /// What the engine knows it as.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.shared.id
    }

    /// What it has written so far, to standard output and standard error.
    ///
    /// # Errors
    ///
    /// When the engine refuses.
    pub async fn logs(&self) -> Result<String> {
        self.run(async |shared| log::read(&shared.docker, &shared.id).await).await
    }

    /// Waits until it has written lines with these texts, in this order, since its latest start.
    ///
    /// # Errors
    ///
    /// When they have not come within `limit`, or it has ended.
    pub async fn wait_for(&self, texts: impl IntoIterator<Item = impl Into<String>>, limit: Duration) -> Result<()> {
        let texts: Vec<String> = texts.into_iter().map(Into::into).collect();
        let earlier = self.earlier;
        self.run(async move |shared| log::wait(&shared.docker, &shared.id, &texts, earlier, limit).await).await
    }

    /// Runs a command in it, as root, and waits for its end.
    ///
    /// # Errors
    ///
    /// When the engine refuses. A command that fails says so in its output.
    pub async fn exec(&self, command: impl IntoIterator<Item = impl Into<String>>) -> Result<Output> {
        let command: Vec<String> = command.into_iter().map(Into::into).collect();
        self.run(async move |shared| {
            let options = CreateExecOptions {
                cmd: Some(command),
                attach_stdout: Some(true),
                attach_stderr: Some(true),
                ..Default::default()
            };
            let exec = shared.docker.create_exec(&shared.id, options).await.context("cannot run a command")?;
            let started = shared.docker.start_exec(&exec.id, None).await.context("cannot run a command")?;
            let StartExecResults::Attached { mut output, .. } = started else { bail!("the command has no output") };
            let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
            while let Some(piece) = output.next().await {
                match piece.context("cannot read a command's output")? {
                    LogOutput::StdErr { message } => stderr.extend_from_slice(&message),
                    piece => stdout.extend_from_slice(&piece.into_bytes()),
                }
            }
            let ended = shared.docker.inspect_exec(&exec.id).await.context("cannot see how a command ended")?;
            Ok(Output {
                code: ended.exit_code.context("a command whose output has ended still runs")?,
                stdout: String::from_utf8_lossy(&stdout).into_owned(),
                stderr: String::from_utf8_lossy(&stderr).into_owned(),
            })
        })
        .await
    }

    /// Freezes its processes. Its kernel still answers: connections are accepted and data is acknowledged.
    ///
    /// # Errors
    ///
    /// When the engine refuses.
    pub async fn pause(&self) -> Result<()> {
        self.change(async |shared| shared.pause().await).await
    }

    /// Ends [`pause`](Self::pause).
    ///
    /// # Errors
    ///
    /// When the engine refuses.
    pub async fn resume(&self) -> Result<()> {
        self.change(async |shared| shared.docker.unpause_container(&shared.id).await.context("cannot resume")).await
    }

    /// What freezes it for moments, while others use it.
    #[must_use]
    pub fn freezer(&self) -> Freezer {
        Freezer(Arc::clone(&self.shared))
    }

    /// Gives it so many cores at most, or as many as there are.
    ///
    /// # Errors
    ///
    /// When the engine refuses.
    pub async fn limit_cores(&self, cores: Option<f64>) -> Result<()> {
        const PERIOD: f64 = 100_000.0;
        self.change(async move |shared| {
            // A quota below zero is none.
            let quota = cores.map_or(-1, |cores| (cores * PERIOD) as i64);
            let limits = ContainerUpdateBody {
                cpu_period: Some(PERIOD as i64),
                cpu_quota: Some(quota),
                ..ContainerUpdateBody::default()
            };
            shared.docker.update_container(&shared.id, limits).await.context("cannot limit its cores")
        })
        .await
    }

    /// Ends its server with SIGKILL and waits until it is gone.
    ///
    /// Its address goes with it: whether a client sees its connections reset, or nothing any more, is a race.
    ///
    /// # Errors
    ///
    /// When the engine refuses.
    pub async fn kill(&self) -> Result<()> {
        self.change(async |shared| {
            let killing = async {
                let options = KillContainerOptionsBuilder::new().signal("SIGKILL").build();
                shared.docker.kill_container(&shared.id, Some(options)).await.context("cannot kill")?;
                shared.wait_for_end().await
            };
            shared.leave("kill a container", killing).await
        })
        .await
    }

    /// Stops its server as `docker stop` does, and waits until it is gone.
    ///
    /// # Errors
    ///
    /// When the engine refuses.
    pub async fn stop(&self) -> Result<()> {
        self.change(async |shared| {
            let stopping = async {
                let options = StopContainerOptionsBuilder::new().build();
                shared.docker.stop_container(&shared.id, Some(options)).await.context("cannot stop")?;
                shared.wait_until_off_network().await
            };
            shared.leave("stop a container", stopping).await
        })
        .await
    }

    /// Starts it after [`kill`](Self::kill) or [`stop`](Self::stop), with its files and its address, and waits until it
    /// is ready.
    ///
    /// # Errors
    ///
    /// When the engine refuses, or it is not ready in time.
    pub async fn start_again(&mut self) -> Result<()> {
        self.earlier = self
            .change(async |shared| {
                let earlier = log::read(&shared.docker, &shared.id).await?.lines().count();
                let starting = async {
                    // else it would get the next address that is free
                    shared.network.disconnect(&shared.id).await?;
                    shared.network.connect(&shared.id, shared.ip).await?;
                    let options = None::<StartContainerOptions>;
                    shared.docker.start_container(&shared.id, options).await.context("cannot start again")
                };
                shared.come_back("start a container again", starting).await?;
                log::wait(&shared.docker, &shared.id, &shared.ready, earlier, shared.limit).await?;
                Ok(earlier)
            })
            .await?;
        Ok(())
    }

    /// Cuts it off: packets in both directions vanish, and nobody is told by a FIN or a RST.
    ///
    /// A new connection to it gets no answer either, and fails after some seconds, when the host has not found its
    /// address.
    ///
    /// # Errors
    ///
    /// When the engine refuses.
    pub async fn partition(&self) -> Result<()> {
        self.change(async |shared| {
            shared.leave("take a container off its network", shared.network.disconnect(&shared.id)).await
        })
        .await
    }

    /// Ends [`partition`](Self::partition). The address is the same, and what was sent meanwhile is sent again.
    ///
    /// # Errors
    ///
    /// When the engine refuses.
    pub async fn heal(&self) -> Result<()> {
        self.change(async |shared| {
            let putting_back = shared.network.connect(&shared.id, shared.ip);
            shared.come_back("put a container back on its network", putting_back).await
        })
        .await
    }

    /// Undoes what was done to it by these methods: it runs, on its network, and is ready.
    ///
    /// # Errors
    ///
    /// When the engine refuses, or it is not ready in time.
    pub async fn restore(&mut self) -> Result<()> {
        let state = self.change(async |shared| shared.state().await).await?;
        if state.is_paused {
            self.resume().await?;
        }
        if state.is_limited {
            self.limit_cores(None).await?;
        }
        if !state.is_running {
            self.start_again().await?;
        } else if state.is_away {
            self.heal().await?;
        }
        Ok(())
    }

    /// Removes it and waits until it is gone.
    ///
    /// # Errors
    ///
    /// When the engine refuses.
    pub async fn remove(mut self) -> Result<()> {
        let started = self.started.take().context("a container is removed once")?;
        self.change(async move |shared| shared.remove(started).await).await
    }

    /// As [`run`](Self::run), for what is done to it: in the order in which it was begun.
    async fn change<T, W, F>(&self, work: W) -> Result<T>
    where
        T: Send + 'static,
        W: FnOnce(Arc<Running>) -> F,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let turn = Arc::clone(&self.shared.changes).lock_owned().await;
        let work = work(Arc::clone(&self.shared));
        engine::run(async move {
            let _turn = turn;
            work.await
        })
        .await
    }

    async fn run<T, W, F>(&self, work: W) -> Result<T>
    where
        T: Send + 'static,
        W: FnOnce(Arc<Running>) -> F,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        engine::run(work(Arc::clone(&self.shared))).await
    }
}

/// Freezes a container for moments: see [`Container::freezer`].
#[derive(Clone, Debug)]
pub struct Freezer(Arc<Running>);

impl Freezer {
    /// Freezes its processes for so long.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it ends as it would have.
    ///
    /// # Errors
    ///
    /// When the engine refuses.
    pub async fn freeze_for(&self, time: Duration) -> Result<()> {
        let shared = Arc::clone(&self.0);
        let turn = Arc::clone(&shared.changes).lock_owned().await;
        engine::run(async move {
            let _turn = turn;
            shared.pause().await?;
            tokio::time::sleep(time).await;
            shared.docker.unpause_container(&shared.id).await.context("cannot resume")
        })
        .await
    }
}

/// What has become of a container.
struct ContainerState {
    is_running: bool,
    /// Its processes are frozen; it runs all the same.
    is_paused: bool,
    is_limited: bool,
    is_away: bool,
}

impl Drop for Container {
    fn drop(&mut self) {
        let Some(started) = self.started.take() else { return };
        let shared = Arc::clone(&self.shared);
        engine::spawn(async move {
            // an error is left to the reaper; the network goes after what is on it, with the last of `shared`
            drop(shared.remove(started).await);
        });
    }
}

impl Running {
    async fn remove(&self, started: ContainerAsync<GenericImage>) -> Result<()> {
        let removing = async { started.rm().await.context("cannot remove a container") };
        let removed = self.network.in_turn("remove a container", removing).await;
        // it does not come back, whether it is gone or not
        self.is_away(false);
        removed
    }

    /// Has the engine take it off its network, in its turn; from then on it is away.
    async fn leave(&self, what: &str, work: impl Future<Output = Result<()>>) -> Result<()> {
        let leaving = async {
            self.is_away(true);
            work.await
        };
        self.network.in_turn(what, leaving).await
    }

    /// Has the engine put it back, in its turn; if that went well it is not away any more.
    async fn come_back(&self, what: &str, work: impl Future<Output = Result<()>>) -> Result<()> {
        let coming_back = async {
            work.await?;
            self.is_away(false);
            Ok(())
        };
        self.network.in_turn(what, coming_back).await
    }

    /// Notes it, in the container's turn.
    fn is_away(&self, away: bool) {
        let mut noted = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        if away != noted.is_some() {
            *noted = away.then(|| self.network.leave());
        }
    }

    async fn state(&self) -> Result<ContainerState> {
        let inspecting = self.docker.inspect_container(&self.id, None::<InspectContainerOptions>);
        let container = inspecting.await.context("cannot inspect")?;
        let limit = container.host_config.and_then(|host| host.cpu_quota).unwrap_or_default();
        let state = container.state.context("a container has a state")?;
        Ok(ContainerState {
            is_running: state.running.unwrap_or_default(),
            is_paused: state.paused.unwrap_or_default(),
            is_limited: limit > 0,
            is_away: self.away.lock().unwrap_or_else(PoisonError::into_inner).is_some(),
        })
    }

    async fn pause(&self) -> Result<()> {
        let mut tries = 1;
        loop {
            match self.docker.pause_container(&self.id).await {
                // its processes were too busy to be frozen, and go on
                Err(Error::DockerResponseServerError { message, .. })
                    if message.contains("unable to freeze") && tries < FREEZES => {}
                // so they were the time before, and the engine has noted that it is paused all the same
                Err(Error::DockerResponseServerError { message, .. })
                    if message.contains("already paused") && (2..FREEZES).contains(&tries) =>
                {
                    self.docker.unpause_container(&self.id).await.context("cannot pause once more")?;
                }
                paused => return paused.context("cannot pause"),
            }
            tries += 1;
        }
    }

    async fn wait_for_end(&self) -> Result<()> {
        let mut ends = self.docker.wait_container(&self.id, None::<WaitContainerOptions>);
        // a code that is not 0 comes as an error, and is what was asked for
        drop(ends.next().await);
        self.wait_until_off_network().await
    }

    /// The engine says that a container has ended before it has taken it off its network, and answers this after.
    async fn wait_until_off_network(&self) -> Result<()> {
        self.docker.inspect_container(&self.id, None::<InspectContainerOptions>).await.context("cannot inspect")?;
        Ok(())
    }
}

/// Its address on a network.
async fn address(docker: &Docker, id: &str, network: &str) -> Result<Ipv4Addr> {
    let container = docker.inspect_container(id, None::<InspectContainerOptions>).await.context("cannot inspect")?;
    let networks = container.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
    let address = networks.get(network).and_then(|endpoint| endpoint.ip_address.as_deref()).unwrap_or_default();
    address.parse().with_context(|| format!("the container has no address on {network}: it may have ended"))
}
