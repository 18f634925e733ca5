//! A connection of Diesel's that is had without a server, to be put in the place of another one.

use std::{
    future::Future,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use diesel_async::AsyncPgConnection;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::unconstrained,
};
use tokio_postgres::{Config, NoTls, config::SslMode};

/// More often than the few questions have to be looked at that Diesel asks at first.
const LOOKS: usize = 64;

/// One whose session has ended.
pub(super) fn spare() -> Option<AsyncPgConnection> {
    let mut config = Config::new();
    config.user("nobody").ssl_mode(SslMode::Disable);
    let opening = async {
        let (client, connection) = config.connect_raw(Willing::default(), NoTls).await.ok()?;
        tokio::select! {
            opened = AsyncPgConnection::try_from(client) => opened.ok(),
            _ = connection => None,
        }
    };
    // There is nothing to wait for, also where the task that this is called in has done so much that it is to let others on.
    let mut opening = pin!(unconstrained(opening));
    let mut context = Context::from_waker(Waker::noop());
    (0..LOOKS).find_map(|_| match opening.as_mut().poll(&mut context) {
        Poll::Ready(opened) => Some(opened),
        Poll::Pending => None,
    })?
}

/// A server that says yes to everything.
struct Willing {
    answers: Vec<u8>,
    asked: Vec<u8>,
    is_greeted: bool,
}

impl Default for Willing {
    fn default() -> Self {
        // "AuthenticationOk" and "ReadyForQuery". PostgreSQL documentation, "Message Formats", as all that follows.
        let greeting = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I".to_vec();
        Self { answers: greeting, asked: Vec::new(), is_greeted: false }
    }
}

impl Willing {
    fn answer(&mut self) {
        loop {
            // The first message has no letter in front of its length.
            let letter = usize::from(self.is_greeted);
            let Some(length) = self.asked.get(letter..).and_then(|rest| rest.first_chunk().copied()) else { return };
            let end = letter.saturating_add(u32::from_be_bytes(length) as usize);
            if self.asked.len() < end {
                return;
            }
            let message: Vec<u8> = self.asked.drain(..end).collect();
            if !std::mem::replace(&mut self.is_greeted, true) {
                continue;
            }
            let answer: &[u8] = match message.first() {
                // Parse: "ParseComplete"
                Some(b'P') => b"1\0\0\0\x04",
                // Describe: "ParameterDescription" of none, "NoData"
                Some(b'D') => b"t\0\0\0\x06\0\0n\0\0\0\x04",
                // Bind: "BindComplete"
                Some(b'B') => b"2\0\0\0\x04",
                // Execute: "CommandComplete"
                Some(b'E') => b"C\0\0\0\x08SET\0",
                // Close: "CloseComplete"
                Some(b'C') => b"3\0\0\0\x04",
                // Sync: "ReadyForQuery"
                Some(b'S') => b"Z\0\0\0\x05I",
                _ => b"",
            };
            self.answers.extend_from_slice(answer);
        }
    }
}

impl AsyncRead for Willing {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { answers, .. } = self.get_mut();
        if answers.is_empty() {
            // It is looked at again.
            return Poll::Pending;
        }
        let count = answers.len().min(buf.remaining());
        buf.put_slice(&answers[..count]);
        answers.drain(..count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Willing {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.asked.extend_from_slice(bytes);
        this.answer();
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spare_connection_is_had_without_a_server() {
        assert!(spare().is_some());
    }

    #[tokio::test]
    async fn nor_does_it_matter_how_much_its_task_has_done() {
        for _ in 0..1000 {
            assert!(spare().is_some());
        }
    }
}
