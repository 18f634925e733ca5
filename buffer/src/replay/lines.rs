//! Lines of a file, with what a container runtime or a log's tool puts round them taken off.

use std::{
    borrow::Cow,
    collections::HashMap,
    io::{self, BufRead},
};

use serde::Deserialize;

/// A longer line is none of ours; what it has beyond that is passed over, so that a file without ends of lines needs no memory.
const LONGEST: usize = 64 << 20;

/// Where a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Which of the files.
    pub(crate) file: usize,
    /// Of its first byte.
    pub(crate) offset: u64,
    /// From 1 on.
    pub(crate) line: u64,
}

/// Reads the lines of one file, one after the other.
pub(crate) struct Lines<R> {
    from: R,
    next: Place,
    in_log: bool,
    /// What has come so far of lines that a container runtime has divided, by their stream.
    pieces: HashMap<String, (Place, Vec<u8>)>,
    raw: Vec<u8>,
}

/// One line, and whether it is whole.
pub(crate) struct Text {
    pub(crate) place: Place,
    pub(crate) bytes: Vec<u8>,
    /// Without an end, or longer than any of ours.
    pub(crate) is_cut: bool,
}

impl<R: BufRead> Lines<R> {
    /// From this place on. In a log there may be prefixes, and lines in pieces.
    pub(crate) fn new(from: R, at: Place, in_log: bool) -> Self {
        Self { from, next: at, in_log, pieces: HashMap::new(), raw: Vec::new() }
    }

    /// The next line; none at the end.
    pub(crate) fn next(&mut self) -> io::Result<Option<Text>> {
        loop {
            let place = self.next;
            let Some(is_cut) = self.read()? else {
                // What was never ended.
                let rest = self.pieces.keys().next().cloned().and_then(|stream| self.pieces.remove(&stream));
                return Ok(rest.map(|(place, bytes)| Text { place, bytes, is_cut: true }));
            };
            if !self.in_log {
                return Ok(Some(Text { place, bytes: std::mem::take(&mut self.raw), is_cut }));
            }
            let Some(wrapped) = wrapped(&self.raw) else {
                let bytes = without_inner_times(&self.raw).unwrap_or_else(|| std::mem::take(&mut self.raw));
                return Ok(Some(Text { place, bytes, is_cut }));
            };
            let Wrapped { stream, text, is_piece } = wrapped;
            if !self.pieces.contains_key(&*stream) {
                if !is_piece {
                    let bytes = text.into_owned();
                    return Ok(Some(Text { place, bytes, is_cut }));
                }
                self.pieces.insert(stream.into_owned(), (place, text.into_owned()));
                continue;
            }
            let stream = stream.into_owned();
            let (first, mut bytes) = self.pieces.remove(&stream).unwrap_or((place, Vec::new()));
            bytes.extend_from_slice(&text);
            if is_piece && bytes.len() < LONGEST {
                self.pieces.insert(stream, (first, bytes));
                continue;
            }
            return Ok(Some(Text { place: first, bytes, is_cut: is_cut || is_piece }));
        }
    }

    /// Of what is read next, in bytes from the start of the file.
    pub(crate) fn position(&self) -> u64 {
        self.next.offset
    }

    /// Whether nothing has come of a line that is not whole.
    pub(crate) fn is_between(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Reads a line into `raw`, without its end. Whether it is cut; none at the end of the file.
    fn read(&mut self) -> io::Result<Option<bool>> {
        self.raw.clear();
        let (mut read, mut is_ended) = (0_u64, false);
        while !is_ended {
            let chunk = match self.from.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                chunk => chunk?,
            };
            if chunk.is_empty() {
                break;
            }
            let end = chunk.iter().position(|byte| *byte == b'\n');
            is_ended = end.is_some();
            let used = end.map_or(chunk.len(), |end| end + 1);
            let room = LONGEST.saturating_sub(self.raw.len());
            self.raw.extend_from_slice(&chunk[..end.unwrap_or(used).min(room)]);
            read += used as u64;
            self.from.consume(used);
        }
        self.next.offset += read;
        self.next.line += 1;
        let is_long = read > LONGEST as u64;
        Ok((read > 0).then_some(!is_ended || is_long))
    }
}

/// A line of a container runtime's log file.
struct Wrapped<'a> {
    stream: Cow<'a, str>,
    text: Cow<'a, [u8]>,
    /// The line goes on in the next one of its stream.
    is_piece: bool,
}

fn wrapped(line: &[u8]) -> Option<Wrapped<'_>> {
    docker(line).or_else(|| cri(line))
}

/// Docker's `json-file`: an object for each 16 KiB at most; what has no end of a line goes on in the next one.
/// <https://docs.docker.com/engine/logging/drivers/json-file/>
fn docker(line: &[u8]) -> Option<Wrapped<'_>> {
    #[derive(Deserialize)]
    struct Entry<'a> {
        #[serde(borrow)]
        log: Cow<'a, str>,
        #[serde(borrow)]
        stream: Cow<'a, str>,
        #[serde(rename = "time")]
        _time: serde::de::IgnoredAny,
    }
    if !line.starts_with(b"{\"log\":") {
        return None;
    }
    let Entry { log, stream, .. } = serde_json::from_slice(line).ok()?;
    let is_piece = !log.ends_with('\n');
    let text = match log {
        Cow::Borrowed(text) => Cow::Borrowed(text.trim_end_matches('\n').as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.trim_end_matches('\n').as_bytes().to_vec()),
    };
    Some(Wrapped { stream, text, is_piece })
}

/// The log format of Kubernetes' container runtimes: time, stream, and `P` where the line goes on in the next one of its
/// stream, else `F`. Kubernetes design proposals, "CRI: Log management for container stdout/stderr streams".
fn cri(line: &[u8]) -> Option<Wrapped<'_>> {
    let rest = after_time(line)?;
    let stream = ["stdout", "stderr"].into_iter().find(|stream| rest.starts_with(stream.as_bytes()))?;
    let rest = rest[stream.len()..].strip_prefix(b" ")?;
    // Tags are separated by colons; the first says whether it is a piece.
    let end = rest.iter().position(|byte| *byte == b' ')?;
    let is_piece = match rest[..end].split(|byte| *byte == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some(Wrapped { stream: stream.into(), text: Cow::Borrowed(&rest[end + 1..]), is_piece })
}

/// What `docker logs --timestamps` makes of a line that Docker has divided is one line again, with a time before each piece; none
/// if it is another line.
fn without_inner_times(line: &[u8]) -> Option<Vec<u8>> {
    /// <https://github.com/moby/moby/blob/master/daemon/logger/copier.go>: `defaultBufSize`.
    const PIECE: usize = 16 << 10;
    let mut rest = after_time(line)?;
    let mut whole = Vec::new();
    while rest.len() > PIECE {
        let (piece, behind) = rest.split_at(PIECE);
        whole.extend_from_slice(piece);
        rest = after_time(behind)?;
    }
    whole.extend_from_slice(rest);
    Some(whole)
}

/// The object that a line of a log is, behind the prefixes that tools put before it. None if it begins otherwise.
///
/// Known are a time in RFC 3339 (`kubectl logs --timestamps`, `docker logs --timestamps`, an export of CloudWatch), with the
/// name of a log stream behind it (`aws logs tail`); a container's or pod's name (`docker compose logs`, `kubectl logs --prefix`);
/// and journald's time, host and unit. Nothing else is passed over: what stands behind an application's own text may have been
/// put there by its users.
pub(crate) fn object(mut line: &[u8]) -> Option<&[u8]> {
    // In any order; more of them than this no tool writes.
    for _ in 0..=5 {
        if line.starts_with(b"{") {
            return Some(line);
        }
        line = after_journal(line)
            .or_else(|| after_time(line).map(|rest| after_stream(rest).unwrap_or(rest)))
            .or_else(|| after_container(line))?;
    }
    None
}

/// What comes behind a time in RFC 3339 and a space.
fn after_time(line: &[u8]) -> Option<&[u8]> {
    let (time, rest) = token(line)?;
    let is_time = (20..=40).contains(&time.len())
        && time[..10]
            .iter()
            .enumerate()
            .all(|(at, byte)| if at == 4 || at == 7 { *byte == b'-' } else { byte.is_ascii_digit() })
        && time[10] == b'T'
        && time[11..].iter().all(|byte| byte.is_ascii_digit() || b":.,+-Z".contains(byte));
    is_time.then_some(rest)
}

/// What comes behind the name of a log stream, as `2026/01/31/[$LATEST]0123456789abcdef`, and a space.
fn after_stream(line: &[u8]) -> Option<&[u8]> {
    let (name, rest) = token(line)?;
    let is_name = name.contains(&b'/') && !name.iter().any(|byte| b"{}\"".contains(byte));
    (is_name && rest.starts_with(b"{")).then_some(rest)
}

/// What comes behind `name  | ` or `[pod/name/container] `.
fn after_container(line: &[u8]) -> Option<&[u8]> {
    if let Some(inside) = line.strip_prefix(b"[pod/") {
        let end = inside.iter().position(|byte| *byte == b']')?;
        return inside[end + 1..].strip_prefix(b" ");
    }
    let bar = line.iter().position(|byte| *byte == b'|')?;
    let name = line[..bar].trim_ascii_end();
    let is_name = !name.is_empty() && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte));
    line[bar + 1..].strip_prefix(b" ").filter(|_| is_name)
}

/// What comes behind `Jan 31 23:59:59 host unit[1234]: `.
fn after_journal(line: &[u8]) -> Option<&[u8]> {
    let text = line.get(..16)?;
    let digits = |range: std::ops::Range<usize>| text[range].iter().all(|byte| byte.is_ascii_digit() || *byte == b' ');
    let is_time = text[..3].iter().all(u8::is_ascii_alphabetic)
        && text[3] == b' '
        && digits(4..6)
        && text[6] == b' '
        && digits(7..9)
        && text[9] == b':'
        && digits(10..12)
        && text[12] == b':'
        && digits(13..15)
        && text[15] == b' ';
    let (_, unit) = token(line.get(16..)?).filter(|_| is_time)?;
    let (unit, rest) = token(unit)?;
    unit.ends_with(b"]:").then_some(rest)
}

/// The first word, and what comes behind the space.
fn token(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = line.iter().take(512).position(|byte| *byte == b' ')?;
    Some((&line[..end], &line[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(u64, String, bool)> {
        let mut lines = Lines::new(text.as_bytes(), Place { file: 0, offset: 0, line: 1 }, true);
        let mut all = Vec::new();
        while let Some(Text { place, bytes, is_cut }) = lines.next().unwrap() {
            all.push((place.line, String::from_utf8(bytes).unwrap(), is_cut));
        }
        all
    }

    #[test]
    fn what_tools_put_before_a_line_is_taken_off() {
        for prefix in [
            "",
            "2026-01-31T23:59:59.123456789Z ",
            "2026-01-31T23:59:59.123+01:00 2026/01/31/[$LATEST]0123456789abcdef ",
            "web-1  | ",
            "web-1  | 2026-01-31T23:59:59Z ",
            "[pod/web-5d/app] ",
            "[pod/web-5d/app] 2026-01-31T23:59:59Z ",
            "Jan 31 23:59:59 host web[1234]: ",
        ] {
            assert_eq!(object(format!("{prefix}{{\"a\":1}}").as_bytes()), Some(&b"{\"a\":1}"[..]), "{prefix}");
        }
        for prefix in ["user wrote: ", "2026-01-31T23:59:59Z user wrote: ", "INFO ", "x y | ", "\"", "2026-01-31T "] {
            assert_eq!(object(format!("{prefix}{{\"a\":1}}").as_bytes()), None, "{prefix}");
        }
    }

    #[test]
    fn lines_that_a_container_runtime_divided_are_put_together() {
        let docker = concat!(
            "{\"log\":\"one\",\"stream\":\"stderr\",\"time\":\"t\"}\n",
            "{\"log\":\"other\\n\",\"stream\":\"stdout\",\"time\":\"t\"}\n",
            "{\"log\":\" \\\"and\\\" two\\n\",\"stream\":\"stderr\",\"time\":\"t\"}\n",
            "{\"log\":\"cut\",\"stream\":\"stderr\",\"time\":\"t\"}\n",
        );
        let expected = [(2, "other".into(), false), (1, "one \"and\" two".into(), false), (4, "cut".into(), true)];
        assert_eq!(read(docker), expected);
        let cri = concat!(
            "2026-01-31T23:59:59.123456789Z stderr P one\n",
            "2026-01-31T23:59:59.123456789Z stdout F other\n",
            "2026-01-31T23:59:59.123456789Z stderr F  two\n",
        );
        assert_eq!(read(cri), [(2, "other".into(), false), (1, "one two".into(), false)]);
    }

    #[test]
    fn times_in_the_middle_of_a_line_are_taken_out_where_docker_puts_them() {
        let (time, piece) = ("2026-01-31T23:59:59.123456789Z ", "x".repeat(16 << 10));
        let divided = format!("{time}{piece}{time}{piece}{time}end\n");
        assert_eq!(read(&divided), [(1, format!("{piece}{piece}end"), false)]);
        let other = format!("{time}{piece}y{time}end");
        assert_eq!(read(&other), [(1, other.clone(), true)]);
    }

    #[test]
    fn a_line_without_an_end_is_cut() {
        assert_eq!(read("a\n\nb"), [(1, "a".into(), false), (2, String::new(), false), (3, "b".into(), true)]);
        assert_eq!(read(""), []);
    }
}
