//! One connection of the driver's that goes through our hands, so that somebody sees the server close it: the driver lets
//! go of its socket before that.

use std::{io, net::Ipv4Addr, time::Instant};

use mysql_async::{Opts, OptsBuilder};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::oneshot,
    task::JoinHandle,
};

use winddown_net::Address;

use crate::connect::at;

/// Carries what goes between the driver and the server, until both have closed.
pub(crate) struct Relay {
    ended: oneshot::Receiver<Instant>,
    failed: oneshot::Receiver<io::Error>,
    task: JoinHandle<()>,
}

impl Relay {
    /// A way to this server, and the options with which the driver takes it. Encryption and the login are between the
    /// driver and the server: the host's name stays what it is.
    pub(crate) async fn to(address: &Address, opts: &Opts) -> io::Result<(OptsBuilder, Self)> {
        match address {
            Address::Tcp(server) => {
                let far = TcpStream::connect(server).await?;
                far.set_nodelay(true)?;
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
                let near = Address::Tcp(listener.local_addr()?);
                let relay = Self::start(far, async move {
                    let (near, _) = listener.accept().await?;
                    near.set_nodelay(true)?;
                    Ok(near)
                });
                Ok((at(&near, opts), relay))
            }
            Address::Unix(path) => {
                // A socket file again: to the driver and to the server that is as good as encryption.
                let far = UnixStream::connect(path).await?;
                let near = std::env::temp_dir().join(format!("winddown-{:016x}.sock", fastrand::u64(..)));
                let listener = UnixListener::bind(&near)?;
                let file = File(near);
                let near = Address::Unix(file.0.clone());
                let relay = Self::start(far, async move {
                    let (near, _) = listener.accept().await?;
                    drop(file);
                    Ok(near)
                });
                Ok((at(&near, opts), relay))
            }
        }
    }

    fn start<F, N>(far: F, accept: impl Future<Output = io::Result<N>> + Send + 'static) -> Self
    where
        F: AsyncRead + AsyncWrite + Send + 'static,
        N: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (end, ended) = oneshot::channel();
        let (fail, failed) = oneshot::channel();
        let task = tokio::spawn(async move {
            match accept.await {
                Ok(near) => carry(near, far, end).await,
                // Nobody may ask.
                Err(error) => drop(fail.send(error)),
            }
        });
        Self { ended, failed, task }
    }

    /// Why the driver was not let in, of which it sees only that the connection broke.
    pub(crate) fn failure(&mut self) -> Option<io::Error> {
        self.failed.try_recv().ok()
    }

    /// When the server had closed its side.
    ///
    /// # Cancel safety
    /// Cancel safe, but must not be polled again once it was ready.
    pub(crate) async fn ended(&mut self) -> Option<Instant> {
        (&mut self.ended).await.ok()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A file that goes when nobody needs it any more.
struct File(std::path::PathBuf);

impl Drop for File {
    fn drop(&mut self) {
        // Nothing depends on it.
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn carry(
    near: impl AsyncRead + AsyncWrite + Send,
    far: impl AsyncRead + AsyncWrite + Send,
    end: oneshot::Sender<Instant>,
) {
    let (mut near_read, mut near_write) = tokio::io::split(near);
    let (mut far_read, mut far_write) = tokio::io::split(far);
    let out = async {
        // An error is an end, here and below: the other direction tells the driver.
        let _ = copy(&mut near_read, &mut far_write).await;
        let _ = far_write.shutdown().await;
    };
    let back = async {
        let mut buffer = vec![0; 8 * 1024];
        let mut listens = true;
        // To the server's end, also when the driver has gone.
        while let Ok(read @ 1..) = far_read.read(&mut buffer).await {
            listens = listens && near_write.write_all(&buffer[..read]).await.is_ok();
        }
        // Nobody may wait for it.
        let _ = end.send(Instant::now());
        let _ = near_write.shutdown().await;
    };
    tokio::join!(out, back);
}
