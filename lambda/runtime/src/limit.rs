//! How long the platform lets a function initialise itself.

use std::{env, fs, time::Duration};

use winddown_core::{Error, ErrorKind, Lifecycle};

/// The variable that overrides the platform's limit: a whole number of milliseconds.
pub const INIT_LIMIT_VARIABLE: &str = "WINDDOWN_INIT_LIMIT_MS";

/// AWS Lambda Developer Guide, "Lambda execution environment lifecycle", init phase: 10 s; the same for the hooks after the
/// restore from a snapshot ("Lambda SnapStart", runtime hooks).
const ON_DEMAND: Duration = Duration::from_secs(10);

/// The same, for provisioned concurrency, SnapStart and Managed Instances: 130 s or the function's timeout, whichever is
/// higher. The timeout is in no variable, so this is what is sure.
const LONG: Duration = Duration::from_secs(130);

/// Kept for the post to `/runtime/init/error`, after the drain of what was initialised.
const FOR_THE_POST: Duration = Duration::from_millis(250);

/// Which limit it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The start of the process, whose init began before `main` did.
    Init,
    /// After the restore from a snapshot, from the moment at which the function is told of it.
    Restore,
}

/// Initialises everything, in the time that the platform has for it: where that is nearly over it fails, so that Lambda can
/// be told why.
///
/// # Errors
/// Those of [`Lifecycle::init_within`]; [`ErrorKind::Config`] where the variable is no number.
pub(crate) async fn init(lifecycle: &Lifecycle, phase: Phase) -> Result<(), Error> {
    let limit = of_platform(phase, |name| env::var(name).ok())?;
    match lifecycle.init_limit() {
        // The application knows better.
        Some(_) => lifecycle.init().await,
        None => lifecycle.init_within(left(limit, phase)).await,
    }
}

fn left(limit: Duration, phase: Phase) -> Duration {
    let age = match phase {
        // One that is older than it may be is not limited: it runs on a desk, or nobody can say how old it is.
        Phase::Init => age().filter(|age| *age < limit).unwrap_or_default(),
        Phase::Restore => Duration::ZERO,
    };
    // Of a short one, as in a test, no more than an eighth.
    limit - age - FOR_THE_POST.min((limit - age) / 8)
}

fn of_platform(phase: Phase, variable: impl Fn(&str) -> Option<String>) -> Result<Duration, Error> {
    if let Some(value) = variable(INIT_LIMIT_VARIABLE) {
        return value.trim().parse().map(Duration::from_millis).map_err(|error| {
            let what = format!("{INIT_LIMIT_VARIABLE}={value:?} is not a whole number of milliseconds: set it to one");
            Error::new(ErrorKind::Config, what).with_source(error)
        });
    }
    let kind = variable("AWS_LAMBDA_INITIALIZATION_TYPE");
    Ok(match (phase, kind.as_deref()) {
        (Phase::Init, Some("provisioned-concurrency" | "snap-start" | "lambda-managed-instances")) => LONG,
        // Also where nobody says: the smaller is right for both.
        _ => ON_DEMAND,
    })
}

/// How long this process has existed: proc(5), `/proc/pid/stat`, field 22, in clock ticks since the system started, and
/// `/proc/uptime`. None where the system does not say.
fn age() -> Option<Duration> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    age_of(&stat, &uptime, rustix::param::clock_ticks_per_second())
}

fn age_of(stat: &str, uptime: &str, ticks: u64) -> Option<Duration> {
    // Behind the program's name, which is in brackets and may hold any character.
    let started: f64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let now: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    Duration::try_from_secs_f64(now - started / ticks as f64).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(phase: Phase, variables: &[(&str, &str)]) -> Result<Duration, String> {
        let variable = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        of_platform(phase, variable).map_err(|error| error.to_string())
    }

    #[test]
    fn each_kind_of_initialisation_has_its_limit() {
        let of = |phase, kind| limit(phase, &[("AWS_LAMBDA_INITIALIZATION_TYPE", kind)]);
        assert_eq!(of(Phase::Init, "on-demand"), Ok(ON_DEMAND));
        for kind in ["provisioned-concurrency", "snap-start", "lambda-managed-instances"] {
            assert_eq!(of(Phase::Init, kind), Ok(LONG));
        }
        assert_eq!(of(Phase::Restore, "snap-start"), Ok(ON_DEMAND));
        assert_eq!(limit(Phase::Init, &[]), Ok(ON_DEMAND));
        let overridden = [("AWS_LAMBDA_INITIALIZATION_TYPE", "snap-start"), (INIT_LIMIT_VARIABLE, "2500")];
        assert_eq!(limit(Phase::Restore, &overridden), Ok(Duration::from_millis(2500)));
        let error = limit(Phase::Init, &[(INIT_LIMIT_VARIABLE, "soon")]).unwrap_err();
        assert!(error.contains(INIT_LIMIT_VARIABLE) && error.contains("soon"), "{error}");
    }

    #[test]
    fn the_age_of_a_process_is_read_behind_its_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 1250 1 1";
        assert_eq!(age_of(stat, "20.50 1.00", 100), Some(Duration::from_secs(8)));
        assert_eq!(age_of(stat, "1.00 1.00", 100), None, "it is of the future");
        assert_eq!(age_of("7", "1.00 1.00", 100), None);
        assert!(age().is_some_and(|age| age < Duration::from_secs(3600)));
    }

    #[test]
    fn a_process_that_is_older_than_it_may_be_is_given_the_whole_limit() {
        let tiny = Duration::from_nanos(8);
        assert_eq!(left(tiny, Phase::Init), Duration::from_nanos(7));
        assert_eq!(left(ON_DEMAND, Phase::Restore), ON_DEMAND - FOR_THE_POST);
    }
}
