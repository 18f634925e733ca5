//! Real processes, real signals: what is asserted is the exit status, the time, the report, and what is left behind.
//!
//! Each case starts this binary again as one of the programs of `programs.rs`. That takes a `main` of our own, so the
//! cases run under libtest-mimic.

mod cases;
mod differential;
mod ending;
mod foreign;
mod front_door;
mod lambda;
mod memory;
mod platform;
mod programs;
mod scripted;
mod spills;
mod stops;
mod web;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    if let Some(program) = winddown_testkit::child::role() {
        return programs::run(&program);
    }
    let all = [
        cases::ALL,
        lambda::ALL,
        platform::ALL,
        foreign::ALL,
        differential::ALL,
        ending::ALL,
        stops::ALL,
        spills::ALL,
        memory::ALL,
        web::ALL,
        front_door::ALL,
    ]
    .concat();
    let trials = all.into_iter().map(|(name, case)| {
        let trial = Trial::test(name, move || {
            case();
            Ok(())
        });
        // What needs something of the machine can be left out, and only by saying so.
        let left_out = lambda::left_out(name).or_else(|| foreign::left_out(name)).or_else(|| memory::left_out(name));
        if let Some(reason) = &left_out {
            println!("{name} is left out: {reason}");
        }
        trial.with_ignored_flag(left_out.is_some())
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}
