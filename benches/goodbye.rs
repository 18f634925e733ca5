//! How long does a drain take, against raw sockets that say the same goodbye? (C3)
//!
//! Sessions of PostgreSQL, 1 to 100 of them, all idle. Raw: Terminate is written to each socket, then each is read to its
//! end. Target: at most 1.25 times that. Both are measured in turns in one run, against one server in a container;
//! `cargo xtask bench goodbye` prints the medians and their ratios.

use std::{
    env,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tokio::runtime::{Builder, Runtime};
use winddown::{
    Lifecycle,
    postgres::{Config, Postgres, SslMode},
};
use winddown_testkit::containers;

const SESSIONS: [usize; 4] = [1, 10, 50, 100];
const ROUNDS: usize = 41;

/// What the server is still busy with after so many logins must not be measured.
const REST: Duration = Duration::from_millis(100);

fn main() -> Result<()> {
    if let Some(reason) = containers::skipped() {
        println!("left out: {reason}");
        return Ok(());
    }
    // Without it, somebody only wants to know whether it runs.
    let rounds = if env::args().any(|argument| argument == "--bench") { ROUNDS } else { 1 };
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let setup = containers::Setup::postgres("17").env("POSTGRES_HOST_AUTH_METHOD", "trust");
    let container = runtime.block_on(setup.args(["-c", "max_connections=250"]).start())?;
    let server = container.address(5432);

    for sessions in SESSIONS {
        let (mut raw, mut ours) = (Vec::new(), Vec::new());
        for round in 0..2 * rounds {
            // Who comes first has the quieter server: each does so half of the time.
            if matches!(round % 4, 0 | 3) {
                raw.push(goodbye_of_sockets(server, sessions)?);
            } else {
                ours.push(drain(&runtime, server, sessions)?);
            }
        }
        let (raw, ours) = (median(raw), median(ours));
        if rounds > 1 {
            let ratio = ours.as_secs_f64() / raw.as_secs_f64();
            println!(
                "{sessions:>3} sessions: drain {ours:.1?}, raw sockets {raw:.1?}, ratio {ratio:.2} (target: at most 1.25)"
            );
        }
    }
    runtime.block_on(container.remove())
}

fn drain(runtime: &Runtime, server: SocketAddr, sessions: usize) -> Result<Duration> {
    let mut driver = winddown::postgres::tokio_postgres::Config::new();
    driver.host(server.ip().to_string()).port(server.port()).user("postgres");
    let mut config = Config::from(driver);
    config.ssl_mode = SslMode::Disable;
    config.pool.max_size = sessions;
    let lifecycle = Lifecycle::builder().signals(false).build()?;
    let db = lifecycle.guard(Postgres::new(config));
    runtime.block_on(async {
        let mut out = Vec::new();
        for _ in 0..sessions {
            out.push(db.get().await?);
        }
        drop(out);
        sleep(REST);
        let began = Instant::now();
        let report = lifecycle.drain().await;
        let took = began.elapsed();
        let closed = report.resource("postgres").context("it was registered")?.sessions.closed;
        ensure!(closed == sessions as u64, "{report}");
        Ok(took)
    })
}

fn goodbye_of_sockets(server: SocketAddr, sessions: usize) -> Result<Duration> {
    let mut sockets = (0..sessions).map(|_| log_in(server)).collect::<Result<Vec<_>>>()?;
    sleep(REST);
    let began = Instant::now();
    for socket in &mut sockets {
        socket.write_all(b"X\0\0\0\x04")?;
    }
    for socket in &mut sockets {
        ensure!(socket.read(&mut [0])? == 0, "the server has something to say");
    }
    Ok(began.elapsed())
}

/// A session that is ready for queries: nobody is asked for a password.
fn log_in(server: SocketAddr) -> Result<TcpStream> {
    let mut socket = TcpStream::connect(server)?;
    socket.set_nodelay(true)?;
    let mut startup = Vec::from(196_608_u32.to_be_bytes());
    startup.extend(b"user\0postgres\0\0");
    socket.write_all(&(startup.len() as u32 + 4).to_be_bytes())?;
    socket.write_all(&startup)?;
    loop {
        let mut header = [0; 5];
        socket.read_exact(&mut header)?;
        let [kind, length @ ..] = header;
        let mut rest = vec![0; u32::from_be_bytes(length) as usize - 4];
        socket.read_exact(&mut rest)?;
        ensure!(kind != b'E', "the server refuses: {}", String::from_utf8_lossy(&rest));
        if kind == b'Z' {
            return Ok(socket);
        }
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
