//! `ckptmerge activations`

use super::data::DataOption;
use super::network_device::NetworkDevice;
use super::noisy_images::{NoisyImages, evenly_spaced, taken};
#[cfg(feature = "plot")]
use super::picture::Picture;
use super::report::{count, csv, significant, table};
use super::{Common, Run};
use crate::diffusion::{Change, Comparison, Ddpm, Model};
use crate::error::Error;
use crate::plot::terminal;
#[cfg(feature = "plot")]
use crate::plot::{Heatmap, Scale};
use clap::Args;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;

/// Tell where two diffusion models see the same noisy images differently
///
/// A and B are checkpoints of one kind of diffusers' UNet2DModel, such as a model before and after fine-tuning. Both are shown the same images
/// with the same noise at some timesteps, and the mean of the absolute difference of their activations is taken by
/// channel and by pixel, at the output of each block, behind its channel-wise projection, and of the network (Ma et al. 2025,
/// Fig. 2).
#[derive(Args)]
#[command(after_help = "Examples:
  ckptmerge activations base/ tuned/ --data images.npy
  ckptmerge activations base/ tuned/ --data cifar10/ -n 256 --timesteps 50,500,950 --plot channels.svg --csv all.csv
  ckptmerge activations base/ tuned/ --data cifar10/ --by pixel --block up_blocks.2 --plot pixels.png")]
pub(super) struct Activations {
    /// The one model
    #[arg(value_name = "A")]
    first: PathBuf,
    /// The other
    #[arg(value_name = "B")]
    second: PathBuf,
    #[command(flatten)]
    data: DataOption,
    /// How many images, from the first on [default: 64, or all]
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    count: Option<u32>,
    /// At which timesteps [default: the middles of four equal ranges]
    #[arg(long, value_name = "T,T,…", value_delimiter = ',')]
    timesteps: Vec<usize>,
    /// Look at this block only, such as down_blocks.0, mid_block, up_blocks.1 or output; may be repeated
    #[arg(long, value_name = "NAME")]
    block: Vec<String>,
    /// What the picture shows: channel, of all blocks, or pixel, of one block or else the output
    #[cfg(feature = "plot")]
    #[arg(long, value_name = "WHAT", default_value = "channel", requires = "plot", value_parser = super::named(&[("channel", By::Channel), ("pixel", By::Pixel)]))]
    by: By,
    #[command(flatten)]
    images: NoisyImages,
    #[command(flatten)]
    device: NetworkDevice,
    /// Write all means by channel and by pixel
    #[arg(long, value_name = "FILE.csv")]
    csv: Option<PathBuf>,
    #[cfg(feature = "plot")]
    #[command(flatten)]
    picture: Picture,
}

/// What a picture shows.
#[cfg(feature = "plot")]
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Channel,
    Pixel,
}

impl Run for Activations {
    fn run(self, common: &Common) -> anyhow::Result<ExitCode> {
        let report = common.report();
        #[cfg(feature = "plot")]
        let outputs = [self.csv.as_deref(), self.picture.path()];
        #[cfg(not(feature = "plot"))]
        let outputs = [self.csv.as_deref()];
        let first = self.images.model(&self.first, &outputs, None, common, &report)?;
        let second = self.images.model(&self.second, &outputs, None, common, &report)?;
        check_alike(&first, &second, self.images.has_noise())?;
        let noising = self.images.noising(&first, &report)?;
        let all = noising.timesteps();
        let timesteps = if self.timesteps.is_empty() { evenly_spaced(4, all) } else { self.timesteps.clone() };
        if let Some(other) = timesteps.iter().find(|timestep| **timestep >= all) {
            return Err(Error::Recipe(format!("there is no timestep {other}: the model's are 0 to {}", all - 1)).into());
        }
        let data = self.images.data(self.data.open(&outputs, common)?, first.config())?;
        let images = taken(self.count, 64, &data)?;
        let device = self.device.open()?;
        let networks = [first.unet(&device)?, second.unet(&device)?];
        let names = networks[0].blocks();
        let blocks = self.blocks(&names)?;
        #[cfg(feature = "plot")]
        if self.by == By::Pixel && self.block.len() > 1 {
            let message = "a picture --by pixel is of one block: give one --block";
            return Err(Error::Recipe(message.to_owned()).into());
        }
        let comparison = Comparison {
            networks: [&networks[0], &networks[1]],
            names: [first.name(), second.name()],
            noising: &noising,
            timesteps: &timesteps,
            images,
            batch: self.images.batch(),
            blocks: &blocks,
            device: &device,
        };
        let total = (images * timesteps.len()) as u64;
        let changes = report.watched_count(total, "images", |control| {
            let run = || comparison.run(|range| self.images.pairs(&data, range), control);
            common.settings().pool()?.install(run)
        })?;
        let models = [first.name(), second.name()];
        let shown = Shown { changes: &changes, names: &names, timesteps: &timesteps, images, models };
        report.answer_with_picture(|| shown.text(report.width(), report.has_colour()), || shown.document())?;
        if let Some(path) = &self.csv {
            report.write(path, shown.csv().as_bytes())?;
        }
        #[cfg(feature = "plot")]
        if self.picture.is_wanted() {
            let plot = match self.by {
                By::Channel => shown.channels(),
                By::Pixel => shown.pixels(),
            };
            self.picture.draw(&report, &plot)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// That two models can be compared.
fn check_alike(first: &Ddpm, second: &Ddpm, noise_is_given: bool) -> Result<(), Error> {
    let (one, other) = (first.name(), second.name());
    if first.config() != second.config() {
        let message = "are different networks; activations are compared of two that are built alike";
        return Err(Error::Recipe(format!("{one} and {other} {message}")));
    }
    if !noise_is_given && first.scheduler() != second.scheduler() && second.scheduler().is_some() {
        let message = "come with different noise schedules; --scheduler-config says which it is";
        return Err(Error::Recipe(format!("{one} and {other} {message}")));
    }
    Ok(())
}

impl Activations {
    /// The numbers of the blocks that are looked at.
    fn blocks(&self, names: &[String]) -> Result<Vec<usize>, Error> {
        if self.block.is_empty() {
            return Ok((0..names.len()).collect());
        }
        let known = || names.iter().map(String::as_str);
        let number = |name: &String| known().position(|known| known == name);
        let mut blocks = Vec::new();
        for name in &self.block {
            let block = number(name).ok_or_else(|| Error::unknown("block", name, known()))?;
            if !blocks.contains(&block) {
                blocks.push(block);
            }
        }
        blocks.sort_unstable();
        Ok(blocks)
    }
}

/// What was found.
struct Shown<'a> {
    changes: &'a [Change],
    names: &'a [String],
    timesteps: &'a [usize],
    images: usize,
    models: [&'a str; 2],
}

impl Shown<'_> {
    fn name(&self, change: &Change) -> &str {
        self.names.get(change.block).map_or("", String::as_str)
    }

    fn title(&self) -> String {
        let [first, second] = self.models;
        format!("Difference of activations, {first} and {second}")
    }

    /// What it is, the differences by block and timestep in colours, and the table.
    fn text(&self, width: usize, colour: bool) -> [String; 3] {
        let timesteps = count(self.timesteps.len() as u64, "timestep");
        let title = format!("{}, {} at {timesteps}\n\n", self.title(), count(self.images as u64, "image"));
        let rows: Vec<String> = self.changes.iter().map(|change| self.name(change).to_owned()).collect();
        let columns: Vec<String> = self.timesteps.iter().map(|timestep| format!("t={timestep}")).collect();
        let row = |change: &Change| change.by_timestep.iter().map(|mean| Some(*mean)).collect();
        let cells: Vec<Vec<Option<f64>>> = self.changes.iter().map(row).collect();
        let picture = terminal::heatmap(&rows, &columns, &cells, 0.0, colour, width) + "\n";
        let headings = ["block", "channels", "pixels", "mean |Δ|", "of |A|", "most in channel", "there"];
        let line = |change: &Change| {
            let (channels, rows, columns) = change.shape;
            let most = change.by_channel.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
            let share = if change.size > 0.0 { 100.0 * change.mean() / change.size } else { 0.0 };
            vec![
                self.name(change).to_owned(),
                channels.to_string(),
                format!("{rows}×{columns}"),
                significant(change.mean(), 4),
                format!("{share:.2} %"),
                most.map_or_else(String::new, |(channel, _)| channel.to_string()),
                most.map_or_else(String::new, |(_, mean)| significant(*mean, 4)),
            ]
        };
        [title, picture, table(&headings, &headings[1..], self.changes.iter().map(line))]
    }

    fn document(&self) -> Value {
        let block = |change: &Change| {
            let (channels, rows, columns) = change.shape;
            json!({
                "name": self.name(change),
                "shape": [channels, rows, columns],
                "mean": change.mean(),
                "mean_of_first": change.size,
                "by_timestep": change.by_timestep,
                "by_channel": change.by_channel,
                "by_pixel": change.by_pixel.chunks(columns.max(1)).collect::<Vec<_>>(),
            })
        };
        json!({
            "models": self.models,
            "images": self.images,
            "timesteps": self.timesteps,
            "blocks": self.changes.iter().map(block).collect::<Vec<_>>(),
        })
    }

    fn csv(&self) -> String {
        let headings = ["block", "channel", "row", "column", "timestep", "mean_absolute_difference"];
        let rows = self.changes.iter().flat_map(|change| {
            let line = |place: [String; 4], mean: f64| {
                let [channel, row, column, timestep] = place;
                vec![self.name(change).to_owned(), channel, row, column, timestep, mean.to_string()]
            };
            let none = String::new;
            let (_, _, columns) = change.shape;
            let timesteps = self.timesteps.iter().zip(&change.by_timestep);
            let by_timestep = timesteps.map(|(t, mean)| line([none(), none(), none(), t.to_string()], *mean));
            let channels = change.by_channel.iter().enumerate();
            let by_channel = channels.map(|(channel, mean)| line([channel.to_string(), none(), none(), none()], *mean));
            let pixels = change.by_pixel.iter().enumerate();
            let by_pixel = pixels.map(|(pixel, mean)| {
                let (row, column) = (pixel / columns.max(1), pixel % columns.max(1));
                line([none(), row.to_string(), column.to_string(), none()], *mean)
            });
            by_timestep.chain(by_channel).chain(by_pixel).collect::<Vec<_>>()
        });
        csv(&headings, rows)
    }

    /// A row for each block, a cell for each of its channels.
    #[cfg(feature = "plot")]
    fn channels(&self) -> Heatmap {
        let most = self.changes.iter().map(|change| change.by_channel.len()).max().unwrap_or(0);
        let row = |change: &Change| change.by_channel.iter().map(|mean| Some(*mean)).collect();
        Heatmap {
            title: format!("{}, by channel", self.title()),
            unit: "mean |Δ|".to_owned(),
            scale: Scale::Sequential,
            limit: None,
            rows: self.changes.iter().map(|change| self.name(change).to_owned()).collect(),
            columns: (0..most).map(|channel| channel.to_string()).collect(),
            cells: self.changes.iter().map(row).collect(),
        }
    }

    /// A cell for each pixel of the last block that was looked at, which is the output if all were.
    #[cfg(feature = "plot")]
    fn pixels(&self) -> Heatmap {
        let empty = Change::default();
        let change = self.changes.last().unwrap_or(&empty);
        let (_, rows, columns) = change.shape;
        let row = |pixels: &[f64]| pixels.iter().map(|mean| Some(*mean)).collect();
        Heatmap {
            title: format!("{}, by pixel of {}", self.title(), self.name(change)),
            unit: "mean |Δ|".to_owned(),
            scale: Scale::Sequential,
            limit: None,
            rows: (0..rows).map(|row| row.to_string()).collect(),
            columns: (0..columns).map(|column| column.to_string()).collect(),
            cells: change.by_pixel.chunks(columns.max(1)).map(row).collect(),
        }
    }
}
