//! The same function and the same script under AWS's own emulator and under the simulator: the order of API calls, their
//! answers, signals and events is the same, but for the [differences](DIFFERENCES) that are known and listed.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use winddown::sim::{Config, Reason, Sim};
use winddown_testkit::child::ROLE;

use crate::{
    cases::cases,
    lambda::{Emulated, emulator, play},
    scripted::{EXTENSION, INIT, LOG, REGISTER},
};

cases![the_simulator_and_awss_own_emulator_agree_but_for_what_is_listed];

/// One script: how the function is set up, and what it is invoked with.
struct Script {
    name: &'static str,
    register: &'static str,
    init: &'static str,
    /// Whether there is an external extension.
    external: bool,
    /// Whether the simulator goes on after a reset, as the emulator always does.
    reinit: bool,
    events: &'static [&'static str],
}

const QUIET: Script =
    Script { name: "", register: "inside=", init: "", external: false, reinit: false, events: &["answer"] };

const SCRIPTS: &[Script] = &[
    Script { name: "two invocations", events: &["answer", "answer"], ..QUIET },
    Script { name: "no extension", register: "", ..QUIET },
    Script { name: "a handler that fails", events: &["error", "answer"], ..QUIET },
    Script { name: "answers that are wrong", events: &["twice", "unknown"], ..QUIET },
    Script { name: "an init that fails", init: "error", ..QUIET },
    Script { name: "an exit during init", init: "exit", ..QUIET },
    Script { name: "an exit during an invocation", events: &["exit"], ..QUIET },
    Script { name: "after an exit", reinit: true, events: &["exit", "answer"], ..QUIET },
    Script { name: "a timeout", events: &["hang"], ..QUIET },
    Script { name: "an external extension", external: true, events: &["answer", "answer"], ..QUIET },
    Script {
        name: "registrations that are refused",
        register: "inside= inside= other=SHUTDOWN third=NONSENSE =INVOKE",
        events: &["late"],
        ..QUIET
    },
];

/// One list of lines that is not the same under both.
struct Difference {
    script: &'static str,
    /// One of [`WHO`].
    who: &'static str,
    emulator: &'static [&'static str],
    simulator: &'static [&'static str],
}

/// What is known to differ. `docs/sim-fidelity.md`, "Against AWS's own emulator", says why, and whom the simulator follows.
const DIFFERENCES: &[Difference] = &[
    // The emulator's caller cannot be told of an init by itself: its first invocation begins one.
    Difference {
        script: "an init that fails",
        who: "caller",
        emulator: &["Task timed out after 1.00 seconds"],
        simulator: &["InitError"],
    },
    Difference { script: "an exit during init", who: "caller", emulator: &[""], simulator: &["InitExit"] },
    // Text, where Lambda has an error with a type.
    Difference {
        script: "a timeout",
        who: "caller",
        emulator: &["Task timed out after 1.00 seconds"],
        simulator: &["Sandbox.Timedout"],
    },
    // The emulator's own word, for what stops it.
    Difference {
        script: "an external extension",
        who: "extension",
        emulator: &[
            "start",
            "register watcher INVOKE+SHUTDOWN -> 200",
            "INVOKE",
            "INVOKE",
            "SHUTDOWN sandboxterminated",
        ],
        simulator: &["start", "register watcher INVOKE+SHUTDOWN -> 200", "INVOKE", "INVOKE", "SHUTDOWN spindown"],
    },
];

/// Whose lines are compared: two processes, who invokes, and the [order](Trace::order) between the processes.
const WHO: [&str; 4] = ["function", "extension", "caller", "order"];

/// What one run has left.
struct Trace {
    lines: Vec<String>,
}

impl Trace {
    fn of(&self, who: &str) -> Vec<&str> {
        if who == "order" {
            return self.order();
        }
        self.lines.iter().filter_map(|line| line.strip_prefix(who)?.strip_prefix(": ")).collect()
    }

    /// What happens first where two processes are involved: lines that no scheduler can swap.
    fn order(&self) -> Vec<&str> {
        const FIXED: [&str; 4] = ["extension: start", "function: start", "function: SIGTERM", "extension: SHUTDOWN"];
        let fixed = |line: &String| FIXED.into_iter().find(|fixed| line.starts_with(fixed));
        self.lines.iter().filter_map(fixed).collect()
    }
}

/// The folder of one run: the log, and the extension's program.
struct Stage {
    folder: TempDir,
    variables: Vec<(&'static str, OsString)>,
}

impl Stage {
    fn new(script: &Script) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        fs::write(&log, "").unwrap();
        let program = folder.path().join(EXTENSION);
        let this = env::current_exe().unwrap();
        // Whatever of the environment an extension gets to see.
        let start =
            format!("#!/bin/sh\nexec env {ROLE}=scripted_extension {LOG}='{}' '{}'\n", log.display(), this.display());
        fs::write(&program, start).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        let variables =
            vec![(LOG, log.into_os_string()), (REGISTER, script.register.into()), (INIT, script.init.into())];
        Self { folder, variables }
    }

    fn extension(&self) -> PathBuf {
        self.folder.path().join(EXTENSION)
    }

    /// What was logged, and what the caller got.
    fn trace(&self, answers: impl IntoIterator<Item = String>) -> Trace {
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap();
        let answers = answers.into_iter().map(|answer| format!("caller: {answer}"));
        Trace { lines: log.lines().map(str::to_owned).chain(answers).collect() }
    }
}

/// An answer as one word: that it is one, or the type of the error.
fn word(error_type: Option<&str>) -> String {
    error_type.unwrap_or("answer").to_owned()
}

const TIMEOUT: Duration = Duration::from_secs(1);

fn under_the_simulator(script: &Script) -> Trace {
    let stage = Stage::new(script);
    let mut config = Config::new(env::current_exe().unwrap()).env(ROLE, "scripted").timeout(TIMEOUT).capture_output();
    for (name, value) in &stage.variables {
        config = config.env(name, value);
    }
    if script.reinit {
        config = config.reinit();
    }
    if script.external {
        config = config.external_extension(stage.extension(), None::<&str>);
    }
    let answers = play(async {
        let sim = match Sim::start(config).await {
            Ok(sim) => sim,
            Err(error) => return vec![format!("{:?}", error.kind())],
        };
        let mut answers = Vec::new();
        for event in script.events {
            answers.push(match sim.invoke(json!({ "do": event })).await {
                Ok(invocation) => word(invocation.error.as_ref().map(|error| error.error_type.as_str())),
                Err(error) => format!("{:?}", error.kind()),
            });
        }
        sim.shutdown(Reason::Spindown).await;
        answers
    });
    stage.trace(answers)
}

fn under_the_emulator(script: &Script) -> Trace {
    let stage = Stage::new(script);
    // It looks for extensions in one place only: a file system of its own there, which nobody else sees.
    let command = if script.external {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--map-root-user", "sh", "-ec"]);
        command.arg("mount -t tmpfs tmpfs /opt; mkdir /opt/extensions; cp \"$1\" /opt/extensions; shift; exec \"$@\"");
        command.arg("sh").arg(stage.extension()).arg(emulator());
        command
    } else {
        Command::new(emulator())
    };
    let timeout = TIMEOUT.as_secs().to_string();
    let mut variables: Vec<(&str, &OsStr)> =
        stage.variables.iter().map(|(name, value)| (*name, value.as_os_str())).collect();
    variables.push(("AWS_LAMBDA_FUNCTION_TIMEOUT", timeout.as_ref()));
    let function = Emulated::start_by(command, "scripted", &variables);
    let answers: Vec<_> = script
        .events
        .iter()
        .map(|event| {
            let answer = function.invoke(&json!({ "do": event }));
            let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
            let value: Value = serde_json::from_str(body).unwrap_or_else(|_| json!({ "errorType": body }));
            word(value["errorType"].as_str())
        })
        .collect();
    function.terminate();
    stage.trace(answers)
}

fn the_simulator_and_awss_own_emulator_agree_but_for_what_is_listed() {
    for known in DIFFERENCES {
        assert!(
            SCRIPTS.iter().any(|script| script.name == known.script) && WHO.contains(&known.who),
            "{}",
            known.script
        );
    }
    let mut wrong = Vec::new();
    for script in SCRIPTS {
        let (emulator, simulator) = (under_the_emulator(script), under_the_simulator(script));
        assert!(!emulator.of("function").is_empty(), "the emulator ran nothing");
        for who in WHO {
            let known = DIFFERENCES.iter().find(|known| (known.script, known.who) == (script.name, who));
            let (theirs, ours) = (emulator.of(who), simulator.of(who));
            let expected = match known {
                Some(known) => theirs == known.emulator && ours == known.simulator && theirs != ours,
                None => theirs == ours,
            };
            if !expected {
                wrong.push(format!("{}: {who}\nemulator {theirs:#?}\nsimulator {ours:#?}", script.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
