//! Sentinel: who the primary is, asked anew for each session.
//! <https://redis.io/docs/latest/develop/reference/sentinel-clients/>
//!
//! The driver's own client keeps its connections with the sentinels, and opens more with the servers that they name, where
//! nobody sees them end. Here a question has a session of its own, which is in the book, and which has ended when the answer
//! is there.

use redis::{ConnectionInfo, IntoConnectionInfo as _, Value, cmd, from_redis_value};
use winddown_core::{Error, ErrorKind};
use winddown_net::Server;

use crate::{
    config::Config,
    connect::{Connector, Endpoint, Login, server},
    error::error,
    sessions::ask_on,
    tls::{self, Tls},
};

/// One that may be asked.
#[derive(Debug)]
pub(crate) struct Sentinel {
    server: Server,
    tls: Tls,
    login: Login,
}

impl Sentinel {
    pub(crate) fn new(info: &ConnectionInfo, config: &Config) -> Result<Self, Error> {
        let settings = info.redis_settings();
        let login = Login {
            user: settings.username().map(ToOwned::to_owned),
            password: settings.password().map(ToOwned::to_owned),
            // It has neither databases nor anything else that is configured.
            database: 0,
            library: None,
            protocol: redis::ProtocolVersion::RESP2,
            ..config.login()
        };
        Ok(Self { server: server(info)?, tls: config.tls_of(info)?, login })
    }

    /// Where it says that this primary is; `None` if it knows none of that name.
    async fn primary(&self, connector: &Connector, name: &str) -> Result<Option<Server>, Error> {
        let asking = async |at: winddown_net::Endpoint| {
            let question = cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(name).take();
            let opening = at.opening();
            let socket = at.dial(&opening).await?;
            let endpoint =
                Endpoint { at, server: self.server.clone(), tls: self.tls.clone(), login: self.login.clone() };
            ask_on(&connector.sessions, socket, endpoint, opening, question).await
        };
        read(connector.config.connector().open([self.server.clone()], asking).await?)
    }
}

fn read(answer: Value) -> Result<Option<Server>, Error> {
    let unclear = |source| error(ErrorKind::Config, "the sentinel has no answer: is it one?", source);
    let answer = answer.extract_error().map_err(unclear)?;
    let place: Option<(String, u16)> = from_redis_value(answer).map_err(|source| unclear(source.into()))?;
    Ok(place.map(|(host, port)| Server::tcp(host, port)))
}

/// Where a sentinel listens if nothing else is said.
const PORT: u16 = 26379;

/// What the URL of a sentinel tells.
pub(crate) fn described(url: &str) -> Result<ConnectionInfo, Error> {
    let bad = || {
        let text = "this is no URL of a sentinel: give redis://host, or redis://user:password@host:port, special characters \
                    in it percent-encoded";
        Error::new(ErrorKind::Config, text)
    };
    if let Some(error) = tls::unusable(url) {
        return Err(error);
    }
    let mut url = redis::parse_redis_url(url).ok_or_else(bad)?;
    if url.port().is_none() {
        // An URL without a host has none, and is refused below.
        let _ = url.set_port(Some(PORT));
    }
    // Without the driver's error: it may quote a part of the URL.
    url.into_connection_info().map_err(|_| bad())
}

impl Connector {
    /// Where the primary of this name is: what the first sentinel says that answers and knows it.
    ///
    /// # Cancel safety
    /// Cancel safe: a sentinel that is being asked then is said goodbye to.
    pub(crate) async fn primary(&self, name: &str) -> Result<Server, Error> {
        let mut last = None;
        for sentinel in &self.sentinels {
            match sentinel.primary(self, name).await {
                Ok(Some(server)) => return Ok(server),
                Ok(None) => {
                    let text = format!("{} knows no primary called {name}: see the name", sentinel.server);
                    last = Some(Error::new(ErrorKind::Config, text));
                }
                Err(error) => {
                    tracing::debug!(sentinel = %sentinel.server, %error, "a sentinel does not answer");
                    last = last.or(Some(error));
                }
            }
        }
        Err(last.unwrap_or_else(|| Error::new(ErrorKind::Config, "there is no sentinel: give one or more")))
    }
}
