//! What nobody waits for any more: while a drain goes on it is stopped.

use std::{collections::HashSet, future::Future, pin::pin, sync::Arc};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{sync::watch, task::yield_now, time::sleep};
use winddown_core::{Error, adapter::Drain};

use super::{Draining, Session};

impl<P: Send + Sync + 'static> Draining<'_, P> {
    /// Runs `goodbye`, and has `stop` end what nobody waits for any more meanwhile: on each session that `is_left` says it of,
    /// when that has lasted for the drain's grace, until settling ends. What `stop` returns is counted as cancelled. It ends one
    /// thing, and is called again while the session stays so, but not once it has failed, which is noted.
    ///
    /// # Cancel safety
    /// Cancel safe; what was counted stands.
    ///
    /// # Errors
    /// That of `goodbye`.
    pub async fn stop_abandoned<F>(
        &self,
        drain: &Drain,
        goodbye: impl Future<Output = Result<(), Error>>,
        is_left: impl Fn(&Session<P>) -> bool + Copy,
        stop: impl Fn(Arc<Session<P>>) -> F + Copy,
    ) -> Result<(), Error>
    where
        F: Future<Output = Result<usize, Error>>,
    {
        let sessions = self.0;
        let (over, is_over) = watch::channel(false);
        let over = async {
            let result = goodbye.await;
            over.send_replace(true);
            result
        };
        let mut over = pin!(over);
        let mut result = Ok(());
        let mut settled = false;
        // No tasks: what `stop` holds is given back at the moment when this is dropped.
        let mut stopping = FuturesUnordered::new();
        let mut looked_after = HashSet::new();
        loop {
            // What was asked of a server is counted when its answer is there, also where the session is gone sooner.
            if *is_over.borrow() && stopping.is_empty() {
                return result;
            }
            for session in sessions.open() {
                if !settled && is_left(&session) && looked_after.insert(session.id) {
                    let mut is_over = is_over.clone();
                    stopping.push(async move {
                        tokio::select! {
                            () = sleep(drain.grace()) => {}
                            _ = is_over.wait_for(|over| *over) => return (session.id, Ok(0)),
                        }
                        // Whoever drives the session has heard what the server has said meanwhile.
                        yield_now().await;
                        yield_now().await;
                        // It may have ended by itself.
                        let stopped = if is_left(&session) { stop(Arc::clone(&session)).await } else { Ok(0) };
                        (session.id, stopped)
                    });
                }
            }
            tokio::select! {
                () = sessions.abandoned.notified() => {}
                Some((id, stopped)) = stopping.next() => match stopped {
                    Ok(statements) => {
                        looked_after.remove(&id);
                        drain.count_cancelled(statements);
                    }
                    Err(error) => drain.note(&error),
                },
                // From here on all that runs is stopped, by whoever does that.
                () = drain.until_cancel(), if !settled => {
                    settled = true;
                    stopping.clear();
                }
                ended = &mut over, if !*is_over.borrow() => result = ended,
                // What is not counted by now is not known.
                () = drain.until_cut(), if *is_over.borrow() => return result,
            }
        }
    }
}
