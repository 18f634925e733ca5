//! The driver's errors as ours.

use std::{borrow::Cow, error::Error as StdError, io};

use deadpool::managed::PoolError;
use mysql_async::{DriverError, IoError};
use winddown_core::{Error, ErrorKind};
use winddown_sql::{Verdict, mysql};

/// What the server says, by the numbers of its errors, which MySQL and MariaDB share:
/// <https://dev.mysql.com/doc/mysql-errors/en/server-error-reference.html>.
mod number {
    pub(super) const TOO_MANY_CONNECTIONS: u16 = 1040;
    pub(super) const NO_ACCESS_TO_DATABASE: u16 = 1044;
    pub(super) const ACCESS_DENIED: u16 = 1045;
    pub(super) const UNKNOWN_DATABASE: u16 = 1049;
    pub(super) const HOST_NOT_ALLOWED: u16 = 1130;
    pub(super) const USER_HAS_TOO_MANY_CONNECTIONS: u16 = 1203;
    pub(super) const USER_LIMIT_REACHED: u16 = 1226;
    pub(super) const ACCESS_DENIED_NO_PASSWORD: u16 = 1698;
    pub(super) const PLUGIN_NOT_LOADED: u16 = 1524;
    pub(super) const ACCOUNT_LOCKED: u16 = 3118;
    pub(super) const TLS_REQUIRED: u16 = 3159;
    pub(super) const ACCOUNT_LOCKED_MARIADB: u16 = 4151;
}

/// The error of this kind and message, with the driver's as its source. Worth another try where the server is full,
/// starts or stops, or cannot be reached.
pub(crate) fn error(
    kind: ErrorKind,
    message: impl Into<Cow<'static, str>>,
    source: impl StdError + Send + Sync + 'static,
) -> Error {
    let passes = passes(&source);
    let error = Error::new(kind, message).with_source(source);
    if passes { error.retryable() } else { error }
}

/// The error of a checkout.
pub(crate) fn checkout(source: PoolError<Error>) -> Error {
    match source {
        PoolError::Backend(source) => error(ErrorKind::Checkout, "no connection", source),
        source => error(ErrorKind::Checkout, "no connection", source),
    }
}

/// The error of the first session.
pub(crate) fn first(source: PoolError<Error>) -> Error {
    match source {
        PoolError::Backend(error) => error,
        source => error(ErrorKind::Init, "cannot open a session", source),
    }
}

fn passes(source: &(dyn StdError + 'static)) -> bool {
    if let Some(ours) = source.downcast_ref::<Error>() {
        return ours.is_retryable();
    }
    match source.downcast_ref::<mysql_async::Error>() {
        Some(mysql_async::Error::Server(error)) => mysql::verdict(error.code, &error.state) == Verdict::Passes,
        Some(error) => is_connection(error),
        None => false,
    }
}

fn is_full_code(code: u16) -> bool {
    let full = [number::TOO_MANY_CONNECTIONS, number::USER_HAS_TOO_MANY_CONNECTIONS, number::USER_LIMIT_REACHED];
    full.contains(&code)
}

/// Whether the server has no room for another session.
pub(crate) fn is_full(failure: &mysql_async::Error) -> bool {
    matches!(failure, mysql_async::Error::Server(error) if is_full_code(error.code))
}

/// Whether the process has no descriptor left for it.
pub(crate) fn is_out_of_descriptors(failure: &mysql_async::Error) -> bool {
    matches!(failure, mysql_async::Error::Io(IoError::Io(error)) if winddown_core::adapter::is_out_of_descriptors(error))
}

/// Whether the server has looked at who wants in, and refused.
pub(crate) fn is_refusal(failure: &mysql_async::Error) -> bool {
    let refusals = [
        number::ACCESS_DENIED,
        number::ACCESS_DENIED_NO_PASSWORD,
        number::HOST_NOT_ALLOWED,
        number::ACCOUNT_LOCKED,
        number::ACCOUNT_LOCKED_MARIADB,
    ];
    matches!(failure, mysql_async::Error::Server(error) if refusals.contains(&error.code))
}

/// Whether it is the connection that broke, or was never there: not what the server answered.
pub(crate) fn is_connection(failure: &mysql_async::Error) -> bool {
    match failure {
        mysql_async::Error::Io(IoError::Io(error)) => !is_tls(error),
        mysql_async::Error::Driver(DriverError::ConnectionClosed) => true,
        _ => false,
    }
}

/// Which step of opening a session was not over in time, if that is what it is.
pub(crate) fn late(failure: &mysql_async::Error) -> Option<&Error> {
    match failure {
        mysql_async::Error::Io(IoError::Io(error)) => error.get_ref()?.downcast_ref(),
        _ => None,
    }
}

/// Whether the driver has refused to send something, for it knows what the server takes at once.
#[cfg(feature = "buffer")]
pub(crate) fn is_too_large(failure: &mysql_async::Error) -> bool {
    match failure {
        mysql_async::Error::Driver(DriverError::PacketTooLarge) => true,
        // What of it the driver gives away is the text.
        mysql_async::Error::Io(IoError::Io(error)) => {
            error.get_ref().is_some_and(|said| said.to_string().contains("larger than max_allowed_packet"))
        }
        _ => false,
    }
}

/// Whether the other side had closed before.
pub(crate) fn is_broken(failure: &mysql_async::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
    let kinds = [BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof];
    match failure {
        mysql_async::Error::Io(IoError::Io(error)) => kinds.contains(&error.kind()),
        mysql_async::Error::Driver(DriverError::ConnectionClosed) => true,
        _ => false,
    }
}

/// What rustls says of a certificate or of the protocol comes as an error of this kind.
fn is_tls(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput)
}

/// Why no session could be opened, and what to do about it.
pub(crate) fn open(failure: mysql_async::Error) -> Error {
    let failure = match failure {
        mysql_async::Error::Io(IoError::Io(none_left)) if winddown_core::adapter::is_out_of_descriptors(&none_left) => {
            winddown_core::adapter::out_of_descriptors(none_left).into()
        }
        failure => failure,
    };
    let advice = match &failure {
        mysql_async::Error::Server(refused) => match refused.code {
            number::UNKNOWN_DATABASE => "there is no such database, create it or name another",
            number::NO_ACCESS_TO_DATABASE => "the user may not connect to this database",
            number::TLS_REQUIRED => "the server wants encrypted sessions: set require_ssl=true",
            number::PLUGIN_NOT_LOADED => {
                "the server does not have the plugin that the user logs in with: see how the user was created"
            }
            _ if is_refusal(&failure) => "the server does not let this user in: see user, password and require_ssl",
            _ => return error(ErrorKind::Init, "cannot open a session", failure),
        },
        #[cfg(feature = "tls")]
        mysql_async::Error::Io(IoError::Tls(_)) => {
            "no TLS session: see the server's certificate and the root certificates"
        }
        mysql_async::Error::Io(IoError::Io(error)) if is_tls(error) => {
            "no TLS session: see the server's certificate and the root certificates"
        }
        mysql_async::Error::Driver(DriverError::NoClientSslFlagFromServer) => {
            "the server does not offer TLS: configure it there, or do without require_ssl"
        }
        mysql_async::Error::Driver(DriverError::UnknownAuthPlugin { .. }) => {
            "the driver does not know how this user logs in, or there is no such user: see how the user was created"
        }
        mysql_async::Error::Driver(DriverError::CleartextPluginDisabled) => {
            "this user's password goes to the server as it is: set enable_cleartext_plugin=true, and require_ssl=true"
        }
        _ => return error(ErrorKind::Init, "cannot open a session", failure),
    };
    error(ErrorKind::Config, advice, failure)
}

pub(crate) fn panicked(source: tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Panicked, "asking a server about its sessions panicked").with_source(source)
}
