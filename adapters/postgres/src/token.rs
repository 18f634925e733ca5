//! What the server gave a session for cancelling, which tells sessions apart.

use std::{
    future::{Ready, ready},
    io,
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::FutureExt as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::{
    CancelToken,
    tls::{ChannelBinding, TlsConnect, TlsStream},
};

/// The process id and the secret of a session. Not to be shown to anybody.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct CancelKey([u8; 8]);

impl CancelKey {
    /// None where the driver does not say. It tells them only to whoever it asks to cancel: here, to a sheet of paper.
    pub(crate) fn of(token: &CancelToken) -> Option<Self> {
        let mut request = Vec::new();
        token.cancel_query_raw(Paper(&mut request), Negotiated).now_or_never()?.ok()?;
        // A length, a code, the process id, the secret. PostgreSQL documentation, "Message Formats", "CancelRequest".
        request.last_chunk().copied().map(Self)
    }

    /// Whether the server gave none, as RDS Proxy: what the driver has then is all zeros.
    /// <https://github.com/vapor/postgres-nio/issues/296>
    pub(crate) fn is_missing(self) -> bool {
        self.0 == [0; 8]
    }

    pub(crate) fn process_id(self) -> i32 {
        let [a, b, c, d, ..] = self.0;
        i32::from_be_bytes([a, b, c, d])
    }
}

/// Takes down what is sent, and answers "yes" to the question for TLS.
struct Paper<'a>(&'a mut Vec<u8>);

impl AsyncRead for Paper<'_> {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() > 0 {
            buf.put_slice(b"S");
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Paper<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().0.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl TlsStream for Paper<'_> {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

struct Negotiated;

impl<'a> TlsConnect<Paper<'a>> for Negotiated {
    type Stream = Paper<'a>;
    type Error = io::Error;
    type Future = Ready<io::Result<Paper<'a>>>;

    fn connect(self, paper: Paper<'a>) -> Self::Future {
        ready(Ok(paper))
    }
}
