//! Buffered records go into a table.

mod insert;
mod keys;
mod load;

use mysql_async::{DriverError, Error as Failure, ServerError, Value, prelude::ToValue};
use winddown_buffer::WriteError;
use winddown_core::{BoxError, Error, ErrorKind};

pub use self::{insert::Insert, load::LoadData};

/// A record as a row: a tuple of values that the driver can send, or a type of the application.
///
/// ```
/// use winddown_mysql::{Parameters, mysql_async::Value};
///
/// struct Visit {
///     page: String,
///     took_ms: Option<i64>,
/// }
///
/// impl Parameters for Visit {
///     fn parameters(&self, values: &mut Vec<Value>) {
///         values.extend([Value::from(&self.page), self.took_ms.into()]);
///     }
/// }
/// ```
pub trait Parameters: Send + Sync + 'static {
    /// Adds the record's values, one for each column of the sink, in their order.
    fn parameters(&self, values: &mut Vec<Value>);
}

macro_rules! tuple {
    ($($value:ident)+) => {
        impl<$($value: ToValue + Send + Sync + 'static),+> Parameters for ($($value,)+) {
            fn parameters(&self, values: &mut Vec<Value>) {
                #[expect(non_snake_case, reason = "one name for a type and for its value")]
                let ($($value,)+) = self;
                $(values.push($value.to_value());)+
            }
        }
    };
}

tuple!(A);
tuple!(A B);
tuple!(A B C);
tuple!(A B C D);
tuple!(A B C D E);
tuple!(A B C D E F);
tuple!(A B C D E F G);
tuple!(A B C D E F G H);
tuple!(A B C D E F G H I);
tuple!(A B C D E F G H I J);
tuple!(A B C D E F G H I J K);
tuple!(A B C D E F G H I J K L);

/// Where rows go.
#[derive(Debug, Clone)]
struct Place {
    schema: Option<String>,
    table: String,
    columns: Vec<String>,
}

impl Place {
    fn new(table: impl Into<String>, columns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let columns = columns.into_iter().map(Into::into).collect();
        Self { schema: None, table: table.into(), columns }
    }

    fn table(&self) -> String {
        self.beside(&self.table)
    }

    /// A table in the same database.
    fn beside(&self, table: &str) -> String {
        match &self.schema {
            Some(schema) => format!("{}.{}", quoted(schema), quoted(table)),
            None => quoted(table),
        }
    }

    fn columns(&self) -> String {
        let columns: Vec<_> = self.columns.iter().map(|column| quoted(column)).collect();
        columns.join(", ")
    }

    /// Adds the values of a record, which must be as many as there are columns.
    fn values(&self, record: &impl Parameters, values: &mut Vec<Value>) -> Result<(), WriteError> {
        let before = values.len();
        record.parameters(values);
        let (given, columns) = (values.len() - before, self.columns.len());
        if given == columns {
            return Ok(());
        }
        let text = format!("a record has {given} values, and the sink {columns} columns");
        Err(WriteError::Failed(Error::new(ErrorKind::Write, text)))
    }
}

fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// What both sinks can be told.
macro_rules! settings {
    () => {
        /// What becomes of a batch whose outcome is unknown. Defaults to [`Delivery::ExactlyOnce`]; the others need no
        /// table of keys.
        #[must_use]
        pub fn delivery(mut self, delivery: Delivery) -> Self {
            self.keys.delivery = delivery;
            self
        }

        /// The table that remembers the keys of written batches. Sinks may share it. Defaults to `winddown_batch`.
        #[must_use]
        pub fn key_table(mut self, table: impl Into<String>) -> Self {
            self.keys.table = table.into().into();
            self
        }

        /// For how long keys are remembered: a batch that is replayed later may be written twice. Defaults to 7 days.
        ///
        /// Older ones are deleted after the first batch, and after every thousandth.
        #[must_use]
        pub fn remember(mut self, remember: Duration) -> Self {
            self.keys.remember = remember;
            self
        }
    };
}
use settings;

/// What the server says, by the numbers of its errors; names in the servers' own words.
mod code {
    // The server has no room, or not now.
    const CON_COUNT_ERROR: u16 = 1040;
    const DISK_FULL: u16 = 1021;
    const OUTOFMEMORY: u16 = 1037;
    const OUT_OF_SORTMEMORY: u16 = 1038;
    const OUT_OF_RESOURCES: u16 = 1041;
    const RECORD_FILE_FULL: u16 = 1114;
    const CANT_CREATE_THREAD: u16 = 1135;
    const TOO_MANY_USER_CONNECTIONS: u16 = 1203;
    const USER_LIMIT_REACHED: u16 = 1226;
    // Another has a lock.
    const LOCK_WAIT_TIMEOUT: u16 = 1205;
    const LOCK_DEADLOCK: u16 = 1213;
    const LOCK_NOWAIT: u16 = 3572;
    const TABLE_DEF_CHANGED: u16 = 1412;
    const NEED_REPREPARE: u16 = 1615;
    // Another is the primary now.
    const OPTION_PREVENTS_STATEMENT: u16 = 1290;
    const CANT_EXECUTE_IN_READ_ONLY_TRANSACTION: u16 = 1792;
    const READ_ONLY_MODE: u16 = 1836;
    // Somebody has ended the statement or the session.
    const QUERY_INTERRUPTED: u16 = 1317;
    const CONNECTION_KILLED: u16 = 1927;
    const STATEMENT_TIMEOUT: u16 = 1969;
    const QUERY_TIMEOUT: u16 = 3024;
    const CLIENT_INTERACTION_TIMEOUT: u16 = 4031;

    pub(super) const PASSING: &[u16] = &[
        CON_COUNT_ERROR,
        DISK_FULL,
        OUTOFMEMORY,
        OUT_OF_SORTMEMORY,
        OUT_OF_RESOURCES,
        RECORD_FILE_FULL,
        CANT_CREATE_THREAD,
        TOO_MANY_USER_CONNECTIONS,
        USER_LIMIT_REACHED,
        LOCK_WAIT_TIMEOUT,
        LOCK_DEADLOCK,
        LOCK_NOWAIT,
        TABLE_DEF_CHANGED,
        NEED_REPREPARE,
        OPTION_PREVENTS_STATEMENT,
        CANT_EXECUTE_IN_READ_ONLY_TRANSACTION,
        READ_ONLY_MODE,
        QUERY_INTERRUPTED,
        CONNECTION_KILLED,
        STATEMENT_TIMEOUT,
        QUERY_TIMEOUT,
        CLIENT_INTERACTION_TIMEOUT,
    ];

    // What a record is refused for, where the state says nothing of it.
    const TOO_BIG_ROWSIZE: u16 = 1118;
    const NET_PACKET_TOO_LARGE: u16 = 1153;
    const DATA_TRUNCATED: u16 = 1265;
    const INVALID_CHARACTER_STRING: u16 = 1300;
    const TRUNCATED_WRONG_VALUE_FOR_FIELD: u16 = 1366;
    const WRONG_VALUE_FOR_TYPE: u16 = 1411;
    const NO_PARTITION_FOR_GIVEN_VALUE: u16 = 1526;
    const ROW_DOES_NOT_MATCH_GIVEN_PARTITION_SET: u16 = 1748;
    const CHECK_CONSTRAINT_VIOLATED: u16 = 3819;

    pub(super) const RECORDS: &[u16] = &[
        TOO_BIG_ROWSIZE,
        NET_PACKET_TOO_LARGE,
        DATA_TRUNCATED,
        INVALID_CHARACTER_STRING,
        TRUNCATED_WRONG_VALUE_FOR_FIELD,
        WRONG_VALUE_FOR_TYPE,
        NO_PARTITION_FOR_GIVEN_VALUE,
        ROW_DOES_NOT_MATCH_GIVEN_PARTITION_SET,
        CHECK_CONSTRAINT_VIOLATED,
    ];

    pub(super) const DUP_ENTRY: u16 = 1062;
    pub(super) const NO_SUCH_TABLE: u16 = 1146;

    // LOAD DATA LOCAL: by MySQL 5 and older MariaDB, MariaDB, MySQL 8 and later.
    pub(super) const LOCAL_NOT_ALLOWED: &[u16] = &[1148, 4166, 3948];
}

/// Whether the transaction may go well when it comes again. States of class 08 are of the connection, those of class 40 of
/// a transaction that was rolled back for the sake of another.
fn passes(error: &ServerError) -> bool {
    let class = |class| error.state.starts_with(class);
    code::PASSING.contains(&error.code) || class("40") || class("08") && !is_of_record(error)
}

/// Whether it is in what was written. States of class 22 are of values, those of class 23 of constraints, and 45000 is what
/// triggers raise.
fn is_of_record(error: &ServerError) -> bool {
    let class = |class| error.state.starts_with(class);
    code::RECORDS.contains(&error.code) || class("22") || class("23") || class("45")
}

/// Of an error before the commit.
fn unwritten(failure: Failure) -> WriteError {
    let kind = match &failure {
        Failure::Server(error) if passes(error) => WriteError::Retry,
        Failure::Server(error) if is_of_record(error) => WriteError::Rejected,
        // So large can only be what a record has.
        Failure::Driver(DriverError::PacketTooLarge) => WriteError::Rejected,
        // It went away; whatever it had of the transaction went with it.
        Failure::Io(_)
        | Failure::Driver(
            DriverError::ConnectionClosed | DriverError::PacketOutOfOrder | DriverError::UnexpectedPacket { .. },
        ) => WriteError::Retry,
        _ => WriteError::Failed,
    };
    kind(rolled_back(failure))
}

/// The same of a statement that had no record in it.
fn without_records(failure: Failure) -> WriteError {
    match unwritten(failure) {
        WriteError::Rejected(error) => WriteError::Failed(error),
        other => other,
    }
}

fn rolled_back(source: impl Into<BoxError>) -> Error {
    Error::new(ErrorKind::Write, "a batch was rolled back").with_source(source)
}

/// Of an error of the commit.
fn uncommitted(failure: Failure) -> WriteError {
    match &failure {
        // Those it is rolled back for, and says so.
        Failure::Server(error) if error.state.starts_with("40") => unwritten(failure),
        _ => {
            let text = "the commit was not confirmed: whether the batch was written is not known";
            WriteError::Unknown(Error::new(ErrorKind::Write, text).with_source(failure))
        }
    }
}
