//! What can be done to a container, and that nothing is left of it.
//!
//! The server is PostgreSQL's image: it is made for the adapters' tests anyway, and it has all that a small server needs.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};
use winddown_testkit::containers::{Container, Network, Setup, skipped};

/// Long enough to say that something does not come.
const QUIET: Duration = Duration::from_secs(1);

/// What something that has to come may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Ends the test here, in words, where containers are left out.
macro_rules! needs_containers {
    () => {
        if let Some(why) = skipped() {
            println!("left out: {why}");
            return;
        }
    };
}

fn setup() -> Setup {
    setup_of("postgres:17")
}

fn setup_of(image: &str) -> Setup {
    Setup::image(image)
        .env("POSTGRES_PASSWORD", "secret")
        .ready(["listening on IPv4 address", "database system is ready to accept connections"])
}

/// A connection that is sure to be accepted: the server has said whether it speaks TLS.
async fn connect(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await.unwrap();
    assert!(answered(&mut stream, LIMIT).await);
    stream
}

/// Asks whether the server speaks GSSAPI, the other question that comes before a session; whether it answers at once.
///
/// It can be asked once on a connection.
async fn answers(stream: &mut TcpStream) -> bool {
    stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 48]).await.unwrap();
    answered(stream, QUIET).await
}

async fn answered(stream: &mut TcpStream, limit: Duration) -> bool {
    let mut answer = [0];
    matches!(timeout(limit, stream.read(&mut answer)).await, Ok(Ok(1)))
}

/// What the kernel says of the connection: 1 is established.
fn state(local: SocketAddr) -> Option<u8> {
    let SocketAddr::V4(local) = local else { return None };
    let local = format!("{:08X}:{:04X}", u32::from_ne_bytes(local.ip().octets()), local.port());
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let mut rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.find(|row| row[1] == local).map(|row| u8::from_str_radix(row[3], 16).unwrap())
}

async fn query(server: &Container, query: &str) -> String {
    let output = server.exec(["psql", "-U", "postgres", "-Atc", query]).await.unwrap();
    assert_eq!(output.code, 0, "{output:?}");
    output.stdout.trim().to_owned()
}

#[tokio::test]
async fn a_server_gets_its_arguments_and_files_and_says_what_it_does() {
    needs_containers!();
    let server = setup()
        .args(["-c", "max_connections=33", "-c", "log_connections=on"])
        .file("/docker-entrypoint-initdb.d/one.sql", "CREATE TABLE one AS SELECT 1 AS it", 0o644)
        .start()
        .await
        .unwrap();
    assert_eq!(query(&server, "SHOW max_connections").await, "33");
    assert_eq!(query(&server, "SELECT it FROM one").await, "1");
    let failed = server.exec(["sh", "-c", "echo out; echo err >&2; exit 3"]).await.unwrap();
    assert_eq!((failed.code, &*failed.stdout, &*failed.stderr), (3, "out\n", "err\n"));

    server.wait_for(["connection authorized: user=postgres"], LIMIT).await.unwrap();
    assert!(server.logs().await.unwrap().contains("listening on IPv4 address"));
    let error = server.wait_for(["no such line"], Duration::from_millis(100)).await.unwrap_err().to_string();
    assert!(error.contains("\"no such line\"") && error.contains("connection authorized"), "{error}");
    server.remove().await.unwrap();
}

#[tokio::test]
async fn every_server_says_when_it_can_be_reached() {
    needs_containers!();
    // the space: MySQL's other protocol is on port 33060
    let sql = ["port: 3306 "];
    let servers = [
        (Setup::image("mariadb:11.8").env("MARIADB_ROOT_PASSWORD", "secret").ready(sql), 3306),
        (Setup::image("mysql:9.7").env("MYSQL_ROOT_PASSWORD", "secret").ready(sql), 3306),
        (setup_of("postgres:18"), 5432),
        (Setup::image("redis:8").args(["--maxclients", "33"]).ready(["Ready to accept connections"]), 6379),
        (Setup::image("valkey:8").args(["--maxclients", "33"]).ready(["Ready to accept connections"]), 6379),
    ];
    let mut starting = JoinSet::new();
    for (server, port) in servers {
        starting.spawn(async move {
            let server = server.start().await.unwrap();
            TcpStream::connect(server.address(port)).await.unwrap();
            let user = server.exec(["stat", "--format", "%u", "/proc/1"]).await.unwrap();
            assert_ne!(user.stdout.trim(), "0", "no server runs as root");
        });
    }
    starting.join_all().await;
}

#[tokio::test]
async fn containers_on_one_network_reach_each_other() {
    needs_containers!();
    let network = Network::create().await.unwrap();
    let server = setup().network(&network).start().await.unwrap();
    let pool = Setup::image("pgbouncer:1.24")
        .env("DB_HOST", server.ip().to_string())
        .env("DB_USER", "postgres")
        .env("DB_PASSWORD", "secret")
        .ready(["process up: PgBouncer"])
        .network(&network)
        .start()
        .await
        .unwrap();
    let ask = |database: &str, query: &str| {
        let target = format!("postgres://postgres:secret@{}/{database}", pool.address(6432));
        ["psql", &target, "-Atc", query].map(str::to_owned)
    };
    let through = server.exec(ask("postgres", "SELECT 6 * 7")).await.unwrap();
    assert_eq!((through.code, through.stdout.trim()), (0, "42"), "{through:?}");
    let console = server.exec(ask("pgbouncer", "SHOW VERSION")).await.unwrap();
    assert!(console.stdout.starts_with("PgBouncer 1.24"), "{console:?}");
    pool.wait_for(["client close request"], LIMIT).await.unwrap();
}

#[tokio::test]
async fn a_paused_server_takes_connections_and_answers_when_resumed() {
    needs_containers!();
    let server = setup().start().await.unwrap();
    server.pause().await.unwrap();
    let mut stream = TcpStream::connect(server.address(5432)).await.unwrap();
    assert!(!answers(&mut stream).await);
    server.resume().await.unwrap();
    assert!(answered(&mut stream, LIMIT).await);
}

#[tokio::test]
async fn a_killed_server_starts_again_where_it_was() {
    needs_containers!();
    let mut server = setup().start().await.unwrap();
    query(&server, "CREATE TABLE kept()").await;
    let address = server.address(5432);
    server.kill().await.unwrap();
    assert!(timeout(LIMIT, TcpStream::connect(address)).await.is_ok_and(|connected| connected.is_err()));
    server.start_again().await.unwrap();
    connect(address).await;
    assert_eq!(query(&server, "SELECT count(*) FROM kept").await, "0");
    server.stop().await.unwrap();
    server.start_again().await.unwrap();
    connect(address).await;
}

#[tokio::test]
async fn a_partition_tells_nobody_and_heals_with_its_connections() {
    needs_containers!();
    let server = setup().start().await.unwrap();
    let address = server.address(5432);
    let mut asking = connect(address).await;
    let mut quiet = connect(address).await;

    server.partition().await.unwrap();
    assert!(!answers(&mut asking).await, "what is sent is not answered");
    assert!(timeout(QUIET, quiet.read(&mut [0])).await.is_err(), "neither FIN nor RST comes");
    for stream in [&asking, &quiet] {
        assert_eq!(state(stream.local_addr().unwrap()), Some(1), "still established");
    }
    let new = timeout(QUIET, TcpStream::connect(address)).await;
    assert!(!matches!(new, Ok(Ok(_))), "{new:?}");

    server.heal().await.unwrap();
    assert_eq!(server.address(5432), address);
    assert!(answered(&mut asking, LIMIT).await, "what was sent meanwhile is sent again");
    assert!(answers(&mut quiet).await, "the connection is the same");
    connect(address).await;
}

#[tokio::test]
async fn a_container_is_restored_whatever_was_done_to_it() {
    needs_containers!();
    let mut server = setup().start().await.unwrap();
    let address = server.address(5432);
    for what in ["nothing", "paused", "partitioned", "killed", "stopped"] {
        match what {
            "paused" => server.pause().await.unwrap(),
            "partitioned" => server.partition().await.unwrap(),
            "killed" => server.kill().await.unwrap(),
            "stopped" => server.stop().await.unwrap(),
            _ => {}
        }
        server.restore().await.unwrap_or_else(|error| panic!("it was {what}: {error:#}"));
        connect(address).await;
    }
    // What nobody waits for any more is done before.
    let killing = server.kill();
    assert!(timeout(Duration::from_millis(1), killing).await.is_err(), "it takes longer to kill it");
    server.restore().await.unwrap();
    connect(address).await;
}

#[tokio::test]
async fn an_address_is_kept_for_a_container_that_is_away() {
    needs_containers!();
    let network = Network::create().await.unwrap();
    let mut server = Setup::redis("8").network(&network).start().await.unwrap();
    let newcomer = || tokio::spawn(Setup::redis("8").network(&network).start());

    server.partition().await.unwrap();
    let mut second = newcomer();
    assert!(timeout(QUIET, &mut second).await.is_err(), "it does not start yet");
    server.heal().await.unwrap();
    let second = second.await.unwrap().unwrap();

    server.kill().await.unwrap();
    let third = newcomer();
    server.start_again().await.unwrap();
    let third = third.await.unwrap().unwrap();
    assert!(server.ip() != second.ip() && server.ip() != third.ip() && second.ip() != third.ip());

    // one that does not come back is not waited for
    second.kill().await.unwrap();
    second.remove().await.unwrap();
    newcomer().await.unwrap().unwrap();
}

#[tokio::test]
async fn a_server_that_ends_before_it_is_ready_is_an_error_with_its_log() {
    needs_containers!();
    let ended = setup().env("POSTGRES_PASSWORD", "").start().await.unwrap_err();
    assert!(format!("{ended:#}").contains("set POSTGRES_PASSWORD"), "{ended:#}");
}

#[tokio::test]
async fn a_missing_image_is_an_error_that_says_what_to_do() {
    needs_containers!();
    let missing = Setup::image("no-such-server:1").start().await.unwrap_err();
    let missing = format!("{missing:#}");
    for said in [
        "there is no image winddown-test/no-such-server:1",
        "`cargo xtask images`",
        "no-such-server:1 cannot be fetched",
    ] {
        assert!(missing.contains(said), "{missing}");
    }
}

/// What the engine has of one owner's: containers, running or not, and networks.
fn left_of(owner: &str) -> Vec<String> {
    let label = format!("label=winddown.owner={owner}");
    let list = |arguments: &[&str]| {
        let output = Command::new("docker").args(arguments).args(["--quiet", "--filter", &label]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    [list(&["ps", "--all"]), list(&["network", "ls"])].concat()
}

/// Waits until nothing is left; the engine reports events, but not that there is nothing more to report.
fn wait_for_nothing_of(owner: &str) {
    let start = Instant::now();
    while !left_of(owner).is_empty() {
        assert!(start.elapsed() < LIMIT, "left: {:?}", left_of(owner));
        thread::sleep(Duration::from_millis(100));
    }
}

/// Not a test of its own: what the tests below start, to be ended from outside.
#[tokio::test]
#[ignore = "started by other tests"]
async fn holds_a_paused_container() {
    let server = setup().start().await.unwrap();
    // a paused one is the hardest to remove
    server.pause().await.unwrap();
    println!("\nholding {}", winddown_reaper::this_process());
    if env::var_os("WINDDOWN_TEST_PANIC").is_some() {
        // the container is not dropped, as in a test that aborts
        std::mem::forget(server);
        panic!("as it was asked to");
    }
    std::future::pending::<()>().await;
}

/// Starts the test above in a process of its own; returns it once its container runs, with its name as an owner.
fn holder(configure: impl FnOnce(&mut Command)) -> (Child, String) {
    // A shell has what it runs in the background ignore Ctrl-C, and so does what that starts.
    let mut command = Command::new("env");
    command.arg("--default-signal=INT").arg(env::current_exe().unwrap());
    command.args(["--exact", "holds_a_paused_container", "--ignored", "--nocapture"]);
    configure(&mut command);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let owner = lines.find_map(|line| line.unwrap().strip_prefix("holding ").map(str::to_owned)).unwrap();
    // what it still prints must not end it
    thread::spawn(move || lines.count());
    (child, owner)
}

#[test]
fn nothing_is_left_after_ctrl_c_or_sigkill_or_a_panic() {
    use rustix::process::{Pid, Signal, kill_process};

    needs_containers!();
    let ended_by = |signal| {
        let (mut child, owner) = holder(|_| ());
        assert_eq!(left_of(&owner).len(), 2, "a container and its network");
        kill_process(Pid::from_child(&child), signal).unwrap();
        child.wait().unwrap();
        wait_for_nothing_of(&owner);
    };
    // They mostly wait.
    thread::scope(|all| {
        for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
            all.spawn(move || ended_by(signal));
        }
        all.spawn(|| {
            let (mut child, owner) = holder(|command| {
                command.env("WINDDOWN_TEST_PANIC", "1");
            });
            assert!(!child.wait().unwrap().success());
            wait_for_nothing_of(&owner);
        });
    });
}

#[test]
fn what_nobody_removed_is_swept_by_the_next_run_and_nothing_else_is() {
    needs_containers!();
    // a reaper that can do nothing
    let programs = tempfile::tempdir().unwrap();
    let docker = programs.path().join("docker");
    fs::write(&docker, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&docker, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", programs.path().display(), env::var("PATH").unwrap());
    let (mut child, owner) = holder(|command| {
        command.env("PATH", path);
    });
    winddown_reaper::sweep_orphans().unwrap();
    assert_eq!(left_of(&owner).len(), 2, "its owner lives");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(left_of(&owner).len(), 2, "nobody was there to remove it");
    winddown_reaper::sweep_orphans().unwrap();
    assert_eq!(left_of(&owner), [""; 0]);
}
