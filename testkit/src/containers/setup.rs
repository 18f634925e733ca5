//! What a container is started with.

use std::time::Duration;

use anyhow::{Context, Result};
use testcontainers::{
    ContainerAsync, ContainerRequest, CopyTargetOptions, GenericImage, ImageExt,
    bollard::{Docker, errors::Error, query_parameters::CreateImageOptionsBuilder},
    runners::AsyncRunner,
};
use tokio_stream::StreamExt;

use super::{container::Container, engine, network::Network};

/// Whose images they are.
const REPOSITORY: &str = "winddown-test";

/// What a container may take until it is ready, on a machine that is busy with others.
const LIMIT: Duration = Duration::from_secs(300);

/// What a container is started with.
#[derive(Clone, Debug)]
#[must_use]
pub struct Setup {
    image: String,
    version: String,
    env: Vec<(String, String)>,
    args: Vec<String>,
    files: Vec<(String, Vec<u8>, u32)>,
    ready: Vec<String>,
    limit: Duration,
    network: Option<Network>,
}

impl Setup {
    /// An image by its official name, `postgres:17`. Where there is one that winddown's `cargo xtask images` has made of
    /// that name, it is that; else it is the official one, which the engine fetches if it is not there.
    pub fn image(image: &str) -> Self {
        let (image, version) = image.rsplit_once(':').unwrap_or((image, "latest"));
        Self {
            image: image.to_owned(),
            version: version.to_owned(),
            env: Vec::new(),
            args: Vec::new(),
            files: Vec::new(),
            ready: Vec::new(),
            limit: LIMIT,
            network: None,
        }
    }

    /// PostgreSQL of this version, which is ready when it takes connections.
    pub fn postgres(version: &str) -> Self {
        // It says the second once before, while it sets its database up and takes none from outside.
        let ready = ["listening on IPv4 address", "database system is ready to accept connections"];
        Self::image(&format!("postgres:{version}")).ready(ready)
    }

    /// MySQL of this version, which is ready when it takes connections.
    pub fn mysql(version: &str) -> Self {
        // It is ready once before, without a port, while it sets its database up.
        Self::image(&format!("mysql:{version}")).ready(["mysqld.sock'  port: 3306"])
    }

    /// Memcached of this version, which is ready when it takes connections. It says so, and much more, with `-vv`.
    pub fn memcached(version: &str) -> Self {
        Self::image(&format!("memcached:{version}")).args(["-vv"]).ready(["server listening"])
    }

    /// Redis of this version, which is ready when it takes connections.
    pub fn redis(version: &str) -> Self {
        Self::image(&format!("redis:{version}")).ready(["Ready to accept connections"])
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// More arguments, after those given before.
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Puts a file there before the start. It belongs to root, so the server may have to be let in by `mode`.
    pub fn file(mut self, path: impl Into<String>, content: impl Into<Vec<u8>>, mode: u32) -> Self {
        self.files.push((path.into(), content.into(), mode));
        self
    }

    /// The container is ready once it has written lines with these texts, in this order.
    ///
    /// The order is for servers that say so twice. PostgreSQL's images start a server that nobody can reach first; it
    /// also says that it is ready, but not that it listens on IPv4.
    pub fn ready(mut self, texts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.ready = texts.into_iter().map(Into::into).collect();
        self
    }

    /// How long it may take until it is ready, instead of two minutes.
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// A network that it shares with other containers, instead of one of its own. While one of those is killed, stopped or
    /// partitioned, and not removed, [`start`](Self::start) waits: its address is kept for it.
    pub fn network(mut self, network: &Network) -> Self {
        self.network = Some(network.clone());
        self
    }

    /// Starts the container and waits until it is ready.
    ///
    /// # Errors
    ///
    /// When the image is missing, the engine refuses, or the container is not ready in time; the error then has the end
    /// of its log.
    pub async fn start(self) -> Result<Container> {
        engine::run(async move {
            let docker = engine::connect().await?;
            let image = self.find_image(&docker).await?;
            let network = match &self.network {
                Some(network) => network.clone(),
                None => Network::make(&docker).await?,
            };
            let name = format!("{image}:{}", self.version);
            let starting = async { Ok(self.request(&image, &network).start().await?) };
            let started = network.enter("start a container", starting).await;
            let started: ContainerAsync<GenericImage> = started.with_context(|| format!("cannot start {name}"))?;
            let container = Container::new(started, docker, network, self.ready, self.limit).await?;
            container.wait_until_ready().await.with_context(|| format!("{name} is not ready"))?;
            Ok(container)
        })
        .await
    }

    /// What its image is called here.
    async fn find_image(&self, docker: &Docker) -> Result<String> {
        let Self { image, version, .. } = self;
        let own = format!("{REPOSITORY}/{image}");
        let is_here = async |name: &str| {
            let name = format!("{name}:{version}");
            match docker.inspect_image(&name).await {
                Ok(_) => Ok(true),
                Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(false),
                Err(error) => Err(error).with_context(|| format!("cannot look for the image {name}")),
            }
        };
        if is_here(&own).await? {
            return Ok(own);
        }
        if !is_here(image).await? {
            // Not by testcontainers, whose error would not say what else there is.
            let options = CreateImageOptionsBuilder::new().from_image(image).tag(version).build();
            let mut fetching = docker.create_image(Some(options), None, None);
            while let Some(step) = fetching.next().await {
                step.with_context(|| {
                    format!("there is no image {own}:{version}, which winddown's `cargo xtask images` makes, and {image}:{version} cannot be fetched")
                })?;
            }
        }
        Ok(image.clone())
    }

    fn request(&self, image: &str, network: &Network) -> ContainerRequest<GenericImage> {
        // without a condition of testcontainers: its error would come without the container's log
        let mut request = GenericImage::new(image, self.version.as_str())
            .with_network(network.name())
            .with_labels(engine::labels())
            .with_startup_timeout(self.limit)
            // nobody uses a port of the host's, and each costs a process
            .with_host_config_modifier(|host| host.publish_all_ports = Some(false));
        if !self.args.is_empty() {
            request = request.with_cmd(self.args.clone());
        }
        for (name, value) in &self.env {
            request = request.with_env_var(name, value);
        }
        for (path, content, mode) in &self.files {
            request = request.with_copy_to(CopyTargetOptions::new(path).with_mode(*mode), content.clone());
        }
        request
    }
}
