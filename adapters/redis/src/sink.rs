//! Buffered records go into a stream or a list.

use std::{sync::LazyLock, time::Duration};

use redis::{FromRedisValue, Pipeline, RedisError, RedisResult, Script, ScriptInvocation, ToRedisArgs, Value, pipe};
use winddown_buffer::{Batch, BatchKey, Delivery, Sink, WriteError, uuid::Uuid};
use winddown_core::{Checkout, Error, ErrorKind};

use crate::{Connection, Redis, error};

mod look;

/// How many arguments one command may have: a script can hand on some thousands.
const MOST_OF_COMMAND: usize = 4096;

/// How many elements are pushed by one command.
const ELEMENTS: usize = 1000;

/// How many arguments, and bytes, a batch may have: servers take about 2^20 in one request, and 2^30 bytes.
const MOST_OF_BATCH: usize = 1_000_000;
const MOST_BYTES: usize = 1 << 29;

const REMEMBER: Duration = Duration::from_secs(24 * 60 * 60);

/// A script is executed as a whole, and nothing comes between; but what it has done stays done when it fails. So the marker is
/// set first, which may be refused, and taken back if the first command that appends is: a marker that says 0 is none. What
/// the others could be refused for, the first is.
///
/// Keys: the target, the marker. Arguments: how long the marker stays, in milliseconds; the command; and for each call of it,
/// the number of arguments and these.
static APPEND_ONCE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local marked = redis.pcall('GET', KEYS[2])
if type(marked) == 'table' then return marked end
if marked == '1' then return 0 end
local marked = redis.pcall('SET', KEYS[2], '1', 'PX', ARGV[1])
if marked.err then return marked end
local at = 3
while at <= #ARGV do
    local last = at + tonumber(ARGV[at])
    local appended = redis.pcall(ARGV[2], KEYS[1], unpack(ARGV, at + 1, last))
    if type(appended) == 'table' and appended.err then
        redis.call('SET', KEYS[2], '0', 'PX', 1)
        return appended
    end
    at = last + 1
end
return 1",
    )
});

/// Where records go, and how batches are remembered.
#[derive(Debug, Clone)]
struct Target {
    key: Vec<u8>,
    delivery: Delivery,
    remember: Duration,
}

/// Commands that append, each by its arguments.
struct Calls {
    command: &'static str,
    calls: Vec<Vec<Vec<u8>>>,
}

impl Target {
    fn new(key: impl Into<Vec<u8>>) -> Self {
        Self { key: key.into(), delivery: Delivery::ExactlyOnce, remember: REMEMBER }
    }

    /// The key itself, if it is a text.
    fn name(&self) -> Option<&str> {
        str::from_utf8(&self.key).ok()
    }

    /// The key that says that a batch has been written. In a cluster it is where the target is.
    fn marker(&self, batch: BatchKey) -> Vec<u8> {
        let mut marker = vec![b'{'];
        marker.extend_from_slice(hash_tag(&self.key));
        marker.extend_from_slice(format!("}}:winddown_batch:{}", Uuid::from(batch)).as_bytes());
        marker
    }

    /// Appends so many records.
    async fn append(
        &self,
        connection: &mut Connection,
        batch: BatchKey,
        records: usize,
        calls: Calls,
    ) -> Result<(), WriteError> {
        calls.check(records)?;
        let appended = if self.delivery == Delivery::ExactlyOnce {
            let mut script = APPEND_ONCE.prepare_invoke();
            // The longest that no server takes for an overflow.
            let milliseconds = self.remember.as_millis().clamp(1, 1 << 50) as u64;
            script.key(&self.key).key(self.marker(batch)).arg(milliseconds).arg(calls.command);
            for call in calls.calls {
                script.arg(call.len()).arg(call);
            }
            // Whether it was written now or before.
            invoke::<Value>(&script, connection).await.map(|answer| matches!(answer, Value::Int(0 | 1)))
        } else {
            let answers = self.pipeline(&calls).query_async::<Option<Vec<Value>>>(connection).await;
            match answers.map_err(unwritten)? {
                // Somebody else's `WATCH` on the same session.
                None => {
                    return Err(WriteError::Retry(Error::new(
                        ErrorKind::Write,
                        "the server has aborted the transaction",
                    )));
                }
                Some(answers) => Ok(answers.len() >= calls.calls.len()),
            }
        };
        if appended.map_err(unwritten)? {
            return Ok(());
        }
        // As one does that only queues it, since somebody else has begun a transaction on the same session.
        let text = "the server has answered what is no answer to a batch: whether it was written is not known";
        Err(WriteError::Unknown(Error::new(ErrorKind::Write, text)))
    }

    fn pipeline(&self, calls: &Calls) -> Pipeline {
        let mut pipeline = pipe();
        pipeline.atomic();
        for call in &calls.calls {
            pipeline.cmd(calls.command).arg(&self.key).arg(call);
        }
        pipeline
    }
}

/// Runs a script. Where somebody had the server forget it when it was just loaded, nothing was executed, and it is run again.
async fn invoke<T: FromRedisValue>(script: &ScriptInvocation<'_>, connection: &mut Connection) -> RedisResult<T> {
    match script.invoke_async(connection).await {
        Err(failure) if says(&failure, "NOSCRIPT") => script.invoke_async(connection).await,
        ran => ran,
    }
}

/// Whether it is this that the server has answered.
fn says(failure: &RedisError, code: &str) -> bool {
    let refusals = failure.clone().into_server_errors();
    refusals.is_some_and(|refusals| refusals.iter().any(|(_, refusal)| refusal.code() == code))
}

impl Calls {
    /// What is divided until it fits, or refused alone. A server would end the session.
    fn check(&self, records: usize) -> Result<(), WriteError> {
        let arguments: usize = self.calls.iter().map(|call| call.len() + 1).sum();
        let bytes: usize = self.calls.iter().flatten().map(Vec::len).sum();
        if arguments <= MOST_OF_BATCH && bytes <= MOST_BYTES {
            return Ok(());
        }
        let text = format!("{arguments} arguments of {bytes} bytes are too much for one request");
        Err(too_large(records)(Error::new(ErrorKind::Write, text)))
    }
}

/// What the servers make the slot of a cluster from:
/// <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags>.
fn hash_tag(key: &[u8]) -> &[u8] {
    let find = |byte, from: usize| key[from..].iter().position(|other| *other == byte).map(|at| from + at);
    let tag = find(b'{', 0).and_then(|open| Some(&key[open + 1..find(b'}', open + 1)?]));
    tag.filter(|tag| !tag.is_empty()).unwrap_or(key)
}

fn refused(text: String) -> WriteError {
    WriteError::Rejected(Error::new(ErrorKind::Write, text))
}

/// What is more than the server takes of so many records at once: of fewer it may take each.
fn too_large(records: usize) -> fn(Error) -> WriteError {
    if records > 1 { WriteError::TooLarge } else { WriteError::Rejected }
}

fn unwritten(failure: RedisError) -> WriteError {
    use redis::ErrorKind::{
        ClusterConnectionNotFound, Io, MasterNameNotFoundBySentinel, NoValidReplicasFoundBySentinel, Parse,
        UnexpectedReturnType,
    };
    if let Some(ours) = error::ours(&failure) {
        // There was no connection, and so nothing was sent.
        return ours.clone().into();
    }
    let refusals = failure.clone().into_server_errors();
    // Of a transaction that was aborted, the first is why.
    let refusal = refusals.as_deref().and_then(|refusals| refusals.first()).map(|(_, refusal)| refusal);
    let details = refusal.and_then(|refusal| refusal.details()).unwrap_or_default();
    // By the server's own words for what it is just now: it is full, loads, is no primary, runs another's script.
    const PASSING: [&str; 13] = [
        "OOM",
        "LOADING",
        "READONLY",
        "TRYAGAIN",
        "CLUSTERDOWN",
        "MASTERDOWN",
        "BUSY",
        "NOREPLICAS",
        "MISCONF",
        "NOSCRIPT",
        "MOVED",
        "ASK",
        "REDIRECT",
    ];
    let kind = match (refusal, failure.kind()) {
        (Some(refusal), _) if PASSING.contains(&refusal.code()) => WriteError::Retry,
        // Full of clients, which may also be said to one that was let in before; or somebody has ended the script, which is
        // possible only as long as it has not written anything.
        (Some(_), _) if error::is_full(Some(details)) || details.contains("Script killed by user") => WriteError::Retry,
        (Some(_), _) => WriteError::Failed,
        (None, Io) if failure.is_connection_refusal() => WriteError::Retry,
        (None, MasterNameNotFoundBySentinel | NoValidReplicasFoundBySentinel) => WriteError::Retry,
        // The driver's client of a cluster may have sent it before to a node that then went away.
        (None, Io | ClusterConnectionNotFound | Parse | UnexpectedReturnType) => {
            let text = "there was no answer: whether the batch was written is not known";
            return WriteError::Unknown(Error::new(ErrorKind::Write, text).with_source(failure));
        }
        _ => WriteError::Failed,
    };
    kind(Error::new(ErrorKind::Write, "a batch was not written").with_source(failure))
}

/// Adds records to a stream (`XADD`), each batch as a whole.
///
/// A record is whatever the driver makes arguments of, which must be the names and values of fields: a tuple `(name, value)`,
/// an array or `Vec` of them, a map, a type of the application that implements [`ToRedisArgs`].
///
/// ```
/// # use winddown_redis::Stream;
/// // for records of the type `[(&str, String); 2]`
/// let audit = Stream::to("audit").max_len_approx(1_000_000);
/// ```
///
/// # Exactly once
/// A script adds the records, and sets a key that says so; a batch whose key is there is not written again. That key is
/// `{audit}:winddown_batch:` and the batch's own for a stream `audit`, or `{a}:winddown_batch:` and so on for one with a hash
/// tag `{a}`, and expires. The user must be allowed the commands `EVALSHA`, `SCRIPT LOAD`, `GET`, `SET` and `XADD`, and these
/// keys.
///
/// What the server forgets, because it is started anew without its data or a replica takes over that did not have it yet,
/// records and keys alike, nobody can know.
///
/// In a cluster, a key that has a `}` but no hash tag cannot be written to so. There the driver sends again what it has no
/// answer to, unless [`Nodes::client`](crate::Config::cluster) has it make no retries: without that
/// [`Delivery::AtMostOnce`] is not kept.
#[derive(Debug, Clone)]
pub struct Stream {
    target: Target,
    max_len: Option<u64>,
}

impl Stream {
    /// Adds to the stream with this key.
    pub fn to(key: impl Into<Vec<u8>>) -> Self {
        Self { target: Target::new(key), max_len: None }
    }

    /// Has the server drop the oldest entries beyond about so many (`MAXLEN ~`). Defaults to keeping all.
    #[must_use]
    pub fn max_len_approx(mut self, entries: u64) -> Self {
        self.max_len = Some(entries);
        self
    }

    /// What becomes of a batch whose outcome is unknown. Defaults to [`Delivery::ExactlyOnce`]; with the others a batch is a
    /// transaction, without a script and without further keys.
    #[must_use]
    pub fn delivery(mut self, delivery: Delivery) -> Self {
        self.target.delivery = delivery;
        self
    }

    /// For how long batches are remembered: one that is replayed later may be written twice. Defaults to one day.
    #[must_use]
    pub fn remember(mut self, remember: Duration) -> Self {
        self.target.remember = remember;
        self
    }

    fn call(&self, record: impl ToRedisArgs) -> Result<Vec<Vec<u8>>, WriteError> {
        let mut call = Vec::new();
        if let Some(entries) = self.max_len {
            call.extend([b"MAXLEN".to_vec(), b"~".to_vec(), entries.to_string().into_bytes()]);
        }
        call.push(b"*".to_vec());
        let fields = record.to_redis_args();
        if fields.is_empty() || !fields.len().is_multiple_of(2) || fields.len() > MOST_OF_COMMAND {
            let most = MOST_OF_COMMAND / 2;
            let text =
                format!("an entry has 1 to {most} names with values; this record has {} arguments", fields.len());
            return Err(refused(text));
        }
        call.extend(fields);
        Ok(call)
    }
}

impl<T: Send + Sync + 'static> Sink<T> for Stream
where
    for<'a> &'a T: ToRedisArgs,
{
    type Target = Redis;

    fn delivery(&self) -> Delivery {
        self.target.delivery
    }

    /// Tried again while there is no connection, the server is full, loads, or is no primary. The outcome is unknown where there
    /// was no answer.
    async fn write(&self, checkout: &mut Checkout<Redis>, batch: &Batch<T>) -> Result<(), WriteError> {
        let calls = batch.iter().map(|record| self.call(record)).collect::<Result<_, _>>()?;
        self.target.append(checkout, batch.key(), batch.len(), Calls { command: "XADD", calls }).await
    }

    async fn check(&self, checkout: &mut Checkout<Redis>) -> Result<(), Error> {
        self.target.check(checkout, "stream", "XADD", &["*", "name", "value"]).await
    }

    /// A connection of its own is closed; one that is shared is looked at before it is used again. What it has sent the server
    /// may still execute, once.
    async fn abandon(&self, mut checkout: Checkout<Redis>) {
        checkout.give_up();
    }

    fn target(&self) -> Option<&str> {
        self.target.name()
    }
}

/// Appends records to a list (`RPUSH`), each batch as a whole.
///
/// A record is whatever the driver makes one argument of: a text, bytes, a number, a type of the application that implements
/// [`ToRedisArgs`].
///
/// ```
/// # use winddown_redis::List;
/// // for records of the type `String`
/// let audit = List::to("audit");
/// ```
///
/// # Exactly once
/// As with [`Stream`], by `RPUSH`.
#[derive(Debug, Clone)]
pub struct List {
    target: Target,
}

impl List {
    /// Appends to the list with this key.
    pub fn to(key: impl Into<Vec<u8>>) -> Self {
        Self { target: Target::new(key) }
    }

    /// What becomes of a batch whose outcome is unknown. Defaults to [`Delivery::ExactlyOnce`]; with the others a batch is a
    /// transaction, without a script and without further keys.
    #[must_use]
    pub fn delivery(mut self, delivery: Delivery) -> Self {
        self.target.delivery = delivery;
        self
    }

    /// For how long batches are remembered: one that is replayed later may be written twice. Defaults to one day.
    #[must_use]
    pub fn remember(mut self, remember: Duration) -> Self {
        self.target.remember = remember;
        self
    }
}

impl<T: Send + Sync + 'static> Sink<T> for List
where
    for<'a> &'a T: ToRedisArgs,
{
    type Target = Redis;

    fn delivery(&self) -> Delivery {
        self.target.delivery
    }

    /// Tried again, and of unknown outcome, where an entry of a stream is.
    async fn write(&self, checkout: &mut Checkout<Redis>, batch: &Batch<T>) -> Result<(), WriteError> {
        let mut calls = Vec::with_capacity(batch.len().div_ceil(ELEMENTS));
        for records in batch.chunks(ELEMENTS) {
            let elements = records.iter().map(|record| {
                let mut arguments = record.to_redis_args();
                match (arguments.pop(), arguments.len()) {
                    (Some(element), 0) => Ok(element),
                    (last, others) => {
                        let count = others + usize::from(last.is_some());
                        Err(refused(format!("an element is one argument; this record has {count}")))
                    }
                }
            });
            calls.push(elements.collect::<Result<Vec<_>, _>>()?);
        }
        self.target.append(checkout, batch.key(), batch.len(), Calls { command: "RPUSH", calls }).await
    }

    async fn check(&self, checkout: &mut Checkout<Redis>) -> Result<(), Error> {
        self.target.check(checkout, "list", "RPUSH", &["element"]).await
    }

    /// As a stream's.
    async fn abandon(&self, mut checkout: Checkout<Redis>) {
        checkout.give_up();
    }

    fn target(&self) -> Option<&str> {
        self.target.name()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_in_the_slot_of_its_target() {
        let cases = [
            ("audit", "audit"),
            ("{a}:audit", "a"),
            ("audit:{a}:{b}", "a"),
            ("a{{b}c}", "{b"),
            // Without a tag.
            ("{audit", "{audit"),
            ("{}audit", "{}audit"),
            ("", ""),
        ];
        for (key, tag) in cases {
            assert_eq!(hash_tag(key.as_bytes()), tag.as_bytes(), "{key}");
        }
        let batch = BatchKey::from(Uuid::nil());
        let marker = Target::new("app:{a}:audit").marker(batch);
        assert_eq!(marker, b"{a}:winddown_batch:00000000-0000-0000-0000-000000000000");
        assert_eq!(hash_tag(&marker), b"a");
    }
}
