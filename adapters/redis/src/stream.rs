//! What the driver reads from and writes to: a socket, encrypted or not, that knows how many requests the server was sent,
//! and says goodbye when it is told to.
//!
//! Redis has no message for a goodbye: the client closes its side. The server takes a client off its list before it closes
//! its own (`unlinkClient` in its networking.c), so the end of its side is the proof that it lists us no more.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use winddown_net::Transport;

/// What encrypts: nothing where TLS is not compiled in.
#[cfg(feature = "tls")]
pub(crate) type Encrypted = tokio_rustls::client::TlsStream<winddown_net::Socket>;
#[cfg(not(feature = "tls"))]
pub(crate) type Encrypted = winddown_net::Socket;

/// What is known of a stream from outside, and how it is told to leave.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    /// Requests that are with the kernel to their last byte.
    sent: AtomicU64,
    leave: AtomicBool,
    ended: AtomicBool,
}

// Relaxed, everywhere here: each value stands alone, and the lock of the session orders them for whoever decides by them.
impl Activity {
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// The stream says goodbye when it is read next, whatever else is to be read.
    pub(crate) fn leave(&self) {
        self.leave.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.leave.load(Ordering::Relaxed)
    }

    /// Whether the server has closed its side.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }
}

/// The stream of one session.
#[derive(Debug)]
pub(crate) struct Stream {
    transport: Transport<Encrypted>,
    activity: Arc<Activity>,
    requests: Requests,
}

impl Stream {
    pub(crate) fn over(transport: Transport<Encrypted>) -> Self {
        Self { transport, activity: Arc::default(), requests: Requests::default() }
    }

    pub(crate) fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }
}

impl AsyncRead for Stream {
    /// At its end once it was told to leave and the server has closed its side.
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.activity.is_leaving() {
            return self.poll_shutdown(cx);
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.transport).poll_read(cx, buf))?;
        if buf.filled().len() == before {
            self.activity.ended.store(true, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.transport).poll_write(cx, buf))?;
        let whole = self.requests.read(&buf[..written]);
        self.activity.sent.fetch_add(whole, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    /// Says that nothing more comes, and waits until the server has closed its side.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.activity.has_ended() {
            ready!(Pin::new(&mut self.transport).poll_shutdown(cx))?;
            self.activity.ended.store(true, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

/// Counts the requests in what is written: arrays of bulk strings, and nothing else.
/// <https://redis.io/docs/latest/develop/reference/protocol-spec/>
#[derive(Debug, Default)]
struct Requests {
    /// The number on the line that is being read: how many arguments, or how many bytes.
    number: usize,
    /// How many arguments of the request are still to come.
    arguments: usize,
    /// How many bytes of the argument are still to come, with the end of its line.
    bytes: usize,
}

impl Requests {
    /// Reads on, and tells how many requests end here.
    fn read(&mut self, mut bytes: &[u8]) -> u64 {
        let mut whole = 0;
        while let [first, rest @ ..] = bytes {
            if self.bytes > 0 {
                let skipped = self.bytes.min(bytes.len());
                self.bytes -= skipped;
                bytes = &bytes[skipped..];
                if self.bytes == 0 {
                    self.arguments -= 1;
                    whole += u64::from(self.arguments == 0);
                }
                continue;
            }
            match first {
                b'0'..=b'9' => self.number = self.number * 10 + usize::from(first - b'0'),
                b'\n' if self.arguments == 0 => self.arguments = std::mem::take(&mut self.number),
                b'\n' => self.bytes = std::mem::take(&mut self.number) + 2,
                _ => {}
            }
            bytes = rest;
        }
        whole
    }
}

#[cfg(test)]
mod tests {
    use redis::{cmd, pipe};

    use super::*;

    #[test]
    fn a_request_counts_with_its_last_byte_however_the_bytes_are_cut() {
        let request = cmd("SET").arg("key with 1\r\n$2").arg("").arg(vec![b'*'; 300]).get_packed_command();
        let (last, most) = request.split_last().unwrap();
        for cut in 1..12 {
            let mut requests = Requests::default();
            assert_eq!(most.chunks(cut).map(|part| requests.read(part)).sum::<u64>(), 0);
            assert_eq!(requests.read(&[*last]), 1, "in parts of {cut} bytes");
        }
    }

    #[test]
    fn each_command_of_a_pipeline_counts_and_so_do_the_ends_of_a_transaction() {
        let mut requests = Requests::default();
        let mut pipeline = pipe();
        pipeline.cmd("INCR").arg("a").cmd("GET").arg("a");
        assert_eq!(requests.read(&pipeline.get_packed_pipeline()), 2);
        assert_eq!(requests.read(&pipeline.atomic().get_packed_pipeline()), 4);
    }
}
