//! What becomes of a batch that SQLite did not take.

use deadpool_sqlite::rusqlite::{self, ErrorCode, ffi};
use winddown_buffer::WriteError;
use winddown_core::{Error, ErrorKind};

use super::failed;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// The same batch may be taken later.
    Passes,
    /// A smaller one may be.
    TooLarge,
    /// At least one of the records never will be.
    Rejected,
    /// It is no record's fault, and does not pass.
    Failed,
}

/// By the primary result codes, which are the lowest 8 bits; extended ones that are unlike theirs come before it.
/// <https://www.sqlite.org/rescode.html>
fn verdict_of_code(extended: i32) -> Verdict {
    use Verdict::*;
    match extended {
        // The file is another one by now, or its file system is damaged.
        ffi::SQLITE_READONLY_DBMOVED | ffi::SQLITE_IOERR_CORRUPTFS => return Failed,
        ffi::SQLITE_IOERR_NOMEM => return TooLarge,
        // Until somebody else has recovered the log, or made room for its index; rolled back under the statement; statements that
        // are to be compiled again.
        ffi::SQLITE_READONLY_RECOVERY
        | ffi::SQLITE_READONLY_CANTLOCK
        | ffi::SQLITE_READONLY_CANTINIT
        | ffi::SQLITE_ABORT_ROLLBACK
        | ffi::SQLITE_ERROR_RETRY
        | ffi::SQLITE_ERROR_SNAPSHOT => return Passes,
        _ => {}
    }
    match extended & 0xff {
        // Locked; full; interrupted; the disk fails, or no more files can be opened; others change the schema or the log.
        ffi::SQLITE_BUSY
        | ffi::SQLITE_LOCKED
        | ffi::SQLITE_FULL
        | ffi::SQLITE_INTERRUPT
        | ffi::SQLITE_IOERR
        | ffi::SQLITE_CANTOPEN
        | ffi::SQLITE_PROTOCOL
        | ffi::SQLITE_SCHEMA => Passes,
        ffi::SQLITE_NOMEM => TooLarge,
        // A trigger that raises an error counts as a constraint. What has no code of its own is said by a function that a
        // constraint or a trigger calls, of malformed JSON say.
        ffi::SQLITE_CONSTRAINT | ffi::SQLITE_MISMATCH | ffi::SQLITE_TOOBIG | ffi::SQLITE_ERROR => Rejected,
        _ => Failed,
    }
}

fn verdict(error: &rusqlite::Error) -> Verdict {
    match error {
        rusqlite::Error::ToSqlConversionFailure(_) => Verdict::Rejected,
        error => error.sqlite_error().map_or(Verdict::Failed, |error| verdict_of_code(error.extended_code)),
    }
}

/// Of an error before the commit, of a statement with a record in it.
pub(super) fn unwritten(error: rusqlite::Error) -> WriteError {
    match verdict(&error) {
        Verdict::Passes => WriteError::Retry(failed(error)),
        Verdict::TooLarge => WriteError::TooLarge(failed(error)),
        Verdict::Rejected => WriteError::Rejected(failed(error)),
        Verdict::Failed => WriteError::Failed(failed(error)),
    }
}

/// The same of a statement that had no record in it.
pub(super) fn without_records(error: rusqlite::Error) -> WriteError {
    match unwritten(error) {
        WriteError::Rejected(error) => WriteError::Failed(error),
        // A smaller batch would not make it any smaller.
        WriteError::TooLarge(error) => WriteError::Retry(error),
        other => other,
    }
}

/// Of an error of the commit.
pub(super) fn uncommitted(error: rusqlite::Error) -> WriteError {
    if error.sqlite_error_code() == Some(ErrorCode::SystemIoFailure) {
        // What is in the log may count as committed by whoever reads it next.
        let text = "the disk failed during the commit: whether the batch was written is not known";
        return WriteError::Unknown(Error::new(ErrorKind::Write, text).with_source(error));
    }
    unwritten(error)
}

#[cfg(test)]
mod tests {
    use super::{Verdict::*, *};

    #[test]
    fn every_result_code_has_its_verdict() {
        // All primary codes of SQLite 3.53, by number.
        let primary = [
            (1, Rejected),
            (2, Failed),
            (3, Failed),
            (4, Failed),
            (5, Passes),
            (6, Passes),
            (7, TooLarge),
            (8, Failed),
            (9, Passes),
            (10, Passes),
            (11, Failed),
            (12, Failed),
            (13, Passes),
            (14, Passes),
            (15, Passes),
            (16, Failed),
            (17, Passes),
            (18, Rejected),
            (19, Rejected),
            (20, Rejected),
            (21, Failed),
            (22, Failed),
            (23, Failed),
            (24, Failed),
            (25, Failed),
            (26, Failed),
        ];
        let unlike = [
            (1 | 2 << 8, Passes),
            (1 | 3 << 8, Passes),
            (4 | 2 << 8, Passes),
            (8 | 1 << 8, Passes),
            (8 | 2 << 8, Passes),
            (8 | 4 << 8, Failed),
            (8 | 5 << 8, Passes),
            (10 | 12 << 8, TooLarge),
            (10 | 33 << 8, Failed),
        ];
        for (code, verdict) in primary {
            assert_eq!(verdict_of_code(code), verdict, "{code}");
            for extended in (0..64).map(|more| code | more << 8) {
                let expected = unlike.iter().find(|(unlike, _)| *unlike == extended).map_or(verdict, |(_, is)| *is);
                assert_eq!(verdict_of_code(extended), expected, "{extended}");
            }
        }
    }
}
