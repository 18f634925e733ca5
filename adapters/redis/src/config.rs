//! What can be set, and how sessions are opened with it.

use std::{env, fmt, str::FromStr, sync::Arc, time::Duration};

use deadpool::managed::PoolConfig;
use redis::{Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, aio::AsyncPushSender};
use winddown_core::{CredentialsProvider, Error, ErrorKind, adapter::client_name};
use winddown_net::{Connector, Options, tls::Check};

#[cfg(feature = "cluster")]
use crate::cluster::Nodes;
use crate::{
    connect::Login,
    sentinel,
    tls::{self, Roots, Tls},
};

/// The environment variable with the URL of the server, see [`Redis::from_env`](crate::Redis::from_env).
pub const URL_VARIABLE: &str = "REDIS_URL";

/// How a server is reached, and whether checkouts share a connection. Start with a URL, with the driver's own
/// [`ConnectionInfo`], or with [`Config::from_env`], and set the fields that should differ.
///
/// ```
/// use std::time::Duration;
/// use winddown_redis::{Config, Redis};
///
/// # fn main() -> Result<(), winddown_core::Error> {
/// let mut config: Config = "rediss://app@cache.example.com/".parse()?;
/// config.check_after = Duration::from_secs(5);
/// let cache = Redis::new(config.clone());
///
/// // For commands that wait: each checkout has a connection of its own, eight at most.
/// let queue = Redis::new(config.pooled(8));
/// # Ok(())
/// # }
/// ```
///
/// URLs are those of the driver: `redis://user:password@host:port/database`, `rediss://` with TLS, `redis+unix:///path`,
/// `valkey://` and so on, with `?protocol=resp3`
/// ([its list](https://docs.rs/redis/latest/redis/#connection-parameters)).
#[derive(Clone)]
#[non_exhaustive]
pub struct Config {
    /// The driver's own configuration: where the server is, user, password, database, version of the protocol, settings of
    /// TCP. What it says about certificates counts for nothing: [`roots`](Self::roots) and [`tls`](Self::tls) do.
    pub driver: ConnectionInfo,
    /// Who is asked where the server is: see [`Config::sentinel`].
    ///
    /// Defaults to nobody: `driver` says it.
    pub sentinels: Vec<ConnectionInfo>,
    /// Set where the server is a node of a cluster: see [`Config::cluster`].
    ///
    /// Defaults to `None`.
    #[cfg(feature = "cluster")]
    pub cluster: Option<Nodes>,
    /// How many connections there are, and how long a checkout waits for one, where each checkout has its own: for commands
    /// that wait at the server (`BLPOP`, `XREAD BLOCK`, `WAIT`), and for `WATCH`. See [`Config::pooled`].
    ///
    /// Defaults to `None`: all checkouts share one connection.
    pub pool: Option<PoolConfig>,
    /// By what name the server lists the sessions; `CLIENT SETNAME`. Characters that it cannot have become `_`.
    ///
    /// Defaults to the name of the Lambda function, or to that of the program.
    pub client_name: Option<String>,
    /// How long opening a session with one address may take, from the first packet to the end of the login: connecting, TLS
    /// and the login together. Then the next address has its turn. Looking a host up may take as long.
    ///
    /// A command that has to open the shared connection anew tries up to five times, and begins no try after this time: it, and
    /// all who wait with it, get the connection or the error of the last try then.
    ///
    /// Defaults to 1 s, as the driver's does. `None` for no limit.
    pub connect_timeout: Option<Duration>,
    /// How long a caller waits for an answer. The command is not stopped when that is over, and whether it was executed is not
    /// known then.
    ///
    /// Defaults to 500 ms, as the driver's does; to `None`, no limit, where each checkout has its own connection.
    pub response_timeout: Option<Duration>,
    /// Who is told what the server sends unasked, such as the messages of subscriptions. Needs `?protocol=resp3`.
    ///
    /// When a session ends that was open, however that happens, it is told
    /// [`PushKind::Disconnection`](redis::PushKind::Disconnection), once: the subscriptions of that session are gone. Whoever
    /// wants them subscribes again, which opens another one.
    ///
    /// Defaults to `None`.
    pub push_sender: Option<Arc<dyn AsyncPushSender>>,
    /// How often a session is asked whether its server is there, once something was pushed on it: who only listens would not
    /// notice. One that has not answered when it is to be asked again, or within [`check_timeout`](Self::check_timeout) if that
    /// is longer, is ended, and the `push_sender` told. One that is busy with a command is not asked.
    ///
    /// Defaults to 10 s. `None` to never ask. Counts for nothing without a `push_sender`, and in a cluster.
    pub listening_check: Option<Duration>,
    /// The certificates that the server's own must come from.
    ///
    /// Defaults to `None`: the system's, where the URL asks for TLS.
    pub roots: Option<Roots>,
    /// A configuration of rustls that takes the place of `roots`: for client certificates, or another provider of
    /// cryptography than the process's default.
    ///
    /// Defaults to `None`.
    #[cfg(feature = "tls")]
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// Where user and password come from, if not from `driver`: see [`Config::credentials`].
    ///
    /// Defaults to `None`.
    pub credentials: Option<Arc<dyn CredentialsProvider>>,
    /// A connection that was not used for longer is checked before it is handed out, and replaced if the server has
    /// closed it; also after the process was frozen for longer. What is used again sooner costs no round trip.
    ///
    /// Defaults to 1 s.
    pub check_after: Duration,
    /// How long the check waits for the server's answer.
    ///
    /// Defaults to 500 ms.
    pub check_timeout: Duration,
    /// How long a session lives at most, from when it was opened: then it says goodbye, and another one takes its place. For what a
    /// server or a balancer ends by itself after some time, or to come to new servers. Each session's own limit is shorter by up to a
    /// tenth, at random, so that those that were opened together do not all end at once.
    ///
    /// There is no timer: a session ends when it comes back, or when it would be handed out again and the pool is looked
    /// through; a checkout keeps the one that it has. Time for which the process was frozen counts. The
    /// connection that all share is looked at when a checkout is handed out, and ends when what is under way on it is over. Counts for
    /// nothing in a cluster.
    ///
    /// Defaults to `None`: what the server has closed is seen by the check after a rest all the same.
    pub max_lifetime: Option<Duration>,
    /// How long a session may be idle, from when it was last handed out: then it says goodbye as soon as the pool is used
    /// again, or up to a tenth of that time later while the pool is used all the time. Without a timer, as
    /// [`max_lifetime`](Self::max_lifetime).
    ///
    /// Defaults to `None`.
    pub idle_timeout: Option<Duration>,
    /// Which sessions say goodbye when the lifecycle is [flushed](winddown_core::Lifecycle::flush), as at the end of a Lambda
    /// invocation, before the process is frozen with all that it has open: those that were last handed out so long ago or longer,
    /// all that nobody has with [`Duration::ZERO`]. The flush waits until the server has closed them; the next checkout opens one.
    ///
    /// Defaults to `None`: they stay open.
    pub idle_at_flush: Option<Duration>,
    /// Whether commands that wait at the server (`BLPOP`, `XREAD BLOCK`, `WAIT`) are ended as soon as draining begins, though
    /// somebody waits for their answers: that is then the server's error `UNBLOCKED`. An idle worker is over at once with it,
    /// and holds the drain up without it until its command is over by itself or settling ends. One that nobody waits for is ended
    /// at once in any case.
    ///
    /// Defaults to `false`.
    pub unblock_on_drain: bool,
}

impl Config {
    /// The defaults for the server whose URL is in `REDIS_URL`.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the variable is not set, empty, or no URL of a server.
    pub fn from_env() -> Result<Self, Error> {
        Self::from_variable(env::var(URL_VARIABLE).ok())
    }

    fn from_variable(url: Option<String>) -> Result<Self, Error> {
        match url.filter(|url| !url.is_empty()) {
            Some(url) => url.parse(),
            None => Err(Error::new(
                ErrorKind::Config,
                format!("{URL_VARIABLE} is not set: give it the URL of the server, redis://user@host"),
            )),
        }
    }

    /// The defaults for a primary that these sentinels know, by its name: each session asks the first sentinel that answers
    /// where the primary is now.
    ///
    /// Sentinels are given by their URLs, with user and password where they want one; their port is 26379 if a URL has none.
    /// The primary is given by its name, or by a URL with the name in the place of the host where there is more to say.
    ///
    /// ```
    /// use winddown_redis::Config;
    ///
    /// # fn main() -> Result<(), winddown_core::Error> {
    /// let sentinels = ["redis://sentinel-1", "redis://sentinel-2", "redis://sentinel-3"];
    /// let config = Config::sentinel(sentinels, "orders")?;
    /// let config = Config::sentinel(sentinels, "rediss://app:secret@orders/2")?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when one is no URL of a server, or there is none; the message does not quote it.
    pub fn sentinel<T: AsRef<str>>(sentinels: impl IntoIterator<Item = T>, primary: &str) -> Result<Self, Error> {
        let sentinels: Vec<_> =
            sentinels.into_iter().map(|url| sentinel::described(url.as_ref())).collect::<Result<_, _>>()?;
        if sentinels.is_empty() {
            return Err(Error::new(ErrorKind::Config, "there is no sentinel: give the URL of one or more"));
        }
        let config =
            if primary.contains("://") { primary.parse() } else { format!("redis://{primary}").parse::<Self>() };
        Ok(Self { sentinels, ..config? })
    }

    /// The defaults for a cluster, by the URLs of one or more of its nodes. What is not about where a node is (user,
    /// password, TLS, version of the protocol) is as in the first, for all of them.
    ///
    /// All checkouts share one connection with each node. A command that wants no answer and goes to a node that has given
    /// the slot away is not sent again: it is reported as lost.
    ///
    /// ```
    /// use winddown_redis::Config;
    ///
    /// # fn main() -> Result<(), winddown_core::Error> {
    /// let config = Config::cluster(["redis://app:secret@node-1:7000", "redis://node-2:7000"])?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when one is no URL of a server, or there is none; the message does not quote it.
    #[cfg(feature = "cluster")]
    pub fn cluster<T: AsRef<str>>(nodes: impl IntoIterator<Item = T>) -> Result<Self, Error> {
        let nodes: Vec<Self> = nodes.into_iter().map(|url| url.as_ref().parse()).collect::<Result<_, _>>()?;
        let mut nodes = nodes.into_iter();
        let none = || Error::new(ErrorKind::Config, "there is no node: give the URL of one or more");
        let first = nodes.next().ok_or_else(none)?;
        let others = nodes.map(|node| node.driver).collect();
        Ok(Self { cluster: Some(Nodes { others, client: None }), ..first })
    }

    /// The same with a connection for each checkout, so many at most, and no [`response_timeout`](Self::response_timeout).
    #[must_use]
    pub fn pooled(mut self, connections: usize) -> Self {
        self.pool = Some(PoolConfig::new(connections));
        self.response_timeout = None;
        self
    }

    /// The same with user and password from this function, which is asked anew for each session: for tokens that are
    /// short-lived, such as those of IAM.
    ///
    /// ```
    /// use winddown_redis::{Config, Credentials};
    ///
    /// # fn main() -> Result<(), winddown_core::Error> {
    /// # async fn fresh_token() -> Result<String, std::io::Error> { Ok("token".into()) }
    /// let config: Config = "rediss://app@cache.example.com".parse()?;
    /// let config = config.credentials(|| async { Ok(Credentials::password(fresh_token().await?)) });
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn credentials(mut self, provider: impl CredentialsProvider) -> Self {
        self.credentials = Some(Arc::new(provider));
        self
    }

    /// How sessions are encrypted with a server that is described so.
    pub(crate) fn tls_of(&self, server: &ConnectionInfo) -> Result<Tls, Error> {
        let check = match server.addr() {
            ConnectionAddr::TcpTls { insecure: true, .. } => Some(Check::Nothing),
            ConnectionAddr::TcpTls { .. } => Some(Check::Name),
            _ => None,
        };
        Tls::new(check, self)
    }

    /// How a server is reached.
    pub(crate) fn connector(&self) -> Connector {
        let settings = self.driver.tcp_settings();
        let options = Options { tcp_user_timeout: settings.user_timeout(), keepalive: settings.keepalive().cloned() };
        Connector { options, limit: self.connect_timeout.unwrap_or(Duration::MAX), shuffles: false }
    }

    pub(crate) fn login(&self) -> Login {
        let settings = self.driver.redis_settings();
        let library = || {
            let name = settings.lib_name().map_or_else(|| "redis-rs(winddown)".to_owned(), ToOwned::to_owned);
            (name, settings.lib_ver().unwrap_or(env!("CARGO_PKG_VERSION")).to_owned())
        };
        Login {
            user: settings.username().map(ToOwned::to_owned),
            password: settings.password().map(ToOwned::to_owned),
            name: self.client_name.clone().or_else(client_name).map(listable),
            library: (!settings.skip_set_lib_name()).then(library),
            database: settings.db(),
            protocol: settings.protocol(),
            writes: !self.sentinels.is_empty(),
        }
    }
}

/// The server takes no spaces and nothing that cannot be printed.
fn listable(name: String) -> String {
    name.chars().map(|c| if c.is_ascii_graphic() { c } else { '_' }).collect()
}

/// The defaults for a server that is described in the driver's own words.
impl From<Client> for Config {
    fn from(client: Client) -> Self {
        client.get_connection_info().clone().into()
    }
}

impl From<ConnectionInfo> for Config {
    fn from(driver: ConnectionInfo) -> Self {
        Self {
            driver,
            sentinels: Vec::new(),
            #[cfg(feature = "cluster")]
            cluster: None,
            pool: None,
            client_name: None,
            connect_timeout: Some(Duration::from_secs(1)),
            response_timeout: Some(Duration::from_millis(500)),
            push_sender: None,
            listening_check: Some(Duration::from_secs(10)),
            roots: None,
            #[cfg(feature = "tls")]
            tls: None,
            credentials: None,
            check_after: Duration::from_secs(1),
            check_timeout: Duration::from_millis(500),
            max_lifetime: None,
            idle_timeout: None,
            idle_at_flush: None,
            unblock_on_drain: false,
        }
    }
}

/// From a URL.
///
/// # Errors
/// [`ErrorKind::Config`]; the message does not quote the text, which may hold a password.
impl FromStr for Config {
    type Err = Error;

    fn from_str(url: &str) -> Result<Self, Error> {
        if let Some(error) = tls::unusable(url) {
            return Err(error);
        }
        // Without the driver's error: it may quote a part of the URL.
        let driver = url.into_connection_info().map_err(|_| {
            let text = "this is no URL of a server, or an option in it has a value that cannot be: give \
                        redis://user:password@host/database, special characters in it percent-encoded";
            Error::new(ErrorKind::Config, text)
        })?;
        Ok(Self::from(driver))
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            driver,
            sentinels,
            #[cfg(feature = "cluster")]
            cluster,
            pool,
            client_name,
            connect_timeout,
            response_timeout,
            push_sender,
            listening_check,
            roots,
            #[cfg(feature = "tls")]
            tls,
            credentials,
            check_after,
            check_timeout,
            max_lifetime,
            idle_timeout,
            idle_at_flush,
            unblock_on_drain,
        } = self;
        let mut debug = f.debug_struct("Config");
        // They leave their passwords out.
        debug.field("driver", driver).field("sentinels", sentinels);
        #[cfg(feature = "cluster")]
        debug.field("cluster", cluster);
        #[cfg(feature = "tls")]
        debug.field("tls", &tls.is_some());
        debug
            .field("pool", pool)
            .field("client_name", client_name)
            .field("connect_timeout", connect_timeout)
            .field("response_timeout", response_timeout)
            .field("push_sender", &push_sender.is_some())
            .field("listening_check", listening_check)
            .field("roots", roots)
            .field("credentials", &credentials.is_some())
            .field("check_after", check_after)
            .field("check_timeout", check_timeout)
            .field("max_lifetime", max_lifetime)
            .field("idle_timeout", idle_timeout)
            .field("idle_at_flush", idle_at_flush)
            .field("unblock_on_drain", unblock_on_drain)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use winddown_net::Server;

    use crate::connect::server;

    #[test]
    fn an_unset_or_empty_variable_is_an_error_that_says_what_to_set() {
        for url in [None, Some(String::new())] {
            let error = Config::from_variable(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            let expected = "REDIS_URL is not set: give it the URL of the server, redis://user@host";
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn a_url_says_where_the_server_is_and_who_logs_on() {
        let config: Config = "redis://app:s%20cret@one:7000/3?protocol=resp3".parse().unwrap();
        assert_eq!(server(&config.driver).unwrap(), Server::tcp("one", 7000));
        let Login { user, password, database, protocol, .. } = config.login();
        assert_eq!((user.as_deref(), password.as_deref(), database), (Some("app"), Some("s cret"), 3));
        assert!(protocol.supports_resp3());
        assert!(!format!("{config:?} {:?}", config.login()).contains("s cret"));
        let config: Config = "redis+unix:///run/redis.sock?db=2&user=app&pass=x".parse().unwrap();
        assert_eq!(server(&config.driver).unwrap(), Server::Unix("/run/redis.sock".into()));
        assert_eq!(config.login().database, 2);
    }

    #[test]
    fn a_name_that_cannot_be_listed_is_made_one() {
        let mut config: Config = "redis://one".parse().unwrap();
        config.client_name = Some("my func\n1".into());
        assert_eq!(config.login().name.as_deref(), Some("my_func_1"));
    }

    #[test]
    fn what_is_no_url_is_an_error_that_quotes_nothing_of_it() {
        for bad in ["redis://app:s3cret@host:port", "redis://app:s3cret@host/s3cret", "s3cret"] {
            let error = bad.parse::<Config>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn without_tls_a_url_that_asks_for_it_says_which_feature_to_turn_on() {
        for url in ["rediss://app:s3cret@one", "valkeys://one"] {
            for parsed in
                [url.parse::<Config>(), Config::sentinel([url], "orders"), Config::sentinel(["redis://one"], url)]
            {
                let error = parsed.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Config);
                let text = error.to_string();
                assert!(text.contains("turn on the feature tls") && !text.contains("s3cret"), "{text}");
            }
        }
    }
}
