//! Everything the process logs, searched for what must not be there.

use std::{
    fmt,
    fmt::Write as _,
    sync::{
        Arc, Mutex, Once, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span,
    subscriber::Interest,
};

/// Searches all that is logged by the process, by `tracing` and by `log`, at every level and from every target, from
/// when it is made until it is dropped.
///
/// The first one makes itself the subscriber and the logger of the process; it is an error if there are others.
#[derive(Debug)]
pub struct LogSearch {
    search: Arc<Search>,
}

#[derive(Debug)]
struct Search {
    needle: String,
    found: Mutex<Vec<String>>,
}

impl LogSearch {
    /// Looks for this text from here on.
    ///
    /// # Panics
    /// When the process has a subscriber or a logger already, or a line that is logged here does not arrive: nothing could
    /// be seen.
    pub fn begin(needle: &str) -> Self {
        static INSTALL: Once = Once::new();
        INSTALL.call_once(|| {
            tracing::subscriber::set_global_default(Recorder::default())
                .expect("nobody else subscribes in this process");
            log::set_logger(&LOGGER).expect("nobody else logs in this process");
            log::set_max_level(log::LevelFilter::Trace);
        });
        // A search that sees nothing finds nothing.
        let text = format!("a search begins: {:016x}", fastrand::u64(..));
        let probe = Self::listen(&text);
        tracing::trace!("{text}");
        log::trace!("{text}");
        assert_eq!(probe.found().len(), 2, "what is logged does not arrive");
        Self::listen(needle)
    }

    fn listen(needle: &str) -> Self {
        let search = Arc::new(Search { needle: needle.to_owned(), found: Mutex::default() });
        searches().lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&search));
        SEARCHING.fetch_add(1, Ordering::SeqCst);
        Self { search }
    }

    /// The lines that have the text in them.
    pub fn found(&self) -> Vec<String> {
        self.search.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for LogSearch {
    fn drop(&mut self) {
        SEARCHING.fetch_sub(1, Ordering::SeqCst);
        let mut searches = searches().lock().unwrap_or_else(PoisonError::into_inner);
        searches.retain(|search| !Arc::ptr_eq(search, &self.search));
    }
}

static SEARCHING: AtomicUsize = AtomicUsize::new(0);

fn searches() -> &'static Mutex<Vec<Arc<Search>>> {
    static SEARCHES: OnceLock<Mutex<Vec<Arc<Search>>>> = OnceLock::new();
    SEARCHES.get_or_init(Mutex::default)
}

fn searching() -> bool {
    SEARCHING.load(Ordering::SeqCst) > 0
}

fn look_at(line: &str) {
    for search in searches().lock().unwrap_or_else(PoisonError::into_inner).iter() {
        if line.contains(&search.needle) {
            search.found.lock().unwrap_or_else(PoisonError::into_inner).push(line.to_owned());
        }
    }
}

struct Logger;

static LOGGER: Logger = Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        searching()
    }

    fn log(&self, record: &log::Record<'_>) {
        if searching() {
            look_at(&format!("{} {} {}", record.level(), record.target(), record.args()));
        }
    }

    fn flush(&self) {}
}

#[derive(Default)]
struct Recorder {
    last: AtomicU64,
}

impl Subscriber for Recorder {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        // Asked each time: nothing is formatted while nobody searches.
        Interest::sometimes()
    }

    fn enabled(&self, _: &Metadata<'_>) -> bool {
        searching()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::TRACE)
    }

    fn new_span(&self, span: &span::Attributes<'_>) -> span::Id {
        let mut line = Line::of(span.metadata());
        span.record(&mut line);
        look_at(&line.0);
        span::Id::from_u64(self.last.fetch_add(1, Ordering::SeqCst) + 1)
    }

    fn record(&self, _: &span::Id, values: &span::Record<'_>) {
        let mut line = Line(String::new());
        values.record(&mut line);
        look_at(&line.0);
    }

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::of(event.metadata());
        event.record(&mut line);
        look_at(&line.0);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

struct Line(String);

impl Line {
    fn of(metadata: &Metadata<'_>) -> Self {
        Self(format!("{} {} {}", metadata.level(), metadata.target(), metadata.name()))
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail, and what a value's own Debug does is its own.
        let _ = write!(self.0, " {field}={value:?}");
    }
}
