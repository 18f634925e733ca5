//! A second connection with the same end in this process.
//!
//! Linux gives a port to several connections at once, if their other ends are not the same: two servers may see the same client. It comes
//! about by chance in a process with sessions on several servers, and here on purpose.

use std::{io, net::SocketAddr};

use tokio::net::{TcpListener, TcpStream};

/// A connection, and the other end of it.
#[derive(Debug)]
pub struct SameEnd {
    _ours: TcpStream,
    _theirs: TcpStream,
}

/// How many are opened until one has the port: Linux tries one after the other, of half of 28,232.
const MOST: usize = 200_000;

/// Opens another connection whose end here is this one too.
///
/// # Errors
/// When the kernel refuses, or gives that port to nobody.
pub async fn connect(local: SocketAddr) -> io::Result<SameEnd> {
    let listener = TcpListener::bind((local.ip(), 0)).await?;
    let server = listener.local_addr()?;
    for _ in 0..MOST {
        let (ours, theirs) = tokio::try_join!(TcpStream::connect(server), listener.accept())?;
        let theirs = theirs.0;
        if ours.local_addr()? == local {
            return Ok(SameEnd { _ours: ours, _theirs: theirs });
        }
        // Nothing of it is to stay: the port would be taken for a minute.
        theirs.set_zero_linger()?;
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, format!("no second connection has the end {local}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    #[cfg(target_os = "linux")]
    async fn two_connections_have_the_same_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let first = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let second = connect(first.local_addr().unwrap()).await.unwrap();
        assert_eq!(first.local_addr().unwrap(), second._ours.local_addr().unwrap());
        assert_ne!(first.peer_addr().unwrap(), second._ours.peer_addr().unwrap());
    }
}
