//! Containers in a run of the tests: their images before it, and nothing of them after it.

use std::{env, io, process::Command};

use winddown_reaper::{RUN_LABEL, RUN_VARIABLE, Reaper, sweep_orphans, this_process};

use crate::{
    images, run,
    summary::{Outcome, Row},
    workspace::Workspace,
};

/// What a run needs for its containers.
#[derive(Debug)]
pub(crate) struct Containers {
    env: Vec<(&'static str, String)>,
    /// Sweeps too when this process does not come to its end.
    reaper: Option<Reaper>,
}

impl Containers {
    /// Removes what earlier runs left, and makes the images that the tests start containers from.
    pub(crate) fn set_up(workspace: &Workspace) -> (Outcome, Self) {
        match images::skipped() {
            Some(why) => (Outcome::Skipped(why), Self::none()),
            None => match images::make(workspace, false).and_then(|()| Ok(Self::start()?)) {
                Ok(containers) => (Outcome::Passed, containers),
                Err(error) => (Outcome::Failed(format!("{error:#}")), Self::none()),
            },
        }
    }

    fn none() -> Self {
        Self { env: Vec::new(), reaper: None }
    }

    fn start() -> io::Result<Self> {
        let orphans = sweep_orphans()?;
        if orphans > 0 {
            eprintln!("containers: removed what {orphans} processes left that are gone");
        }
        let run = this_process();
        let reaper = Some(Reaper::start(RUN_LABEL, &run)?);
        let mut env = vec![(RUN_VARIABLE, run)];
        // the command line knows contexts, the tests' client does not
        if env::var_os("DOCKER_HOST").is_none()
            && let Ok(host) = run::output(Command::new("docker").args([
                "context",
                "inspect",
                "--format",
                "{{.Endpoints.docker.Host}}",
            ]))
        {
            env.push(("DOCKER_HOST", host.trim().to_owned()));
        }
        Ok(Self { env, reaper })
    }

    /// What the tests have to be told.
    pub(crate) fn env(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.env.iter().map(|(name, value)| (*name, value.as_str()))
    }

    /// Removes what the run left. There is something to say only when that failed.
    pub(crate) fn sweep(self) -> Option<Row> {
        let error = self.reaper?.finish().err()?;
        Some(Row::failed("containers", format!("something is left: {error}")))
    }
}
