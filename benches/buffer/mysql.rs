//! `Insert` behind a buffer, and the same rows by hand, in turns: inserts of a thousand rows, and as many commits.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use winddown::{
    buffer::BatchWriter,
    mysql::{
        Config, Insert, Mysql,
        mysql_async::{Conn, Opts, Params, TxOpts, prelude::Queryable as _},
    },
};

use crate::{
    BATCH, BATCH_BYTES, COLUMNS, IN_FLIGHT, Record, Size, lifecycle, median, per_second, quicker, records, write,
};

const BY_HAND: usize = 1_000;

pub(crate) async fn run(size: &Size, url: &str, print: impl Fn(String)) -> Result<()> {
    let mut conn = Conn::new(Opts::from_url(url)?).await?;
    conn.query_drop("CREATE TABLE audit(id BIGINT, at BIGINT, who TEXT, what TEXT, took INT)").await?;
    let lifecycle = lifecycle()?;
    let db = lifecycle.guard(Mysql::new(url.parse::<Config>()?));
    let sink = Insert::into("audit", COLUMNS);
    let buffer =
        lifecycle.guard(BatchWriter::new(&db, sink).batch_size(BATCH).batch_bytes(BATCH_BYTES).in_flight(IN_FLIGHT));
    // Opens its sessions, prepares, and makes the table of keys.
    write(&buffer, records(2 * BATCH * IN_FLIGHT)).await?;

    let all = records(size.mysql);
    let (mut ours, mut by_hand) = (Vec::new(), Vec::new());
    for round in 0..size.rounds {
        // Who comes first has the emptier server: each does so half of the time.
        for turn in 0..2 {
            conn.query_drop("TRUNCATE audit").await?;
            if (round + turn) % 2 == 0 {
                ours.push(write(&buffer, all.clone()).await?);
            } else {
                by_hand.push(insert(&mut conn, &all).await?);
            }
            let rows: Option<usize> = conn.query_first("SELECT count(*) FROM audit").await?;
            ensure!(rows == Some(all.len()), "{rows:?} rows are there");
        }
    }
    conn.disconnect().await?;
    let report = lifecycle.drain().await;
    ensure!(report.is_clean(), "{report}");

    let ratio = quicker(&ours, &by_hand);
    let (ours, by_hand) = (per_second(size.mysql, median(ours)), per_second(size.mysql, median(by_hand)));
    print(format!(
        "mysql: {ours:.0} rows/s through the buffer ({BATCH} a batch, {IN_FLIGHT} in flight), {by_hand:.0} by inserts of \
         {BY_HAND} rows by hand, in as many transactions"
    ));
    print(format!("mysql: {ratio:.2} of inserts by hand (target: at least 0.90)"));
    Ok(())
}

async fn insert(conn: &mut Conn, records: &[Record]) -> Result<Duration> {
    let rows = vec!["(?, ?, ?, ?, ?)"; BY_HAND].join(", ");
    let statement = conn.prep(format!("INSERT INTO audit (id, at, who, what, took) VALUES {rows}")).await?;
    let began = Instant::now();
    for batch in records.chunks(BATCH) {
        let mut transaction = conn.start_transaction(TxOpts::default()).await?;
        for part in batch.chunks(BY_HAND) {
            let values = part
                .iter()
                .flat_map(|(id, at, who, what, took)| [id.into(), at.into(), who.into(), what.into(), took.into()]);
            transaction.exec_drop(&statement, Params::Positional(values.collect())).await?;
        }
        transaction.commit().await?;
    }
    Ok(began.elapsed())
}
