//! What systemd is told.

use std::{env, io, thread, time::Duration};

use sd_notify::NotifyState;
use tokio::{sync::oneshot, time::timeout};

/// Says that the service stops, and how long that may take: `STOPPING=1` alone starts systemd's stop timer anew
/// (systemd#39535), so both go in one message. Does nothing outside systemd.
pub(crate) fn stopping(budget: Duration) {
    let microseconds = u32::try_from(budget.as_micros()).unwrap_or(u32::MAX);
    drop(tell(move || sd_notify::notify(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(microseconds)])));
}

/// Says that the service is up (`Type=notify`), and waits until that is said. Does nothing outside systemd.
pub(crate) async fn ready() {
    if let Some(told) = tell(|| sd_notify::notify(&[NotifyState::Ready])) {
        let _ = timeout(PATIENCE, told).await;
    }
}

/// The socket's buffer is full for longer only where systemd hangs.
const PATIENCE: Duration = Duration::from_secs(1);

/// On a thread of its own: the socket's buffer may be full, and callers own a deadline or a runtime. Where no thread can be had
/// systemd is not told, and all goes on.
fn tell(notify: impl FnOnce() -> io::Result<()> + Send + 'static) -> Option<oneshot::Receiver<()>> {
    env::var_os("NOTIFY_SOCKET")?;
    let (sender, told) = oneshot::channel();
    let send = move || {
        if let Err(error) = notify() {
            tracing::warn!(%error, "cannot tell systemd");
        }
        let _ = sender.send(());
    };
    thread::Builder::new().name("winddown-notify".into()).spawn(send).ok()?;
    Some(told)
}
