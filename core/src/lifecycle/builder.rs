//! How a lifecycle is set up.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{signal::unix::SignalKind, sync::watch};

use super::{Life, Lifecycle, Lives, Shared, own_process};
use crate::{
    Budget, Error, ErrorKind, Platform, ReportFormat, Retry, node::Node, platform::BUDGET_VARIABLE, signals,
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
    init_limit: Option<Duration>,
}

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
            init_limit: None,
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

    /// How long the platform lets [`init`](Lifecycle::init) and [`run`](Lifecycle::run) take to initialise everything: see
    /// [`Lifecycle::init_within`].
    ///
    /// Defaults to no limit.
    pub fn init_limit(mut self, limit: Duration) -> Self {
        self.init_limit = Some(limit);
        self
    }

    /// The lifecycle. Signals are received from here on.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) when the budget cannot be used, the signal thread cannot be started, signals are asked
    /// for and another lifecycle of this process has them, one of them [cannot begin a drain](Self::stop_on), or some are added and none
    /// are received.
    pub fn build(self) -> Result<Lifecycle, Error> {
        let Self { budget, platform, signals, further, embedded, report, retry, init_limit } = self;
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
        let tracked = Arc::new(TrackedWork::slot(retry));
        let life = Arc::new(Life::new(vec![Arc::clone(&tracked) as Arc<dyn Node>], tracked));
        life.prepare(signals);
        let shared = Arc::new(Shared {
            platform,
            budget,
            report_format: report.unwrap_or_else(|| signals.then(ReportFormat::detect)),
            owns_process: signals,
            signals: signals::all(&further)?,
            embedded,
            retry,
            init_limit,
            lives: watch::Sender::new(Lives { now: life, is_last: false }),
            beginning: Mutex::new(()),
        });
        if signals {
            own_process(&shared)?;
        }
        Ok(Lifecycle { shared })
    }
}
