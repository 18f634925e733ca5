//! Functions with the memory, and the share of a CPU, that Lambda gives for its size.

use std::{env, time::Duration};

use winddown::sim::{Config, ErrorKind, Reason, Sim};
use winddown_testkit::{child, soak::rounds};

use crate::{
    cases::cases,
    lambda::{AMPLE, four_at_once, play},
};

cases![
    a_function_gets_no_more_of_a_cpu_than_its_memory_size_has,
    soak_a_cpus_share_grows_with_the_memory_size,
    who_needs_more_memory_than_there_is_is_killed,
    a_memory_size_that_lambda_has_not_is_refused,
    with_the_least_memory_lambda_has_four_backends_say_goodbye_in_seconds,
];

/// Leaves out the cases that need cgroups in which this process may make some.
const SKIP: &str = "WINDDOWN_SKIP_CGROUPS";

/// Why a case is to be left out, where somebody has asked for that.
pub(crate) fn left_out(case: &str) -> Option<String> {
    let limited = ALL.iter().any(|(name, _)| *name == case) && case != "a_memory_size_that_lambda_has_not_is_refused";
    (limited && env::var_os(SKIP).is_some()).then(|| format!("{SKIP} is set"))
}

/// A server that knows nothing of winddown, with so much memory.
fn server(memory_mb: u32) -> Config {
    let config = Config::new(child::example("sim_web").get_program()).web_function(8).memory_mb(memory_mb);
    config.init_timeout(AMPLE).timeout(AMPLE).budget(AMPLE).capture_output()
}

/// What part of one CPU a process had that wanted all of it for so long, in the simulator and as the kernel counts.
fn share(memory_mb: u32, time: Duration) -> f64 {
    play(async {
        let sim = Sim::start(server(memory_mb)).await.unwrap();
        let burnt = sim.request("GET", &format!("/burn?ms={}", time.as_millis()), "").await.unwrap();
        assert!(sim.shutdown(Reason::Spindown).await.ended_by_itself());
        let numbers = burnt.payload["body"].as_str().unwrap().split(' ').map(|number| number.parse::<f64>().unwrap());
        let [used, passed] = numbers.collect::<Vec<_>>()[..] else { panic!("{burnt:?}") };
        used / passed
    })
}

/// What Lambda gives: at 1,769 MB it is one.
fn share_of(memory_mb: u32) -> f64 {
    f64::from(memory_mb) / 1769.0
}

/// No more, on any machine. How much less is the machine's business.
fn a_function_gets_no_more_of_a_cpu_than_its_memory_size_has() {
    for memory_mb in [128, 512] {
        let share = share(memory_mb, Duration::from_secs(2));
        assert!(share < share_of(memory_mb) * 1.2, "{share:.3} of a CPU with {memory_mb} MB");
    }
}

/// How much less it is: on a machine with a CPU to spare, full size.
fn soak_a_cpus_share_grows_with_the_memory_size() {
    for _ in 0..rounds(5, 1) {
        let (least, one) = (share(128, Duration::from_secs(4)), share(1769, Duration::from_secs(4)));
        println!(
            "{least:.4} of a CPU with 128 MB, {one:.4} with 1769 MB: {:.2} times, by the quotas {:.2}",
            one / least,
            1.0 / share_of(128)
        );
        assert!(one > least, "{one} with more memory, {least} with less");
    }
}

fn who_needs_more_memory_than_there_is_is_killed() {
    play(async {
        let sim = Sim::start(server(128)).await.unwrap();
        assert!(sim.request("GET", "/hoard?mb=60", "").await.unwrap().ok);
        let failed = sim.request("GET", "/hoard?mb=200", "").await.unwrap();
        assert_eq!(failed.error.unwrap().error_type, "Runtime.OutOfMemory");
        let record = sim.shutdown(Reason::Spindown).await;
        assert_eq!((record.function.signal, record.function.killed), (Some(9), false), "{record}");
        assert!(record.timeline.iter().any(|entry| entry.event == "exit signal 9, out of memory"), "{record}");

        let sim = Sim::start(server(512)).await.unwrap();
        assert!(sim.request("GET", "/hoard?mb=200", "").await.unwrap().ok, "with more memory it lives");
        assert!(sim.shutdown(Reason::Spindown).await.ended_by_itself());
    });
}

fn a_memory_size_that_lambda_has_not_is_refused() {
    for memory_mb in [0, 127, 10_241] {
        let error = play(Sim::start(server(memory_mb))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Start, "{error}");
        assert!(error.to_string().contains("from 128 to 10240"), "{error}");
    }
}

/// 7 % of a CPU. By hand it takes 80 ms.
fn with_the_least_memory_lambda_has_four_backends_say_goodbye_in_seconds() {
    let stdout = four_at_once(&["--memory-mb", "128"]);
    let took =
        stdout.lines().find_map(|line| line.strip_prefix("winddown: drained in ")?.split(' ').next()?.parse().ok());
    let took: f64 = took.unwrap_or_else(|| panic!("no report in {stdout}"));
    println!("drained in {took} ms");
    assert!(took < 5_000.0, "{stdout}");
}
