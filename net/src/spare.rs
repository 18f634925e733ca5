//! Sockets that are there before they are needed: where a process has no descriptor left, one has to be had to ask a server to
//! stop what a session runs (L7).

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak},
};

use socket2::{Domain, Socket, Type};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use crate::Address;

/// One that is not connected, for each server that this process has sessions with.
static SPARES: LazyLock<Mutex<HashMap<Address, Weak<Spare>>>> = LazyLock::new(Mutex::default);

fn spares() -> MutexGuard<'static, HashMap<Address, Weak<Spare>>> {
    // Each change is one call.
    SPARES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The spare socket for one server. There as long as a session has it.
#[derive(Debug)]
pub(crate) struct Spare {
    address: Address,
    socket: Arc<AsyncMutex<Option<Socket>>>,
}

impl Spare {
    /// That for this server, which is made if it is not there. Where there is no descriptor for it, the next session tries.
    pub(crate) fn of(address: &Address) -> Arc<Self> {
        let mut spares = spares();
        let spare = spares.get(address).and_then(Weak::upgrade).unwrap_or_else(|| {
            let spare = Arc::new(Self { address: address.clone(), socket: Arc::default() });
            spares.insert(address.clone(), Arc::downgrade(&spare));
            spare
        });
        drop(spares);
        // Somebody uses it otherwise.
        if let Ok(mut socket) = spare.socket.try_lock()
            && socket.is_none()
        {
            *socket = make(address);
        }
        spare
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        let mut spares = spares();
        // There may be another one by now.
        if spares.get(&self.address).is_some_and(|spare| spare.strong_count() == 0) {
            spares.remove(&self.address);
        }
    }
}

fn make(address: &Address) -> Option<Socket> {
    let domain = match address {
        Address::Tcp(address) => Domain::for_address(*address),
        Address::Unix(_) => Domain::UNIX,
    };
    let socket = Socket::new(domain, Type::STREAM, None).ok()?;
    socket.set_nonblocking(true).ok()?;
    Some(socket)
}

/// The right to use a spare socket. Dropped, there is another one in its place, if there is a descriptor for it: that of the
/// socket, if it was closed before.
#[derive(Debug)]
pub(crate) struct Taken {
    address: Address,
    socket: OwnedMutexGuard<Option<Socket>>,
}

impl Taken {
    /// The socket, if there is one.
    pub(crate) fn socket(&mut self) -> Option<Socket> {
        self.socket.take()
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if self.socket.is_none() {
            *self.socket = make(&self.address);
        }
    }
}

/// The spare socket for this server, once nobody else uses it. None where this process has no session with it.
pub(crate) async fn take(address: &Address) -> Option<Taken> {
    let spare = spares().get(address).and_then(Weak::upgrade)?;
    let socket = Arc::clone(&spare.socket).lock_owned().await;
    Some(Taken { address: address.clone(), socket })
}
