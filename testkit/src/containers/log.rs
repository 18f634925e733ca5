//! What a container has written to its standard output and standard error.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use testcontainers::bollard::{Docker, query_parameters::LogsOptionsBuilder};
use tokio::time::timeout;
use tokio_stream::{Stream, StreamExt};

/// How much of a log an error shows.
const LAST_LINES: usize = 20;

/// A log that is followed may stand still although more was written, where its container was started again meanwhile. When nothing
/// has come for so long it is read anew.
const STANDS_STILL: Duration = Duration::from_secs(5);

/// All of it so far.
pub(super) async fn read(docker: &Docker, container: &str) -> Result<String> {
    let mut pieces = pieces(docker, container, false);
    let mut log = String::new();
    while let Some(piece) = pieces.next().await {
        log.push_str(&piece?);
    }
    Ok(log)
}

/// Waits until lines with these texts have come, in this order. The first `after` lines do not count.
pub(super) async fn wait(
    docker: &Docker,
    container: &str,
    texts: &[String],
    after: usize,
    limit: Duration,
) -> Result<()> {
    let mut missing = texts;
    let search = async {
        'anew: loop {
            missing = texts;
            let mut lines = 0;
            let mut pieces = pieces(docker, container, true);
            let mut unfinished = String::new();
            while let [text, rest @ ..] = missing {
                if let Some(end) = unfinished.find('\n') {
                    lines += 1;
                    if lines > after && unfinished[..end].contains(text) {
                        missing = rest;
                    }
                    unfinished.drain(..=end);
                    continue;
                }
                match timeout(STANDS_STILL, pieces.next()).await {
                    Ok(Some(piece)) => unfinished.push_str(&piece?),
                    Ok(None) => return Ok(false),
                    Err(_) => continue 'anew,
                }
            }
            return anyhow::Ok(true);
        }
    };
    let why = match timeout(limit, search).await {
        Ok(Ok(true)) => return Ok(()),
        Ok(Ok(false)) => "it has ended".to_owned(),
        Ok(Err(error)) => return Err(error),
        Err(_) => format!("not within {} s", limit.as_secs_f64()),
    };
    let log = read(docker, container).await?;
    bail!("the container did not write a line with {:?}: {why}; its last lines:\n{}", missing[0], end(&log));
}

/// The last lines of a text.
pub(super) fn end(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}

fn pieces(docker: &Docker, container: &str, follow: bool) -> impl Stream<Item = Result<String>> + Unpin + use<> {
    let options = LogsOptionsBuilder::new().stdout(true).stderr(true).follow(follow).build();
    let pieces = docker.logs(container, Some(options));
    Box::pin(pieces.map(|piece| {
        let piece = piece.context("cannot read a container's log")?;
        Ok(String::from_utf8_lossy(&piece.into_bytes()).into_owned())
    }))
}
