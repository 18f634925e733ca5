//! Spilled records go where they should have gone.

mod files;
mod lines;
#[cfg(test)]
mod property;
mod scan;
#[cfg(test)]
mod tests;

use std::{
    any::type_name,
    borrow::Cow,
    fmt, io,
    marker::PhantomData,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBuilder};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{task::spawn_blocking, time::sleep};
use winddown_core::{Error, ErrorKind, ShutdownGuard};

use self::{
    files::{Beside, IN_DOUBT, Known, Note, REJECTED, claim_spill, find, footer, header, remove_orphans, unusable},
    scan::{Scan, Source, Sources, Span, UnreadLines, Wanted},
};
use crate::{
    Batch, Delivery, Sink, SpillKey, WriteError,
    sink::BatchKey,
    spill::{Disk, RealDisk, Writing},
};

/// A target that is away is tried again for as long as these pauses take together, some 10 s.
const PAUSES: (Duration, Duration, usize) = (Duration::from_millis(50), Duration::from_secs(2), 10);

type OnProgress = Arc<dyn Fn(&Progress<'_>) + Send + Sync>;

/// Writes spilled records to the target: those of one buffer, from a file, from a directory of files, or from logs.
///
/// ```
/// # use winddown_buffer::{Replay, Replayed, Sink};
/// # use winddown_core::{Error, ShutdownGuard};
/// # type Visit = (u64, String);
/// # async fn replay_all<S: Sink<Visit>>(db: &ShutdownGuard<S::Target>, sink: S) -> Result<(), Error> {
/// let replayed = Replay::<Visit, _>::new(db, sink, "visits").run("/mnt/spills").await?;
/// if !replayed.is_complete() {
///     eprintln!("{replayed}");
/// }
/// # Ok(())
/// # }
/// ```
///
/// # What it takes
/// Lines of the buffer of this name, and of this [record type](Self::record_type). Those of other buffers are left alone; so
/// several buffers may share a directory. All lines with the [key](Batch::key) of a batch are that batch, wherever they are in
/// the file, or among all logs of the directory. Nothing is held in memory but one batch, and some bytes for each other.
///
/// In logs it finds records behind what `kubectl logs`, `docker compose logs`, exports of CloudWatch and journald put before a
/// line, and in the log files of container runtimes (`json-file`, CRI), where it puts lines together that were divided.
///
/// # What becomes of the files
/// A file that winddown spilled is removed when all of it is written, and only then. A log is never removed or changed. What
/// could not be read stays where it is, and the result [names it](Replayed::unread) by file and line. Records that the target
/// rejects are in a file beside theirs, with `.rejected` behind its name; those of which nobody knows whether the target has
/// them, and which must not be written twice, in one with `.in-doubt`.
///
/// Any number of replays may read one directory at once, as when each process begins with one: each file is claimed by one
/// of them, with a lock that ends with the process.
///
/// # How often a record is written
/// As the sink's [delivery](Sink::delivery) says, across replays that were killed and run again: with
/// [`ExactlyOnce`](Delivery::ExactlyOnce) the target knows which batches it has; which ones are seen to is noted besides in a
/// file with `.replayed` behind its name. With [`AtLeastOnce`](Delivery::AtLeastOnce) one batch may be written twice by a
/// replay that is killed. A batch that must be divided, since the target rejects a record of it, is known to be so from the
/// notes alone; so do not replay copies of one log from several directories. With [`AtMostOnce`](Delivery::AtMostOnce) no batch whose outcome is unknown is written again: it is in
/// doubt.
pub struct Replay<T, S: Sink<T>>
where
    T: Send + Sync + 'static,
{
    target: ShutdownGuard<S::Target>,
    sink: S,
    wanted: Wanted,
    incomplete: bool,
    on_progress: Option<OnProgress>,
    disk: Arc<dyn Disk>,
    records: PhantomData<fn(T)>,
}

/// What a replay did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replayed {
    /// Records of this buffer that were found, those of files that another replay is at left out.
    pub found: u64,
    /// Records that the target has.
    pub written: u64,
    /// Records that an earlier replay has seen to.
    pub already: u64,
    /// Records that the sink rejects for what is in them.
    pub rejected: u64,
    /// Records of which nobody knows whether the target has them, and which may not be written twice.
    pub in_doubt: u64,
    /// Records of batches that are not whole in a log, and therefore not written: see [`Replay::incomplete`].
    pub incomplete: u64,
    /// Records of other buffers.
    pub others: u64,
    /// Spill files that are written whole, and gone.
    pub files: u64,
    /// Files that another replay is at.
    pub busy: u64,
    /// Spills that were not finished: a process is at it, or was killed. What they have never counted as spilled.
    pub unfinished: Vec<PathBuf>,
    /// How many lines could not be read.
    pub unread_lines: u64,
    /// The first thousand of them.
    pub unread: Vec<Unread>,
}

/// What could not be read, and stays where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unread {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1 on; none for all of the file.
    pub line: Option<u64>,
    /// Why, without what is in it.
    pub why: String,
}

/// How far a replay is.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// The file, or the directory of logs.
    pub path: &'a Path,
    /// Records of it that are seen to.
    pub done: u64,
    /// Records that it has.
    pub records: u64,
}

/// What one file or log has, for whatever buffer: see [`spilled`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpillFile {
    /// The file.
    pub path: PathBuf,
    /// Whose records it has, if winddown spilled it.
    pub buffer: Option<String>,
    /// The type of its records, if winddown spilled it.
    pub record_type: Option<String>,
    /// In bytes.
    pub size: u64,
    /// How many records it has, if winddown spilled it to its end.
    pub records: Option<u64>,
    /// Whether it has all that was spilled. A spill that was not finished has not, and a log cannot say.
    pub is_finished: bool,
}

/// Lists what a path has to replay: the file, or all files of the directory.
///
/// # Errors
/// [`Config`](ErrorKind::Config) when it cannot be read.
pub fn spilled(path: impl AsRef<Path>) -> Result<Vec<SpillFile>, Error> {
    let path = path.as_ref();
    let found = find(path).map_err(|error| unusable(path, "cannot be read", error))?;
    let all = [(found.spills, true), (found.unfinished, false), (found.logs, false)];
    let files = all.into_iter().flat_map(|(paths, is_finished)| paths.into_iter().map(move |path| (path, is_finished)));
    let described = files.map(|(path, is_finished)| {
        let unreadable = |error: io::Error| unusable(&path, "cannot be read", error);
        let size = std::fs::metadata(&path).map_err(unreadable)?.len();
        let (buffer, record_type) = header(&path).map_err(unreadable)?.unzip();
        let records = if is_finished { footer(&path).map_err(unreadable)? } else { None };
        Ok(SpillFile { path, buffer, record_type, size, records, is_finished })
    });
    described.collect()
}

impl<T, S> Replay<T, S>
where
    T: Serialize + DeserializeOwned + Send + Sync + 'static,
    S: Sink<T>,
{
    /// Of the buffer with this [name](crate::BatchWriter::name), to this sink.
    pub fn new(target: &ShutdownGuard<S::Target>, sink: S, buffer: impl Into<String>) -> Self {
        Self {
            target: target.clone(),
            sink,
            wanted: Wanted { buffer: buffer.into(), record_type: Some(type_name::<T>().to_owned()), key: None },
            incomplete: false,
            on_progress: None,
            disk: Arc::new(RealDisk),
            records: PhantomData,
        }
    }

    /// The name of the records' type, as [`Spill::record_type`](crate::Spill::record_type) was told. Records of this buffer
    /// that are of another type stay unread.
    ///
    /// Defaults to the path of the type as the compiler has it.
    #[must_use]
    pub fn record_type(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.wanted.record_type = Some(name.into().into_owned());
        self
    }

    /// Takes records of any type that can be read as this one.
    #[must_use]
    pub fn any_record_type(mut self) -> Self {
        self.wanted.record_type = None;
        self
    }

    /// Takes only what is signed with this key, whatever the environment says.
    #[must_use]
    pub fn key(mut self, key: SpillKey) -> Self {
        self.wanted.key = Some(key);
        self
    }

    /// Writes of batches in logs also what there is where lines are missing: the log was cut, or is of another day. Once that is
    /// written, a log that has the missing lines too cannot add them: the target has the batch's key.
    ///
    /// Defaults to `false`: they are counted as [incomplete](Replayed::incomplete), and not written.
    #[must_use]
    pub fn incomplete(mut self, incomplete: bool) -> Self {
        self.incomplete = incomplete;
        self
    }

    /// Calls this after each batch.
    #[must_use]
    pub fn on_progress(mut self, callback: impl Fn(&Progress<'_>) + Send + Sync + 'static) -> Self {
        self.on_progress = Some(Arc::new(callback));
        self
    }

    #[cfg(test)]
    pub(crate) fn on_disk(mut self, disk: Arc<dyn Disk>) -> Self {
        self.disk = disk;
        self
    }

    /// Writes what this path has: a spill file or a log, or all files of a directory. A path without an extension that is not
    /// there is a directory that nothing was spilled to yet, and has nothing.
    ///
    /// # Cancel safety
    /// Cancel safe, as it may be killed: run it again. What it was writing then has no known outcome; what becomes of that is
    /// said [above](Self#how-often-a-record-is-written).
    ///
    /// # Errors
    /// What was written stands in each case, and the files stay for the next try:
    /// - [`Config`](ErrorKind::Config) when a file cannot be read, or what must be noted cannot be;
    /// - [`Write`](ErrorKind::Write) when the target does not take a batch, after it has been asked again for some 10 s;
    /// - what [`ShutdownGuard::get`] returns.
    pub async fn run(&self, path: impl AsRef<Path>) -> Result<Replayed, Error> {
        self.replay(path.as_ref(), true).await
    }

    /// Reads what this path has as [`run`](Self::run) would, and neither writes nor claims anything.
    ///
    /// # Cancel safety
    /// Cancel safe.
    ///
    /// # Errors
    /// [`Config`](ErrorKind::Config) when a file cannot be read.
    pub async fn check(&self, path: impl AsRef<Path>) -> Result<Replayed, Error> {
        self.replay(path.as_ref(), false).await
    }

    async fn replay(&self, path: &Path, writes: bool) -> Result<Replayed, Error> {
        let mut wanted = self.wanted.clone();
        if wanted.key.is_none() {
            wanted.key = SpillKey::from_env()?;
        }
        let wanted = Arc::new(wanted);
        let found = {
            let (path, disk) = (path.to_owned(), Arc::clone(&self.disk));
            let unreadable = |path: &Path, error| unusable(path, "cannot be read", error);
            blocking(move || {
                let found = find(&path).map_err(|error| unreadable(&path, error))?;
                if writes
                    && found.is_folder
                    && let Err(error) = remove_orphans(&*disk, &path)
                {
                    tracing::warn!(path = %path.display(), %error, "notes of an earlier replay cannot be removed");
                }
                Ok(found)
            })
            .await?
        };
        let mut replayed = Replayed { unfinished: found.unfinished, ..Replayed::default() };
        for spill in found.spills {
            self.replay_spill(spill, &wanted, writes, &mut replayed).await?;
        }
        if !found.logs.is_empty() {
            self.replay_logs(path, found.is_folder, found.logs, &wanted, writes, &mut replayed).await?;
        }
        if !replayed.is_complete() {
            let unread = replayed.unread_lines;
            tracing::warn!(path = %path.display(), unread, rejected = replayed.rejected, "not everything was replayed");
        }
        Ok(replayed)
    }

    async fn replay_spill(
        &self,
        path: PathBuf,
        wanted: &Arc<Wanted>,
        writes: bool,
        replayed: &mut Replayed,
    ) -> Result<(), Error> {
        let needs_lock = self.sink.delivery() != Delivery::ExactlyOnce;
        let (to_read, disk) = (path.clone(), Arc::clone(&self.disk));
        let claimed = blocking(move || {
            if !writes {
                let folderless = Source { path: to_read, file: None };
                return Ok(Some((folderless, None)));
            }
            let Some((folder, name, file)) = claim_spill(&to_read, needs_lock)? else { return Ok(None) };
            let beside = Beside::new(disk, folder, name);
            Ok(Some((Source { path: to_read, file: Some(file) }, Some(Arc::new(beside)))))
        })
        .await?;
        let Some((source, beside)) = claimed else {
            replayed.busy += 1;
            return Ok(());
        };
        let sources = Arc::new(Sources { files: vec![source], is_log: false });
        let scan = self.scan(&sources, wanted).await?;
        let is_ours = scan.is_ours;
        let is_whole = self.write_all(&path, &sources, scan, wanted, beside.clone(), replayed).await?;
        if let Some(beside) = beside
            && is_whole
            && is_ours
            && !beside.is_off()
        {
            blocking(move || beside.remove()).await?;
            replayed.files += 1;
        }
        Ok(())
    }

    async fn replay_logs(
        &self,
        path: &Path,
        is_folder: bool,
        logs: Vec<PathBuf>,
        wanted: &Arc<Wanted>,
        writes: bool,
        replayed: &mut Replayed,
    ) -> Result<(), Error> {
        let files = logs.into_iter().map(|path| Source { path, file: None }).collect();
        let sources = Arc::new(Sources { files, is_log: true });
        let scan = self.scan(&sources, wanted).await?;
        let mut beside = None;
        if writes && scan.records > 0 {
            let is_needed = self.sink.delivery() != Delivery::ExactlyOnce;
            let (path, disk, buffer) = (path.to_owned(), Arc::clone(&self.disk), wanted.buffer.clone());
            let notes = blocking(move || {
                let unreadable = |error| unusable(&path, "cannot be read", error);
                let beside = Beside::logs(disk, &path, is_folder, &buffer).map_err(unreadable)?;
                let is_claimed = beside.begin(is_needed, true)?;
                Ok(is_claimed.then(|| Arc::new(beside)))
            })
            .await?;
            if notes.is_none() {
                replayed.busy += 1;
                return Ok(());
            }
            beside = notes;
        }
        self.write_all(path, &sources, scan, wanted, beside, replayed).await?;
        Ok(())
    }

    async fn scan(&self, sources: &Arc<Sources>, wanted: &Arc<Wanted>) -> Result<Scan, Error> {
        let (sources, wanted) = (Arc::clone(sources), Arc::clone(wanted));
        blocking(move || sources.scan::<T>(&wanted).map_err(|error| sources.unreadable(error))).await
    }

    /// Writes the batches that were found, or only looks at them where there is nothing to note it. Whether all of it is seen
    /// to, and nothing is left that was not read.
    async fn write_all(
        &self,
        path: &Path,
        sources: &Arc<Sources>,
        scan: Scan,
        wanted: &Arc<Wanted>,
        beside: Option<Arc<Beside>>,
        replayed: &mut Replayed,
    ) -> Result<bool, Error> {
        let Scan { batches, records, others, mut unread, .. } = scan;
        replayed.found += records;
        replayed.others += others;
        if let Some(beside) = &beside
            && !sources.is_log
            && records > 0
        {
            let is_needed = self.sink.delivery() != Delivery::ExactlyOnce;
            let beside = Arc::clone(beside);
            blocking(move || beside.begin(is_needed, false)).await?;
        }
        let mut done = 0;
        let mut is_whole = true;
        for span in batches {
            let collected = {
                let (sources, wanted) = (Arc::clone(sources), Arc::clone(wanted));
                blocking(move || sources.collect::<T>(&span, &wanted).map_err(|error| sources.unreadable(error)))
                    .await?
            };
            unread.append(collected.unread);
            let there = collected.records.len() as u64;
            let Some(beside) = &beside else {
                if sources.is_log && there < span.count && !self.incomplete {
                    replayed.incomplete += there;
                }
                continue;
            };
            if beside.known(span.key) == Known::Written {
                replayed.already += there;
            } else if sources.is_log && there < span.count && !self.incomplete {
                replayed.incomplete += there;
                unread.add(path, None, missing(&span, there));
                is_whole = false;
            } else if there > 0 {
                let batch = Batch::with_key(BatchKey::from(span.key), collected.records);
                self.write(batch, wanted, beside, replayed).await?;
            }
            done += there;
            if let Some(callback) = &self.on_progress {
                callback(&Progress { path, done, records });
            }
        }
        is_whole &= unread.count == 0;
        replayed.add(unread);
        Ok(is_whole)
    }

    /// Writes one batch, and notes what became of it.
    async fn write(
        &self,
        batch: Batch<T>,
        wanted: &Arc<Wanted>,
        beside: &Arc<Beside>,
        replayed: &mut Replayed,
    ) -> Result<(), Error> {
        let whole = batch.key();
        let delivery = self.sink.delivery();
        let (mut waiting, mut pauses) = (vec![batch], pauses());
        while let Some(batch) = waiting.pop() {
            let count = batch.len() as u64;
            match beside.known(batch.key().into()) {
                Known::Written => {
                    replayed.already += count;
                    continue;
                }
                Known::Divided => {
                    let [front, behind] = batch.halves();
                    waiting.extend([behind, front]);
                    continue;
                }
                Known::Begun if delivery == Delivery::AtMostOnce => {
                    let error = Error::new(ErrorKind::Write, "a replay was cut off while it wrote them");
                    self.keep(IN_DOUBT, batch, wanted, beside, error).await?;
                    replayed.in_doubt += count;
                    continue;
                }
                Known::Begun | Known::Nothing => {}
            }
            let written = match self.target.get().await {
                Ok(mut checkout) => {
                    if delivery == Delivery::AtMostOnce {
                        note(beside, Note::Begun, batch.key()).await?;
                    }
                    self.sink.write(&mut checkout, &batch).await
                }
                Err(error) if error.is_shutting_down() => return Err(error),
                // Nothing is wrong with the records, so whatever the error, they wait.
                Err(error) => Err(WriteError::Retry(error)),
            };
            match written {
                Ok(()) => {
                    pauses = self::pauses();
                    replayed.written += count;
                    if batch.key() != whole {
                        note(beside, Note::Written, batch.key()).await?;
                    }
                }
                Err(WriteError::Rejected(error) | WriteError::TooLarge(error)) if count > 1 && beside.is_off() => {
                    // Its halves have keys of their own: another replay that does not know of it would write it whole.
                    let text = "a batch must be divided, and that cannot be noted beside its file: copy the files to a directory \
                                that can be written to";
                    return Err(Error::new(ErrorKind::Config, text).with_source(error));
                }
                Err(WriteError::Rejected(_) | WriteError::TooLarge(_)) if count > 1 => {
                    note(beside, Note::Divided, batch.key()).await?;
                    waiting.push(batch);
                }
                Err(WriteError::Rejected(error)) => {
                    tracing::error!(%error, "a spilled record was rejected");
                    self.keep(REJECTED, batch, wanted, beside, error).await?;
                    replayed.rejected += count;
                }
                Err(WriteError::Unknown(error)) if delivery == Delivery::AtMostOnce => {
                    tracing::error!(%error, records = count, "spilled records are in doubt");
                    self.keep(IN_DOUBT, batch, wanted, beside, error).await?;
                    replayed.in_doubt += count;
                }
                Err(WriteError::Retry(error) | WriteError::TooLarge(error) | WriteError::Unknown(error)) => {
                    if delivery == Delivery::AtMostOnce {
                        note(beside, Note::Returned, batch.key()).await?;
                    }
                    let Some(pause) = pauses.next() else { return Err(error) };
                    tracing::warn!(%error, ?pause, "cannot replay, trying again");
                    waiting.push(batch);
                    sleep(pause).await;
                }
                Err(WriteError::Failed(error)) => {
                    if delivery == Delivery::AtMostOnce {
                        note(beside, Note::Returned, batch.key()).await?;
                    }
                    return Err(error);
                }
            }
        }
        note(beside, Note::Written, whole).await
    }

    /// Puts these records into a file beside theirs, and notes that they are seen to. Where no file can be made beside a log,
    /// they stay in that alone.
    async fn keep(
        &self,
        kind: &'static str,
        batch: Batch<T>,
        wanted: &Arc<Wanted>,
        beside: &Arc<Beside>,
        why: Error,
    ) -> Result<(), Error> {
        let (wanted, beside) = (Arc::clone(wanted), Arc::clone(beside));
        blocking(move || {
            if beside.is_off() {
                return Ok(());
            }
            let record_type = wanted.record_type.as_deref().unwrap_or_else(|| type_name::<T>());
            let from = Writing { buffer: &wanted.buffer, record_type, key: wanted.key.as_ref(), in_log: false };
            beside.keep(kind, &from, &batch, &why.to_string())?;
            beside.note(Note::Written, batch.key().into())
        })
        .await
    }
}

async fn note(beside: &Arc<Beside>, note: Note, key: BatchKey) -> Result<(), Error> {
    let beside = Arc::clone(beside);
    blocking(move || beside.note(note, key.into())).await
}

fn missing(span: &Span, there: u64) -> String {
    let Span { key, count, .. } = span;
    format!("of batch {key} only {there} of {count} records are there, so it is not written: see `Replay::incomplete`")
}

impl Sources {
    fn unreadable(&self, error: io::Error) -> Error {
        let paths = || self.files.iter().map(|source| source.path.display().to_string()).collect::<Vec<_>>().join(", ");
        Error::new(ErrorKind::Config, format!("{} cannot be read", paths())).with_source(error)
    }
}

impl Replayed {
    /// Whether everything that was found is in the target, and nothing stays that could not be read, was refused or has no known
    /// outcome. Files that another replay is at are that one's.
    pub fn is_complete(&self) -> bool {
        self.unread_lines + self.rejected + self.in_doubt + self.incomplete == 0 && self.unfinished.is_empty()
    }

    fn add(&mut self, unread: UnreadLines) {
        self.unread_lines += unread.count;
        let mut all = UnreadLines { count: 0, named: std::mem::take(&mut self.unread) };
        all.append(unread);
        self.unread = all.named;
    }
}

/// One line for people, and one for each thing that stays.
impl fmt::Display for Replayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { found, written, already, rejected, in_doubt, incomplete, others, files, busy, .. } = self;
        write!(f, "{found} records found, {written} written, {files} files removed")?;
        for (count, what) in [
            (*already, "seen to before"),
            (*rejected, "rejected"),
            (*in_doubt, "in doubt"),
            (*incomplete, "of incomplete batches"),
            (*others, "of other buffers"),
            (*busy, "files that another replay is at"),
            (self.unread_lines, "lines unread"),
        ] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        for path in &self.unfinished {
            write!(f, "\n{}: a spill that is not finished", path.display())?;
        }
        for unread in &self.unread {
            write!(f, "\n{unread}")?;
        }
        let more = self.unread_lines - self.unread.len() as u64;
        if more > 0 { write!(f, "\nand {more} more") } else { Ok(()) }
    }
}

/// As `path:line: why`.
impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, line, why } = self;
        match line {
            Some(line) => write!(f, "{}:{line}: {why}", path.display()),
            None => write!(f, "{}: {why}", path.display()),
        }
    }
}

impl<T: Send + Sync + 'static, S: Sink<T>> fmt::Debug for Replay<T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The sink is left out: it may hold a password.
        f.debug_struct("Replay")
            .field("target", &self.target.name())
            .field("wanted", &self.wanted)
            .finish_non_exhaustive()
    }
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

/// Runs this where it may block.
async fn blocking<R: Send + 'static>(work: impl FnOnce() -> Result<R, Error> + Send + 'static) -> Result<R, Error> {
    let panicked = |panic| Error::new(ErrorKind::Panicked, "reading or writing files").with_source(panic);
    spawn_blocking(work).await.map_err(panicked)?
}
