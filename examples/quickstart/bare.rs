//! The same function without winddown: the same pool, the same buffer sizes, and nobody who tells it of its end.

use std::{
    env,
    sync::Mutex,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use winddown::{
    lambda::{
        LambdaEvent,
        lambda_runtime::{self, Error},
        service_fn,
    },
    sqlite::deadpool_sqlite::{Config, Pool, Runtime},
};

/// As winddown's buffer has them by default.
const BATCH: usize = 500;
const AGE: Duration = Duration::from_secs(1);

struct Buffer {
    records: Vec<(i64, &'static str)>,
    since: Instant,
}

#[tokio::main]
pub(crate) async fn main() -> Result<(), Error> {
    let pool = Config::new(env::var("SQLITE_PATH")?).create_pool(Runtime::Tokio1)?;
    let connection = pool.get().await?;
    connection.interact(|c| c.pragma_update(None, "journal_mode", "wal")).await.map_err(|e| e.to_string())??;
    drop(connection);
    let buffer = Mutex::new(Buffer { records: Vec::new(), since: Instant::now() });
    lambda_runtime::run(service_fn(|event| handler(&pool, &buffer, event))).await
}

async fn handler(pool: &Pool, buffer: &Mutex<Buffer>, event: LambdaEvent<Value>) -> Result<Value, Error> {
    let invocation = event.payload["invocation"].as_i64().ok_or("the event has no number `invocation`")?;
    let full = {
        let mut buffer = buffer.lock().map_err(|e| e.to_string())?;
        if buffer.records.is_empty() {
            buffer.since = Instant::now();
        }
        buffer.records.extend(super::RECORDS.map(|what| (invocation, what)));
        let full = buffer.records.len() >= BATCH || buffer.since.elapsed() >= AGE;
        full.then(|| std::mem::take(&mut buffer.records))
    };
    if let Some(records) = full {
        let connection = pool.get().await?;
        let write = move |connection: &mut winddown::sqlite::rusqlite::Connection| {
            let transaction = connection.transaction()?;
            for record in records {
                transaction.execute("INSERT INTO audit(invocation, what) VALUES (?1, ?2)", record)?;
            }
            transaction.commit()
        };
        connection.interact(write).await.map_err(|e| e.to_string())??;
    }
    Ok(json!({ "accepted": super::RECORDS.len() }))
}
