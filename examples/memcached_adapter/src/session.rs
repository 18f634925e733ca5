//! One session with a server: the driver, as far as this adapter needs one.

use std::{io, sync::Arc};

use socket2::SockRef;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    time::timeout,
};
use winddown_core::{Error, ErrorKind, adapter::End};

use crate::{
    PATIENCE,
    book::{Book, Entry},
};

/// A session. Dropped, it is left to the book of its pool, where the goodbye finds it.
#[derive(Debug)]
pub struct Session {
    stream: Option<BufReader<TcpStream>>,
    entry: Option<Entry>,
    /// Whoever asked has not read all of the answer.
    is_busy: bool,
}

impl Session {
    pub(crate) async fn open(address: &str, book: &Arc<Book>) -> io::Result<Self> {
        let entry = book.enter();
        let opening = async {
            let stream = TcpStream::connect(address).await?;
            SockRef::from(&stream).set_tcp_user_timeout(Some(PATIENCE))?;
            stream.set_nodelay(true)?;
            let mut session = Self { stream: Some(BufReader::new(stream)), entry: Some(entry), is_busy: false };
            session.version().await?;
            Ok(session)
        };
        timeout(PATIENCE, opening).await?
    }

    /// What the server is: one round trip.
    ///
    /// # Errors
    /// When the server is gone, or answers something else.
    pub async fn version(&mut self) -> io::Result<String> {
        let answer = self.ask(b"version\r\n").await?;
        let version = answer.strip_prefix("VERSION ").ok_or_else(|| unexpected(&answer))?;
        Ok(version.to_owned())
    }

    /// Stores a value.
    ///
    /// # Errors
    /// When the server is gone, or does not store it.
    pub async fn set(&mut self, key: &str, value: &[u8]) -> io::Result<()> {
        let head = format!("set {} 0 0 {}\r\n", checked(key)?, value.len());
        let answer = self.ask(&[head.as_bytes(), value, b"\r\n"].concat()).await?;
        if answer == "STORED" { Ok(()) } else { Err(unexpected(&answer)) }
    }

    /// A value, if it is there.
    ///
    /// # Errors
    /// When the server is gone, or answers something else.
    pub async fn get(&mut self, key: &str) -> io::Result<Option<Vec<u8>>> {
        let head = self.ask(format!("get {}\r\n", checked(key)?).as_bytes()).await?;
        if head == "END" {
            return Ok(None);
        }
        let length = head.rsplit(' ').next().and_then(|length| length.parse::<usize>().ok());
        let length = length.filter(|_| head.starts_with("VALUE ")).ok_or_else(|| unexpected(&head))?;
        self.is_busy = true;
        let mut value = Vec::new();
        let rest = length as u64 + b"\r\nEND\r\n".len() as u64;
        if self.stream()?.take(rest).read_to_end(&mut value).await? as u64 != rest {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.is_busy = false;
        value.truncate(length);
        Ok(Some(value))
    }

    /// Sends a request, and reads the first line of its answer.
    async fn ask(&mut self, request: &[u8]) -> io::Result<String> {
        if std::mem::replace(&mut self.is_busy, true) {
            return Err(io::Error::other("the answer before was not read"));
        }
        let stream = self.stream()?;
        stream.write_all(request).await?;
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let line = line.strip_suffix("\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
        self.is_busy = false;
        Ok(line.to_owned())
    }

    fn stream(&mut self) -> io::Result<&mut BufReader<TcpStream>> {
        self.stream.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
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

impl Drop for Session {
    fn drop(&mut self) {
        let (Some(stream), Some(entry)) = (self.stream.take(), self.entry.take()) else { return };
        // Without a book its pool is gone: then it is closed without a goodbye.
        if let Some(book) = entry.book.upgrade() {
            book.put(Self { stream: Some(stream), entry: Some(entry), is_busy: true });
        }
    }
}

/// No key can be taken for a command.
fn checked(key: &str) -> io::Result<&str> {
    let is_key = (1..=250).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
    if is_key { Ok(key) } else { Err(io::Error::new(io::ErrorKind::InvalidInput, "this cannot be a key")) }
}

fn unexpected(answer: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the server answers {answer:?}"))
}
