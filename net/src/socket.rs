//! The socket of a session: what is below TLS.
//!
//! It differs from a driver's own in two things: it is closed by waiting for the server's end, and it can move to
//! another runtime while a connection is using it.

use std::{
    fmt, io,
    mem::{self, MaybeUninit},
    net::{Shutdown, SocketAddr},
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::{SockAddr, SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpSocket, TcpStream, UnixStream},
    runtime::Handle,
};
use winddown_core::adapter::{is_out_of_descriptors, out_of_descriptors};

use crate::spare::{self, Taken};

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// An address and a port.
    Tcp(SocketAddr),
    /// The socket's path.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => fmt::Display::fmt(address, f),
            Self::Unix(path) => fmt::Display::fmt(&path.display(), f),
        }
    }
}

/// How a socket is set up.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// How long what was sent may stay unacknowledged, where the system has that.
    pub tcp_user_timeout: Option<Duration>,
    /// Whether the system asks now and then if the other end is there.
    pub keepalive: Option<TcpKeepalive>,
}

/// Connects, for as long as the system tries: whoever opens a session limits that with its other steps. Dropping the future leaves
/// nothing behind.
pub async fn dial(address: &Address, options: &Options) -> io::Result<Socket> {
    let connecting = async {
        match address {
            Address::Tcp(address) => TcpStream::connect(address).await.map(Raw::Tcp),
            Address::Unix(path) => UnixStream::connect(path).await.map(Raw::Unix),
        }
    };
    match connecting.await {
        Ok(raw) => Socket::new(raw, address, options, None),
        Err(error) if is_out_of_descriptors(&error) => Err(out_of_descriptors(error)),
        Err(error) => Err(error),
    }
}

/// Connects also where the process has no descriptor left, once more to a server that it has a session with: to stop what that
/// runs. There is one spare socket for each server; who comes second waits until it is free again.
///
/// # Cancel safety
/// Dropping the future leaves nothing behind.
pub(crate) async fn dial_anyway(address: &Address, options: &Options) -> io::Result<Socket> {
    let error = match dial(address, options).await {
        Err(error) if is_out_of_descriptors(&error) => error,
        dialled => return dialled,
    };
    let Some(mut taken) = spare::take(address).await else { return Err(error) };
    // Where there is none any more, somebody else has had its descriptor, or there is one again by now.
    let Some(socket) = taken.socket() else { return dial(address, options).await };
    let connecting = async {
        match address {
            Address::Tcp(address) => TcpSocket::from_std_stream(socket.into()).connect(*address).await.map(Raw::Tcp),
            Address::Unix(path) => {
                // It is connected at once, or not at all.
                socket.connect(&SockAddr::unix(path)?)?;
                UnixStream::from_std(socket.into()).map(Raw::Unix)
            }
        }
    };
    Socket::new(connecting.await?, address, options, Some(taken))
}

/// The part of a socket that others may look at while a connection has it.
#[derive(Debug)]
pub struct Link {
    address: Address,
    /// The descriptor, as it is registered, or why it could not be. Others lock it for the time of one call into the kernel, and
    /// seldom.
    raw: Mutex<io::Result<Raw>>,
}

impl Link {
    fn raw(&self) -> MutexGuard<'_, io::Result<Raw>> {
        // Each change is complete before anything can panic, so a poisoned lock carries no broken state.
        self.raw.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it is connected to.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Whether the server has closed its side: seen in the kernel, without a round trip, and without the runtime having
    /// looked at the socket since. A process that was frozen has not.
    pub fn is_closed(&self) -> bool {
        let raw = self.raw();
        let Ok(raw) = &*raw else { return true };
        let mut byte = [MaybeUninit::uninit()];
        match raw.as_socket().peek(&mut byte) {
            Ok(received) => received == 0,
            Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        }
    }

    /// Registers the socket with this runtime: now, and not when it is used next. Others than who drives a session may be the next to
    /// poll it, on runtimes of their own, which may end sooner.
    pub(crate) fn move_to(&self, runtime: &Handle) {
        let mut raw = self.raw();
        let _entered = runtime.enter();
        let was = mem::replace(&mut *raw, Err(io::ErrorKind::NotConnected.into()));
        *raw = was.and_then(Raw::registered_here);
    }

    /// Does this with the socket.
    fn poll<T>(&self, work: impl FnOnce(&Raw) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match &*self.raw() {
            Ok(raw) => work(raw),
            Err(error) => Poll::Ready(Err(io::Error::new(error.kind(), error.to_string()))),
        }
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

    /// The same descriptor, registered with the current runtime: no other one is needed. The runtime that has it lets go of it,
    /// also where that has ended.
    fn registered_here(self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(stream) => Self::Tcp(TcpStream::from_std(stream.into_std()?)?),
            Self::Unix(stream) => Self::Unix(UnixStream::from_std(stream.into_std()?)?),
        })
    }

    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(either!(self, stream => stream.poll_read_ready(cx)))?;
            match either!(self, stream => stream.try_read(buffer)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => return Poll::Ready(received),
            }
        }
    }

    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(either!(self, stream => stream.poll_write_ready(cx)))?;
            match either!(self, stream => stream.try_write(bytes)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

/// A connected socket, whose [`poll_shutdown`](AsyncWrite::poll_shutdown) is ready when the server has closed its side.
#[derive(Debug)]
pub struct Socket {
    link: Arc<Link>,
    said_all: bool,
    /// Where it came from, if it was a spare one. Dropped after the socket, whose descriptor the next one gets.
    _spare: Option<Taken>,
}

impl Socket {
    fn new(raw: Raw, address: &Address, options: &Options, spare: Option<Taken>) -> io::Result<Self> {
        if let Raw::Tcp(stream) = &raw {
            let Options { tcp_user_timeout, keepalive } = options;
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
        let link = Arc::new(Link { address: address.clone(), raw: Mutex::new(Ok(raw)) });
        Ok(Self { link, said_all: false, _spare: spare })
    }

    /// What others may look at.
    pub fn link(&self) -> &Arc<Link> {
        &self.link
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let received = ready!(self.link.poll(|raw| raw.poll_read(cx, buf.initialize_unfilled())))?;
        buf.advance(received);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.link.poll(|raw| raw.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Says that nothing more comes, and waits until the server has closed its side. A reset counts: a server that has
    /// exited answers so to what it has not read, such as the end of TLS.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let say_all = !mem::replace(&mut self.said_all, true);
        self.link.poll(|raw| {
            if say_all {
                match raw.as_socket().shutdown(Shutdown::Write) {
                    // The server was quicker.
                    Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                    result => result?,
                }
            }
            let mut rest = [0; 512];
            loop {
                match ready!(raw.poll_read(cx, &mut rest)) {
                    Ok(0) => return Poll::Ready(Ok(())),
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Poll::Ready(Ok(())),
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, io::Write as _, net::TcpListener, task::Waker};

    use tokio::runtime::{Builder, Runtime};

    use super::*;

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_all().build().unwrap()
    }

    fn poll_byte(socket: &mut Socket, cx: &mut Context<'_>) -> Poll<io::Result<u8>> {
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        ready!(Pin::new(socket).poll_read(cx, &mut buffer))?;
        Poll::Ready(buffer.filled().first().copied().ok_or_else(|| io::ErrorKind::UnexpectedEof.into()))
    }

    #[test]
    fn a_socket_that_was_moved_does_not_end_with_the_runtime_of_whoever_polls_it_first() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Tcp(listener.local_addr().unwrap());
        let (opens, drives, passes_by) = (runtime(), runtime(), runtime());
        let mut socket = opens.block_on(dial(&address, &Options::default())).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        socket.link().move_to(drives.handle());
        drop(opens);
        {
            let _entered = passes_by.enter();
            assert!(poll_byte(&mut socket, &mut Context::from_waker(Waker::noop())).is_pending());
        }
        drop(passes_by);
        server.write_all(b"x").unwrap();
        assert_eq!(drives.block_on(poll_fn(|cx| poll_byte(&mut socket, cx))).unwrap(), b'x');
    }
}
