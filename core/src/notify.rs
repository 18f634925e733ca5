//! What systemd is told.

use std::{env, fs::File, io, time::Duration};

use sd_notify::NotifyState;
use tokio::{sync::oneshot, time::timeout};

use crate::standby::Standby;

/// What it takes to tell it that the service stops: a thread and a descriptor, which may be had no more by then.
pub(crate) struct Stopping(Option<Standby<io::Result<File>>>);

impl Stopping {
    /// Nothing outside systemd.
    pub(crate) fn prepare() -> Self {
        Self(env::var_os("NOTIFY_SOCKET").and_then(|_| teller().ok()))
    }

    /// Says that the service stops, and how long that may take: `STOPPING=1` alone starts systemd's stop timer anew
    /// (systemd#39535), so both go in one message. Does nothing outside systemd.
    pub(crate) fn say(self, budget: Duration) {
        let microseconds = u32::try_from(budget.as_micros()).unwrap_or(u32::MAX);
        let message = move || sd_notify::notify(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(microseconds)]);
        drop(tell(self.0, message));
    }
}

/// Says that the service is up (`Type=notify`), and waits until that is said. Does nothing outside systemd.
pub(crate) async fn ready() {
    if let Some(told) = tell(None, || sd_notify::notify(&[NotifyState::Ready])) {
        let _ = timeout(PATIENCE, told).await;
    }
}

/// The socket's buffer is full for longer only where systemd hangs.
const PATIENCE: Duration = Duration::from_secs(1);

/// On a thread of its own: the socket's buffer may be full, and callers own a deadline or a runtime. Where no thread can be had
/// systemd is not told, and all goes on.
fn tell(
    prepared: Option<Standby<io::Result<File>>>,
    notify: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Option<oneshot::Receiver<()>> {
    env::var_os("NOTIFY_SOCKET")?;
    let (sender, told) = oneshot::channel();
    let send = move |place| {
        // The socket takes its place.
        drop(place);
        if let Err(error) = notify() {
            tracing::warn!(%error, "cannot tell systemd");
        }
        let _ = sender.send(());
    };
    prepared.map_or_else(teller, Ok).ok()?.run(send);
    Some(told)
}

fn teller() -> io::Result<Standby<io::Result<File>>> {
    Standby::with("winddown-notify", File::open("/dev/null"))
}
