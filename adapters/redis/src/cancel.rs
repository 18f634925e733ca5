//! Ends commands that wait at the server: over a connection of its own, since that of the session waits with them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use redis::{Cmd, RedisError, Value, cmd};
use tokio::time::{Instant, timeout_at};
use winddown_core::{Drain, Error, ErrorKind};
use winddown_net::Address;

use crate::{
    connect::Dialogue,
    error::{closed, error},
    sessions::{Session, Sessions},
};

/// Between two questions. Nobody tells when the next command of a session begins to wait.
const PAUSE: Duration = Duration::from_millis(2);

/// What has waited for its answer for that long when the drain has begun may have to be ended: a connection for that is opened
/// then, so that none must be when time is short.
const PREPARE_AFTER: Duration = Duration::from_millis(10);

/// Connections with servers that may have to be asked to end something.
#[derive(Default)]
pub(crate) struct Prepared {
    dialogues: Mutex<HashMap<Address, Dialogue>>,
}

impl Prepared {
    fn dialogues(&self) -> MutexGuard<'_, HashMap<Address, Dialogue>> {
        self.dialogues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens one with each server of a session that stays busy. Never ready.
    ///
    /// # Cancel safety
    /// Cancel safe; those that are open stay.
    pub(crate) async fn prepare(&self, sessions: &Sessions) {
        let waiting: Vec<_> =
            busy(sessions.open()).into_iter().map(|session| (session.part().answers(), session)).collect();
        tokio::time::sleep(PREPARE_AFTER).await;
        // One that gets its answers is about to end by itself.
        let stays =
            |(answers, session): (usize, Arc<Session>)| (session.part().answers() == answers).then_some(session);
        let servers = by_server(busy(waiting.into_iter().filter_map(stays).collect()));
        join_all(servers.into_iter().map(|(address, sessions)| async move {
            // Where it cannot be opened now it is tried again when it is needed, and what is wrong is told then.
            if let Ok(dialogue) = sessions[0].part().endpoint.dialogue().await {
                self.dialogues().insert(address, dialogue);
            }
        }))
        .await;
        std::future::pending().await
    }

    /// Closes those that were not needed, and waits until the servers have closed their sides, but not longer than half of
    /// what is left of the drain.
    pub(crate) async fn close(&self, drain: &Drain) {
        let left = std::mem::take(&mut *self.dialogues());
        let now = Instant::now();
        let limit = now + drain.deadline().saturating_duration_since(now) / 2;
        // Nothing depends on how they end, but that they have: the servers are to list none of ours.
        let _ = timeout_at(limit, join_all(left.into_values().map(Dialogue::close))).await;
    }

    /// Has the servers of these sessions end whatever waits there, until nothing of them is unanswered. What is queued behind a
    /// command that waits is executed. `stopped` is told how many were ended, as they are.
    ///
    /// # Cancel safety
    /// Cancel safe: what was ended is.
    ///
    /// # Errors
    /// That of a server that could not be asked, or refuses; the others have been asked all the same.
    pub(crate) async fn stop(
        &self,
        sessions: Vec<Arc<Session>>,
        stopped: impl Fn(usize) + Send + Sync,
    ) -> Result<(), Error> {
        let servers = by_server(busy(sessions));
        let stopping = servers.iter().map(|(address, sessions)| self.stop_at(address, sessions, &stopped));
        join_all(stopping).await.into_iter().collect()
    }

    async fn stop_at(
        &self,
        address: &Address,
        sessions: &[Arc<Session>],
        stopped: &(impl Fn(usize) + Send + Sync),
    ) -> Result<(), Error> {
        let prepared = self.dialogues().remove(address);
        if let Some(mut dialogue) = prepared
            && stop_over(&mut dialogue, sessions, stopped).await.is_ok()
        {
            let _ = dialogue.close().await;
            return Ok(());
        }
        // None was prepared, or it was of no use any more.
        let mut dialogue = sessions[0].part().endpoint.dialogue().await?;
        let result = stop_over(&mut dialogue, sessions, stopped).await;
        let _ = dialogue.close().await;
        result.map_err(|source| error(ErrorKind::Incomplete, "cannot end a command that waits at the server", source))
    }
}

fn by_server(sessions: Vec<Arc<Session>>) -> HashMap<Address, Vec<Arc<Session>>> {
    let mut servers: HashMap<Address, Vec<Arc<Session>>> = HashMap::new();
    for session in sessions {
        servers.entry(session.part().endpoint.address.clone()).or_default().push(session);
    }
    servers
}

fn busy(mut sessions: Vec<Arc<Session>>) -> Vec<Arc<Session>> {
    sessions.retain(|session| session.part().is_busy() && !session.is_over());
    sessions
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
