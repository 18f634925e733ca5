//! Records that are given up are put elsewhere, where blocking is allowed.

use tokio::task::spawn_blocking;
use winddown_core::{BoxError, Error, ErrorKind};

use crate::{Batch, Spill};

/// Records of one batch that were not spilled, each with its own reason.
pub(crate) type Refused = Vec<(usize, Error)>;

/// Spills these, on a thread that may block. Returns what was refused, for each batch.
///
/// # Errors
/// None of them was spilled, for this reason.
pub(crate) async fn put_elsewhere<T: Send + Sync + 'static>(
    spill: &Spill<T>,
    name: &str,
    batches: Vec<Batch<T>>,
    reason: &Error,
) -> Result<Vec<Refused>, Error> {
    if batches.is_empty() {
        return Ok(Vec::new());
    }
    let mut refused = vec![Refused::new(); batches.len()];
    let (spill, name, why) = (spill.clone(), name.to_owned(), reason.clone());
    let spilling = spawn_blocking(move || spill.write(&name, &batches, &why));
    let failed = |error: BoxError| Error::new(ErrorKind::Write, "neither written nor spilled").with_source(error);
    let unspilled = match spilling.await {
        Ok(Ok(unspilled)) => unspilled,
        Ok(Err(error)) => return Err(failed(error)),
        Err(panic) => return Err(failed(panic.into())),
    };
    for one in unspilled {
        if let Some(refused) = refused.get_mut(one.batch) {
            refused.push((one.record, failed(one.error.into())));
        }
    }
    Ok(refused)
}
