//! The socket of a session: what is below TLS.
//!
//! It differs from a driver's own in two things: it is closed by waiting for the server's end, and it can move to
//! another runtime while a connection is using it.

use std::{
    io,
    net::{Shutdown, SocketAddr},
    os::fd::AsFd,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// An address and a port.
    Tcp(SocketAddr),
    /// The socket's path.
    Unix(PathBuf),
}

/// How a socket is set up.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// How long connecting may take; `None` for as long as the system tries.
    pub connect_timeout: Option<Duration>,
    /// How long what was sent may stay unacknowledged, where the system has that.
    pub tcp_user_timeout: Option<Duration>,
    /// Whether the system asks now and then if the other end is there.
    pub keepalive: Option<TcpKeepalive>,
}

/// Connects. Dropping the future leaves nothing behind.
pub async fn dial(address: &Address, options: &Options) -> io::Result<Socket> {
    let connecting = async {
        match address {
            Address::Tcp(address) => TcpStream::connect(address).await.map(Raw::Tcp),
            Address::Unix(path) => UnixStream::connect(path).await.map(Raw::Unix),
        }
    };
    let raw = match options.connect_timeout {
        None => connecting.await?,
        Some(limit) => match tokio::time::timeout(limit, connecting).await {
            Ok(connected) => connected?,
            Err(_) => {
                let text = format!("no answer within the connect_timeout of {limit:?}");
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
        },
    };
    if let Raw::Tcp(stream) = &raw {
        let Options { connect_timeout: _, tcp_user_timeout, keepalive } = options;
        stream.set_nodelay(true)?;
        let socket = SockRef::from(stream);
        #[cfg(target_os = "linux")]
        if tcp_user_timeout.is_some() {
            socket.set_tcp_user_timeout(*tcp_user_timeout)?;
        }
        if let Some(keepalive) = keepalive {
            socket.set_tcp_keepalive(keepalive)?;
        }
    }
    Ok(Socket { link: Arc::new(Link { raw, moving: AtomicBool::new(false) }), home: None, said_all: false })
}

/// The part of a socket that others may look at while a connection has it.
#[derive(Debug)]
pub struct Link {
    raw: Raw,
    moving: AtomicBool,
}

impl Link {
    /// Whether the server has closed its side: seen in the kernel, without a round trip, and without the runtime having
    /// looked at the socket since. A process that was frozen has not.
    pub fn is_closed(&self) -> bool {
        let mut byte = [std::mem::MaybeUninit::uninit()];
        match self.raw.as_socket().peek(&mut byte) {
            Ok(received) => received == 0,
            Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        }
    }

    /// The next use of the socket registers it with the runtime that it happens on.
    pub fn move_to_next_user(&self) {
        // Release: pairs with the swap in `Socket::here`, though all that it carries is itself.
        self.moving.store(true, Ordering::Release);
    }
}

#[derive(Debug)]
enum Raw {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// The same call on either kind of socket.
macro_rules! either {
    ($raw:expr, $stream:ident => $call:expr) => {
        match $raw {
            Raw::Tcp($stream) => $call,
            Raw::Unix($stream) => $call,
        }
    };
}

impl Raw {
    fn as_socket(&self) -> SockRef<'_> {
        either!(self, stream => SockRef::from(stream))
    }

    /// The same socket, registered with the current runtime.
    fn registered_here(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(stream) => Self::Tcp(TcpStream::from_std(stream.as_fd().try_clone_to_owned()?.into())?),
            Self::Unix(stream) => Self::Unix(UnixStream::from_std(stream.as_fd().try_clone_to_owned()?.into())?),
        })
    }
}

/// A connected socket, whose [`poll_shutdown`](AsyncWrite::poll_shutdown) is ready when the server has closed its side.
#[derive(Debug)]
pub struct Socket {
    link: Arc<Link>,
    /// Where it has moved to, once it has.
    home: Option<Raw>,
    said_all: bool,
}

impl Socket {
    /// What others may look at.
    pub fn link(&self) -> &Arc<Link> {
        &self.link
    }

    fn here(&mut self) -> io::Result<&Raw> {
        // The load is all that it costs while nobody moves it.
        if self.link.moving.load(Ordering::Relaxed) && self.link.moving.swap(false, Ordering::Acquire) {
            self.home = Some(self.link.raw.registered_here()?);
        }
        Ok(self.home.as_ref().unwrap_or(&self.link.raw))
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let raw = self.here()?;
        loop {
            ready!(either!(raw, stream => stream.poll_read_ready(cx)))?;
            match either!(raw, stream => stream.try_read(buf.initialize_unfilled())) {
                Ok(received) => {
                    buf.advance(received);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let raw = self.here()?;
        loop {
            ready!(either!(raw, stream => stream.poll_write_ready(cx)))?;
            match either!(raw, stream => stream.try_write(buf)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Says that nothing more comes, and waits until the server has closed its side. A reset counts: a server that has
    /// exited answers so to what it has not read, such as the end of TLS.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.said_all {
            self.said_all = true;
            match self.here()?.as_socket().shutdown(Shutdown::Write) {
                // The server was quicker.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                result => result?,
            }
        }
        let raw = self.here()?;
        let mut rest = [0; 512];
        loop {
            ready!(either!(raw, stream => stream.poll_read_ready(cx)))?;
            match either!(raw, stream => stream.try_read(&mut rest)) {
                Ok(0) => return Poll::Ready(Ok(())),
                Ok(_) => {}
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => {}
                    io::ErrorKind::ConnectionReset => return Poll::Ready(Ok(())),
                    _ => return Poll::Ready(Err(error)),
                },
            }
        }
    }
}
