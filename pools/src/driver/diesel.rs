//! `diesel_async::AsyncPgConnection`.
//!
//! Its own connections drop the socket without a word. Those that [`Establish`] opens are of `tokio_postgres`, whose task says
//! Terminate when its client is dropped.

mod spare;

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use diesel::{
    ConnectionError, ConnectionResult, QueryResult,
    dsl::sql,
    sql_types::{Nullable, Text},
};
use diesel_async::{
    AsyncConnection as _, AsyncPgConnection, RunQueryDsl as _, SimpleAsyncConnection as _,
    pooled_connection::{AsyncDieselConnectionManager, ManagerConfig, SetupCallback},
};
use tokio_postgres::{
    Client, NoTls, SimpleQueryMessage, Socket,
    tls::{MakeTlsConnect, TlsConnect},
};
use winddown_core::{BoxError, Capabilities};
use winddown_net::own_sockets::{self, Peer};

use crate::{
    Driver,
    driver::postgres::canceller,
    speaks::{Canceller, Leaving, Speaks},
};

/// Which session this is, and the addresses of its client and of the server. Behind a pooler it may be another one each time.
const IDENTITY: &str = "/* winddown asks */ SELECT concat_ws(' ', pg_backend_pid(), host(inet_client_addr()), inet_client_port(), \
     host(inet_server_addr()), inet_server_port())";

/// Opens connections of Diesel's that say Terminate when they end, and that are seen to end.
///
/// A pool whose manager opens its connections by this, or by [`manager`](Self::manager), is wrapped with a clone of it:
/// `Bb8::wrap(pool).session_with(establish)`. Connections that were opened otherwise are dropped as they are, and reported as unconfirmed.
#[derive(Clone, Default)]
pub struct Establish {
    /// Those that are open.
    sessions: Arc<Mutex<HashSet<String>>>,
}

impl Establish {
    /// One for each pool.
    pub fn new() -> Self {
        Self::default()
    }

    /// A manager for sessions without TLS.
    pub fn manager(&self, url: impl Into<String>) -> AsyncDieselConnectionManager<AsyncPgConnection> {
        self.manager_with(url, NoTls)
    }

    /// A manager for sessions with this TLS.
    pub fn manager_with<T>(&self, url: impl Into<String>, tls: T) -> AsyncDieselConnectionManager<AsyncPgConnection>
    where
        T: MakeTlsConnect<Socket, Stream: Send, TlsConnect: Send> + Clone + Send + Sync + 'static,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        let mut config = ManagerConfig::default();
        config.custom_setup = self.setup_with(tls);
        AsyncDieselConnectionManager::new_with_config(url, config)
    }

    /// For the `custom_setup` of a manager with other settings, with this TLS or `NoTls`.
    pub fn setup_with<T>(&self, tls: T) -> SetupCallback<AsyncPgConnection>
    where
        T: MakeTlsConnect<Socket, Stream: Send, TlsConnect: Send> + Clone + Send + Sync + 'static,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        let establish = self.clone();
        Box::new(move |url| {
            let (establish, tls, url) = (establish.clone(), tls.clone(), url.to_owned());
            Box::pin(async move { establish.open(&url, tls).await })
        })
    }

    async fn open<T>(self, url: &str, tls: T) -> ConnectionResult<AsyncPgConnection>
    where
        T: MakeTlsConnect<Socket, Stream: Send, TlsConnect: Send>,
        T::Stream: 'static,
    {
        let bad = |failure: tokio_postgres::Error| ConnectionError::BadConnection(failure.to_string());
        let (client, connection) = tokio_postgres::connect(url, tls).await.map_err(bad)?;
        let task = tokio::spawn(connection);
        let session = identity(&client).await.map_err(bad)?;
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).insert(session.clone());
        let open = Open { establish: self, session };
        tokio::spawn(async move {
            // Its error is that of whoever asks the client.
            let _ = task.await;
            drop(open);
        });
        AsyncPgConnection::try_from(client).await
    }

    fn has_opened(&self, session: &str) -> bool {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).contains(session)
    }
}

/// A session that is open until this is dropped.
struct Open {
    establish: Establish,
    session: String,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.establish.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.session);
    }
}

async fn identity(client: &Client) -> Result<String, tokio_postgres::Error> {
    let answer = client.simple_query(IDENTITY).await?;
    let session = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    Ok(session.unwrap_or_default().to_owned())
}

async fn ask(connection: &mut AsyncPgConnection) -> QueryResult<Option<String>> {
    sql::<Nullable<Text>>(IDENTITY).get_result(connection).await
}

/// The addresses in the [`IDENTITY`].
fn peer(session: &str) -> Option<Peer> {
    let mut parts = session.split(' ').skip(1);
    let mut address = || own_sockets::client(parts.next()?, parts.next()?.parse::<u16>().ok()?);
    Some(Peer::new(address()?, address()))
}

/// Ends a transaction, whoever began it.
async fn roll_back(connection: &mut AsyncPgConnection) {
    // Begun first, which is refused or a warning only where there is one: a server writes to its log that it was told to end none.
    let _ = connection.batch_execute("BEGIN").await;
    if connection.batch_execute("ROLLBACK").await.is_ok() {
        *connection.transaction_state() = Default::default();
    }
}

/// The session, once all is answered that runs on it.
async fn settled(connection: &mut AsyncPgConnection) -> Result<Option<String>, BoxError> {
    if let Ok(session) = ask(connection).await {
        return Ok(session);
    }
    // A transaction that has failed answers nothing, and a request to stop may have come late.
    roll_back(connection).await;
    Ok(ask(connection).await?)
}

/// Of those that Diesel opens: what it runs is cancelled, and nothing is said at its end.
impl Speaks<AsyncPgConnection> for Driver {
    fn capabilities(&self) -> Capabilities {
        Capabilities::NONE.with_cancel()
    }

    fn canceller(&self, connection: &mut AsyncPgConnection) -> Option<Canceller> {
        Some(canceller(connection.cancel_token()))
    }

    fn resets(&self) -> bool {
        true
    }

    async fn reset(&self, connection: &mut AsyncPgConnection) {
        roll_back(connection).await;
    }

    async fn settled(&self, connection: &mut AsyncPgConnection) -> Result<Option<Peer>, BoxError> {
        settled(connection).await?;
        Ok(None)
    }

    async fn goodbye(&self, leaving: &mut Leaving<AsyncPgConnection>) -> bool {
        leave(leaving);
        false
    }

    fn cut(&self, connection: &mut AsyncPgConnection) {
        replace(connection);
    }
}

/// Of those that it has opened itself.
impl Speaks<AsyncPgConnection> for Establish {
    fn capabilities(&self) -> Capabilities {
        Capabilities::ALL.without_all_sessions()
    }

    fn canceller(&self, connection: &mut AsyncPgConnection) -> Option<Canceller> {
        Speaks::canceller(&Driver, connection)
    }

    fn resets(&self) -> bool {
        true
    }

    async fn reset(&self, connection: &mut AsyncPgConnection) {
        roll_back(connection).await;
    }

    async fn settled(&self, connection: &mut AsyncPgConnection) -> Result<Option<Peer>, BoxError> {
        let session = settled(connection).await?;
        // The end of another one is no goodbye.
        Ok(session.filter(|session| self.has_opened(session)).as_deref().and_then(peer))
    }

    async fn goodbye(&self, leaving: &mut Leaving<AsyncPgConnection>) -> bool {
        leave(leaving);
        false
    }

    fn cut(&self, connection: &mut AsyncPgConnection) {
        replace(connection);
    }
}

/// Drops it, with which its task says Terminate.
fn leave(leaving: &mut Leaving<AsyncPgConnection>) {
    if leaving.take().is_none()
        && let Some(connection) = leaving.get()
    {
        replace(connection);
    }
}

/// Drops the connection where its pool does not part with it.
fn replace(connection: &mut AsyncPgConnection) {
    match spare::spare() {
        Some(spare) => drop(std::mem::replace(connection, spare)),
        None => tracing::debug!("a connection of Diesel's could not be taken out of its place"),
    }
}

impl fmt::Debug for Establish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Establish").finish_non_exhaustive()
    }
}
