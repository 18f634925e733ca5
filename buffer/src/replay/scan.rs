//! What is in the files: which batches, where their pieces are, and what could not be read.
//!
//! Read twice, so that memory is that of one batch: once to find where each batch begins and ends, whatever lies between its
//! lines, and once for each batch from there to there.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::{self, BufReader, Seek as _, SeekFrom},
    path::PathBuf,
};

use memchr::memmem;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::{
    Unread,
    lines::{Lines, Place, Text, object},
};
use crate::spill::{FOOTER, Footer, HEADER, Header, Line, RECORD, SpillKey};

/// What all our lines have, however they are wrapped.
const MARK: &[u8] = b"winddown.record";

/// So many unread lines are named; the others are counted.
const MOST_NAMED: usize = 1000;

/// Which lines are to be replayed.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) buffer: String,
    /// None for any.
    pub(crate) record_type: Option<String>,
    pub(crate) key: Option<SpillKey>,
}

/// Files that are read as one.
#[derive(Debug)]
pub(crate) struct Sources {
    /// Each is opened when it is read: there may be more of them than descriptors.
    pub(crate) files: Vec<Source>,
    pub(crate) is_log: bool,
}

#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    /// The file itself, where it is claimed.
    pub(crate) file: Option<File>,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// In the order in which they begin.
    pub(crate) batches: Vec<Span>,
    /// Lines with a record that is wanted.
    pub(crate) records: u64,
    /// Lines with records of other buffers.
    pub(crate) others: u64,
    /// The file says that it was spilled by the buffer that is replayed.
    pub(crate) is_ours: bool,
    pub(crate) unread: UnreadLines,
}

/// Lines that could not be read.
#[derive(Debug, Default, Clone)]
pub(crate) struct UnreadLines {
    pub(crate) count: u64,
    pub(crate) named: Vec<Unread>,
}

impl UnreadLines {
    pub(crate) fn add(&mut self, path: impl Into<PathBuf>, line: Option<u64>, why: impl Into<String>) {
        self.count += 1;
        if self.named.len() < MOST_NAMED {
            self.named.push(Unread { path: path.into(), line, why: why.into() });
        }
    }

    pub(crate) fn append(&mut self, other: Self) {
        self.count += other.count;
        let room = MOST_NAMED.saturating_sub(self.named.len());
        self.named.extend(other.named.into_iter().take(room));
    }
}

/// Where the lines of one batch are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) key: Uuid,
    /// How many records it has, as its first line says.
    pub(crate) count: u64,
    first: Place,
    last: Place,
}

/// The records of one batch that are there.
#[derive(Debug)]
pub(crate) struct Collected<T> {
    pub(crate) records: Vec<T>,
    pub(crate) unread: UnreadLines,
}

/// What a line is.
enum Read<'a> {
    Record(Box<Line<'a>>),
    Other,
    /// Of a file with this buffer's records, or of another one's.
    Header {
        is_ours: bool,
    },
    Footer(u64),
    /// None of ours.
    Foreign,
    Unread(&'static str),
}

impl Sources {
    /// Finds the batches. Each record is read as its own type, so that what is damaged is known before anything is written.
    pub(crate) fn scan<T: DeserializeOwned>(&self, wanted: &Wanted) -> io::Result<Scan> {
        let mut scan = Scan::default();
        let mut spans = HashMap::new();
        for (file, source) in self.files.iter().enumerate() {
            self.scan_file::<T>(file, source, wanted, &mut scan, &mut spans)?;
        }
        Ok(scan)
    }

    fn scan_file<T: DeserializeOwned>(
        &self,
        file: usize,
        source: &Source,
        wanted: &Wanted,
        scan: &mut Scan,
        spans: &mut HashMap<Uuid, usize>,
    ) -> io::Result<()> {
        let mut lines = self.lines(Place { file, offset: 0, line: 1 })?;
        let (mut found, mut promised, mut last_line, mut is_ours) = (0_u64, None, 0, false);
        let before = scan.unread.count;
        while let Some(text) = lines.next()? {
            last_line = text.place.line;
            let read = read(&text, self.is_log, wanted);
            found += u64::from(!matches!(read, Read::Header { .. } | Read::Footer(_)));
            is_ours |= matches!(read, Read::Record(_) | Read::Other);
            match read {
                Read::Record(line) => {
                    if line.decode::<T>().is_err() {
                        let why = "its record is not of the type that is replayed";
                        scan.unread.add(&source.path, Some(text.place.line), why);
                        continue;
                    }
                    let (key, count) = (line.batch, line.count);
                    let index = *spans.entry(key).or_insert_with(|| {
                        scan.batches.push(Span { key, count, first: text.place, last: text.place });
                        scan.batches.len() - 1
                    });
                    scan.batches[index].last = text.place;
                    if scan.batches[index].count == count {
                        scan.records += 1;
                    } else {
                        let why = "it says of its batch that it is larger or smaller than another line does";
                        scan.unread.add(&source.path, Some(text.place.line), why);
                    }
                }
                Read::Other => scan.others += 1,
                Read::Footer(records) => promised = Some(records),
                Read::Header { is_ours } => scan.is_ours = is_ours,
                Read::Foreign => {}
                Read::Unread(why) => scan.unread.add(&source.path, Some(text.place.line), why),
            }
        }
        if self.is_log {
            if !is_ours && scan.unread.count == before {
                scan.unread.add(&source.path, None, "no spilled record was recognised in it");
            }
            return Ok(());
        }
        match promised {
            None => scan.unread.add(&source.path, Some(last_line), "the file ends before its end: lines are missing"),
            Some(promised) if found < promised => {
                scan.unread.add(&source.path, None, "lines are missing: it has less records than it says");
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// The records of one batch, all that are there, in their order.
    pub(crate) fn collect<T: DeserializeOwned>(&self, span: &Span, wanted: &Wanted) -> io::Result<Collected<T>> {
        let mut records: BTreeMap<u64, (T, u64)> = BTreeMap::new();
        let mut unread = UnreadLines::default();
        for file in span.first.file..=span.last.file {
            let at = if file == span.first.file { span.first } else { Place { file, offset: 0, line: 1 } };
            let mut lines = self.lines(at)?;
            while let Some(text) = lines.next()? {
                let is_behind = file == span.last.file && text.place.offset > span.last.offset;
                if !is_behind
                    && let Read::Record(line) = read(&text, self.is_log, wanted)
                    && line.batch == span.key
                    && line.count == span.count
                    && let Ok(record) = line.decode()
                {
                    let mut hasher = DefaultHasher::new();
                    line.text().hash(&mut hasher);
                    let same = hasher.finish();
                    match records.get(&line.index) {
                        // The same line again: a log may be there twice.
                        Some((_, other)) if *other == same => {}
                        Some(_) => {
                            let path = &self.files[file].path;
                            unread.add(path, Some(text.place.line), "another record has its place in the batch");
                        }
                        None => drop(records.insert(line.index, (record, same))),
                    }
                }
                // Lines in pieces are given when they end, so the last one may come behind others.
                if file == span.last.file && lines.position() > span.last.offset && lines.is_between() {
                    break;
                }
            }
        }
        Ok(Collected { records: records.into_values().map(|(record, _)| record).collect(), unread })
    }

    fn lines(&self, at: Place) -> io::Result<Lines<BufReader<File>>> {
        let source = &self.files[at.file];
        let mut file = match &source.file {
            Some(file) => file.try_clone()?,
            None => File::open(&source.path)?,
        };
        file.seek(SeekFrom::Start(at.offset))?;
        Ok(Lines::new(BufReader::with_capacity(1 << 16, file), at, self.is_log))
    }
}

/// What this line is, for this replay.
fn read<'a>(text: &'a Text, is_log: bool, wanted: &Wanted) -> Read<'a> {
    let Some(mark) = memmem::find(&text.bytes, MARK) else {
        return match (is_log, bracket(&text.bytes, wanted)) {
            (_, Some(read)) => read,
            (true, None) => Read::Foreign,
            (false, None) => Read::Unread("it is no line of a spill"),
        };
    };
    let object = if is_log { object(&text.bytes) } else { Some(&*text.bytes) };
    // Not as far as the mark: an application's own line, with an object of its own, may quote ours.
    let Some(object) = object.filter(|object| text.bytes.len() - object.len() <= mark) else {
        return Read::Unread("what stands before the record is no prefix that is known");
    };
    let Ok(line) = serde_json::from_slice::<Line<'_>>(object) else {
        return Read::Unread(if text.is_cut { "it is cut off" } else { "it is damaged" });
    };
    let Line { r#type, buffer, record_type, index, count, .. } = &line;
    if r#type != RECORD {
        return Read::Unread("it quotes a record, but is none");
    }
    if *buffer != wanted.buffer {
        return Read::Other;
    }
    if wanted.key.as_ref().is_some_and(|key| !line.is_authentic(key)) {
        return Read::Unread("it is not signed with the key of this replay");
    }
    if wanted.record_type.as_ref().is_some_and(|wanted| record_type != wanted) {
        return Read::Unread("its record is of another type than this replay is for: see `Replay::record_type`");
    }
    if index >= count {
        return Read::Unread("its place is outside of its batch");
    }
    Read::Record(Box::new(line))
}

/// The first or the last line of a spill file.
fn bracket<'a>(line: &[u8], wanted: &Wanted) -> Option<Read<'a>> {
    if !line.starts_with(b"{\"type\":\"winddown.") {
        return None;
    }
    if let Ok(Header { r#type, buffer, .. }) = serde_json::from_slice::<Header<'_>>(line)
        && r#type == HEADER
    {
        return Some(Read::Header { is_ours: buffer == wanted.buffer });
    }
    let Footer { r#type, records } = serde_json::from_slice(line).ok()?;
    (r#type == FOOTER).then_some(Read::Footer(records))
}
