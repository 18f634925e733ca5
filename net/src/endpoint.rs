//! A server as it is reached: where its host is, and one socket with it, in the time that opening a session has.

use std::{fmt, future::Future, io, time::Duration};

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
            (Address::Tcp(address), None) => write!(f, "{address}"),
            (Address::Unix(path), _) => write!(f, "{}", path.display()),
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

/// The addresses of a host, in the order in which the system has them.
///
/// # Errors
/// [`ErrorKind::Init`], [`retryable`](Error::retryable): the host is not known, has no address, or nobody has answered within the limit.
pub async fn lookup(host: &str, port: u16, limit: Duration) -> Result<Vec<Address>, Error> {
    let found = Opening::of(host, limit).step("looking the host up", lookup_host((host, port))).await?;
    let failed = |text: String| Error::new(ErrorKind::Init, text).retryable();
    let found = found.map_err(|source| failed(format!("cannot look up the host {host}")).with_source(source))?;
    let found: Vec<_> = found.map(Address::Tcp).collect();
    if found.is_empty() { Err(failed(format!("the host {host} has no address"))) } else { Ok(found) }
}
