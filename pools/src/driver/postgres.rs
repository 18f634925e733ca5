//! `tokio_postgres::Client`.

use tokio_postgres::{CancelToken, NoTls};

use crate::speaks::Canceller;

/// Cancels by the secret that the server gave this session, so no other one is hit. Not encrypted: PostgreSQL takes a request to
/// cancel from anybody who has the secret, before it asks for more.
pub(super) fn canceller(token: CancelToken) -> Canceller {
    Canceller::new(move || {
        let token = token.clone();
        async move { token.cancel_query(NoTls).await }
    })
}

#[cfg(feature = "tokio-postgres")]
mod client {
    use tokio_postgres::{Client, SimpleQueryMessage};
    use winddown_core::{BoxError, Capabilities};
    use winddown_net::own_sockets::{self, Peer};

    use super::canceller;
    use crate::{
        Driver,
        speaks::{Canceller, Leaving, Speaks},
    };

    /// Asks which addresses the two ends of this session have. In text: so nothing is prepared. Null over a Unix socket.
    const ENDS: &str = "/* winddown asks */ SELECT host(inet_client_addr()), inet_client_port(), host(inet_server_addr()), \
                        inet_server_port()";

    impl Speaks<Client> for Driver {
        fn capabilities(&self) -> Capabilities {
            Capabilities::ALL.without_all_sessions()
        }

        fn canceller(&self, client: &mut Client) -> Option<Canceller> {
            Some(canceller(client.cancel_token()))
        }

        fn resets(&self) -> bool {
            true
        }

        /// Ends a transaction, if there is one. The driver does not say whether there is, and a server writes to its log that it was
        /// told to end none; so one is begun first, which is an error or a warning only where there is one.
        async fn reset(&self, client: &mut Client) {
            // One after the other on the connection, in one round trip. Who finds it broken asks the driver.
            let _ = tokio::join!(client.batch_execute("BEGIN"), client.batch_execute("ROLLBACK"));
        }

        async fn settled(&self, client: &mut Client) -> Result<Option<Peer>, BoxError> {
            let answer = match client.simple_query(ENDS).await {
                // A transaction that has failed answers nothing.
                Err(failure) if failure.as_db_error().is_some() => {
                    self.reset(client).await;
                    client.simple_query(ENDS).await
                }
                answer => answer,
            };
            match answer {
                Ok(answer) => Ok(answer.iter().find_map(peer)),
                Err(failure) if client.is_closed() => Err(failure.into()),
                // It does not say.
                Err(_) => Ok(None),
            }
        }

        /// The driver's task says Terminate when it has nothing left to answer.
        async fn goodbye(&self, leaving: &mut Leaving<Client>) -> bool {
            if let Some(client) = leaving.get() {
                client.__private_api_close();
            }
            false
        }

        fn cut(&self, client: &mut Client) {
            client.__private_api_close();
        }
    }

    fn peer(message: &SimpleQueryMessage) -> Option<Peer> {
        let SimpleQueryMessage::Row(row) = message else { return None };
        let address =
            |host, port| own_sockets::client(row.try_get(host).ok()??, row.try_get(port).ok()??.parse::<u16>().ok()?);
        Some(Peer::new(address(0, 1)?, address(2, 3)))
    }
}
