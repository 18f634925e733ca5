//! Buffered records go into a table.

use std::sync::Arc;

use futures_util::future::try_join_all;
use tokio_postgres::types::ToSql;
use winddown_buffer::{Batch, Delivery, Sink, WriteError};
use winddown_core::{Checkout, Error, ErrorKind};

use crate::{Postgres, error::error};

/// Writes each record with one statement, and each batch in one transaction, without waiting for one statement's answer
/// before sending the next.
///
/// A record is whatever can be the [`Parameters`] of the statement: a tuple, or a type of the application that implements
/// the trait.
///
/// ```
/// # use winddown_postgres::Insert;
/// // for records of the type `(i64, String)`
/// let audit = Insert::new("INSERT INTO audit(id, what) VALUES ($1, $2)");
/// ```
#[derive(Debug, Clone)]
pub struct Insert {
    sql: Arc<str>,
}

impl Insert {
    /// Writes with this statement. It is prepared once for each connection, and executed once for each record.
    pub fn new(sql: impl Into<Arc<str>>) -> Self {
        Self { sql: sql.into() }
    }
}

/// The parameters of a statement: a tuple of values that the driver can send, or a type of the application.
pub trait Parameters: Send + Sync + 'static {
    /// `$1`, `$2` and so on.
    fn parameters(&self) -> Vec<&(dyn ToSql + Sync)>;
}

macro_rules! tuple {
    ($($value:ident)+) => {
        impl<$($value: ToSql + Send + Sync + 'static),+> Parameters for ($($value,)+) {
            fn parameters(&self) -> Vec<&(dyn ToSql + Sync)> {
                #[expect(non_snake_case, reason = "one name for a type and for its value")]
                let ($($value,)+) = self;
                vec![$($value),+]
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
    type Target = Postgres;

    fn delivery(&self) -> Delivery {
        Delivery::AtMostOnce
    }

    /// Retryable while the server cannot be reached, is full or starts up, but not when the connection broke during the
    /// commit: whether the batch was written is not known then.
    async fn write(&self, checkout: &mut Checkout<Postgres>, batch: &Batch<T>) -> Result<(), WriteError> {
        let failed = |source: tokio_postgres::Error| error(ErrorKind::Write, "a batch was rolled back", source.into());
        let transaction = checkout.transaction().await.map_err(failed)?;
        let statement = transaction.prepare_cached(&self.sql).await.map_err(failed)?;
        let records: Vec<_> = batch.iter().map(Parameters::parameters).collect();
        try_join_all(records.iter().map(|record| transaction.execute(&statement, record))).await.map_err(failed)?;
        transaction.commit().await.map_err(|source| {
            if source.as_db_error().is_some() {
                return failed(source).into();
            }
            let text = "the connection broke during the commit: whether the batch was written is not known";
            WriteError::Unknown(Error::new(ErrorKind::Write, text).with_source(source))
        })
    }
}
