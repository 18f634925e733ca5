//! The signals that say stop, as the thread that waits for them receives them.

use std::{borrow::Cow, future::pending, io, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::Instant,
};

use crate::{Platform, signals};

/// One request to stop may arrive as several signals: `timeout(1)` and shells send them to the process and to its group.
/// What comes within this time of the first is the same request.
const SAME_REQUEST: Duration = Duration::from_millis(100);

/// The signals that say stop, received from creation on, each with the moment of its arrival.
pub(super) struct Signals {
    /// Received, and not for the life that was over.
    put_back: Option<Received>,
    received: mpsc::UnboundedReceiver<Received>,
    /// Keeps the channel open where nothing is ever received.
    _open: mpsc::UnboundedSender<Received>,
}

#[derive(Debug, Clone)]
pub(super) struct Received {
    pub(super) name: Cow<'static, str>,
    number: i32,
    pub(super) at: Instant,
}

impl Received {
    fn now(kind: SignalKind) -> Self {
        Self { name: signals::name(kind), number: kind.as_raw_value(), at: Instant::now() }
    }

    fn is_sigterm(&self) -> bool {
        self.number == SignalKind::terminate().as_raw_value()
    }

    /// As shells report a process that a signal ended.
    pub(super) fn exit_status(&self) -> i32 {
        128 + self.number
    }
}

impl Signals {
    /// No signal, ever: for a lifecycle that does not own the process.
    pub(super) fn none() -> Self {
        let (sender, received) = mpsc::unbounded_channel();
        Self { put_back: None, received, _open: sender }
    }

    /// Must be called inside the runtime of the thread.
    pub(super) fn listen(kinds: &[SignalKind]) -> io::Result<Self> {
        let signals = Self::none();
        // All or none: a signal that is received and heard by nobody would be lost.
        let streams = kinds.iter().map(|kind| Ok((*kind, signal(*kind)?))).collect::<io::Result<Vec<_>>>()?;
        for (kind, mut stream) in streams {
            let sender = signals._open.clone();
            // In a task of its own: a signal that arrives while something else is waited for has its moment too.
            tokio::spawn(async move {
                while stream.recv().await.is_some() {
                    if sender.send(Received::now(kind)).is_err() {
                        return;
                    }
                }
            });
        }
        Ok(signals)
    }

    /// # Cancel safety
    /// Cancel safe: no signal is lost.
    pub(super) async fn next(&mut self) -> Received {
        if let Some(signal) = self.put_back.take() {
            return signal;
        }
        match self.received.recv().await {
            Some(received) => received,
            // The sender is in `self`, so it cannot be closed.
            None => pending().await,
        }
    }

    /// Gives a signal to whoever asks next.
    pub(super) fn put_back(&mut self, signal: Received) {
        self.put_back = Some(signal);
    }

    /// The signal that repeats a request to stop. The first one since the drain began otherwise is that request, and is
    /// written to `stop`. Where the platform repeats SIGTERM by itself, a further one says nothing new.
    ///
    /// # Cancel safety
    /// Cancel safe: what it has learnt is in `stop`.
    pub(super) async fn second(&mut self, stop: &mut Option<Instant>, platform: &Platform) -> Received {
        loop {
            let signal = self.next().await;
            match *stop {
                Some(_) if platform.repeats_sigterm && signal.is_sigterm() => {}
                Some(at) if signal.at.saturating_duration_since(at) >= SAME_REQUEST => return signal,
                Some(_) => {}
                None => *stop = Some(signal.at),
            }
        }
    }
}
