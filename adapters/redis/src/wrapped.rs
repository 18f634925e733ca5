//! What the application built: a connection, or a pool of them.

#[cfg(feature = "deadpool")]
pub(crate) mod lent;
pub(crate) mod one;
#[cfg(feature = "deadpool")]
pub(crate) mod pool;

use std::{fmt, future::Future, pin::pin, time::Duration};

#[cfg(feature = "cluster")]
use redis::cluster_async::ClusterConnection;
use redis::{
    Cmd, Pipeline, RedisResult, Value,
    aio::{ConnectionManager, MultiplexedConnection},
    cmd,
};
use tokio::time::{Instant, sleep};
use winddown_core::adapter::Drain;

use crate::{
    identity::{Identity, text},
    wrapped::one::One,
};

/// What the application has built with the driver: see [`Redis::wrap`](crate::Redis::wrap).
#[derive(Clone)]
#[non_exhaustive]
pub enum Existing {
    /// A connection that the driver opens anew when somebody uses it after it was closed.
    Manager(ConnectionManager),
    /// One that is opened once.
    Multiplexed(MultiplexedConnection),
    /// One with each node of a cluster.
    #[cfg(feature = "cluster")]
    Cluster(ClusterConnection),
    /// A pool of connections.
    #[cfg(feature = "deadpool")]
    Pool(deadpool_redis::Pool),
}

/// What is wrapped.
pub(crate) enum Wrapping {
    One(One),
    #[cfg(feature = "deadpool")]
    Pool(deadpool_redis::Pool),
}

impl From<Existing> for Wrapping {
    fn from(existing: Existing) -> Self {
        match existing {
            Existing::Manager(manager) => Self::One(One::Manager(manager)),
            Existing::Multiplexed(connection) => Self::One(One::Multiplexed(connection)),
            #[cfg(feature = "cluster")]
            Existing::Cluster(connection) => Self::One(One::Cluster(connection)),
            #[cfg(feature = "deadpool")]
            Existing::Pool(pool) => Self::Pool(pool),
        }
    }
}

impl From<One> for Existing {
    fn from(one: One) -> Self {
        match one {
            One::Manager(manager) => Self::Manager(manager),
            One::Multiplexed(connection) => Self::Multiplexed(connection),
            #[cfg(feature = "cluster")]
            One::Cluster(connection) => Self::Cluster(connection),
        }
    }
}

impl From<ConnectionManager> for Existing {
    fn from(manager: ConnectionManager) -> Self {
        Self::Manager(manager)
    }
}

impl From<MultiplexedConnection> for Existing {
    fn from(connection: MultiplexedConnection) -> Self {
        Self::Multiplexed(connection)
    }
}

#[cfg(feature = "cluster")]
impl From<ClusterConnection> for Existing {
    fn from(connection: ClusterConnection) -> Self {
        Self::Cluster(connection)
    }
}

#[cfg(feature = "deadpool")]
impl From<deadpool_redis::Pool> for Existing {
    fn from(pool: deadpool_redis::Pool) -> Self {
        Self::Pool(pool)
    }
}

impl fmt::Debug for Existing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The driver's own have more in theirs than is to be seen.
        f.write_str(match self {
            Self::Manager(_) => "Manager",
            Self::Multiplexed(_) => "Multiplexed",
            #[cfg(feature = "cluster")]
            Self::Cluster(_) => "Cluster",
            #[cfg(feature = "deadpool")]
            Self::Pool(_) => "Pool",
        })
    }
}

/// A session, as its server knew it when it was asked last.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    /// By what address the driver knows its server, in a cluster.
    pub(crate) node: Option<String>,
    /// Where the server tells.
    pub(crate) identity: Option<Identity>,
    /// Whether it speaks the second version of the protocol, where the server tells.
    pub(crate) is_resp2: Option<bool>,
}

impl Known {
    pub(crate) fn new(node: Option<String>, answers: &[Value]) -> Self {
        let identity = match answers.first() {
            Some(Value::Int(id)) => Some(Identity::new(*id, answers.get(1..))),
            _ => None,
        };
        let client = answers.get(2).map(text).unwrap_or_default();
        let resp = client.split_whitespace().find_map(|field| field.strip_prefix("resp="));
        Self { node, identity, is_resp2: resp.map(|resp| resp == "2") }
    }
}

/// What the server is asked over a connection itself, to learn who that is to it.
pub(crate) fn questions() -> [Cmd; 3] {
    let [server, client] = Identity::questions();
    [cmd("CLIENT").arg("ID").take(), server, client]
}

/// These questions in one message.
pub(crate) fn message<'a>(questions: impl IntoIterator<Item = &'a Cmd>) -> Pipeline {
    let mut message = Pipeline::new();
    for question in questions {
        message.add_command(question.clone());
    }
    message
}

/// The answers to these questions, [unless the connection is over](unless_over).
#[cfg(feature = "deadpool")]
pub(crate) async fn ask(connection: &mut MultiplexedConnection, questions: &[Cmd]) -> RedisResult<Vec<Value>> {
    let (looks, message) = (connection.clone(), message(questions));
    unless_over(looks, connection.send_packed_commands(&message, 0, message.len())).await
}

/// Says goodbye, [unless the connection is over](unless_over).
pub(crate) async fn quit(connection: &mut MultiplexedConnection) -> RedisResult<()> {
    let looks = connection.clone();
    unless_over(looks, cmd("QUIT").exec_async(connection)).await
}

/// Half of what is left of a drain.
pub(crate) fn half(drain: &Drain) -> Instant {
    part(drain, 2)
}

/// One of so many parts of what is left of a drain.
pub(crate) fn part(drain: &Drain, of: u32) -> Instant {
    let now = Instant::now();
    now + drain.deadline().saturating_duration_since(now) / of
}

/// Between two looks whether a connection is over: at first, and at most.
const LOOKS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// The answer, or that the connection is over. What is put into the driver's channel at the moment when its task ends stays there, and
/// is not answered as long as there is a clone of the connection; what is put in later is refused at once. A command that wants no
/// answer shows that.
///
/// # Cancel safety
/// That of the answer.
async fn unless_over<T>(
    mut connection: MultiplexedConnection,
    answer: impl Future<Output = RedisResult<T>>,
) -> RedisResult<T> {
    let (mut answer, mut pause) = (pin!(answer), LOOKS.0);
    let mut ping = cmd("PING");
    ping.set_no_response(true);
    loop {
        tokio::select! {
            biased;
            answer = &mut answer => return answer,
            () = sleep(pause) => {}
        }
        connection.send_packed_command(&ping).await?;
        pause = (pause * 2).min(LOOKS.1);
    }
}

/// Whether the connection itself shows, after its goodbye, that the server has closed its side; nothing where no answer came in time.
pub(crate) async fn is_closed(connection: &mut MultiplexedConnection) -> Option<bool> {
    let looks = connection.clone();
    match unless_over(looks, cmd("PING").exec_async(connection)).await {
        Err(failure) if failure.is_timeout() => None,
        answer => Some(answer.is_err_and(|failure| failure.is_connection_dropped())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(client: &str) -> Known {
        let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        Known::new(None, &[Value::Int(7), bulk("run_id:a\r\n"), bulk(client)])
    }

    /// What was asked at the moment when the driver's task ended is never answered.
    #[tokio::test]
    async fn who_waits_for_an_answer_is_told_that_the_connection_is_over() {
        // The answers to the two commands that give the library's name and version.
        let greeting = tokio::io::join(&b"+OK\r\n+OK\r\n"[..], tokio::io::sink());
        let settings = redis::RedisConnectionInfo::default();
        let (mut connection, driver) = MultiplexedConnection::new(&settings, greeting).await.unwrap();
        let unanswered = unless_over(connection.clone(), std::future::pending::<RedisResult<()>>());
        tokio::pin!(unanswered);
        assert!(futures_util::poll!(&mut unanswered).is_pending());
        drop(driver);
        assert!(unanswered.await.unwrap_err().is_connection_dropped());
        assert_eq!(is_closed(&mut connection).await, Some(true));
    }

    #[test]
    fn what_it_speaks_is_known_where_the_server_tells() {
        assert_eq!(known("id=7 addr=1.2.3.4:5 resp=2").is_resp2, Some(true));
        assert_eq!(known("id=7 addr=1.2.3.4:5 resp=3").is_resp2, Some(false));
        assert_eq!(known("id=7 addr=1.2.3.4:5").is_resp2, None);
        assert!(Known::new(None, &[Value::Nil]).identity.is_none());
    }
}
