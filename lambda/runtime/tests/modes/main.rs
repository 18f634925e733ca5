//! Functions as processes of their own, under every mode of the runtime. Each case starts this binary again as one of the
//! functions of `programs.rs`, under an API that does what the case wants.

mod api;
mod concurrent;
mod log;
mod programs;
mod responses;
mod snapshot;
mod starting;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// Lists a file's cases with their names, each on a runtime of its own.
macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        pub(crate) const ALL: &[(&str, fn())] = &[$((stringify!($case), || crate::play($case()))),*];
    };
}
pub(crate) use cases;

fn play(case: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(case);
}

fn main() -> ExitCode {
    if let Some(program) = winddown_testkit::child::role() {
        return programs::run(&program);
    }
    let trials = [concurrent::ALL, log::ALL, responses::ALL, snapshot::ALL, starting::ALL].concat().into_iter().map(
        |(name, case)| {
            Trial::test(name, move || {
                case();
                Ok(())
            })
        },
    );
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}
