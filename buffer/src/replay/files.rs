//! Which files there are, who may write what is in them, and what is noted beside them.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, BufRead as _, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;
use winddown_core::{Error, ErrorKind};

use crate::{
    Batch,
    spill::{
        Disk, EXTENSION, FOOTER, Folder, Footer, HEADER, Header, Line, Open, PART, Through, Writing, claim, encode,
        file_name, parent,
    },
};

/// Behind the name of a file, of those of its batches that are written.
const NOTES: &str = "replayed";

/// Behind the name of a file, with the records that the target refuses.
pub(crate) const REJECTED: &str = "rejected";

/// Behind the name of a file, with the records of which nobody knows whether the target has them.
pub(crate) const IN_DOUBT: &str = "in-doubt";

/// What a path has.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Those that winddown spilled, by buffer and then by age.
    pub(crate) spills: Vec<PathBuf>,
    /// Anything else, which may have our lines in it.
    pub(crate) logs: Vec<PathBuf>,
    /// Spills that were not finished.
    pub(crate) unfinished: Vec<PathBuf>,
    pub(crate) is_folder: bool,
}

/// Looks at a file, or at all files of a directory.
pub(crate) fn find(path: &Path) -> io::Result<Found> {
    let metadata = match fs::metadata(path) {
        // Where each process begins with a replay, the first one has nothing to find.
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.extension().is_none() => {
            return Ok(Found::default());
        }
        metadata => metadata?,
    };
    if !metadata.is_dir() {
        let is_spill = header(path)?.is_some() && is_finished(path);
        let (spills, logs) = if is_spill { (vec![path.to_owned()], vec![]) } else { (vec![], vec![path.to_owned()]) };
        return Ok(Found { spills, logs, ..Found::default() });
    }
    let mut found = Found { is_folder: true, ..Found::default() };
    let mut paths = fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort_unstable();
    for path in paths {
        let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default();
        match extension {
            NOTES | REJECTED | IN_DOUBT => continue,
            PART => {
                found.unfinished.push(path);
                continue;
            }
            _ => {}
        }
        // Another replay may be faster, and take it away.
        let Ok(metadata) = fs::metadata(&path) else { continue };
        if !metadata.is_file() {
            continue;
        }
        match header(&path) {
            Ok(Some(_)) if extension == EXTENSION => found.spills.push(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            _ => found.logs.push(path),
        }
    }
    Ok(found)
}

fn is_finished(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == EXTENSION)
}

/// The buffer and the type of the records of a spill file; none if it is none.
pub(crate) fn header(path: &Path) -> io::Result<Option<(String, String)>> {
    let mut line = Vec::new();
    BufReader::new(File::open(path)?).take(1 << 16).read_until(b'\n', &mut line)?;
    let Ok(header) = serde_json::from_slice::<Header<'_>>(&line) else { return Ok(None) };
    let is_ours = header.r#type == HEADER && header.version == 1;
    Ok(is_ours.then(|| (header.buffer.into_owned(), header.record_type.into_owned())))
}

/// How many records a spill file says that it has, in its last line; none if that is not there.
pub(crate) fn footer(path: &Path) -> io::Result<Option<u64>> {
    let mut file = File::open(path)?;
    let size = file.seek(SeekFrom::End(0))?;
    // Longer than the line can be.
    file.seek(SeekFrom::Start(size.saturating_sub(256)))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    let last = text.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    let Ok(Footer { r#type, records }) = serde_json::from_slice(last) else { return Ok(None) };
    Ok((r#type == FOOTER).then_some(records))
}

/// A spill file that is claimed: no other replay takes it while this lives.
pub(crate) fn claim_spill(path: &Path, needs_lock: bool) -> Result<Option<(Folder, OsString, File)>, Error> {
    let unreadable = |error: io::Error| unusable(path, "cannot be read", error);
    let (folder, name) = Folder::of(path).map_err(unreadable)?;
    let file = match folder.open_file(name, Open::Read) {
        // Another replay has written it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(unreadable)?,
    };
    match claim(&file) {
        Ok(true) => {}
        Ok(false) => return Ok(None),
        Err(error) if needs_lock => {
            let what =
                "is on a file system without locks, where two replays at once would write it twice: move it to another";
            return Err(unusable(path, what, error));
        }
        Err(error) => tracing::warn!(path = %path.display(), %error, "no locks here: another replay may read it too"),
    }
    // It may have been written and removed between the two.
    let is_there = folder.is(name, &file).map_err(unreadable)?;
    let name = name.to_owned();
    Ok(is_there.then_some((folder, name, file)))
}

/// What is noted beside a file, or beside a directory's logs. All of it may block.
pub(crate) struct Beside {
    disk: Arc<dyn Disk>,
    folder: Folder,
    /// The file's name.
    base: OsString,
    state: Mutex<Notes>,
}

#[derive(Default)]
struct Notes {
    file: Option<File>,
    /// The directory takes none, and it is not needed.
    is_off: bool,
    written: HashSet<Uuid>,
    begun: HashSet<Uuid>,
    divided: HashSet<Uuid>,
    /// By the kind of their file.
    kept: HashMap<&'static str, Kept>,
}

/// A file beside, and the records that are in it: by their batch, and their place in that. After an error that is not true any
/// more, and the replay ends.
struct Kept {
    file: File,
    records: HashSet<(Uuid, u64)>,
}

impl Notes {
    fn read(&mut self, mut file: &File) -> io::Result<()> {
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        for line in String::from_utf8_lossy(&text).lines() {
            // The last one may be torn; then it is as if it had not been written.
            if let Some((verb, key)) = line.split_once(' ')
                && let Ok(key) = key.parse()
            {
                self.know(verb, key);
            }
        }
        Ok(())
    }

    fn know(&mut self, verb: &str, key: Uuid) {
        match verb {
            "written" => drop(self.written.insert(key)),
            "divided" => drop(self.divided.insert(key)),
            "begun" => drop(self.begun.insert(key)),
            "returned" => drop(self.begun.remove(&key)),
            _ => {}
        }
    }
}

/// What is noted of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Note {
    /// It is handed to the target, which must not get it again.
    Begun,
    /// The target took nothing of it, and may get it again.
    Returned,
    /// The target took nothing of it, and gets its halves.
    Divided,
    /// It has been seen to: there is nothing left to do.
    Written,
}

/// What is known of a batch from an earlier replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    Nothing,
    Begun,
    Divided,
    Written,
}

impl Beside {
    /// Beside this file.
    pub(crate) fn new(disk: Arc<dyn Disk>, folder: Folder, base: OsString) -> Self {
        Self { disk, folder, base, state: Mutex::default() }
    }

    /// Beside the logs of a directory, or beside one log.
    pub(crate) fn logs(disk: Arc<dyn Disk>, path: &Path, is_folder: bool, buffer: &str) -> io::Result<Self> {
        let (folder, base) = if is_folder {
            (path.to_owned(), OsString::from(format!("winddown-{}", file_name(buffer))))
        } else {
            (parent(path), path.file_name().unwrap_or_default().to_owned())
        };
        Ok(Self::new(disk, Folder::open(&fs::canonicalize(folder)?)?, base))
    }

    /// Makes the file of notes, claims it if need be, and reads what is in it: whether nobody else has it. Where none can be made
    /// and none is needed, it is done without.
    pub(crate) fn begin(&self, is_needed: bool, to_claim: bool) -> Result<bool, Error> {
        let name = self.name(NOTES);
        let mut notes = self.notes();
        let claimed = self.disk.open(&self.folder, &name, Open::Append).and_then(|file| {
            // Not before it is ours: another replay may add to it until then.
            let is_claimed = !to_claim || claim(&file)?;
            if is_claimed {
                notes.read(&file)?;
                notes.file = Some(file);
            }
            Ok(is_claimed)
        });
        match claimed {
            Ok(is_claimed) => Ok(is_claimed),
            // Whatever else it is may be over soon, and another replay may be at it.
            Err(error) if is_needed || !is_forbidden(&error) => {
                let what = "cannot be written: which batches are written must be noted where the target does not remember it; \
                            copy the files to a directory that can be written to";
                Err(unusable(&self.folder.join(name), what, error))
            }
            Err(error) => {
                let path = self.folder.join(&name);
                tracing::warn!(path = %path.display(), %error, "cannot note what is written: the target is asked instead");
                notes.is_off = true;
                if let Ok(file) = self.folder.open_file(&name, Open::Read) {
                    let unreadable = |error: io::Error| unusable(&path, "cannot be read", error);
                    notes.read(&file).map_err(unreadable)?;
                }
                Ok(true)
            }
        }
    }

    /// Whether what is written can be noted, and files added.
    pub(crate) fn is_off(&self) -> bool {
        self.notes().is_off
    }

    pub(crate) fn known(&self, key: Uuid) -> Known {
        let notes = self.notes();
        match () {
            () if notes.written.contains(&key) => Known::Written,
            () if notes.divided.contains(&key) => Known::Divided,
            () if notes.begun.contains(&key) => Known::Begun,
            () => Known::Nothing,
        }
    }

    pub(crate) fn note(&self, note: Note, key: Uuid) -> Result<(), Error> {
        let mut notes = self.notes();
        let verb = match note {
            Note::Begun => "begun",
            Note::Returned => "returned",
            Note::Divided => "divided",
            Note::Written => "written",
        };
        notes.know(verb, key);
        let Some(file) = &notes.file else { return Ok(()) };
        // First an end of a line: what is there may be torn.
        let line = format!("\n{verb} {key}\n");
        let noted = Through(&*self.disk, file).write_all(line.as_bytes()).and_then(|()| self.disk.sync(file));
        noted.map_err(|error| unusable(&self.folder.join(self.name(NOTES)), "cannot be written", error))
    }

    /// Keeps these records in a file of this kind, and says why they are there; once, however often it is asked.
    pub(crate) fn keep<T: Serialize + DeserializeOwned>(
        &self,
        kind: &'static str,
        from: &Writing<'_>,
        batch: &Batch<T>,
        why: &str,
    ) -> Result<(), Error> {
        let mut notes = self.notes();
        let unwritable = |error: io::Error| unusable(&self.folder.join(self.name(kind)), "cannot be written", error);
        let Kept { file, records } = match notes.kept.entry(kind) {
            Entry::Occupied(kept) => kept.into_mut(),
            Entry::Vacant(kept) => kept.insert(self.kept(kind).map_err(unwritable)?),
        };
        let key = Uuid::from(batch.key());
        let mut lines = BufWriter::new(Through(&*self.disk, file));
        // What is there may be torn.
        lines.write_all(b"\n").map_err(unwritable)?;
        for (index, record) in (0..).zip(batch) {
            if records.insert((key, index)) {
                let encoded = encode(record)?;
                let place = (index, batch.len() as u64);
                from.record(&mut lines, batch.key(), place, &encoded, Some(why)).map_err(unwritable)?;
            }
        }
        lines.flush().map_err(unwritable)?;
        drop(lines);
        self.disk.sync(file).map_err(unwritable)
    }

    /// Opens the file of this kind, and sees which records an earlier replay has put there.
    fn kept(&self, kind: &str) -> io::Result<Kept> {
        let file = self.disk.open(&self.folder, &self.name(kind), Open::Append)?;
        self.disk.sync_folder(&self.folder)?;
        let mut records = HashSet::new();
        let mut reader = BufReader::new(&file);
        let mut text = Vec::new();
        while reader.read_until(b'\n', &mut text)? > 0 {
            if let Ok(line) = serde_json::from_slice::<Line<'_>>(&text)
                && text.ends_with(b"\n")
            {
                records.insert((line.batch, line.index));
            }
            text.clear();
        }
        Ok(Kept { file, records })
    }

    /// Removes the file, all of which is written, and then the notes of it.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        let removed = self
            .disk
            .remove(&self.folder, &self.base)
            .and_then(|()| self.disk.sync_folder(&self.folder))
            .and_then(|()| self.disk.remove(&self.folder, &self.name(NOTES)));
        removed.map_err(|error| unusable(&self.folder.join(&self.base), "is replayed, but cannot be removed", error))
    }

    fn name(&self, suffix: &str) -> OsString {
        let mut name = self.base.clone();
        name.push(".");
        name.push(suffix);
        name
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the directory takes no files, or has no locks.
fn is_forbidden(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem, Unsupported};
    matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem | Unsupported)
}

/// Removes notes whose file is gone: a replay was killed after it had removed that.
pub(crate) fn remove_orphans(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    let folder = Folder::open(path)?;
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        let Some(text) = name.to_str() else { continue };
        if let Some(base) = text.strip_suffix(&format!(".{NOTES}"))
            && base.ends_with(&format!(".{EXTENSION}"))
            && !folder.has(base.as_ref())
        {
            disk.remove(&folder, &name)?;
        }
    }
    Ok(())
}

pub(crate) fn unusable(path: &Path, what: &str, error: io::Error) -> Error {
    Error::new(ErrorKind::Config, format!("{} {what}", path.display())).with_source(error)
}
