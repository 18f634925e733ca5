//! What to run and how: the settings of one simulated environment.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::record::Stream;

/// What to run and how. Used by [`Sim::start`](crate::Sim::start).
///
/// ```
/// use std::time::Duration;
/// use winddown_sim::Config;
///
/// let config = Config::new("./bootstrap").env("DATABASE_URL", "postgres://localhost").timeout(Duration::from_secs(10));
/// ```
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) program: OsString,
    pub(crate) args: Vec<OsString>,
    pub(crate) externals: Vec<(OsString, Vec<OsString>)>,
    pub(crate) mode: Mode,
    init_timeout: Option<Duration>,
    pub(crate) timeout: Duration,
    pub(crate) budget: Option<Duration>,
    memory_mb: Option<u32>,
    pub(crate) function_name: String,
    pub(crate) invoke_for_internal: bool,
    pub(crate) abort_in_flight: bool,
    pub(crate) reinit: bool,
    pub(crate) adopts_orphans: bool,
    output: Output,
    env: Vec<(OsString, OsString)>,
}

impl Config {
    /// A function started as `program`, which is a path or a name looked up in `PATH`.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            externals: Vec::new(),
            mode: Mode::OnDemand,
            init_timeout: None,
            timeout: FUNCTION_TIMEOUT,
            budget: None,
            memory_mb: None,
            function_name: "function".to_owned(),
            invoke_for_internal: true,
            abort_in_flight: false,
            reinit: false,
            adopts_orphans: false,
            output: Output::Inherit,
            env: Vec::new(),
        }
    }

    /// Adds one argument for the function's program.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments for the function's program.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable for the function and the external extensions.
    ///
    /// They also inherit this process's environment, and get the variables Lambda sets. A variable set here wins over
    /// both, except `AWS_LAMBDA_RUNTIME_API`.
    #[must_use]
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// Adds an external extension: a process of its own, started before the function.
    ///
    /// It has to register under its file name, as on Lambda. With one registered, the function's budget is 300 ms.
    #[must_use]
    pub fn external_extension(
        mut self,
        program: impl Into<OsString>,
        args: impl IntoIterator<Item = impl Into<OsString>>,
    ) -> Self {
        self.externals.push((program.into(), args.into_iter().map(Into::into).collect()));
        self
    }

    /// Runs the function as Managed Instances do: up to `max_concurrency` invocations at once, and never frozen.
    ///
    /// Sets `AWS_LAMBDA_MAX_CONCURRENCY`, and `AWS_LAMBDA_INITIALIZATION_TYPE` to `lambda-managed-instances`. The function may
    /// have as many `next` requests waiting as it may have invocations. An invocation that takes longer than the timeout
    /// fails, and the environment lives on; its late answer is refused with 410. Extensions are not given INVOKE, and those
    /// inside the function's process may ask for no event at all. The budget is 600 ms whatever is registered, as in AWS's own
    /// emulator, which is the only source for it.
    #[must_use]
    pub fn managed_instances(mut self, max_concurrency: usize) -> Self {
        self.mode = Mode::ManagedInstances { max_concurrency };
        self
    }

    /// Runs the program as a Web Function: an HTTP server, which gets up to `max_concurrency` requests at once by
    /// [`Sim::request`](crate::Sim::request), and is never frozen.
    ///
    /// `AWS_LAMBDA_HTTP_ENDPOINT` says where it has to listen, on loopback; init is over when it does. It gets SIGTERM without any
    /// extension, and has 1 s from then. Lambda's own limit of requests is 64 unless a revision sets another, from 1 to 128.
    /// Not together with external extensions, and [`reinit`](Self::reinit).
    #[must_use]
    pub fn web_function(mut self, max_concurrency: usize) -> Self {
        self.mode = Mode::WebFunction { max_concurrency };
        self
    }

    /// Runs the function as SnapStart does: init ends with a snapshot, which [`Sim::restore`](crate::Sim::restore) or the first
    /// invocation restores.
    ///
    /// Sets `AWS_LAMBDA_INITIALIZATION_TYPE` to `snap-start`, and answers `GET /runtime/restore/next`.
    #[must_use]
    pub fn snap_start(mut self) -> Self {
        self.mode = Mode::SnapStart;
        self
    }

    /// How long init may take.
    ///
    /// Defaults to Lambda's limit: 10 s; with SnapStart and on Managed Instances 130 s, or the function's timeout if that is
    /// more (AWS: "Lambda execution environment lifecycle").
    #[must_use]
    pub fn init_timeout(mut self, limit: Duration) -> Self {
        self.init_timeout = Some(limit.min(LONGEST));
        self
    }

    /// The function's timeout: how long one invocation may take, extensions included.
    ///
    /// Defaults to 3 s, which is what Lambda gives a function that sets none.
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit.min(LONGEST);
        self
    }

    /// How long after SIGTERM the function is killed.
    ///
    /// Defaults to Lambda's own: 500 ms with internal extensions only, 300 ms with an external one, 1 s for a Web Function. Without
    /// any extension there is no SIGTERM, whatever is set here, but for a Web Function.
    ///
    /// The function is told, in `WINDDOWN_BUDGET_MS` where that is not set: it could not know otherwise. So it is with an external
    /// extension, which on Lambda it sees in `/opt/extensions`.
    #[must_use]
    pub fn budget(mut self, budget: Duration) -> Self {
        self.budget = Some(budget.min(LONGEST));
        self
    }

    /// The size of the function's memory in MB, from 128 to 10,240: the environment has no more than that, and the share of a CPU
    /// that Lambda gives for it.
    ///
    /// 1,769 MB is one vCPU (AWS: "Configure Lambda function memory"), which is enforced in periods of 20 ms. Whoever needs more
    /// memory is killed, and the invocation fails with `Runtime.OutOfMemory`. This takes cgroups, of Linux and of either version, in
    /// which this process may make some: as root, or where they have been delegated to its user. Without it the function is told
    /// 128 MB, Lambda's default, and has all of this machine.
    #[must_use]
    pub fn memory_mb(mut self, size: u32) -> Self {
        self.memory_mb = Some(size);
        self
    }

    /// The name the function goes by, in its environment and its ARN.
    ///
    /// Defaults to `function`.
    #[must_use]
    pub fn function_name(mut self, name: impl Into<String>) -> Self {
        self.function_name = name.into();
        self
    }

    /// Refuses an extension inside the function's process that asks for INVOKE, as Managed Instances do.
    #[must_use]
    pub fn refuse_invoke_to_internal(mut self) -> Self {
        self.invoke_for_internal = false;
        self
    }

    /// Fails what is in flight when shutdown begins, before SIGTERM is sent, as AWS's own emulator does it for Managed
    /// Instances: the function's answers come too late then, and are refused.
    ///
    /// Otherwise an answer counts for as long as the function lives.
    #[must_use]
    pub fn abort_in_flight(mut self) -> Self {
        self.abort_in_flight = true;
        self
    }

    /// After a timeout, a crash or a failed init, starts the function again with the next invocation, as Lambda does it.
    ///
    /// That invocation's timeout then covers init as well. A failed init, one that took more than
    /// [`init_timeout`](Self::init_timeout) included, is no error of [`Sim::start`](crate::Sim::start) any more: if it fails again,
    /// the invocation fails. How the earlier lives ended is in [`Record::resets`](crate::Record::resets). Without this, a
    /// reset ends the environment. Not for Managed Instances.
    #[must_use]
    pub fn reinit(mut self) -> Self {
        self.reinit = true;
        self
    }

    /// Takes in what the function's processes leave behind when they end: on Linux, makes this process the parent of orphans from
    /// below it (a child subreaper). They are then reaped here, and counted as the environment's by that alone: frozen, thawed
    /// and killed with it, whatever they have done to be known by nothing.
    ///
    /// For a program that does nothing but run one environment, as the command does: any other child that it starts
    /// meanwhile would be taken for an orphan. Where orphans can be somebody else's, because this process had children
    /// before or is process 1 of a container (`docker run --init` helps), they are reaped, and no more. Without this, orphans are
    /// still known by what they inherited.
    #[must_use]
    pub fn adopt_orphans(mut self) -> Self {
        self.adopts_orphans = true;
        self
    }

    /// Collects what the function and the extensions print, instead of passing it through.
    ///
    /// The lines are in [`Sim::output`](crate::Sim::output) and in [`Record::output`](crate::Record::output).
    #[must_use]
    pub fn capture_output(mut self) -> Self {
        self.output = Output::Capture;
        self
    }

    /// Passes what the function and the extensions print to this process's standard error.
    ///
    /// For when standard output is needed for something else, such as the record.
    #[must_use]
    pub fn output_to_stderr(mut self) -> Self {
        self.output = Output::Stderr;
        self
    }

    /// Whether it runs on Managed Instances.
    pub(crate) fn is_managed(&self) -> bool {
        matches!(self.mode, Mode::ManagedInstances { .. })
    }

    /// Whether it is a Web Function.
    pub(crate) fn is_web(&self) -> bool {
        matches!(self.mode, Mode::WebFunction { .. })
    }

    /// How large the function is told that it is.
    pub(crate) fn memory_size(&self) -> u32 {
        self.memory_mb.unwrap_or(DEFAULT_MEMORY_MB)
    }

    /// The size that is enforced, if one is.
    pub(crate) fn memory_limit(&self) -> Option<u32> {
        self.memory_mb
    }

    /// How long the function has from SIGTERM on, as far as is known before it has started.
    pub(crate) fn budget_of(&self, external_extension: bool) -> Duration {
        self.budget.unwrap_or_else(|| self.own_budget(external_extension))
    }

    /// Lambda's budget, whatever is set.
    pub(crate) fn own_budget(&self, external_extension: bool) -> Duration {
        match self.mode {
            Mode::WebFunction { .. } => BUDGET_OF_WEB_FUNCTIONS,
            Mode::ManagedInstances { .. } => BUDGET_OF_MANAGED_INSTANCES,
            Mode::OnDemand | Mode::SnapStart if external_extension => BUDGET_WITH_EXTERNAL,
            Mode::OnDemand | Mode::SnapStart => BUDGET_WITH_INTERNAL,
        }
    }

    /// How many invocations may be under way at once.
    pub(crate) fn concurrency(&self) -> usize {
        match self.mode {
            Mode::ManagedInstances { max_concurrency } | Mode::WebFunction { max_concurrency } => max_concurrency,
            Mode::OnDemand | Mode::SnapStart => 1,
        }
    }

    pub(crate) fn init_limit(&self) -> Duration {
        self.init_timeout.unwrap_or_else(|| match self.mode {
            Mode::OnDemand | Mode::WebFunction { .. } => INIT_TIMEOUT,
            Mode::SnapStart | Mode::ManagedInstances { .. } => self.timeout.min(LONGEST_TIMEOUT).max(LONG_INIT_TIMEOUT),
        })
    }

    pub(crate) fn arn(&self) -> String {
        format!("arn:aws:lambda:{}:{ACCOUNT_ID}:function:{}", self.region(), self.function_name)
    }

    /// Settings that no environment could be built from.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if !(1..=MAX_CONCURRENCY).contains(&self.concurrency()) {
            let message = format!("{} invocations at once: ask for 1 to {MAX_CONCURRENCY}", self.concurrency());
            return Err(Error::new(ErrorKind::Start, message));
        }
        if self.reinit && (self.is_managed() || self.is_web()) {
            let message = "Managed Instances and Web Functions are not started again: leave out reinit, or start another environment";
            return Err(Error::new(ErrorKind::Start, message));
        }
        if self.is_web() && !self.externals.is_empty() {
            let message = "a Web Function has no external extensions: leave them out";
            return Err(Error::new(ErrorKind::Start, message));
        }
        if let Some(size) = self.memory_mb.filter(|size| !MEMORY_MB.contains(size)) {
            let (least, most) = MEMORY_MB.into_inner();
            let message = format!("{size} MB of memory: Lambda has from {least} to {most}, ask for one of them");
            return Err(Error::new(ErrorKind::Start, message));
        }
        let mut names = Vec::new();
        for (program, _) in &self.externals {
            let name = extension_name(program);
            if names.contains(&name) {
                let message = format!(
                    "two external extensions are called {name}: Lambda tells them apart by file name, rename one of them"
                );
                return Err(Error::new(ErrorKind::Start, message));
            }
            names.push(name);
        }
        if names.len() > MAX_EXTENSIONS {
            let message = format!("{} external extensions: Lambda allows {MAX_EXTENSIONS}, start fewer", names.len());
            return Err(Error::new(ErrorKind::Start, message));
        }
        Ok(())
    }

    pub(crate) fn function_command(&self, api: SocketAddr, endpoint: Option<SocketAddr>) -> Result<Command, Error> {
        let mut command = self.command(&self.program, &self.args)?;
        // the part of the environment that extensions do not see (AWS: "Lambda Extensions API", environment variables)
        command
            .env("AWS_LAMBDA_LOG_GROUP_NAME", format!("/aws/lambda/{}", self.function_name))
            .env("AWS_LAMBDA_LOG_STREAM_NAME", format!("{FUNCTION_VERSION}/winddown-sim"))
            .env("_HANDLER", HANDLER);
        if let Mode::ManagedInstances { max_concurrency } = self.mode {
            command.env("AWS_LAMBDA_MAX_CONCURRENCY", max_concurrency.to_string());
        }
        if let Some(endpoint) = endpoint {
            command.env("AWS_LAMBDA_HTTP_ENDPOINT", endpoint.to_string());
        }
        if let Ok(directory) = std::env::current_dir() {
            command.env("LAMBDA_TASK_ROOT", directory);
        }
        // what is set here, and what Lambda would show in a folder that this machine's function does not look into
        if std::env::var_os(BUDGET_VARIABLE).is_none() && (self.budget.is_some() || !self.externals.is_empty()) {
            let budget = self.budget_of(!self.externals.is_empty());
            // no shorter and no longer one can be told
            let told = budget.clamp(SHORTEST_TOLD, LONGEST_TOLD).as_millis();
            command.env(BUDGET_VARIABLE, told.to_string());
        }
        Ok(self.finish_env(command, api))
    }

    pub(crate) fn extension_command(
        &self,
        program: &OsStr,
        args: &[OsString],
        api: SocketAddr,
    ) -> Result<Command, Error> {
        let command = self.command(program, args)?;
        Ok(self.finish_env(command, api))
    }

    fn command(&self, program: &OsStr, args: &[OsString]) -> Result<Command, Error> {
        let mut command = Command::new(program);
        command.args(args);
        // a background process group that reads the terminal would be stopped by it
        command.stdin(Stdio::null());
        match self.output {
            _ if self.reads_output() => {
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
            }
            Output::Inherit | Output::Capture => {}
            Output::Stderr => {
                let stderr = std::os::fd::AsFd::as_fd(&io::stderr()).try_clone_to_owned().map_err(|cause| {
                    Error::new(ErrorKind::Start, "cannot pass output to standard error").with_source(cause)
                })?;
                command.stdout(stderr);
            }
        }
        // set by whoever runs the simulator inside Lambda or another emulator: not true of the environment made here
        // (Lambda leaves AWS_EXECUTION_ENV unset for OS-only runtimes; AWS: "Lambda environment variables")
        for variable in
            ["AWS_EXECUTION_ENV", "AWS_LAMBDA_HTTP_ENDPOINT", "AWS_LAMBDA_MAX_CONCURRENCY", "_X_AMZN_TRACE_ID"]
        {
            command.env_remove(variable);
        }
        let region = self.region();
        command
            .env("AWS_LAMBDA_FUNCTION_NAME", &self.function_name)
            .env("AWS_LAMBDA_FUNCTION_VERSION", FUNCTION_VERSION)
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", self.memory_size().to_string())
            .env("AWS_LAMBDA_INITIALIZATION_TYPE", self.mode.initialization_type())
            .env("AWS_REGION", &region)
            .env("AWS_DEFAULT_REGION", &region)
            .env("TZ", ":UTC");
        Ok(command)
    }

    /// Whether the lines that are printed come past here. They have to where an extension may subscribe to them.
    fn reads_output(&self) -> bool {
        self.output == Output::Capture || !self.externals.is_empty()
    }

    /// Whether lines are kept for the record.
    pub(crate) fn captures_output(&self) -> bool {
        self.output == Output::Capture
    }

    /// Prints a line where it would have gone by itself.
    pub(crate) fn pass_on(&self, stream: Stream, line: &str) {
        // whoever closed it does not want the line
        let _ = match (self.output, stream) {
            (Output::Capture, _) => Ok(()),
            (Output::Inherit, Stream::Stdout) => writeln!(io::stdout(), "{line}"),
            (Output::Inherit | Output::Stderr, _) => writeln!(io::stderr(), "{line}"),
        };
    }

    fn finish_env(&self, mut command: Command, api: SocketAddr) -> Command {
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        command.env("AWS_LAMBDA_RUNTIME_API", api.to_string());
        command
    }

    fn region(&self) -> String {
        std::env::var("AWS_REGION").unwrap_or_else(|_| "us-east-1".to_owned())
    }
}

/// The name an external extension has to register under (AWS: "Lambda Extensions API", register).
pub(crate) fn extension_name(program: &OsStr) -> String {
    Path::new(program).file_name().unwrap_or(program).to_string_lossy().into_owned()
}

/// How Lambda runs the environment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mode {
    OnDemand,
    SnapStart,
    ManagedInstances { max_concurrency: usize },
    WebFunction { max_concurrency: usize },
}

impl Mode {
    pub(crate) fn initialization_type(self) -> &'static str {
        match self {
            Self::OnDemand => "on-demand",
            Self::SnapStart => "snap-start",
            Self::ManagedInstances { .. } => "lambda-managed-instances",
            Self::WebFunction { .. } => "native-http",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Output {
    Inherit,
    Capture,
    Stderr,
}

pub(crate) const FUNCTION_VERSION: &str = "$LATEST";
pub(crate) const HANDLER: &str = "bootstrap";
/// Lambda's default.
const DEFAULT_MEMORY_MB: u32 = 128;
/// AWS: "Lambda quotas", function memory allocation.
const MEMORY_MB: RangeInclusive<u32> = 128..=10_240;
/// What `winddown` takes the place of its own table's row by.
const BUDGET_VARIABLE: &str = "WINDDOWN_BUDGET_MS";
/// The least and the most that can be said in it.
const SHORTEST_TOLD: Duration = Duration::from_millis(10);
const LONGEST_TOLD: Duration = Duration::from_secs(24 * 60 * 60);
/// AWS: "Lambda execution environment lifecycle", a function with internal extensions only.
const BUDGET_WITH_INTERNAL: Duration = Duration::from_millis(500);
/// The same, for a function with an external extension: the rest of the 2,000 ms is the extensions'.
const BUDGET_WITH_EXTERNAL: Duration = Duration::from_millis(300);
/// `defaultRuntimeShutdownTimeout` in AWS's own emulator (`lambda-managed-instances/rapid/shutdown.go`); the documentation
/// gives none.
const BUDGET_OF_MANAGED_INSTANCES: Duration = Duration::from_millis(600);
/// AWS: "Execution environment lifecycle" of Web Functions, shutdown.
const BUDGET_OF_WEB_FUNCTIONS: Duration = Duration::from_secs(1);
/// The account number AWS uses in its own emulator.
pub(crate) const ACCOUNT_ID: &str = "012345678912";
/// AWS: "Lambda Extensions API", register.
pub(crate) const MAX_EXTENSIONS: usize = 10;

/// Longer is forever, and can be added to any clock.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);
const INIT_TIMEOUT: Duration = Duration::from_secs(10);
/// AWS: "Lambda execution environment lifecycle", SnapStart and provisioned concurrency.
const LONG_INIT_TIMEOUT: Duration = Duration::from_secs(130);
/// AWS: "Lambda quotas", function timeout.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(900);
/// What a semaphore and a machine can bear; Lambda allows far fewer.
const MAX_CONCURRENCY: usize = 10_000;
const FUNCTION_TIMEOUT: Duration = Duration::from_secs(3);
