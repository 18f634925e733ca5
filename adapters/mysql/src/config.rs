//! What can be set, and how a pool is made of it.

use std::{env, fmt, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use deadpool::managed::PoolConfig;
use mysql_async::{Opts, OptsBuilder, PoolConstraints};
use winddown_core::{CredentialsProvider, Error, ErrorKind};

/// The environment variable with the URL of the database, see [`Mysql::from_env`](crate::Mysql::from_env).
pub const URL_VARIABLE: &str = "MYSQL_URL";

/// The default of [`Config::connect_timeout`].
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How a database is reached. Start with a URL, with the driver's own options, or with [`Config::from_env`], and set the
/// fields that should differ.
///
/// ```
/// use std::time::Duration;
/// use winddown_mysql::{Config, Mysql};
///
/// # fn main() -> Result<(), winddown_core::Error> {
/// let mut config: Config = "mysql://app@db.example.com/orders?require_ssl=true".parse()?;
/// config.pool.max_size = 4;
/// config.check_after = Duration::from_secs(5);
/// let db = Mysql::new(config);
/// # Ok(())
/// # }
/// ```
///
/// URLs are those of the driver ([its list](https://docs.rs/mysql_async/latest/mysql_async/#connection-url-parameters)), with
/// `ssl_ca` besides: a PEM file with the certificates that the server's own must come from.
#[derive(Clone)]
#[non_exhaustive]
pub struct Config {
    /// The driver's own options: host or socket, user, password, database, TLS and so on. Of those of its pool only
    /// `reset_connection` counts, and `pool_max` where it is not the driver's default; `prefer_socket` does not: name a
    /// `socket` to have one used.
    ///
    /// Its connection attribute `program_name`, by which the server's performance schema lists the sessions, defaults to
    /// the name of the Lambda function, or to that of the program.
    pub driver: Opts,
    /// The pool's own configuration: its size, how long a checkout waits.
    ///
    /// Defaults to the pool's: two connections for each CPU, and no limit to waiting.
    pub pool: PoolConfig,
    /// Where user and password come from, if not from `driver`: see [`Config::credentials`].
    ///
    /// Defaults to `None`.
    pub credentials: Option<Arc<dyn CredentialsProvider>>,
    /// How long opening a session may take with each address of the host, from the first packet to the last of the statements
    /// that are to be executed in each session. Also where a session is opened to cancel statements of others. `None` for no
    /// limit.
    ///
    /// Defaults to 5 s.
    pub connect_timeout: Option<Duration>,
    /// A connection that was not used for longer is checked before it is handed out, and replaced if the server has
    /// closed it; also after the process was frozen for longer. What is used again sooner costs no round trip. One that does
    /// not answer speaks for all that have been idle since it was used: they are replaced, too.
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
    /// all that nobody has with [`Duration::ZERO`]. The next checkout opens one.
    ///
    /// Defaults to `None`: they stay open.
    pub idle_at_flush: Option<Duration>,
}

impl Config {
    /// The defaults for the database whose URL is in `MYSQL_URL`.
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
                format!("{URL_VARIABLE} is not set: give it the URL of the database, mysql://user@host/database"),
            )),
        }
    }

    /// The same with user and password from this function, which is asked anew for each session: for tokens that are
    /// short-lived, such as those of IAM.
    ///
    /// ```
    /// use winddown_core::Credentials;
    /// use winddown_mysql::Config;
    ///
    /// # fn main() -> Result<(), winddown_core::Error> {
    /// # async fn fresh_token() -> Result<String, std::io::Error> { Ok("token".into()) }
    /// let config: Config = "mysql://app@db.example.com/orders?require_ssl=true".parse()?;
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

/// The defaults for a database that is described in the driver's own words.
impl From<Opts> for Config {
    fn from(driver: Opts) -> Self {
        let mut pool = PoolConfig::default();
        let constraints = driver.pool_opts().constraints();
        if constraints != PoolConstraints::default() {
            pool.max_size = constraints.max();
        }
        Self {
            driver,
            pool,
            credentials: None,
            connect_timeout: Some(CONNECT_TIMEOUT),
            check_after: Duration::from_secs(1),
            check_timeout: Duration::from_millis(500),
            max_lifetime: None,
            idle_timeout: None,
            idle_at_flush: None,
        }
    }
}

/// The same.
impl From<OptsBuilder> for Config {
    fn from(driver: OptsBuilder) -> Self {
        Opts::from(driver).into()
    }
}

/// From a URL.
///
/// # Errors
/// [`ErrorKind::Config`]; the message does not quote the text, which may hold a password.
impl FromStr for Config {
    type Err = Error;

    fn from_str(url: &str) -> Result<Self, Error> {
        let (rest, roots) = split(url);
        // Without the driver's error: it quotes what it takes for the name or the value of a parameter, which may be half
        // a password.
        let driver = Opts::from_url(&rest).map_err(|_| {
            let text = "this is no URL of a database, or a parameter in it is not known or has a value that cannot be: give \
                        mysql://user@host/database, special characters in it percent-encoded";
            Error::new(ErrorKind::Config, text)
        })?;
        let Some(roots) = roots else { return Ok(driver.into()) };
        let Some(ssl) = driver.ssl_opts().cloned() else {
            let text = "ssl_ca is of use for encrypted sessions only: set require_ssl=true";
            return Err(Error::new(ErrorKind::Config, text));
        };
        let ssl = ssl.with_root_certs(vec![roots.into()]);
        Ok(OptsBuilder::from_opts(driver).ssl_opts(ssl).into())
    }
}

/// Takes the parameter out that the driver does not know.
fn split(url: &str) -> (String, Option<PathBuf>) {
    let Some((address, query)) = url.split_once('?') else { return (url.to_owned(), None) };
    let mut roots = None;
    let rest: Vec<&str> = query
        .split('&')
        .filter(|pair| {
            let Some(path) = pair.strip_prefix("ssl_ca=") else { return true };
            roots = Some(PathBuf::from(&*percent_encoding::percent_decode_str(path).decode_utf8_lossy()));
            false
        })
        .collect();
    (if rest.is_empty() { address.to_owned() } else { format!("{address}?{}", rest.join("&")) }, roots)
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            driver,
            pool,
            credentials,
            connect_timeout,
            check_after,
            check_timeout,
            max_lifetime,
            idle_timeout,
            idle_at_flush,
        } = self;
        f.debug_struct("Config")
            // Not its own `Debug`, which shows the password.
            .field("host", &driver.ip_or_hostname())
            .field("port", &driver.tcp_port())
            .field("socket", &driver.socket())
            .field("user", &driver.user())
            .field("database", &driver.db_name())
            .field("tls", &driver.ssl_opts().is_some())
            .field("pool", pool)
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
            let expected = "MYSQL_URL is not set: give it the URL of the database, mysql://user@host/database";
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn a_url_may_have_all_that_the_driver_knows_and_a_file_of_root_certificates() {
        let url = "mysql://app:secret@one:3307/orders?require_ssl=true&ssl_ca=%2Fetc%2Fca%20bundle.pem&\
                   built_in_roots=false&pool_max=3&pool_min=1&stmt_cache_size=7&reset_connection=true";
        let config: Config = url.parse().unwrap();
        let ssl = config.driver.ssl_opts().unwrap();
        assert_eq!(ssl.root_certs(), [PathBuf::from("/etc/ca bundle.pem").into()]);
        assert!(ssl.disable_built_in_roots());
        assert_eq!((config.driver.tcp_port(), config.driver.stmt_cache_size()), (3307, 7));
        assert_eq!(config.pool.max_size, 3);
        assert!(!format!("{config:?} {config:#?}").contains("secret"));
        let config: Config = "mysql://app@one/orders".parse().unwrap();
        assert_eq!(config.pool.max_size, PoolConfig::default().max_size);
        assert_eq!(config.connect_timeout, Some(Duration::from_secs(5)));
    }

    #[test]
    fn root_certificates_without_encryption_are_an_error() {
        let error = "mysql://app@one/orders?ssl_ca=/etc/ca.pem".parse::<Config>().unwrap_err();
        assert!(error.to_string().contains("require_ssl=true"), "{error}");
    }

    #[test]
    fn what_is_no_url_is_an_error_that_quotes_nothing_of_it() {
        let bad = [
            "mysql://app:s3cret@host:port/db",
            "mysql://app:s3cret@host/db?s3cret=s3cret",
            "mysql://app@host/db?pool_max=s3cret",
            "postgres://app:s3cret@host/db",
            "s3cret",
            "",
        ];
        for bad in bad {
            let error = bad.parse::<Config>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
    }
}
