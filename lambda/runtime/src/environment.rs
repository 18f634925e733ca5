//! What the environment must have before `lambda_runtime` may be started: it panics where this is missing.

use std::env;

use http::Uri;
use winddown_core::{Error, ErrorKind};

const RUNTIME_API: &str = "AWS_LAMBDA_RUNTIME_API";

/// Read with `expect` by `lambda_runtime::Config::from_env`, and set by Lambda and every emulator.
const REQUIRED: [&str; 3] =
    ["AWS_LAMBDA_FUNCTION_NAME", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "AWS_LAMBDA_FUNCTION_VERSION"];

/// Checks it.
///
/// # Errors
/// [`ErrorKind::Config`], naming the variable and what to do.
pub(crate) fn check() -> Result<(), Error> {
    check_in(|name| env::var(name).ok())
}

/// Whether the platform wants several invocations at once. `lambda_runtime` reads it in the same way.
pub(crate) fn is_concurrent() -> bool {
    env::var("AWS_LAMBDA_MAX_CONCURRENCY").is_ok_and(|most| most.parse::<u32>().is_ok_and(|most| most > 1))
}

/// Whether a snapshot is taken of this function when it is initialised. `lambda_runtime` reads it in the same way.
pub(crate) fn is_snapshot_taken() -> bool {
    env::var("AWS_LAMBDA_INITIALIZATION_TYPE").is_ok_and(|kind| kind == "snap-start")
}

fn check_in(variable: impl Fn(&str) -> Option<String>) -> Result<(), Error> {
    let config = |message: String| Error::new(ErrorKind::Config, message);
    let start_it = "start the function on Lambda, or locally with `winddown-sim run -- COMMAND`";
    let api = variable(RUNTIME_API).ok_or_else(|| config(format!("{RUNTIME_API} is not set: {start_it}")))?;
    // `host:port` on Lambda, a URL with a path under `cargo lambda watch`; the client takes both.
    let has_host = api.parse::<Uri>().is_ok_and(|uri| uri.authority().is_some());
    if !has_host {
        return Err(config(format!("{RUNTIME_API}={api:?} is neither host:port nor a URL: {start_it}")));
    }
    if let Some(missing) = REQUIRED.iter().find(|name| variable(name).is_none()) {
        return Err(config(format!("{missing} is not set: {start_it}")));
    }
    let memory = variable("AWS_LAMBDA_FUNCTION_MEMORY_SIZE").unwrap_or_default();
    if memory.parse::<i32>().is_err() {
        return Err(config(format!("AWS_LAMBDA_FUNCTION_MEMORY_SIZE={memory:?} is not a number of MB: set it to one")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(change: (&str, Option<&str>)) -> Result<(), String> {
        let all = [
            (RUNTIME_API, "127.0.0.1:9001"),
            ("AWS_LAMBDA_FUNCTION_NAME", "f"),
            ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128"),
            ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
        ];
        check_in(|name| match change {
            (changed, value) if changed == name => value.map(str::to_owned),
            _ => all.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()),
        })
        .map_err(|error| error.to_string())
    }

    #[test]
    fn the_runtime_api_is_host_and_port_or_a_url() {
        for good in ["127.0.0.1:9001", "localhost:9001", "http://127.0.0.1:9001", "http://localhost:9000/.rt/f"] {
            assert_eq!(checked((RUNTIME_API, Some(good))), Ok(()), "{good}");
        }
        for bad in ["", "/path", "not a url"] {
            let error = checked((RUNTIME_API, Some(bad))).unwrap_err();
            assert!(error.contains("neither host:port nor a URL"), "{error}");
        }
    }

    #[test]
    fn what_is_missing_is_named_with_what_to_do() {
        for name in [RUNTIME_API, "AWS_LAMBDA_FUNCTION_NAME", "AWS_LAMBDA_FUNCTION_VERSION"] {
            let error = checked((name, None)).unwrap_err();
            assert!(error.starts_with(name) && error.contains("winddown-sim run"), "{error}");
        }
        let error = checked(("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", Some("lots"))).unwrap_err();
        assert!(error.contains("lots"), "{error}");
    }
}
