//! Ends commands that wait at the server: over a connection of its own, since that of the session waits with them.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use redis::{Cmd, RedisError, Value, cmd};
use winddown_core::{Error, ErrorKind};
use winddown_net::Address;

use crate::{
    connect::{Dialogue, Endpoint},
    error::{closed, error},
    sessions::Session,
};

/// Between two questions. Nobody tells when the next command of a session begins to wait.
const PAUSE: Duration = Duration::from_millis(2);

/// Has the servers of these sessions end whatever waits there, until nothing of them is unanswered. What is queued behind a
/// command that waits is executed. `stopped` is told how many were ended, as they are.
///
/// # Cancel safety
/// Cancel safe: what was ended is.
///
/// # Errors
/// That of a server that could not be asked, or refuses; the others have been asked all the same.
pub(crate) async fn stop(sessions: Vec<Arc<Session>>, stopped: impl Fn(usize) + Send + Sync) -> Result<(), Error> {
    let mut servers: HashMap<Address, Vec<Arc<Session>>> = HashMap::new();
    for session in sessions {
        servers.entry(session.part().endpoint.address.clone()).or_default().push(session);
    }
    let stopping = servers.values().map(|sessions| stop_at(&sessions[0].part().endpoint, sessions, &stopped));
    join_all(stopping).await.into_iter().collect()
}

async fn stop_at(
    endpoint: &Endpoint,
    sessions: &[Arc<Session>],
    stopped: &(impl Fn(usize) + Send + Sync),
) -> Result<(), Error> {
    let mut dialogue = endpoint.dialogue().await?;
    let result = stop_over(&mut dialogue, sessions, stopped).await;
    // Nothing depends on how it ends, but that it has: the server is to list none of ours.
    let _ = dialogue.close().await;
    result.map_err(|source| error(ErrorKind::Incomplete, "cannot end a command that waits at the server", source))
}

async fn stop_over(
    dialogue: &mut Dialogue,
    sessions: &[Arc<Session>],
    stopped: &(impl Fn(usize) + Send + Sync),
) -> Result<(), RedisError> {
    loop {
        let busy = sessions.iter().filter(|session| session.part().is_busy() && !session.is_over());
        let busy: Vec<i64> = busy.filter_map(|session| session.part().id()).collect();
        if busy.is_empty() {
            return Ok(());
        }
        let questions: Vec<Cmd> = busy.iter().flat_map(|id| [unblock(*id), list(*id)]).collect();
        let answers = dialogue.ask(&questions).await?;
        let mut killed = Vec::new();
        for (id, answer) in busy.into_iter().zip(answers.chunks(2)) {
            match answer {
                [Value::Int(1), _] => stopped(1),
                // It waits, and cannot be told to stop: as one does for whom all clients were paused.
                [Value::Int(_), listed] if is_blocked(listed) => killed.push(kill(id)),
                [Value::Int(_), _] => {}
                [Value::ServerError(refusal), ..] => return Err(refusal.clone().into()),
                _ => return Err(closed()),
            }
        }
        let answers = dialogue.ask(&killed).await?;
        stopped(answers.iter().filter(|answer| matches!(answer, Value::Int(1))).count());
        tokio::time::sleep(PAUSE).await;
    }
}

/// Its caller gets an error of the server, `UNBLOCKED`.
fn unblock(id: i64) -> Cmd {
    cmd("CLIENT").arg("UNBLOCK").arg(id).arg("ERROR").take()
}

fn list(id: i64) -> Cmd {
    cmd("CLIENT").arg("LIST").arg("ID").arg(id).take()
}

fn kill(id: i64) -> Cmd {
    cmd("CLIENT").arg("KILL").arg("ID").arg(id).take()
}

/// Whether the server's line about a client has the flag for one that waits in a command.
/// <https://redis.io/docs/latest/commands/client-list/>
fn is_blocked(listed: &Value) -> bool {
    let line = redis::from_redis_value_ref::<String>(listed).unwrap_or_default();
    line.split(' ').any(|field| field.strip_prefix("flags=").is_some_and(|flags| flags.contains('b')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_waits_has_a_flag() {
        let line = |flags: &str| Value::BulkString(format!("id=3 name=b flags={flags} db=0").into_bytes());
        assert!(is_blocked(&line("b")));
        assert!(is_blocked(&line("Pb")));
        assert!(!is_blocked(&line("N")));
        assert!(!is_blocked(&Value::BulkString(Vec::new())));
    }
}
