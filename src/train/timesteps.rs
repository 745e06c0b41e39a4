//! At which timesteps a copy is trained: mostly its own (Ma et al. 2025, Eq. 6).
//!
//! A timestep is drawn from the copy's own range with probability 1 − p, and from all with probability p. Timesteps of a
//! batch may come in pairs `t` and `first + last − t`, which are mirrored in the range they are drawn from and halve the variance of
//! the loss. All are functions of the seed and the number of the image in the whole training.

use crate::merge::{Key, threshold};
use std::ops::Range;

/// How timesteps are drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Timesteps {
    /// The copy's own.
    pub own: Range<usize>,
    /// How many there are in all.
    pub all: usize,
    /// p: the share that is drawn from all.
    pub share_of_all: f64,
    /// Whether a whole batch is drawn from one of the two, as the paper's authors do, not each image.
    pub by_batch: bool,
    /// Whether the second half of a batch mirrors the first.
    pub antithetic: bool,
}

impl Timesteps {
    /// Range `index` of `count`: the timesteps t of which `⌊t·count/T⌋` is the index, as samplers ask experts.
    #[must_use]
    pub fn range(index: usize, count: usize, all: usize) -> Range<usize> {
        let edge = |index: usize| (index * all).div_ceil(count.max(1));
        edge(index)..edge(index + 1)
    }

    /// Those of a batch of `count` images, of which the first is number `first` in the training.
    #[must_use]
    pub fn draw(&self, seed: u64, first: u64, count: usize) -> Vec<usize> {
        let words = |image: u64| {
            let mut words = [0; 2];
            Key::new(seed, "training timesteps", image as usize).fill(0, &mut words);
            words
        };
        let of_all = |word: u32| u64::from(word) < threshold(self.share_of_all);
        let first_word = words(first)[0];
        let drawn = |index: usize| {
            let [choice, place] = words(first + index as u64);
            let range =
                if of_all(if self.by_batch { first_word } else { choice }) { 0..self.all } else { self.own.clone() };
            (range.start + ((u64::from(place) * range.len() as u64) >> 32) as usize, range)
        };
        let half = count.div_ceil(2);
        let timestep = |index: usize| match self.antithetic && index >= half {
            true => {
                let (timestep, range) = drawn(index - half);
                range.start + range.end - 1 - timestep
            }
            false => drawn(index).0,
        };
        (0..count).map(timestep).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::expert;

    fn timesteps() -> Timesteps {
        Timesteps { own: 250..500, all: 1000, share_of_all: 0.4, by_batch: false, antithetic: false }
    }

    #[test]
    fn the_share_of_all_is_drawn_from_all() {
        let drawn = timesteps().draw(1, 0, 20_000);
        let outside = drawn.iter().filter(|t| !(250..500).contains(*t)).count() as f64 / 20_000.0;
        // Three quarters of all lie outside; five standard deviations.
        assert!((outside - 0.3).abs() < 5.0 * (0.3f64 * 0.7 / 20_000.0).sqrt(), "{outside}");
        assert!(drawn.iter().all(|t| *t < 1000));
        let never = Timesteps { share_of_all: 0.0, ..timesteps() };
        let own = never.draw(1, 0, 2_000);
        assert!(own.iter().all(|t| (250..500).contains(t)));
        assert!((0..250).all(|t| t % 25 > 0 || own.iter().any(|own| (own - 250) / 25 == t / 25)));
        let always = Timesteps { share_of_all: 1.0, ..timesteps() };
        assert!(always.draw(1, 0, 2_000).iter().any(|t| *t >= 900));
    }

    #[test]
    fn a_batch_is_drawn_from_one_where_that_is_asked() {
        let by_batch = Timesteps { by_batch: true, ..timesteps() };
        let (mut inside, mut mixed) = (0, 0);
        for batch in 0..200 {
            let own = by_batch.draw(0, batch * 64, 64).iter().filter(|t| (250..500).contains(*t)).count();
            inside += usize::from(own == 64);
            mixed += usize::from(own < 64);
        }
        assert!((90..150).contains(&inside), "{inside}");
        assert_eq!(inside + mixed, 200);
    }

    #[test]
    fn mirrored_timesteps_are_as_far_from_the_other_end() {
        let drawn = Timesteps { antithetic: true, ..timesteps() }.draw(3, 640, 65);
        for (a, b) in drawn.iter().zip(&drawn[33..]) {
            assert!(a + b == 749 || a + b == 999, "{a} and {b}");
        }
        assert_eq!(drawn[..33], timesteps().draw(3, 640, 33));
    }

    #[test]
    fn ranges_leave_no_timestep_out() {
        for count in 1..9 {
            let edges: Vec<Range<usize>> = (0..count).map(|index| Timesteps::range(index, count, 1000)).collect();
            assert!(edges.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert_eq!((edges[0].start, edges[count - 1].end), (0, 1000));
            for (index, range) in edges.into_iter().enumerate() {
                assert!(
                    range.clone().all(|timestep| expert(timestep as f32, count, 1000) == index),
                    "{range:?} of {count}"
                );
            }
        }
    }
}
