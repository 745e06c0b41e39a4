//! The Fréchet distance of images that a candidate makes, of the same noise for all candidates.

use super::network::{Candidate, InMemory, Parts};
use super::{Evaluator, Objective};
use crate::diffusion::schedulers::{Config as SchedulerConfig, Entry};
use crate::diffusion::unet::Config;
use crate::diffusion::{Noise, Sampling, Weights, sample, to_images};
use crate::error::{Error, Result};
use crate::eval::{self, Extractor, Reference};
use crate::search::Candidates;
use crate::stream::Control;
use candle_core::Device;

/// Which images a candidate makes.
#[derive(Clone)]
pub struct Images {
    /// How many.
    pub count: usize,
    /// How many at a time.
    pub batch: usize,
    /// Rows and columns.
    pub size: (usize, usize),
    /// What their noise follows from.
    pub seed: u64,
    /// The noise that models were trained on.
    pub scheduler: SchedulerConfig,
    /// How to get from noise to images.
    pub entry: &'static Entry,
    /// In how many steps.
    pub steps: usize,
}

/// The distance of candidates from a reference.
pub struct Distance<'a> {
    parts: Parts<'a>,
    images: &'a Images,
    extractor: &'a dyn Extractor,
    reference: &'a Reference,
    labels: Vec<String>,
}

impl<'a> Distance<'a> {
    /// Of networks of a configuration whose weights are the base's but where candidates differ.
    #[must_use]
    pub fn new(
        (candidates, config, base): (&'a Candidates, &'a Config, &'a Weights),
        images: &'a Images,
        extractor: &'a dyn Extractor,
        reference: &'a Reference,
    ) -> Self {
        let name = if eval::is_fid(&extractor.id()) { "FID" } else { "FD" };
        let labels = vec![format!("{name} of {} images", images.count)];
        Self { parts: Parts { candidates, config, base }, images, extractor, reference, labels }
    }
}

impl Objective for Distance<'_> {
    fn labels(&self) -> &[String] {
        &self.labels
    }

    fn side_by_side(&self, threads: usize) -> usize {
        self.parts.side_by_side(threads)
    }

    fn evaluator(&self) -> Result<Box<dyn Evaluator + '_>> {
        Ok(Box::new(OfOne { candidate: self.parts.candidate()?, distance: self }))
    }
}

struct OfOne<'a> {
    candidate: Candidate<'a>,
    distance: &'a Distance<'a>,
}

impl Evaluator for OfOne<'_> {
    fn evaluate(&mut self, weights: &[f64], control: Control<'_>) -> Result<Vec<f64>> {
        let Distance { parts, images, extractor, reference, .. } = self.distance;
        let unet = self.candidate.become_sum(weights)?;
        let model = InMemory { unet, config: parts.config };
        let scheduler = || images.scheduler.build(Some(images.entry), images.steps);
        let sampling = Sampling {
            scheduler: &scheduler,
            train_timesteps: images.scheduler.train_timesteps(),
            noise: Noise::new(images.seed),
            start: None,
            images: 0..images.count,
            size: images.size,
            batch: images.batch,
            device: &Device::Cpu,
        };
        let unwatched = Control { progress: &|_| {}, ..control };
        let mut made: Option<crate::images::Images> = None;
        let sampled = sample(&[&model], &sampling, unwatched, |samples| {
            let batch = to_images(&samples)?;
            match &mut made {
                Some(made) => made.append(batch),
                None => made = Some(batch),
            }
            Ok(())
        });
        match (sampled, made) {
            (Err(Error::NotNumbers(_)), _) => Ok(vec![f64::NAN]),
            (Err(error), _) => Err(error),
            (Ok(()), Some(made)) => {
                let batches = std::iter::once(Ok(made.iter().collect()));
                let features = eval::features(*extractor, batches, "the candidate's images", unwatched)?;
                let distance = reference.distance_of(&features)?;
                Ok(vec![if distance.is_finite() { distance } else { f64::NAN }])
            }
            (Ok(()), None) => Err(Error::Recipe("no images were asked for".to_owned())),
        }
    }
}
