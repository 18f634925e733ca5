//! Real processes, real signals: what is asserted is the exit status, the time, the report, and what is left behind.
//!
//! Each case starts this binary again as one of the programs of `programs.rs`. That takes a `main` of our own, so the
//! cases run under libtest-mimic.

mod cases;
mod child;
mod programs;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    if let Some(program) = child::role() {
        return programs::run(&program);
    }
    let trials = cases::ALL.iter().map(|(name, case)| {
        Trial::test(*name, || {
            case();
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}
