//! Providers of the OpenTelemetry SDK with exporters of every temper.

use std::{
    fs, io,
    io::Write,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use opentelemetry::{
    logs::{LogRecord, Logger, LoggerProvider},
    metrics::MeterProvider,
    trace::{Span, Tracer, TracerProvider},
};
use opentelemetry_sdk::{
    error::{OTelSdkError, OTelSdkResult},
    logs::{LogBatch, LogExporter, SdkLoggerProvider},
    metrics::{PeriodicReader, SdkMeterProvider, Temporality, data::ResourceMetrics, exporter::PushMetricExporter},
    trace::{SdkTracerProvider, SpanData, SpanExporter},
};
use tokio::time::timeout;
use winddown_core::{ErrorKind, Lifecycle, Outcome, Report, ShutdownGuard, memory::Memory};
use winddown_telemetry::{OpenTelemetry, non_blocking};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Temper {
    Good,
    Slow(Duration),
    Hangs,
    Fails,
    Panics,
    /// Fails the first time, when it is let go; good from then on.
    FailsLate,
}

/// Exports spans, metrics and log records alike.
#[derive(Debug, Clone)]
struct Exporter {
    temper: Temper,
    exported: Arc<Mutex<Vec<String>>>,
    shut_down: Arc<Mutex<bool>>,
    late: Arc<Late>,
}

/// The first export of one that fails late.
#[derive(Debug, Default)]
struct Late {
    let_go: AtomicBool,
    has_failed: AtomicBool,
}

impl Exporter {
    fn new(temper: Temper) -> Self {
        Self { temper, exported: Arc::default(), shut_down: Arc::default(), late: Arc::default() }
    }

    fn export(&self, names: impl Iterator<Item = String>) -> OTelSdkResult {
        match self.temper {
            Temper::Good => {}
            Temper::Slow(time) => thread::sleep(time),
            Temper::Hangs => loop {
                thread::park();
            },
            Temper::Fails => return Err(OTelSdkError::InternalFailure("the collector says no".into())),
            Temper::Panics => panic!("the exporter has a bug"),
            Temper::FailsLate if self.late.has_failed.load(Ordering::SeqCst) => {}
            Temper::FailsLate => {
                while !self.late.let_go.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_millis(1));
                }
                self.late.has_failed.store(true, Ordering::SeqCst);
                return Err(OTelSdkError::InternalFailure("the collector went away".into()));
            }
        }
        self.exported.lock().unwrap().extend(names);
        Ok(())
    }

    fn exported(&self) -> Vec<String> {
        self.exported.lock().unwrap().clone()
    }

    fn is_shut_down(&self) -> bool {
        *self.shut_down.lock().unwrap()
    }

    fn shut_down(&self) -> OTelSdkResult {
        *self.shut_down.lock().unwrap() = true;
        Ok(())
    }
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        Self::export(self, batch.into_iter().map(|span| span.name.into_owned()))
    }
    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        self.shut_down()
    }
}

impl PushMetricExporter for Exporter {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let metrics = metrics.scope_metrics().flat_map(|scope| scope.metrics());
        Self::export(self, metrics.map(|metric| metric.name().to_owned()))
    }
    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }
    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        self.shut_down()
    }
    fn temporality(&self) -> Temporality {
        Temporality::Delta
    }
}

impl LogExporter for Exporter {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        Self::export(self, batch.iter().filter_map(|(record, _)| record.event_name()).map(str::to_owned))
    }
    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        self.shut_down()
    }
}

/// One provider as the application uses it.
#[derive(Clone)]
enum Signal {
    Traces(SdkTracerProvider),
    Metrics(SdkMeterProvider),
    Logs(SdkLoggerProvider),
}

const SIGNALS: [&str; 3] = ["traces", "metrics", "logs"];

impl Signal {
    fn new(name: &str, exporter: &Exporter) -> Self {
        let exporter = exporter.clone();
        match name {
            "traces" => Self::Traces(SdkTracerProvider::builder().with_batch_exporter(exporter).build()),
            "metrics" => {
                // Not by itself while a test runs.
                let reader = PeriodicReader::builder(exporter).with_interval(Duration::from_secs(3600)).build();
                Self::Metrics(SdkMeterProvider::builder().with_reader(reader).build())
            }
            "logs" => Self::Logs(SdkLoggerProvider::builder().with_batch_exporter(exporter).build()),
            other => panic!("no signal {other}"),
        }
    }

    fn record(&self, name: &'static str) {
        match self {
            Self::Traces(provider) => provider.tracer("test").start(name).end(),
            Self::Metrics(provider) => provider.meter("test").u64_counter(name).build().add(1, &[]),
            Self::Logs(provider) => {
                let logger = provider.logger("test");
                let mut record = logger.create_log_record();
                record.set_event_name(name);
                logger.emit(record);
            }
        }
    }

    fn resource(&self) -> OpenTelemetry {
        match self {
            Self::Traces(provider) => OpenTelemetry::traces(provider),
            Self::Metrics(provider) => OpenTelemetry::metrics(provider),
            Self::Logs(provider) => OpenTelemetry::logs(provider),
        }
    }

    fn shut_down(&self) {
        match self {
            Self::Traces(provider) => provider.shutdown(),
            Self::Metrics(provider) => provider.shutdown(),
            Self::Logs(provider) => provider.shutdown(),
        }
        .unwrap();
    }
}

struct Scene {
    lifecycle: Lifecycle,
    exporter: Exporter,
    signal: Signal,
    _guard: ShutdownGuard<OpenTelemetry>,
}

/// Not used up by any machine.
const BUDGET: Duration = Duration::from_secs(60);

/// Used up by an exporter that hangs: less than the SDK's own 5 s.
const USED_UP: Duration = Duration::from_secs(4);

/// So late does a busy machine run a thread that has to see a deadline.
const LATE: Duration = Duration::from_secs(5);

fn scene(name: &str, temper: Temper) -> Scene {
    let budget = if temper == Temper::Hangs { USED_UP } else { BUDGET };
    let lifecycle = Lifecycle::builder().signals(false).budget(budget).build().unwrap();
    let exporter = Exporter::new(temper);
    let signal = Signal::new(name, &exporter);
    let guard = lifecycle.guard(signal.resource());
    Scene { lifecycle, exporter, signal, _guard: guard }
}

fn outcome(report: &Report, name: &str) -> Outcome {
    report.resource(name).unwrap_or_else(|| panic!("no {name} in\n{report}")).outcome
}

/// Counts of this process's threads by that name.
fn threads(name: &str) -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.filter(|comm| comm.trim_end() == name).count()
}

#[tokio::test]
async fn what_is_recorded_before_and_during_the_drain_of_others_is_exported() {
    for name in SIGNALS {
        let scene = scene(name, Temper::Good);
        let signal = scene.signal.clone();
        scene.lifecycle.on_drain("last words", async move || {
            tokio::time::sleep(Duration::from_millis(50)).await;
            signal.record("during");
        });
        scene.signal.record("before");
        let report = scene.lifecycle.drain().await;
        assert!(report.is_clean(), "{report}");
        assert_eq!(outcome(&report, name), Outcome::Drained);
        let mut exported = scene.exporter.exported();
        exported.sort();
        assert_eq!(exported, ["before", "during"], "{name}");
        assert!(scene.exporter.is_shut_down());
    }
}

#[tokio::test]
async fn an_exporter_that_hangs_is_left_at_the_deadline_and_named() {
    for name in SIGNALS {
        let scene = scene(name, Temper::Hangs);
        let good = Exporter::new(Temper::Good);
        let others = SIGNALS.map(|other| (other, Signal::new(other, &good)));
        let others = others.into_iter().filter(|(other, _)| *other != name);
        let guards: Vec<_> = others
            .map(|(_, signal)| {
                signal.record("fine");
                scene.lifecycle.guard(signal.resource())
            })
            .collect();
        let db = scene.lifecycle.guard(Memory::new("db"));
        drop(db.get().await.unwrap());
        scene.signal.record("lost");

        let began = Instant::now();
        let report = scene.lifecycle.drain().await;
        assert!(began.elapsed() < USED_UP + LATE, "{report}");
        assert_eq!(outcome(&report, name), Outcome::Hung, "{report}");
        for guard in &guards {
            assert_eq!(outcome(&report, guard.name()), Outcome::Drained, "{report}");
        }
        assert_eq!((good.exported().len(), outcome(&report, "db")), (2, Outcome::Drained));
        let began = Instant::now();
        drop(scene);
        assert!(began.elapsed() < LATE, "what is left of it blocks nobody");
    }
}

/// On a clock that stands still while nobody waits: the report is told why in the last 12.5 ms.
#[tokio::test(start_paused = true)]
async fn an_exporter_that_hangs_is_what_the_report_says() {
    for name in SIGNALS {
        let scene = scene(name, Temper::Hangs);
        scene.signal.record("lost");
        let report = scene.lifecycle.drain_in_tasks().await;
        let row = report.resource(name).unwrap();
        assert_eq!(row.outcome, Outcome::Hung, "{report}");
        assert!(row.error.as_ref().unwrap().contains("its exporter does not answer"), "{report}");
    }
}

#[tokio::test]
async fn a_slow_exporter_is_waited_for() {
    for name in SIGNALS {
        let scene = scene(name, Temper::Slow(Duration::from_millis(300)));
        scene.signal.record("slow");
        let report = scene.lifecycle.drain().await;
        assert!(report.is_clean() && report.took >= Duration::from_millis(300), "{report}");
        assert_eq!(scene.exporter.exported(), ["slow"]);
    }
}

#[tokio::test]
async fn an_exporter_that_fails_or_panics_is_in_the_report_and_in_the_error_of_a_flush() {
    for name in SIGNALS {
        let fails = scene(name, Temper::Fails);
        fails.signal.record("refused");
        let error = fails.lifecycle.flush().await.unwrap_err();
        assert_eq!((error.kind(), error.resource()), (ErrorKind::Write, Some(name)));
        fails.signal.record("refused_too");
        let report = fails.lifecycle.drain().await;
        let row = report.resource(name).unwrap();
        assert_eq!(row.outcome, Outcome::Failed, "{report}");
        assert!(row.error.as_ref().unwrap().contains("not everything was exported"), "{report}");
        assert!(fails.exporter.is_shut_down(), "it is shut down all the same");

        let panics = scene(name, Temper::Panics);
        panics.signal.record("lost");
        let report = panics.lifecycle.drain().await;
        assert_eq!(outcome(&report, name), Outcome::Failed, "{report}");
    }
}

/// S5: what was in that flush is lost, and its waiter has gone.
#[tokio::test]
async fn a_flush_that_fails_when_nobody_waits_for_it_any_more_is_in_the_report() {
    for name in SIGNALS {
        let scene = scene(name, Temper::FailsLate);
        for lost in ["first", "second", "third"] {
            scene.signal.record(lost);
        }
        timeout(Duration::from_millis(10), scene.lifecycle.flush()).await.unwrap_err();
        scene.exporter.late.let_go.store(true, Ordering::SeqCst);
        // Its turn comes when the one before is over.
        let next = scene.lifecycle.flush().await;
        assert!(next.is_ok(), "this one has not failed: {next:?}");
        scene.signal.record("fourth");
        let report = scene.lifecycle.drain().await;
        assert_eq!(scene.exporter.exported().last().unwrap(), "fourth");
        let row = report.resource(name).unwrap();
        assert_eq!((report.is_clean(), row.outcome), (false, Outcome::Failed), "{report}");
        let error = row.error.as_ref().unwrap();
        assert!(
            error.contains("flushes that failed before: 1") && error.contains("not everything was exported"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn one_that_the_application_has_shut_down_is_drained() {
    for name in SIGNALS {
        let scene = scene(name, Temper::Good);
        scene.signal.record("early");
        scene.signal.shut_down();
        let report = scene.lifecycle.drain().await;
        assert!(report.is_clean(), "{report}");
        assert_eq!(scene.exporter.exported(), ["early"]);
    }
}

#[tokio::test]
async fn a_flush_exports_while_the_process_lives_on() {
    for name in SIGNALS {
        let scene = scene(name, Temper::Good);
        for round in ["first", "second"] {
            scene.signal.record(round);
            scene.lifecycle.flush().await.unwrap();
            assert_eq!(scene.exporter.exported().last().unwrap(), round);
        }
        assert!(!scene.exporter.is_shut_down());
    }
}

#[tokio::test]
async fn a_flush_that_hangs_can_be_given_up_any_number_of_times_and_holds_one_thread() {
    let scene = scene("metrics", Temper::Hangs);
    scene.signal.record("lost");
    let before = threads("winddown-flush");
    for _ in 0..20 {
        timeout(Duration::from_millis(10), scene.lifecycle.flush()).await.unwrap_err();
    }
    // The other tests of this process have some.
    assert!(threads("winddown-flush") < before + 10);
    let report = scene.lifecycle.drain().await;
    assert_eq!(outcome(&report, "metrics"), Outcome::Hung, "{report}");
}

/// What an exporter logs while it exports.
#[derive(Debug, Clone)]
struct Chatty<W>(Arc<Mutex<W>>);

impl<W: Write + Send + std::fmt::Debug + 'static> SpanExporter for Chatty<W> {
    async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
        thread::sleep(Duration::from_millis(50));
        self.0.lock().unwrap().write_all(b"exported\n").unwrap();
        Ok(())
    }
}

#[tokio::test]
async fn what_an_exporter_logs_is_written_where_it_is_drained_before_the_log() {
    let lifecycle = Lifecycle::builder().signals(false).budget(BUDGET).build().unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let (writer, appender) = non_blocking(file.reopen().unwrap());
    let log = lifecycle.guard(appender);
    let provider = SdkTracerProvider::builder().with_batch_exporter(Chatty(Arc::new(Mutex::new(writer)))).build();
    let _traces = lifecycle.guard(OpenTelemetry::traces(&provider).before(&log));
    provider.tracer("test").start("span").end();
    let report = lifecycle.drain().await;
    assert!(report.is_clean(), "{report}");
    assert_eq!(io::read_to_string(file).unwrap(), "exported\n");
}

#[test]
fn a_token_of_the_exporter_is_not_in_debug() {
    let provider = SdkTracerProvider::builder().with_batch_exporter(Exporter::new(Temper::Good)).build();
    let text = format!("{:?}", OpenTelemetry::traces(&provider));
    assert_eq!(text, r#"OpenTelemetry { name: "traces", .. }"#);
}
