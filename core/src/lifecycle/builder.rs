//! How a lifecycle is set up.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{signal::unix::SignalKind, sync::watch};

use super::{Lifecycle, own_process};
use crate::{
    Budget, Error, ErrorKind, Platform, ReportFormat, Retry,
    life::{Life, LifecycleState, Lives},
    node::{Node, Settings},
    platform::BUDGET_VARIABLE,
    signals,
    work::TrackedWork,
};

/// Sets what [`Lifecycle::detect`] decides by itself.
#[derive(Debug, Clone)]
#[must_use = "nothing happens before `build`"]
pub struct Builder {
    budget: Option<Duration>,
    platform: Option<Platform>,
    signals: bool,
    further: Vec<SignalKind>,
    embedded: bool,
    /// `None`: as `signals` decides.
    report: Option<Option<ReportFormat>>,
    retry: Retry,
    warn_after: Option<Duration>,
    init_limit: Option<Duration>,
    work_share: f64,
    exit_after: Duration,
}

/// Three quarters: what else is drained has the rest, and requests that take that long are rare.
const WORK_SHARE: f64 = 0.75;

/// Enough for what a `main` does when its runtime is gone, and within a second of the drain's end.
const EXIT_AFTER: Duration = Duration::from_millis(750);

impl Default for Builder {
    fn default() -> Self {
        Self {
            budget: None,
            platform: None,
            signals: true,
            further: Vec::new(),
            embedded: false,
            report: None,
            retry: Retry::default(),
            warn_after: None,
            init_limit: None,
            work_share: WORK_SHARE,
            exit_after: EXIT_AFTER,
        }
    }
}

impl Builder {
    /// The time between the signal and SIGKILL.
    ///
    /// Defaults to `WINDDOWN_BUDGET_MS`, else to the platform's.
    pub fn budget(mut self, budget: Duration) -> Self {
        self.budget = Some(budget);
        self
    }

    /// The platform, where it cannot be recognised, or where its budget is set otherwise (Kubernetes:
    /// `terminationGracePeriodSeconds` less the preStop hook).
    ///
    /// Defaults to [`Platform::detect`].
    pub fn platform(mut self, platform: Platform) -> Self {
        self.platform = Some(platform);
        self
    }

    /// Whether the lifecycle owns the process: SIGTERM and SIGINT drain it, a further signal 100 ms or more after the
    /// first ends the process at once, and at the deadline it is ended. Without, only the application's own calls drain,
    /// and nothing ends the process: for tests. [`Lifecycle::run`] is an error then; see [`embedded`](Self::embedded).
    ///
    /// Defaults to `true`.
    pub fn signals(mut self, signals: bool) -> Self {
        self.signals = signals;
        self.embedded &= !signals;
        self
    }

    /// The lifecycle is part of something larger, which calls [`Lifecycle::begin_drain`] when the process is told to stop: it
    /// receives no signals, ends no process, and [`Lifecycle::run`] takes that for granted.
    pub fn embedded(mut self) -> Self {
        self.signals = false;
        self.embedded = true;
        self
    }

    /// Further signals that begin a drain as SIGTERM does: SIGHUP of a terminal that is closed (it means "read your
    /// configuration again" to many daemons), SIGQUIT, or one of the application's own.
    ///
    /// Defaults to none.
    ///
    /// ```no_run
    /// # use winddown_core::{Error, Lifecycle, SignalKind};
    /// # fn example() -> Result<Lifecycle, Error> {
    /// Lifecycle::builder().stop_on([SignalKind::hangup(), SignalKind::quit()]).build()
    /// # }
    /// ```
    pub fn stop_on(mut self, signals: impl IntoIterator<Item = SignalKind>) -> Self {
        self.further.extend(signals);
        self
    }

    /// How the report is written to standard error when the drain ends; `None` to leave it to the caller.
    ///
    /// Defaults to [`ReportFormat::detect`] for a lifecycle that receives signals, and to `None` for one that does not.
    pub fn report(mut self, report: impl Into<Option<ReportFormat>>) -> Self {
        self.report = Some(report.into());
        self
    }

    /// How failed initialisations are tried again.
    ///
    /// Defaults to [`Retry::default`].
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Warns, through `tracing`, of each checkout that is out for longer than this: once, with the resource and the line that made
    /// it, which has forgotten to give it back or holds it across something slow. From when it is handed out; tracked work and
    /// hooks are none.
    ///
    /// Each checkout then has a timer of its own on the runtime that it is made on, which goes when it comes back: some hundred
    /// nanoseconds and an allocation. Outside of a runtime, and where the runtime has no timers or has ended, there is no warning.
    ///
    /// Defaults to none, which costs a checkout nothing.
    pub fn warn_after(mut self, limit: Duration) -> Self {
        self.warn_after = Some(limit);
        self
    }

    /// How long the platform lets [`init`](Lifecycle::init) and [`run`](Lifecycle::run) take to initialise everything: see
    /// [`Lifecycle::init_within`].
    ///
    /// Defaults to no limit.
    pub fn init_limit(mut self, limit: Duration) -> Self {
        self.init_limit = Some(limit);
        self
    }

    /// Which part of the budget is for [tracked work](Lifecycle::track) alone, from 0 to 1. When that is over the resources
    /// are drained beside what is still tracked, so that requests which never end (server-sent events, half a request) do not
    /// keep idle sessions from their goodbye: the work goes on, to the end of the budget at the most, but gets no more
    /// checkouts. What it has checked out it may give back as any other checkout.
    ///
    /// Defaults to 0.75.
    pub fn work_share(mut self, share: f64) -> Self {
        self.work_share = share;
        self
    }

    /// How long the process may go on when it was told to stop, the report is clean, and the runtime on which
    /// [`run`](Lifecycle::run) has returned is being shut down. What holds it up then is a blocking task (`spawn_blocking`,
    /// a read of standard input), for which tokio waits without end: after this time the process is ended, with 0 where `run`
    /// had no error. What a `main` does before its runtime is shut down has the whole budget.
    ///
    /// Defaults to 750 ms. With the budget or more, only the budget counts.
    pub fn exit_after(mut self, time: Duration) -> Self {
        self.exit_after = time;
        self
    }

    /// The lifecycle. Signals are received from here on.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) when the budget cannot be used, the signal thread cannot be started, signals are asked
    /// for and another lifecycle of this process has them, one of them [cannot begin a drain](Self::stop_on), some are added and none
    /// are received, or the [share of the work](Self::work_share) is not from 0 to 1.
    pub fn build(self) -> Result<Lifecycle, Error> {
        let Self {
            budget,
            platform,
            signals,
            further,
            embedded,
            report,
            retry,
            warn_after,
            init_limit,
            work_share,
            exit_after,
        } = self;
        let settings = Settings { retry, warn_after };
        let platform = platform.unwrap_or_else(Platform::detect);
        let variable = std::env::var_os(BUDGET_VARIABLE).map(|value| value.to_string_lossy().into_owned());
        // A variable that cannot be used is an error even where the builder overrides it: somebody meant something.
        let variable = Budget::from_variable(variable.as_deref())?;
        let budget = match (budget, variable) {
            (Some(budget), _) => Budget::new(budget)?,
            (None, Some(variable)) => variable,
            (None, None) => Budget::new(platform.budget)?,
        };
        if !signals && !further.is_empty() {
            let text = "further signals are to begin a drain, and none are received: leave one of the two out";
            return Err(Error::new(ErrorKind::Config, text));
        }
        if !(0.0..=1.0).contains(&work_share) {
            let text = format!("work_share is {work_share}: give it a part of the budget, from 0 to 1");
            return Err(Error::new(ErrorKind::Config, text));
        }
        let tracked = Arc::new(TrackedWork::slot(settings));
        let life = Arc::new(Life::new(vec![Arc::clone(&tracked) as Arc<dyn Node>], tracked));
        life.prepare(signals);
        let shared = Arc::new(LifecycleState {
            platform,
            budget,
            report_format: report.unwrap_or_else(|| signals.then(ReportFormat::detect)),
            owns_process: signals,
            signals: signals::all(&further)?,
            embedded,
            settings,
            init_limit,
            work_share,
            exit_after,
            ending: watch::Sender::default(),
            lives: watch::Sender::new(Lives { now: life, is_last: false }),
            beginning: Mutex::new(()),
        });
        if signals {
            own_process(&shared)?;
        }
        Ok(Lifecycle { shared })
    }
}
