//! Whoever is told what servers push. It learns of the end of each session, however that comes; and while it only listens, its
//! session is asked now and then whether the server is there.

use std::sync::{
    Arc, OnceLock, Weak,
    atomic::{AtomicBool, Ordering},
};

use redis::{
    PushInfo, PushKind,
    aio::{AsyncPushSender, SendError},
};
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{config::Config, handle::Handle, mailbox::Mailbox};

/// What is pushed on one session goes through this. The driver has it for as long as the session is.
struct Pushes {
    to: Arc<dyn AsyncPushSender>,
    seen: Arc<Seen>,
    /// Of the session, once it is open.
    mailbox: OnceLock<Weak<Mailbox>>,
}

#[derive(Debug, Default)]
struct Seen {
    is_open: AtomicBool,
    /// Its end was told.
    has_ended: AtomicBool,
    /// Something was pushed, for the first time.
    pushed: Notify,
    has_pushed: AtomicBool,
}

// Relaxed, everywhere here: each value stands alone.
impl AsyncPushSender for Pushes {
    fn send(&self, info: PushInfo) -> Result<(), SendError> {
        if info.kind == PushKind::Disconnection {
            if self.seen.has_ended.swap(true, Ordering::Relaxed) {
                return Ok(());
            }
            // First: whoever is told asks for another session at once, and is not to get this one.
            if let Some(mailbox) = self.mailbox.get().and_then(Weak::upgrade) {
                mailbox.close();
            }
        } else if !self.seen.has_pushed.swap(true, Ordering::Relaxed) {
            self.seen.pushed.notify_one();
        }
        self.to.send(info)
    }
}

/// The driver tells the end that it sees, and not that it is dropped.
impl Drop for Pushes {
    fn drop(&mut self) {
        if self.seen.is_open.load(Ordering::Relaxed) && !self.seen.has_ended.swap(true, Ordering::Relaxed) {
            // Nobody may be left to hear it.
            let _ = self.to.send(PushInfo { kind: PushKind::Disconnection, data: Vec::new() });
        }
    }
}

/// For one session, from before it is opened.
pub(crate) struct Listener {
    pushes: Arc<Pushes>,
}

impl Listener {
    pub(crate) fn of(to: &Arc<dyn AsyncPushSender>) -> Self {
        Self { pushes: Arc::new(Pushes { to: Arc::clone(to), seen: Arc::default(), mailbox: OnceLock::new() }) }
    }

    pub(crate) fn pushes(&self) -> Arc<dyn AsyncPushSender> {
        Arc::clone(&self.pushes) as _
    }

    /// The session is open: its end will be told, and it is looked after once something was pushed on it.
    pub(crate) fn has(self, handle: &Handle, config: &Config) {
        let seen = Arc::clone(&self.pushes.seen);
        seen.is_open.store(true, Ordering::Relaxed);
        // It is opened once.
        let _ = self.pushes.mailbox.set(handle.mailbox());
        let Some(every) = config.listening_check else { return };
        // A server may be busy for a while, and nobody waits for this answer.
        let limit = config.check_timeout.max(every);
        let watch = handle.watch();
        handle.is_looked_after_by(LookingAfter(tokio::spawn(async move {
            // Nothing is owed while nobody listens.
            seen.pushed.notified().await;
            loop {
                sleep(every).await;
                match timeout(limit, watch.answers()).await {
                    Ok(Some(true)) => {}
                    Ok(None) => return,
                    Ok(Some(false)) | Err(_) => {
                        tracing::debug!("a session that only listens did not answer, ending it");
                        return watch.cut();
                    }
                }
            }
        })));
    }
}

/// The task that looks after a session, which ends with it.
pub(crate) struct LookingAfter(JoinHandle<()>);

impl Drop for LookingAfter {
    fn drop(&mut self) {
        self.0.abort();
    }
}
