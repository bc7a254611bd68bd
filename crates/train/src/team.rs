//! Worker threads that share each piece of work, and the handling of their failures.

use crate::TrainError;
use burn_lora_io::panic_text;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

/// How long a failed thread waits for the leader to notice.
const PATIENCE: Duration = Duration::from_secs(30);

/// Worker threads beside their leader. All take part in each piece of work, and may wait for each
/// other in it, on their devices, where nothing can wake them. Therefore the leader does not wait
/// for the workers when it fails itself, and a failed worker ends the process if the leader does
/// not notice the failure in time.
pub(crate) struct Team<W> {
    members: Vec<Sender<W>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Number of threads that have work, or wait for it.
    running: usize,
    /// Name of the first thread that failed, and its error.
    failed: Option<(String, String)>,
    /// Whether the leader is done.
    over: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<W: Clone + Send + 'static> Team<W> {
    /// Creates an empty team.
    pub fn new() -> Self {
        Self { members: Vec::new(), shared: Arc::default() }
    }

    /// Adds a thread, which does its part of each piece of work until no more comes.
    pub fn join(
        &mut self,
        name: String,
        part: impl FnOnce(Receiver<W>) -> Result<(), TrainError> + Send + 'static,
    ) {
        self.join_for(name, PATIENCE, part, |error| {
            burn_lora_io::report(format_args!("{error}: the run ends, as the others wait for it"));
            std::process::exit(1);
        });
    }

    fn join_for(
        &mut self,
        name: String,
        patience: Duration,
        part: impl FnOnce(Receiver<W>) -> Result<(), TrainError> + Send + 'static,
        end: impl FnOnce(TrainError) + Send + 'static,
    ) {
        let (sender, work) = channel();
        let shared = self.shared.clone();
        shared.state().running += 1;
        std::thread::spawn(move || {
            let reason = match catch_unwind(AssertUnwindSafe(|| part(work))) {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(panic) => Some(panic_text(&*panic)),
            };
            let mut state = shared.state();
            state.running -= 1;
            shared.changed.notify_all();
            let Some(reason) = reason else { return };
            let failure = (name, reason);
            state.failed.get_or_insert_with(|| failure.clone());
            let (state, _) = shared
                .changed
                .wait_timeout_while(state, patience, |state| !state.over)
                .unwrap_or_else(PoisonError::into_inner);
            if !state.over {
                end(TrainError::device(failure.0, failure.1));
            }
        });
        self.members.push(sender);
    }

    /// Returns the error of the first thread that failed.
    pub fn failure(&self) -> Option<TrainError> {
        let failed = self.shared.state().failed.clone();
        failed.map(|(name, reason)| TrainError::device(name, reason))
    }

    /// Sends a piece of work to all threads.
    pub fn send(&self, work: &W) -> Result<(), TrainError> {
        for sender in &self.members {
            // A thread that has ended has left a failure.
            _ = sender.send(work.clone());
        }
        self.failure().map_or(Ok(()), Err)
    }

    /// Waits until all work is done.
    pub fn finish(mut self) -> Result<(), TrainError> {
        self.members.clear();
        let working = |state: &mut State| state.running > 0 && state.failed.is_none();
        let ended = self.shared.changed.wait_while(self.shared.state(), working);
        drop(ended.unwrap_or_else(PoisonError::into_inner));
        self.failure().map_or(Ok(()), Err)
    }
}

impl<W> Drop for Team<W> {
    fn drop(&mut self) {
        self.shared.state().over = true;
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::mpsc, time::Instant};

    const SOON: Duration = Duration::from_millis(50);

    fn panics(text: &'static str) -> impl FnOnce(Receiver<u32>) -> Result<(), TrainError> {
        move |work| {
            work.into_iter().for_each(|work| assert!(work != 2, "{text}"));
            Ok(())
        }
    }

    fn works(work: Receiver<u32>) -> Result<(), TrainError> {
        work.into_iter().for_each(drop);
        Ok(())
    }

    /// Waits until a thread has failed.
    fn failed(team: &Team<u32>) -> TrainError {
        let start = Instant::now();
        loop {
            if let Some(error) = team.failure() {
                return error;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "nothing has failed");
            std::thread::yield_now();
        }
    }

    #[test]
    fn all_take_part_in_all_work() {
        let (sender, done) = mpsc::channel();
        let mut team = Team::new();
        for number in 0..3 {
            let sender = sender.clone();
            team.join(format!("device {number}"), move |work: Receiver<u32>| {
                work.into_iter().for_each(|work| sender.send((number, work)).unwrap());
                Ok(())
            });
        }
        team.send(&1).unwrap();
        team.send(&2).unwrap();
        team.finish().unwrap();
        drop(sender);
        let mut done: Vec<_> = done.into_iter().collect();
        done.sort_unstable();
        assert_eq!(done, [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)]);
    }

    #[test]
    fn what_one_fails_with_is_the_error_of_the_next_piece_of_work() {
        let mut team = Team::new();
        team.join("device 1".into(), works);
        team.join("device 2".into(), panics("out of memory"));
        team.send(&1).unwrap();
        // The others cannot have failed yet, or have.
        _ = team.send(&2);
        assert_eq!(failed(&team).to_string(), "device 2: out of memory");
        assert_eq!(team.send(&3).unwrap_err().to_string(), "device 2: out of memory");
        assert!(team.finish().is_err());
    }

    #[test]
    fn an_error_at_the_last_piece_of_work_is_not_lost() {
        let mut team = Team::new();
        team.join("device 1".into(), |work: Receiver<u32>| {
            work.recv().unwrap();
            Err(TrainError::device("step 1", "no memory"))
        });
        _ = team.send(&1);
        assert_eq!(team.finish().unwrap_err().to_string(), "device 1: step 1: no memory");
    }

    /// The shape of a run whose first device panics while the others wait for it.
    #[test]
    fn a_leader_that_fails_does_not_wait_for_threads_that_wait_for_it() {
        let (never, waits) = mpsc::channel::<()>();
        let (begun, has_begun) = mpsc::channel();
        let result = catch_unwind(AssertUnwindSafe(move || {
            let mut team = Team::new();
            team.join("device 1".into(), move |work: Receiver<u32>| {
                for _ in work {
                    begun.send(()).unwrap();
                    _ = waits.recv();
                }
                Ok(())
            });
            team.send(&1).unwrap();
            has_begun.recv().unwrap();
            panic!("out of memory on the first device");
        }));
        assert_eq!(panic_text(&*result.unwrap_err()), "out of memory on the first device");
        drop(never);
    }

    #[test]
    fn a_leader_that_waits_for_one_that_has_failed_is_ended() {
        let (ended, end) = mpsc::channel();
        let mut team = Team::new();
        team.join_for("device 1".into(), SOON, panics("out of memory"), move |error| {
            ended.send(error.to_string()).unwrap();
        });
        team.send(&2).unwrap_or_default();
        // As if in a collective operation.
        assert_eq!(end.recv().unwrap(), "device 1: out of memory");
    }

    #[test]
    fn nothing_is_ended_when_the_leader_has_heard_of_it() {
        let (ended, end) = mpsc::channel::<()>();
        let mut team = Team::new();
        team.join_for("device 1".into(), 100 * SOON, panics("out of memory"), move |_| {
            ended.send(()).unwrap();
        });
        _ = team.send(&2);
        failed(&team);
        drop(team);
        // The thread goes, and with it the sender.
        assert!(end.recv().is_err());
    }
}
