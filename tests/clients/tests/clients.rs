//! Clients of other crates as resources: real processes, real SIGTERM, and what their servers list, log and got.
//!
//! Each test starts this binary again as one of its programs.

use std::{env, future::pending, process::ExitCode, time::Duration};

use bb8_postgres::PostgresConnectionManager;
use libtest_mimic::Arguments;
use sqlx::{Connection as _, PgConnection, PgPool, postgres::PgPoolOptions};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    runtime::Builder,
    task::spawn_blocking,
};
use tokio_postgres::NoTls;
use winddown::{BoxError, Client, Hook, Lifecycle, Outcome, ResourceReport};
use winddown_testkit::{
    child::{self, Child, Ended},
    containers::{Container, Setup, skipped},
    trials,
};

/// Far more than any drain here takes where it does not wait for its deadline.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_secs(5);

const SESSIONS: u32 = 5;
const MESSAGES: usize = 1000;

fn main() -> ExitCode {
    if let Some(program) = child::role() {
        return child::run(&mut Builder::new_multi_thread(), run(program));
    }
    let tests = trials! {
        sqlx_is_closed_and_its_end_is_called_unconfirmed
        sqlx_is_closed_after_what_uses_it_and_only_then
        sqlx_that_waits_for_a_checkout_is_cut_by_the_deadline
        bb8_ends_with_the_process_and_that_is_no_failure
        nats_has_sent_what_was_published_before_it_is_closed
    };
    let skip = skipped();
    if let Some(why) = skip {
        println!("all tests of clients are skipped: {why}");
    }
    let tests = tests.into_iter().map(|test| test.with_ignored_flag(skip.is_some())).collect();
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

const SERVER: &str = "WINDDOWN_TEST_SERVER";

fn server() -> Result<String, BoxError> {
    Ok(env::var(SERVER)?)
}

/// The programs. Each says that it is ready, and works until it is told to stop.
async fn run(program: String) -> Result<(), BoxError> {
    let lifecycle = Lifecycle::detect()?;
    match program.as_str() {
        "sqlx" | "sqlx_in_use" | "sqlx_last_words" => sqlx_pool(&lifecycle, &program, server()?).await?,
        "bb8" => bb8_pool(&lifecycle, &server()?).await?,
        "nats" => nats(&lifecycle, server()?).await?,
        _ => return Err(format!("there is no program {program}").into()),
    }
    Ok(())
}

async fn sqlx_pool(lifecycle: &Lifecycle, program: &str, url: String) -> Result<(), BoxError> {
    let connect = move || {
        let url = url.clone();
        async move { PgPoolOptions::new().max_connections(SESSIONS).connect(&url).await }
    };
    let orders = Client::new("orders", connect)
        .checkout(|pool: PgPool| async move { pool.acquire().await })
        .open(|pool| pool.size() as usize)
        .close(|pool| async move { pool.close().await });
    let orders = lifecycle.guard(orders);
    lifecycle.init().await?;
    let mut held = Vec::new();
    for _ in 0..SESSIONS {
        held.push(orders.get().await?);
    }
    match program {
        "sqlx_in_use" => {
            held.truncate(1);
            tokio::spawn(async move {
                let _held = held;
                pending::<()>().await;
            });
        }
        "sqlx_last_words" => {
            held.clear();
            let db = orders.clone();
            let last_words = async move || -> Result<(), BoxError> {
                let mut connection = db.get().await?;
                sqlx::query("CREATE TABLE last_words()").execute(&mut **connection).await?;
                Ok(())
            };
            lifecycle.on_drain("last words", Hook::new(last_words).before(&orders));
        }
        _ => held.clear(),
    }
    child::ready();
    Ok(child::until_stopped(lifecycle).await?)
}

async fn bb8_pool(lifecycle: &Lifecycle, url: &str) -> Result<(), BoxError> {
    let config: tokio_postgres::Config = url.parse()?;
    let connect = move || {
        let manager = PostgresConnectionManager::new(config.clone(), NoTls);
        bb8::Pool::builder().max_size(SESSIONS).min_idle(SESSIONS).build(manager)
    };
    let orders = Client::new("orders", connect)
        .checkout(|pool: bb8::Pool<PostgresConnectionManager<NoTls>>| async move { pool.get_owned().await })
        .open(|pool| pool.state().connections as usize);
    let orders = lifecycle.guard(orders);
    orders.get().await?.simple_query("SELECT 1").await?;
    child::ready();
    Ok(child::until_stopped(lifecycle).await?)
}

async fn nats(lifecycle: &Lifecycle, address: String) -> Result<(), BoxError> {
    let events = Client::new("events", move || async_nats::connect(address.clone()))
        .flush(|nats: async_nats::Client| async move { nats.flush().await })
        .close(|nats| async move { nats.drain().await });
    let events = lifecycle.guard(events);
    let client = events.get().await?;
    client.flush().await?;
    let sender = events.clone();
    // In the drain, when nobody has a moment to wait for anything.
    let last_words = async move || -> Result<(), BoxError> {
        let nats = sender.get().await?;
        for n in 0..MESSAGES {
            nats.publish("greetings", n.to_string().into()).await?;
        }
        Ok(())
    };
    lifecycle.on_drain("last words", Hook::new(last_words).before(&events));
    drop(client);
    child::ready();
    Ok(child::until_stopped(lifecycle).await?)
}

/// A PostgreSQL server, and somebody who looks at it.
struct Postgres {
    container: Container,
    url: String,
}

impl Postgres {
    async fn start() -> Self {
        let setup = Setup::postgres("17").env("POSTGRES_PASSWORD", "secret");
        let container = setup.args(["-c", "log_disconnections=on"]).start().await.unwrap();
        let url = format!("postgres://postgres:secret@{}/postgres", container.address(5432));
        Self { container, url }
    }

    async fn ask(&self, sql: &'static str) -> i64 {
        let mut connection = PgConnection::connect(&self.url).await.unwrap();
        let count = sqlx::query_scalar(sql).fetch_one(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        count
    }

    /// Sessions of clients, but for the one that asks.
    async fn sessions(&self) -> i64 {
        self.ask(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
        )
        .await
    }
}

/// Runs a program until it is ready, tells it to stop, and waits for its end.
async fn stopped(program: &'static str, server: &str, budget: Duration) -> Ended {
    let variables = [(SERVER, server.to_owned()), ("WINDDOWN_BUDGET_MS", budget.as_millis().to_string())];
    spawn_blocking(move || Child::start_with(program, &variables).ready().terminate().end()).await.unwrap()
}

fn row<'a>(ended: &'a Ended, name: &str) -> &'a ResourceReport {
    ended.report().resource(name).unwrap_or_else(|| panic!("no row: {}", ended.report()))
}

async fn sqlx_is_closed_and_its_end_is_called_unconfirmed() {
    let server = Postgres::start().await;
    let ended = stopped("sqlx", &server.url, LONG).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let row = row(&ended, "orders");
    assert_eq!((row.outcome, row.sessions.unconfirmed), (Outcome::Drained, SESSIONS.into()), "{}", ended.report());
    assert_eq!((row.sessions.closed, row.sessions.cut), (0, 0), "{}", ended.report());
    assert_eq!(server.sessions().await, 0);
    let log = server.container.logs().await.unwrap();
    assert!(!log.contains("unexpected EOF") && !log.contains("could not receive data"), "{log}");
}

async fn sqlx_is_closed_after_what_uses_it_and_only_then() {
    let server = Postgres::start().await;
    let ended = stopped("sqlx_last_words", &server.url, LONG).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.report().is_clean(), "{}", ended.report());
    assert_eq!(server.ask("SELECT count(*) FROM pg_tables WHERE tablename = 'last_words'").await, 1);
    assert_eq!(server.sessions().await, 0);
}

async fn sqlx_that_waits_for_a_checkout_is_cut_by_the_deadline() {
    let server = Postgres::start().await;
    let ended = stopped("sqlx_in_use", &server.url, SHORT).await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let report = ended.report();
    assert!(report.took < report.budget, "{report}");
    let row = row(&ended, "orders");
    assert_eq!((row.outcome, row.left_out), (Outcome::Incomplete, 1), "{report}");
    let sessions = row.sessions;
    assert_eq!((sessions.unconfirmed + sessions.cut, sessions.closed), (SESSIONS.into(), 0), "{report}");
    assert!(sessions.cut > 0, "{report}");
}

async fn bb8_ends_with_the_process_and_that_is_no_failure() {
    let server = Postgres::start().await;
    let ended = stopped("bb8", &server.url, LONG).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let row = row(&ended, "orders");
    assert_eq!((row.outcome, row.sessions.unconfirmed), (Outcome::Drained, SESSIONS.into()), "{}", ended.report());
    assert!(row.cannot.iter().any(|cannot| cannot == "say goodbye"), "{}", ended.report());
}

async fn nats_has_sent_what_was_published_before_it_is_closed() {
    let setup = Setup::image("nats:2.10").args(["-m", "8222"]).ready(["Server is ready"]);
    let container = setup.start().await.unwrap();
    let address = container.address(4222).to_string();
    let listener = async_nats::connect(&address).await.unwrap();
    let mut greetings = listener.subscribe("greetings").await.unwrap();
    listener.flush().await.unwrap();
    let ended = stopped("nats", &address, LONG).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let row = row(&ended, "events");
    assert_eq!((row.outcome, row.sessions.unconfirmed), (Outcome::Drained, 1), "{}", ended.report());
    for n in 0..MESSAGES {
        let greeting = next(&mut greetings).await;
        assert_eq!(greeting, n.to_string());
    }
    // The one that is left is the listener.
    let listed = http(&container, "/connz").await;
    assert!(listed.contains("\"num_connections\": 1"), "{listed}");
}

async fn next(greetings: &mut async_nats::Subscriber) -> String {
    let mut greetings = std::pin::pin!(greetings);
    let message = std::future::poll_fn(|context| futures_core::Stream::poll_next(greetings.as_mut(), context)).await;
    String::from_utf8(message.unwrap().payload.to_vec()).unwrap()
}

async fn http(container: &Container, path: &str) -> String {
    let mut stream = TcpStream::connect(container.address(8222)).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
