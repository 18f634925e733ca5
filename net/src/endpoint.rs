//! A server as it is reached: where its host is, and one socket with it, in the time that opening a session has.

use std::{fmt, future::Future, io, net::IpAddr, path::PathBuf, time::Duration};

use tokio::net::lookup_host;
use winddown_core::{Error, ErrorKind, adapter::Opening};

use crate::socket::{Address, Options, Socket, dial, dial_anyway};

/// How to reach one address of a server, now and once more: what a session was opened with, and who asks about it needs again.
#[derive(Debug, Clone)]
#[expect(clippy::exhaustive_structs, reason = "adapters make it")]
pub struct Endpoint {
    /// Where it listens.
    pub address: Address,
    /// The host as it was asked for; none for a Unix socket.
    pub host: Option<String>,
    /// How its socket is set up.
    pub options: Options,
    /// How long all that opens a session with it may take.
    pub limit: Duration,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.address, &self.host) {
            (Address::Tcp(address), Some(host)) => write!(f, "{host} at {address}"),
            (address, _) => fmt::Display::fmt(address, f),
        }
    }
}

impl Endpoint {
    /// Begins to open a session.
    pub fn opening(&self) -> Opening {
        Opening::of(self, self.limit)
    }

    /// Connects, as the first step of this opening.
    ///
    /// # Cancel safety
    /// Cancel safe: dropped it leaves nothing behind.
    ///
    /// # Errors
    /// [`ErrorKind::Init`], [`retryable`](Error::retryable), with the address in it.
    pub async fn dial(&self, opening: &Opening) -> Result<Socket, Error> {
        self.reached(opening, dial(&self.address, &self.options)).await
    }

    /// The same where the process may have no descriptor left: for what a drain has to ask.
    ///
    /// # Cancel safety
    /// As [`dial`](Self::dial).
    ///
    /// # Errors
    /// As [`dial`](Self::dial).
    pub async fn dial_anyway(&self, opening: &Opening) -> Result<Socket, Error> {
        self.reached(opening, dial_anyway(&self.address, &self.options)).await
    }

    async fn reached(
        &self,
        opening: &Opening,
        dialling: impl Future<Output = io::Result<Socket>>,
    ) -> Result<Socket, Error> {
        opening.step("connecting", dialling).await?.map_err(|source| {
            let text = format!("cannot reach {self}");
            Error::new(ErrorKind::Init, text).with_source(source).retryable()
        })
    }
}

/// A server as a configuration names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "adapters make it")]
pub enum Server {
    /// A host, by the name that its certificate is for, and its port.
    Tcp {
        /// The name, or an address.
        host: String,
        /// On which it listens.
        port: u16,
        /// Where it is, if the configuration says so: then nobody is asked.
        at: Vec<IpAddr>,
    },
    /// A socket's path.
    Unix(PathBuf),
}

impl Server {
    /// The host of this name, wherever that is.
    pub fn tcp(host: impl Into<String>, port: u16) -> Self {
        Self::Tcp { host: host.into(), port, at: Vec::new() }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port, .. } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// How the servers of a pool are reached.
#[derive(Debug, Clone)]
#[expect(clippy::exhaustive_structs, reason = "adapters make it")]
pub struct Connector {
    /// How sockets are set up.
    pub options: Options,
    /// How long opening a session may take at each address, and looking a host up.
    pub limit: Duration,
    /// Servers, and the addresses of each, are tried in any order, and not in their own.
    pub shuffles: bool,
}

impl Connector {
    /// Opens a session at the first address of these servers that takes one: each server in its turn, each with all of its addresses.
    /// An error of `open` leads on to the next address; what is to be told at once goes in its `T`.
    ///
    /// # Cancel safety
    /// As that of `open`.
    ///
    /// # Errors
    /// The last one; and [`ErrorKind::Config`] where there is no server.
    pub async fn open<T, E, F>(
        &self,
        servers: impl IntoIterator<Item = Server>,
        mut open: impl FnMut(Endpoint) -> F,
    ) -> Result<T, E>
    where
        E: From<Error>,
        F: Future<Output = Result<T, E>>,
    {
        let mut servers: Vec<_> = servers.into_iter().collect();
        if self.shuffles {
            fastrand::shuffle(&mut servers);
        }
        let mut last = None;
        for server in servers {
            let endpoints = match self.endpoints(&server).await {
                Ok(endpoints) => endpoints,
                Err(error) => {
                    last = Some(error.into());
                    continue;
                }
            };
            for endpoint in endpoints {
                match open(endpoint).await {
                    Ok(opened) => return Ok(opened),
                    Err(error) => last = Some(error),
                }
            }
        }
        Err(last.unwrap_or_else(|| Error::new(ErrorKind::Config, "there is no host: give one in the URL").into()))
    }

    /// Every address of this server, one at least.
    ///
    /// # Cancel safety
    /// Cancel safe: dropped it leaves nothing behind.
    ///
    /// # Errors
    /// [`ErrorKind::Init`], [`retryable`](Error::retryable): the host is not known, has no address, or nobody has answered within the
    /// limit.
    pub async fn endpoints(&self, server: &Server) -> Result<Vec<Endpoint>, Error> {
        let (host, mut found) = match server {
            Server::Tcp { host, port, at } if at.is_empty() => (Some(host), lookup(host, *port, self.limit).await?),
            Server::Tcp { host, port, at } => {
                (Some(host), at.iter().map(|ip| Address::Tcp((*ip, *port).into())).collect())
            }
            Server::Unix(path) => (None, vec![Address::Unix(path.clone())]),
        };
        if self.shuffles {
            fastrand::shuffle(&mut found);
        }
        let Self { options, limit, .. } = self;
        let endpoint = |address| Endpoint { address, host: host.cloned(), options: options.clone(), limit: *limit };
        Ok(found.into_iter().map(endpoint).collect())
    }
}

async fn lookup(host: &str, port: u16, limit: Duration) -> Result<Vec<Address>, Error> {
    let found = Opening::of(host, limit).step("looking the host up", lookup_host((host, port))).await?;
    let failed = |text: String| Error::new(ErrorKind::Init, text).retryable();
    let found = found.map_err(|source| failed(format!("cannot look up the host {host}")).with_source(source))?;
    let found: Vec<_> = found.map(Address::Tcp).collect();
    if found.is_empty() { Err(failed(format!("the host {host} has no address"))) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn connector() -> Connector {
        Connector { options: Options::default(), limit: Duration::from_secs(5), shuffles: false }
    }

    fn at(ports: &[u16]) -> Vec<Server> {
        let ips = vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2])];
        ports.iter().map(|port| Server::Tcp { host: "db.example".into(), port: *port, at: ips.clone() }).collect()
    }

    #[tokio::test]
    async fn every_address_of_every_server_is_tried_until_one_takes_a_session() {
        let tried = Mutex::new(Vec::new());
        let connector = connector();
        let opened = connector.open(at(&[1, 2, 3]), async |endpoint: Endpoint| {
            let shown = endpoint.to_string();
            tried.lock().unwrap().push(shown.clone());
            if shown == "db.example at 127.0.0.1:2" { Ok(shown) } else { Err(Error::new(ErrorKind::Init, shown)) }
        });
        assert_eq!(opened.await.unwrap(), "db.example at 127.0.0.1:2");
        assert_eq!(
            *tried.lock().unwrap(),
            ["db.example at 127.0.0.1:1", "db.example at 127.0.0.2:1", "db.example at 127.0.0.1:2"]
        );
    }

    #[tokio::test]
    async fn the_last_error_is_told_and_a_host_that_is_unknown_is_no_end() {
        let mut servers = vec![Server::tcp("no.such.host.invalid", 1)];
        let never = async |endpoint: Endpoint| Err::<(), _>(Error::new(ErrorKind::Init, endpoint.to_string()));
        let error = connector().open(servers.clone(), never).await.unwrap_err();
        assert!(error.to_string().contains("no.such.host.invalid"), "{error}");
        assert!(error.is_retryable());
        servers.extend(at(&[7]));
        let error = connector().open(servers, never).await.unwrap_err();
        assert_eq!(error.to_string(), "db.example at 127.0.0.2:7");
        let error = connector().open([], never).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
    }

    #[tokio::test]
    async fn a_unix_socket_has_one_address_and_no_host() {
        let found = connector().endpoints(&Server::Unix("/run/db.sock".into())).await.unwrap();
        let [Endpoint { address: Address::Unix(path), host: None, .. }] = &found[..] else { panic!("{found:?}") };
        assert_eq!(path.to_str(), Some("/run/db.sock"));
    }
}
