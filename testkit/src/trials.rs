//! Tests of one adapter that are none of the suite.

use std::{future::Future, sync::Arc, time::Duration};

use libtest_mimic::Trial;
use tokio::runtime::{Builder, Runtime};

use crate::limit::{Clock, within};

/// No test takes that long, without the wait for its servers; one that does hangs.
const LIMIT: Duration = Duration::from_secs(180);

/// A test that panics if something is not as it should be, on a runtime of its own. [`trials!`](macro@crate::trials) is
/// shorter.
pub fn trial<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F + Send + 'static) -> Trial {
    Trial::test(name, move || {
        let runtime = runtime()?;
        let clock: Arc<Clock> = Arc::default();
        let outcome = runtime.block_on(clock.run(async { within(LIMIT, test()).await }));
        runtime.shutdown_timeout(Duration::from_secs(1));
        outcome.ok_or_else(|| format!("it hung: it was not over after {LIMIT:?}").into())
    })
}

fn runtime() -> std::io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

/// One trial for each of these tests, named as they are: a module and what is in it, or functions alone. A test that is
/// missing here is dead code to the compiler.
///
/// ```text
/// trials! {
///     tls:
///         a_statement_is_cancelled_over_tls
///         twenty_sessions_say_goodbye_over_tls;
/// }
/// ```
#[macro_export]
macro_rules! trials {
    ($($module:ident: $($test:ident)+;)+) => {
        vec![$($($crate::trials::trial(concat!(stringify!($module), "::", stringify!($test)), $module::$test)),+),+]
    };
    ($($test:ident)+) => {
        vec![$($crate::trials::trial(stringify!($test), $test)),+]
    };
}
