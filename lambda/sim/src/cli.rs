//! The command line: what can be asked for, and whether it makes sense.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use serde_json::Value;
use winddown_sim::{Config, Reason};

/// A local AWS Lambda lifecycle for a function in any language
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Take a function through init, invocations, freeze, thaw and shutdown
    ///
    /// Starts COMMAND as Lambda starts a bootstrap, with the Runtime API and the Extensions API on loopback. Prints the
    /// timeline to standard output and progress to standard error. The exit status is 0 only if the function ended by
    /// itself inside the budget; 1 if it did not, 2 if it could not be run as asked, 130 after Ctrl-C.
    Run(Run),
    /// Keep a function, and take invocations for it over HTTP
    ///
    /// Is an endpoint of the Lambda API, for the SDKs and the command line of AWS (--endpoint-url); every other request becomes an
    /// event as a Function URL or an HTTP API makes it, and the answer becomes a response. An environment that has nothing to do
    /// is frozen, and ended after a while. SIGHUP replaces every environment gracefully, and so does a change of the program's file,
    /// which is seen at the next invocation. At Ctrl-C all are shut down; the exit status is 0 only if every one of them has ended
    /// by itself inside the budget.
    Serve(Serve),
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// An event: JSON, or @ and the name of a file that holds JSON. Can be repeated [default: {} once]
    #[arg(long = "invoke", value_name = "JSON|@FILE", allow_hyphen_values = true, conflicts_with = "web")]
    events: Vec<String>,

    /// Run as a Web Function: an HTTP server that listens where AWS_LAMBDA_HTTP_ENDPOINT says, within 10s. It gets requests,
    /// --max-concurrency of them at once (64 unless that is given), then SIGTERM, and has 1s from then
    #[arg(long, conflicts_with_all = ["freeze", "interval", "snap_start", "reinit", "externals"])]
    web: bool,

    /// A request for a Web Function: method, path, and after another space its body. Can be repeated [default: GET / once]
    #[arg(long = "request", value_name = "METHOD PATH [BODY]", requires = "web")]
    requests: Vec<String>,

    /// How many times the list of events or requests is gone through; 0 for init and shutdown only
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) times: usize,

    /// Pause between invocations, such as 200ms
    #[arg(long, value_name = "DUR", value_parser = humantime::parse_duration)]
    pub(crate) interval: Option<Duration>,

    /// Freeze for this long after half of the invocations (rounded up), then thaw and go on
    #[arg(long, value_name = "DUR", value_parser = humantime::parse_duration)]
    pub(crate) freeze: Option<Duration>,

    /// Run as Managed Instances do: up to N invocations at once, never frozen. With --web, up to N requests at once
    #[arg(long, value_name = "N", conflicts_with_all = ["freeze", "interval", "snap_start"])]
    max_concurrency: Option<usize>,

    /// Run as SnapStart does: stop at the snapshot after init, restore it for the first invocation
    #[arg(long)]
    pub(crate) snap_start: bool,

    /// After a timeout, a crash or a failed init, start the function again with the next invocation, as Lambda does
    #[arg(long, conflicts_with = "max_concurrency")]
    pub(crate) reinit: bool,

    /// The reason external extensions are given
    #[arg(long, value_name = "REASON", default_value = "spindown", value_parser = reason())]
    pub(crate) shutdown: Reason,

    /// Put what the function and the extensions print into the record, not on the terminal
    #[arg(long, requires = "json")]
    capture: bool,

    /// Write the record to FILE; - for standard output, which then holds nothing else
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<String>,

    #[command(flatten)]
    function: Function,
}

/// What is the same however the function lives.
#[derive(Debug, Args)]
struct Function {
    /// Time from SIGTERM to SIGKILL [default: Lambda's: 500ms, 300ms with an external extension, 1s with --web]
    ///
    /// The function is told, in WINDDOWN_BUDGET_MS where that is not set
    #[arg(long, value_name = "DUR", value_parser = humantime::parse_duration)]
    budget: Option<Duration>,

    /// The size of the function's memory, 128 to 10240: it has no more, and the share of a CPU that Lambda gives for it
    ///
    /// 1769 is one CPU. Needs cgroups in which this process may make some; root may
    #[arg(long = "memory", value_name = "MB")]
    memory_mb: Option<u32>,

    /// The function's timeout for one invocation
    #[arg(long, value_name = "DUR", default_value = "3s", value_parser = humantime::parse_duration)]
    timeout: Duration,

    /// How long init may take
    ///
    /// By default Lambda's limit: 10s; with --snap-start or --max-concurrency 130s, or --timeout if that is longer
    #[arg(long, value_name = "DUR", value_parser = humantime::parse_duration)]
    init_timeout: Option<Duration>,

    /// An external extension: program and arguments, split at spaces. It registers under its file name. Can be repeated
    #[arg(long = "external-extension", value_name = "CMD")]
    externals: Vec<String>,

    /// A variable for the environment of the function and the extensions. Can be repeated
    #[arg(long = "env", value_name = "KEY=VALUE")]
    env: Vec<String>,

    /// The function's program and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Function {
    fn config(&self) -> Result<Config, String> {
        // clap requires one
        let (program, args) = self.command.split_first().ok_or("no command: give it after --")?;
        let mut config = Config::new(program).args(args).timeout(self.timeout);
        if let Some(limit) = self.init_timeout {
            config = config.init_timeout(limit);
        }
        if let Some(size) = self.memory_mb {
            config = config.memory_mb(size);
        }
        if let Some(budget) = self.budget {
            config = config.budget(budget);
        }
        for external in &self.externals {
            let mut words = external.split_whitespace();
            let program = words.next().ok_or("--external-extension: empty, name a program")?;
            config = config.external_extension(program, words);
        }
        for variable in &self.env {
            let (key, value) = variable
                .split_once('=')
                .filter(|(key, _)| !key.is_empty())
                .ok_or_else(|| format!("--env: '{variable}' has no name and value: write KEY=VALUE"))?;
            config = config.env(key, value);
        }
        Ok(config)
    }
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Where to listen
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9000")]
    pub(crate) listen: String,

    /// How many environments there can be. A further invocation waits until one is free
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one())]
    pub(crate) max_environments: usize,

    /// For how long an environment is kept that has nothing to do
    #[arg(long, value_name = "DUR", default_value = "5m", value_parser = humantime::parse_duration)]
    pub(crate) idle: Duration,

    /// Run as Managed Instances do: up to N invocations at once in each environment, never frozen
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    pub(crate) max_concurrency: Option<usize>,

    #[command(flatten)]
    function: Function,
}

impl Serve {
    pub(crate) fn config(&self) -> Result<Config, String> {
        let config = self.function.config()?;
        Ok(match self.max_concurrency {
            Some(n) => config.managed_instances(n),
            // a timeout or a crash costs one invocation, as on Lambda
            None => config.reinit(),
        })
    }

    /// The program as it was given: a path, or a name that is looked up.
    pub(crate) fn program(&self) -> PathBuf {
        self.function.command.first().map(PathBuf::from).unwrap_or_default()
    }
}

fn at_least_one() -> impl TypedValueParser<Value = usize> {
    clap::value_parser!(u32).range(1..).map(|number| usize::try_from(number).unwrap_or(usize::MAX))
}

impl Run {
    /// The list of events. The texts are checked to be JSON and kept as they are.
    pub(crate) fn events(&self) -> Result<Vec<String>, String> {
        let given: &[String] = if self.events.is_empty() { &["{}".to_owned()] } else { &self.events };
        given.iter().map(|event| read_event(event)).collect()
    }

    /// How many are under way at once, where they may be more than one.
    pub(crate) fn at_once(&self) -> Option<usize> {
        self.max_concurrency.or_else(|| self.web.then_some(REQUESTS_AT_ONCE))
    }

    /// What a Web Function is sent; `None` where it is none.
    pub(crate) fn requests(&self) -> Result<Option<Vec<Request>>, String> {
        if !self.web {
            return Ok(None);
        }
        let given: &[String] = if self.requests.is_empty() { &["GET /".to_owned()] } else { &self.requests };
        given.iter().map(|request| read_request(request)).collect::<Result<_, _>>().map(Some)
    }

    pub(crate) fn config(&self) -> Result<Config, String> {
        // the one environment of this process: all orphans are its own
        let mut config = self.function.config()?.adopt_orphans();
        if let Some(n) = self.at_once() {
            config = if self.web { config.web_function(n) } else { config.managed_instances(n) };
        }
        if self.reinit {
            config = config.reinit();
        }
        if self.snap_start {
            config = config.snap_start();
        }
        if self.capture {
            config = config.capture_output();
        } else if self.record_on_stdout() {
            config = config.output_to_stderr();
        }
        Ok(config)
    }

    pub(crate) fn record_on_stdout(&self) -> bool {
        self.json.as_deref() == Some("-")
    }

    /// Where the record goes. Opened before anything runs: a typing error should not cost the run.
    pub(crate) fn record_file(&self) -> Result<Option<Box<dyn Write + Send>>, String> {
        match self.json.as_deref() {
            None => Ok(None),
            Some("-") => Ok(Some(Box::new(io::stdout()))),
            Some(path) => match File::create(path) {
                Ok(file) => Ok(Some(Box::new(file))),
                Err(error) => Err(format!("--json: cannot write {path}: {error}: check that its directory exists")),
            },
        }
    }
}

/// One request for a Web Function.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) body: String,
}

fn read_request(request: &str) -> Result<Request, String> {
    let mut words = request.splitn(3, ' ').map(str::to_owned);
    match (words.next(), words.next().filter(|target| target.starts_with('/'))) {
        (Some(method), Some(target)) => Ok(Request { method, target, body: words.next().unwrap_or_default() }),
        _ => Err(format!("--request: '{request}' has no method and path: write them like 'GET /'")),
    }
}

fn read_event(event: &str) -> Result<String, String> {
    let (text, what) = match event.strip_prefix('@') {
        Some(path) => match fs::read_to_string(path) {
            Ok(text) => (text, path),
            Err(error) => return Err(format!("--invoke: cannot read {path}: {error}: check the path after @")),
        },
        None => (event.to_owned(), event),
    };
    match serde_json::from_str::<Value>(&text) {
        Ok(_) => Ok(text),
        Err(error) => Err(format!(
            "--invoke: '{what}' is not JSON ({error}): pass JSON in single quotes, or @FILE with JSON in it"
        )),
    }
}

fn reason() -> impl TypedValueParser<Value = Reason> {
    PossibleValuesParser::new(["spindown", "timeout", "failure"]).map(|name| match name.as_str() {
        "timeout" => Reason::Timeout,
        "failure" => Reason::Failure,
        _ => Reason::Spindown,
    })
}

/// AWS: "Scaling behavior for Lambda Web Functions", `maxConcurrencyPerEnvironment` where a revision sets none.
const REQUESTS_AT_ONCE: usize = 64;
