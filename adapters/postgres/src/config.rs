//! What can be set, and how a pool is made of it.

use std::{env, fmt, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use deadpool_postgres::{PoolConfig, RecyclingMethod};
use winddown_core::{CredentialsProvider, Error, ErrorKind};

use crate::tls::{Roots, SslMode};

/// The environment variable with the URL of the database, see [`Postgres::from_env`](crate::Postgres::from_env).
pub const URL_VARIABLE: &str = "DATABASE_URL";

/// How a database is reached. Start with a URL, with the driver's own configuration, or with [`Config::from_env`], and
/// set the fields that should differ.
///
/// ```
/// use std::time::Duration;
/// use winddown_postgres::{Config, Postgres, SslMode};
///
/// # fn main() -> Result<(), winddown_core::Error> {
/// let mut config: Config = "postgres://app@db.example.com/orders?sslmode=verify-full".parse()?;
/// config.pool.max_size = 4;
/// config.check_after = Duration::from_secs(5);
/// let db = Postgres::new(config);
/// # Ok(())
/// # }
/// ```
///
/// URLs and `key=value` strings are those of the driver
/// ([its list](https://docs.rs/tokio-postgres/latest/tokio_postgres/config/struct.Config.html)), with libpq's
/// `sslmode=verify-ca`, `sslmode=verify-full` and `sslrootcert` besides.
#[derive(Clone)]
#[non_exhaustive]
pub struct Config {
    /// The driver's own configuration: hosts, user, password, database, timeouts and so on. Its `ssl_mode` and its
    /// `connect_timeout` count for nothing: [`ssl_mode`](Self::ssl_mode) and [`connect_timeout`](Self::connect_timeout) do.
    ///
    /// Its `application_name`, by which the server lists the sessions, defaults to the name of the Lambda function, or
    /// to that of the program.
    pub driver: tokio_postgres::Config,
    /// The pool's own configuration: its size, how long a checkout waits.
    ///
    /// Defaults to the driver's: two connections for each CPU, and no limit to waiting.
    pub pool: PoolConfig,
    /// What the pool does with a connection before it is handed out again.
    ///
    /// Defaults to [`RecyclingMethod::Fast`]: nothing, not even a round trip.
    pub recycling_method: RecyclingMethod,
    /// Whether sessions are encrypted and how the server is checked.
    ///
    /// Defaults to what the URL or the driver's configuration says, and to [`SslMode::Prefer`] where they are silent.
    pub ssl_mode: SslMode,
    /// The certificates that the server's own must come from; `sslrootcert` in a URL (`system` for the system's).
    ///
    /// Defaults to `None`: the system's, where the mode asks for any.
    pub roots: Option<Roots>,
    /// A configuration of rustls that takes the place of `roots` and of what the mode says about checking: for client
    /// certificates, or another provider of cryptography than the process's default.
    ///
    /// Defaults to `None`.
    #[cfg(feature = "tls")]
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// Where user and password come from, if not from `driver`: see [`Config::credentials`].
    ///
    /// Defaults to `None`.
    pub credentials: Option<Arc<dyn CredentialsProvider>>,
    /// How long opening a session with one address may take, from the first packet to the end of the login: connecting, TLS
    /// and the login together. Then the next address has its turn, and the next host. Looking a host up may take as long, and so
    /// may asking a server to cancel a statement. `None` for no limit.
    ///
    /// Defaults to what the URL or the driver's configuration says, where 0 stands for none as it does for libpq, and to 5 s
    /// where they are silent.
    pub connect_timeout: Option<Duration>,
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
    /// through; a checkout keeps the one that it has. Time for which the process was frozen counts.
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
}

impl Config {
    /// The defaults for the database whose URL is in `DATABASE_URL`.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the variable is not set, empty, or no URL of a database.
    pub fn from_env() -> Result<Self, Error> {
        Self::from_variable(env::var(URL_VARIABLE).ok())
    }

    fn from_variable(url: Option<String>) -> Result<Self, Error> {
        match url.filter(|url| !url.is_empty()) {
            Some(url) => url.parse(),
            None => Err(Error::new(
                ErrorKind::Config,
                format!("{URL_VARIABLE} is not set: give it the URL of the database, postgres://user@host/database"),
            )),
        }
    }

    /// The same with user and password from this function, which is asked anew for each session: for tokens that are
    /// short-lived, such as those of IAM.
    ///
    /// ```
    /// use winddown_postgres::{Config, Credentials};
    ///
    /// # fn main() -> Result<(), winddown_core::Error> {
    /// # async fn fresh_token() -> Result<String, std::io::Error> { Ok("token".into()) }
    /// let config: Config = "postgres://app@db.example.com/orders?sslmode=verify-full".parse()?;
    /// let config = config.credentials(|| async { Ok(Credentials::password(fresh_token().await?)) });
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn credentials(mut self, provider: impl CredentialsProvider) -> Self {
        self.credentials = Some(Arc::new(provider));
        self
    }
}

/// Where nobody says how long opening a session may take.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The defaults for a database that is described in the driver's own words.
impl From<tokio_postgres::Config> for Config {
    fn from(driver: tokio_postgres::Config) -> Self {
        let driver_limit = driver.get_connect_timeout().copied();
        Self {
            ssl_mode: driver.get_ssl_mode().into(),
            driver,
            pool: PoolConfig::default(),
            recycling_method: RecyclingMethod::Fast,
            roots: None,
            #[cfg(feature = "tls")]
            tls: None,
            credentials: None,
            connect_timeout: match driver_limit {
                Some(limit) => (!limit.is_zero()).then_some(limit),
                None => Some(CONNECT_TIMEOUT),
            },
            check_after: Duration::from_secs(1),
            check_timeout: Duration::from_millis(500),
            max_lifetime: None,
            idle_timeout: None,
            idle_at_flush: None,
        }
    }
}

/// From a URL, or from `key=value` pairs.
///
/// # Errors
/// [`ErrorKind::Config`]; the message does not quote the text, which may hold a password.
impl FromStr for Config {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (rest, ours) = if ["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme)) {
            split_url(text)
        } else {
            split_pairs(text)
        };
        // Without the driver's error: it quotes what it takes for the name of an option, which may be half a password.
        let driver: tokio_postgres::Config = rest.parse().map_err(|_| {
            let text = "this is no URL of a database, or an option in it is not known or has a value that cannot be: give \
                        postgres://user@host/database, special characters in it percent-encoded";
            Error::new(ErrorKind::Config, text)
        })?;
        let mut config = Self::from(driver);
        for (key, value) in ours {
            match key {
                Ours::ConnectTimeout => config.connect_timeout = limit(&value)?,
                Ours::SslMode => config.ssl_mode = value.parse()?,
                Ours::SslRootCert if value == "system" => config.roots = Some(Roots::System),
                Ours::SslRootCert => config.roots = Some(Roots::File(PathBuf::from(value))),
            }
        }
        Ok(config)
    }
}

/// Settings of libpq that the driver does not know, or not all of whose values it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ours {
    SslMode,
    SslRootCert,
    /// The driver takes 0 for nothing said.
    ConnectTimeout,
}

/// How many seconds; none, as for libpq, where it is 0 or less.
fn limit(value: &str) -> Result<Option<Duration>, Error> {
    let seconds: i64 = value.trim().parse().map_err(|_| {
        Error::new(ErrorKind::Config, "connect_timeout is no number of seconds: give 5, say, or 0 for no limit")
    })?;
    Ok(u64::try_from(seconds).ok().filter(|&seconds| seconds > 0).map(Duration::from_secs))
}

impl Ours {
    fn of(key: &str) -> Option<Self> {
        match key {
            "sslmode" => Some(Self::SslMode),
            "sslrootcert" => Some(Self::SslRootCert),
            "connect_timeout" => Some(Self::ConnectTimeout),
            _ => None,
        }
    }
}

/// What the driver is to read, and what it is not.
type Split = (String, Vec<(Ours, String)>);

fn split_url(url: &str) -> Split {
    let Some((address, query)) = url.split_once('?') else { return (url.to_owned(), Vec::new()) };
    let mut ours = Vec::new();
    let rest: Vec<&str> = query
        .split('&')
        .filter(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let Some(key) = Ours::of(key) else { return true };
            ours.push((key, percent_encoding::percent_decode_str(value).decode_utf8_lossy().into_owned()));
            false
        })
        .collect();
    (if rest.is_empty() { address.to_owned() } else { format!("{address}?{}", rest.join("&")) }, ours)
}

/// Takes our pairs out of the text, and leaves everything else to the driver, as it is.
fn split_pairs(text: &str) -> Split {
    let mut ours = Vec::new();
    let mut rest = String::new();
    let mut left = text;
    while !left.trim_start().is_empty() {
        let pair = &left[..pair_length(left)];
        left = &left[pair.len()..];
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        match Ours::of(key.trim()) {
            Some(key) => ours.push((key, unquoted(value.trim()))),
            None => rest.push_str(pair),
        }
    }
    (rest, ours)
}

/// How much of the text the first pair takes, with the space before it.
fn pair_length(text: &str) -> usize {
    let mut quoted = false;
    let mut escaped = false;
    let mut seen_value = false;
    let mut after_equals = false;
    for (at, character) in text.char_indices() {
        if escaped {
            escaped = false;
            continue;
        }
        match character {
            '\\' if after_equals => (escaped, seen_value) = (true, true),
            '\'' if after_equals => (quoted, seen_value) = (!quoted, true),
            '=' if !after_equals => after_equals = true,
            c if c.is_whitespace() && seen_value && !quoted => return at,
            c if !c.is_whitespace() && after_equals => seen_value = true,
            _ => {}
        }
    }
    text.len()
}

fn unquoted(value: &str) -> String {
    let inner = value.strip_prefix('\'').and_then(|value| value.strip_suffix('\'')).unwrap_or(value);
    let mut plain = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        plain.extend(if character == '\\' { characters.next() } else { Some(character) });
    }
    plain
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            driver,
            pool,
            recycling_method,
            ssl_mode,
            roots,
            #[cfg(feature = "tls")]
            tls,
            credentials,
            connect_timeout,
            check_after,
            check_timeout,
            max_lifetime,
            idle_timeout,
            idle_at_flush,
        } = self;
        let mut debug = f.debug_struct("Config");
        #[cfg(feature = "tls")]
        debug.field("tls", &tls.is_some());
        debug
            // Leaves its password out.
            .field("driver", driver)
            .field("pool", pool)
            .field("recycling_method", recycling_method)
            .field("ssl_mode", ssl_mode)
            .field("roots", roots)
            .field("credentials", &credentials.is_some())
            .field("connect_timeout", connect_timeout)
            .field("check_after", check_after)
            .field("check_timeout", check_timeout)
            .field("max_lifetime", max_lifetime)
            .field("idle_timeout", idle_timeout)
            .field("idle_at_flush", idle_at_flush)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unset_or_empty_variable_is_an_error_that_says_what_to_set() {
        for url in [None, Some(String::new())] {
            let error = Config::from_variable(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            let expected = "DATABASE_URL is not set: give it the URL of the database, postgres://user@host/database";
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn a_url_may_have_all_that_the_driver_knows_and_how_libpq_checks_a_server() {
        let url = "postgres://app:secret@one:5433,two/orders?sslmode=verify-full&application_name=x&\
                   sslrootcert=%2Fetc%2Fca%20bundle.pem&target_session_attrs=read-write";
        let config: Config = url.parse().unwrap();
        assert_eq!(config.ssl_mode, SslMode::VerifyFull);
        assert_eq!(config.roots, Some(Roots::File("/etc/ca bundle.pem".into())));
        assert_eq!(config.driver.get_hosts().len(), 2);
        assert_eq!(config.driver.get_application_name(), Some("x"));
        assert!(!format!("{config:?}").contains("secret"));
        for (mode, expected) in [("", SslMode::Prefer), ("?sslmode=disable", SslMode::Disable)] {
            let config: Config = format!("postgres://app@one/orders{mode}").parse().unwrap();
            assert_eq!(config.ssl_mode, expected);
        }
    }

    #[test]
    fn pairs_may_be_quoted_and_escaped() {
        let text =
            r"host = 'a b' sslrootcert='/etc/o\'brien ca.pem' user=app  sslmode = verify-ca password='p sslmode=x'";
        let config: Config = text.parse().unwrap();
        assert_eq!(config.ssl_mode, SslMode::VerifyCa);
        assert_eq!(config.roots, Some(Roots::File("/etc/o'brien ca.pem".into())));
        assert_eq!(config.driver.get_user(), Some("app"));
        assert_eq!(config.driver.get_password(), Some(&b"p sslmode=x"[..]));
        let config: Config = "user=app sslrootcert=system sslmode=require".parse().unwrap();
        assert_eq!(config.roots, Some(Roots::System));
    }

    #[test]
    fn opening_a_session_has_a_limit_unless_it_is_said_to_have_none() {
        let of = |text: &str| text.parse::<Config>().map(|config| config.connect_timeout);
        assert_eq!(of("postgres://app@one/orders").unwrap(), Some(Duration::from_secs(5)));
        assert_eq!(of("postgres://app@one/orders?connect_timeout=2").unwrap(), Some(Duration::from_secs(2)));
        for none in ["0", "-1"] {
            assert_eq!(of(&format!("postgres://app@one/orders?connect_timeout={none}")).unwrap(), None);
            assert_eq!(of(&format!("host=one user=app connect_timeout={none}")).unwrap(), None);
        }
        let error = of("postgres://app@one/orders?connect_timeout=s3cret").unwrap_err();
        assert!(error.to_string().starts_with("connect_timeout is no number of seconds"), "{error}");
        assert!(!error.to_string().contains("s3cret"));

        let mut driver = tokio_postgres::Config::new();
        assert_eq!(Config::from(driver.clone()).connect_timeout, Some(Duration::from_secs(5)));
        driver.connect_timeout(Duration::from_millis(300));
        assert_eq!(Config::from(driver.clone()).connect_timeout, Some(Duration::from_millis(300)));
        driver.connect_timeout(Duration::ZERO);
        assert_eq!(Config::from(driver).connect_timeout, None);
    }

    #[test]
    fn what_is_no_url_is_an_error_that_quotes_nothing_of_it() {
        for bad in ["postgres://app:s3cret@host:port/db", "postgres://app:s3cret@host/db?s3cret=s3cret", "s3cret"] {
            let error = bad.parse::<Config>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
        let error = "postgres://app@host/db?sslmode=verify".parse::<Config>().unwrap_err();
        assert!(error.to_string().starts_with("sslmode=verify is not known"), "{error}");
    }
}
