//! Whether a server has become one that lets nobody write, as a primary does at a failover.
//!
//! A server says so on whichever session is written over next, and means all of them. What it says is followed on the wire,
//! before the driver hears of it, so that the next checkout knows. A transaction that the application itself has made read-only
//! fails with the same code: what the server says of itself tells them apart.
//! <https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-ASYNC>

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use winddown_core::adapter::Outdated;

/// Follows what the server sends on one session.
#[derive(Debug)]
pub(crate) struct Watch {
    outdated: Arc<Outdated>,
    /// What is there of a message: its type, its length, and what follows.
    message: Vec<u8>,
    /// How much is still to come of a message that says nothing of this.
    skipped: usize,
    /// What the server has said of itself, if it has: that it is a standby, and that transactions are read-only by default.
    standby: Option<bool>,
    by_default: Option<bool>,
    /// It has refused to write, and not been ready since.
    refused: bool,
    began: Instant,
    /// Whether it said that it lets everybody write, when it was ready first.
    wrote: Option<bool>,
}

/// A session with a server that let nobody write from the beginning is not replaced sooner: the next one may be with the same, as
/// with one whose disk is full.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

/// The type of a message, and its length, which includes itself.
const HEADER: usize = 5;

/// Longer ones are not looked at: neither an error's code nor a setting comes behind so much.
const LONGEST: usize = 64 * 1024;

/// `read_only_sql_transaction`, as a field of an error.
const REFUSED: &[u8] = b"C25006";

impl Watch {
    /// `outdated` is told when the server lets nobody write.
    pub(crate) fn new(outdated: Arc<Outdated>) -> Self {
        let (message, skipped) = (Vec::new(), 0);
        let (standby, by_default, wrote) = (None, None, None);
        Self { outdated, message, skipped, standby, by_default, refused: false, began: Instant::now(), wrote }
    }

    /// The next bytes from the server.
    pub(crate) fn received(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.skipped > 0 {
                let skipped = self.skipped.min(bytes.len());
                self.skipped -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let wanted = self.length().unwrap_or(HEADER);
            let (taken, rest) = bytes.split_at((wanted - self.message.len()).min(bytes.len()));
            self.message.extend_from_slice(taken);
            bytes = rest;
            let Some(length) = self.length() else { continue };
            if !matches!(self.message[0], b'E' | b'S' | b'Z') || length > LONGEST {
                self.skipped = length - HEADER;
                self.message.clear();
            } else if self.message.len() == length {
                self.read();
                self.message.clear();
            }
        }
    }

    /// The whole length of the message, once its header is there.
    fn length(&self) -> Option<usize> {
        let [_, length @ ..] = *self.message.first_chunk::<HEADER>()?;
        Some((u32::from_be_bytes(length) as usize).saturating_add(1).max(HEADER))
    }

    fn read(&mut self) {
        let (kind, body) = (self.message[0], &self.message[HEADER..]);
        let mut fields = body.split(|&byte| byte == 0);
        match kind {
            // ErrorResponse.
            b'E' => self.refused |= fields.any(|field| field == REFUSED),
            // ParameterStatus.
            b'S' => {
                let (name, is_on) = (fields.next(), fields.next() == Some(b"on"));
                match name {
                    Some(b"in_hot_standby") => self.standby = Some(is_on),
                    Some(b"default_transaction_read_only") => self.by_default = Some(is_on),
                    _ => {}
                }
            }
            // ReadyForQuery: a setting that has changed was told before.
            _ => {
                let writes = self.standby == Some(false) && self.by_default == Some(false);
                let wrote = *self.wrote.get_or_insert(writes);
                // Servers before version 14, and poolers, do not say: a session too many is replaced then.
                let is_due = wrote || self.began.elapsed() >= REOPEN_PAUSE;
                if std::mem::take(&mut self.refused) && !writes && is_due {
                    tracing::debug!("the server lets nobody write: its sessions are replaced");
                    self.outdated.opened_until_now();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        [&[kind][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
    }

    fn says(name: &str, value: &str) -> Vec<u8> {
        message(b'S', format!("{name}\0{value}\0").as_bytes())
    }

    fn opened(standby: &str, by_default: &str) -> Vec<u8> {
        let status = [says("in_hot_standby", standby), says("default_transaction_read_only", by_default)].concat();
        [message(b'R', &[0; 4]), status, message(b'K', &[0; 8]), message(b'Z', b"I")].concat()
    }

    fn error(code: &str) -> Vec<u8> {
        message(
            b'E',
            format!("SERROR\0VERROR\0C{code}\0Mcannot execute INSERT in a read-only transaction\0\0").as_bytes(),
        )
    }

    /// Whether what was open before is outdated after these bytes, on a session that is not new.
    #[track_caller]
    fn outdates(bytes: &[u8]) -> bool {
        outdates_after(REOPEN_PAUSE, bytes)
    }

    /// The same on one that was opened so long ago, however the bytes are cut.
    #[track_caller]
    fn outdates_after(age: Duration, bytes: &[u8]) -> bool {
        let mut found = [1, 2, 3, 7, 4096].map(|cut| {
            let outdated = Arc::new(Outdated::default());
            let before = Instant::now();
            let mut watch = Watch::new(Arc::clone(&outdated));
            watch.began -= age;
            bytes.chunks(cut).for_each(|part| watch.received(part));
            outdated.is_outdated(before, before)
        });
        found.sort_unstable();
        assert_eq!(found.first(), found.last(), "it depends on how they are cut");
        found[0]
    }

    #[test]
    fn a_server_that_became_read_only_is_told_from_a_transaction_that_is() {
        let (ready, failed) = (message(b'Z', b"I"), message(b'Z', b"E"));
        let writable = opened("off", "off");
        assert!(!outdates(&[&writable[..], &error("25006"), &failed].concat()));
        // It says of its setting what has changed behind the error, before it is ready.
        let changed = says("default_transaction_read_only", "on");
        assert!(outdates(&[&writable[..], &error("25006"), &changed, &ready].concat()));
        assert!(!outdates(&[&writable[..], &changed, &ready].concat()), "nobody was refused");
        assert!(outdates(&[&opened("on", "off")[..], &error("25006"), &failed].concat()));
        assert!(!outdates(&[&opened("on", "off")[..], &error("23505"), &failed].concat()));
        assert!(outdates(&[&message(b'Z', b"I")[..], &error("25006"), &ready].concat()), "nothing is known of it");
        // Promoted meanwhile.
        let promoted = says("in_hot_standby", "off");
        assert!(!outdates(&[&opened("on", "off")[..], &promoted, &error("25006"), &failed].concat()));
    }

    #[test]
    fn a_new_session_whose_server_never_let_anybody_write_does_not_replace_the_others() {
        let refusal = [error("25006"), message(b'Z', b"I")].concat();
        for standby in [&opened("on", "off")[..], &opened("off", "on"), &message(b'Z', b"I")] {
            assert!(!outdates_after(Duration::ZERO, &[standby, &refusal].concat()));
            assert!(outdates_after(REOPEN_PAUSE, &[standby, &refusal].concat()));
        }
        // It was another server when the session was opened.
        let changed = says("default_transaction_read_only", "on");
        assert!(outdates_after(Duration::ZERO, &[&opened("off", "off")[..], &changed, &refusal].concat()));
    }

    #[test]
    fn what_looks_like_a_message_inside_of_another_is_none() {
        let inside = [error("25006"), message(b'Z', b"I")].concat();
        assert!(!outdates(&[opened("on", "off"), message(b'D', &inside), message(b'Z', b"I")].concat()));
        let long = message(b'E', &vec![b'x'; LONGEST]);
        assert!(!outdates(&[opened("on", "off"), long, message(b'Z', b"I")].concat()));
    }
}
