//! How the pool gets its connections: the driver's own search for a server, with our sockets.

use std::{future::Future, io, path::Path, pin::Pin, sync::Arc, time::Duration};

use deadpool_postgres::Connect;
use socket2::TcpKeepalive;
use tokio::task::JoinHandle;
use tokio_postgres::{
    Client,
    config::{Host, LoadBalanceHosts},
};
use winddown_core::{CredentialsProvider, Error, ErrorKind, adapter::credentials};
use winddown_net::{Address, Options, lookup};

use crate::{
    sessions::{Endpoint, Sessions, driver_error, open_on},
    tls::{Tls, refused},
};

/// Opens sessions and enters them in the book.
pub(crate) struct Connector {
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) tls: Tls,
    pub(crate) credentials: Option<Arc<dyn CredentialsProvider>>,
    /// How long opening a session with one address may take.
    pub(crate) limit: Duration,
}

type Connected = Result<(Client, JoinHandle<()>), tokio_postgres::Error>;

impl Connect for Connector {
    fn connect(&self, config: &tokio_postgres::Config) -> Pin<Box<dyn Future<Output = Connected> + Send + '_>> {
        Box::pin(self.open(config.clone()))
    }
}

impl Connector {
    async fn open(&self, mut config: tokio_postgres::Config) -> Connected {
        match credentials(self.credentials.as_deref()).await {
            Ok(None) => {}
            Ok(Some(credentials)) => {
                let (user, password) = credentials.into_parts();
                if let Some(user) = user {
                    config.user(user);
                }
                config.password(password);
            }
            Err(error) => return Err(driver_error(refused(error)).await),
        }
        let candidates = match candidates(&config) {
            Ok(candidates) => candidates,
            Err(error) => return Err(driver_error(refused(error)).await),
        };
        let options = options(&config);
        let mut last = None;
        for (host, name, port) in candidates {
            let addresses = match addresses(&host, port, config.get_load_balance_hosts(), self.limit).await {
                Ok(addresses) => addresses,
                Err(error) => {
                    last = Some(driver_error(error).await);
                    continue;
                }
            };
            for address in addresses {
                let (options, tls) = (options.clone(), self.tls.clone());
                let at = winddown_net::Endpoint { address, host: name.clone(), options, limit: self.limit };
                let endpoint = Endpoint { at, tls };
                let opening = endpoint.at.opening();
                let opened = match endpoint.at.dial(&opening).await {
                    Ok(socket) => open_on(&self.sessions, socket, endpoint, &opening, config.clone()).await,
                    Err(error) => Err(driver_error(refused(error)).await),
                };
                match opened {
                    Ok(opened) => return Ok(opened),
                    Err(error) => last = Some(error),
                }
            }
        }
        match last {
            Some(error) => Err(error),
            None => Err(driver_error(io::Error::other("the host's name has no address")).await),
        }
    }
}

/// Where they are, for people.
pub(crate) fn hosts(config: &tokio_postgres::Config) -> Option<String> {
    let shown = candidates(config).ok()?.into_iter().map(|(host, name, port)| match (name, host) {
        (Some(name), _) => format!("{name}:{port}"),
        (None, Host::Tcp(host)) => format!("{host}:{port}"),
        (None, Host::Unix(folder)) => format!("{}/.s.PGSQL.{port}", folder.display()),
    });
    Some(shown.collect::<Vec<_>>().join(", "))
}

/// Each server that may be tried: where it is, the name its certificate must be for, and its port.
fn candidates(config: &tokio_postgres::Config) -> Result<Vec<(Host, Option<String>, u16)>, Error> {
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
    let mut candidates = Vec::with_capacity(count);
    for index in 0..count {
        let port = ports.get(index).or_else(|| ports.first()).copied().unwrap_or(5432);
        let host = hosts.get(index);
        let name = match host {
            Some(Host::Tcp(name)) => Some(name.clone()),
            Some(_) => None,
            None => addresses.get(index).map(ToString::to_string),
        };
        let host = match addresses.get(index) {
            Some(address) => Some(Host::Tcp(address.to_string())),
            None => host.cloned(),
        };
        candidates.extend(host.map(|host| (host, name, port)));
    }
    if config.get_load_balance_hosts() == LoadBalanceHosts::Random {
        fastrand::shuffle(&mut candidates);
    }
    Ok(candidates)
}

async fn addresses(host: &Host, port: u16, balance: LoadBalanceHosts, limit: Duration) -> io::Result<Vec<Address>> {
    match host {
        Host::Tcp(host) => {
            let mut found = lookup(host, port, limit).await.map_err(refused)?;
            if balance == LoadBalanceHosts::Random {
                fastrand::shuffle(&mut found);
            }
            Ok(found)
        }
        Host::Unix(directory) => Ok(vec![Address::Unix(socket_in(directory, port))]),
    }
}

fn socket_in(directory: &Path, port: u16) -> std::path::PathBuf {
    directory.join(format!(".s.PGSQL.{port}"))
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
