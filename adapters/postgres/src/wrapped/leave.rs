//! How a connection of the driver's pool is brought to say goodbye.
//!
//! The driver's task says Terminate by itself, and ends, when its client is dropped and has nothing left to answer. But a pool
//! has the client and the task in one, and dropping that ends the task at once: the socket is closed without a word. So the
//! client alone is dropped, for another one in its place, and the rest is kept until the session has ended.

use std::mem;

use futures_util::FutureExt as _;
use tokio::{
    io::{join, sink},
    task::unconstrained,
};
use tokio_postgres::{Client, Config, NoTls, config::SslMode};

/// Has the task of this connection say goodbye, as soon as all is answered. The client is of no use from then on. `false` where
/// that cannot be had.
pub(super) fn says_goodbye(client: &mut Client) -> bool {
    let Some(spare) = spare() else { return false };
    drop(mem::replace(client, spare));
    true
}

/// A client whose session has ended.
fn spare() -> Option<Client> {
    // "AuthenticationOk" and "ReadyForQuery". PostgreSQL documentation, "Message Formats".
    const GREETING: &[u8] = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
    let mut config = Config::new();
    config.user("nobody").ssl_mode(SslMode::Disable);
    // There is nothing to wait for, also where the task that this is called in has done so much that it is to let others on.
    let greeted = unconstrained(config.connect_raw(join(GREETING, sink()), NoTls)).now_or_never()?;
    greeted.ok().map(|(client, _)| client)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spare_client_is_had_without_a_server() {
        assert!(spare().unwrap().is_closed());
    }

    #[tokio::test]
    async fn nor_does_it_matter_how_much_its_task_has_done() {
        for _ in 0..1000 {
            assert!(spare().is_some());
        }
    }
}
