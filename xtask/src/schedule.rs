//! In which order jobs run, and which of them side by side.

/// How a job uses the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// It waits most of its time: one for each core at a time, beside those that do not.
    Waits,
    /// It keeps a core busy: one for each core at a time.
    Works,
    /// It keeps a core busy, and holds a lock of cargo's for most of its time: one at a time of those with the same.
    Locks(&'static str),
    /// It measures: nothing else runs meanwhile.
    Alone,
}

/// What is left to start, and what runs.
#[derive(Debug)]
pub(crate) struct Schedule {
    /// In the order in which they are to start, as far as their classes let them.
    waiting: Vec<(usize, Class)>,
    running: Vec<(usize, Class)>,
    cores: usize,
}

impl Schedule {
    /// Jobs are known by their place in this list.
    pub(crate) fn new(classes: impl IntoIterator<Item = Class>, cores: usize) -> Self {
        Self { waiting: classes.into_iter().enumerate().collect(), running: Vec::new(), cores: cores.max(1) }
    }

    /// Takes the next job that may start now.
    pub(crate) fn next(&mut self) -> Option<usize> {
        let place = self.waiting.iter().position(|(_, class)| self.may_start(*class))?;
        let job = self.waiting.remove(place);
        self.running.push(job);
        Some(job.0)
    }

    /// Takes note that a job has ended.
    pub(crate) fn ended(&mut self, job: usize) {
        self.running.retain(|(running, _)| *running != job);
    }

    fn may_start(&self, class: Class) -> bool {
        if self.running.iter().any(|(_, running)| *running == Class::Alone) {
            return false;
        }
        let working = || self.running.iter().filter(|(_, running)| *running != Class::Waits).count();
        match class {
            // Their tests are some at once, and a server that starts keeps a core busy too.
            Class::Waits => self.running.len() - working() < self.cores,
            Class::Works => working() < self.cores,
            Class::Locks(_) => working() < self.cores && self.running.iter().all(|(_, running)| *running != class),
            // the last: the others would wait for it
            Class::Alone => self.running.is_empty() && self.waiting.iter().all(|(_, other)| *other == Class::Alone),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARGO: Class = Class::Locks("cargo");

    fn started(schedule: &mut Schedule) -> Vec<usize> {
        std::iter::from_fn(|| schedule.next()).collect()
    }

    #[test]
    fn those_that_wait_start_beside_one_for_each_core() {
        use Class::{Waits, Works};
        let mut schedule = Schedule::new([Works, Works, Waits, Works, Waits], 2);
        assert_eq!(started(&mut schedule), [0, 1, 2, 4]);
        schedule.ended(2);
        assert!(started(&mut schedule).is_empty(), "it kept no core");
        schedule.ended(1);
        assert_eq!(started(&mut schedule), [3]);
    }

    #[test]
    fn of_those_that_wait_no_more_run_at_once_than_the_machine_has_room_for() {
        use Class::{Waits, Works};
        let mut schedule = Schedule::new([Waits, Waits, Waits, Works, Waits], 2);
        assert_eq!(started(&mut schedule), [0, 1, 3]);
        schedule.ended(3);
        assert!(started(&mut schedule).is_empty());
        schedule.ended(0);
        assert_eq!(started(&mut schedule), [2]);
    }

    #[test]
    fn of_those_with_the_same_lock_one_runs_at_a_time() {
        let mut schedule = Schedule::new([CARGO, CARGO, Class::Works, Class::Locks("other")], 3);
        assert_eq!(started(&mut schedule), [0, 2, 3]);
        schedule.ended(2);
        assert!(started(&mut schedule).is_empty());
        schedule.ended(0);
        assert_eq!(started(&mut schedule), [1]);
    }

    #[test]
    fn those_that_measure_come_last_and_one_by_one() {
        let mut schedule = Schedule::new([Class::Alone, Class::Waits, Class::Alone, Class::Works], 2);
        assert_eq!(started(&mut schedule), [1, 3]);
        schedule.ended(1);
        assert!(started(&mut schedule).is_empty());
        schedule.ended(3);
        assert_eq!(started(&mut schedule), [0]);
        schedule.ended(0);
        assert_eq!(started(&mut schedule), [2]);
        schedule.ended(2);
        assert!(started(&mut schedule).is_empty());
    }

    #[test]
    fn a_machine_that_does_not_know_its_cores_has_one() {
        let mut schedule = Schedule::new([Class::Works, Class::Works], 0);
        assert_eq!(started(&mut schedule), [0]);
    }
}
