//! The proxy passes on what it is given, in order, and nothing else.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use winddown_testkit::proxy::Proxy;

/// Long enough to say that something does not come.
const QUIET: Duration = Duration::from_millis(200);

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A client and its server, with the proxy in between.
async fn pair() -> (Proxy, TcpStream, TcpStream) {
    let (listener, address) = listen().await;
    let proxy = Proxy::start(address).await.unwrap();
    let client = TcpStream::connect(proxy.address()).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    (proxy, client, server)
}

async fn expect(stream: &mut TcpStream, text: &str) {
    let mut received = vec![0; text.len()];
    stream.read_exact(&mut received).await.unwrap();
    assert_eq!(String::from_utf8(received).unwrap(), text);
}

#[tokio::test]
async fn the_end_of_one_direction_leaves_the_other_open() {
    let (proxy, mut client, mut server) = pair().await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut received = String::new();
    server.read_to_string(&mut received).await.unwrap();
    assert_eq!(received, "question");
    assert_eq!(proxy.connections(), 1);

    server.write_all(b"the answer").await.unwrap();
    expect(&mut client, "the answer").await;
    drop(server);
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "the end comes as an end, not as a reset");
    proxy.wait_for_connections(0).await;
    assert_eq!((proxy.bytes_up(), proxy.bytes_down()), (8, 10));
    assert_eq!((proxy.accepted(), proxy.round_trips()), (1, 1));
}

#[tokio::test]
async fn a_round_trip_is_an_answer_that_follows_a_question() {
    let (proxy, mut client, mut server) = pair().await;
    server.write_all(b"hello").await.unwrap();
    expect(&mut client, "hello").await;
    assert_eq!(proxy.round_trips(), 0, "nobody had asked");
    for _ in 0..3 {
        client.write_all(b"?").await.unwrap();
        expect(&mut server, "?").await;
        server.write_all(b"!").await.unwrap();
        expect(&mut client, "!").await;
    }
    assert_eq!(proxy.round_trips(), 3);
}

#[tokio::test]
async fn a_delay_holds_up_each_direction_and_keeps_the_order() {
    let delay = Duration::from_millis(100);
    let (proxy, mut client, mut server) = pair().await;
    proxy.set_delay(delay);
    let start = Instant::now();
    client.write_all(b"one").await.unwrap();
    expect(&mut server, "one").await;
    assert!(start.elapsed() >= delay, "{:?}", start.elapsed());
    server.write_all(b"two").await.unwrap();
    expect(&mut client, "two").await;
    assert!(start.elapsed() >= 2 * delay, "{:?}", start.elapsed());

    // what was sent before keeps its place in front of what is not held up
    proxy.set_delay(Duration::from_secs(3));
    client.write_all(b"slow ").await.unwrap();
    let sent = proxy.bytes_up();
    tokio::time::sleep(delay).await;
    assert_eq!(proxy.bytes_up(), sent, "it has not passed yet");
    proxy.set_delay(Duration::ZERO);
    client.write_all(b"fast").await.unwrap();
    expect(&mut server, "slow fast").await;
}

#[tokio::test]
async fn nothing_passes_a_black_hole_until_it_is_closed() {
    let (proxy, mut client, mut server) = pair().await;
    proxy.set_blackhole(true);
    client.write_all(b"lost?").await.unwrap();
    client.shutdown().await.unwrap();
    assert!(timeout(QUIET, server.read(&mut [0])).await.is_err(), "neither data nor the end");
    assert_eq!(proxy.bytes_up(), 0);
    proxy.set_blackhole(false);
    let mut received = String::new();
    server.read_to_string(&mut received).await.unwrap();
    assert_eq!(received, "lost?");
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_an_end_for_the_client() {
    let (listener, address) = listen().await;
    drop(listener);
    let proxy = Proxy::start(address).await.unwrap();
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(proxy.bytes_down(), 0);
}

#[tokio::test]
async fn a_reset_ends_what_is_open_on_both_sides_and_nothing_else() {
    let (listener, address) = listen().await;
    let proxy = Proxy::start(address).await.unwrap();
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    client.write_all(b"before").await.unwrap();
    expect(&mut server, "before").await;
    proxy.reset();
    for stream in [&mut client, &mut server] {
        let end = stream.read(&mut [0]).await;
        assert!(end.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset));
    }
    proxy.wait_for_connections(0).await;

    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    client.write_all(b"after").await.unwrap();
    expect(&mut server, "after").await;
}

#[tokio::test]
async fn dropping_the_proxy_closes_everything() {
    let (proxy, mut client, mut server) = pair().await;
    let address = proxy.address();
    drop(proxy);
    for stream in [&mut client, &mut server] {
        let end = stream.read(&mut [0]).await;
        assert!(matches!(end, Ok(0)) || end.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset));
    }
    assert!(TcpStream::connect(address).await.is_err());
}
