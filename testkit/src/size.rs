//! How much the tests of this run do.

/// Set to anything: full size.
const VARIABLE: &str = "WINDDOWN_SOAK";

/// How many rounds there are: so many at full size, so many else.
pub(crate) fn rounds(full: usize, small: usize) -> usize {
    if is_full_size() { full } else { small }
}

/// Whether this is a run at full size.
pub(crate) fn is_full_size() -> bool {
    std::env::var_os(VARIABLE).is_some()
}
