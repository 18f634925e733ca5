//! What commands do besides being answered: what they leave on a session for whoever has it next, and whether they wait at the
//! server.

use redis::{Arg, Cmd, ErrorKind, Pipeline, RedisResult};

/// What is to be known of one message before it is sent.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    effects: Vec<Effect>,
    pub(crate) waits: Vec<Wait>,
}

/// What a command does to its session. A script can do none of it: the server refuses these commands there, and a `SELECT`
/// holds to the end of the script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Multi,
    /// `EXEC` or `DISCARD`.
    EndOfMulti,
    Watch,
    Unwatch,
    Select,
    /// Something that is of no harm to others on the same session.
    Setting(&'static str),
    Subscription(&'static str),
    /// Who is logged on, and how the server answers.
    Identity(&'static str),
    /// Answers do not come any more, or others than those to what is asked.
    Silence(&'static str),
}

/// A command that waits at the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wait {
    /// Its place among the answers to the message.
    pub(crate) at: usize,
    /// What it takes what it waits for from, if it takes anything: its name and its keys.
    pub(crate) takes: Option<String>,
}

/// What a session carries from one caller to the next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Carried {
    is_in_multi: bool,
    watches: bool,
    /// The server's answer was not what these two were expected from.
    is_unclear: bool,
    is_elsewhere: bool,
    /// What is undone with the session alone.
    is_changed: bool,
}

impl Marks {
    pub(crate) fn of(command: &Cmd) -> Self {
        let mut marks = Self::default();
        marks.add(command, 0);
        marks
    }

    pub(crate) fn of_all(pipeline: &Pipeline) -> Self {
        let mut marks = Self::default();
        if pipeline.is_transaction() {
            marks.effects.push(Effect::Multi);
        }
        for (at, command) in pipeline.cmd_iter().enumerate() {
            marks.add(command, at);
        }
        if pipeline.is_transaction() {
            marks.effects.push(Effect::EndOfMulti);
            // Nothing waits in a transaction.
            marks.waits.clear();
        }
        marks
    }

    /// Those of what changes the subscriptions.
    pub(crate) fn of_subscriptions() -> Self {
        Self { effects: vec![Effect::Subscription("SUBSCRIBE")], waits: Vec::new() }
    }

    fn add(&mut self, command: &Cmd, at: usize) {
        let mut words = command.args_iter().map(|argument| match argument {
            Arg::Simple(bytes) => bytes,
            _ => b"0",
        });
        let Some(name) = words.next() else { return };
        // Longer than any that matters.
        let mut upper = [0; 12];
        let Some(upper) = upper.get_mut(..name.len()) else { return };
        upper.copy_from_slice(name);
        upper.make_ascii_uppercase();
        self.effects.extend(Effect::of(upper, &mut words.clone()));
        self.waits.extend(Wait::takes(upper, words).map(|takes| Wait { at, takes }));
    }

    /// Whether a transaction or `WATCH` begins or ends with it.
    pub(crate) fn are_of_transactions(&self) -> bool {
        use Effect::{EndOfMulti, Multi, Unwatch, Watch};
        self.effects.iter().any(|effect| matches!(effect, Multi | EndOfMulti | Watch | Unwatch))
    }

    /// An error where it cannot be sent on a session that is shared or not.
    pub(crate) fn allow(&self, is_shared: bool, is_resp3: bool) -> RedisResult<()> {
        // Most commands.
        if self.effects.is_empty() {
            return Ok(());
        }
        if let Some(name) = self.effects.iter().find_map(Effect::silences) {
            let text = format!("{name} cannot be used here: the answers to all other commands are waited for");
            return Err((ErrorKind::Client, "not sent", text).into());
        }
        if !is_shared {
            return Ok(());
        }
        let left = self.effects.iter().find_map(|effect| effect.is_for_one(is_resp3));
        let Carried { is_in_multi, watches, .. } = Carried::default().after(self);
        let left = left.or_else(|| is_in_multi.then_some("MULTI")).or_else(|| watches.then_some("WATCH"));
        match left {
            None => Ok(()),
            Some(name) => {
                let text = format!(
                    "{name} would hold for all checkouts, which share a connection: give each its own by Config::pooled"
                );
                Err((ErrorKind::Client, "not sent", text).into())
            }
        }
    }
}

impl Effect {
    /// That of the command with this name, in capitals, and these arguments.
    fn of<'a>(name: &[u8], arguments: &mut impl ExactSizeIterator<Item = &'a [u8]>) -> Option<Self> {
        Some(match name {
            b"MULTI" => Self::Multi,
            // With an argument they are refused.
            b"EXEC" | b"DISCARD" if arguments.len() == 0 => Self::EndOfMulti,
            b"WATCH" => Self::Watch,
            b"UNWATCH" if arguments.len() == 0 => Self::Unwatch,
            b"SELECT" => Self::Select,
            b"READONLY" => Self::Setting("READONLY"),
            b"READWRITE" => Self::Setting("READWRITE"),
            b"ASKING" => Self::Setting("ASKING"),
            b"SUBSCRIBE" | b"PSUBSCRIBE" | b"SSUBSCRIBE" => Self::Subscription("SUBSCRIBE"),
            b"UNSUBSCRIBE" | b"PUNSUBSCRIBE" | b"SUNSUBSCRIBE" => Self::Subscription("UNSUBSCRIBE"),
            b"AUTH" => Self::Identity("AUTH"),
            b"HELLO" if arguments.len() > 0 => Self::Identity("HELLO"),
            b"RESET" => Self::Identity("RESET"),
            b"MONITOR" => Self::Silence("MONITOR"),
            b"SYNC" | b"PSYNC" | b"REPLCONF" => Self::Silence("what replicas say"),
            b"CLIENT" => return Self::of_client(arguments),
            b"SCRIPT" if arguments.next()?.eq_ignore_ascii_case(b"DEBUG") => Self::Identity("SCRIPT DEBUG"),
            _ => return None,
        })
    }

    fn of_client<'a>(arguments: &mut impl Iterator<Item = &'a [u8]>) -> Option<Self> {
        let what = arguments.next()?.to_ascii_uppercase();
        Some(match &*what {
            b"REPLY" if arguments.next().is_some_and(|on| on.eq_ignore_ascii_case(b"ON")) => return None,
            b"REPLY" => Self::Silence("CLIENT REPLY"),
            b"SETNAME" | b"SETINFO" | b"TRACKING" | b"CACHING" | b"NO-EVICT" | b"NO-TOUCH" | b"CAPA" => {
                Self::Setting("CLIENT")
            }
            _ => return None,
        })
    }

    fn silences(&self) -> Option<&'static str> {
        if let Self::Silence(name) = self { Some(*name) } else { None }
    }

    /// Its command, if it is none for a session that several use.
    fn is_for_one(&self, is_resp3: bool) -> Option<&'static str> {
        match self {
            Self::Select => Some("SELECT"),
            Self::Identity(name) => Some(*name),
            // Without the third version a session answers nothing else once it has subscribed.
            Self::Subscription(name) if !is_resp3 => Some(*name),
            _ => None,
        }
    }
}

/// So many keys of a command are named.
const NAMED: usize = 3;

impl Wait {
    /// `None` where the command with this name, in capitals, does not wait; else what it takes from.
    fn takes<'a>(name: &[u8], arguments: impl ExactSizeIterator<Item = &'a [u8]>) -> Option<Option<String>> {
        let of = |name: &str, keys: &[&[u8]]| {
            let keys: Vec<_> = keys.iter().take(NAMED).map(|key| String::from_utf8_lossy(key)).collect();
            Some(Some(format!("{name} {}", keys.join(" "))))
        };
        // Only now, since of most commands nothing is looked at but the name.
        let all = || arguments.collect::<Vec<_>>();
        match name {
            b"WAIT" | b"WAITAOF" => Some(None),
            b"BLPOP" | b"BRPOP" | b"BZPOPMIN" | b"BZPOPMAX" => {
                let arguments = all();
                let (_, keys) = arguments.split_last()?;
                of(&String::from_utf8_lossy(name), keys)
            }
            b"BLMOVE" | b"BRPOPLPUSH" => of(&String::from_utf8_lossy(name), all().get(..1)?),
            b"BLMPOP" | b"BZMPOP" => {
                let arguments = all();
                let count: usize = str::from_utf8(arguments.get(1)?).ok()?.parse().ok()?;
                of(&String::from_utf8_lossy(name), arguments.get(2..count.checked_add(2)?)?)
            }
            b"XREAD" | b"XREADGROUP" => {
                let arguments = all();
                let place = |word: &[u8]| arguments.iter().position(|argument| argument.eq_ignore_ascii_case(word));
                place(b"BLOCK")?;
                if name == b"XREAD" {
                    return Some(None);
                }
                let streams = &arguments[place(b"STREAMS")? + 1..];
                of("XREADGROUP", &streams[..streams.len() / 2])
            }
            _ => None,
        }
    }
}

impl Carried {
    /// What is carried when this message was executed too, if the server refuses none of it.
    pub(crate) fn after(mut self, marks: &Marks) -> Self {
        for effect in &marks.effects {
            match effect {
                Effect::Multi => self.is_in_multi = true,
                Effect::EndOfMulti if self.is_in_multi => (self.is_in_multi, self.watches) = (false, false),
                // Refused.
                Effect::EndOfMulti => {}
                Effect::Watch if !self.is_in_multi => self.watches = true,
                Effect::Unwatch if !self.is_in_multi => self.watches = false,
                // Refused, or part of what is executed or discarded as a whole; either ends it.
                Effect::Watch | Effect::Unwatch => {}
                Effect::Select => self.is_elsewhere = true,
                Effect::Setting(_) | Effect::Subscription(_) | Effect::Identity(_) | Effect::Silence(_) => {
                    self.is_changed = true;
                }
            }
        }
        self
    }

    /// The server has answered otherwise than it was expected to.
    pub(crate) fn is_unclear(&mut self) {
        self.is_unclear = true;
    }

    pub(crate) fn is_in_multi(&self) -> bool {
        self.is_in_multi
    }

    /// The server has queued a command: it is in a transaction, or was when it came to it.
    pub(crate) fn is_queued(&mut self) {
        self.is_unclear |= !self.is_in_multi;
    }

    /// Whether only the end of the session undoes it.
    pub(crate) fn is_changed(&self) -> bool {
        self.is_changed
    }

    /// What undoes it, message by message; nothing where there is nothing to undo. All answers to the last one are `OK` then.
    pub(crate) fn undoing(&self, database: i64) -> Vec<Pipeline> {
        let mut messages = Vec::new();
        if self.is_unclear {
            let mut first = Pipeline::new();
            first.cmd("DISCARD");
            messages.push(first);
        }
        let mut last = Pipeline::new();
        if self.is_in_multi && !self.is_unclear {
            last.cmd("DISCARD");
        }
        if self.is_in_multi || self.watches || self.is_unclear {
            // In a transaction that goes on it would be queued.
            last.cmd("UNWATCH");
        }
        if self.is_elsewhere {
            last.cmd("SELECT").arg(database);
        }
        if !last.is_empty() {
            messages.push(last);
        }
        messages
    }
}

#[cfg(test)]
mod tests {
    use redis::{cmd, pipe};

    use super::*;

    fn command(text: &str) -> Cmd {
        let mut words = text.split(' ');
        let mut command = cmd(words.next().unwrap());
        command.arg(words.collect::<Vec<_>>());
        command
    }

    fn carried(commands: &[&str]) -> Carried {
        commands.iter().fold(Carried::default(), |carried, text| carried.after(&Marks::of(&command(text))))
    }

    #[test]
    fn s8_what_was_ended_is_not_carried() {
        for commands in [
            &["WATCH a", "MULTI", "GET a", "EXEC"][..],
            &["watch a", "multi", "discard"],
            &["WATCH a", "UNWATCH"],
            &["MULTI", "WATCH a", "EXEC"],
            &["GET a", "CLIENT ID", "HELLO", "CLIENT REPLY ON", "SCRIPT LOAD x"],
        ] {
            assert_eq!(carried(commands), Carried::default(), "{commands:?}");
            assert!(carried(commands).undoing(0).is_empty());
        }
        for commands in [&["WATCH a"][..], &["WATCH a", "EXEC"], &["MULTI", "EXEC x"], &["SELECT 1"]] {
            assert!(!carried(commands).undoing(0).is_empty(), "{commands:?}");
            assert!(!carried(commands).is_changed(), "{commands:?}");
        }
        for text in ["subscribe a", "client setname a", "CLIENT tracking ON", "RESET", "auth a", "hello 3", "ASKING"] {
            assert!(carried(&[text]).is_changed(), "{text}");
        }
    }

    #[test]
    fn s8_a_message_that_ends_what_it_begins_is_let_through_on_a_shared_session() {
        let mut whole = pipe();
        whole.cmd("MULTI").cmd("INCR").arg("a").cmd("EXEC");
        let mut atomic = pipe();
        atomic.atomic().cmd("INCR").arg("a");
        let mut part = pipe();
        part.cmd("MULTI").cmd("INCR").arg("a");
        let mut inside = pipe();
        inside.atomic().cmd("SELECT").arg(1);
        assert!(Marks::of_all(&whole).allow(true, false).is_ok());
        assert!(Marks::of_all(&atomic).allow(true, false).is_ok());
        assert!(Marks::of_all(&part).allow(true, false).is_err());
        assert!(Marks::of_all(&part).allow(false, false).is_ok());
        assert!(Marks::of_all(&inside).allow(true, false).is_err());
        let subscribe = Marks::of(&command("SUBSCRIBE a"));
        assert!(subscribe.allow(true, true).is_ok() && subscribe.allow(true, false).is_err());
        for text in ["CLIENT REPLY OFF", "client reply skip", "monitor"] {
            assert!(Marks::of(&command(text)).allow(false, true).is_err(), "{text}");
        }
    }

    #[test]
    fn what_waits_is_known_with_its_keys() {
        let waits = |text: &str| Marks::of(&command(text)).waits.into_iter().map(|wait| wait.takes).next();
        let takes = |text: &str| waits(text).unwrap().unwrap();
        assert_eq!(takes("blpop a b 0"), "BLPOP a b");
        assert_eq!(takes("BLMOVE a b LEFT LEFT 0"), "BLMOVE a");
        assert_eq!(takes("BZMPOP 0 2 a b MIN"), "BZMPOP a b");
        assert_eq!(takes("XREADGROUP GROUP g c BLOCK 0 STREAMS s t > >"), "XREADGROUP s t");
        assert_eq!(takes("BRPOP a b c d 0"), "BRPOP a b c");
        for text in ["XREAD BLOCK 0 STREAMS s $", "WAIT 1 0", "waitaof 1 0 0"] {
            assert_eq!(waits(text), Some(None), "{text}");
        }
        for text in [
            "XREAD STREAMS s 0",
            "LPOP a",
            "BLMPOP 0 99999999999999999999 a",
            "BLMPOP 0 18446744073709551615 a",
            "BLPOP",
        ] {
            assert_eq!(waits(text), None, "{text}");
        }
    }
}
