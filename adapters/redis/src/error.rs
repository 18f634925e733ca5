//! The driver's errors as ours, and ours as the driver's.

use std::{borrow::Cow, io};

use redis::{RedisError, ServerError, ServerErrorKind};
use winddown_core::{Error, ErrorKind};

/// The error of this kind and message, with the driver's as its source. Worth another try where the server is full, starts, has
/// another primary now, or cannot be reached.
pub(crate) fn error(kind: ErrorKind, message: impl Into<Cow<'static, str>>, source: RedisError) -> Error {
    if let Some(ours) = ours(&source) {
        return ours.clone();
    }
    let passes = passes(&source);
    let error = Error::new(kind, message).with_source(source);
    if passes { error.retryable() } else { error }
}

/// One of ours, that was on its way through the driver's.
pub(crate) fn ours(error: &RedisError) -> Option<&Error> {
    let error: &io::Error = std::error::Error::source(error)?.downcast_ref()?;
    error.get_ref()?.downcast_ref()
}

/// One of ours on its way through the driver's.
pub(crate) fn refused(error: Error) -> RedisError {
    io::Error::other(error).into()
}

/// What a caller gets whose session has ended.
pub(crate) fn closed() -> RedisError {
    io::Error::new(io::ErrorKind::BrokenPipe, "the connection is closed").into()
}

fn passes(error: &RedisError) -> bool {
    use ServerErrorKind::{BusyLoading, ClusterDown, MasterDown, ReadOnly, TryAgain};
    match error.kind() {
        redis::ErrorKind::Io
        | redis::ErrorKind::Server(BusyLoading | ClusterDown | MasterDown | ReadOnly | TryAgain) => true,
        _ => is_full(error.detail()),
    }
}

/// The server tells this by its words alone: `max number of clients reached`, or `max number of clients + cluster
/// connections reached`.
pub(crate) fn is_full(detail: Option<&str>) -> bool {
    detail.is_some_and(|text| text.starts_with("max number of clients"))
}

/// Whether the server, or a proxy before it, does not know the command.
pub(crate) fn is_unknown(refusal: &ServerError) -> bool {
    let details = refusal.details().unwrap_or_default();
    // Of a subcommand servers before version 7 say "Unknown subcommand or wrong number of arguments". Some proxies send their texts
    // without a code.
    let is_named =
        ["unknown command", "unknown subcommand", "Unknown subcommand"].iter().any(|text| details.starts_with(text));
    is_named || matches!(refusal.code(), "unknown" | "unsupported")
}

/// Whether it is the server's answer that the user may not run the command, or that it does not know it.
pub(crate) fn is_denied(error: &RedisError) -> bool {
    let refusals = error.clone().into_server_errors();
    refusals
        .is_some_and(|refusals| refusals.iter().any(|(_, refusal)| refusal.code() == "NOPERM" || is_unknown(refusal)))
}

/// Why the server lets nobody in, and what to do about it.
pub(crate) fn login(refusal: ServerError) -> Error {
    let details = refusal.details().unwrap_or_default();
    if is_unknown(&refusal) {
        let text = "the server does not know all that opens this session: leave `protocol` out of the URL, and the database if \
                    it has only one; it must know AUTH where there is a password";
        // Without the driver's error: the server quotes what it was sent, and so the password.
        return Error::new(ErrorKind::Config, text);
    }
    let advice = match refusal.code() {
        "WRONGPASS" => "the server does not let this user in: see user and password",
        "NOAUTH" => "the server wants a password: give one, as in redis://user:password@host",
        "NOPERM" => "the user may not use this database: let it run SELECT, or leave the database out of the URL",
        "DENIED" => "the server is in protected mode: set a password there, or bind it to an address",
        "NOPROTO" => "the server does not speak this version of the protocol: leave `protocol` out of the URL",
        _ if details.contains("DB index") => "there is no such database: give a number that the server has",
        // Before Redis 6.
        _ if details.starts_with("invalid password") => "the server does not let us in: see the password",
        _ if details.starts_with("wrong number of arguments for 'auth'") => {
            "the server has no users: leave the user out, as in redis://:password@host"
        }
        _ => return error(ErrorKind::Init, "cannot open a session", refusal.into()),
    };
    Error::new(ErrorKind::Config, advice).with_source(RedisError::from(refusal))
}

#[cfg(test)]
mod tests {
    use redis::{Value, parse_redis_value};

    use super::*;

    #[track_caller]
    fn refusal(text: &str) -> ServerError {
        match parse_redis_value(format!("-{text}\r\n").as_bytes()) {
            Ok(Value::ServerError(refusal)) => refusal,
            other => panic!("it is no refusal: {other:?}"),
        }
    }

    #[test]
    fn a_command_that_is_not_known_is_told_from_one_that_failed() {
        for text in [
            "ERR unknown command 'CLIENT', with args beginning with: 'ID' ",
            "ERR unknown subcommand 'UNBLOCK'. Try CLIENT HELP.",
            "ERR Unknown subcommand or wrong number of arguments for 'UNBLOCK'. Try CLIENT HELP.",
            "unknown command",
        ] {
            assert!(is_unknown(&refusal(text)), "{text}");
        }
        for text in
            ["ERR wrong number of arguments for 'client|unblock' command", "NOPERM User u has no permissions", "ERR no"]
        {
            assert!(!is_unknown(&refusal(text)), "{text}");
        }
    }
}
