//! What the driver reads from and writes to: a socket, encrypted or not, that knows whether a statement runs.
//!
//! The driver tells nobody what it waits for, and a statement whose future was dropped is known to it alone. So the
//! stream follows the protocol by the types of its messages, which are in clear here, above TLS.
//! <https://www.postgresql.org/docs/current/protocol-message-formats.html>

use std::{
    future::poll_fn,
    io, mem,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use winddown_core::adapter::Outdated;
use winddown_net::Transport;

use crate::read_only::Watch;

/// What encrypts: nothing where TLS is not compiled in.
#[cfg(feature = "tls")]
pub(crate) type Encrypted =
    <tokio_postgres_rustls::MakeRustlsConnect as tokio_postgres::tls::MakeTlsConnect<winddown_net::Socket>>::Stream;
#[cfg(not(feature = "tls"))]
pub(crate) type Encrypted = winddown_net::Socket;

/// What a session is doing, for others to see; and how they ask it to leave.
#[derive(Debug)]
pub(crate) struct Activity {
    /// Requests that the server has not answered to the end.
    in_flight: AtomicUsize,
    /// How many requests since the last one with a statement only close what was prepared.
    closing: AtomicUsize,
    /// The server waits for the rows of a `COPY`.
    copying: AtomicBool,
    /// A request, or a message, has begun and is not sent to its end.
    sending: AtomicBool,
    /// The last request with a statement ends a transaction, whatever comes of it.
    ending: AtomicBool,
    /// What the server has said of transactions when it was ready last.
    status: AtomicU8,
    /// The server has said that a statement is over, and not yet that it is ready for another.
    completing: AtomicBool,
    /// The driver has said goodbye.
    terminated: AtomicBool,
    leave: AtomicBool,
    left: AtomicBool,
    /// How many requests the server has answered to the end.
    answers: AtomicUsize,
    answered: Notify,
    /// Nobody need read what the server answers.
    unwanted: AtomicBool,
    is_unwanted: Notify,
    /// The stream is gone.
    ended: AtomicBool,
}

/// What ReadyForQuery says where no transaction is open. PostgreSQL documentation, "Message Formats".
const IDLE: u8 = b'I';

impl Default for Activity {
    fn default() -> Self {
        Self {
            in_flight: AtomicUsize::default(),
            closing: AtomicUsize::default(),
            copying: AtomicBool::default(),
            sending: AtomicBool::default(),
            ending: AtomicBool::default(),
            status: AtomicU8::new(IDLE),
            completing: AtomicBool::default(),
            terminated: AtomicBool::default(),
            leave: AtomicBool::default(),
            left: AtomicBool::default(),
            answers: AtomicUsize::default(),
            answered: Notify::default(),
            unwanted: AtomicBool::default(),
            is_unwanted: Notify::default(),
            ended: AtomicBool::default(),
        }
    }
}

/// What a session carries to whoever gets it next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carries {
    Nothing,
    /// A transaction, also a failed one.
    Transaction,
    /// That is known when the server has answered.
    Unknown,
}

// Relaxed, but where it is said otherwise: each value stands alone, and the lock of the session orders them for whoever decides
// by them.
impl Activity {
    /// Whether the server has something to answer, or waits for the rest of it.
    pub(crate) fn is_busy(&self) -> bool {
        // Acquire: whoever sees an answer sees what it has said.
        self.in_flight.load(Ordering::Acquire) > 0
            || self.copying.load(Ordering::Relaxed)
            || self.sending.load(Ordering::Relaxed)
    }

    /// Whether the server works on a statement, or waits for the rest of one. Closing what was prepared is none, and the driver
    /// asks for that on its own: there is nothing to stop, and a pooler may have ended what it would be asked to stop.
    pub(crate) fn runs_statement(&self) -> bool {
        let (in_flight, closing) = (self.in_flight.load(Ordering::Acquire), self.closing.load(Ordering::Relaxed));
        in_flight > closing || self.copying.load(Ordering::Relaxed) || self.sending.load(Ordering::Relaxed)
    }

    /// What the session would carry to whoever gets it now. What its client was asked for must be on its way.
    pub(crate) fn carries(&self) -> Carries {
        if self.runs_statement() {
            return match self.ending.load(Ordering::Relaxed) && !self.sending.load(Ordering::Relaxed) {
                true => Carries::Nothing,
                false if self.status.load(Ordering::Relaxed) == IDLE => Carries::Unknown,
                false => Carries::Transaction,
            };
        }
        match self.status.load(Ordering::Relaxed) {
            IDLE => Carries::Nothing,
            _ => Carries::Transaction,
        }
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

    /// Whether there are more answers than these, when there are or none can come any more.
    pub(crate) async fn answered_since(&self, answers: usize) -> bool {
        loop {
            let next = self.answered.notified();
            if self.answers() != answers || self.ended.load(Ordering::Relaxed) {
                return self.answers() != answers;
            }
            next.await;
        }
    }

    /// From now on nobody need read what the server answers: where the driver's caller does not, it is thrown away.
    pub(crate) fn throw_away(&self) {
        self.unwanted.store(true, Ordering::Relaxed);
        self.is_unwanted.notify_waiters();
    }

    /// Ready when nobody need read any more.
    pub(crate) async fn unwanted(&self) {
        loop {
            let next = self.is_unwanted.notified();
            if self.unwanted.load(Ordering::Relaxed) {
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

/// The stream of one session, for its driver.
pub(crate) struct Stream {
    wire: Wire,
    activity: Arc<Activity>,
}

/// The same for whoever is there when the driver is gone.
#[derive(Clone)]
pub(crate) struct Wire(Arc<Mutex<WireState>>);

struct WireState {
    /// Or why there is none.
    transport: io::Result<Transport<Encrypted>>,
    activity: Arc<Activity>,
    sent: Messages,
    received: Messages,
    /// Looks whether the server lets anybody write.
    watch: Option<Watch>,
    /// The last request was ended by a Sync, which the server ignores while it waits for rows.
    synced: bool,
    /// What was sent of the next request is more than closing what was prepared.
    works: bool,
    /// The driver has read all that there is, and waits for more.
    is_read: bool,
    /// How much of the goodbye is said, once it was asked for.
    said: usize,
}

/// Terminate: its type, and its length without the type.
const TERMINATE: [u8; 5] = [b'X', 0, 0, 0, 4];

impl Drop for WireState {
    fn drop(&mut self) {
        self.activity.ended.store(true, Ordering::Relaxed);
        self.activity.answered.notify_waiters();
    }
}

impl Stream {
    pub(crate) fn over(transport: Transport<Encrypted>) -> Self {
        Self::new(Ok(transport))
    }

    /// None, for this reason: told to the driver when it begins to write, since there is no other way to make an error of the
    /// driver's type.
    pub(crate) fn failed(error: io::Error) -> Self {
        Self::new(Err(error))
    }

    fn new(transport: io::Result<Transport<Encrypted>>) -> Self {
        let activity = Arc::default();
        let state = WireState {
            transport,
            activity: Arc::clone(&activity),
            // The first message of a client has no type.
            sent: Messages::default(),
            received: Messages { typed: true, ..Messages::default() },
            watch: None,
            synced: false,
            works: false,
            is_read: false,
            said: 0,
        };
        Self { wire: Wire(Arc::new(Mutex::new(state))), activity }
    }

    pub(crate) fn is_tls(&self) -> bool {
        matches!(self.wire.state().transport, Ok(Transport::Tls(_)))
    }

    /// Tells this when the server lets nobody write.
    pub(crate) fn watched_for(&self, outdated: &Arc<Outdated>) {
        self.wire.state().watch = Some(Watch::new(Arc::clone(outdated)));
    }

    pub(crate) fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    pub(crate) fn wire(&self) -> &Wire {
        &self.wire
    }
}

impl Wire {
    fn state(&self) -> MutexGuard<'_, WireState> {
        // Only whoever polls the session takes it, so nobody waits.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is more to read of an answer than the driver's caller takes.
    pub(crate) fn is_unread(&self) -> bool {
        let state = self.state();
        !state.is_read && state.activity.is_busy()
    }

    /// Reads to the end of what the server answers, for nobody, and says goodbye. The driver must be gone.
    pub(crate) async fn read_out(&self) -> io::Result<()> {
        poll_fn(|cx| self.state().poll_read_out(cx)).await
    }
}

impl WireState {
    fn inner(&mut self) -> io::Result<Pin<&mut Transport<Encrypted>>> {
        match &mut self.transport {
            Ok(transport) => Ok(Pin::new(transport)),
            Err(error) => Err(mem::replace(error, io::ErrorKind::NotConnected.into())),
        }
    }

    fn note_sent(&mut self, bytes: &[u8]) {
        let Self { sent, synced, works, activity, .. } = self;
        sent.read(bytes, |kind, body| match kind {
            // Query, Sync, FunctionCall: each is answered by one ReadyForQuery.
            b'Q' | b'S' | b'F' => {
                *synced = kind == b'S';
                if mem::take(works) || !*synced {
                    activity.closing.store(0, Ordering::Relaxed);
                    // As the driver says it.
                    let ends = kind == b'Q' && ENDS.iter().any(|end| body.starts_with(end));
                    activity.ending.store(ends, Ordering::Relaxed);
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
        activity.sending.store(*works || sent.is_inside(), Ordering::Relaxed);
    }

    fn note_received(&mut self, bytes: &[u8]) {
        if let Some(watch) = &mut self.watch {
            watch.received(bytes);
        }
        let Self { received, synced, activity, .. } = self;
        let answered = || {
            let less = |count: usize| count.checked_sub(1);
            // None is in flight when the server becomes ready for the first time.
            let _ = activity.in_flight.fetch_update(Ordering::Release, Ordering::Relaxed, less);
        };
        received.read(bytes, |kind, body| match kind {
            // ReadyForQuery.
            b'Z' => {
                activity.status.store(body.first().copied().unwrap_or(IDLE), Ordering::Relaxed);
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
                if activity.copying.swap(false, Ordering::Relaxed) && kind == b'E' {
                    // It ignores the rest of the rows.
                    activity.sending.store(false, Ordering::Relaxed);
                }
                activity.completing.store(true, Ordering::Relaxed);
            }
            // RowDescription, DataRow: of another statement.
            b'T' | b'D' => activity.completing.store(false, Ordering::Relaxed),
            _ => {}
        });
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = self.inner()?.poll_read(cx, buf);
        self.is_read = read.is_pending();
        ready!(read)?;
        self.note_received(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }

    fn poll_read_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut piece = [0; 16 * 1024];
        while self.activity.is_busy() {
            if self.activity.sending.load(Ordering::Relaxed) {
                return Poll::Ready(Err(io::Error::other("the driver was in the middle of a request")));
            }
            let mut piece = ReadBuf::new(&mut piece);
            ready!(self.poll_read(cx, &mut piece))?;
            if piece.filled().is_empty() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        self.poll_goodbye(cx)
    }

    /// Says goodbye past the driver.
    fn poll_goodbye(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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
        Poll::Ready(result)
    }

    /// The same for the driver: ready with an error, which ends its connection.
    fn poll_leave(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let left = ready!(self.poll_goodbye(cx));
        Poll::Ready(left.err().unwrap_or_else(|| io::Error::other("the session was ended while it was checked out")))
    }

    fn is_leaving(&self) -> bool {
        // Not in the middle of a message, nor of a statement, and not twice.
        let Activity { leave, terminated, .. } = &*self.activity;
        leave.load(Ordering::Relaxed) && !terminated.load(Ordering::Relaxed) && !self.activity.is_busy()
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.wire.state();
        if state.is_leaving() {
            return state.poll_leave(cx).map(Err);
        }
        state.poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.wire.state();
        if state.is_leaving() {
            return state.poll_leave(cx).map(Err);
        }
        let written = ready!(state.inner()?.poll_write(cx, buf))?;
        state.note_sent(&buf[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.wire.state();
        if state.is_leaving() {
            return state.poll_leave(cx).map(Err);
        }
        state.inner()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire.state().inner()?.poll_shutdown(cx)
    }
}

impl TlsStream for Stream {
    fn channel_binding(&self) -> ChannelBinding {
        match &self.wire.state().transport {
            #[cfg(feature = "tls")]
            Ok(Transport::Tls(stream)) => stream.channel_binding(),
            _ => ChannelBinding::none(),
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

/// What a simple query says that ends a transaction, with the end of its text.
const ENDS: [&[u8]; 2] = [b"COMMIT\0", b"ROLLBACK\0"];

/// Follows one direction of the protocol: a type, a length that includes itself, and the rest.
#[derive(Debug, Default)]
struct Messages {
    /// Whether messages have a type by now.
    typed: bool,
    header: [u8; 5],
    /// How much of the header is there.
    known: usize,
    /// The beginning of the message behind the header, as much of it as is there: as much as tells [`ENDS`].
    body: [u8; 9],
    kept: usize,
    /// How much of the message is still to come.
    rest: usize,
}

impl Messages {
    /// Reads on, and tells the type of each message, with the beginning of what is in it as soon as that is there.
    fn read(&mut self, mut bytes: &[u8], mut begins: impl FnMut(u8, &[u8])) {
        while !bytes.is_empty() {
            let is_behind_header = self.rest > 0;
            if is_behind_header {
                let taken = self.rest.min(bytes.len());
                let kept = taken.min(self.body.len() - self.kept);
                self.body[self.kept..][..kept].copy_from_slice(&bytes[..kept]);
                self.kept += kept;
                self.rest -= taken;
                bytes = &bytes[taken..];
                if kept == 0 || (self.kept < self.body.len() && self.rest > 0) {
                    continue;
                }
            } else {
                if !self.typed && self.known == 0 {
                    self.known = 1;
                }
                let taken = (self.header.len() - self.known).min(bytes.len());
                self.header[self.known..][..taken].copy_from_slice(&bytes[..taken]);
                self.known += taken;
                bytes = &bytes[taken..];
                if self.known < self.header.len() {
                    continue;
                }
                let [_, length @ ..] = self.header;
                self.known = 0;
                self.kept = 0;
                self.rest = (u32::from_be_bytes(length) as usize).saturating_sub(length.len());
                if !mem::replace(&mut self.typed, true) {
                    // Its beginning is told to nobody.
                    self.kept = self.body.len();
                    continue;
                }
                if self.rest > 0 {
                    continue;
                }
            }
            let [kind, ..] = self.header;
            begins(kind, &self.body[..self.kept]);
        }
    }

    /// Whether there is a message of which there is more to come.
    fn is_inside(&self) -> bool {
        self.rest > 0 || self.known > 0
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

    /// That the server is ready, with what it says of transactions.
    fn ready(status: u8) -> Vec<u8> {
        let mut ready = message(b'Z', 1);
        ready.splice(5.., [status]);
        ready
    }

    /// A simple query.
    fn query(sql: &str) -> Vec<u8> {
        let mut query = message(b'Q', sql.len() + 1);
        query.splice(5.., sql.bytes().chain([0]));
        query
    }

    struct Followed {
        wire: Wire,
        activity: Arc<Activity>,
    }

    #[expect(clippy::needless_pass_by_ref_mut, reason = "it reads as what it does")]
    impl Followed {
        fn note_sent(&mut self, bytes: &[u8]) {
            self.wire.state().note_sent(bytes);
        }

        fn note_received(&mut self, bytes: &[u8]) {
            self.wire.state().note_received(bytes);
        }
    }

    fn stream() -> Followed {
        let Stream { wire, activity } = Stream::failed(io::ErrorKind::NotConnected.into());
        let mut stream = Followed { wire, activity };
        // The message that opens a session, without a type.
        stream.note_sent(&message(0, 20)[1..]);
        stream.note_sent(&message(b'p', 60));
        stream.note_received(&message(b'R', 4));
        stream.note_received(&ready(b'I'));
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
            let answer = [message(b'1', 0), message(b'D', 70), message(b'C', 9), ready(b'I')].concat();
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
        stream.note_received(&ready(b'I'));
        assert!(stream.activity.is_busy());
        stream.note_received(&ready(b'I'));
        assert!(!stream.activity.is_busy());
    }

    #[test]
    fn closing_what_was_prepared_is_no_statement() {
        let mut stream = stream();
        let close = [message(b'C', 4), message(b'S', 0)].concat();
        let seen = |stream: &Followed| (stream.activity.is_busy(), stream.activity.runs_statement());
        for _ in 0..2 {
            stream.note_sent(&close);
            assert_eq!(seen(&stream), (true, false));
        }
        stream.note_sent(&[message(b'B', 9), message(b'E', 9), message(b'S', 0)].concat());
        stream.note_sent(&close);
        for _ in 0..2 {
            assert_eq!(seen(&stream), (true, true));
            stream.note_received(&ready(b'I'));
        }
        assert_eq!(seen(&stream), (true, true), "two were closed, and the statement runs");
        stream.note_received(&[message(b'C', 9), ready(b'I')].concat());
        assert_eq!(seen(&stream), (true, false), "it is over");
        stream.note_received(&ready(b'I'));
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
            stream.note_received(&ready(b'I'));
            assert!(!stream.activity.is_busy());
        }
    }

    #[test]
    fn what_a_session_carries_is_known_from_its_last_answer_or_from_what_ends_a_transaction() {
        for cut in 1..12 {
            let mut stream = stream();
            let mut seen = |sent: &[u8], received: &[u8]| {
                sent.chunks(cut).for_each(|part| stream.note_sent(part));
                received.chunks(cut).for_each(|part| stream.note_received(part));
                stream.activity.carries()
            };
            assert_eq!(seen(&[], &[]), Carries::Nothing);
            assert_eq!(seen(&query("BEGIN"), &message(b'C', 6)), Carries::Unknown);
            assert_eq!(seen(&[], &ready(b'T')), Carries::Transaction);
            // A statement in it, and its end behind that.
            let request = [message(b'P', 30), message(b'B', 9), message(b'E', 9), message(b'S', 0)].concat();
            assert_eq!(seen(&request, &[]), Carries::Transaction);
            assert_eq!(seen(&query("ROLLBACK"), &[]), Carries::Nothing);
            assert_eq!(seen(&[], &ready(b'T')), Carries::Nothing);
            // What is closed does not change it.
            assert_eq!(seen(&[message(b'C', 9), message(b'S', 0)].concat(), &ready(b'I')), Carries::Nothing);
            assert_eq!(seen(&[], &ready(b'I')), Carries::Nothing);
            // One that has failed, and a savepoint's end is not its own.
            assert_eq!(seen(&query("BEGIN; SELECT 1/0"), &ready(b'E')), Carries::Transaction);
            assert_eq!(seen(&query("ROLLBACK TO sp_1"), &[]), Carries::Transaction);
            assert_eq!(seen(&query("COMMIT"), &[]), Carries::Nothing);
            // The next request has begun behind it.
            assert_eq!(seen(&message(b'P', 30), &[]), Carries::Transaction);
        }
    }
}
