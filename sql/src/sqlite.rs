//! SQLite: by its result codes.

use crate::Verdict;

const ERROR: i32 = 1;
const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const NOMEM: i32 = 7;
const INTERRUPT: i32 = 9;
const IOERR: i32 = 10;
const FULL: i32 = 13;
const CANTOPEN: i32 = 14;
const PROTOCOL: i32 = 15;
const SCHEMA: i32 = 17;
const TOOBIG: i32 = 18;
const CONSTRAINT: i32 = 19;
const MISMATCH: i32 = 20;
const READONLY_RECOVERY: i32 = 8 | 1 << 8;
const ERROR_RETRY: i32 = 1 | 2 << 8;
const ABORT_ROLLBACK: i32 = 4 | 2 << 8;
const READONLY_CANTLOCK: i32 = 8 | 2 << 8;
const ERROR_SNAPSHOT: i32 = 1 | 3 << 8;
const READONLY_DBMOVED: i32 = 8 | 4 << 8;
const READONLY_CANTINIT: i32 = 8 | 5 << 8;
const IOERR_NOMEM: i32 = 10 | 12 << 8;
const IOERR_CORRUPTFS: i32 = 10 | 33 << 8;

/// What is to be thought of the error that has this extended result code.
///
/// By the primary result codes, which are the lowest 8 bits; extended ones that are unlike theirs come before it.
/// <https://www.sqlite.org/rescode.html>
pub fn verdict(extended: i32) -> Verdict {
    use Verdict::*;
    match extended {
        // The file is another one by now, or its file system is damaged.
        READONLY_DBMOVED | IOERR_CORRUPTFS => return Fails,
        IOERR_NOMEM => return MuchWork,
        // Until somebody else has recovered the log, or made room for its index; rolled back under the statement; statements that
        // are to be compiled again.
        READONLY_RECOVERY | READONLY_CANTLOCK | READONLY_CANTINIT | ABORT_ROLLBACK | ERROR_RETRY | ERROR_SNAPSHOT => {
            return Passes;
        }
        _ => {}
    }
    match extended & 0xff {
        // Locked; full; interrupted; the disk fails, or no more files can be opened; others change the schema or the log.
        BUSY | LOCKED | FULL | INTERRUPT | IOERR | CANTOPEN | PROTOCOL | SCHEMA => Passes,
        NOMEM => MuchWork,
        // A trigger that raises an error counts as a constraint. What has no code of its own is said by a function that a
        // constraint or a trigger calls, of malformed JSON say.
        CONSTRAINT | MISMATCH | TOOBIG | ERROR => OfRecord,
        _ => Fails,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Verdict::*;

    #[test]
    fn every_result_code_has_its_verdict() {
        // All primary codes of SQLite 3.53, by number.
        let primary = [
            (1, OfRecord),
            (2, Fails),
            (3, Fails),
            (4, Fails),
            (5, Passes),
            (6, Passes),
            (7, MuchWork),
            (8, Fails),
            (9, Passes),
            (10, Passes),
            (11, Fails),
            (12, Fails),
            (13, Passes),
            (14, Passes),
            (15, Passes),
            (16, Fails),
            (17, Passes),
            (18, OfRecord),
            (19, OfRecord),
            (20, OfRecord),
            (21, Fails),
            (22, Fails),
            (23, Fails),
            (24, Fails),
            (25, Fails),
            (26, Fails),
        ];
        let unlike = [
            (1 | 2 << 8, Passes),
            (1 | 3 << 8, Passes),
            (4 | 2 << 8, Passes),
            (8 | 1 << 8, Passes),
            (8 | 2 << 8, Passes),
            (8 | 4 << 8, Fails),
            (8 | 5 << 8, Passes),
            (10 | 12 << 8, MuchWork),
            (10 | 33 << 8, Fails),
        ];
        for (code, primary_verdict) in primary {
            assert_eq!(verdict(code), primary_verdict, "{code}");
            for extended in (0..64).map(|more| code | more << 8) {
                let expected =
                    unlike.iter().find(|(unlike, _)| *unlike == extended).map_or(primary_verdict, |(_, is)| *is);
                assert_eq!(verdict(extended), expected, "{extended}");
            }
        }
    }
}
