//! Tests of one adapter that are none of the suite, against servers that they share.

use std::{future::Future, process::ExitCode, time::Duration};

use libtest_mimic::{Arguments, Trial};
use tokio::{
    runtime::{Builder, Runtime},
    time::timeout,
};
use winddown_core::BoxError;

use crate::containers;

/// No test takes that long; one that does hangs.
const LIMIT: Duration = Duration::from_secs(90);

/// Runs these tests, as libtest would, then `stop`, which ends what they shared. Without containers all are listed as
/// ignored, and the reason is printed.
pub fn run<F: Future<Output = Result<(), BoxError>>>(trials: Vec<Trial>, stop: impl FnOnce() -> F) -> ExitCode {
    let arguments = Arguments::from_args();
    let skipped = containers::skipped();
    if let Some(why) = skipped {
        eprintln!("all {} tests are skipped: {why}", trials.len());
    }
    let trials = trials.into_iter().map(|trial| trial.with_ignored_flag(skipped.is_some())).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    let stopped = runtime().map_err(BoxError::from).and_then(|runtime| runtime.block_on(stop()));
    if let Err(error) = stopped {
        eprintln!("error: a server was not stopped: {error}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

/// A test that panics if something is not as it should be, on a runtime of its own. [`trials!`](macro@crate::trials) is
/// shorter.
pub fn trial<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F + Send + 'static) -> Trial {
    Trial::test(name, move || {
        let runtime = runtime()?;
        let outcome = runtime.block_on(async { timeout(LIMIT, test()).await });
        runtime.shutdown_timeout(Duration::from_secs(1));
        outcome.map_err(|_| format!("it hung: it was not over after {LIMIT:?}").into())
    })
}

fn runtime() -> std::io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

/// One trial for each of these tests, named as they are. A test that is missing here is dead code to the compiler.
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
}
