//! Descriptors that are there before they are needed (L7), and what is said where there is none left.

use std::{
    error::Error as StdError,
    fmt,
    fs::File,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Descriptors that are kept for something that opens files or sockets by itself, and may have to when the process has none left.
#[derive(Debug)]
pub struct SpareDescriptors {
    most: usize,
    files: Mutex<Vec<File>>,
}

impl SpareDescriptors {
    /// None is kept yet; so many are to be.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most, files: Mutex::default() }
    }

    fn files(&self) -> MutexGuard<'_, Vec<File>> {
        // Each change is one call.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps as many as it should, or as there are.
    pub fn keep(&self) {
        let mut files = self.files();
        while files.len() < self.most {
            let Ok(file) = File::open("/dev/null") else { return };
            files.push(file);
        }
    }

    /// Lets go of them, for whoever opens something next.
    pub fn let_go(&self) {
        self.files().clear();
    }
}

/// Whether the process, or the system, has no descriptor left.
#[must_use]
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    // ENFILE and EMFILE, which are the same numbers on every Unix.
    let says_so = matches!(error.raw_os_error(), Some(23 | 24));
    says_so || error.get_ref().is_some_and(|inner| inner.is::<NoneLeft>())
}

/// The same error, which says what is to be done.
#[must_use]
pub fn out_of_descriptors(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), NoneLeft(error))
}

/// There is no descriptor left.
#[derive(Debug)]
struct NoneLeft(io::Error);

impl fmt::Display for NoneLeft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "no descriptor is left: raise the limit of open files (`ulimit -n`), or find what does not close them",
        )
    }
}

impl StdError for NoneLeft {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_there_is_none_left_is_known_and_said() {
        for number in [23, 24] {
            let error = io::Error::from_raw_os_error(number);
            assert!(is_out_of_descriptors(&error));
            let error = out_of_descriptors(error);
            assert!(is_out_of_descriptors(&error));
            let text = crate::Error::new(crate::ErrorKind::Init, "cannot reach it").with_source(error).to_string();
            assert!(
                text.contains("no descriptor is left: raise the limit") && text.contains(&format!("os error {number}")),
                "{text}"
            );
        }
        assert!(!is_out_of_descriptors(&io::Error::from_raw_os_error(111)));
        assert!(!is_out_of_descriptors(&io::Error::other("something else")));
    }

    #[test]
    fn so_many_are_kept_until_they_are_let_go() {
        let spare = SpareDescriptors::new(3);
        spare.keep();
        spare.keep();
        assert_eq!(spare.files().len(), 3);
        spare.let_go();
        assert_eq!(spare.files().len(), 0);
    }
}
