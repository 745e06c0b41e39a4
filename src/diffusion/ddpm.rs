//! Unconditional diffusion models: a checkpoint of a `UNet2DModel` and the configurations that stand beside it.

use super::schedulers::Config as SchedulerConfig;
use super::unet::{Config, UNet2D};
use super::{Denoiser, Model, Weights};
use crate::checkpoint::{Checkpoint, read_small};
use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor};
use std::path::{Path, PathBuf};

/// What a network's configuration is called.
const CONFIG: &str = "config.json";
/// Where a scheduler's configuration is, in a pipeline's folder and in the first ones.
const SCHEDULER: [&str; 2] = ["scheduler/scheduler_config.json", "scheduler_config.json"];
/// The folder of a pipeline's network.
const UNET: &str = "unet";
/// The longest configuration that is read, in bytes.
const CONFIG_LIMIT: u64 = 1 << 20;

/// A model of images alone.
pub struct Ddpm {
    weights: Weights,
    config: Config,
    config_path: Option<PathBuf>,
    scheduler: Option<SchedulerConfig>,
    name: String,
    bytes: u64,
}

/// Which files tell of a checkpoint: its own folder, and within it that of the network.
struct Place {
    root: PathBuf,
    network: PathBuf,
    prefix: String,
}

impl Place {
    fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let layout = checkpoint.layout();
        let root = match layout.is_folder {
            true => layout.root.clone(),
            false => {
                layout.root.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
            }
        };
        let part = match &layout.parts[..] {
            [part] => part,
            parts => parts
                .iter()
                .find(|part| part.folder == "unet")
                .ok_or_else(|| Error::model(&layout.root, "the pipeline has several networks, but no `unet`"))?,
        };
        Ok(Self { network: root.join(&part.folder), prefix: part.prefix(), root })
    }
}

impl Ddpm {
    /// Of a checkpoint, with the configurations beside it, or with `config` as the network's.
    ///
    /// # Errors
    /// [`Error::Model`] if there is no configuration, or none that is supported.
    pub fn open(checkpoint: Checkpoint, config: Option<Config>) -> Result<Self> {
        let place = Place::of(&checkpoint)?;
        let (config, config_path) = match config {
            Some(config) => (config, None),
            None => {
                let path = place.network.join(CONFIG);
                if !path.is_file() {
                    if checkpoint.tensors().iter().any(|tensor| tensor.name.starts_with("model.diffusion_model.")) {
                        let message = "is Stable Diffusion in one file; make a pipeline's folder of it with `ckptmerge convert MODEL FOLDER --rename sd-to-diffusers`";
                        return Err(Error::model(&checkpoint.layout().root, message));
                    }
                    return Err(Error::model(
                        &checkpoint.layout().root,
                        format!(
                            "what network it is, {} would say, which there is not: name it with --config",
                            path.display()
                        ),
                    ));
                }
                (read_config(&path)?, Some(path))
            }
        };
        // Of a network that lies in a pipeline's folder, it is beside the network's own.
        let around =
            place.network.ends_with(UNET).then(|| place.network.join("..")).filter(|_| place.prefix.is_empty());
        let folders = std::iter::once(&place.root).chain(&around);
        let mut names = folders.flat_map(|folder| SCHEDULER.iter().map(move |name| folder.join(name)));
        let scheduler = names.find(|path| path.is_file());
        let scheduler = scheduler.map(|path| SchedulerConfig::read(&path)).transpose()?;
        let name = checkpoint.name().to_owned();
        let bytes = checkpoint.tensors().iter().filter(|tensor| tensor.name.starts_with(&place.prefix));
        let bytes = bytes.map(|tensor| tensor.elements * 4).sum();
        Ok(Self { weights: Weights::new(checkpoint, &place.prefix), config, config_path, scheduler, name, bytes })
    }

    /// The network's configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The file that the configuration was read from.
    #[must_use]
    pub fn config_path(&self) -> Option<&Path> {
        self.config_path.as_deref()
    }

    /// The scheduler that it comes with.
    #[must_use]
    pub fn scheduler(&self) -> Option<&SchedulerConfig> {
        self.scheduler.as_ref()
    }

    /// The weights alone.
    #[must_use]
    pub fn into_weights(self) -> Weights {
        self.weights
    }

    /// Reads the weights.
    ///
    /// # Errors
    /// [`Error::Model`] and [`Error::Network`] naming the tensor that is missing, of another shape, or not the
    /// network's.
    pub fn unet(&self, device: &Device) -> Result<UNet2D> {
        let network = UNet2D::new(&self.config, &self.weights.builder(DType::F32, device))?;
        self.weights.check_used(|_| false)?;
        Ok(network)
    }
}

impl Model for Ddpm {
    fn name(&self) -> &str {
        &self.name
    }

    fn channels(&self) -> usize {
        self.config.in_channels
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn network(&self, device: &Device) -> Result<Box<dyn Denoiser>> {
        let (inner, outer) = (self.config.in_channels, self.config.out_channels);
        if inner != outer {
            let message =
                format!("its network is from {inner} to {outer} channels; those of noise are as many as went in");
            return Err(Error::Recipe(format!("{}: {message}", self.name)));
        }
        Ok(Box::new(self.unet(device)?))
    }
}

impl Denoiser for UNet2D {
    fn denoise(&self, samples: &Tensor, timestep: f32) -> candle_core::Result<Tensor> {
        self.forward(samples, &Tensor::full(timestep, samples.dim(0)?, samples.device())?)
    }
}

/// Reads a network's configuration.
///
/// # Errors
/// [`Error::Io`], or [`Error::Model`] saying what of it is wrong or not supported.
pub fn read_config(path: &Path) -> Result<Config> {
    Config::parse(&read_small(path, CONFIG_LIMIT)?).map_err(|message| Error::model(path, message))
}
