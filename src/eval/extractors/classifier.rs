//! Small convolutional networks that users have trained on images like theirs: weights in any format, with a
//! description beside them in a file of the same name that ends with `.json`.
//!
//! ```json
//! {
//!   "input": {"height": 8, "width": 8, "channels": 1, "mean": [0.5], "std": [0.5]},
//!   "layers": [
//!     {"type": "conv", "name": "conv1", "stride": 1, "padding": 1},
//!     {"type": "relu"},
//!     {"type": "max-pool", "size": 2},
//!     {"type": "flatten"},
//!     {"type": "linear", "name": "fc1"},
//!     {"type": "relu", "name": "hidden"},
//!     {"type": "linear", "name": "fc2"}
//!   ],
//!   "features": "hidden"
//! }
//! ```
//!
//! Samples, divided by 255, less `mean` and over `std`, go through the layers up to the one that `features` names,
//! whose output, flattened, is the feature. `conv` and `linear` take the tensors NAME.weight and NAME.bias, the bias if
//! there is one, in torch's shapes; `stride` is 1 and `padding` 0 where they are left out. `max-pool` and `avg-pool`
//! take windows of `size`, apart by `stride` (`size`, if left out), without padding. `relu`, `silu` and `flatten` are
//! torch's.

use super::{Extractor, Kind, Resize, each_alone};
use crate::checkpoint::{Checkpoint, read_text};
use crate::diffusion::Weights;
use crate::diffusion::nn::{Window, conv2d, linear, max_pool2d};
use crate::error::{Error, Result};
use crate::images::{Image, resize};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use serde_json::Value;
use std::ops::RangeInclusive;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

pub(super) static KIND: Kind = Kind {
    name: "classifier",
    argument: Some("FILE"),
    about: "a network of yours, described in a .json file beside it; its file's name alone does, too",
    open: |path, resize| {
        let description = path.with_extension("json");
        if description == path {
            return Err(Error::model(path, "is a description; name the file of the weights beside it"));
        }
        if !description.exists() {
            let message =
                format!("has no description beside it: {} should say what its layers are", description.display());
            return Err(Error::model(path, message));
        }
        let text = read_text(&description, LONGEST)?;
        let checkpoint = Checkpoint::open(path)?;
        let hash = xxh3_64(format!("{}{text}", checkpoint.fingerprint()?).as_bytes());
        let id = format!("{} ({hash:016x})", checkpoint.name());
        let name = checkpoint.name().to_owned();
        let weights = Weights::new(checkpoint, "");
        let opened =
            Classifier::new(&text, &description, &weights.builder(DType::F32, &Device::Cpu), name, id, resize)?;
        Ok(Box::new(opened))
    },
};

/// The longest description, in bytes.
const LONGEST: u64 = 1 << 20;
/// The largest number that stands in one, and the largest padding.
const LARGEST: u64 = 4096;
const PADDING: u64 = 64;
/// The most numbers that a layer gives, of one image.
const MOST: usize = 1 << 28;

/// A network and the images it takes.
pub struct Classifier {
    name: String,
    id: String,
    resize: Option<Resize>,
    height: usize,
    width: usize,
    channels: usize,
    mean: Vec<f32>,
    std: Vec<f32>,
    layers: Vec<Layer>,
}

enum Layer {
    Convolution { kernels: Tensor, bias: Option<Tensor>, window: Window },
    Linear { weight: Tensor, bias: Option<Tensor> },
    Relu,
    Silu,
    Largest { size: usize, stride: usize },
    Mean { size: usize, stride: usize },
    Flatten,
}

impl Classifier {
    /// By its description, of the file `path`, and its weights. `name` is what it is for people, `id` what tells it from all
    /// others. Weights that are `candle_core::Var`s have gradients.
    ///
    /// # Errors
    /// [`Error::Model`] naming the description if it says something that cannot be, or a tensor that is not there.
    pub fn new(
        description: &str,
        path: &Path,
        weights: &VarBuilder<'_>,
        name: String,
        id: String,
        resize: Option<Resize>,
    ) -> Result<Self> {
        let wrong = |message: String| Error::model(path, message);
        let described: Value =
            serde_json::from_str(description).map_err(|error| wrong(format!("is not JSON: {error}")))?;
        let (input, layers) = (&described["input"], described["layers"].as_array());
        let layers = layers.ok_or_else(|| wrong("has no list `layers`".to_owned()))?;
        let within = |of: &Value, key: &str, default: Option<u64>, range: RangeInclusive<u64>| {
            let found = if of[key].is_null() { default } else { of[key].as_u64() };
            let found = found.filter(|number| range.contains(number));
            let number = found.and_then(|number| usize::try_from(number).ok());
            let (least, most) = (range.start(), range.end());
            number.ok_or_else(|| wrong(format!("`{key}` of {of} must be a number from {least} to {most}")))
        };
        let size = |of: &Value, key: &str, default: Option<u64>| within(of, key, default, 1..=LARGEST);
        if !input.is_object() {
            return Err(wrong("has no `input` with `height`, `width` and `channels`".to_owned()));
        }
        let known = |of: &Value, keys: &[&str]| match of
            .as_object()
            .and_then(|map| map.keys().find(|key| !keys.contains(&key.as_str())))
        {
            Some(key) => Err(wrong(format!("has `{key}` in {of}, which is not known there"))),
            None => Ok(()),
        };
        known(input, &["height", "width", "channels", "mean", "std"])?;
        let [height, width, channels] = ["height", "width", "channels"].map(|key| size(input, key, None));
        let (height, width, channels) = (height?, width?, channels?);
        if channels != 1 && channels != 3 {
            return Err(wrong(format!("`channels` is {channels}; images have 1 or 3")));
        }
        let per_channel = |key: &str, default: f32| {
            let numbers = match &input[key] {
                Value::Null => Some(vec![default; channels]),
                Value::Array(numbers) => numbers.iter().map(|number| number.as_f64().map(|n| n as f32)).collect(),
                _ => None,
            };
            let numbers = numbers.filter(|numbers: &Vec<f32>| numbers.len() == channels);
            numbers.ok_or_else(|| wrong(format!("`{key}` must be a list of {channels} numbers, one a channel")))
        };
        let (mean, std) = (per_channel("mean", 0.0)?, per_channel("std", 1.0)?);
        if std.iter().any(|&std| std == 0.0 || !std.is_finite()) || mean.iter().any(|mean| !mean.is_finite()) {
            return Err(wrong("`std` holds 0, or `std` or `mean` what is not finite".to_owned()));
        }
        let wanted = described["features"].as_str();
        let wanted =
            wanted.ok_or_else(|| wrong("does not say by `features` which layer's output they are".to_owned()))?;
        let last = layers.iter().position(|layer| layer["name"].as_str() == Some(wanted));
        let last =
            last.ok_or_else(|| wrong(format!("has no layer of the name `{wanted}`, which `features` asks for")))?;
        let tensor = |layer: &Value, kind: &str| {
            let name = layer["name"].as_str().ok_or_else(|| wrong(format!("{layer} has no `name`")))?;
            let name = format!("{name}.{kind}");
            Ok::<_, Error>(if weights.contains_tensor(&name) || kind == "weight" {
                Some(weights.get_unchecked(&name)?)
            } else {
                None
            })
        };
        let ranked = |layer: &Value, rank: usize| {
            let weight = tensor(layer, "weight")?.filter(|weight| weight.rank() == rank);
            weight.ok_or_else(|| wrong(format!("the weight of {layer} must have {rank} dimensions")))
        };
        let bias = |layer: &Value, weight: &Tensor| {
            let bias = tensor(layer, "bias")?;
            let fits =
                bias.as_ref().is_none_or(|bias| weight.dims().first().is_some_and(|outputs| bias.dims() == [*outputs]));
            if fits { Ok(bias) } else { Err(wrong(format!("the bias of {layer} has not one number for each output"))) }
        };
        let one = |layer: &Value| {
            match layer["type"].as_str() {
                Some("conv") => known(layer, &["type", "name", "stride", "padding"])?,
                Some("max-pool" | "avg-pool") => known(layer, &["type", "name", "size", "stride"])?,
                Some("linear" | "relu" | "silu" | "flatten") => known(layer, &["type", "name"])?,
                _ => {}
            }
            Ok(match layer["type"].as_str() {
                Some("conv") => {
                    let stride = size(layer, "stride", Some(1))?;
                    let padding = within(layer, "padding", Some(0), 0..=PADDING)?;
                    let window = Window { stride: (stride, stride), padding: (padding, padding) };
                    let kernels = ranked(layer, 4)?;
                    Layer::Convolution { bias: bias(layer, &kernels)?, kernels, window }
                }
                Some("linear") => {
                    let weight = ranked(layer, 2)?;
                    Layer::Linear { bias: bias(layer, &weight)?, weight }
                }
                Some("relu") => Layer::Relu,
                Some("silu") => Layer::Silu,
                Some("flatten") => Layer::Flatten,
                Some(kind @ ("max-pool" | "avg-pool")) => {
                    let window = size(layer, "size", None)?;
                    let stride = size(layer, "stride", Some(window as u64))?;
                    match kind {
                        "max-pool" => Layer::Largest { size: window, stride },
                        _ => Layer::Mean { size: window, stride },
                    }
                }
                _ => {
                    let known = "conv, linear, relu, silu, max-pool, avg-pool and flatten";
                    return Err(wrong(format!("{layer} is of no type that there is: {known}")));
                }
            })
        };
        let layers = layers.iter().take(last + 1).map(one).collect::<Result<_>>()?;
        let classifier = Self { name, id, resize, height, width, channels, mean, std, layers };
        // Shapes that do not fit are found before any image is read.
        let blank = Tensor::zeros((1, channels, height, width), DType::F32, &Device::Cpu)?;
        classifier.forward(&blank).map_err(|error| wrong(format!("its layers do not fit together: {error}")))?;
        Ok(classifier)
    }

    /// What the layers up to the one that `features` names make of images (batch, channels, rows, columns) as
    /// [`input`](Self::input) gives them. An image's are the same bits in any batch.
    ///
    /// # Errors
    /// If the images are not of the shape that the network takes.
    pub fn forward(&self, input: &Tensor) -> candle_core::Result<Tensor> {
        let step = |input: Tensor, layer: &Layer| match layer {
            Layer::Convolution { kernels, bias, window } => {
                check_convolution(&input, kernels, *window)?;
                conv2d(&input, kernels, bias.as_ref(), *window)
            }
            Layer::Linear { weight, bias } => linear(&input, weight, bias.as_ref()),
            Layer::Relu => input.relu(),
            Layer::Silu => input.silu(),
            Layer::Largest { size, stride } => max_pool2d(&input, *size, *stride),
            Layer::Mean { size, stride } => input.avg_pool2d_with_stride(*size, *stride),
            Layer::Flatten => input.flatten_from(1),
        };
        self.layers.iter().try_fold(input.clone(), step)
    }

    /// An image as the network takes it: (1, channels, rows, columns), resized if that was asked, less `mean` and over `std`.
    ///
    /// # Errors
    /// [`Error::Model`] naming the image if it has other channels, or another size and is not to be resized.
    pub fn input(&self, image: &Image) -> Result<Tensor> {
        let wrong = |message: String| Error::model(Path::new(&image.origin), message);
        if image.channels != self.channels {
            let wanted = if self.channels == 1 { "grey" } else { "RGB" };
            let message = format!("is {}, but {} takes {wanted} images; convert it", image.size(), self.name);
            return Err(wrong(message));
        }
        let (height, width) = (self.height, self.width);
        if self.resize.is_none() && [image.height, image.width] != [height, width] {
            let message = format!("is {}, but {} takes {width}×{height}", image.size(), self.name);
            return Err(wrong(format!("{message}; --resize pytorch or clean brings images to that size")));
        }
        let mut planes = match self.resize {
            Some(Resize::Clean) => resize::bicubic(image, self.channels, height, width),
            _ => resize::bilinear(image, self.channels, height, width),
        };
        if self.resize == Some(Resize::Clean) {
            planes.iter_mut().for_each(|value| *value /= 255.0);
        }
        for (plane, (mean, std)) in planes.chunks_exact_mut(height * width).zip(self.mean.iter().zip(&self.std)) {
            plane.iter_mut().for_each(|value| *value = (*value - mean) / std);
        }
        Ok(Tensor::from_vec(planes, (1, self.channels, height, width), &Device::Cpu)?)
    }
}

/// That kernels fit into an image, and what they make of it into memory.
fn check_convolution(input: &Tensor, kernels: &Tensor, window: Window) -> candle_core::Result<()> {
    let (images, _, rows, columns) = input.dims4()?;
    let (outputs, _, height, width) = kernels.dims4()?;
    let steps = |length: usize, padding: usize, kernel: usize, stride: usize| {
        let room = (length + 2 * padding).checked_sub(kernel).filter(|_| kernel > 0)?;
        Some(room / stride + 1)
    };
    let down = steps(rows, window.padding.0, height, window.stride.0);
    let across = steps(columns, window.padding.1, width, window.stride.1);
    let (Some(down), Some(across)) = (down, across) else {
        candle_core::bail!("a kernel of {height}×{width} does not fit into {rows}×{columns}");
    };
    match [outputs, down, across].into_iter().try_fold(images, usize::checked_mul) {
        Some(numbers) if numbers <= MOST => Ok(()),
        _ => candle_core::bail!("{outputs} channels of {down}×{across} are more than {MOST} numbers"),
    }
}

impl Extractor for Classifier {
    fn name(&self) -> &str {
        &self.name
    }

    fn id(&self) -> String {
        match self.resize {
            Some(resize) => format!("{}, resized as {}", self.id, resize.name()),
            None => self.id.clone(),
        }
    }

    fn features(&self, images: &[Image]) -> Result<Vec<f32>> {
        each_alone(images, |image| self.input(image), |input| self.forward(input))
    }
}
