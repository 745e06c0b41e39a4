//! Learning rates, as diffusers' `constant_with_warmup` and `cosine` schedules.

use std::f64::consts::PI;

/// How a learning rate changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// Not at all.
    Constant,
    /// `(1 + cos(π·progress))/2` down to zero at the last step.
    Cosine,
}

/// A learning rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Its largest value.
    pub most: f64,
    /// How it changes behind the warm-up.
    pub course: Course,
    /// Steps in which it rises from zero.
    pub warmup: u64,
}

impl Rate {
    /// The rate of a step, from 0, of so many.
    #[must_use]
    pub fn at(&self, step: u64, steps: u64) -> f64 {
        if step < self.warmup {
            return self.most * step as f64 / self.warmup as f64;
        }
        match self.course {
            Course::Constant => self.most,
            Course::Cosine => {
                let progress = (step - self.warmup) as f64 / steps.saturating_sub(self.warmup).max(1) as f64;
                self.most * 0.5 * (1.0 + (PI * progress.min(1.0)).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_rises_in_its_warmup_and_falls_to_zero_by_a_cosine() {
        let rate = Rate { most: 2.0, course: Course::Cosine, warmup: 10 };
        let at = [0, 5, 10, 60, 110].map(|step| rate.at(step, 110));
        for (found, expected) in at.iter().zip([0.0, 1.0, 2.0, 1.0, 0.0]) {
            assert!((found - expected).abs() < 1e-12, "{at:?}");
        }
        assert_eq!(Rate { course: Course::Constant, ..rate }.at(1000, 110), 2.0);
    }
}
