//! Buffered records go into a table.

use std::sync::Arc;

use mysql_async::{
    Params, TxOpts,
    prelude::{Queryable as _, ToValue},
};
use winddown_buffer::{Batch, Delivery, Sink, WriteError};
use winddown_core::{Checkout, Error, ErrorKind};

use crate::{Mysql, error::error};

/// Writes each record with one statement, and each batch in one transaction. With MariaDB the records of a batch go to the
/// server in one piece; with MySQL each statement waits for its answer.
///
/// A record is whatever can be the [`Parameters`] of the statement: a tuple, or a type of the application that implements
/// the trait.
///
/// ```
/// # use winddown_mysql::Insert;
/// // for records of the type `(i64, String)`
/// let audit = Insert::new("INSERT INTO audit(id, what) VALUES (?, ?)");
/// ```
#[derive(Debug, Clone)]
pub struct Insert {
    sql: Arc<str>,
}

impl Insert {
    /// Writes with this statement. It is prepared once for each batch, and executed once for each record.
    pub fn new(sql: impl Into<Arc<str>>) -> Self {
        Self { sql: sql.into() }
    }
}

/// The parameters of a statement: a tuple of values that the driver can send, or a type of the application.
pub trait Parameters: Send + Sync + 'static {
    /// One for each `?`, or one for each name.
    fn parameters(&self) -> Params;
}

macro_rules! tuple {
    ($($value:ident)+) => {
        impl<$($value: ToValue + Send + Sync + 'static),+> Parameters for ($($value,)+) {
            fn parameters(&self) -> Params {
                #[expect(non_snake_case, reason = "one name for a type and for its value")]
                let ($($value,)+) = self;
                Params::Positional(vec![$($value.to_value()),+])
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

impl<T: Parameters> Sink<T> for Insert {
    type Target = Mysql;

    fn delivery(&self) -> Delivery {
        Delivery::AtMostOnce
    }

    /// Retryable while the server cannot be reached, is full or starts up, and where the batch was rolled back for the sake
    /// of another transaction; but not when the connection broke during the commit: whether the batch was written is not
    /// known then.
    async fn write(&self, checkout: &mut Checkout<Mysql>, batch: &Batch<T>) -> Result<(), WriteError> {
        let failed = |source: mysql_async::Error| error(ErrorKind::Write, "a batch was rolled back", source);
        // Dropped without a commit, it is rolled back before anything else is said on this connection.
        let mut transaction = checkout.start_transaction(TxOpts::default()).await.map_err(failed)?;
        let records: Vec<Params> = batch.iter().map(Parameters::parameters).collect();
        transaction.exec_batch(&*self.sql, records).await.map_err(failed)?;
        transaction.commit().await.map_err(|source| {
            if !source.is_fatal() {
                return failed(source).into();
            }
            let text = "the connection broke during the commit: whether the batch was written is not known";
            WriteError::Unknown(Error::new(ErrorKind::Write, text).with_source(source))
        })
    }
}
