//! Providers of the OpenTelemetry SDK.

use std::{fmt, sync::Arc, time::Duration};

use opentelemetry_sdk::{
    error::{OTelSdkError, OTelSdkResult},
    logs::SdkLoggerProvider,
    metrics::SdkMeterProvider,
    trace::SdkTracerProvider,
};
use tokio::time::Instant;
#[cfg(feature = "tracing-appender")]
use winddown_core::ShutdownGuard;
use winddown_core::{Capabilities, Error, ErrorKind, Resource, ResourceId, adapter::Drain};

#[cfg(feature = "tracing-appender")]
use crate::Appender;
use crate::aside::{Aside, Failures, watched};

/// A provider of the OpenTelemetry SDK that is flushed and shut down when everything else has been drained, so that it
/// exports what is recorded meanwhile too.
///
/// [`Lifecycle::guard`](winddown_core::Lifecycle::guard) takes it in; there is nothing to check out of that guard. Give it
/// each provider that the application has: they are flushed beside each other, and each has its own line in the report.
///
/// The SDK's calls block, and their own timeouts do not hold: a meter provider ignores the one it is given, and its flush
/// waits for ever. So they run on a thread of their own. When the drain's time is up that thread is left, and the
/// report calls the provider hung. It is not dropped then, as that would block again.
///
/// [`Lifecycle::flush`](winddown_core::Lifecycle::flush) flushes it too, and so does a Lambda function between invocations.
/// A flush that hangs is waited for by the next one; there is never more than one thread. What was in a flush that failed
/// is lost: the drain says how many there were and calls the provider failed, also where nobody waited for them any more.
/// What the SDK exports by itself, on its own interval, it tells nobody but its own log.
///
/// Sampling, export intervals and the exporter are the provider's business, and so is what happens to telemetry that is
/// recorded after the shutdown: it is dropped.
///
/// ```
/// use opentelemetry_sdk::trace::SdkTracerProvider;
/// use winddown_core::Lifecycle;
/// use winddown_telemetry::OpenTelemetry;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), winddown_core::Error> {
/// let provider = SdkTracerProvider::builder().build(); // with a batch exporter in a real program
/// let lifecycle = Lifecycle::builder().signals(false).build()?; // `Lifecycle::detect()` in a real program
/// let _traces = lifecycle.guard(OpenTelemetry::traces(&provider));
///
/// let report = lifecycle.drain().await;
/// assert!(report.is_clean(), "{report}");
/// # Ok(())
/// # }
/// ```
pub struct OpenTelemetry {
    name: &'static str,
    provider: Arc<dyn Provider>,
    aside: Aside,
    failures: Failures,
    before: Vec<ResourceId>,
}

impl OpenTelemetry {
    /// The provider of tracers, as `traces` in reports.
    pub fn traces(provider: &SdkTracerProvider) -> Self {
        Self::new("traces", provider.clone())
    }

    /// The provider of meters, as `metrics` in reports. A drain may export twice: when it is flushed, and when it is
    /// shut down.
    pub fn metrics(provider: &SdkMeterProvider) -> Self {
        Self::new("metrics", provider.clone())
    }

    /// The provider of loggers, as `logs` in reports.
    pub fn logs(provider: &SdkLoggerProvider) -> Self {
        Self::new("logs", provider.clone())
    }

    fn new(name: &'static str, provider: impl Provider) -> Self {
        Self {
            name,
            provider: Arc::new(provider),
            aside: Aside::default(),
            failures: Failures::default(),
            before: Vec::new(),
        }
    }

    /// Flushes before this log, so that what the exporter logs while it does is still written.
    #[cfg(feature = "tracing-appender")]
    #[must_use]
    pub fn before(mut self, log: &ShutdownGuard<Appender>) -> Self {
        self.before.push(log.id());
        self
    }
}

/// What the three providers have in common, and the SDK has no trait for.
trait Provider: Send + Sync + 'static {
    fn force_flush(&self) -> OTelSdkResult;
    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult;
}

macro_rules! provider {
    ($($provider:ty),*) => {$(
        impl Provider for $provider {
            fn force_flush(&self) -> OTelSdkResult {
                Self::force_flush(self)
            }

            fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
                Self::shutdown_with_timeout(self, timeout)
            }
        }
    )*};
}

provider!(SdkTracerProvider, SdkMeterProvider, SdkLoggerProvider);

fn not_exported(error: OTelSdkError) -> Error {
    Error::new(ErrorKind::Write, "not everything was exported").with_source(error)
}

/// Flushes first: the shutdown of a batch processor does not say what became of its last export.
fn end(provider: &dyn Provider, deadline: Instant) -> Result<(), Error> {
    let flushed = provider.force_flush();
    match provider.shutdown_with_timeout(deadline.saturating_duration_since(Instant::now())) {
        // The application has done it, and with it what a flush now says it cannot.
        Err(OTelSdkError::AlreadyShutdown) => Ok(()),
        shut_down => flushed.and(shut_down).map_err(not_exported),
    }
}

impl Resource for OpenTelemetry {
    type Pool = ();

    fn name(&self) -> &str {
        self.name
    }

    async fn init(&self) -> Result<(), Error> {
        Ok(())
    }

    /// It records from the moment it is built.
    fn opened(&self) -> Option<()> {
        Some(())
    }

    async fn goodbye(&self, (): &(), drain: &Drain) -> Result<(), Error> {
        let (provider, deadline) = (Arc::clone(&self.provider), drain.deadline());
        let failures = self.failures.clone();
        // Counted when its turn has come: a flush that was given up may fail until then.
        let end = self.aside.run(move || failures.and(end(&*provider, deadline)));
        watched(drain, "its exporter does not answer", end).await
    }

    async fn flush(&self, (): &()) -> Result<(), Error> {
        let provider = Arc::clone(&self.provider);
        let failures = self.failures.clone();
        self.aside.run(move || failures.keep(|| provider.force_flush().map_err(not_exported))).await
    }

    fn depends_on(&self) -> Vec<ResourceId> {
        self.before.clone()
    }

    fn drains_last(&self) -> bool {
        true
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::NO_SESSIONS
    }
}

impl fmt::Debug for OpenTelemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The provider is left out: its exporter may hold a token.
        f.debug_struct("OpenTelemetry").field("name", &self.name).finish_non_exhaustive()
    }
}
