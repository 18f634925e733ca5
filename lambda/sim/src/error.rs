//! The one error of the public API.

use std::error::Error as StdError;
use std::fmt;

use crate::record::Record;

/// Why an environment could not be brought up, or is not there any more.
///
/// One opaque type with a [kind](Self::kind), because callers branch on the kind and print the rest. `Display` is one line
/// that ends with what to do. What was seen until then is in [`record`](Self::record).
pub struct Error {
    kind: ErrorKind,
    message: String,
    // boxed, so that a `Result` stays small where nothing goes wrong
    record: Option<Box<Record>>,
    source: Option<std::io::Error>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), record: None, source: None }
    }

    pub(crate) fn with_source(mut self, source: std::io::Error) -> Self {
        self.source = Some(source);
        self
    }

    pub(crate) fn with_record(mut self, record: Record) -> Self {
        self.record = Some(Box::new(record));
        self
    }

    /// What went wrong, to branch on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The record of a failed init: the function has been shut down by then, and this is how that went.
    ///
    /// `None` when nothing was started, and for errors of a running environment.
    pub fn record(&self) -> Option<&Record> {
        self.record.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.kind)
            .field("message", &self.message)
            .field("source", &self.source)
            .field("record", &self.record)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|cause| cause as _)
    }
}

/// The kinds of [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A program could not be started, or the settings make no sense. Check its path and that it may be executed.
    Start,
    /// The function or an external extension exited during init. Its own output says why.
    InitExit,
    /// The function or an extension reported an error through the API during init.
    InitError,
    /// Init was not over in time: someone never asked for the next event. The message says who.
    InitTimeout,
    /// The function could not be restored from its snapshot: it reported an error, it exited, or it took more than 10 s.
    Restore,
    /// There is no such thing in this environment: Managed Instances are never frozen, only SnapStart has a snapshot, only a Web
    /// Function has requests. Or this machine does not allow it, such as cgroups.
    Unsupported,
    /// The event is larger than Lambda takes: 6 MiB.
    TooLarge,
    /// The environment has ended or is ending, so nothing can be invoked or frozen. Start another one.
    Ended,
}
