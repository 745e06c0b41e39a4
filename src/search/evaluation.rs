//! Many candidates at a time.

use super::objectives::Objective;
use crate::error::{Error, Result};
use crate::stream::{Control, Settings};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A candidate to be evaluated.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// What `done` is told of.
    pub number: usize,
    /// One for each model.
    pub weights: Vec<f64>,
}

/// Evaluates candidates, as many side by side as the objective says is good on so many threads, and hands the values of each, and how
/// long they took, to `done` as they come. What a candidate's values are does not depend on the threads. Progress counts candidates.
///
/// # Errors
/// Those of the objective and of `done`, behind which no further candidate is begun; [`Error::Interrupted`].
pub fn evaluate(
    objective: &dyn Objective,
    jobs: &[Job],
    threads: usize,
    control: Control<'_>,
    done: impl FnMut(usize, Vec<f64>, Duration) -> Result<()> + Send,
) -> Result<()> {
    let side_by_side = objective.side_by_side(threads).clamp(1, threads.max(1)).min(jobs.len());
    let (next, done) = (AtomicUsize::new(0), Mutex::new(done));
    let stops = AtomicBool::new(false);
    let work = |worker: usize| -> Result<()> {
        // Threads that do not share evenly go to the first.
        let own = NonZeroUsize::new(threads / side_by_side + usize::from(worker < threads % side_by_side));
        let pool = Settings { threads: own, ..Settings::default() }.pool()?;
        let mut evaluator = objective.evaluator()?;
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            if stops.load(Ordering::Relaxed) {
                return Ok(());
            }
            control.check()?;
            let begun = Instant::now();
            let values = pool.install(|| evaluator.evaluate(&job.weights, control))?;
            let took = begun.elapsed();
            (*done.lock().unwrap_or_else(PoisonError::into_inner))(job.number, values, took)?;
            (control.progress)(1);
        }
        Ok(())
    };
    let work = |worker: usize| work(worker).inspect_err(|_| stops.store(true, Ordering::Relaxed));
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let work = &work;
        let running: Vec<_> = (0..side_by_side).map(|worker| scope.spawn(move || work(worker))).collect();
        let join = |job: std::thread::ScopedJoinHandle<'_, Result<()>>| {
            job.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        running.into_iter().map(join).collect()
    });
    // Why it stopped before that it was stopped.
    let first = results.into_iter().filter_map(Result::err).min_by_key(|error| matches!(error, Error::Interrupted));
    first.map_or(Ok(()), Err)
}
