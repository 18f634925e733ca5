//! A connection manager that the application built: what can be done for it from outside.

use redis::aio::ConnectionManager;
use winddown_core::{Error, ErrorKind, adapter::Drain};

use crate::error::error;

/// Waits until everything that was sent through the manager before is executed: the server answers in order. The driver says
/// no goodbye, and opens the connection anew whenever somebody uses it: its end is unconfirmed. Where the server did not answer, it
/// counts as cut.
pub(crate) async fn goodbye(manager: &ConnectionManager, drain: &Drain) -> Result<(), Error> {
    tokio::select! {
        () = drain.until_returned() => {}
        () = drain.until_cut() => {
            drain.count_cut(1);
            return Ok(());
        }
    }
    let (ping, mut manager) = (redis::cmd("PING"), manager.clone());
    tokio::select! {
        answer = ping.exec_async(&mut manager) => match answer {
            Ok(()) => drain.count_unconfirmed(1),
            Err(source) => {
                let text = "whether everything that was sent was executed is not known";
                drain.note(&error(ErrorKind::Incomplete, text, source));
                drain.count_cut(1);
            }
        },
        () = drain.until_cut() => drain.count_cut(1),
    }
    Ok(())
}
