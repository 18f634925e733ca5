//! Claims that are about many times in a row. `cargo xtask soak` runs them full size, the tests in a smaller one.
//!
//! Those about signals start this binary again as a program that is ended by a real one.

use std::{env, marker::PhantomData, process::ExitCode, time::Duration};

use winddown_core::{BoxError, Error};
use winddown_redis::{Config, Redis, Stream, redis};
use winddown_testkit::{
    CheckoutOf, InProcess, ServerUse, Servers, Trial,
    buffered::{self, Buffered},
    chaos::{self, Chaos, Trouble},
    containers::Setup,
    frozen::{self, Frozen},
    soak,
    starved::{self, Starved},
};

use crate::{
    server::{self, Listed, OfItsOwn, Redis8, RedisServer, Valkey8, Version},
    signals, wrapped_signals,
};

type Server = RedisServer<Redis8, OfItsOwn>;
type DurableServer = RedisServer<Durable<Redis8>, OfItsOwn>;
type DurableValkey = RedisServer<Durable<Valkey8>, OfItsOwn>;

/// One that still has what it has answered for when it is killed and started again.
struct Durable<V>(PhantomData<V>);

impl Version for Durable<Redis8> {
    const NAMES: [&'static str; 2] = ["redis_8_durable", "redis_8_durable_shared"];
    const IMAGE: &'static str = Redis8::IMAGE;

    fn servers() -> &'static Servers<server::Server> {
        static SERVERS: Servers<server::Server> = Servers::new(Durable::<Redis8>::NAMES[0], 4);
        &SERVERS
    }

    async fn start() -> Result<server::Server, BoxError> {
        start_durable(Self::IMAGE).await
    }
}

impl Version for Durable<Valkey8> {
    const NAMES: [&'static str; 2] = ["valkey_8_durable", "valkey_8_durable_shared"];
    const IMAGE: &'static str = Valkey8::IMAGE;

    fn servers() -> &'static Servers<server::Server> {
        static SERVERS: Servers<server::Server> = Servers::new(Durable::<Valkey8>::NAMES[0], 1);
        &SERVERS
    }

    async fn start() -> Result<server::Server, BoxError> {
        start_durable(Self::IMAGE).await
    }
}

async fn start_durable(image: &str) -> Result<server::Server, BoxError> {
    let setup = Setup::image(image).args(["--save", "", "--appendonly", "yes", "--appendfsync", "always"]);
    // Its log is read whenever it is started again, and says no more than that.
    server::Server::start_on(server::PORT, setup.ready(["Ready to accept connections"])).await
}

/// Runs the program that this process is, if it is one of these.
pub(crate) fn program() -> Option<ExitCode> {
    soak::program::<Server>()
        .or_else(buffered::program::<DurableServer>)
        .or_else(chaos::program::<DurableServer>)
        .or_else(frozen::program::<DurableServer>)
        .or_else(starved::program::<Server>)
        .or_else(wrapped_signals::program)
        .or_else(signals::program)
}

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = soak::trials::<Server>();
    let signals: [(&str, soak::Claim<Server>); 6] = [
        ("s5_a_signal_loses_no_reply_command_on_one_thread", |s| Box::pin(signals::healthy(s, "one_thread"))),
        ("s5_a_signal_loses_no_reply_command_on_two_threads", |s| Box::pin(signals::healthy(s, "two_threads"))),
        ("s5_abandoned_commands_and_pipelines_are_executed", |s| Box::pin(signals::abandoned(s))),
        ("s5_what_a_stopped_server_does_not_get_is_reported", |s| Box::pin(signals::stopped(s))),
        ("s6_nothing_of_a_wrapped_manager_is_left_by_a_signal", |s| Box::pin(wrapped_signals::managers(s))),
        ("a_process_with_what_was_wrapped_exits_with_0_in_every_form", |s| Box::pin(wrapped_signals::others(s))),
    ];
    trials.extend(signals.map(|(name, claim)| soak::trial(name, ServerUse::Own, claim)));
    trials.extend(buffered::trials::<DurableServer>());
    trials.extend([frozen::thawing::<DurableServer>(), frozen::warm::<DurableServer>()]);
    trials.extend(starved::trials::<Server>());
    trials.extend(chaos::trials::<DurableServer>());
    trials.extend(chaos::trials::<DurableValkey>());
    trials
}

impl<V> Buffered for RedisServer<Durable<V>, OfItsOwn>
where
    Durable<V>: Version,
{
    type Sink = Stream;

    const REPLAY: (&'static str, &'static [&'static str]) =
        (env!("CARGO_BIN_EXE_winddown-replay-redis"), &["--fields", "number,text", "--stream"]);

    fn sink(table: &str) -> Stream {
        Stream::to(table)
    }

    fn table(&self, name: &str) -> String {
        self.tenant.key(name)
    }

    async fn create(&self, _: &str) -> Result<(), BoxError> {
        // It is made by its first record.
        Ok(())
    }

    async fn numbers(&self, table: &str) -> Result<Vec<i64>, BoxError> {
        let mut superuser = self.server.superuser().await?;
        let entries: Vec<(String, Vec<(String, String)>)> =
            redis::cmd("XRANGE").arg(table).arg("-").arg("+").query_async(&mut superuser).await?;
        // A record is one field, with the number as its name; the command names the fields.
        let numbers = entries.into_iter().filter_map(|(_, fields)| fields.into_iter().next());
        Ok(numbers
            .map(|(name, value)| if name == "number" { value } else { name }.parse())
            .collect::<Result<_, _>>()?)
    }
}

impl<V> Chaos for RedisServer<Durable<V>, OfItsOwn>
where
    Durable<V>: Version,
{
    // One that becomes a replica ends all that is blocked.
    const ENDS_OTHERS: &'static [Trouble] = &[Trouble::Restart, Trouble::ReadOnly];

    async fn ask(connection: &mut CheckoutOf<Self>) -> Result<(), BoxError> {
        Ok(redis::cmd("PING").exec_async(connection).await?)
    }

    /// Nobody feeds it, so it waits for as long, and leaves its row by itself.
    async fn statement(connection: &mut CheckoutOf<Self>, takes: Duration) -> Result<(), BoxError> {
        // Zero would be for ever.
        let takes = takes.max(Duration::from_millis(1)).as_secs_f64();
        redis::cmd("BLPOP").arg(key("source")).arg(takes).exec_async(connection).await?;
        Ok(redis::cmd("RPUSH").arg(key(server::ROWS)).arg(1).exec_async(connection).await?)
    }

    async fn read_only(&self, read_only: bool) -> Result<(), BoxError> {
        server::is_replica(&mut self.superuser().await, read_only).await
    }
}

impl<V: Version> InProcess for RedisServer<V, OfItsOwn> {
    fn environment(&self) -> Vec<(&'static str, String)> {
        let tenant = &self.tenant;
        let url = format!("redis://{}:{}@{}", tenant.name, tenant.password, self.address());
        vec![(winddown_redis::URL_VARIABLE, url)]
    }

    fn from_env() -> Result<Redis, Error> {
        Redis::from_env()
    }
}

impl Frozen for DurableServer {
    async fn query(connection: &mut CheckoutOf<Self>) -> Result<(), BoxError> {
        Ok(redis::cmd("PING").exec_async(connection).await?)
    }

    async fn idle_timeout(&self, timeout: Duration) -> Result<(), BoxError> {
        let mut superuser = self.server.superuser().await?;
        Ok(redis::cmd("CONFIG").arg("SET").arg("timeout").arg(timeout.as_secs()).exec_async(&mut superuser).await?)
    }

    async fn left(&self) -> Result<usize, BoxError> {
        // The timeout is for everybody.
        Ok(Listed::of(&self.tenant, &mut self.server.superuser().await?).await?.len())
    }
}

impl<V: Version> Starved for RedisServer<V, OfItsOwn> {
    const MANY: usize = 600;

    fn with_room(sessions: usize) -> Result<Redis, Error> {
        Ok(Redis::new(Config::from_env()?.pooled(sessions)))
    }

    async fn endless(connection: &mut CheckoutOf<Self>, begun: impl FnOnce() + Send + 'static) {
        begun();
        // It is stopped.
        let _ = redis::cmd("BLPOP").arg(key("endless")).arg(0).exec_async(connection).await;
    }
}

/// One that the user of this process may use, and nobody else does.
fn key(name: &str) -> String {
    let url = env::var(winddown_redis::URL_VARIABLE).unwrap_or_default();
    let user = url.trim_start_matches("redis://").split(':').next().unwrap_or_default();
    format!("{{{user}}}:{name}")
}
