//! What the server has warned of: outside its strict mode it makes values fit, and says so only there.

use mysql_async::{Transaction, prelude::Queryable as _};
use winddown_buffer::WriteError;
use winddown_sql::mysql::{self, Warned};

use super::{rolled_back, unwritten};
use crate::watcher::rows;

/// A warning as the server lists it: its level, its number, and a text.
type Listed = (String, u32, String);

/// Refuses the records of the last statement if the server has changed one of them, by what it has warned of. Notes are about
/// what its strict mode lets pass, too: digits behind the point, blanks at the end.
///
/// Must come before the next statement of the transaction, of a batch of so many records.
pub(super) async fn look(transaction: &mut Transaction<'_>, records: usize) -> Result<(), WriteError> {
    let warnings = usize::from(transaction.get_warnings());
    if warnings == 0 {
        return Ok(());
    }
    let failed = |failure| unwritten(failure, records);
    let mut listed: Vec<Listed> = rows(transaction, "SHOW WARNINGS").await.map_err(failed)?;
    let unlisted = warnings.saturating_sub(listed.len());
    if let Some(changed) = changed(transaction, &mut listed).await.map_err(failed)? {
        return Err(WriteError::Rejected(rolled_back(changed)));
    }
    if unlisted == 0 {
        return Ok(());
    }
    // Fewer records have fewer of them.
    let kind = if records > 1 { WriteError::TooLarge } else { WriteError::Rejected };
    let text = format!("the server has {warnings} warnings, and does not list {unlisted} of them: see max_error_count");
    Err(kind(rolled_back(text)))
}

/// The text of the first that says that a record was changed.
async fn changed(
    transaction: &mut Transaction<'_>,
    listed: &mut [Listed],
) -> Result<Option<String>, mysql_async::Error> {
    let mut asked: Vec<(u32, usize)> = Vec::new();
    for (index, (level, number, text)) in listed.iter_mut().enumerate() {
        if level == "Note" {
            continue;
        }
        match mysql::warned(*number) {
            Warned::Changed => return Ok(Some(std::mem::take(text))),
            Warned::ByState if asked.iter().all(|(other, _)| other != number) => asked.push((*number, index)),
            Warned::ByState | Warned::Nothing => {}
        }
    }
    // The list has no classes. What is asked for them leaves the list as it is, but for what shows the answers.
    for (asked, (_, index)) in asked.iter().enumerate() {
        let state = format!("GET DIAGNOSTICS CONDITION {} @winddown_{asked} = RETURNED_SQLSTATE", index + 1);
        transaction.query_drop(state).await?;
    }
    for (asked, (_, index)) in asked.iter().enumerate() {
        let state: Vec<Option<String>> = rows(transaction, &format!("SELECT @winddown_{asked}")).await?;
        let state = state.into_iter().next().flatten();
        // One that cannot be told is taken for the worst.
        if state.is_none_or(|state| mysql::is_of_record(&state)) {
            return Ok(Some(std::mem::take(&mut listed[*index].2)));
        }
    }
    Ok(None)
}
