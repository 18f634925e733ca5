//! How much time the platform leaves after SIGTERM: the table, and how a row is chosen.

use std::{borrow::Cow, fmt, path::Path, time::Duration};

use crate::{Error, ErrorKind};

/// The variable that overrides every detected budget: a whole number of milliseconds.
pub const BUDGET_VARIABLE: &str = "WINDDOWN_BUDGET_MS";

/// A place that stops processes: its name, how it is recognised, and the time it leaves after SIGTERM.
///
/// Plain data: a new platform is a new row in [`PLATFORMS`], or a value that the application makes and gives to
/// [`Builder::platform`](crate::Builder::platform).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Platform {
    /// As it is shown in reports.
    pub name: Cow<'static, str>,
    /// The time between SIGTERM and SIGKILL.
    pub budget: Duration,
    /// Whether one request to stop can be SIGTERM more than once: a later one then does not end the wait, as it does elsewhere.
    pub repeats_sigterm: bool,
    recognised_by: &'static [Sign],
}

/// One fact about the environment. A row is recognised when all its signs are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    /// The variable is set.
    Variable(&'static str),
    /// The variable is not set.
    Unset(&'static str),
    /// The variable has this value.
    Value(&'static str, &'static str),
    /// The folder exists and has an entry.
    Entries(&'static str),
    /// Standard input is a terminal.
    Terminal,
}

/// Every platform that is recognised, with its budget and where that number comes from.
///
/// When several rows fit, the smallest budget wins: ending early costs a little, being killed costs the goodbye. What a
/// deployment has set otherwise (the `stopTimeout` of ECS, the `terminationGracePeriodSeconds` of a pod, the `kill_timeout` of
/// Fly.io) no process can see, not even by the downward API of Kubernetes: say it with `WINDDOWN_BUDGET_MS`.
pub const PLATFORMS: &[Platform] = &[
    // AWS Lambda Developer Guide, "Execution environment lifecycle" of Web Functions: SIGTERM without any extension, and at
    // most 1 s. They have the Runtime API's address, too, which other functions are known by.
    Platform::row("lambda web functions", 1_000, &[Sign::Variable(HTTP_ENDPOINT)]),
    // Not documented; the smaller of what is known for Lambda without external extensions.
    Platform::row(
        "lambda managed instances",
        500,
        &[Sign::Value("AWS_LAMBDA_INITIALIZATION_TYPE", "lambda-managed-instances")],
    ),
    // AWS Lambda Developer Guide, "Lambda execution environment lifecycle", shutdown phase: 500 ms for a runtime with
    // an internal extension, 300 ms for the runtime when an external extension is registered too. With no extension
    // there is no SIGTERM at all.
    Platform::row("lambda", 500, &[Sign::Variable("AWS_LAMBDA_RUNTIME_API"), Sign::Unset(HTTP_ENDPOINT)]),
    Platform::row(
        "lambda with an external extension",
        300,
        &[Sign::Variable("AWS_LAMBDA_RUNTIME_API"), Sign::Entries("/opt/extensions"), Sign::Unset(HTTP_ENDPOINT)],
    ),
    // Google Cloud, "Runtime environment variables" of functions: they are Cloud Run services, with a variable more.
    Platform::row("google cloud functions", 10_000, &[Sign::Variable("K_SERVICE"), Sign::Variable("FUNCTION_TARGET")]),
    // Cloud Run, "Container runtime contract": 10 s between SIGTERM and SIGKILL.
    Platform::row("cloud run", 10_000, &[Sign::Variable("K_SERVICE")]),
    // Fly.io, "App configuration", `kill_timeout`: 5 s unless it is set. The signal is SIGINT unless `kill_signal` says another.
    Platform::row("fly.io", 5_000, &[Sign::Variable("FLY_MACHINE_ID")]),
    // Heroku Dev Center, "Dyno shutdown behavior": SIGTERM to every process, maybe more than once, and 30 s.
    Platform::row_that_repeats_sigterm("heroku", 30_000, &[Sign::Variable("DYNO")]),
    // Azure Container Apps, "Application lifecycle management": `terminationGracePeriodSeconds` is 30 unless set.
    Platform::row("azure container apps", 30_000, &[Sign::Variable("CONTAINER_APP_NAME")]),
    // Amazon ECS, task definition parameter `stopTimeout`: 30 s unless it is set.
    Platform::row("ecs", 30_000, &[Sign::Variable("ECS_CONTAINER_METADATA_URI_V4")]),
    // Kubernetes, "Pod Lifecycle": terminationGracePeriodSeconds is 30 unless set, and includes the preStop hook.
    Platform::row("kubernetes", 30_000, &[Sign::Variable("KUBERNETES_SERVICE_HOST")]),
    // systemd, `TimeoutStopSec=`, DefaultTimeoutStopSec is 90 s.
    Platform::row("systemd", 90_000, &[Sign::Variable("NOTIFY_SOCKET")]),
    Platform::row("systemd", 90_000, &[Sign::Variable("INVOCATION_ID")]),
    // A person waits: as long as Docker does after `docker stop`.
    Platform::row("terminal", 10_000, &[Sign::Terminal]),
];

/// Where a Web Function of Lambda has to listen, as `host:port`.
const HTTP_ENDPOINT: &str = "AWS_LAMBDA_HTTP_ENDPOINT";

/// On which port a server has to listen, on all addresses.
const PORT: &str = "PORT";

/// What is assumed where no row fits: `docker stop` leaves 10 s.
const ANYWHERE: Platform = Platform::row("process", 10_000, &[]);

impl Platform {
    /// A platform of your own.
    pub fn new(name: impl Into<Cow<'static, str>>, budget: Duration) -> Self {
        Self { name: name.into(), budget, repeats_sigterm: false, recognised_by: &[] }
    }

    /// The platform this process runs on, with the smallest budget of all rows of [`PLATFORMS`] that fit.
    pub fn detect() -> Self {
        Self::detect_in(&RealEnvironment)
    }

    fn detect_in(environment: &impl Environment) -> Self {
        PLATFORMS
            .iter()
            .filter(|platform| platform.recognised_by.iter().all(|sign| environment.has(*sign)))
            // `min_by_key` keeps the first of equals, so the table's order breaks ties.
            .min_by_key(|platform| platform.budget)
            .unwrap_or(&ANYWHERE)
            .clone()
    }

    const fn row(name: &'static str, budget_ms: u64, recognised_by: &'static [Sign]) -> Self {
        let budget = Duration::from_millis(budget_ms);
        Self { name: Cow::Borrowed(name), budget, repeats_sigterm: false, recognised_by }
    }

    const fn row_that_repeats_sigterm(name: &'static str, budget_ms: u64, recognised_by: &'static [Sign]) -> Self {
        let budget = Duration::from_millis(budget_ms);
        Self { name: Cow::Borrowed(name), budget, repeats_sigterm: true, recognised_by }
    }
}

/// Where the platform wants a server to listen, as `host:port`; `otherwise` where it does not say.
///
/// Lambda's Web Functions say it in `AWS_LAMBDA_HTTP_ENDPOINT` (AWS Lambda Developer Guide, "Environment variables" of Web
/// Functions), and wait 10 s for the server to be there. Cloud Run, Heroku and others say only a port, in `PORT`: there it is all
/// addresses of IPv4, as they ask for (Cloud Run, "Container runtime contract").
///
/// ```
/// # async fn listen() -> Result<(), winddown_core::BoxError> {
/// let listener = tokio::net::TcpListener::bind(winddown_core::listen_address("127.0.0.1:8080")?).await?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`ErrorKind::Config`] when the variable has something else than that.
pub fn listen_address(otherwise: &str) -> Result<String, Error> {
    listen_address_in(&RealEnvironment, otherwise)
}

fn listen_address_in(environment: &impl Environment, otherwise: &str) -> Result<String, Error> {
    let is_port = |text: &str| text.parse::<u16>().is_ok_and(|port| port > 0);
    let wrong = |name, value, what| {
        Error::new(ErrorKind::Config, format!("{name}={value:?} is not {what}: set it to one, or unset it"))
    };
    if let Some(endpoint) = environment.variable(HTTP_ENDPOINT) {
        let is_endpoint = endpoint.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && is_port(port));
        return if is_endpoint { Ok(endpoint) } else { Err(wrong(HTTP_ENDPOINT, &endpoint, "a host and a port")) };
    }
    match environment.variable(PORT) {
        None => Ok(otherwise.to_owned()),
        Some(port) if is_port(&port) => Ok(format!("0.0.0.0:{port}")),
        Some(port) => Err(wrong(PORT, &port, "a port")),
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)
    }
}

/// The time between the signal and the platform's SIGKILL, and what of it the drain may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    total: Duration,
}

/// A tenth of the budget is kept for writing the report and ending the process, between these two: on a starved machine
/// a thread may wait tens of milliseconds for its turn.
const MARGIN: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));

const LARGEST: Duration = Duration::from_secs(24 * 60 * 60);

impl Budget {
    /// Less would not leave time to say anything.
    pub(crate) const SMALLEST: Self = Self { total: Duration::from_millis(10) };

    /// A budget of this much time between the signal and the end of the process.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] under 10 ms, which would not leave time to say anything, and over a day, which is no
    /// deadline.
    pub fn new(total: Duration) -> Result<Self, Error> {
        if total < Self::SMALLEST.total || total > LARGEST {
            return Err(Error::new(
                ErrorKind::Config,
                format!("a budget of {} ms cannot be used: give 10 ms to one day", total.as_millis()),
            ));
        }
        Ok(Self { total })
    }

    /// What `WINDDOWN_BUDGET_MS` says, if it is set.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when it is not a whole number of milliseconds from 10 up.
    pub(crate) fn from_variable(value: Option<&str>) -> Result<Option<Self>, Error> {
        let Some(value) = value else { return Ok(None) };
        let number: u64 = value.trim().parse().map_err(|_| {
            Error::new(
                ErrorKind::Config,
                format!("{BUDGET_VARIABLE}={value:?} is not a whole number of milliseconds: set it to one, like 500, or unset it"),
            )
        })?;
        Self::new(Duration::from_millis(number)).map(Some)
    }

    /// The whole time between the signal and SIGKILL.
    pub fn total(&self) -> Duration {
        self.total
    }

    /// What is kept back for the report and the exit.
    pub fn margin(&self) -> Duration {
        (self.total / 10).clamp(MARGIN.0, MARGIN.1)
    }

    /// What the drain may use.
    pub fn usable(&self) -> Duration {
        self.total - self.margin()
    }
}

/// The environment as detection sees it, so that the table is tested without changing the process.
trait Environment {
    fn variable(&self, name: &str) -> Option<String>;
    fn has_entries(&self, folder: &str) -> bool;
    fn is_terminal(&self) -> bool;

    fn has(&self, sign: Sign) -> bool {
        match sign {
            Sign::Variable(name) => self.variable(name).is_some(),
            Sign::Unset(name) => self.variable(name).is_none(),
            Sign::Value(name, value) => self.variable(name).as_deref() == Some(value),
            Sign::Entries(folder) => self.has_entries(folder),
            Sign::Terminal => self.is_terminal(),
        }
    }
}

struct RealEnvironment;

impl Environment for RealEnvironment {
    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn has_entries(&self, folder: &str) -> bool {
        Path::new(folder).read_dir().is_ok_and(|mut entries| entries.next().is_some())
    }

    fn is_terminal(&self) -> bool {
        std::io::IsTerminal::is_terminal(&std::io::stdin())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Fake {
        variables: &'static [(&'static str, &'static str)],
        extensions: bool,
        terminal: bool,
    }

    impl Environment for Fake {
        fn variable(&self, name: &str) -> Option<String> {
            self.variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
        }
        fn has_entries(&self, folder: &str) -> bool {
            folder == "/opt/extensions" && self.extensions
        }
        fn is_terminal(&self) -> bool {
            self.terminal
        }
    }

    fn detected(fake: Fake) -> (String, u128) {
        let platform = Platform::detect_in(&fake);
        (platform.name.into_owned(), platform.budget.as_millis())
    }

    const LAMBDA: &[(&str, &str)] = &[("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:9001")];

    #[test]
    fn lambda_leaves_500_ms_and_300_ms_with_an_external_extension() {
        assert_eq!(detected(Fake { variables: LAMBDA, ..Fake::default() }), ("lambda".into(), 500));
        assert_eq!(detected(Fake { variables: LAMBDA, extensions: true, ..Fake::default() }).1, 300);
    }

    #[test]
    fn extensions_are_what_the_folder_has() {
        let folder = std::env::temp_dir().join(format!("winddown-extensions-{}", std::process::id()));
        let text = folder.to_str().unwrap();
        assert!(!RealEnvironment.has_entries(text), "there is no folder");
        std::fs::create_dir(&folder).unwrap();
        assert!(!RealEnvironment.has_entries(text), "it is empty");
        std::fs::write(folder.join("extension"), "").unwrap();
        assert!(RealEnvironment.has_entries(text));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn managed_instances_leave_500_ms() {
        const VARIABLES: &[(&str, &str)] = &[LAMBDA[0], ("AWS_LAMBDA_INITIALIZATION_TYPE", "lambda-managed-instances")];
        let variables = VARIABLES;
        assert_eq!(detected(Fake { variables, ..Fake::default() }), ("lambda managed instances".into(), 500));
        assert_eq!(detected(Fake { variables, extensions: true, ..Fake::default() }).1, 300);
    }

    #[test]
    fn web_functions_leave_1_s_though_they_have_what_other_functions_are_known_by() {
        const VARIABLES: &[(&str, &str)] =
            &[LAMBDA[0], ("AWS_LAMBDA_INITIALIZATION_TYPE", "native-http"), (HTTP_ENDPOINT, "0.0.0.0:3000")];
        let variables = VARIABLES;
        assert_eq!(detected(Fake { variables, ..Fake::default() }), ("lambda web functions".into(), 1_000));
        assert_eq!(detected(Fake { variables, extensions: true, ..Fake::default() }).1, 1_000);
    }

    #[test]
    fn only_heroku_sends_one_request_to_stop_as_several_signals() {
        let repeating = PLATFORMS.iter().filter(|platform| platform.repeats_sigterm).map(|it| it.name.as_ref());
        assert_eq!(repeating.collect::<Vec<_>>(), ["heroku"]);
    }

    #[test]
    fn a_server_listens_where_the_platform_says() {
        let found = |variables| listen_address_in(&Fake { variables, ..Fake::default() }, "127.0.0.1:0");
        assert_eq!(found(&[]).unwrap(), "127.0.0.1:0");
        assert_eq!(found(&[(PORT, "8080")]).unwrap(), "0.0.0.0:8080");
        assert_eq!(found(&[(PORT, "8080"), (HTTP_ENDPOINT, "0.0.0.0:3000")]).unwrap(), "0.0.0.0:3000");
        assert_eq!(found(&[(HTTP_ENDPOINT, "[::1]:3000")]).unwrap(), "[::1]:3000");
        for variables in [
            &[(PORT, "")],
            &[(PORT, "http")],
            &[(PORT, "65536")],
            &[(HTTP_ENDPOINT, "")],
            &[(HTTP_ENDPOINT, ":3000")],
            &[(HTTP_ENDPOINT, "0.0.0.0")],
            &[(HTTP_ENDPOINT, "0.0.0.0:0")],
        ] {
            let error = found(variables).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{variables:?}");
            assert!(error.to_string().contains(variables[0].0), "{error}");
        }
    }

    #[test]
    fn each_container_platform_has_its_row() {
        let found = |variables| detected(Fake { variables, ..Fake::default() });
        assert_eq!(found(&[("FLY_MACHINE_ID", "m")]), ("fly.io".into(), 5_000));
        assert_eq!(found(&[("DYNO", "web.1")]), ("heroku".into(), 30_000));
        assert_eq!(
            found(&[("CONTAINER_APP_NAME", "a"), ("KUBERNETES_SERVICE_HOST", "h")]),
            ("azure container apps".into(), 30_000)
        );
        assert_eq!(found(&[("K_SERVICE", "s"), ("FUNCTION_TARGET", "f")]), ("google cloud functions".into(), 10_000));
        assert_eq!(found(&[("K_SERVICE", "s")]), ("cloud run".into(), 10_000));
        assert_eq!(found(&[("ECS_CONTAINER_METADATA_URI_V4", "u")]), ("ecs".into(), 30_000));
        assert_eq!(found(&[("KUBERNETES_SERVICE_HOST", "h")]), ("kubernetes".into(), 30_000));
        assert_eq!(found(&[("NOTIFY_SOCKET", "/run/n")]), ("systemd".into(), 90_000));
        assert_eq!(found(&[("INVOCATION_ID", "i")]), ("systemd".into(), 90_000));
        assert_eq!(found(&[]), ("process".into(), 10_000));
    }

    #[test]
    fn where_several_rows_fit_the_smallest_budget_wins() {
        let variables = &[("KUBERNETES_SERVICE_HOST", "h"), ("K_SERVICE", "s"), ("INVOCATION_ID", "i")];
        assert_eq!(detected(Fake { variables, ..Fake::default() }), ("cloud run".into(), 10_000));
        let variables = &[("INVOCATION_ID", "i")];
        assert_eq!(detected(Fake { variables, terminal: true, ..Fake::default() }).1, 10_000);
    }

    #[test]
    fn the_variable_is_a_whole_number_of_milliseconds_from_10_up() {
        let of = |value| Budget::from_variable(Some(value)).map(|b| b.map(|b| b.total().as_millis()));
        assert_eq!(of("500").unwrap(), Some(500));
        assert_eq!(of(" 10 ").unwrap(), Some(10));
        assert_eq!(Budget::from_variable(None).unwrap(), None);
        for bad in ["", "9", "0", "86400001", "-5", "1.5", "500ms", "soon"] {
            let error = of(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{bad}");
            assert!(!error.to_string().contains('\n'), "{bad}");
        }
        let text = of("500ms").unwrap_err().to_string();
        assert!(text.contains("WINDDOWN_BUDGET_MS=\"500ms\"") && text.contains("like 500"), "{text}");
    }

    #[test]
    fn a_tenth_is_kept_for_the_report_between_5_and_250_ms() {
        let of = |ms| {
            let budget = Budget::new(Duration::from_millis(ms)).unwrap();
            (budget.margin().as_millis(), budget.usable().as_millis())
        };
        assert_eq!(of(10), (5, 5));
        assert_eq!(of(300), (30, 270));
        assert_eq!(of(500), (50, 450));
        assert_eq!(of(2_500), (250, 2_250));
        assert_eq!(of(30_000), (250, 29_750));
    }
}
