//! A function that does one thing, often wrong, named by its first argument. It speaks HTTP by hand, as SDKs do not do these.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio, exit};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::sleep;

const REGISTER: &str = "/2020-01-01/extension/register";
const EVENT_NEXT: &str = "/2020-01-01/extension/event/next";
const RUNTIME: &str = "/2018-06-01/runtime";
const TELEMETRY: &str = "/2022-07-01/telemetry";
const STREAMING: &str = "Lambda-Runtime-Function-Response-Mode: streaming";

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let mode = std::env::args().nth(1).unwrap_or_default();
    match mode.as_str() {
        "ignore-sigterm" => {
            // a listener takes the place of the default action; nobody reads it
            let _sigterm = signal(SignalKind::terminate())?;
            register_and_poll("stubborn").await?;
            serve().await
        }
        // without a handler, SIGTERM ends the process
        "default-sigterm" => {
            register_and_poll("unhandled").await?;
            serve().await
        }
        "exit-code" => {
            let mut sigterm = signal(SignalKind::terminate())?;
            register_and_poll("failing").await?;
            tokio::spawn(async move {
                sigterm.recv().await;
                exit(3);
            });
            serve().await
        }
        "register-late" => {
            let next = call("GET", &format!("{RUNTIME}/invocation/next"), &[], "").await;
            let reply = call("POST", REGISTER, &["Lambda-Extension-Name: late"], r#"{"events":[]}"#).await;
            println!("late registration: {} {}", reply.status, reply.body);
            let id = next.header("Lambda-Runtime-Aws-Request-Id");
            call("POST", &format!("{RUNTIME}/invocation/{id}/response"), &[], "{}").await;
            serve().await
        }
        "register-without-poll" => {
            call("POST", REGISTER, &["Lambda-Extension-Name: silent"], r#"{"events":[]}"#).await;
            serve().await
        }
        "never-next" => std::future::pending().await,
        "deaf" => {
            let _sigterm = signal(SignalKind::terminate())?;
            println!("child {}", std::process::id());
            std::future::pending().await
        }
        // exits on SIGTERM, which its child in the same group ignores
        "leave-child" => {
            let mut sigterm = signal(SignalKind::terminate())?;
            let mut child = Command::new(std::env::current_exe()?).arg("deaf").stdout(Stdio::piped()).spawn()?;
            // it is deaf when it says so
            let mut line = String::new();
            let pipe = child.stdout.take().ok_or_else(|| std::io::Error::other("no pipe"))?;
            BufReader::new(pipe).read_line(&mut line)?;
            print!("{line}");
            register_and_poll("parent").await?;
            tokio::spawn(async move {
                sigterm.recv().await;
                exit(0);
            });
            serve().await
        }
        "daemon" => {
            rustix::process::setsid()?;
            println!("daemon {}", std::process::id());
            std::future::pending().await
        }
        // two that leave the group: one of them without the environment variables, and a parent that exits at once
        "leave-daemons" => {
            let program = std::env::current_exe()?;
            Command::new(&program).arg("daemon").spawn()?;
            Command::new("sh").args(["-c", "env -i \"$0\" daemon & exec \"$0\" daemon"]).arg(&program).spawn()?;
            Command::new("sh").args(["-c", "\"$0\" daemon &"]).arg(&program).spawn()?.wait()?;
            let mut sigterm = signal(SignalKind::terminate())?;
            register_and_poll("parent").await?;
            tokio::spawn(async move {
                sigterm.recv().await;
                exit(0);
            });
            serve().await
        }
        // writes the time into the file that its second argument names, after its process id; with a third argument, keeps
        // not even its limits
        "clock" => {
            rustix::process::setsid()?;
            #[cfg(target_os = "linux")]
            if std::env::args().nth(3).is_some() {
                use rustix::process::{Resource, getrlimit, setrlimit};
                let limit = getrlimit(Resource::Locks);
                setrlimit(Resource::Locks, rustix::process::Rlimit { current: limit.maximum, ..limit })?;
            }
            let mut file = std::fs::File::create(argument(2))?;
            writeln!(file, "{}", std::process::id())?;
            // nobody is left to look at it when its test's directory is gone
            while std::fs::exists(argument(2))? {
                writeln!(file, "{}", SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis())?;
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        }
        // leaves a clock that has nothing of it: no parent, no environment variable, no open file, another session
        "leave-clock" => {
            leave_clock(&argument(2), "no-limits")?;
            register_and_end_on_sigterm("parent").await?;
            serve().await
        }
        // the same, on its first invocation
        "leave-clock-later" => {
            register_and_end_on_sigterm("parent").await?;
            let next = call("GET", &format!("{RUNTIME}/invocation/next"), &[], "").await;
            leave_clock(&argument(2), "")?;
            let id = next.header("Lambda-Runtime-Aws-Request-Id");
            call("POST", &format!("{RUNTIME}/invocation/{id}/response"), &[], "{}").await;
            serve().await
        }
        "exit-in-init" => exit(7),
        "init-error" => {
            let body = r#"{"errorType":"Config.Missing","errorMessage":"DATABASE_URL is not set"}"#;
            call("POST", &format!("{RUNTIME}/init/error"), &[], body).await;
            std::future::pending().await
        }
        "tick" => {
            register_and_poll("ticker").await?;
            tokio::spawn(async {
                loop {
                    sleep(Duration::from_millis(5)).await;
                    println!("tick");
                }
            });
            serve().await
        }
        "probe" => {
            probe().await;
            serve().await
        }
        // as an external extension: says that it exits, and does, on its first invocation
        "extension-exit" => {
            let name = format!("Lambda-Extension-Name: {}", program_name());
            let reply = call("POST", REGISTER, &[&name], r#"{"events":["INVOKE"]}"#).await;
            let id = format!("Lambda-Extension-Identifier: {}", reply.header("Lambda-Extension-Identifier"));
            call("GET", EVENT_NEXT, &[&id], "").await;
            let error = "Lambda-Extension-Function-Error-Type: Agent.NoDisk";
            for headers in [&[id.as_str()][..], &[&id, error][..]] {
                let reply = call("POST", "/2020-01-01/extension/exit/error", headers, "").await;
                println!("exit error: {} {}", reply.status, reply.body);
            }
            exit(6)
        }
        // exits with 8 when its first invocation is over
        "exit-when-idle" => {
            answer_raw(&[], &["2\r\n{}\r\n", "0\r\n\r\n"], SOON).await?;
            tokio::spawn(serve());
            sleep(Duration::from_millis(100)).await;
            exit(8)
        }
        // an init of 300 ms, 1.2 s the first time: which that is, a file tells
        "slow-init" => {
            let first = std::fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(std::env::var("SEEN").unwrap_or_default());
            sleep(Duration::from_millis(if first.is_ok() { 1_200 } else { 300 })).await;
            register_and_poll("slow").await?;
            serve().await
        }
        "subscribe-wrongly" => subscribe_wrongly().await,
        "answer-wrongly" => {
            let next = call("GET", &format!("{RUNTIME}/invocation/next"), &[], "").await;
            let id = next.header("Lambda-Runtime-Aws-Request-Id");
            let nobody = "00000000-0000-0000-0000-000000000000";
            for id in [nobody, &id, &id] {
                let reply = call("POST", &format!("{RUNTIME}/invocation/{id}/response"), &[], "not JSON").await;
                println!("answer: {} {}", reply.status, reply.body);
            }
            serve().await
        }
        "answer-too-much" => {
            let next = call("GET", &format!("{RUNTIME}/invocation/next"), &[], "").await;
            let id = next.header("Lambda-Runtime-Aws-Request-Id");
            let body = "x".repeat(6 * 1024 * 1024 + 101);
            let reply = call("POST", &format!("{RUNTIME}/invocation/{id}/response"), &[], &body).await;
            println!("answer: {} {}", reply.status, reply.body);
            serve().await
        }
        "concurrent" => {
            let mut sigterm = signal(SignalKind::terminate())?;
            register_and_poll("concurrent").await?;
            let world = Arc::new(World::default());
            for _ in 0..max_concurrency() {
                tokio::spawn(serve_slowly(Arc::clone(&world)));
            }
            sigterm.recv().await;
            world.stopping.send_replace(true);
            // what has begun is answered
            let _ = world.in_flight.subscribe().wait_for(|in_flight| *in_flight == 0).await;
            exit(0)
        }
        "poll-too-often" => {
            register_and_poll("eager").await?;
            let world = Arc::new(World::default());
            // whichever comes last is the one too many
            for _ in 0..=max_concurrency() {
                tokio::spawn(serve_slowly(Arc::clone(&world)));
            }
            std::future::pending().await
        }
        "register-for-invoke" => {
            for events in [r#"{"events":["INVOKE"]}"#, r#"{"events":[],"configurationKeys":["a"]}"#] {
                let reply = call("POST", REGISTER, &["Lambda-Extension-Name: curious"], events).await;
                println!("registration: {} {}", reply.status, reply.body);
            }
            serve().await
        }
        "snap" | "snap-error" | "snap-hang" | "snap-exit" => {
            let mut sigterm = signal(SignalKind::terminate())?;
            register_and_poll("snap").await?;
            tokio::spawn(async move {
                sigterm.recv().await;
                exit(0);
            });
            println!("initialised as {}", std::env::var("AWS_LAMBDA_INITIALIZATION_TYPE").unwrap_or_default());
            let early = call("POST", &format!("{RUNTIME}/restore/error"), &[], "{}").await;
            println!("early restore error: {}", early.status);
            let reply = call("GET", &format!("{RUNTIME}/restore/next"), &[], "").await;
            println!("restored: {}", reply.status);
            match mode.as_str() {
                "snap-error" => {
                    let body = r#"{"errorType":"Pool.NotRestored","errorMessage":"no route to the database"}"#;
                    let reply = call("POST", &format!("{RUNTIME}/restore/error"), &[], body).await;
                    println!("restore error: {}", reply.status);
                    std::future::pending().await
                }
                "snap-hang" => std::future::pending().await,
                "snap-exit" => exit(4),
                _ => {
                    let again = call("GET", &format!("{RUNTIME}/restore/next"), &[], "").await;
                    println!("again: {} {}", again.status, again.body);
                    serve().await
                }
            }
        }
        "stream" => {
            answer_raw(
                &[STREAMING, "Trailer: Lambda-Runtime-Function-Error-Type"],
                &["5\r\nHello\r\n", "6\r\n, Ada!\r\n", "0\r\n\r\n"],
                // the test sees that the first is there long before the last
                Duration::from_secs(2),
            )
            .await?;
            serve().await
        }
        "stream-error" => {
            // {"errorType":"Row.Lost","errorMessage":"row 2"}
            let trailers = "0\r\nLambda-Runtime-Function-Error-Type: Row.Lost\r\n\
                Lambda-Runtime-Function-Error-Body: eyJlcnJvclR5cGUiOiJSb3cuTG9zdCIsImVycm9yTWVzc2FnZSI6InJvdyAyIn0=\r\n\r\n";
            answer_raw(&[STREAMING], &["5\r\nrow 1\r\n", trailers], SOON).await?;
            serve().await
        }
        "stream-truncated" => {
            answer_raw(&[STREAMING], &["5\r\nrow 1\r\n"], SOON).await?;
            serve().await
        }
        "wrong-mode" => {
            answer_raw(&["Lambda-Runtime-Function-Response-Mode: sometimes"], &["2\r\n{}\r\n", "0\r\n\r\n"], SOON)
                .await?;
            serve().await
        }
        other => {
            eprintln!("sim_misbehave: no mode '{other}': see its source");
            exit(2);
        }
    }
}

/// Every way of registering wrongly, each with its answer.
async fn probe() {
    let say = |what: &str, reply: Reply| println!("{what}: {} {}", reply.status, reply.body);
    let nothing = r#"{"events":[]}"#;
    say("no name", call("POST", REGISTER, &[], nothing).await);
    say("no JSON", call("POST", REGISTER, &["Lambda-Extension-Name: a"], "events").await);
    say("shutdown", call("POST", REGISTER, &["Lambda-Extension-Name: a"], r#"{"events":["SHUTDOWN"]}"#).await);
    say("unknown event", call("POST", REGISTER, &["Lambda-Extension-Name: a"], r#"{"events":["FREEZE"]}"#).await);
    register_and_poll("extension-1").await.expect("ten are allowed");
    say("same name", call("POST", REGISTER, &["Lambda-Extension-Name: extension-1"], nothing).await);
    for n in 2..=10 {
        register_and_poll(&format!("extension-{n}")).await.expect("ten are allowed");
    }
    say("eleventh", call("POST", REGISTER, &["Lambda-Extension-Name: extension-11"], nothing).await);
    say("no identifier", call("GET", EVENT_NEXT, &[], "").await);
    let unknown = "Lambda-Extension-Identifier: 00000000-0000-0000-0000-000000000000";
    say("unknown identifier", call("GET", EVENT_NEXT, &[unknown], "").await);
}

fn program_name() -> String {
    let program = std::env::current_exe().unwrap_or_default();
    program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn max_concurrency() -> usize {
    std::env::var("AWS_LAMBDA_MAX_CONCURRENCY").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// What several invocations at once know of each other.
#[derive(Default)]
struct World {
    in_flight: watch::Sender<u64>,
    /// The most that were in flight at once.
    most: watch::Sender<u64>,
    stopping: watch::Sender<bool>,
}

/// Answers every invocation with its event: after the `sleep_ms` in it, when so many as `together` says are in flight, or
/// with `until_sigterm` on SIGTERM.
async fn serve_slowly(world: Arc<World>) {
    loop {
        let next = call("GET", &format!("{RUNTIME}/invocation/next"), &[], "").await;
        if next.status == 500 {
            println!("one too many: {} {}", next.status, next.body);
            return;
        }
        world.in_flight.send_modify(|in_flight| *in_flight += 1);
        let in_flight = *world.in_flight.borrow();
        world.most.send_modify(|most| *most = in_flight.max(*most));
        println!("begun");
        let id = next.header("Lambda-Runtime-Aws-Request-Id");
        let event: serde_json::Value = serde_json::from_str(&next.body).unwrap_or_default();
        sleep(Duration::from_millis(event["sleep_ms"].as_u64().unwrap_or_default())).await;
        if let Some(together) = event["together"].as_u64() {
            let _ = world.most.subscribe().wait_for(|most| *most >= together).await;
        }
        if event["until_sigterm"] == true {
            let _ = world.stopping.subscribe().wait_for(|stopping| *stopping).await;
        }
        let reply = call("POST", &format!("{RUNTIME}/invocation/{id}/response"), &[], &next.body).await;
        println!("answer: {} {}", reply.status, reply.body);
        world.in_flight.send_modify(|in_flight| *in_flight -= 1);
    }
}

const SOON: Duration = Duration::from_millis(50);

/// Takes one invocation and answers it with `chunks` as they are, with a pause after each. Closes after the last.
async fn answer_raw(headers: &[&str], chunks: &[&str], pause: Duration) -> std::io::Result<()> {
    let next = call("GET", &format!("{RUNTIME}/invocation/next"), &[], "").await;
    let id = next.header("Lambda-Runtime-Aws-Request-Id");
    let host = std::env::var("AWS_LAMBDA_RUNTIME_API").map_err(std::io::Error::other)?;
    let mut connection = TcpStream::connect(&host).await?;
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let head = format!(
        "POST {RUNTIME}/invocation/{id}/response HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\
         Transfer-Encoding: chunked\r\n{headers}\r\n"
    );
    connection.write_all(head.as_bytes()).await?;
    for chunk in chunks {
        connection.write_all(chunk.as_bytes()).await?;
        sleep(pause).await;
    }
    let whole = chunks.last().is_some_and(|chunk| chunk.starts_with('0'));
    if whole {
        let mut reply = String::new();
        connection.read_to_string(&mut reply).await?;
        println!("answer: {}", reply.split(' ').nth(1).unwrap_or_default());
    }
    Ok(())
}

/// Every way of subscribing to telemetry wrongly, each with its answer, and a right one.
async fn subscribe_wrongly() -> ! {
    let reply = call("POST", REGISTER, &["Lambda-Extension-Name: curious"], r#"{"events":[]}"#).await;
    let id = format!("Lambda-Extension-Identifier: {}", reply.header("Lambda-Extension-Identifier"));
    let unknown = "Lambda-Extension-Identifier: 00000000-0000-0000-0000-000000000000";
    let right = r#"{"schemaVersion":"2022-07-01","types":["platform"],"buffering":{"maxItems":1000,"maxBytes":262144,"timeoutMs":25},"destination":{"protocol":"HTTP","URI":"http://sandbox.localdomain:9"}}"#;
    let put = async |what: &str, headers: &[&str], body: &str| {
        let reply = call("PUT", TELEMETRY, headers, body).await;
        println!("{what}: {} {}", reply.status, reply.body);
    };
    for (what, from, to) in [
        ("not JSON", right, "types"),
        ("no such version", "2022-07-01", "2021-01-01"),
        ("no types", r#"["platform"]"#, "[]"),
        ("unknown type", r#"["platform"]"#, r#"["weather"]"#),
        ("TCP", "HTTP", "TCP"),
        ("another host", "sandbox.localdomain", "localhost"),
        ("reserved port", "localdomain:9", "localdomain:9001"),
        ("few items", ":1000", ":999"),
        ("few bytes", ":262144", ":262143"),
        ("short timeout", ":25", ":24"),
    ] {
        put(what, &[&id], &right.replace(from, to)).await;
    }
    put("no identifier", &[], right).await;
    put("unknown identifier", &[unknown], right).await;
    put("right", &[&id], right).await;
    let poll = id.clone();
    tokio::spawn(async move { call("GET", EVENT_NEXT, &[&poll], "").await });
    let next = call("GET", &format!("{RUNTIME}/invocation/next"), &[], "").await;
    put("after init", &[&id], right).await;
    let id = next.header("Lambda-Runtime-Aws-Request-Id");
    call("POST", &format!("{RUNTIME}/invocation/{id}/response"), &[], "{}").await;
    serve().await
}

/// Registers an internal extension for no events, and asks for its next one in the background.
async fn register_and_poll(name: &str) -> std::io::Result<()> {
    let reply = call("POST", REGISTER, &[&format!("Lambda-Extension-Name: {name}")], r#"{"events":[]}"#).await;
    if reply.status != 200 {
        return Err(std::io::Error::other(reply.body));
    }
    let identifier = format!("Lambda-Extension-Identifier: {}", reply.header("Lambda-Extension-Identifier"));
    tokio::spawn(async move { call("GET", EVENT_NEXT, &[&identifier], "").await });
    Ok(())
}

/// The same, and exits when SIGTERM comes.
async fn register_and_end_on_sigterm(name: &str) -> std::io::Result<()> {
    let mut sigterm = signal(SignalKind::terminate())?;
    register_and_poll(name).await?;
    tokio::spawn(async move {
        sigterm.recv().await;
        exit(0);
    });
    Ok(())
}

fn argument(index: usize) -> String {
    std::env::args().nth(index).unwrap_or_default()
}

/// Starts a clock in a shell that has ended when this returns. The clock goes by then.
fn leave_clock(file: &str, limits: &str) -> std::io::Result<()> {
    let script = "env -i \"$0\" clock \"$1\" $2 < /dev/null > /dev/null 2>&1 &";
    Command::new("sh").args(["-c", script]).arg(std::env::current_exe()?).args([file, limits]).spawn()?.wait()?;
    // it has kept nothing through which it could say so
    while std::fs::read_to_string(file).unwrap_or_default().lines().count() < 2 {
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Answers every invocation with `{}`.
async fn serve() -> ! {
    loop {
        let next = call("GET", &format!("{RUNTIME}/invocation/next"), &[], "").await;
        let id = next.header("Lambda-Runtime-Aws-Request-Id");
        call("POST", &format!("{RUNTIME}/invocation/{id}/response"), &[], "{}").await;
    }
}

struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    /// By exact case: what the simulator writes is compared with what Lambda writes.
    fn header(&self, name: &str) -> String {
        let value = self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        value.unwrap_or_default().to_owned()
    }
}

/// One request on one connection. When the simulator is gone there is nothing left to do.
async fn call(method: &str, path: &str, headers: &[&str], body: &str) -> Reply {
    match exchange(method, path, headers, body).await {
        Ok(reply) => reply,
        Err(error) => {
            eprintln!("sim_misbehave: {method} {path}: {error}");
            exit(70);
        }
    }
}

async fn exchange(method: &str, path: &str, headers: &[&str], body: &str) -> std::io::Result<Reply> {
    let host = std::env::var("AWS_LAMBDA_RUNTIME_API").map_err(std::io::Error::other)?;
    let mut connection = TcpStream::connect(&host).await?;
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    connection.write_all(head.as_bytes()).await?;
    connection.write_all(body.as_bytes()).await?;
    let mut reply = String::new();
    connection.read_to_string(&mut reply).await?;
    let (head, body) = reply.split_once("\r\n\r\n").ok_or_else(|| std::io::Error::other("no reply"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    Ok(Reply { status, head: head.to_owned(), body: body.to_owned() })
}
