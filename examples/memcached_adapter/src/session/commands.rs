//! The commands that this adapter needs.

use std::io;

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

use super::Session;

impl Session {
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
}

/// No key can be taken for a command.
fn checked(key: &str) -> io::Result<&str> {
    let is_key = (1..=250).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
    if is_key { Ok(key) } else { Err(io::Error::new(io::ErrorKind::InvalidInput, "this cannot be a key")) }
}

fn unexpected(answer: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the server answers {answer:?}"))
}
