//! The one error type of the crate.

use std::{borrow::Cow, error::Error as StdError, fmt, sync::Arc};

/// Anything that can be the source of an [`Error`].
pub type BoxError = Box<dyn StdError + Send + Sync + 'static>;

/// What went wrong, by what a caller can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting cannot be used: a bad variable, URL or path. Fix the setting.
    Config,
    /// A resource could not be initialised. The source is the driver's error; it can be tried again.
    Init,
    /// The driver could not give a checkout. The source is the driver's error.
    Checkout,
    /// Draining has begun, so nothing is handed out any more. Stop asking.
    ShuttingDown,
    /// A sink refused or lost a batch. The source is the driver's error.
    Write,
    /// A bounded buffer has no room. Wait with `push` or drop the record knowingly.
    Full,
    /// Code of the application or of a driver panicked. The panic's message is in the error's text.
    Panicked,
    /// A wait ran out; the message says which.
    Timeout,
    /// The drain ended, but not everything could be closed or written; the report says what.
    Incomplete,
    /// The work that the application asked to be run failed. The source is its error.
    Work,
}

/// An error with a kind, a message, the resource it concerns, and the driver's own error as its source.
///
/// One opaque type for all crates of the family, since callers branch on [`kind`](Self::kind) and
/// [`is_retryable`](Self::is_retryable) and nothing else. It is cheap to clone: everybody who waited for one
/// initialisation gets the same error.
///
/// `Display` is one line: the message with its chain of sources. `Debug` prints the same line, so that
/// `fn main() -> Result<(), Error>` ends with a sentence a person can read.
#[derive(Clone)]
pub struct Error {
    inner: Arc<Inner>,
}

struct Inner {
    kind: ErrorKind,
    message: Cow<'static, str>,
    resource: Option<String>,
    retryable: bool,
    source: Option<BoxError>,
}

impl Error {
    /// An error of this kind with this one-line message: lower case, no full stop, and what to do where that is known.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            inner: Arc::new(Inner { kind, message: message.into(), resource: None, retryable: false, source: None }),
        }
    }

    /// The same error with the driver's own error behind it.
    #[must_use]
    pub fn with_source(self, source: impl Into<BoxError>) -> Self {
        self.change(|inner| inner.source = Some(source.into()))
    }

    /// The same error, marked as worth another try after a pause.
    #[must_use]
    pub fn retryable(self) -> Self {
        self.change(|inner| inner.retryable = true)
    }

    /// The same error, said of this resource.
    #[must_use]
    pub fn of(self, resource: impl Into<String>) -> Self {
        self.change(|inner| inner.resource = Some(resource.into()))
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// Whether the same call may succeed after a pause. Adapters set this where they map the driver's error.
    pub fn is_retryable(&self) -> bool {
        self.inner.retryable
    }

    /// Whether this is the refusal of a draining lifecycle.
    pub fn is_shutting_down(&self) -> bool {
        self.inner.kind == ErrorKind::ShuttingDown
    }

    /// The name of the resource it concerns, where there is one.
    pub fn resource(&self) -> Option<&str> {
        self.inner.resource.as_deref()
    }

    pub(crate) fn shutting_down(resource: &str) -> Self {
        Self::new(ErrorKind::ShuttingDown, "shutting down: nothing is handed out any more").of(resource)
    }

    /// Builders run before the error is shared; after that a change starts a new link of the chain instead.
    fn change(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.inner) {
            change(inner);
            return self;
        }
        let mut link = Inner {
            kind: self.inner.kind,
            message: self.inner.message.clone(),
            resource: self.inner.resource.clone(),
            retryable: self.inner.retryable,
            source: Some(Box::new(SharedError(self))),
        };
        change(&mut link);
        Self { inner: Arc::new(link) }
    }
}

/// Stands in a source chain for an error that other holders still share; it prints nothing that the link before it
/// has not printed.
struct SharedError(Error);

impl fmt::Debug for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.inner.message)
    }
}

impl StdError for SharedError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(resource) = &self.inner.resource {
            write!(f, "{resource}: ")?;
        }
        let mut said = self.inner.message.to_string();
        let mut next = self.source();
        let mut last = said.clone();
        while let Some(source) = next {
            // Drivers often repeat their source in their own message; saying it once is enough.
            let text = source.to_string();
            if !last.ends_with(&text) {
                // A sentence, not a name or a number that may well come again.
                let is_known = |part: &&str| part.contains(' ') && said.split(PAUSE).any(|known| known == *part);
                let new: Vec<&str> = text.split(PAUSE).filter(|part| !is_known(part)).collect();
                if !new.is_empty() {
                    said = format!("{said}{PAUSE}{}", new.join(PAUSE));
                }
            }
            // One of ours has said all that is behind it.
            next = if source.is::<Self>() { None } else { source.source() };
            last = text;
        }
        f.write_str(&once(&said))
    }
}

/// The chain without what is said twice in a row: an error of a driver that names its kind is often behind another one of the
/// same kind (`Input/output error: Input/output error: ...`), or repeats its source with something after it.
fn once(chain: &str) -> String {
    let mut links: Vec<&str> = Vec::new();
    for link in chain.split(PAUSE) {
        links.push(link);
        // However long it is, what came just now stands before it already.
        let repeated = (1..=links.len() / 2).find(|n| {
            let (before, now) = links.split_at(links.len() - n);
            before.ends_with(now)
        });
        if let Some(repeated) = repeated {
            links.truncate(links.len() - repeated);
        }
    }
    links.join(PAUSE)
}

/// What stands between the links of a chain, also within the text of one.
const PAUSE: &str = ": ";

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.inner.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_is_one_line_with_the_chain() {
        let driver = std::io::Error::other("connection refused");
        let error = Error::new(ErrorKind::Init, "cannot connect").of("db").with_source(driver).retryable();
        assert_eq!(error.to_string(), "db: cannot connect: connection refused");
        assert_eq!(format!("{error:?}"), error.to_string());
        assert!(error.is_retryable());
    }

    #[test]
    fn an_error_behind_an_error_is_said_once() {
        let driver = std::io::Error::other("connection refused");
        let pool = Error::new(ErrorKind::Init, "cannot connect").of("db").with_source(driver);
        let buffer = Error::new(ErrorKind::Init, "its pool is not initialised").of("audit").with_source(pool);
        let expected = "audit: its pool is not initialised: db: cannot connect: connection refused";
        assert_eq!(buffer.to_string(), expected);
        // Named again while others share it.
        let shared = buffer.clone();
        assert_eq!(buffer.of("log").to_string(), expected.replace("audit", "log"));
        assert_eq!(shared.to_string(), expected);
    }

    #[test]
    fn no_text_stands_twice() {
        let of = |text: &str| Error::new(ErrorKind::Init, text.to_owned());
        let io = || std::io::Error::other("connection refused");
        assert_eq!(
            of("cannot connect")
                .with_source(of("Input/output error: Input/output error").with_source(io()))
                .to_string(),
            "cannot connect: Input/output error: connection refused"
        );
        // A link that has its source in the middle of its own text.
        assert_eq!(of("a: connection refused").with_source(io()).to_string(), "a: connection refused");
        let chain = of("a").with_source(of("b: c").with_source(of("b: c: d")));
        assert_eq!(chain.to_string(), "a: b: c: d");
        // SQLite's.
        let code = std::io::Error::other("Error code 14: unable to open database file");
        let sqlite = of("cannot open").with_source(of("unable to open database file: /app.db").with_source(code));
        assert_eq!(sqlite.to_string(), "cannot open: unable to open database file: /app.db: Error code 14");
        assert_eq!(of("x: y: x: z").to_string(), "x: y: x: z", "not what is apart");
    }

    #[test]
    fn a_shared_error_can_be_named_without_losing_its_source() {
        let first = Error::new(ErrorKind::Init, "cannot connect").with_source(std::io::Error::other("refused"));
        let shared = first.clone();
        let named = shared.of("db");
        assert_eq!(named.to_string(), "db: cannot connect: refused");
        assert_eq!(first.to_string(), "cannot connect: refused");
    }
}
