//! What a resource can do when it drains: data, which the report shows.

use std::borrow::Cow;

/// What a resource can do when it drains. Each field is `true` when the resource can; differences between backends are
/// data, and the report shows what is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Says the protocol's goodbye, where closing the socket alone would leave the server guessing.
    pub goodbye: bool,
    /// Sees that the server has closed its side. Where it does not, what it ends is called unconfirmed, not closed.
    pub confirmed_end: bool,
    /// Stops statements on the server.
    pub cancel: bool,
    /// Sees every session, also those that were opened behind the guard's back.
    pub all_sessions: bool,
}

impl Capabilities {
    /// Everything.
    pub const ALL: Self = Self { goodbye: true, confirmed_end: true, cancel: true, all_sessions: true };

    /// Nothing.
    pub const NONE: Self = Self { goodbye: false, confirmed_end: false, cancel: false, all_sessions: false };

    /// Of a resource that has no sessions with a server: there is none that it could not end.
    pub const NO_SESSIONS: Self = Self::ALL;

    /// The same with stopping statements on the server.
    #[must_use]
    pub const fn with_cancel(mut self) -> Self {
        self.cancel = true;
        self
    }

    /// The same with seeing that the server has closed its side.
    #[must_use]
    pub const fn with_confirmed_end(mut self) -> Self {
        self.confirmed_end = true;
        self
    }

    /// The same with the protocol's goodbye.
    #[must_use]
    pub const fn with_goodbye(mut self) -> Self {
        self.goodbye = true;
        self
    }

    /// The same with sight of sessions that were opened behind the guard's back.
    #[must_use]
    pub const fn with_all_sessions(mut self) -> Self {
        self.all_sessions = true;
        self
    }

    /// The same without stopping statements on the server.
    #[must_use]
    pub const fn without_cancel(mut self) -> Self {
        self.cancel = false;
        self
    }

    /// The same without seeing that the server has closed its side.
    #[must_use]
    pub const fn without_confirmed_end(mut self) -> Self {
        self.confirmed_end = false;
        self
    }

    /// The same without the protocol's goodbye.
    #[must_use]
    pub const fn without_goodbye(mut self) -> Self {
        self.goodbye = false;
        self
    }

    /// The same without sight of sessions that were opened behind the guard's back.
    #[must_use]
    pub const fn without_all_sessions(mut self) -> Self {
        self.all_sessions = false;
        self
    }

    /// What is missing, in words for the report.
    pub fn missing(&self) -> Vec<Cow<'static, str>> {
        let Self { goodbye, confirmed_end, cancel, all_sessions } = *self;
        [
            (goodbye, "say goodbye"),
            (confirmed_end, "see the server's end"),
            (cancel, "cancel statements"),
            (all_sessions, "see every session"),
        ]
        .into_iter()
        .filter_map(|(can, what)| (!can).then_some(what.into()))
        .collect()
    }
}
