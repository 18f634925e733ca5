//! PostgreSQL: by its SQLSTATEs.

use crate::Verdict;

/// What is to be thought of the error that has this SQLSTATE and this message, which comes from there in the server.
pub fn verdict(code: &str, message: &str, routine: Option<&str>) -> Verdict {
    let verdict = of_code(code, message);
    match routine.unwrap_or_default() {
        // Only where its words come from tells a row that a policy refuses from a table that the user may not write to.
        "ExecWithCheckOptions" => Verdict::OfRecord,
        // A trigger says it of the row, and may do so with any code.
        "exec_stmt_raise" if verdict == Verdict::Fails => Verdict::OfRecord,
        _ => verdict,
    }
}

/// By the classes of the documentation's "PostgreSQL Error Codes", which are a code's first two characters; codes that are
/// unlike their class come before it. <https://www.postgresql.org/docs/current/errcodes-appendix.html>
fn of_code(code: &str, message: &str) -> Verdict {
    use Verdict::*;
    let class = code.get(..2).unwrap_or_default();
    match (class, code) {
        // Cancelled by somebody, or because `statement_timeout` was over: that is the same code, from the same place, and only
        // the words tell which. Where they are in another language it may be either; then dividing the batch does no harm,
        // and keeping its size could mean that it is never written.
        ("57", "57014") if message.ends_with("due to user request") => Passes,
        // `statement_timeout`, `transaction_timeout`; out of memory, which is also said of the table of locks; a limit that is
        // configured, as `temp_file_limit`.
        ("57", "57014") | ("25", "25P04") | ("53", "53200" | "53400") | ("HV", "HV001") => MuchWork,
        // What has no code of its own: larger than an allocation may be, or a row of a catalogue that somebody changes. A
        // record that always causes it must not hold up the others.
        ("XX", "XX000") => MuchWork,

        // The database is gone.
        ("57", "57P04") => Fails,
        // The server has another thing in mind than the driver: a pooler gave it another session, or somebody deallocated all.
        ("26", _) | ("42", "42P05") => Passes,
        // Read-only, as after a failover; a time-out between two statements; what an earlier caller left on the session.
        ("25", "25006" | "25P02" | "25P03") => Passes,
        // In use; locked, or waited for a lock for longer than `lock_timeout`.
        ("55", "55006" | "55P03") => Passes,
        // The other server cannot be reached.
        ("HV", "HV00N") => Passes,
        // A connection exception, which is also what poolers say of themselves; rolled back for a deadlock or to keep
        // transactions apart; out of something; cancelled or shutting down; trouble of the system; too old a snapshot.
        ("08" | "40" | "53" | "57" | "58" | "72", _) => Passes,

        // A sequence is at its end: so it is for every record.
        ("22", "2200H") => Fails,
        // More columns or arguments than there can be: so it is for every batch.
        ("54", "54011" | "54023") => Fails,
        // A trigger; a branch of it that there is none for; a row twice for `DO UPDATE`; data; constraints; a row that a trigger
        // has changed already; a function's own errors; a view's `CHECK OPTION`; too large for a row or an index; what PL/pgSQL
        // raises.
        ("09" | "20" | "21" | "22" | "23" | "27" | "2F" | "38" | "44" | "54" | "P0", _) => OfRecord,

        // Statements and what they name; permission; what the server cannot do, or not in this state; a damaged database.
        (
            "00" | "01" | "02" | "03" | "0A" | "0B" | "0F" | "0L" | "0P" | "0Z" | "24" | "25" | "28" | "2B" | "2D"
            | "34" | "39" | "3B" | "3D" | "3F" | "42" | "55" | "F0" | "HV" | "XX",
            _,
        ) => Fails,
        // None of the server's: a trigger has made it up.
        _ => OfRecord,
    }
}

#[cfg(test)]
mod tests {
    use tokio_postgres::error::SqlState;

    use super::*;
    use crate::Verdict::*;

    /// Every code that the driver knows of, and `25P04`, which is newer than it.
    const PASS: &str = "08000 08001 08003 08004 08006 08007 08P01 25006 25P02 25P03 26000 40000 40001 40002 40003 40P01 42P05 \
                        53000 53100 53300 55006 55P03 57000 57P01 57P02 57P03 57P05 58000 58030 58P01 58P02 72000 HV00N";
    const TOO_LARGE: &str = "25P04 53200 53400 57014 HV001 XX000";
    const REJECTED: &str = "09000 20000 21000 22000 22001 22002 22003 22004 22005 22007 22008 22009 2200B 2200C 2200D 2200F \
        2200G 2200L 2200M 2200N 2200S 2200T 22010 22011 22012 22013 22014 22015 22016 22018 22019 2201B 2201E 2201F 2201G 2201W \
        2201X 22021 22022 22023 22024 22025 22026 22027 2202E 2202G 2202H 22030 22031 22032 22033 22034 22035 22036 22037 22038 \
        22039 2203A 2203B 2203C 2203D 2203E 2203F 2203G 22P01 22P02 22P03 22P04 22P05 22P06 23000 23001 23502 23503 23505 23514 \
        23P01 27000 2F000 2F002 2F003 2F004 2F005 38000 38001 38002 38003 38004 44000 54000 54001 P0000 P0001 P0002 P0003 P0004";
    const FAILED: &str = "00000 01000 01003 01004 01006 01007 01008 0100C 01P01 02000 02001 03000 0A000 0B000 0F000 0F001 0L000 \
        0LP01 0P000 0Z000 0Z002 2200H 24000 25000 25001 25002 25003 25004 25005 25007 25008 25P01 28000 28P01 2B000 2BP01 2D000 \
        34000 39000 39001 39004 39P01 39P02 39P03 3B000 3B001 3D000 3F000 42000 42501 42601 42602 42611 42622 42701 42702 42703 \
        42704 42710 42712 42723 42725 42803 42804 42809 42830 42846 42883 428C9 42939 42P01 42P02 42P03 42P04 42P06 42P07 42P08 \
        42P09 42P10 42P11 42P12 42P13 42P14 42P15 42P16 42P17 42P18 42P19 42P20 42P21 42P22 54011 54023 55000 55P02 55P04 57P04 \
        F0000 F0001 HV000 HV002 HV004 HV005 HV006 HV007 HV008 HV009 HV00A HV00B HV00C HV00D HV00J HV00K HV00L HV00M HV00P HV00Q \
        HV00R HV010 HV014 HV021 HV024 HV090 HV091 XX001 XX002";

    #[test]
    fn every_code_of_the_server_has_its_verdict() {
        let mut count = 0;
        for (codes, verdict) in [(PASS, Passes), (TOO_LARGE, MuchWork), (REJECTED, OfRecord), (FAILED, Fails)] {
            for code in codes.split_whitespace() {
                assert_eq!(of_code(code, "in any language"), verdict, "{code}");
                let is_known = !format!("{:?}", SqlState::from_code(code)).contains("Other");
                assert_eq!(is_known, code != "25P04", "{code}");
                count += 1;
            }
        }
        assert_eq!(count, KNOWN_TO_THE_DRIVER + 1);
    }

    /// Of tokio-postgres 0.7.18, `error/sqlstate.rs`.
    const KNOWN_TO_THE_DRIVER: usize = 260;

    #[test]
    fn codes_of_classes_that_may_come_go_by_their_class() {
        for (code, verdict) in [
            ("08ZZZ", Passes),
            ("40P99", Passes),
            ("53999", Passes),
            ("57P99", Passes),
            ("58P99", Passes),
            ("22P99", OfRecord),
            ("23P99", OfRecord),
            ("42P99", Fails),
            ("28P99", Fails),
            // Made up by a trigger.
            ("45000", OfRecord),
            ("U0001", OfRecord),
            ("", OfRecord),
        ] {
            assert_eq!(of_code(code, ""), verdict, "{code}");
        }
    }

    #[test]
    fn a_cancel_that_somebody_asked_for_is_no_limit() {
        assert_eq!(of_code("57014", "canceling statement due to user request"), Passes);
        assert_eq!(of_code("57014", "canceling statement due to statement timeout"), MuchWork);
        assert_eq!(of_code("57014", "storniere Anfrage wegen Zeitüberschreitung der Anfrage"), MuchWork);
    }
}
