//! An operator lists, checks and writes back what was spilled, without the application: records as JSON has them.

use std::{
    fmt,
    future::Future,
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
    sync::Mutex,
    time::{Duration, Instant},
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use winddown_core::{Checkout, Checkouts, Error, ErrorKind, Lifecycle};

use crate::{Batch, Delivery, Progress, Replay, Sink, SpillFile, WriteError, spilled};

/// Something stays: it was not read, was rejected, is in doubt or not whole.
const STAYS: u8 = 1;

/// It could not be done, or not to the end.
const FAILED: u8 = 2;

/// Another replay is at some of the files.
const BUSY: u8 = 3;

/// Progress is told so often at most.
const EVERY: Duration = Duration::from_secs(1);

/// A record as JSON has it: an object, or a list of values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Json(pub Value);

impl Json {
    /// The values of these columns: the fields of an object by their names, the elements of a list in their order.
    ///
    /// # Errors
    /// What is missing, or too much.
    pub fn values(&self, columns: &[String]) -> Result<Vec<Value>, String> {
        match &self.0 {
            Value::Object(fields) => {
                let value =
                    |column: &String| fields.get(column).cloned().ok_or_else(|| format!("it has no field `{column}`"));
                columns.iter().map(value).collect()
            }
            Value::Array(values) if values.len() == columns.len() => Ok(values.clone()),
            Value::Array(values) => Err(format!("it has {} values for {} columns", values.len(), columns.len())),
            value if columns.len() == 1 => Ok(vec![value.clone()]),
            _ => Err(format!("it is one value for {} columns", columns.len())),
        }
    }

    /// The fields of an object; those of a list, named so.
    ///
    /// # Errors
    /// What is missing, or too much.
    pub fn fields(&self, names: &[String]) -> Result<Map<String, Value>, String> {
        match &self.0 {
            Value::Object(fields) if names.is_empty() => Ok(fields.clone()),
            _ => Ok(names.iter().cloned().zip(self.values(names)?).collect()),
        }
    }
}

/// A value as text, as servers take it for a column of any type: nothing for null, JSON for lists and objects.
pub fn text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// Writes JSON records to a sink for others, each made into one of its own.
pub struct Made<S, U> {
    sink: S,
    columns: Vec<String>,
    make: fn(&Json, &[String]) -> Result<U, String>,
}

impl<S, U> Made<S, U> {
    /// For this sink, from these columns.
    pub fn new(sink: S, columns: Vec<String>, make: fn(&Json, &[String]) -> Result<U, String>) -> Self {
        Self { sink, columns, make }
    }
}

impl<S: Sink<U>, U: Send + Sync + 'static> Sink<Json> for Made<S, U> {
    type Target = S::Target;

    fn delivery(&self) -> Delivery {
        self.sink.delivery()
    }

    async fn write(&self, checkout: &mut Checkout<S::Target>, batch: &Batch<Json>) -> Result<(), WriteError> {
        let unfit = |why| {
            WriteError::Rejected(Error::new(ErrorKind::Write, format!("the record does not fit the columns: {why}")))
        };
        let batch = batch.try_map(|record| (self.make)(record, &self.columns).map_err(unfit))?;
        self.sink.write(checkout, &batch).await
    }

    fn check(&self, checkout: &mut Checkout<S::Target>) -> impl Future<Output = Result<(), Error>> + Send {
        self.sink.check(checkout)
    }
}

impl<S, U> fmt::Debug for Made<S, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Made").field("columns", &self.columns).finish_non_exhaustive()
    }
}

/// Where an adapter's command writes to: its own options, and what is made of them.
pub trait Target: Args {
    /// What is connected to.
    type Resource: Checkouts;

    /// What takes the records.
    type Sink: Sink<Json, Target = Self::Resource>;

    /// The resource and the sink that are asked for.
    ///
    /// # Errors
    /// What cannot be used, and what to do about it.
    fn open(self) -> Result<(Self::Resource, Self::Sink), Error>;
}

/// How often a record may be written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
#[expect(clippy::exhaustive_enums, reason = "there is no other way")]
pub enum Deliver {
    /// Once: the target remembers which batches it has
    #[default]
    ExactlyOnce,
    /// Once, or more often where an answer was lost
    AtLeastOnce,
    /// Once, or not at all where an answer was lost
    AtMostOnce,
}

impl From<Deliver> for Delivery {
    fn from(deliver: Deliver) -> Self {
        match deliver {
            Deliver::ExactlyOnce => Self::ExactlyOnce,
            Deliver::AtLeastOnce => Self::AtLeastOnce,
            Deliver::AtMostOnce => Self::AtMostOnce,
        }
    }
}

/// A table, for the commands of the databases that have tables.
#[derive(Debug, Args)]
#[expect(clippy::exhaustive_structs, reason = "the commands take it apart")]
pub struct Table {
    /// The table
    #[arg(long)]
    pub table: String,
    /// The columns, named as the fields of the records or in the order of their values
    #[arg(long, value_delimiter = ',', required = true)]
    pub columns: Vec<String>,
    /// How often a record may be written
    #[arg(long, value_enum, default_value_t)]
    pub delivery: Deliver,
    /// The table that remembers written batches, if it is another one than the application's by default
    #[arg(long)]
    pub key_table: Option<String>,
}

/// Lists, checks and writes back records that a winddown buffer has spilled
///
/// The exit status is 0 if all of it is where it belongs, 1 if something stays that could not be read or written, 2 if it could
/// not be done as asked, 3 if another replay is at some of the files. What is signed is checked with the key in
/// WINDDOWN_SPILL_KEY, if that is set.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli<T: Target> {
    #[command(subcommand)]
    command: Command<T>,
}

#[derive(Debug, Subcommand)]
enum Command<T: Target> {
    /// List the spill files and logs of a path
    List {
        /// A file or a directory
        path: PathBuf,
    },
    /// Read everything as a write would, and write nothing
    Check(Source),
    /// Write the records of a buffer to their target, and remove the files that are written whole
    Write {
        #[command(flatten)]
        source: Source,
        /// Write of batches in logs also what there is where lines are missing
        #[arg(long)]
        incomplete: bool,
        #[command(flatten)]
        target: T,
    },
}

#[derive(Debug, Args)]
struct Source {
    /// A spill file, a log, or a directory of them
    path: PathBuf,
    /// The name of the buffer whose records are meant
    #[arg(long)]
    buffer: String,
    /// The type of the records [default: any]
    #[arg(long)]
    record_type: Option<String>,
}

impl Source {
    fn replay<S: Sink<Json>>(&self, target: &winddown_core::ShutdownGuard<S::Target>, sink: S) -> Replay<Json, S> {
        let replay = Replay::new(target, sink, &self.buffer);
        match &self.record_type {
            Some(record_type) => replay.record_type(record_type.clone()),
            None => replay.any_record_type(),
        }
    }
}

/// The `main` of an adapter's command.
pub fn main<T: Target>() -> ExitCode {
    match run::<T>(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            winddown_core::adapter::write_line(&format!("error: {error}"));
            FAILED.into()
        }
    }
}

fn run<T: Target>(cli: Cli<T>) -> Result<ExitCode, Error> {
    match cli.command {
        Command::List { path } => {
            say_to(&mut io::stdout(), &table(&spilled(path)?));
            Ok(ExitCode::SUCCESS)
        }
        Command::Check(source) => asynchronously(async {
            let lifecycle = Lifecycle::builder().signals(false).build()?;
            let nowhere = lifecycle.guard(winddown_core::Client::opened("nowhere", ()));
            let sink = crate::WriteWith::new(
                Delivery::ExactlyOnce,
                |_: &mut Checkout<winddown_core::Client<()>>, _: &Batch<Json>| {
                    Box::pin(async { Err(WriteError::Failed(Error::new(ErrorKind::Write, "a check writes nothing"))) })
                },
            );
            let checked = source.replay(&nowhere, sink).check(&source.path).await?;
            say_to(&mut io::stdout(), &checked.to_string());
            Ok(if checked.is_complete() { ExitCode::SUCCESS } else { STAYS.into() })
        }),
        Command::Write { source, incomplete, target } => asynchronously(async {
            let (resource, sink) = target.open()?;
            let lifecycle = Lifecycle::detect()?;
            let guard = lifecycle.guard(resource);
            lifecycle.init().await?;
            let replayed = async {
                sink.check(&mut guard.get().await?).await?;
                let replay = source.replay(&guard, sink).incomplete(incomplete).on_progress(progress());
                replay.run(&source.path).await
            };
            let replayed = replayed.await;
            // The report tells of its own troubles; the exit status is that of the replay.
            lifecycle.drain().await;
            let replayed = replayed?;
            say_to(&mut io::stdout(), &replayed.to_string());
            Ok(match () {
                () if !replayed.is_complete() => STAYS.into(),
                () if replayed.busy > 0 => BUSY.into(),
                () => ExitCode::SUCCESS,
            })
        }),
    }
}

fn asynchronously<R>(work: impl Future<Output = Result<R, Error>>) -> Result<R, Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let failed = |error| Error::new(ErrorKind::Init, "no runtime can be started").with_source(error);
    runtime.map_err(failed)?.block_on(work)
}

/// Tells on standard error how far it is: at a terminal in one line, else in a line each second.
fn progress() -> impl Fn(&Progress<'_>) + Send + Sync {
    let last = Mutex::new(Instant::now());
    move |Progress { path, done, records }| {
        let mut last = last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if last.elapsed() < EVERY {
            return;
        }
        *last = Instant::now();
        let mut to = io::stderr();
        let text = format!("{}: {done} of {records} records", path.display());
        // Whoever does not listen misses it.
        let _ = if to.is_terminal() { write!(to, "\r{text}\x1b[K") } else { writeln!(to, "{text}") };
    }
}

fn table(files: &[SpillFile]) -> String {
    let mut text = format!("{:>12}  {:>10}  {:<24}  {:<24}  file", "bytes", "records", "buffer", "type");
    for SpillFile { path, buffer, record_type, size, records, is_finished } in files {
        let records = records.map_or_else(|| "?".to_owned(), |records| records.to_string());
        let kind = match (buffer, is_finished) {
            (Some(buffer), true) => buffer,
            (_, false) if path.extension().is_some_and(|extension| extension == crate::spill::PART) => "(not finished)",
            _ => "(a log)",
        };
        let record_type = record_type.as_deref().unwrap_or_default();
        text += &format!("\n{size:>12}  {records:>10}  {kind:<24}  {record_type:<24}  {}", path.display());
    }
    text
}

/// Says it, to whoever may have gone.
fn say_to(to: &mut impl io::Write, text: &str) {
    let _ = writeln!(to, "{text}");
}
