//! Lines on standard error, which may be closed, full, or read by nobody: none of that is anybody's failure.

use std::{
    io::{self, Write},
    sync::mpsc as blocking,
    thread,
    time::Duration,
};

use tokio::{sync::oneshot, time::timeout};

/// Writes a line to standard error, whole; where that cannot be written to, there is nowhere left to say so. Waits where nobody
/// reads the other end of a full pipe. `eprintln!` would panic where the other end is closed.
pub fn write_line(line: &str) {
    let line = format!("{line}\n");
    let _ = io::stderr().lock().write_all(line.as_bytes());
}

/// Writes lines one after the other, on a thread that is left behind if nobody reads the other end of the pipe or somebody
/// holds the lock.
pub(crate) struct Lines {
    /// None where there was no thread.
    sender: Option<blocking::Sender<(String, oneshot::Sender<()>)>>,
}

impl Lines {
    pub(crate) fn start() -> Self {
        let (sender, lines) = blocking::channel::<(String, oneshot::Sender<()>)>();
        let write = move || {
            for (line, written) in lines {
                write_line(&line);
                // Whoever has waited for it may have given up.
                let _ = written.send(());
            }
        };
        let thread = thread::Builder::new().name("winddown-report".into()).spawn(write);
        Self { sender: thread.is_ok().then_some(sender) }
    }

    /// Writes it some time.
    pub(crate) fn say(&self, line: String) {
        drop(self.send(line));
    }

    /// Waits until it is written, at most for so long.
    pub(crate) async fn said(&mut self, line: String, at_most: Duration) {
        if self.sender.is_none() {
            // There may be a thread by now.
            *self = Self::start();
        }
        if let Some(written) = self.send(line) {
            let _ = timeout(at_most, written).await;
        }
    }

    fn send(&self, line: String) -> Option<oneshot::Receiver<()>> {
        let (sender, written) = oneshot::channel();
        self.sender.as_ref()?.send((line, sender)).ok()?;
        Some(written)
    }
}
