//! `--gradients` of `ckptmerge similarity`: how alike a model's own gradients are.

use super::Common;
use super::data::images_at;
use super::noisy_images::{NoisyImages, evenly_spaced, taken};
#[cfg(feature = "plot")]
use super::picture::Picture;
use super::report::{Report, check_kept, count, csv, significant, table};
use crate::diffusion::Model;
use crate::error::Error;
use crate::plot::terminal;
#[cfg(feature = "plot")]
use crate::plot::{Heatmap, Scale};
use crate::recipe::Selection;
use crate::train::{Alike, Gradients, Network, Source};
use clap::Args;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Gradients of a model at several timesteps.
#[derive(Args)]
#[command(next_help_heading = "Gradients of a diffusion model")]
pub(super) struct GradientOptions {
    /// Compare the gradients of BASE's denoising loss at different timesteps, by all its weights, not what models changed
    ///
    /// BASE is a checkpoint of diffusers' UNet2DModel, and the only model. All timesteps see the same images with the same noise (Ma et
    /// al. 2025, Fig. 1a). It takes 4 bytes of memory for each weight and timestep.
    #[arg(long, requires = "data")]
    gradients: bool,
    /// At how many timesteps, which are the middles of as many equal ranges [default: 20]
    #[arg(long, value_name = "N", requires = "gradients", value_parser = clap::value_parser!(u32).range(1..=1000))]
    points: Option<u32>,
    /// Over how many images, from the first on [default: 512, or all]
    #[arg(long, value_name = "N", requires = "gradients", value_parser = clap::value_parser!(u32).range(1..))]
    samples: Option<u32>,
    /// The images: a folder, or an array of them in .npy, .npz or any other format
    #[arg(long, value_name = "IMAGES")]
    data: Option<PathBuf>,
    #[command(flatten)]
    images: NoisyImages,
}

/// What is written beside the answer.
pub(super) struct Beside<'a> {
    pub(super) csv: Option<&'a Path>,
    #[cfg(feature = "plot")]
    pub(super) picture: &'a Picture,
}

impl GradientOptions {
    /// Whether gradients are asked for.
    ///
    /// # Errors
    /// [`Error::Recipe`] if something is said of them, but they are not.
    pub(super) fn are_wanted(&self) -> Result<bool, Error> {
        if !self.gradients && (self.data.is_some() || self.images.is_given()) {
            let message = "--data, --batch, --seed, --size, --config and --scheduler-config are of --gradients: give that as well, or leave them out";
            return Err(Error::Recipe(message.to_owned()));
        }
        Ok(self.gradients)
    }

    /// Takes the gradients and tells of them.
    pub(super) fn run(
        &self,
        model: &Path,
        selection: &Selection,
        beside: &Beside<'_>,
        common: &Common,
        report: &Report,
    ) -> anyhow::Result<()> {
        let data = self.data.as_ref().ok_or_else(|| Error::Recipe("--gradients takes --data".to_owned()))?;
        #[cfg(feature = "plot")]
        let outputs = [beside.csv, beside.picture.path()];
        #[cfg(not(feature = "plot"))]
        let outputs = [beside.csv];
        let model = self.images.model(model, &outputs, Some(selection), common, report)?;
        let noising = self.images.noising(&model, report)?;
        check_kept(&outputs, &[Some(data)])?;
        let data = self.images.data(images_at(data, common)?, model.config())?;
        let images = taken(self.samples, 512, &data)?;
        let points = self.points.unwrap_or(20) as usize;
        if points > noising.timesteps() {
            let all = noising.timesteps();
            return Err(Error::Recipe(format!("the model has {all} timesteps, fewer than --points {points}")).into());
        }
        let timesteps = evenly_spaced(points, noising.timesteps());
        let (name, config) = (model.name().to_owned(), model.config().clone());
        let network = Network::new(&config, &Source::Checkpoint(model.into_weights()), false)?;
        let settings = common.settings();
        let gradients = Gradients {
            network: &network,
            noising: &noising,
            timesteps: &timesteps,
            images,
            batch: self.images.batch(),
            memory: settings.memory,
        };
        let total = (images * points) as u64;
        let found = report.watched_count(total, "images", |control| {
            let takes = |name: &str| selection.takes(name);
            let pairs = |range| self.images.pairs(&data, range);
            settings.pool()?.install(|| gradients.compare(takes, pairs, control))
        })?;
        let shown = Shown { found: &found, timesteps: &timesteps, images, name: &name };
        report.answer_with_picture(|| shown.text(report.width(), report.has_colour()), || shown.document())?;
        if let Some(path) = beside.csv {
            report.write(path, shown.csv().as_bytes())?;
        }
        #[cfg(feature = "plot")]
        if beside.picture.is_wanted() {
            beside.picture.draw(report, &shown.heatmap())?;
        }
        Ok(())
    }
}

/// What was found.
struct Shown<'a> {
    found: &'a Alike,
    timesteps: &'a [usize],
    images: usize,
    name: &'a str,
}

impl Shown<'_> {
    fn title(&self) -> String {
        format!("Cosine of the gradients of {}", self.name)
    }

    fn labels(&self) -> Vec<String> {
        self.timesteps.iter().map(usize::to_string).collect()
    }

    /// What it is, the table of cosines in colours, and the losses.
    fn text(&self, width: usize, colour: bool) -> [String; 3] {
        let (weights, images) = (count(self.found.parameters as u64, "weight"), count(self.images as u64, "image"));
        let title = format!("{} at different timesteps, {weights}, {images}\n\n", self.title());
        let labels = self.labels();
        let picture = terminal::heatmap(&labels, &labels, &self.found.cosines, 1.0, colour, width) + "\n";
        let row = |((timestep, loss), norm): ((&usize, &f64), &f64)| {
            vec![timestep.to_string(), significant(*loss, 4), significant(*norm, 4)]
        };
        let rows = self.timesteps.iter().zip(&self.found.losses).zip(&self.found.norms).map(row);
        let headings = ["timestep", "loss", "‖gradient‖"];
        [title, picture, table(&headings, &headings, rows)]
    }

    fn document(&self) -> Value {
        json!({
            "model": self.name,
            "images": self.images,
            "parameters": self.found.parameters,
            "timesteps": self.timesteps,
            "loss": self.found.losses,
            "norm": self.found.norms,
            "cosine": self.found.cosines,
        })
    }

    fn csv(&self) -> String {
        let headings = ["timestep_a", "timestep_b", "cosine", "norm_a", "norm_b", "loss_a", "loss_b"];
        let Alike { losses, norms, cosines, .. } = self.found;
        let points: Vec<_> = self.timesteps.iter().zip(losses).zip(norms).collect();
        let rows = points.iter().zip(cosines).enumerate().flat_map(|(index, (((a, loss_a), norm_a), row))| {
            points.iter().zip(row).skip(index).map(move |(((b, loss_b), norm_b), cosine)| {
                let cosine = cosine.map_or_else(String::new, |cosine| cosine.to_string());
                let numbers = [norm_a, norm_b, loss_a, loss_b].map(|number| number.to_string());
                [vec![a.to_string(), b.to_string(), cosine], numbers.to_vec()].concat()
            })
        });
        csv(&headings, rows)
    }

    #[cfg(feature = "plot")]
    fn heatmap(&self) -> Heatmap {
        Heatmap {
            title: format!("{} at different timesteps", self.title()),
            unit: "cosine".to_owned(),
            scale: Scale::Diverging,
            limit: Some(1.0),
            rows: self.labels(),
            columns: self.labels(),
            cells: self.found.cosines.clone(),
        }
    }
}
