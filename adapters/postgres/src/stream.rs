//! What the driver reads from and writes to: a socket, encrypted or not, that knows whether a statement runs.
//!
//! The driver tells nobody what it waits for, and a statement whose future was dropped is known to it alone. So the
//! stream follows the protocol by the types of its messages, which are in clear here, above TLS.
//! <https://www.postgresql.org/docs/current/protocol-message-formats.html>

use std::{
    io, mem,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres_rustls::MakeRustlsConnect;

use winddown_core::Outdated;
use winddown_net::Socket;

use crate::read_only::Watch;

type RustlsStream = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;

/// What a session is doing, for others to see; and how they ask it to leave.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    /// Requests that the server has not answered to the end.
    in_flight: AtomicUsize,
    /// How many requests since the last one with a statement only close what was prepared.
    closing: AtomicUsize,
    /// The server waits for the rows of a `COPY`.
    copying: AtomicBool,
    /// The server has said that a statement is over, and not yet that it is ready for another.
    completing: AtomicBool,
    /// The driver has said goodbye.
    terminated: AtomicBool,
    leave: AtomicBool,
    left: AtomicBool,
    /// How many requests the server has answered to the end.
    answers: AtomicUsize,
    answered: Notify,
    /// The stream is gone.
    ended: AtomicBool,
}

// Relaxed, everywhere here: each value stands alone, and the lock of the session orders them for whoever decides by them.
impl Activity {
    /// Whether the server has something to answer, or waits for the rest of it.
    pub(crate) fn is_busy(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) > 0 || self.copying.load(Ordering::Relaxed)
    }

    /// Whether the server works on a statement, or waits for the rest of one. Closing what was prepared is none, and the driver
    /// asks for that on its own: there is nothing to stop, and a pooler may have ended what it would be asked to stop.
    pub(crate) fn runs_statement(&self) -> bool {
        let (in_flight, closing) = (self.in_flight.load(Ordering::Relaxed), self.closing.load(Ordering::Relaxed));
        in_flight > closing || self.copying.load(Ordering::Relaxed)
    }

    /// Whether the server has said that a statement is over, and not yet that it is ready: it commits, or the next one of the
    /// request begins.
    pub(crate) fn is_completing(&self) -> bool {
        self.completing.load(Ordering::Relaxed)
    }

    /// How many requests the server has answered to the end.
    pub(crate) fn answers(&self) -> usize {
        self.answers.load(Ordering::Relaxed)
    }

    /// Ready when there are more answers than these, or none can come any more.
    pub(crate) async fn answered_since(&self, answers: usize) {
        loop {
            let next = self.answered.notified();
            if self.answers() != answers || self.ended.load(Ordering::Relaxed) {
                return;
            }
            next.await;
        }
    }

    /// As soon as nothing is in flight the stream says goodbye itself, whatever the driver wants to say. It takes effect when
    /// the session is polled next.
    pub(crate) fn leave(&self) {
        self.leave.store(true, Ordering::Relaxed);
    }

    /// Whether the goodbye was said, and the server has closed its side.
    pub(crate) fn has_left(&self) -> bool {
        self.left.load(Ordering::Relaxed)
    }
}

/// The stream of one session.
pub(crate) struct Stream {
    kind: Kind,
    activity: Arc<Activity>,
    sent: Messages,
    received: Messages,
    /// Looks whether the server lets anybody write.
    watch: Option<Watch>,
    /// The last request was ended by a Sync, which the server ignores while it waits for rows.
    synced: bool,
    /// What was sent of the next request is more than closing what was prepared.
    works: bool,
    /// How much of the goodbye is said, once it was asked for.
    said: usize,
}

enum Kind {
    Plain(Socket),
    Tls(Box<RustlsStream>),
    /// Why there is none. It is told to the driver when it begins to write, since there is no other way to make an
    /// error of the driver's type.
    Failed(Option<io::Error>),
}

/// Terminate: its type, and its length without the type.
const TERMINATE: [u8; 5] = [b'X', 0, 0, 0, 4];

impl Drop for Stream {
    fn drop(&mut self) {
        self.activity.ended.store(true, Ordering::Relaxed);
        self.activity.answered.notify_waiters();
    }
}

impl Stream {
    pub(crate) fn plain(socket: Socket) -> Self {
        Self::new(Kind::Plain(socket))
    }

    pub(crate) fn tls(stream: RustlsStream) -> Self {
        Self::new(Kind::Tls(Box::new(stream)))
    }

    pub(crate) fn failed(error: io::Error) -> Self {
        Self::new(Kind::Failed(Some(error)))
    }

    fn new(kind: Kind) -> Self {
        Self {
            kind,
            activity: Arc::default(),
            // The first message of a client has no type.
            sent: Messages::default(),
            received: Messages { typed: true, ..Messages::default() },
            watch: None,
            synced: false,
            works: false,
            said: 0,
        }
    }

    pub(crate) fn is_tls(&self) -> bool {
        matches!(self.kind, Kind::Tls(_))
    }

    /// Tells this when the server lets nobody write.
    pub(crate) fn watched_for(&mut self, outdated: &Arc<Outdated>) {
        self.watch = Some(Watch::new(Arc::clone(outdated)));
    }

    pub(crate) fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    fn inner(&mut self) -> io::Result<Pin<&mut dyn Both>> {
        match &mut self.kind {
            Kind::Plain(socket) => Ok(Pin::new(socket)),
            Kind::Tls(stream) => Ok(Pin::new(stream.as_mut())),
            Kind::Failed(error) => Err(error.take().unwrap_or_else(|| io::ErrorKind::NotConnected.into())),
        }
    }

    fn note_sent(&mut self, bytes: &[u8]) {
        let Self { sent, synced, works, activity, .. } = self;
        sent.read(bytes, |kind| match kind {
            // Query, Sync, FunctionCall: each is answered by one ReadyForQuery.
            b'Q' | b'S' | b'F' => {
                *synced = kind == b'S';
                if mem::take(works) || !*synced {
                    activity.closing.store(0, Ordering::Relaxed);
                } else {
                    activity.closing.fetch_add(1, Ordering::Relaxed);
                }
                activity.in_flight.fetch_add(1, Ordering::Relaxed);
            }
            b'X' => activity.terminated.store(true, Ordering::Relaxed),
            // Close and Flush; what a login answers is no request.
            b'C' | b'H' | b'p' => {}
            _ => *works = true,
        });
    }

    fn note_received(&mut self, bytes: &[u8]) {
        if let Some(watch) = &mut self.watch {
            watch.received(bytes);
        }
        let Self { received, synced, activity, .. } = self;
        let answered = || {
            let less = |count: usize| count.checked_sub(1);
            // None is in flight when the server becomes ready for the first time.
            let _ = activity.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        };
        received.read(bytes, |kind| match kind {
            // ReadyForQuery.
            b'Z' => {
                answered();
                activity.copying.store(false, Ordering::Relaxed);
                activity.completing.store(false, Ordering::Relaxed);
                activity.answers.fetch_add(1, Ordering::Relaxed);
                activity.answered.notify_waiters();
            }
            // CopyInResponse: the Sync of that request is ignored, and the rows are followed by another.
            b'G' => {
                if *synced {
                    answered();
                }
                activity.copying.store(true, Ordering::Relaxed);
            }
            // CommandComplete, ErrorResponse.
            b'C' | b'E' => {
                activity.copying.store(false, Ordering::Relaxed);
                activity.completing.store(true, Ordering::Relaxed);
            }
            // RowDescription, DataRow: of another statement.
            b'T' | b'D' => activity.completing.store(false, Ordering::Relaxed),
            _ => {}
        });
    }

    /// Says goodbye past the driver. Ready with an error, which ends the driver's connection.
    fn poll_leave(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let result = loop {
            let said = self.said;
            let inner = match self.inner() {
                Ok(inner) => inner,
                Err(error) => break Err(error),
            };
            let Some(rest) = TERMINATE.get(said..).filter(|rest| !rest.is_empty()) else {
                break ready!(inner.poll_shutdown(cx));
            };
            match ready!(inner.poll_write(cx, rest)) {
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.said += written,
                Err(error) => break Err(error),
            }
        };
        self.activity.left.store(result.is_ok(), Ordering::Relaxed);
        Poll::Ready(result.err().unwrap_or_else(|| io::Error::other("the session was ended while it was checked out")))
    }

    fn is_leaving(&self) -> bool {
        // Not in the middle of a message, nor of a statement, and not twice.
        let Activity { leave, terminated, .. } = &*self.activity;
        leave.load(Ordering::Relaxed) && !terminated.load(Ordering::Relaxed) && !self.activity.is_busy()
    }
}

trait Both: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Both for T {}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_leaving() {
            return self.poll_leave(cx).map(Err);
        }
        let before = buf.filled().len();
        ready!(self.inner()?.poll_read(cx, buf))?;
        self.note_received(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_leaving() {
            return self.poll_leave(cx).map(Err);
        }
        let written = ready!(self.inner()?.poll_write(cx, buf))?;
        self.note_sent(&buf[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_leaving() {
            return self.poll_leave(cx).map(Err);
        }
        self.inner()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner()?.poll_shutdown(cx)
    }
}

impl TlsStream for Stream {
    fn channel_binding(&self) -> ChannelBinding {
        match &self.kind {
            Kind::Tls(stream) => stream.channel_binding(),
            Kind::Plain(_) | Kind::Failed(_) => ChannelBinding::none(),
        }
    }
}

/// The driver's TLS: there is nothing left to do, since the stream is encrypted already where it is to be.
#[derive(Debug)]
pub(crate) struct Negotiated;

impl TlsConnect<Stream> for Negotiated {
    type Stream = Stream;
    type Error = io::Error;
    type Future = std::future::Ready<io::Result<Stream>>;

    fn connect(self, stream: Stream) -> Self::Future {
        std::future::ready(Ok(stream))
    }
}

/// Follows one direction of the protocol: a type, a length that includes itself, and the rest.
#[derive(Debug, Default)]
struct Messages {
    /// Whether messages have a type by now.
    typed: bool,
    header: [u8; 5],
    /// How much of the header is there.
    known: usize,
    /// How much of the message is still to come.
    rest: usize,
}

impl Messages {
    /// Reads on, and tells the type of each message that begins.
    fn read(&mut self, mut bytes: &[u8], mut begins: impl FnMut(u8)) {
        while !bytes.is_empty() {
            if self.rest > 0 {
                let skipped = self.rest.min(bytes.len());
                self.rest -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            if !self.typed && self.known == 0 {
                self.known = 1;
            }
            let taken = (self.header.len() - self.known).min(bytes.len());
            self.header[self.known..][..taken].copy_from_slice(&bytes[..taken]);
            self.known += taken;
            bytes = &bytes[taken..];
            let [kind, length @ ..] = self.header;
            if self.known == self.header.len() {
                self.known = 0;
                self.rest = (u32::from_be_bytes(length) as usize).saturating_sub(length.len());
                if self.typed {
                    begins(kind);
                }
                self.typed = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message of this type with so many bytes after its length.
    fn message(kind: u8, bytes: usize) -> Vec<u8> {
        let mut message = vec![kind];
        message.extend((bytes as u32 + 4).to_be_bytes());
        message.extend(vec![b'Q'; bytes]);
        message
    }

    fn stream() -> Stream {
        let mut stream = Stream::failed(io::ErrorKind::NotConnected.into());
        // The message that opens a session, without a type.
        stream.note_sent(&message(0, 20)[1..]);
        stream.note_sent(&message(b'p', 60));
        stream.note_received(&message(b'R', 4));
        stream.note_received(&message(b'Z', 1));
        stream
    }

    #[test]
    fn a_session_is_busy_from_a_request_to_its_last_answer_however_the_bytes_are_cut() {
        for cut in 1..8 {
            let mut stream = stream();
            assert!(!stream.activity.is_busy());
            let request = [message(b'P', 30), message(b'B', 9), message(b'E', 9), message(b'S', 0)].concat();
            request.chunks(cut).for_each(|part| stream.note_sent(part));
            assert!(stream.activity.is_busy());
            let answer = [message(b'1', 0), message(b'D', 70), message(b'C', 9), message(b'Z', 1)].concat();
            let (last, most) = answer.split_last().unwrap();
            most.chunks(cut).for_each(|part| stream.note_received(part));
            stream.note_received(&[*last]);
            assert!(!stream.activity.is_busy(), "in parts of {cut} bytes");
        }
    }

    #[test]
    fn a_session_is_busy_until_the_last_of_several_requests_is_answered() {
        let mut stream = stream();
        stream.note_sent(&[message(b'Q', 9), message(b'S', 0)].concat());
        stream.note_received(&message(b'Z', 1));
        assert!(stream.activity.is_busy());
        stream.note_received(&message(b'Z', 1));
        assert!(!stream.activity.is_busy());
    }

    #[test]
    fn closing_what_was_prepared_is_no_statement() {
        let mut stream = stream();
        let close = [message(b'C', 4), message(b'S', 0)].concat();
        let seen = |stream: &Stream| (stream.activity.is_busy(), stream.activity.runs_statement());
        for _ in 0..2 {
            stream.note_sent(&close);
            assert_eq!(seen(&stream), (true, false));
        }
        stream.note_sent(&[message(b'B', 9), message(b'E', 9), message(b'S', 0)].concat());
        stream.note_sent(&close);
        for _ in 0..2 {
            assert_eq!(seen(&stream), (true, true));
            stream.note_received(&message(b'Z', 1));
        }
        assert_eq!(seen(&stream), (true, true), "two were closed, and the statement runs");
        stream.note_received(&[message(b'C', 9), message(b'Z', 1)].concat());
        assert_eq!(seen(&stream), (true, false), "it is over");
        stream.note_received(&message(b'Z', 1));
        assert_eq!(seen(&stream), (false, false));
        stream.note_sent(&message(b'Q', 9));
        assert_eq!(seen(&stream), (true, true));
    }

    #[test]
    fn a_copy_is_busy_to_its_end_and_the_sync_that_began_it_is_not_answered() {
        for end in [b'c', b'f'] {
            let mut stream = stream();
            stream.note_sent(&[message(b'B', 9), message(b'E', 9), message(b'S', 0)].concat());
            stream.note_received(&message(b'G', 3));
            assert!(stream.activity.is_busy(), "the server waits for rows");
            stream.note_sent(&[message(b'd', 900), message(end, 0), message(b'S', 0)].concat());
            assert!(stream.activity.is_busy());
            stream.note_received(&message(if end == b'c' { b'C' } else { b'E' }, 9));
            stream.note_received(&message(b'Z', 1));
            assert!(!stream.activity.is_busy());
        }
    }
}
