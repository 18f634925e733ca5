//! Spilled records go where they should have gone.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBuilder};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{task::spawn_blocking, time::sleep};
use uuid::Uuid;
use winddown_core::{BoxError, Error, ErrorKind, ShutdownGuard};

use crate::{
    Batch, Sink, WriteError,
    sink::BatchKey,
    spill::{EXTENSION, LINE_TYPE, Line, sync_directory, write_lines},
};

/// A target that is away is tried again for as long as these pauses take together, some 10 s.
const PAUSES: (Duration, Duration, usize) = (Duration::from_millis(50), Duration::from_secs(2), 10);

/// What a replay did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replayed {
    /// Files that are written, and gone.
    pub files: u64,
    /// Records that the target has.
    pub written: u64,
    /// Records that the sink rejects for what is in them. They are in a file beside theirs, with `.rejected` behind its name.
    pub rejected: u64,
    /// Records that were cut off in the middle, since the process was killed while it spilled them. They had not counted as
    /// spilled.
    pub torn: u64,
}

/// Writes spilled records to the target: those of this file, or of all files whose names end in `.ndjson` in this directory.
///
/// Each batch keeps its [key](Batch::key). So a sink that writes [exactly once](crate::Delivery::ExactlyOnce) writes no record
/// twice, whether the batch had been written before it was spilled, or a replay was cut short and is run again, or two run
/// at once. With another sink a replay that is cut short writes at most one batch twice: which ones are written is noted in a
/// file beside, with `.replayed` behind the name. A file whose records are all written is removed.
///
/// Lines of a log may be among the records, as they are in what was spilled to
/// [the standard error stream](crate::Spill::stderr); they are passed over.
///
/// # Cancel safety
/// Cancel safe, as it may be killed: run it again. What it was writing then has no known outcome, see above.
///
/// # Errors
/// What was written stands in each case, and the file stays for the next try:
/// - [`Config`](ErrorKind::Config) when a file cannot be read, or has a record that is none of this type, with the line;
/// - [`Write`](ErrorKind::Write) when the target does not take a batch, after it has been asked again for some 10 s;
/// - what [`ShutdownGuard::get`] returns.
pub async fn replay<T, S>(
    target: &ShutdownGuard<S::Target>,
    sink: &S,
    path: impl AsRef<Path>,
) -> Result<Replayed, Error>
where
    T: Serialize + DeserializeOwned + Send + Sync + 'static,
    S: Sink<T>,
{
    let path = path.as_ref().to_owned();
    let files = blocking(move || files(&path)).await?;
    let mut replayed = Replayed::default();
    for file in files {
        replay_file(target, sink, file, &mut replayed).await?;
    }
    Ok(replayed)
}

fn files(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let unreadable = |error: io::Error| unusable(path, "cannot be read", error);
    if !fs::metadata(path).map_err(unreadable)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(unreadable)?;
    let mut files: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == EXTENSION));
    // By buffer, and within it by time: the keys in their names sort so.
    files.sort_unstable();
    Ok(files)
}

/// The batches of one file, in their order.
struct Spilled<T> {
    batches: Vec<Batch<T>>,
    buffer: String,
    torn: u64,
}

async fn replay_file<T, S>(
    target: &ShutdownGuard<S::Target>,
    sink: &S,
    path: PathBuf,
    replayed: &mut Replayed,
) -> Result<(), Error>
where
    T: Serialize + DeserializeOwned + Send + Sync + 'static,
    S: Sink<T>,
{
    let (read, notes) = (path.clone(), beside(&path, "replayed"));
    let (spilled, done) = {
        let notes = notes.clone();
        blocking(move || Ok((read_file::<T>(&read)?, read_notes(&notes)?))).await?
    };
    let Spilled { batches, buffer, torn } = spilled;
    for batch in batches {
        if done.contains(&Uuid::from(batch.key())) {
            continue;
        }
        let rejected = write(target, sink, batch.clone()).await?;
        replayed.written += (batch.len() - rejected.len()) as u64;
        replayed.rejected += rejected.len() as u64;
        let (notes, rejects, buffer) = (notes.clone(), beside(&path, "rejected"), buffer.clone());
        blocking(move || {
            let unwritable = |error: io::Error| unusable(&notes, "cannot be written", error);
            keep_rejected(&rejects, &buffer, &rejected)
                .map_err(|error| unusable(&rejects, "cannot be written", error))?;
            note(&notes, batch.key()).map_err(unwritable)
        })
        .await?;
    }
    replayed.torn += torn;
    replayed.files += 1;
    blocking(move || {
        let removed = remove(&path).and_then(|()| remove(&notes));
        removed.map_err(|error| unusable(&path, "is replayed, but cannot be removed", error))
    })
    .await
}

/// Writes one batch, and returns what of it was rejected.
async fn write<T, S>(target: &ShutdownGuard<S::Target>, sink: &S, batch: Batch<T>) -> Result<Vec<Batch<T>>, Error>
where
    T: Send + Sync + 'static,
    S: Sink<T>,
{
    let (mut waiting, mut rejected) = (vec![batch], Vec::new());
    let mut pauses = pauses();
    while let Some(batch) = waiting.pop() {
        let written = match target.get().await {
            Ok(mut checkout) => sink.write(&mut checkout, &batch).await,
            Err(error) if error.is_shutting_down() => return Err(error),
            Err(error) => Err(WriteError::Retry(error)),
        };
        match written {
            Ok(()) => pauses = self::pauses(),
            Err(WriteError::Rejected(_) | WriteError::TooLarge(_)) if batch.len() > 1 => {
                let [front, behind] = batch.halves();
                waiting.extend([behind, front]);
            }
            Err(WriteError::Rejected(error)) => {
                tracing::error!(%error, "a spilled record was rejected");
                rejected.push(batch);
            }
            Err(WriteError::Retry(error) | WriteError::TooLarge(error) | WriteError::Unknown(error)) => {
                let Some(pause) = pauses.next() else { return Err(error) };
                tracing::warn!(%error, ?pause, "cannot replay, trying again");
                waiting.push(batch);
                sleep(pause).await;
            }
            Err(WriteError::Failed(error)) => return Err(error),
        }
    }
    Ok(rejected)
}

fn pauses() -> impl Iterator<Item = Duration> + Send + use<> {
    let (first, longest, times) = PAUSES;
    ExponentialBuilder::default()
        .with_min_delay(first)
        .with_max_delay(longest)
        .with_max_times(times)
        .with_jitter()
        .build()
}

fn read_file<T: DeserializeOwned>(path: &Path) -> Result<Spilled<T>, Error> {
    let unreadable = |error: io::Error| unusable(path, "cannot be read", error);
    let mut lines = BufReader::new(File::open(path).map_err(unreadable)?);
    let (mut batches, mut records, mut key) = (Vec::new(), Vec::new(), None);
    let mut spilled = Spilled { batches: Vec::new(), buffer: String::new(), torn: 0 };
    let (mut number, mut text) = (0_u64, Vec::new());
    loop {
        text.clear();
        number += 1;
        if lines.read_until(b'\n', &mut text).map_err(unreadable)? == 0 {
            break;
        }
        // What is no record of ours may be anything, and what was torn is not even JSON, nor UTF-8.
        let Ok(line) = serde_json::from_slice::<Line<'_, serde_json::Value>>(&text) else {
            spilled.torn += u64::from(!text.ends_with(b"\n") && text.starts_with(b"{"));
            continue;
        };
        if line.r#type != LINE_TYPE {
            continue;
        }
        let record = serde_json::from_value(line.record).map_err(|error| {
            unusable(path, &format!("has a record in line {number} that is not of the type that is replayed"), error)
        })?;
        if key.is_some_and(|key| key != line.batch) {
            batches.push((key, std::mem::take(&mut records)));
        }
        key = Some(line.batch);
        spilled.buffer = line.buffer.into_owned();
        records.push(record);
    }
    batches.push((key, records));
    spilled.batches =
        batches.into_iter().filter_map(|(key, records)| Some(Batch::with_key(BatchKey::from(key?), records))).collect();
    Ok(spilled)
}

/// The keys of the batches that an earlier replay has written.
fn read_notes(path: &Path) -> Result<HashSet<Uuid>, Error> {
    match fs::read_to_string(path) {
        // The last one may be torn; then it is written again.
        Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(HashSet::new()),
        Err(error) => Err(unusable(path, "cannot be read", error)),
    }
}

fn note(path: &Path, key: BatchKey) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    // First a line's end: what is there may be torn.
    file.write_all(format!("\n{key}").as_bytes())?;
    file.sync_data()
}

fn keep_rejected<T: Serialize>(path: &Path, buffer: &str, rejected: &[Batch<T>]) -> io::Result<()> {
    if rejected.is_empty() {
        return Ok(());
    }
    let mut lines = BufWriter::new(OpenOptions::new().create(true).append(true).open(path)?);
    for batch in rejected {
        write_lines(&mut lines, buffer, batch)?;
    }
    lines.into_inner()?.sync_data()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        // Another replay may have been faster, and notes need not be there.
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    path.parent().map_or(Ok(()), sync_directory)
}

/// The path with this behind its name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

fn unusable(path: &Path, what: &str, error: impl Into<BoxError>) -> Error {
    Error::new(ErrorKind::Config, format!("{} {what}", path.display())).with_source(error)
}

/// Runs this where it may block.
async fn blocking<R: Send + 'static>(work: impl FnOnce() -> Result<R, Error> + Send + 'static) -> Result<R, Error> {
    let panicked = |panic| Error::new(ErrorKind::Panicked, "reading or writing files").with_source(panic);
    spawn_blocking(work).await.map_err(panicked)?
}
