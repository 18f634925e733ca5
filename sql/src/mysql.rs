//! MySQL and MariaDB: by the servers' own numbers and classes.
//!
//! An error has a number, which MySQL and MariaDB share below 1900, and an SQLSTATE, whose first two characters are its class:
//! "MySQL Error Message Reference", <https://dev.mysql.com/doc/mysql-errors/en/server-error-reference.html>, and "MariaDB
//! Error Codes". The class decides, but for the numbers here: most errors have the general class HY, and 42 is the statement's
//! fault as well as a limit that was reached. Names are the servers' own.

use crate::Verdict;

const NET_PACKET_TOO_LARGE: u16 = 1153;

/// For these the class says nothing, or something else.
const BY_NUMBER: &[(Verdict, &[u16])] = &[
    (
        Verdict::Passes,
        &[
            // The server has no room, or not now.
            1015, // CANT_LOCK
            1020, // CHECKREAD: another transaction was quicker, with MariaDB's innodb_snapshot_isolation
            1021, // DISK_FULL
            1024, // ERROR_ON_READ
            1026, // ERROR_ON_WRITE
            1030, // GET_ERRNO: of the storage engine
            1040, // CON_COUNT_ERROR
            1114, // RECORD_FILE_FULL
            1129, // HOST_IS_BLOCKED
            1135, // CANT_CREATE_THREAD
            1180, // ERROR_DURING_COMMIT
            1203, // TOO_MANY_USER_CONNECTIONS
            1226, // USER_LIMIT_REACHED
            1296, // GET_ERRMSG: of the storage engine
            1297, // GET_TEMPORARY_ERRMSG
            1461, // MAX_PREPARED_STMT_COUNT_REACHED
            1534, // BINLOG_ROW_LOGGING_FAILED
            1637, // TOO_MANY_CONCURRENT_TRXS
            1810, // IO_READ_ERROR
            1811, // IO_WRITE_ERROR
            1878, // TEMP_FILE_WRITE_FAILURE
            3019, // INNODB_UNDO_LOG_FULL
            3675, // DISK_FULL_NOWAIT
            3985, // MDL_OUT_OF_RESOURCES
            4139, // INDEX_FILE_FULL
            // Files: too many of them, no space.
            1004, // CANT_CREATE_FILE
            1016, // CANT_OPEN_FILE
            // Another has a lock, or changes the table.
            1205, // LOCK_WAIT_TIMEOUT
            1412, // TABLE_DEF_CHANGED
            1615, // NEED_REPREPARE
            1243, // UNKNOWN_STMT_HANDLER: a proxy has another server for us now
            1689, // LOCK_ABORTED
            3177, // LOCK_REFUSED_BY_ENGINE
            3572, // LOCK_NOWAIT
            // Another is the primary now.
            1036, // OPEN_AS_READONLY
            1207, // READ_ONLY_TRANSACTION
            1290, // OPTION_PREVENTS_STATEMENT
            1792, // CANT_EXECUTE_IN_READ_ONLY_TRANSACTION
            1836, // READ_ONLY_MODE
            1874, // INNODB_READ_ONLY
            1881, // INNODB_FORCED_RECOVERY
            3989, // SCHEMA_READ_ONLY
            // Of a group of servers, one that is not ready.
            3100, // RUN_HOOK_ERROR
            3781, // GR_HOLD_WAIT_TIMEOUT
            3782, // GR_HOLD_KILLED
            3783, // GR_HOLD_MEMBER_STATUS_ERROR
            3796, // GRP_TRX_CONSISTENCY_NOT_ALLOWED
            3797, // GRP_TRX_CONSISTENCY_BEFORE
            3798, // GRP_TRX_CONSISTENCY_AFTER_ON_TRX_BEGIN
            3799, // GRP_TRX_CONSISTENCY_BEGIN_NOT_ALLOWED
            // The statement, the session or the server is ended.
            1053, // SERVER_SHUTDOWN
            1317, // QUERY_INTERRUPTED
            1927, // CONNECTION_KILLED
            3032, // SERVER_OFFLINE_MODE
            3168, // SERVER_ISNT_AVAILABLE
            3169, // SESSION_WAS_KILLED
            4031, // CLIENT_INTERACTION_TIMEOUT
            6400, // SERVER_OFFLINE_MODE_REASON
        ],
    ),
    (
        Verdict::MuchWork,
        &[
            1037, // OUTOFMEMORY
            1038, // OUT_OF_SORTMEMORY
            1041, // OUT_OF_RESOURCES
            1206, // LOCK_TABLE_FULL
            1969, // STATEMENT_TIMEOUT
            3015, // ENGINE_OUT_OF_MEMORY
            3024, // QUERY_TIMEOUT
            3170, // CAPACITY_EXCEEDED
            3186, // CAPACITY_EXCEEDED_IN_PARSER
            4081, // DA_GLOBAL_CONN_LIMIT: memory of all connections
            4082, // DA_CONN_LIMIT: memory of this one
        ],
    ),
    (
        Verdict::TooLarge,
        &[
            NET_PACKET_TOO_LARGE,
            1197, // TRANS_CACHE_FULL
            1705, // STMT_CACHE_FULL
            3231, // WRITE_SET_EXCEEDS_LIMIT
        ],
    ),
    (
        Verdict::OfRecord,
        &[
            1118, // TOO_BIG_ROWSIZE
            1265, // WARN_DATA_TRUNCATED
            1300, // INVALID_CHARACTER_STRING
            1366, // TRUNCATED_WRONG_VALUE_FOR_FIELD
            1369, // VIEW_CHECK_FAILED
            1411, // WRONG_VALUE_FOR_TYPE
            1526, // NO_PARTITION_FOR_GIVEN_VALUE
            1713, // UNDO_RECORD_TOO_BIG
            1748, // ROW_DOES_NOT_MATCH_GIVEN_PARTITION_SET
            1977, // CANNOT_CONVERT_CHARACTER
            3643, // WRONG_SRID_FOR_COLUMN
            3819, // CHECK_CONSTRAINT_VIOLATED
            3854, // CANNOT_CONVERT_STRING
            3905, // EXCEEDED_MV_KEYS_NUM
            3906, // EXCEEDED_MV_KEYS_SPACE
            3908, // WRONG_MVI_VALUE
            3988, // IMPOSSIBLE_STRING_CONVERSION
            4203, // VEC_FORMAT: of MariaDB
            4204, // VEC_FORMAT_AT
            6136, // DATA_INCOMPATIBLE_WITH_VECTOR
            6137, // EXCEEDS_VECTOR_MAX_DIMENSIONS
            6138, // TO_VECTOR_CONVERSION
            // What a trigger raises, and what comes up in one.
            1172, // TOO_MANY_ROWS
            1242, // SUBQUERY_NO_1_ROW
            1339, // SP_CASE_NOT_FOUND
            1643, // SIGNAL_NOT_FOUND
            1644, // SIGNAL_EXCEPTION
            1648, // COND_ITEM_TOO_LONG: a message of more than 128 characters
        ],
    ),
    (
        Verdict::Fails,
        &[
            1043, // HANDSHAKE_ERROR
            1251, // NOT_SUPPORTED_AUTH_MODE
            1052, // NON_UNIQ: an ambiguous name
        ],
    ),
];

/// Whether it says that the server takes no writes: it is no primary any more, or never was. One that says so of a transaction
/// alone, which the application has begun as one that only reads, says nothing of itself.
pub fn is_read_only(number: u16, message: &str) -> bool {
    match number {
        // Of all options that prevent something: --read-only, --super-read-only, --innodb-read-only. Options are the same in
        // each language.
        1290 => message.contains("read-only") || message.contains("read_only"),
        1836 | 1874 | 3100 => true,
        _ => false,
    }
}

/// What is to be thought of the error that has this number and this SQLSTATE.
pub fn verdict(code: u16, state: &str) -> Verdict {
    let class = |class| state.starts_with(class);
    // A transaction that was rolled back for the sake of another, whoever says so.
    if class("40") || class("XA1") {
        return Verdict::Passes;
    }
    if let Some((verdict, _)) = BY_NUMBER.iter().find(|(_, codes)| codes.contains(&code)) {
        return *verdict;
    }
    match code {
        // Of files and of the operating system; what a proxy says of its connection with the server, in a client's words.
        1..1000 | 2000..2100 => Verdict::Passes,
        // The connection, somebody who interrupts.
        _ if class("08") || class("70") => Verdict::Passes,
        _ if is_of_record(state) => Verdict::OfRecord,
        _ => Verdict::Fails,
    }
}

/// Of values, of constraints, of a view's condition, and what triggers raise.
pub fn is_of_record(state: &str) -> bool {
    ["22", "23", "44", "45"].into_iter().any(|class| state.starts_with(class))
}

/// What a warning says, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "whoever asks must know what to do with each")]
pub enum Warned {
    /// A value is not in the table as it was sent.
    Changed,
    /// Nothing of what was written.
    Nothing,
    /// That is for its SQLSTATE to say.
    ByState,
}

/// What a warning says that has this number.
pub fn warned(number: u32) -> Warned {
    const CHANGED: &[u32] = &[
        1260, // CUT_VALUE_GROUP_CONCAT
        1261, // WARN_TOO_FEW_RECORDS: of one line
        1262, // WARN_TOO_MANY_RECORDS: of one line
        1299, // WARN_INVALID_TIMESTAMP
        1301, // WARN_ALLOWED_PACKET_OVERFLOWED
        1906, // WARNING_NON_DEFAULT_VALUE_FOR_GENERATED_COLUMN
    ];
    // Those that come with every batch: the server need not be asked for their class.
    const NOTHING: &[u32] = &[
        1287, // WARN_DEPRECATED_SYNTAX
        1364, // NO_DEFAULT_FOR_FIELD: of a column that is not written to
        1642, // SIGNAL_WARN
        1681, // WARN_DEPRECATED_SYNTAX_NO_REPLACEMENT
        3719, // DEPRECATED_UTF8_ALIAS
        3778, // WARN_DEPRECATED_UTF8MB3_COLLATION
    ];
    if NOTHING.contains(&number) {
        return Warned::Nothing;
    }
    let is_of_record = |number| verdict(number, "") == Verdict::OfRecord;
    if CHANGED.contains(&number) || u16::try_from(number).is_ok_and(is_of_record) {
        return Warned::Changed;
    }
    Warned::ByState
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Verdict::*;

    #[test]
    fn what_passes_and_what_is_in_a_record_is_told_by_the_servers_classes_and_numbers() {
        let cases = [
            // By MySQL's own list of its errors: the number, the SQLSTATE, the name.
            (1461, "42000", "ER_MAX_PREPARED_STMT_COUNT_REACHED", Passes),
            (1203, "42000", "ER_TOO_MANY_USER_CONNECTIONS", Passes),
            (1226, "42000", "ER_USER_LIMIT_REACHED", Passes),
            (1637, "HY000", "ER_TOO_MANY_CONCURRENT_TRXS", Passes),
            (1030, "HY000", "ER_GET_ERRNO", Passes),
            (1114, "HY000", "ER_RECORD_FILE_FULL", Passes),
            (3032, "HY000", "ER_SERVER_OFFLINE_MODE", Passes),
            (6400, "HY000", "ER_SERVER_OFFLINE_MODE_REASON", Passes),
            (3168, "HY000", "ER_SERVER_ISNT_AVAILABLE", Passes),
            (1040, "08004", "ER_CON_COUNT_ERROR", Passes),
            (1047, "08S01", "ER_UNKNOWN_COM_ERROR", Passes),
            (1053, "08S01", "ER_SERVER_SHUTDOWN", Passes),
            (1158, "08S01", "ER_NET_READ_ERROR", Passes),
            (1205, "HY000", "ER_LOCK_WAIT_TIMEOUT", Passes),
            (1205, "41000", "ER_LOCK_WAIT_TIMEOUT of older servers", Passes),
            (1213, "40001", "ER_LOCK_DEADLOCK", Passes),
            (3101, "40000", "ER_TRANSACTION_ROLLBACK_DURING_COMMIT", Passes),
            (1614, "XA102", "ER_XA_RBDEADLOCK", Passes),
            (1290, "HY000", "ER_OPTION_PREVENTS_STATEMENT", Passes),
            (1836, "HY000", "ER_READ_ONLY_MODE", Passes),
            (1792, "25006", "ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION", Passes),
            (1020, "HY000", "ER_CHECKREAD", Passes),
            (3100, "HY000", "ER_RUN_HOOK_ERROR", Passes),
            (1317, "70100", "ER_QUERY_INTERRUPTED", Passes),
            (1927, "70100", "ER_CONNECTION_KILLED", Passes),
            (4031, "HY000", "ER_CLIENT_INTERACTION_TIMEOUT", Passes),
            (3, "HY000", "EE_WRITE", Passes),
            (28, "HY000", "EE_DISK_FULL of a tmpdir", Passes),
            (2013, "HY000", "CR_SERVER_LOST, by a proxy", Passes),
            (1644, "40001", "a trigger's own serialization failure", Passes),
            // Smaller may go.
            (1969, "70100", "ER_STATEMENT_TIMEOUT", MuchWork),
            (3024, "HY000", "ER_QUERY_TIMEOUT", MuchWork),
            (1206, "HY000", "ER_LOCK_TABLE_FULL", MuchWork),
            (1038, "HY001", "ER_OUT_OF_SORTMEMORY", MuchWork),
            (4082, "HY000", "ER_DA_CONN_LIMIT", MuchWork),
            (1153, "08S01", "ER_NET_PACKET_TOO_LARGE", TooLarge),
            (1197, "HY000", "ER_TRANS_CACHE_FULL", TooLarge),
            (3231, "HY000", "ER_WRITE_SET_EXCEEDS_LIMIT", TooLarge),
            // What a record has.
            (1062, "23000", "ER_DUP_ENTRY", OfRecord),
            (1048, "23000", "ER_BAD_NULL_ERROR", OfRecord),
            (1452, "23000", "ER_NO_REFERENCED_ROW_2", OfRecord),
            (4025, "23000", "ER_CONSTRAINT_FAILED", OfRecord),
            (3819, "HY000", "ER_CHECK_CONSTRAINT_VIOLATED", OfRecord),
            (1264, "22003", "ER_WARN_DATA_OUT_OF_RANGE", OfRecord),
            (1406, "22001", "ER_DATA_TOO_LONG", OfRecord),
            (3140, "22032", "ER_INVALID_JSON_TEXT", OfRecord),
            (1366, "HY000", "ER_TRUNCATED_WRONG_VALUE_FOR_FIELD", OfRecord),
            (1369, "HY000", "ER_VIEW_CHECK_FAILED of MySQL", OfRecord),
            (1369, "44000", "ER_VIEW_CHECK_FAILED of MariaDB", OfRecord),
            (1644, "45000", "ER_SIGNAL_EXCEPTION", OfRecord),
            (1644, "HY999", "ER_SIGNAL_EXCEPTION with another state", OfRecord),
            (1713, "HY000", "ER_UNDO_RECORD_TOO_BIG", OfRecord),
            // The same for each.
            (1146, "42S02", "ER_NO_SUCH_TABLE", Fails),
            (1054, "42S22", "ER_BAD_FIELD_ERROR", Fails),
            (1142, "42000", "ER_TABLEACCESS_DENIED_ERROR", Fails),
            (1064, "42000", "ER_PARSE_ERROR", Fails),
            (1052, "23000", "ER_NON_UNIQ_ERROR", Fails),
            (1136, "21S01", "ER_WRONG_VALUE_COUNT_ON_ROW", Fails),
            (1364, "HY000", "ER_NO_DEFAULT_FOR_FIELD", Fails),
            (1045, "28000", "ER_ACCESS_DENIED_ERROR", Fails),
            (1251, "08004", "ER_NOT_SUPPORTED_AUTH_MODE", Fails),
            (1820, "HY000", "ER_MUST_CHANGE_PASSWORD", Fails),
            (3105, "HY000", "ER_NON_DEFAULT_VALUE_FOR_GENERATED_COLUMN", Fails),
            (9999, "HY000", "one that is not known", Fails),
        ];
        for (code, state, name, expected) in cases {
            assert_eq!(verdict(code, state), expected, "{code} {name}");
        }
        let numbers: Vec<u16> = BY_NUMBER.iter().flat_map(|(_, codes)| codes.iter().copied()).collect();
        let mut once = numbers.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), numbers.len(), "each number has one verdict");
    }

    #[test]
    fn a_server_that_takes_no_writes_is_told_from_what_else_says_so() {
        let said = is_read_only;
        let running =
            |option| format!("The server is running with the --{option} option so it cannot execute this statement");
        assert!(said(1290, &running("read-only")) && said(1290, &running("super-read-only")));
        assert!(said(1836, "Running in read-only mode") && said(3100, "Error on observer"));
        assert!(!said(1290, &running("secure-file-priv")) && !said(1290, &running("skip-grant-tables")));
        assert!(!said(1792, "Cannot execute statement in a READ ONLY transaction."));
    }

    #[test]
    fn warnings_of_syntax_are_none_of_what_was_written() {
        let cases = [
            (1265, Warned::Changed),
            (1366, Warned::Changed),
            (1301, Warned::Changed),
            (1287, Warned::Nothing),
            (1681, Warned::Nothing),
            (1642, Warned::Nothing),
            (1364, Warned::Nothing),
            // Of class 22 and 23, and of none.
            (1264, Warned::ByState),
            (1048, Warned::ByState),
            (3123, Warned::ByState),
            (70_000, Warned::ByState),
        ];
        for (number, warned) in cases {
            assert_eq!(super::warned(number), warned, "{number}");
        }
        assert!(is_of_record("22003") && is_of_record("23000") && !is_of_record("HY000") && !is_of_record("01000"));
    }
}
