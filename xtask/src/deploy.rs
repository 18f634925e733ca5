//! The templates in `deploy/`: each is read by a tool that knows its format, and the times in it must agree.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{
    jobs::{Done, Progress},
    python, run,
    summary::Outcome,
    workspace::Workspace,
};

/// Set to run without the tools that are fetched.
const SKIP_VARIABLE: &str = "WINDDOWN_SKIP_DEPLOY";

/// The tools with what they need: versions, and what each must hash to.
const REQUIREMENTS: &str = "deploy/requirements.txt";

/// What one check may take.
const LIMIT: Duration = Duration::from_secs(3 * 60);

const UNIT: &str = "deploy/systemd/app.service";

/// How open to the system a service may be, in tenths, as `systemd-analyze security` has it: from 0 to 100.
const EXPOSURE: &str = "--threshold=20";

/// Terraform, SAM, Kubernetes and containers.
pub(crate) fn check(workspace: &Workspace, progress: &Progress) -> Done {
    if env::var_os(SKIP_VARIABLE).is_some_and(|value| !value.is_empty()) {
        return Done::new(Outcome::Skipped(format!(
            "{SKIP_VARIABLE} is set: nothing is fetched to check the templates"
        )));
    }
    let commands = python::environment(workspace, "deploy", REQUIREMENTS, SKIP_VARIABLE)
        .and_then(|python| commands(workspace, &python.with_file_name("")));
    match commands {
        Ok(commands) => run_all(commands, progress),
        Err(error) => Done::failed(format!("{error:#}")),
    }
}

/// How the files of Terraform are written, where that is.
pub(crate) fn check_format(workspace: &Workspace, progress: &Progress) -> Done {
    if !run::works(Command::new("terraform").arg("version")) {
        return Done::new(Outcome::Skipped("no terraform".into()));
    }
    let mut format = Command::new("terraform");
    format.current_dir(&workspace.root).args(["fmt", "-check", "-diff", "-recursive", "deploy/terraform"]);
    run_all(vec![format], progress)
}

/// The service of systemd, where that is.
pub(crate) fn check_unit(workspace: &Workspace, progress: &Progress) -> Done {
    if !run::works(Command::new("systemd-analyze").arg("--version")) {
        return Done::new(Outcome::Skipped("no systemd-analyze".into()));
    }
    let (mut verify, security) = match unit_commands(workspace) {
        Ok(commands) => commands,
        Err(error) => return Done::failed(format!("{error:#}")),
    };
    match progress.run(&mut verify, LIMIT) {
        // what it does not understand it ignores, and says so: that is no failure of its own
        Ok(ran) if ran.end.failure().is_none() && !ran.lines.is_empty() => {
            Done { output: Done::of(&ran, &verify).output, ..Done::failed("it does not understand all of it".into()) }
        }
        Ok(ran) if ran.end.failure().is_none() => run_all(vec![security], progress),
        Ok(ran) => Done::of(&ran, &verify),
        Err(why) => Done::failed(format!("{why:#}")),
    }
}

/// The first that fails is shown.
fn run_all(commands: Vec<Command>, progress: &Progress) -> Done {
    let mut done = Done::new(Outcome::Passed);
    for mut command in commands {
        done = match progress.run(&mut command, LIMIT) {
            Ok(ran) => Done::of(&ran, &command),
            Err(why) => Done::failed(format!("{why:#}")),
        };
        if !matches!(done.outcome, Outcome::Passed) {
            break;
        }
    }
    done
}

fn commands(workspace: &Workspace, tools: &Path) -> Result<Vec<Command>> {
    let tool = |name: &str, arguments: &[&str]| {
        let mut command = Command::new(tools.join(name));
        command.current_dir(&workspace.root).args(arguments);
        command
    };
    let of_kind = |folder: &str, extension: &str| files(&workspace.root.join("deploy").join(folder), extension);
    let mut commands = Vec::new();
    for file in of_kind("terraform", "tf")? {
        let mut parse = tool("hcl2tojson", &[]);
        parse.arg(file);
        commands.push(parse);
    }
    // offline: what it would fetch are severities, and modules that there are none of
    let checkov =
        ["--directory", "deploy/terraform", "--framework", "terraform", "--compact", "--quiet", "--skip-download"];
    commands.push(tool("checkov", &checkov));
    commands.push(tool("cfn-lint", &["deploy/sam/template.yaml"]));
    let mut validate = tool("kubernetes-validate", &["--strict"]);
    validate.args(of_kind("kubernetes", "yaml")?);
    commands.push(validate);
    commands.push(tool("hadolint", &["deploy/container/Dockerfile"]));
    Ok(commands)
}

/// `verify` wants a program that is there: any that is, in a copy.
fn unit_commands(workspace: &Workspace) -> Result<(Command, Command)> {
    let unit = workspace.root.join(UNIT);
    let text = read(&unit)?;
    let own = env::current_exe().context("cannot find this program")?;
    let folder = workspace.target.join("deploy");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let copy = folder.join("app.service");
    let text = text.replace("/usr/local/bin/app", &own.display().to_string());
    fs::write(&copy, text).with_context(|| format!("cannot write {}", copy.display()))?;
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no", "--recursive-errors=no"]).arg(copy);
    let mut security = Command::new("systemd-analyze");
    security.args(["security", "--offline=yes", "--no-pager", EXPOSURE]).arg(unit);
    Ok((verify, security))
}

/// What is wrong with the times: what a template gives the process must be what it tells it.
pub(crate) fn budgets(workspace: &Workspace) -> Result<Vec<String>> {
    let of = |file: &str| read(&workspace.root.join("deploy").join(file));
    let kubernetes = of("kubernetes/deployment.yaml")?;
    let (ecs, systemd) = (of("ecs/task-definition.json")?, of("systemd/app.service")?);
    let task: serde_json::Value = serde_json::from_str(&ecs).context("ecs/task-definition.json is not JSON")?;
    let container = &task["containerDefinitions"][0];
    let stop = container["stopTimeout"].as_i64().context("ecs/task-definition.json has no stopTimeout")?;
    let variables = container["environment"].to_string();
    let pod =
        number(&kubernetes, "\n      terminationGracePeriodSeconds:")? - number(&kubernetes, "\n              sleep:")?;
    let given = [
        ("kubernetes/deployment.yaml", pod, &kubernetes),
        ("ecs/task-definition.json", stop, &variables),
        ("systemd/app.service", number(&systemd, "\nTimeoutStopSec=")?, &systemd),
    ];
    let mut wrong = Vec::new();
    for (file, seconds, text) in given {
        let told = number(text, "WINDDOWN_BUDGET_MS")?;
        if told != seconds * 1000 {
            wrong.push(format!("deploy/{file}: the process has {seconds} s, and is told {told} ms"));
        }
    }
    Ok(wrong)
}

/// The number that comes first after this.
fn number(text: &str, key: &str) -> Result<i64> {
    let (_, rest) = text.split_once(key).with_context(|| format!("no {}", key.trim()))?;
    let digits = rest.trim_start_matches(|it: char| !it.is_ascii_digit());
    let end = digits.find(|it: char| !it.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().with_context(|| format!("no number after {}", key.trim()))
}

fn files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.retain(|file| file.extension().is_some_and(|it| it == extension));
    files.sort();
    // a check of nothing would pass
    ensure!(!files.is_empty(), "no .{extension} in {}", folder.display());
    Ok(files)
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_the_first_after_its_key() {
        assert_eq!(
            number("a: 1\nname: WINDDOWN_BUDGET_MS\n  value: \"25000\"\nb: 2", "WINDDOWN_BUDGET_MS").unwrap(),
            25_000
        );
        assert!(number("a: 1", "b").is_err() && number("b: none", "b").is_err());
    }
}
