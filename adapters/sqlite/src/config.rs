//! What can be set, and how a pool is made of it.

use std::{env, ffi::OsString, path::PathBuf, time::Duration};

use winddown_core::{Error, ErrorKind};

/// The environment variable with the path of the database file, see [`Sqlite::from_env`](crate::Sqlite::from_env).
pub const PATH_VARIABLE: &str = "SQLITE_PATH";

/// How a database is opened. Start with [`Config::new`] and set the fields that should differ.
///
/// Every connection is in WAL mode: readers and the one writer then do not wait for each other, and committing needs
/// one sync.
///
/// ```
/// use std::time::Duration;
/// use winddown_sqlite::{Config, Sqlite};
///
/// let mut config = Config::new("/var/lib/app/app.db");
/// config.pool_size = Some(4);
/// config.busy_timeout = Duration::from_millis(500);
/// config.pragmas.push(("synchronous".into(), "normal".into()));
/// let db = Sqlite::new(config);
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// The database file. It is created if need be; its directory must exist and be writable, for SQLite keeps two
    /// more files beside it (`-wal`, `-shm`) while it is open.
    pub path: PathBuf,
    /// How many connections there are at most.
    ///
    /// Defaults to the driver's: two for each CPU.
    pub pool_size: Option<usize>,
    /// How long a checkout waits for a connection while all are out; `None` for as long as it takes.
    ///
    /// Defaults to `None`.
    pub wait_timeout: Option<Duration>,
    /// How long a statement waits for another connection's lock before it fails with `SQLITE_BUSY`. In milliseconds,
    /// to SQLite. A statement that waits so is not interrupted when draining, so it should be well below the budget.
    ///
    /// Defaults to 5 s.
    pub busy_timeout: Duration,
    /// Pragmas that are set on each new connection, in this order, after `busy_timeout` and `journal_mode`.
    ///
    /// Defaults to none.
    pub pragmas: Vec<(String, String)>,
}

impl Config {
    /// The defaults for this database file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            pool_size: None,
            wait_timeout: None,
            busy_timeout: Duration::from_secs(5),
            pragmas: Vec::new(),
        }
    }

    /// The defaults for the database file that `SQLITE_PATH` names.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the variable is not set or empty.
    pub fn from_env() -> Result<Self, Error> {
        Self::from_variable(env::var_os(PATH_VARIABLE))
    }

    fn from_variable(path: Option<OsString>) -> Result<Self, Error> {
        match path.filter(|path| !path.is_empty()) {
            Some(path) => Ok(Self::new(path)),
            None => Err(Error::new(
                ErrorKind::Config,
                format!("{PATH_VARIABLE} is not set: give it the path of the database file"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unset_or_empty_variable_is_an_error_that_says_what_to_set() {
        for path in [None, Some(OsString::new())] {
            let error = Config::from_variable(path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert_eq!(error.to_string(), "SQLITE_PATH is not set: give it the path of the database file");
        }
        assert_eq!(Config::from_variable(Some("a.db".into())).unwrap().path, PathBuf::from("a.db"));
    }
}
