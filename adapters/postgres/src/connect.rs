//! How the pool gets its connections: the driver's own search for a server, with our sockets.

use std::{future::Future, net::IpAddr, pin::Pin, sync::Arc, time::Duration};

use deadpool_postgres::Connect;
use socket2::TcpKeepalive;
use tokio::task::JoinHandle;
use tokio_postgres::{
    Client,
    config::{Host, LoadBalanceHosts},
};
use winddown_core::{CredentialsProvider, Error, ErrorKind, adapter::credentials};
use winddown_net::{Options, Server};

use crate::{
    error::Failure,
    sessions::{Endpoint, Sessions, open_on},
    tls::Tls,
};

/// Opens sessions and enters them in the book.
pub(crate) struct Connector {
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) tls: Tls,
    pub(crate) credentials: Option<Arc<dyn CredentialsProvider>>,
    /// How long opening a session with one address may take.
    pub(crate) limit: Duration,
}

type Connected = (Client, JoinHandle<()>);

impl Connect for Connector {
    fn connect(
        &self,
        config: &tokio_postgres::Config,
    ) -> Pin<Box<dyn Future<Output = Result<Connected, tokio_postgres::Error>> + Send + '_>> {
        let config = config.clone();
        Box::pin(async move {
            match self.open(config).await {
                Ok(connected) => Ok(connected),
                Err(failure) => Err(failure.into_driver().await),
            }
        })
    }
}

impl Connector {
    async fn open(&self, mut config: tokio_postgres::Config) -> Result<Connected, Failure> {
        if let Some(credentials) = credentials(self.credentials.as_deref()).await? {
            let (user, password) = credentials.into_parts();
            if let Some(user) = user {
                config.user(user);
            }
            config.password(password);
        }
        let shuffles = config.get_load_balance_hosts() == LoadBalanceHosts::Random;
        let servers = servers(&config)?;
        let connector = winddown_net::Connector { options: options(&config), limit: self.limit, shuffles };
        let opening = async |at: winddown_net::Endpoint| {
            let opening = at.opening();
            let socket = at.dial(&opening).await?;
            open_on(&self.sessions, socket, Endpoint { at, tls: self.tls.clone() }, &opening, config.clone()).await
        };
        connector.open(servers, opening).await
    }
}

/// Where they are, for people.
pub(crate) fn hosts(config: &tokio_postgres::Config) -> Option<String> {
    let shown = servers(config).ok()?.iter().map(ToString::to_string).collect::<Vec<_>>();
    Some(shown.join(", "))
}

/// Each server that may be tried.
fn servers(config: &tokio_postgres::Config) -> Result<Vec<Server>, Error> {
    let (hosts, addresses, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
    let bad = |text: &'static str| Err(Error::new(ErrorKind::Config, text));
    let count = hosts.len().max(addresses.len());
    if count == 0 {
        return bad("there is no host: give one, as in postgres://user@host/database");
    }
    if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
        return bad("there are not as many hosts as hostaddrs: give one hostaddr for each host, or none");
    }
    if ports.len() > 1 && ports.len() != count {
        return bad("there are not as many ports as hosts: give one for each host, or one for all");
    }
    let server = |index: usize| {
        let port = ports.get(index).or_else(|| ports.first()).copied().unwrap_or(5432);
        server(hosts.get(index), addresses.get(index), port)
    };
    Ok((0..count).filter_map(server).collect())
}

/// Where one of them is that has a host, an address, or both.
fn server(host: Option<&Host>, address: Option<&IpAddr>, port: u16) -> Option<Server> {
    let at = address.copied().into_iter().collect();
    match (host, address) {
        (Some(Host::Tcp(name)), _) => Some(Server::Tcp { host: name.clone(), port, at }),
        (Some(Host::Unix(folder)), None) => Some(Server::Unix(folder.join(format!(".s.PGSQL.{port}")))),
        (_, Some(address)) => Some(Server::Tcp { host: address.to_string(), port, at }),
        (None, None) => None,
    }
}

fn options(config: &tokio_postgres::Config) -> Options {
    let keepalive = config.get_keepalives().then(|| {
        let mut keepalive = TcpKeepalive::new().with_time(config.get_keepalives_idle());
        if let Some(interval) = config.get_keepalives_interval() {
            keepalive = keepalive.with_interval(interval);
        }
        if let Some(retries) = config.get_keepalives_retries() {
            keepalive = keepalive.with_retries(retries);
        }
        keepalive
    });
    Options { tcp_user_timeout: config.get_tcp_user_timeout().copied(), keepalive }
}
