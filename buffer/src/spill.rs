//! The last resort: records that the target cannot have in time are put elsewhere.

#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use winddown_core::{BoxError, Error, ErrorKind};

use crate::Batch;

/// Writing so many bytes of records as JSON is expected to take this. Slow on purpose: a busy core writes 100 MB of it in a
/// second.
fn time_for_json(bytes: usize) -> Duration {
    const BYTES_PER_MILLISECOND: u64 = 100_000;
    Duration::from_millis(bytes as u64 / BYTES_PER_MILLISECOND)
}

/// Beginning, and telling that it is over, on a busy machine.
const AROUND: Duration = Duration::from_millis(20);

/// A new file and its directory are on a busy disk in that time.
const SYNC: Duration = Duration::from_millis(80);

/// Where records go that cannot be written: at the end of a drain those for which time was too short, and while running
/// those of a batch that [failed](crate::WriteError::Failed) for good. See
/// [`BatchWriter::spill`](crate::BatchWriter::spill).
pub struct Spill<T> {
    to: Arc<dyn Elsewhere<T>>,
}

/// A record that could not be spilled, and why.
#[derive(Debug, Clone)]
pub(crate) struct Unspilled {
    /// Of the batches that were given.
    pub(crate) batch: usize,
    /// Of the batch's records.
    pub(crate) record: usize,
    pub(crate) error: Error,
}

trait Elsewhere<T>: Send + Sync {
    /// Whether it can be used at all.
    fn check(&self) -> Result<(), Error> {
        Ok(())
    }

    /// How long it takes for so many bytes of records.
    fn time_for(&self, bytes: usize) -> Duration {
        AROUND + time_for_json(bytes)
    }

    /// Puts all of these there, or says that it could not.
    fn write(&self, buffer: &str, batches: &[Batch<T>], reason: &Error) -> Result<(), BoxError>;
}

impl<T: Serialize + Send + Sync + 'static> Spill<T> {
    /// Into a new file of this directory, one for each time, which [`replay`](crate::replay) writes to the target later. It
    /// has a line of JSON for each record, and is on the disk (`fsync`) before the records count as spilled. The directory is
    /// made if it is missing.
    ///
    /// On AWS Lambda only `/tmp` can be written to, which ends with the environment: use a file system that stays (EFS), or
    /// [`stderr`](Self::stderr).
    pub fn directory(path: impl Into<PathBuf>) -> Self {
        Self::directory_on(RealDisk, path.into())
    }

    fn directory_on(disk: impl Disk, path: PathBuf) -> Self {
        Self { to: Arc::new(Directory { path, disk }) }
    }

    /// To the standard error stream, and so into the platform's log: a line of JSON for each record, the same as in a file.
    /// Whatever may read the log can read the records.
    pub fn stderr() -> Self {
        Self { to: Arc::new(Stderr) }
    }
}

impl<T: Send + Sync + 'static> Spill<T> {
    /// To this function: the buffer's name, what is left, and why. It may block, within the drain's deadline; `Ok` says that
    /// all of it is safe now, an error that it counts as lost.
    pub fn with(function: impl Fn(&str, &[Batch<T>], &Error) -> Result<(), BoxError> + Send + Sync + 'static) -> Self {
        Self { to: Arc::new(Function(function)) }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        self.to.check()
    }

    pub(crate) fn time_for(&self, bytes: usize) -> Duration {
        self.to.time_for(bytes)
    }

    /// Puts these elsewhere, and returns the records that could not be: each costs itself alone. An error is for all of them.
    pub(crate) fn write(&self, buffer: &str, batches: &[Batch<T>], reason: &Error) -> Result<Vec<Unspilled>, BoxError> {
        let records: usize = batches.iter().map(|batch| batch.len()).sum();
        self.to.write(buffer, batches, reason)?;
        tracing::warn!(buffer, records, %reason, "records spilled");
        Ok(Vec::new())
    }
}

impl<T> Clone for Spill<T> {
    fn clone(&self) -> Self {
        Self { to: Arc::clone(&self.to) }
    }
}

impl<T> fmt::Debug for Spill<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spill").finish_non_exhaustive()
    }
}

/// One record of a spill, and one line of its file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Line<'a, R> {
    #[serde(borrow)]
    pub(crate) r#type: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) buffer: Cow<'a, str>,
    /// The key of its batch.
    pub(crate) batch: uuid::Uuid,
    pub(crate) record: R,
}

/// Tells our lines from others, where a log has both.
pub(crate) const LINE_TYPE: &str = "winddown.record";

/// How the names of spill files end.
pub(crate) const EXTENSION: &str = "ndjson";

pub(crate) fn write_lines<T: Serialize>(to: &mut impl Write, buffer: &str, batch: &Batch<T>) -> io::Result<()> {
    for record in batch {
        let line = Line { r#type: LINE_TYPE.into(), buffer: buffer.into(), batch: batch.key().into(), record };
        serde_json::to_writer(&mut *to, &line)?;
        to.write_all(b"\n")?;
    }
    Ok(())
}

/// What may be slow, or full: tests have one that is.
trait Disk: Send + Sync + 'static {
    /// Returns when what was written to this file, or what a directory lists, is there for good.
    fn sync(&self, file: &File) -> io::Result<()>;
}

struct RealDisk;

impl Disk for RealDisk {
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }
}

struct Directory<D> {
    path: PathBuf,
    disk: D,
}

impl<T: Serialize + Send + Sync, D: Disk> Elsewhere<T> for Directory<D> {
    fn check(&self) -> Result<(), Error> {
        let Self { path, .. } = self;
        fs::create_dir_all(path).and_then(|()| tempfile::tempfile_in(path)).map(drop).map_err(|error| {
            let text = format!("the directory for spilled records, {}, cannot be written to", path.display());
            Error::new(ErrorKind::Config, text).with_source(error)
        })
    }

    fn time_for(&self, bytes: usize) -> Duration {
        AROUND + SYNC + time_for_json(bytes)
    }

    fn write(&self, buffer: &str, batches: &[Batch<T>], _: &Error) -> Result<(), BoxError> {
        let Some(first) = batches.first() else { return Ok(()) };
        // The key makes it new.
        let name = format!("{}-{}.{EXTENSION}", file_name(buffer), first.key());
        let file = OpenOptions::new().write(true).create_new(true).open(self.path.join(name))?;
        let mut lines = BufWriter::new(file);
        for batch in batches {
            write_lines(&mut lines, buffer, batch)?;
        }
        self.disk.sync(&lines.into_inner()?)?;
        // A file is there for good when its directory says so.
        self.disk.sync(&File::open(&self.path)?)?;
        Ok(())
    }
}

/// A file is there for good when its directory says so.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// What of a name is fit for that of a file.
fn file_name(buffer: &str) -> String {
    buffer.chars().map(|c| if c.is_alphanumeric() || c == '-' || c == '_' { c } else { '_' }).collect()
}

struct Stderr;

impl<T: Serialize + Send + Sync> Elsewhere<T> for Stderr {
    fn write(&self, buffer: &str, batches: &[Batch<T>], _: &Error) -> Result<(), BoxError> {
        let mut lines = BufWriter::new(io::stderr().lock());
        for batch in batches {
            write_lines(&mut lines, buffer, batch)?;
        }
        lines.flush()?;
        Ok(())
    }
}

struct Function<F>(F);

impl<T, F> Elsewhere<T> for Function<F>
where
    F: Fn(&str, &[Batch<T>], &Error) -> Result<(), BoxError> + Send + Sync,
{
    fn write(&self, buffer: &str, batches: &[Batch<T>], reason: &Error) -> Result<(), BoxError> {
        (self.0)(buffer, batches, reason)
    }
}
