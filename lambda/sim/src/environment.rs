//! The processes of one environment: starting, freezing and killing them.
//!
//! Locks are taken in this order: `children`, then the world's state, then a process's own. None is held over an await.

use std::io;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::api::ApiState;
use crate::cgroup::Group;
use crate::config::extension_name;
use crate::error::{Error, ErrorKind};
use crate::process::{Exit, Process, Spawned, read_lines};
use crate::record::OutputLine;
use crate::shutdown::EXIT_WAIT;
use crate::sim::web::{self, Requests};
use crate::state::{External, SimState};
use crate::telemetry::Category;
use crate::tree::{Family, Tree};

#[derive(Debug)]
pub(crate) struct Environment {
    pub(crate) shared: Arc<ApiState>,
    pub(crate) address: SocketAddr,
    pub(crate) launched: Instant,
    /// Held during an invocation and while freezing: one at a time, but on Managed Instances.
    pub(crate) turns: Semaphore,
    family: Family,
    /// What all of it may use, where that is limited.
    pub(crate) group: Option<Arc<Group>>,
    /// Where a Web Function has to listen.
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) requests: Requests,
    children: Mutex<Children>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Children {
    /// Nothing is started any more.
    closed: bool,
    pub(crate) function: Option<Arc<Process>>,
    pub(crate) externals: Vec<(String, Arc<Process>)>,
    /// Of an earlier life, and not reaped yet.
    earlier: Vec<Arc<Process>>,
}

impl Environment {
    pub(crate) fn new(
        shared: Arc<ApiState>,
        family: Family,
        group: Option<Arc<Group>>,
        endpoint: Option<SocketAddr>,
        launched: Instant,
    ) -> Self {
        let turns = Semaphore::new(shared.config.concurrency());
        shared.world.update(|state| state.runtime.endpoint = endpoint);
        Self {
            shared,
            address: family.api,
            launched,
            turns,
            family,
            group,
            endpoint,
            requests: web::requests(),
            children: Mutex::default(),
        }
    }

    /// Starts everything.
    ///
    /// # Errors
    ///
    /// When a program cannot be started. Behind external extensions, the function's error goes to the state.
    pub(crate) fn start_all(self: &Arc<Self>) -> Result<(), Error> {
        self.shared.world.update(|state| state.tell_init_start(&self.shared.config.function_name));
        self.start_externals()?;
        if self.shared.world.read(SimState::externals_registered) {
            return self.start_function();
        }
        tokio::spawn(Arc::clone(self).start_function_after_externals());
        Ok(())
    }

    /// Starts everything again, after shutdown is over. `false` when the environment was not reset, but ended.
    ///
    /// # Errors
    ///
    /// Those of [`start_all`](Self::start_all).
    pub(crate) fn start_again(self: &Arc<Self>) -> Result<bool, Error> {
        let mut children = self.children();
        let again = self.shared.world.update(|state| {
            let again = state.reset && state.record.is_some() && !state.killed;
            if again {
                state.begin_again();
            }
            again
        });
        if again {
            let earlier = children.started().into_iter().filter(|process| process.unreaped().is_some()).collect();
            *children = Children { earlier, ..Children::default() };
        }
        drop(children);
        if again { self.start_all().map(|()| true) } else { Ok(false) }
    }

    fn life(&self) -> u64 {
        self.shared.world.read(|state| state.life)
    }

    /// Starts the external extensions, in the order they were given.
    fn start_externals(&self) -> Result<(), Error> {
        for (program, args) in &self.shared.config.externals {
            let name = extension_name(program);
            let command = self.shared.config.extension_command(program, args, self.address)?;
            // before it runs, so that its registration finds it
            self.shared.world.update(|state| state.externals.push(External { name: name.clone(), exit: None }));
            let exited = name.clone();
            let life = self.life();
            let on_exit = move |state: &mut SimState, exit: Exit| {
                state.note(format!("extension exit {exited} {}", exit.describe()));
                let external = state.externals.iter_mut().find(|it| it.name == exited);
                if let Some(external) = external.filter(|_| state.life == life) {
                    external.exit = Some(exit);
                }
            };
            self.start(command, &name, on_exit, |children, process| children.externals.push((name.clone(), process)))?;
        }
        Ok(())
    }

    fn start_function(&self) -> Result<(), Error> {
        let command = self.shared.config.function_command(self.address, self.endpoint)?;
        let life = self.life();
        let group = self.group.clone();
        let on_exit = move |state: &mut SimState, exit: Exit| {
            let out_of_memory = exit.is_sigkill_of_others() && group.is_some_and(|group| group.has_killed());
            let why = if out_of_memory { ", out of memory" } else { "" };
            state.note(format!("exit {}{why}", exit.describe()));
            if state.life == life {
                state.runtime.ready = false;
                state.runtime.exit = Some(exit);
                state.runtime.out_of_memory = out_of_memory;
            }
        };
        self.start(command, FUNCTION, on_exit, |children, process| children.function = Some(process))?;
        if let Some(endpoint) = self.endpoint {
            tokio::spawn(web::until_it_listens(Arc::clone(&self.shared), endpoint));
        }
        Ok(())
    }

    /// Starts the function when every external extension has registered, as AWS's own emulator does.
    async fn start_function_after_externals(self: Arc<Self>) {
        let registered = |state: &SimState| state.externals_registered().then_some(true);
        let go = self.shared.world.wait(|state| registered(state).or_else(|| state.init().map(|_| false))).await;
        if go && let Err(error) = self.start_function() {
            self.shared.world.update(|state| state.start_error = Some(error.to_string()));
        }
    }

    /// Stops every process, which the timeline calls `what`; `false` when the environment has ended or is ending.
    pub(crate) fn freeze(&self, what: &str) -> bool {
        let children = self.children();
        self.shared.world.update(|state| {
            if state.has_ended() {
                return false;
            }
            if !std::mem::replace(&mut state.frozen, true) {
                children.signal(Signal::STOP);
                // dropped, and found again at the thaw: nothing starts or ends meanwhile
                Tree::stop(&self.family, &children.started());
                state.note(what);
            }
            true
        })
    }

    /// Lets every process go on, if they are frozen.
    pub(crate) fn thaw(&self) {
        let children = self.children();
        self.shared.world.update(|state| {
            if std::mem::take(&mut state.frozen) {
                state.note("thaw");
                children.signal(Signal::CONT);
                Tree::go_on(&self.family, &children.started());
            }
        });
    }

    /// Kills every process, and keeps new ones from being started.
    pub(crate) fn kill(&self) {
        let mut children = self.children();
        children.closed = true;
        self.shared.world.update(|state| {
            state.killed = true;
            let function_runs = children.function.is_some() && state.runtime.exit.is_none();
            if function_runs || state.externals.iter().any(|it| it.exit.is_none()) {
                state.note("SIGKILL to all");
            }
        });
        // stopped before the first is killed, so that none loses the parent it is known by
        let tree = Tree::stop(&self.family, &children.started());
        children.signal(Signal::KILL);
        let strays = tree.kill();
        self.shared.world.update(|state| state.strays += strays);
    }

    /// Kills what has left the groups, and waits until what comes to this process of it is reaped.
    pub(crate) async fn end_strays(&self) {
        let strays = {
            let children = self.children();
            Tree::stop(&self.family, &children.started()).kill()
        };
        self.shared.world.update(|state| {
            state.strays += strays;
            if strays > 0 {
                state.note(format!("SIGKILL to {strays} left behind"));
            }
        });
        if self.family.adoption.is_of_family()
            && let Ok(mut ended) = signal(SignalKind::child())
        {
            let reaped = async {
                while self.reap_orphans() > 0 {
                    ended.recv().await;
                }
            };
            // one that is not gone by then hangs in the kernel
            let _ = timeout(EXIT_WAIT, reaped).await;
        }
    }

    /// Reaps the orphans that have come to this process, for as long as there is the environment.
    ///
    /// # Errors
    ///
    /// When signals cannot be listened for.
    pub(crate) fn reap_from_now_on(self: &Arc<Self>) -> Result<(), Error> {
        if !self.family.adoption.adopts() {
            return Ok(());
        }
        let mut ended = signal(SignalKind::child()).map_err(|cause| {
            Error::new(ErrorKind::Start, "cannot listen for SIGCHLD: leave out adopt_orphans").with_source(cause)
        })?;
        let environment = Arc::downgrade(self);
        tokio::spawn(async move {
            while ended.recv().await.is_some()
                && let Some(environment) = environment.upgrade()
            {
                environment.reap_orphans();
            }
        });
        Ok(())
    }

    /// Returns how many orphans of the environment have not ended.
    fn reap_orphans(&self) -> usize {
        // what is being started is not yet known to be no orphan
        let children = self.children();
        Tree::reap(&self.family, &children.started())
    }

    /// Keeps new processes from being started, and returns the ones there are.
    pub(crate) fn close(&self) -> Children {
        let mut children = self.children();
        children.closed = true;
        children.clone()
    }

    pub(crate) fn function_pid(&self) -> Option<u32> {
        self.children().function.as_ref().map(|process| process.id())
    }

    fn start(
        &self,
        command: Command,
        from: &str,
        on_exit: impl FnOnce(&mut SimState, Exit) + Send + 'static,
        store: impl FnOnce(&mut Children, Arc<Process>),
    ) -> Result<(), Error> {
        let program = command.get_program().to_string_lossy().into_owned();
        let mut children = self.children();
        if children.closed {
            return Err(Error::new(ErrorKind::Ended, "the environment is being shut down: start another one"));
        }
        let shared = Arc::clone(&self.shared);
        let on_exit = move |exit| shared.world.update(|state| on_exit(state, exit));
        let spawned = Process::spawn(command, self.family.mark, self.group.as_ref(), on_exit);
        let Spawned { process, pipes } = spawned.map_err(|cause| cannot_start(&program, cause))?;
        store(&mut children, process);
        for (stream, pipe) in pipes {
            let of_function = usize::from(from == FUNCTION);
            self.shared.world.update(|state| {
                state.open_pipes += 1;
                state.function_pipes += of_function;
            });
            let (lines, end) = (Arc::clone(&self.shared), Arc::clone(&self.shared));
            let from = from.to_owned();
            let category = if from == FUNCTION { Category::Function } else { Category::Extension };
            let on_line = move |line: String| {
                lines.config.pass_on(stream, &line);
                lines.world.update(|state| {
                    state.telemetry.tell(category, category.event_type(), line.as_str().into());
                    if lines.config.captures_output() {
                        let at_ms = state.now_ms();
                        state.output.push(OutputLine { at_ms, from: from.clone(), stream, line });
                    }
                });
            };
            let on_end = move || {
                end.world.update(|state| {
                    state.open_pipes -= 1;
                    state.function_pipes -= of_function;
                });
            };
            read_lines(pipe, on_line, on_end).map_err(|cause| cannot_start(&program, cause))?;
        }
        Ok(())
    }

    fn children(&self) -> MutexGuard<'_, Children> {
        // a panic elsewhere must not keep the processes from being killed
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Children {
    fn signal(&self, signal: Signal) {
        self.of_this_life().for_each(|process| {
            process.signal(signal);
        });
    }

    fn of_this_life(&self) -> impl Iterator<Item = &Arc<Process>> {
        self.function.iter().chain(self.externals.iter().map(|(_, process)| process))
    }

    /// Every process that was started, but for those of earlier lives that are reaped.
    fn started(&self) -> Vec<Arc<Process>> {
        self.of_this_life().chain(&self.earlier).map(Arc::clone).collect()
    }
}

/// `instant` as AWS writes deadlines: milliseconds since 1970.
pub(crate) fn epoch_ms(instant: Instant) -> u64 {
    let at = SystemTime::now() + instant.saturating_duration_since(Instant::now());
    let millis = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    u64::try_from(millis).unwrap_or(u64::MAX)
}

fn cannot_start(program: &str, cause: io::Error) -> Error {
    let what = match cause.kind() {
        io::ErrorKind::NotFound if program.contains('/') => {
            "no such file, or no such interpreter in its first line: check the path".to_owned()
        }
        io::ErrorKind::NotFound => format!("not found in PATH: for a file in this directory, write ./{program}"),
        io::ErrorKind::PermissionDenied => "permission denied: make it executable (chmod +x)".to_owned(),
        _ => format!("{cause}: check that it is built for this machine, or a script that begins with #!"),
    };
    Error::new(ErrorKind::Start, format!("cannot start {program}: {what}")).with_source(cause)
}

/// Where a line of the function's is from.
const FUNCTION: &str = "function";
