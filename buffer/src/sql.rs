//! What the sinks of SQL databases have in common: where rows go, and the table that remembers which batches are written.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use winddown_core::{Error, ErrorKind};

use crate::{BatchKey, Delivery};

/// The table that rows go to, and those of its columns that a record has values for.
#[derive(Debug, Clone)]
pub struct Table {
    schema: Option<String>,
    name: String,
    /// The table, with its schema where one is set, as it is told.
    target: String,
    columns: Vec<String>,
    quote: char,
}

impl Table {
    /// These columns of this table, in a dialect that quotes names with this.
    pub fn new<C: Into<String>>(quote: char, name: impl Into<String>, columns: impl IntoIterator<Item = C>) -> Self {
        let name = name.into();
        Self { schema: None, target: name.clone(), name, columns: columns.into_iter().map(Into::into).collect(), quote }
    }

    /// It is in this schema, and what is [beside](Self::beside) it too.
    pub fn set_schema(&mut self, schema: String) {
        self.target = format!("{schema}.{}", self.name);
        self.schema = Some(schema);
    }

    /// The schema that was set.
    pub fn schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    /// Its name, without a schema.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What a buffer is named after: schema and table as they are.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The columns that a record has values for.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The table, as statements name it.
    pub fn quoted(&self) -> String {
        self.beside(&self.name)
    }

    /// Another table in the same schema, as statements name it.
    pub fn beside(&self, name: &str) -> String {
        match &self.schema {
            Some(schema) => format!("{}.{}", self.quote(schema), self.quote(name)),
            None => self.quote(name),
        }
    }

    /// The columns, as statements name them, with commas between.
    pub fn quoted_columns(&self) -> String {
        self.columns.iter().map(|column| self.quote(column)).collect::<Vec<_>>().join(", ")
    }

    /// A name, as statements have it.
    pub fn quote(&self, name: &str) -> String {
        let quote = self.quote;
        format!("{quote}{}{quote}", name.replace(quote, &format!("{quote}{quote}")))
    }

    /// Whether a record has as many values as there are columns.
    ///
    /// # Errors
    /// [`ErrorKind::Write`] where it has not.
    pub fn fits(&self, values: usize) -> Result<(), Error> {
        let columns = self.columns.len();
        if values == columns {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Write, format!("a record has {values} values, and the sink {columns} columns")))
    }
}

/// How batches are remembered, so that one that is written again is not there twice: the key of each goes into a table of its own,
/// in the transaction of its rows. Clones share when old ones are deleted.
#[derive(Debug, Clone)]
#[expect(clippy::exhaustive_structs, reason = "it is made by default, and changed")]
pub struct Keys {
    /// Keys are kept for [`Delivery::ExactlyOnce`] alone.
    pub delivery: Delivery,
    /// The table that they are in, without a schema.
    pub table: String,
    /// For how long.
    pub remember: Duration,
    /// When old ones are to be deleted.
    pub forgetting: Forgetting,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            delivery: Delivery::ExactlyOnce,
            table: "winddown_batch".into(),
            remember: Duration::from_secs(7 * 24 * 60 * 60),
            forgetting: Forgetting::default(),
        }
    }
}

impl Keys {
    /// Whether there are any.
    pub fn are_kept(&self) -> bool {
        self.delivery == Delivery::ExactlyOnce
    }

    /// The first key that is still remembered, where those before it are to be deleted now: behind the first batch, then once an
    /// hour. [`AT_ONCE`] of them at most, so that it takes milliseconds, the oldest first where the dialect can say that; what
    /// became of it is to be [told](Self::have_deleted).
    pub fn to_forget(&self) -> Option<BatchKey> {
        let now = Instant::now();
        let mut due = self.forgetting.due();
        if !self.are_kept() || due.is_some_and(|due| due > now) {
            return None;
        }
        *due = Some(now + EVERY);
        drop(due);
        // One that is not old is never deleted, whatever the clock says.
        SystemTime::now().checked_sub(self.remember).map(BatchKey::first_at)
    }

    /// So many were deleted. Where there may be more, they go behind the next batch.
    pub fn have_deleted(&self, keys: u64) {
        if keys >= AT_ONCE {
            *self.forgetting.due() = None;
        }
    }
}

/// When old keys are to be deleted next; at once where nothing is known.
#[derive(Debug, Clone, Default)]
pub struct Forgetting(Arc<Mutex<Option<Instant>>>);

impl Forgetting {
    fn due(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many old keys are deleted at once: few enough not to hold up the batch that they are deleted behind, which may be a
/// drain's.
pub const AT_ONCE: u64 = 1000;

/// Seldom enough to cost nothing, and often enough for a process that lives long.
const EVERY: Duration = Duration::from_secs(60 * 60);

/// Calls a macro for each tuple of up to twelve types: `tuple!(A B C)`.
#[macro_export]
macro_rules! sql_tuples {
    ($tuple:ident) => {
        $tuple!(A);
        $tuple!(A B);
        $tuple!(A B C);
        $tuple!(A B C D);
        $tuple!(A B C D E);
        $tuple!(A B C D E F);
        $tuple!(A B C D E F G);
        $tuple!(A B C D E F G H);
        $tuple!(A B C D E F G H I);
        $tuple!(A B C D E F G H I J);
        $tuple!(A B C D E F G H I J K);
        $tuple!(A B C D E F G H I J K L);
    };
}

/// What every SQL sink can be told of its [`Keys`], given the path of the field that has them.
#[macro_export]
macro_rules! sql_settings {
    ($($keys:ident).+) => {
        /// What becomes of a batch whose outcome is unknown, as when the connection breaks during its commit.
        ///
        /// Defaults to [`ExactlyOnce`]($crate::Delivery::ExactlyOnce), for which the keys of batches are written too, in the same
        /// transaction. The others need no table of keys.
        #[must_use]
        pub fn delivery(mut self, delivery: $crate::Delivery) -> Self {
            self.$($keys).+.delivery = delivery;
            self
        }

        /// The table that remembers which batches are written. Sinks may share one.
        ///
        /// It is made if it is missing, where the user may do that; what it must be like is [above](Self).
        ///
        /// Defaults to `winddown_batch`.
        #[must_use]
        pub fn key_table(mut self, name: impl Into<String>) -> Self {
            self.$($keys).+.table = name.into();
            self
        }

        /// How long keys are kept: longer than anything keeps a batch that is written again, a file of a replay say. One that is
        /// written later may be there twice. Older ones are deleted behind the first batch, and then once an hour.
        ///
        /// Defaults to 7 days.
        #[must_use]
        pub fn remember(mut self, time: ::std::time::Duration) -> Self {
            self.$($keys).+.remember = time;
            self
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_in_the_dialect_and_a_schema_is_that_of_what_is_beside_too() {
        let mut table = Table::new('`', "a`b", ["x", "y"]);
        assert_eq!((table.quoted().as_str(), table.target()), ("`a``b`", "a`b"));
        table.set_schema("s".into());
        assert_eq!((table.beside("keys").as_str(), table.target()), ("`s`.`keys`", "s.a`b"));
        assert_eq!(table.quoted_columns(), "`x`, `y`");
        assert!(table.fits(2).is_ok() && table.fits(3).is_err());
    }

    #[test]
    fn old_keys_are_deleted_behind_the_first_batch_and_the_next_while_there_are_more() {
        let keys = Keys::default();
        let other = keys.clone();
        assert!(keys.to_forget().is_some());
        assert!(other.to_forget().is_none(), "clones share it");
        other.have_deleted(AT_ONCE - 1);
        assert!(keys.to_forget().is_none());
        other.have_deleted(AT_ONCE);
        assert!(keys.to_forget().is_some());
        let none = Keys { delivery: Delivery::AtLeastOnce, ..Keys::default() };
        assert!(none.to_forget().is_none());
        let for_ever = Keys { remember: Duration::MAX, ..Keys::default() };
        assert!(for_ever.to_forget().is_none());
    }
}
