//! What is between clients and a server, where connections go dead and others work, or lead elsewhere.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

/// A way to a server, on a port of its own of 127.0.0.1. It is closed when dropped.
#[derive(Debug)]
pub struct Wire {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    /// How many of the first connections pass nothing on, no end either.
    dead: watch::Sender<usize>,
    server: watch::Sender<SocketAddr>,
    misspelt: Arc<Mutex<Option<Misspelt>>>,
    _tasks: JoinSet<()>,
}

/// What a client says, and is not understood.
#[derive(Debug)]
struct Misspelt {
    word: &'static [u8],
    /// How often it passes as it is.
    after: usize,
}

impl Misspelt {
    /// Whether it was in there, and is misspelt now.
    fn is_in(&mut self, bytes: &mut [u8]) -> bool {
        let mut rest = bytes;
        while let Some(at) = rest.windows(self.word.len()).position(|bytes| bytes == self.word) {
            if self.after == 0 {
                rest[at] = b'?';
                return true;
            }
            self.after -= 1;
            rest = &mut rest[at + self.word.len()..];
        }
        false
    }
}

impl Wire {
    /// Leads to this server.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn to(server: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (accepted, dead, server) =
            (Arc::<AtomicUsize>::default(), watch::Sender::new(0), watch::Sender::new(server));
        let mut tasks = JoinSet::new();
        let (count, seen, leads_to) = (Arc::clone(&accepted), dead.subscribe(), server.subscribe());
        let misspelt = Arc::<Mutex<Option<Misspelt>>>::default();
        let misspelling = Arc::clone(&misspelt);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let number = count.fetch_add(1, Ordering::Relaxed);
                let (seen, server) = (seen.clone(), *leads_to.borrow());
                let misspelling = Arc::clone(&misspelling);
                connections.spawn(async move {
                    // The client's ends with it.
                    let Ok(server) = TcpStream::connect(server).await else { return };
                    let (from_client, to_client) = client.into_split();
                    let (from_server, to_server) = server.into_split();
                    let misspell = |bytes: &mut [u8]| {
                        let mut misspelling = misspelling.lock().unwrap_or_else(PoisonError::into_inner);
                        misspelling.take_if(|misspelt| misspelt.is_in(bytes));
                    };
                    tokio::join!(
                        pass(from_client, to_server, number, seen.clone(), misspell),
                        pass(from_server, to_client, number, seen, |_| {})
                    );
                });
            }
        });
        Ok(Self { address, accepted, dead, server, misspelt, _tasks: tasks })
    }

    /// Where clients connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections there have been.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// The connections that there are go dead, and nobody is told. Later ones work.
    pub fn cut(&self) {
        self.dead.send_replace(self.accepted());
    }

    /// Later connections are with this server.
    pub fn lead_to(&self, server: SocketAddr) {
        self.server.send_replace(server);
    }

    /// Once, after it has passed so often, this word of a client's has another first letter when it comes to the server, which refuses
    /// what it is in. A word that comes in two parts passes.
    ///
    /// # Panics
    /// If the word is empty.
    pub fn misspell(&self, word: &'static str, after: usize) {
        assert!(!word.is_empty(), "a word has a letter");
        let misspelt = Misspelt { word: word.as_bytes(), after };
        *self.misspelt.lock().unwrap_or_else(PoisonError::into_inner) = Some(misspelt);
    }

    /// Whether all that was to be misspelt is.
    #[must_use]
    pub fn has_misspelt(&self) -> bool {
        self.misspelt.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    number: usize,
    mut dead: watch::Receiver<usize>,
    changed: impl Fn(&mut [u8]),
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        if dead.wait_for(|dead| *dead <= number).await.is_err() || read == 0 {
            break;
        }
        changed(&mut buffer[..read]);
        if to.write_all(&buffer[..read]).await.is_err() {
            break;
        }
    }
    // The other side may have gone.
    let _ = to.shutdown().await;
}
