//! The names of buffers, by which replays tell them apart: no two on one pool have the same by default.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use winddown_core::{Error, ErrorKind, ResourceId};

/// The name of a buffer, known to the others as long as it lives.
#[derive(Debug)]
pub(crate) struct Name {
    target: ResourceId,
    text: Arc<str>,
}

/// Of all buffers of the process, with what each writes to.
static NAMES: Mutex<Vec<(ResourceId, Weak<str>)>> = Mutex::new(Vec::new());

fn names() -> MutexGuard<'static, Vec<(ResourceId, Weak<str>)>> {
    NAMES.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Name {
    /// This one, with a number behind it where another buffer of that target has it already.
    pub(crate) fn by_default(target: ResourceId, wish: &str) -> Self {
        let mut names = names();
        names.retain(|(_, name)| name.strong_count() > 0);
        let is_taken = |text: &str| {
            names.iter().any(|(other, name)| *other == target && name.upgrade().is_some_and(|name| *name == *text))
        };
        let numbered = (2_u64..).map(|number| format!("{wish}-{number}"));
        let free = std::iter::once(wish.to_owned()).chain(numbered).find(|text| !is_taken(text));
        let text: Arc<str> = free.unwrap_or_else(|| wish.to_owned()).into();
        names.push((target, Arc::downgrade(&text)));
        Self { target, text }
    }

    /// This one, whoever has it too.
    pub(crate) fn set(&mut self, text: String) {
        self.text = text.into();
        names().push((self.target, Arc::downgrade(&self.text)));
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// # Errors
    /// Another buffer of the target has the same name.
    pub(crate) fn is_unique(&self) -> Result<(), Error> {
        let is_other = |name: &Weak<str>| {
            name.upgrade().is_some_and(|name| *name == *self.text && !Arc::ptr_eq(&name, &self.text))
        };
        if !names().iter().any(|(target, name)| *target == self.target && is_other(name)) {
            return Ok(());
        }
        let text = format!(
            "two buffers on one pool are named {}, and a replay could not tell what one spills from what the other does: give each \
             a name with `BatchWriter::name`",
            self.text
        );
        Err(Error::new(ErrorKind::Config, text))
    }
}
