//! How large a batch may be, as the target shows: what is too large for it is not tried with each batch again.

/// So many batches in a row must go through before a larger one is tried.
const BEFORE_GROWING: u32 = 32;

/// The same, at the most: each try that fails doubles it.
const AT_MOST: u32 = 1024;

/// In records.
#[derive(Debug)]
pub(super) struct Fits {
    /// The setting.
    most: usize,
    now: usize,
    /// Batches in a row that went through, and were as large as may be.
    went_through: u32,
    before_growing: u32,
    /// The limit of now was tried, not seen.
    tried: bool,
}

impl Fits {
    pub(super) fn new(most: usize) -> Self {
        Self { most, now: most, went_through: 0, before_growing: BEFORE_GROWING, tried: false }
    }

    /// No batch should have more.
    pub(super) fn now(&self) -> usize {
        self.now
    }

    /// So many were too many.
    pub(super) fn too_large(&mut self, records: usize) {
        let half = records - records / 2;
        if half >= self.now {
            return;
        }
        self.now = half;
        self.went_through = 0;
        if self.tried {
            self.before_growing = (self.before_growing * 2).min(AT_MOST);
        }
        self.tried = false;
    }

    /// So many went through.
    pub(super) fn written(&mut self, records: usize) {
        // A small batch shows nothing.
        if self.now >= self.most || records <= self.now / 2 {
            return;
        }
        self.went_through += 1;
        if self.went_through >= self.before_growing {
            self.now = (self.now * 2).min(self.most);
            self.went_through = 0;
            self.tried = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_shrinks_at_once_and_grows_slowly_and_more_slowly_where_that_failed() {
        let mut fits = Fits::new(500);
        fits.too_large(500);
        fits.too_large(250);
        assert_eq!(fits.now(), 125);
        // What was packed before says nothing new.
        fits.too_large(250);
        assert_eq!(fits.now(), 125);
        (0..31).for_each(|_| fits.written(125));
        fits.written(3);
        assert_eq!(fits.now(), 125);
        fits.written(125);
        assert_eq!(fits.now(), 250);
        fits.too_large(250);
        (0..63).for_each(|_| fits.written(125));
        assert_eq!(fits.now(), 125);
        fits.written(125);
        assert_eq!(fits.now(), 250);
        (0..64).for_each(|_| fits.written(250));
        assert_eq!(fits.now(), 500);
    }

    #[test]
    fn one_record_is_the_least() {
        let mut fits = Fits::new(3);
        for records in [3, 2, 1, 1] {
            fits.too_large(records);
        }
        assert_eq!(fits.now(), 1);
    }
}
