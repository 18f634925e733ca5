//! What systemd is told.

use std::{thread, time::Duration};

use sd_notify::NotifyState;

/// Says that the service stops, and how long that may take: `STOPPING=1` alone starts systemd's stop timer anew
/// (systemd#39535), so both go in one message. Does nothing outside systemd.
///
/// On a thread of its own: the socket's buffer may be full, and the caller owns the deadline.
pub(crate) fn stopping(budget: Duration) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let microseconds = u32::try_from(budget.as_micros()).unwrap_or(u32::MAX);
    let send = move || {
        if let Err(error) = sd_notify::notify(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(microseconds)]) {
            tracing::warn!(%error, "cannot tell systemd that the service stops");
        }
    };
    // Where no thread can be had systemd is not told; the drain goes on.
    let _ = thread::Builder::new().name("winddown-notify".into()).spawn(send);
}
