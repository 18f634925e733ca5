//! Another handler of the signal in this process, which ends it in the middle of the drain.
//!
//! `lambda_runtime::spawn_graceful_shutdown_handler` registers an extension of its own, runs its hook on SIGTERM and exits
//! with status 0, whatever else still has to be done. It cannot be asked for: nobody lists the extensions of a function, and
//! its listener is one of tokio's as ours is. But it polls the Extensions API through a connection of its own, and its name
//! can be registered only once.

use std::{env, fs, path::Path, time::Duration};

use http::Uri;
use lambda_extension::ExtensionError;
use tokio::{task::yield_now, time::timeout};

use crate::{extension, warn};

/// `lambda_runtime` 1.5.0, `spawn_graceful_shutdown_handler`.
const ITS_NAME: &str = "_lambda-rust-runtime-no-op-graceful-shutdown-helper";

/// The Extensions API has just answered.
const PATIENCE: Duration = Duration::from_secs(1);

/// So often is it looked for: its task may not have come to its poll yet.
const LOOKS: usize = 3;

/// Whether another extension is in this process: something polls the Extensions API. To be asked before winddown does.
pub(crate) async fn poll_the_api() -> bool {
    let Some(port) = env::var("AWS_LAMBDA_RUNTIME_API").ok().and_then(|api| port(&api)) else { return false };
    for _ in 0..LOOKS {
        if connections_to(Path::new("/proc/self"), port) > 0 {
            return true;
        }
        yield_now().await;
    }
    false
}

/// Warns where it is the one that ends the process. Must be over before the runtime asks for its first invocation, which
/// closes registration: where it is another one, an extension that does nothing is registered under its name.
pub(crate) async fn look() {
    match timeout(PATIENCE, extension::without_events(ITS_NAME)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) if error.is::<ExtensionError>() => warn(
            "`lambda_runtime::spawn_graceful_shutdown_handler` runs in this process too: on SIGTERM it ends the process in \
             the middle of the drain, without a report",
            &"leave it out, and give what it does to `Lifecycle::on_drain`",
        ),
        // The API is away: whoever needs it says so.
        Ok(Err(error)) => tracing::debug!(%error, "cannot look for another handler of the signal"),
        Err(_) => tracing::debug!("cannot look for another handler of the signal: no answer"),
    }
}

fn port(api: &str) -> Option<u16> {
    let uri: Uri = api.parse().ok()?;
    Some(uri.port_u16().unwrap_or(80))
}

/// How many connections this process has, or opens, to that port: proc(5), `/proc/pid/net/tcp`, of those that are among its
/// descriptors. None where the system does not say.
fn connections_to(process: &Path, port: u16) -> usize {
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else { return 0 };
    let links = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let sockets: Vec<String> = links.filter_map(|link| inode(link.to_str()?).map(str::to_owned)).collect();
    let tables = ["net/tcp", "net/tcp6"].map(|table| fs::read_to_string(process.join(table)).unwrap_or_default());
    let lines = tables.iter().flat_map(|table| table.lines());
    lines.filter(|line| connection(line, port).is_some_and(|inode| sockets.iter().any(|it| it == inode))).count()
}

fn inode(link: &str) -> Option<&str> {
    link.strip_prefix("socket:[")?.strip_suffix(']')
}

/// The socket of a line of the table, if it is a connection to that port.
fn connection(line: &str, port: u16) -> Option<&str> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (_, to) = fields.get(2)?.rsplit_once(':')?;
    // Established, or about to be.
    let is_open = matches!(*fields.get(3)?, "01" | "02");
    (is_open && u16::from_str_radix(to, 16) == Ok(port)).then(|| fields.get(9).copied()).flatten()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_port_of_the_api_is_in_its_address_or_that_of_http() {
        assert_eq!(port("127.0.0.1:9001"), Some(9001));
        assert_eq!(port("http://localhost:9000/.rt/f"), Some(9000));
        assert_eq!(port("http://localhost"), Some(80));
    }

    #[test]
    fn connections_of_this_process_to_a_port_are_counted_and_no_others() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let count = || connections_to(Path::new("/proc/self"), port);
        assert_eq!(count(), 0, "one that listens is none");
        let one = TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert_eq!(count(), 1);
        let accepted = listener.accept().unwrap();
        assert_eq!(count(), 1, "the other end is a connection to another port");
        let other = TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert_eq!(count(), 2);
        drop((one, accepted));
        assert_eq!(count(), 1);
        drop(other);
    }

    #[test]
    fn a_system_that_says_nothing_has_none() {
        assert_eq!(connections_to(Path::new("/no/such"), 1), 0);
        for line in ["", "  sl  local_address rem_address   st", "0: 1:1 2 01", "0: 1:1 2:zz 01 0 0 0 0 0 7"] {
            assert_eq!(connection(line, 1), None, "{line}");
        }
    }
}
