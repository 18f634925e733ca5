//! A process that has no descriptor left sees none of its connections, and takes none of them for ended. Alone in its process: the limit
//! is everybody's there.

#![cfg(target_os = "linux")]

use std::net::{TcpListener, TcpStream};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use winddown_net::own_sockets::{Open, OwnSockets, Peer};

#[test]
fn nothing_has_ended_because_nobody_could_look() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    let peer = Peer::new(ours.local_addr().unwrap(), None);
    let connection = OwnSockets::now().of(&peer).unwrap();

    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..limit }).unwrap();
    let (starved, open) = (OwnSockets::now(), Open::now());
    setrlimit(Resource::Nofile, limit).unwrap();
    assert_eq!((starved.of(&peer), open.contains(&connection)), (None, true));

    drop((ours, theirs));
    assert!(!Open::now().contains(&connection));
}
