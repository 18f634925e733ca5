//! `redis::aio::MultiplexedConnection`.

use std::{pin::pin, time::Duration};

use futures_util::FutureExt as _;
use redis::{
    RedisResult,
    aio::{ConnectionLike as _, MultiplexedConnection},
    cmd, pipe,
};
use tokio::{task::unconstrained, time::sleep};
use winddown_core::{BoxError, Capabilities};
use winddown_net::own_sockets::Peer;

use crate::{
    Driver,
    speaks::{Leaving, Speaks},
};

/// Between two looks whether a connection that owes an answer is over: at first, and at most.
const LOOKS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));

impl Speaks<MultiplexedConnection> for Driver {
    fn capabilities(&self) -> Capabilities {
        Capabilities::NONE.with_goodbye().with_confirmed_end()
    }

    fn resets(&self) -> bool {
        true
    }

    /// Ends a MULTI and a WATCH, and goes back to the database that the connection was opened with.
    async fn reset(&self, connection: &mut MultiplexedConnection) {
        let mut undoing = pipe();
        // Without a MULTI it is refused, and nothing is lost.
        undoing.cmd("DISCARD").cmd("UNWATCH").cmd("SELECT").arg(connection.get_db());
        let count = undoing.len();
        let looks = connection.clone();
        let answers = async {
            // Late for the driver, it is executed all the same.
            let _ = connection.send_packed_commands(&undoing, 0, count).await;
            answered(connection).await
        };
        // Who finds it broken asks the pool.
        let _ = unless_over(looks, answers).await;
    }

    async fn settled(&self, connection: &mut MultiplexedConnection) -> Result<Option<Peer>, BoxError> {
        answered(connection).await?;
        Ok(None)
    }

    async fn goodbye(&self, leaving: &mut Leaving<MultiplexedConnection>) -> bool {
        let Some(connection) = leaving.get() else { return false };
        let looks = connection.clone();
        // What it is answered does not matter: its end is seen.
        let _ = unless_over(looks.clone(), cmd("QUIT").exec_async(connection)).await;
        loop {
            match unless_over(looks.clone(), cmd("PING").exec_async(connection)).await {
                Err(failure) if failure.is_timeout() => {}
                answer => return answer.is_err_and(|failure| failure.is_connection_dropped()),
            }
        }
    }

    fn cut(&self, connection: &mut MultiplexedConnection) {
        let mut quit = cmd("QUIT");
        // The driver does not send what nobody waits for, unless nobody is to.
        quit.set_no_response(true);
        // On its way when it was polled once.
        let _ = unconstrained(connection.send_packed_command(&quit)).now_or_never();
    }
}

/// Ready when everything is answered that was sent before, however late that is for the driver.
async fn answered(connection: &mut MultiplexedConnection) -> RedisResult<()> {
    loop {
        match unless_over(connection.clone(), cmd("PING").exec_async(connection)).await {
            Err(failure) if failure.is_timeout() => {}
            // One that refuses has answered.
            Err(failure) if failure.is_connection_dropped() || failure.is_io_error() => return Err(failure),
            _ => return Ok(()),
        }
    }
}

/// The answer, or an error if the connection is over. What was asked at the moment when the driver's task ended is never answered, so
/// the task is looked for.
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
