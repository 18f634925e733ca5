//! The snapshot of a function, and its restoration.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::timeout;

use super::{Sim, ended};
use crate::config::{FUNCTION_VERSION, Mode};
use crate::error::{Error, ErrorKind};
use crate::record::Reason;
use crate::state::{Restore, SimState, millis};

/// AWS: "Runtime hooks for Lambda SnapStart", after restore.
const RESTORE_LIMIT: Duration = Duration::from_secs(10);

impl Sim {
    /// Takes the snapshot of a function with [`Config::snap_start`](crate::Config::snap_start): waits until its init is over and stops every process, until
    /// [`restore`](Self::restore), the first invocation or shutdown.
    ///
    /// On Lambda one snapshot is restored many times. A process cannot be copied here: to see a second restoration from the
    /// same state, start another environment and take that to its snapshot.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] without [`Config::snap_start`](crate::Config::snap_start), and after a restoration; [`ErrorKind::Ended`] when the environment has
    /// ended or is ending; init errors.
    pub async fn snapshot(&self) -> Result<(), Error> {
        self.snap_start_only()?;
        self.ready().await?;
        let _turn = self.turn().await;
        if self.world().read(|state| state.restored) {
            let message = "the snapshot has been restored already: start another environment for another snapshot";
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        if self.environment.freeze("snapshot") { Ok(()) } else { Err(ended()) }
    }

    /// Restores the snapshot of a function with [`Config::snap_start`](crate::Config::snap_start): lets its processes go on, answers its
    /// `GET /runtime/restore/next`, and waits until it asks for its first event.
    ///
    /// It has 10 s for that, as on Lambda. A function that never asks `restore/next` has nothing to do. When it fails, the
    /// environment is shut down before this returns, and [`Error::record`] tells how that went. Once restored, this does nothing.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Restore`] when the function reports an error, exits, or takes too long; [`ErrorKind::Unsupported`] without
    /// [`Config::snap_start`](crate::Config::snap_start); [`ErrorKind::Ended`] when the environment has ended or is ending; init errors.
    ///
    /// # Cancel safety
    ///
    /// Can be called again; the function's 10 s begin anew.
    pub async fn restore(&self) -> Result<(), Error> {
        self.snap_start_only()?;
        self.ready().await?;
        let _turn = self.turn().await;
        self.restore_in_turn().await
    }

    pub(super) fn snap_start_only(&self) -> Result<(), Error> {
        if self.config().mode == Mode::SnapStart {
            return Ok(());
        }
        let message = "there is no snapshot: set Config::snap_start for a function that has one";
        Err(Error::new(ErrorKind::Unsupported, message))
    }

    pub(super) async fn restore_in_turn(&self) -> Result<(), Error> {
        if self.config().mode != Mode::SnapStart || self.world().read(|state| state.restored) {
            return Ok(());
        }
        self.environment.thaw();
        let begun = Instant::now();
        self.world().update(|state| {
            if state.runtime.restore == Restore::Waiting {
                state.runtime.restore = Restore::Told;
                state.note("restore");
            }
            let config = self.config();
            let record = json!({"functionName": config.function_name, "functionVersion": FUNCTION_VERSION});
            state.tell("platform.restoreStart", record);
        });
        let look = |state: &SimState| match &state.runtime.restore {
            Restore::Failed(error) => Some(Err(format!("{}: {}", error.error_type, error.message))),
            _ if state.ending.is_some() || state.killed => Some(Err(ended().to_string())),
            _ => match &state.runtime.exit {
                Some(exit) => Some(Err(format!("Runtime.ExitError: it exited with {}", exit.describe()))),
                None => state.runtime.polled.then_some(Ok(())),
            },
        };
        let end = timeout(RESTORE_LIMIT, self.world().wait(look)).await;
        let message = match end {
            Ok(Ok(())) => {
                self.world().update(|state| {
                    state.restored = true;
                    state.note("restored");
                    state.tell("platform.restoreRuntimeDone", json!({"status": "success"}));
                    let metrics = json!({"durationMs": millis(begun.elapsed())});
                    state.tell("platform.restoreReport", json!({"status": "success", "metrics": metrics}));
                });
                return Ok(());
            }
            Ok(Err(_)) if self.world().read(|state| state.ending.is_some() || state.killed) => return Err(ended()),
            Ok(Err(message)) => message,
            Err(_elapsed) => {
                format!("Runtime.RestoreHookUserTimeout: it did not ask for an event within {RESTORE_LIMIT:?}")
            }
        };
        self.world().update(|state| state.note("restore failed"));
        let record = self.shutdown(Reason::Failure).await;
        let message = format!("the function could not be restored, {message}: look at what it does after restore/next");
        Err(Error::new(ErrorKind::Restore, message).with_record(record))
    }
}
