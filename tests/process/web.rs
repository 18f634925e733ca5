//! Web Functions: HTTP servers that Lambda stops with SIGTERM, and a second.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::State, http::StatusCode, middleware, routing::get};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use winddown::{
    Error, ErrorKind, Lifecycle, ShutdownGuard, listen_address,
    memory::Memory,
    sim::{self, Config, Reason, Record, Sim},
};
use winddown_testkit::{child, soak::rounds};

use crate::{
    cases::cases,
    ending::track,
    lambda::{AMPLE, LATE, play},
};

cases![soak_web_functions_end_inside_a_second_under_load];

/// The program of this name, if it is the one here.
pub(crate) async fn run(program: &str) -> Option<Result<(), Error>> {
    if program == "web" { Some(serve().await) } else { None }
}

/// A pool, `/orders` that needs it, and `/long` that needs it when draining has begun.
async fn serve() -> Result<(), Error> {
    let lifecycle = Lifecycle::detect()?;
    let db = lifecycle.guard(Memory::new("db"));
    let draining = lifecycle.clone();
    let long = get(move |db| async move {
        println!("begun");
        draining.draining().await;
        order(db).await
    });
    let app = Router::new()
        .route("/orders", get(order))
        .route("/long", long)
        .layer(middleware::from_fn_with_state(lifecycle.clone(), track))
        .with_state(db);
    let no_address = |error| Error::new(ErrorKind::Config, "cannot listen").with_source(error);
    let listener = TcpListener::bind(listen_address("127.0.0.1:0")?).await.map_err(no_address)?;
    lifecycle.run(axum::serve(listener, app).with_graceful_shutdown(lifecycle.draining())).await.map(drop)
}

async fn order(State(db): State<ShutdownGuard<Memory>>) -> Result<&'static str, (StatusCode, String)> {
    let refused = |error: Error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
    db.get().await.map(|_session| "ordered").map_err(refused)
}

/// So many at once, and as many that are under way at SIGTERM.
const LOAD: usize = 16;
const LONG: usize = 8;

/// SIGTERM comes when requests have been answered all the time, and others wait for just that. Returns how many of the first were
/// answered.
fn end_under_load(config: Config) -> (Record, usize) {
    play(async {
        let sim = Arc::new(Sim::start(config).await.unwrap());
        let answered = watch::Sender::new(0_usize);
        let mut clients = JoinSet::new();
        for _ in 0..LOAD {
            let (sim, answered) = (Arc::clone(&sim), answered.clone());
            clients.spawn(async move {
                loop {
                    match sim.request("GET", "/orders", "").await {
                        // of one that was killed there are those that were not
                        Ok(response) => answered.send_modify(|count| *count += usize::from(response.ok)),
                        Err(error) if error.kind() == sim::ErrorKind::Ended => return,
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        for _ in 0..LONG {
            let sim = Arc::clone(&sim);
            clients.spawn(async move { drop(sim.request("GET", "/long", "").await.unwrap()) });
        }
        let begun = AtomicUsize::new(0);
        let all = sim.wait_for_line(|line| line.line == "begun" && begun.fetch_add(1, Ordering::Relaxed) + 1 == LONG);
        all.await.unwrap();
        answered.subscribe().wait_for(|count| *count >= 20 * LOAD).await.unwrap();
        let record = sim.shutdown(Reason::Spindown).await;
        while let Some(client) = clients.join_next().await {
            client.unwrap();
        }
        let answered = *answered.borrow();
        (record, answered)
    })
}

fn function() -> Config {
    Config::new(std::env::current_exe().unwrap())
        .env(child::ROLE, "web")
        .web_function(64)
        .capture_output()
        .init_timeout(AMPLE)
        .timeout(AMPLE)
}

/// All requests are answered and all sessions closed where there is time; within Lambda's own second it is counted how often.
fn soak_web_functions_end_inside_a_second_under_load() {
    let rounds = rounds(100, 3);
    let (mut in_time, mut requests, mut slowest) = (0, 0, 0.0_f64);
    for round in 0..rounds {
        let (record, answered) = end_under_load(function().budget(AMPLE));
        assert!(record.ended_by_itself(), "round {round}: {record}\n{:?}", record.output);
        assert!(record.invocations.iter().all(|it| it.ok), "round {round}: {record}");
        assert_eq!(record.invocations.len(), answered + LONG, "round {round}: {record}");
        let report = record.output.iter().find_map(|output| child::report(&output.line)).unwrap();
        assert!(report.is_clean(), "round {round}: {report}");
        assert_eq!(report.resource("db").unwrap().sessions.cut, 0, "round {round}: {report}");
        requests += record.invocations.len();

        let (record, _) = end_under_load(function());
        assert!(record.shutdown.sigterm_sent && record.extensions.is_empty(), "{record}");
        assert_eq!(record.shutdown.budget_ms, 1_000);
        assert!(record.shutdown.took_ms < 1_000.0 + LATE.as_secs_f64() * 1e3, "{record}");
        let report = record.output.iter().find_map(|output| child::report(&output.line));
        if let Some(report) = &report {
            assert_eq!((report.platform.as_ref(), report.budget), ("lambda web functions", Duration::from_secs(1)));
        }
        in_time += usize::from(record.ended_by_itself() && report.is_some_and(|report| report.is_clean()));
        slowest = slowest.max(record.shutdown.took_ms);
    }
    println!(
        "{rounds} of {rounds} times all requests were answered ({requests}), and all sessions closed; within 1 s {in_time} times, \
         the slowest after {slowest:.1} ms"
    );
}
