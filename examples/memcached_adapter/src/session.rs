//! One session with a server: the driver, as far as this adapter needs one.

mod commands;

use std::io;

use tokio::{
    io::{AsyncWriteExt as _, BufReader},
    net::TcpStream,
    time::timeout,
};
use winddown_core::{Error, ErrorKind, adapter::End};

use crate::{PATIENCE, book::Entry};

/// A session. Dropped, it is left to the book of its pool, where the goodbye finds it.
#[derive(Debug)]
pub struct Session {
    stream: Option<BufReader<TcpStream>>,
    entry: Option<Entry>,
    /// Whoever asked has not read all of the answer.
    is_busy: bool,
}

impl Drop for Session {
    fn drop(&mut self) {
        let (Some(stream), Some(entry)) = (self.stream.take(), self.entry.take()) else { return };
        // Without a book its pool is gone: then it is closed without a goodbye.
        if let Some(book) = entry.book.upgrade() {
            book.put(Self { stream: Some(stream), entry: Some(entry), is_busy: true });
        }
    }
}

impl Session {
    pub(crate) async fn open(address: &str, entry: Entry) -> io::Result<Self> {
        let opening = async {
            let stream = TcpStream::connect(address).await?;
            #[cfg(target_os = "linux")]
            socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(PATIENCE))?;
            stream.set_nodelay(true)?;
            let mut session = Self { stream: Some(BufReader::new(stream)), entry: Some(entry), is_busy: false };
            session.version().await?;
            Ok(session)
        };
        timeout(PATIENCE, opening).await?
    }

    /// Says goodbye, and waits until the server has closed its side. Its end is in the book when this is over.
    pub(crate) async fn goodbye(mut self) {
        let (Some(stream), Some(mut entry)) = (self.stream.take(), self.entry.take()) else { return };
        let closing = async {
            // To the runtime that this runs on: that of the application may be blocked, frozen or gone.
            let mut stream = TcpStream::from_std(stream.into_inner().into_std()?)?;
            stream.write_all(b"quit\r\n").await?;
            // What was not read yet, and then the server's end.
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
        };
        // Until the server has closed its side, it is cut: by its deadline, or by an error.
        entry.end = End::Cut(None);
        entry.end = match closing.await {
            Ok(_) => End::Closed,
            Err(error) => End::Cut(Some(Error::new(ErrorKind::Incomplete, "cannot say goodbye").with_source(error))),
        };
    }

    /// Ends it without a goodbye.
    pub(crate) fn cut(mut self) {
        drop((self.stream.take(), self.entry.take()));
    }
}
