//! `CopyIn` behind a buffer, bare `COPY`, and inserts of one row each, in turns.

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use winddown::{
    buffer::BatchWriter,
    postgres::{
        Config, CopyIn, Postgres,
        tokio_postgres::{self, Client, NoTls, binary_copy::BinaryCopyInWriter, types::Type},
    },
};

use crate::{
    BATCH, BATCH_BYTES, COLUMNS, IN_FLIGHT, Record, Size, lifecycle, median, per_second, quicker, records, write,
};

pub(crate) async fn run(size: &Size, url: &str, print: impl Fn(String)) -> Result<()> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    client.batch_execute("CREATE TABLE audit(id int8, at int8, who text, what text, took int4)").await?;
    let lifecycle = lifecycle()?;
    let db = lifecycle.guard(Postgres::new(url.parse::<Config>()?));
    let sink = CopyIn::into("audit", COLUMNS);
    let buffer =
        lifecycle.guard(BatchWriter::new(&db, sink).batch_size(BATCH).batch_bytes(BATCH_BYTES).in_flight(IN_FLIGHT));
    // Opens its sessions, prepares, and makes the table of keys.
    write(&buffer, records(2 * BATCH * IN_FLIGHT)).await?;

    let all = records(size.rows);
    let (mut ours, mut bare, mut single) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..size.rounds {
        // Who comes first has the emptier server: each does so half of the time.
        for turn in 0..2 {
            empty(&client).await?;
            if (round + turn) % 2 == 0 {
                ours.push(write(&buffer, all.clone()).await?);
            } else {
                bare.push(copy(&client, &all).await?);
            }
            let rows: i64 = client.query_one("SELECT count(*) FROM audit", &[]).await?.get(0);
            ensure!(rows == size.rows as i64, "{rows} rows are there");
        }
        single.push(insert(&client, &all[..size.single]).await?);
    }
    let report = lifecycle.drain().await;
    ensure!(report.is_clean(), "{report}");

    let ratio = quicker(&ours, &bare);
    let (ours, bare) = (per_second(size.rows, median(ours)), per_second(size.rows, median(bare)));
    let single = per_second(size.single, median(single));
    print(format!(
        "postgres: {ours:.0} rows/s through the buffer with COPY ({BATCH} a batch, {IN_FLIGHT} in flight), {bare:.0} by one \
         bare COPY, {single:.0} by inserts of one row"
    ));
    print(format!("postgres: {ratio:.2} of a bare COPY (target: at least 0.90)"));
    print(format!("postgres: {:.0} times inserts of one row (target: at least 20)", ours / single));
    Ok(())
}

async fn empty(client: &Client) -> Result<()> {
    // What the rows before have left to do at the server must not be measured.
    client.batch_execute("TRUNCATE audit").await?;
    Ok(client.batch_execute("CHECKPOINT").await?)
}

async fn copy(client: &Client, records: &[Record]) -> Result<Duration> {
    let began = Instant::now();
    let sink = client.copy_in("COPY audit (id, at, who, what, took) FROM STDIN (FORMAT binary)").await?;
    let mut writer = pin!(BinaryCopyInWriter::new(sink, &[Type::INT8, Type::INT8, Type::TEXT, Type::TEXT, Type::INT4]));
    for (id, at, who, what, took) in records {
        writer.as_mut().write(&[id, at, who, what, took]).await?;
    }
    writer.finish().await?;
    Ok(began.elapsed())
}

async fn insert(client: &Client, records: &[Record]) -> Result<Duration> {
    let statement = client.prepare("INSERT INTO audit (id, at, who, what, took) VALUES ($1, $2, $3, $4, $5)").await?;
    let began = Instant::now();
    for (id, at, who, what, took) in records {
        client.execute(&statement, &[id, at, who, what, took]).await?;
    }
    Ok(began.elapsed())
}
