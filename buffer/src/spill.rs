//! The last resort: records that the target cannot have in time are put elsewhere.

#[cfg(test)]
mod tests;

mod disk;
mod exact;
mod key;
mod line;

use std::{
    any::type_name,
    borrow::Cow,
    fmt,
    io::{self, BufWriter, Write},
    path::PathBuf,
    sync::{Arc, Once},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use signal_hook::consts::SIGXFSZ;
use uuid::Uuid;
use winddown_core::{BoxError, Error, ErrorKind, adapter::SpareDescriptors};

pub use self::key::SpillKey;
pub(crate) use self::{
    disk::{Disk, Folder, Open, RealDisk, Through, claim, parent},
    line::{FOOTER, Footer, HEADER, Header, Line, RECORD, Writing, encode},
};
use crate::Batch;

/// Writing so many bytes of records as JSON, and reading them back, is expected to take this. Slow on purpose: a core that is not
/// busy does three times as much.
fn time_for_json(bytes: usize) -> Duration {
    const BYTES_PER_MILLISECOND: u64 = 50_000;
    Duration::from_millis(bytes as u64 / BYTES_PER_MILLISECOND)
}

/// Beginning, and telling that it is over, on a busy machine.
const AROUND: Duration = Duration::from_millis(20);

/// A new file and its directory are on a busy disk in that time.
const SYNC: Duration = Duration::from_millis(80);

/// Where records go that cannot be written: at the end of a drain those for which time was too short, and while running
/// those of a batch that [failed](crate::WriteError::Failed) for good. See
/// [`BatchWriter::spill`](crate::BatchWriter::spill).
///
/// Only what is proven to come back as it was, to the bit, counts as spilled: each record is read back when it is written. A
/// record that cannot be held by JSON or by MessagePack, or whose serialisation fails, is refused alone; the others are
/// spilled.
///
/// Spilled records may be personal data. A directory is made for its owner alone (0700), and files are (0600), whatever the
/// umask; no symbolic link is followed. What is spilled to the log, whatever may read the log can read.
pub struct Spill<T> {
    to: Arc<dyn Elsewhere<T>>,
    identity: Identity,
}

/// What each line says of where it comes from, and what it is signed with.
#[derive(Debug, Clone)]
struct Identity {
    record_type: Cow<'static, str>,
    key: Option<SpillKey>,
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

    /// Puts these there, but for those that it returns, or says that it could put none there.
    fn write(&self, from: &Writing<'_>, batches: &[Batch<T>], reason: &Error) -> Result<Vec<Unspilled>, BoxError>;
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Spill<T> {
    /// Into a new file of this directory, one for each time, which a [`Replay`](crate::Replay) writes to the target later. It
    /// has a line of JSON for each record, and is on the disk (`fsync`) before the records count as spilled: until then it has a
    /// name that no replay takes, and where it cannot be finished, nothing is left of it. The directory is made if it is
    /// missing.
    ///
    /// On AWS Lambda only `/tmp` can be written to, which ends with the environment: use a file system that stays (EFS), or
    /// [`stderr`](Self::stderr).
    pub fn directory(path: impl Into<PathBuf>) -> Self {
        Self::directory_on(Arc::new(RealDisk), path.into())
    }

    pub(crate) fn directory_on(disk: Arc<dyn Disk>, path: PathBuf) -> Self {
        Self::to(Directory { path, disk, spare: SpareDescriptors::new(OPENED) })
    }

    /// To the standard error stream, and so into the platform's log: a line of JSON for each record, the same as in a file, with
    /// a time and the level `FATAL`, which AWS Lambda drops at no log level.
    ///
    /// Whatever may read the log can read the records; and whoever can write whole lines into the log can forge some, unless
    /// there is a [key](SpillKey).
    pub fn stderr() -> Self {
        Self::to(Stderr)
    }
}

impl<T: Send + Sync + 'static> Spill<T> {
    /// To this function: the buffer's name, what is left, and why. It may block, within the drain's deadline; `Ok` says that
    /// all of it is safe now, an error that it counts as lost.
    pub fn with(function: impl Fn(&str, &[Batch<T>], &Error) -> Result<(), BoxError> + Send + Sync + 'static) -> Self {
        Self::to(Function(function))
    }

    /// The name of the records' type, which a replay must be for: what else is spilled under the buffer's name it leaves alone.
    /// Give it a version where records change (`visit/2`), and a name of its own where the type's may change.
    ///
    /// Defaults to the path of the type as the compiler has it.
    #[must_use]
    pub fn record_type(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.identity.record_type = name.into();
        self
    }

    /// Signs the records with this key, whatever the environment says.
    #[must_use]
    pub fn key(mut self, key: SpillKey) -> Self {
        self.identity.key = Some(key);
        self
    }

    fn to(elsewhere: impl Elsewhere<T> + 'static) -> Self {
        Self { to: Arc::new(elsewhere), identity: Identity { record_type: type_name::<T>().into(), key: None } }
    }

    /// Whether it can be used at all.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.signing_key()?;
        self.to.check()
    }

    pub(crate) fn time_for(&self, bytes: usize) -> Duration {
        self.to.time_for(bytes)
    }

    /// Puts these elsewhere, and returns the records that could not be: each costs itself alone. An error is for all of them.
    pub(crate) fn write(&self, buffer: &str, batches: &[Batch<T>], reason: &Error) -> Result<Vec<Unspilled>, BoxError> {
        let records: usize = batches.iter().map(|batch| batch.len()).sum();
        let (key, record_type) = (self.signing_key()?, &*self.identity.record_type);
        let from = Writing { buffer, record_type, key: key.as_ref(), in_log: false };
        let unspilled = self.to.write(&from, batches, reason)?;
        let spilled = records - unspilled.len();
        if spilled > 0 {
            tracing::warn!(buffer, records = spilled, %reason, "records spilled");
        }
        Ok(unspilled)
    }

    fn signing_key(&self) -> Result<Option<SpillKey>, Error> {
        match &self.identity.key {
            Some(key) => Ok(Some(key.clone())),
            None => SpillKey::from_env(),
        }
    }
}

impl<T> Clone for Spill<T> {
    fn clone(&self) -> Self {
        Self { to: Arc::clone(&self.to), identity: self.identity.clone() }
    }
}

impl<T> fmt::Debug for Spill<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spill").field("record_type", &self.identity.record_type).finish_non_exhaustive()
    }
}

/// How the names of spill files end.
pub(crate) const EXTENSION: &str = "ndjson";

/// What such a file has behind its name until it is complete.
pub(crate) const PART: &str = "part";

/// Writes all records of these batches that can be written, and returns the others.
fn write_records<T: Serialize + DeserializeOwned>(
    to: &mut impl Write,
    from: &Writing<'_>,
    batches: &[Batch<T>],
) -> io::Result<Vec<Unspilled>> {
    let mut unspilled = Vec::new();
    for (batch_number, batch) in batches.iter().enumerate() {
        let encoded: Vec<_> = batch.iter().map(encode).collect();
        // Those that are refused are no part of what a replay will write.
        let count = encoded.iter().filter(|one| one.is_ok()).count() as u64;
        let mut index = 0;
        for (record, one) in encoded.into_iter().enumerate() {
            match one {
                Ok(one) => {
                    from.record(to, batch.key(), (index, count), &one, None)?;
                    index += 1;
                }
                Err(error) => unspilled.push(Unspilled { batch: batch_number, record, error }),
            }
        }
    }
    Ok(unspilled)
}

struct Directory {
    path: PathBuf,
    disk: Arc<dyn Disk>,
    /// A file is opened in it when there may be no descriptor left (L7).
    spare: SpareDescriptors,
}

/// The directory, the one that it is in where it has to be made again, and the file.
const OPENED: usize = 3;

impl<T: Serialize + DeserializeOwned + Send + Sync> Elsewhere<T> for Directory {
    fn check(&self) -> Result<(), Error> {
        let Self { path, .. } = self;
        // A write beyond the limit of a file's size ends the process (setrlimit(2)); where the signal is handled it is an error.
        static HANDLED: Once = Once::new();
        HANDLED.call_once(|| {
            if let Err(error) = signal_hook::flag::register(SIGXFSZ, Arc::default()) {
                tracing::warn!(%error, "a spill beyond the limit of a file's size will end the process");
            }
        });
        Folder::make(path).and_then(|_| tempfile::tempfile_in(path)).map(drop).map_err(|error| {
            let text = format!("the directory for spilled records, {}, cannot be written to", path.display());
            Error::new(ErrorKind::Config, text).with_source(error)
        })?;
        self.spare.keep();
        Ok(())
    }

    fn time_for(&self, bytes: usize) -> Duration {
        AROUND + SYNC + time_for_json(bytes)
    }

    fn write(&self, from: &Writing<'_>, batches: &[Batch<T>], _: &Error) -> Result<Vec<Unspilled>, BoxError> {
        self.spare.let_go();
        let written = self.write_file(from, batches);
        self.spare.keep();
        written
    }
}

impl Directory {
    fn write_file<T: Serialize + DeserializeOwned>(
        &self,
        from: &Writing<'_>,
        batches: &[Batch<T>],
    ) -> Result<Vec<Unspilled>, BoxError> {
        let Self { path, disk, .. } = self;
        // It may have been removed while the process ran.
        let folder = Folder::make(path)?;
        // Newer ones sort behind older ones, and no two are alike.
        let name = format!("{}-{}.{EXTENSION}", file_name(from.buffer), Uuid::now_v7());
        let part = format!("{name}.{PART}");
        let (name, part) = (name.as_ref(), part.as_ref());
        let written = (|| {
            let file = disk.open(&folder, part, Open::New)?;
            // So that a replay sees that somebody is still at it, where the file system has locks.
            let _ = claim(&file);
            let records: usize = batches.iter().map(|batch| batch.len()).sum();
            let mut lines = BufWriter::new(Through(&**disk, &file));
            from.header(&mut lines)?;
            let unspilled = write_records(&mut lines, from, batches)?;
            let spilled = records - unspilled.len();
            from.footer(&mut lines, spilled as u64)?;
            lines.flush()?;
            if spilled == 0 {
                disk.remove(&folder, part)?;
                return Ok(unspilled);
            }
            disk.sync(&file)?;
            disk.rename(&folder, part, name)?;
            // A file is there for good when its directory says so.
            disk.sync_folder(&folder)?;
            Ok(unspilled)
        })();
        written.map_err(|error: io::Error| {
            // What is called lost must not be found by a replay.
            let removed = disk.remove(&folder, part).and_then(|()| disk.remove(&folder, name));
            match removed {
                Ok(()) => error.into(),
                Err(kept) => {
                    format!("{error}; and what is left in {} cannot be removed: {kept}", folder.join(part).display())
                        .into()
                }
            }
        })
    }
}

/// What of a name is fit for that of a file.
pub(crate) fn file_name(buffer: &str) -> String {
    let fit = |c: char| if c.is_alphanumeric() || c == '-' || c == '_' { c } else { '_' };
    // A file's name has 255 bytes at most, and a key and two extensions come behind this.
    let mut name: String = buffer.chars().map(fit).collect();
    let ends = name.char_indices().map(|(at, c)| at + c.len_utf8());
    name.truncate(ends.take_while(|end| *end <= 150).last().unwrap_or(0));
    name
}

struct Stderr;

impl<T: Serialize + DeserializeOwned + Send + Sync> Elsewhere<T> for Stderr {
    fn write(&self, from: &Writing<'_>, batches: &[Batch<T>], _: &Error) -> Result<Vec<Unspilled>, BoxError> {
        write_to_log(&mut io::stderr().lock(), from, batches)
    }
}

/// Writes the lines of these batches to a log. What is in it counts, and what is not does not.
fn write_to_log<T: Serialize + DeserializeOwned>(
    to: &mut impl Write,
    from: &Writing<'_>,
    batches: &[Batch<T>],
) -> Result<Vec<Unspilled>, BoxError> {
    let from = Writing { in_log: true, ..*from };
    let mut unspilled = Vec::new();
    for (number, batch) in batches.iter().enumerate() {
        let mut lines = Vec::new();
        let refused = write_records(&mut lines, &from, std::slice::from_ref(batch))?;
        let (written, error) = write_whole(to, &lines);
        let whole = lines[..written].iter().filter(|byte| **byte == b'\n').count();
        let is_refused = |record: &usize| refused.iter().any(|one| one.record == *record);
        let unwritten = (0..batch.len()).filter(|record| !is_refused(record)).skip(whole);
        if let Some(error) = error {
            let error = Error::new(ErrorKind::Write, "the log takes no more").with_source(error);
            unspilled.extend(unwritten.map(|record| Unspilled { batch: number, record, error: error.clone() }));
        }
        unspilled.extend(refused.into_iter().map(|one| Unspilled { batch: number, ..one }));
    }
    Ok(unspilled)
}

/// Writes as much of it as can be written, and says how much that was.
fn write_whole(to: &mut impl Write, bytes: &[u8]) -> (usize, Option<io::Error>) {
    let mut written = 0;
    while written < bytes.len() {
        match to.write(&bytes[written..]) {
            Ok(0) => return (written, Some(io::ErrorKind::WriteZero.into())),
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Some(error)),
        }
    }
    (written, None)
}

struct Function<F>(F);

impl<T, F> Elsewhere<T> for Function<F>
where
    F: Fn(&str, &[Batch<T>], &Error) -> Result<(), BoxError> + Send + Sync,
{
    fn write(&self, from: &Writing<'_>, batches: &[Batch<T>], reason: &Error) -> Result<Vec<Unspilled>, BoxError> {
        (self.0)(from.buffer, batches, reason).map(|()| Vec::new())
    }
}
