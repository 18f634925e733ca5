//! Whether the server would take what a sink appends, without anything being appended.

use std::sync::LazyLock;

use redis::{RedisError, Script, cmd};
use winddown_buffer::{BatchKey, Delivery, WriteError, uuid::Uuid};
use winddown_core::{Error, ErrorKind};

use super::{Target, invoke, says, unwritten};
use crate::{Connection, error};

/// Writes nothing, but may, as its first line says: so a server that takes no writes now, being a replica or full, does not run
/// it ("Redis programmability: Scripting with Lua", eval flags). Says which command the user may not run, `nil` if all.
///
/// Keys: one for each command. Arguments: for each its name, its number of arguments and these.
static MAY_RUN: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"#!lua
local at, command = 1, 1
while at <= #ARGV do
    local last = at + 1 + tonumber(ARGV[at + 1])
    if not redis.acl_check_cmd(ARGV[at], KEYS[command], unpack(ARGV, at + 2, last)) then return ARGV[at] end
    at, command = last + 1, command + 1
end
return false",
    )
});

impl Target {
    /// Whether the key is of this type or not there, the user may append, and the server takes writes. What the server does
    /// not say, for it is old or the user may not ask, is not claimed.
    pub(super) async fn check(
        &self,
        connection: &mut Connection,
        kind: &str,
        command: &str,
        example: &[&str],
    ) -> Result<(), Error> {
        let name = String::from_utf8_lossy(&self.key);
        match cmd("TYPE").arg(&self.key).query_async::<String>(connection).await {
            Ok(found) if found == "none" || found == kind => {}
            Ok(found) => {
                let text =
                    format!("the key {name} is a {found}, and {command} needs a {kind}: name another, or delete it");
                return Err(Error::new(ErrorKind::Config, text));
            }
            Err(failure) if says(&failure, "NOPERM") => {}
            Err(failure) => return Err(unanswered(failure)),
        }
        let is_exactly_once = self.delivery == Delivery::ExactlyOnce;
        let mut script = MAY_RUN.prepare_invoke();
        let marker = self.marker(BatchKey::from(Uuid::nil()));
        script.key(&self.key).arg(command).arg(example.len()).arg(example);
        if is_exactly_once {
            script.key(&marker).arg("GET").arg(0);
            script.key(&marker).arg("SET").arg(3).arg(&["1", "PX", "1"]);
        }
        match invoke::<Option<String>>(&script, connection).await {
            Ok(None) => Ok(()),
            Ok(Some(denied)) => {
                let key = if denied == command { &self.key } else { &marker };
                let key = String::from_utf8_lossy(key);
                let rule = denied.to_lowercase();
                let text = format!(
                    "the user may not run {denied} on {key}: allow it by ACL SETUSER, with +{rule} and a pattern of such keys"
                );
                Err(Error::new(ErrorKind::Config, text))
            }
            Err(failure)
                if says(&failure, "NOPERM")
                    && failure.detail().is_some_and(|detail| detail.contains("access a key")) =>
            {
                let text = format!(
                    "the user may not use the key {name}, or those beside it that remember batches: allow them by ACL SETUSER, with \
                     a pattern of such keys"
                );
                Err(Error::new(ErrorKind::Config, text).with_source(failure))
            }
            // A transaction needs no scripts.
            Err(failure) if says(&failure, "NOPERM") && !is_exactly_once => Ok(()),
            Err(failure) if says(&failure, "NOPERM") => {
                let text = "the user may not run the script by which batches are appended exactly once: allow it by ACL \
                            SETUSER, with +evalsha and +script|load, or choose another delivery";
                Err(Error::new(ErrorKind::Config, text).with_source(failure))
            }
            Err(failure) => match unwritten(failure.clone()) {
                WriteError::Retry(_) | WriteError::Unknown(_) => Err(unanswered(failure)),
                // Redis 6 knows neither the first line nor the function.
                _ => Ok(()),
            },
        }
    }
}

/// It does not take writes now, or does not answer.
fn unanswered(failure: RedisError) -> Error {
    error::error(ErrorKind::Init, "the server does not take what is to be appended", failure).retryable()
}
