//! Whose the orphans are that come to this process.
//!
//! A process that has lost its parent becomes the child of the nearest ancestor that asks for orphans (a subreaper). Whose it was
//! cannot be seen then. So all of them count as one environment's, or none does: all, where everything below this process
//! can only be of that environment.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::{Error, ErrorKind};

/// The environments of this process, of which those that adopt orphans bear no other beside them.
static ENVIRONMENTS: Mutex<Environments> = Mutex::new(Environments { count: 0, one_adopts: false });

struct Environments {
    count: usize,
    one_adopts: bool,
}

/// One environment among those of this process, while it lives.
#[derive(Debug)]
pub(crate) struct Adoption {
    adopts: bool,
    is_of_family: bool,
}

impl Adoption {
    /// Counts an environment, before it starts its first process. With `adopts` orphans come here from now on.
    ///
    /// # Errors
    ///
    /// When it cannot be beside another environment of this process.
    pub(crate) fn begin(adopts: bool) -> Result<Self, Error> {
        let mut environments = lock();
        if environments.count > 0 && (adopts || environments.one_adopts) {
            let message = "another environment of this process lives, and orphans would be told apart no more: end it first, or leave out adopt_orphans";
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        environments.count += 1;
        environments.one_adopts = adopts;
        Ok(Self { adopts, is_of_family: adopts && become_subreaper() })
    }

    /// Whether orphans come here.
    pub(crate) fn adopts(&self) -> bool {
        self.adopts
    }

    /// Whether every orphan that comes here is of this environment.
    pub(crate) fn is_of_family(&self) -> bool {
        self.is_of_family
    }
}

impl Drop for Adoption {
    fn drop(&mut self) {
        let mut environments = lock();
        environments.count -= 1;
        environments.one_adopts &= !self.adopts;
    }
}

fn lock() -> MutexGuard<'static, Environments> {
    // a number and a boolean that nothing panics between
    ENVIRONMENTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether all orphans from now on come from what this process is about to start: it had no child before, and is not process 1, to
/// which those of everybody in the container come.
#[cfg(target_os = "linux")]
fn become_subreaper() -> bool {
    use rustix::process::{getpid, set_child_subreaper};
    // a kernel that refuses leaves the orphans to process 1
    let asks = set_child_subreaper(Some(getpid())).is_ok();
    // looked at after that: a child that is gone by now has left nothing that could still come
    asks && !getpid().is_init() && crate::tree::linux::children().next().is_none()
}

#[cfg(not(target_os = "linux"))]
fn become_subreaper() -> bool {
    false
}
