//! Inception v3 as pytorch-fid 0.3.0 builds it (<https://github.com/mseitzer/pytorch-fid>), whose Fréchet distance is FID.
//!
//! The network of Szegedy et al. 2015 (<https://arxiv.org/abs/1512.00567>) with the weights that TensorFlow's FID used,
//! where average pools do not count their padding and the last block's pool takes the largest: up to the mean of the
//! last 8×8 features, 2048 numbers. Batch normalisation (ε = 0.001) is folded into the convolutions when the weights
//! are read. Images are brought to 299×299 and to −1..1.
//!
//! The weights are the user's: `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid, or others under the same names in
//! any format. Only the former, known by its SHA-256, gives FID; others give a distance of the same kind.

use super::{Extractor, Kind, Resize, each_alone};
use crate::checkpoint::Checkpoint;
use crate::diffusion::Weights;
use crate::diffusion::nn::{Window, conv2d};
use crate::error::{Error, Result};
use crate::images::{Image, resize};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::Path;

pub(super) static KIND: Kind = Kind {
    name: "inception",
    argument: Some("PATH"),
    about: "Inception v3 as pytorch-fid builds it, 2048 numbers; the weights are pt_inception-2015-12-05-6726825d.pth",
    open: |path, resize| Ok(Box::new(Inception::open(path, resize.unwrap_or(Resize::Pytorch))?)),
};

/// The SHA-256 of pytorch-fid's file.
pub(super) const FID: &str = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2";
/// Rows and columns that the network sees.
const SIZE: usize = 299;
/// What batch normalisation adds to a variance.
const EPSILON: f64 = 0.001;

struct Inception {
    network: Node,
    resize: Resize,
    hash: String,
}

impl Inception {
    fn open(path: &Path, resize: Resize) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        let hash = match checkpoint.files() {
            [file] => sha256(file.path())?,
            _ => checkpoint.fingerprint()?,
        };
        let weights = Weights::new(checkpoint, "");
        let network = network(&weights.builder(DType::F32, &Device::Cpu))?;
        weights.check_used(|name| {
            name.starts_with("fc.") || name.starts_with("AuxLogits.") || name.ends_with(".num_batches_tracked")
        })?;
        Ok(Self { network, resize, hash })
    }

    fn input(&self, image: &Image) -> Result<Tensor> {
        let mut planes = match self.resize {
            Resize::Pytorch => resize::bilinear(image, 3, SIZE, SIZE),
            Resize::Clean => resize::bicubic(image, 3, SIZE, SIZE),
        };
        match self.resize {
            Resize::Pytorch => planes.iter_mut().for_each(|value| *value = 2.0 * *value - 1.0),
            Resize::Clean => planes.iter_mut().for_each(|value| *value = (*value - 128.0) / 128.0),
        }
        Ok(Tensor::from_vec(planes, (1, 3, SIZE, SIZE), &Device::Cpu)?)
    }
}

impl Extractor for Inception {
    fn name(&self) -> &str {
        "inception"
    }

    fn id(&self) -> String {
        id(&self.hash, self.resize)
    }

    fn is_fid(&self) -> bool {
        self.hash == FID
    }

    fn features(&self, images: &[Image]) -> Result<Vec<f32>> {
        each_alone(images, |image| self.input(image), |input| self.network.forward(input)?.mean((2, 3)))
    }
}

/// What Inception with weights of this hash is called.
pub(super) fn id(hash: &str, resize: Resize) -> String {
    format!("inception of weights {}, resized as {}", hash.get(..16).unwrap_or(hash), resize.name())
}

/// The SHA-256 of a file, in hexadecimal digits.
fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        let length = file.read(&mut buffer).map_err(Error::io("read", path))?;
        match buffer.get(..length) {
            Some(bytes) if !bytes.is_empty() => hash.update(bytes),
            _ => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
        }
    }
}

/// A part of the network.
enum Node {
    /// A convolution, normalised, and what is above zero of it.
    Convolution { kernels: Tensor, bias: Tensor, window: Window },
    /// The largest of 3×3.
    Largest { stride: usize, padding: usize },
    /// The mean of those of 3×3 that lie in the image.
    Mean,
    /// One after another.
    Chain(Vec<Node>),
    /// Side by side, the channels of one behind the other's.
    Branches(Vec<Node>),
}

impl Node {
    fn forward(&self, input: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Convolution { kernels, bias, window } => conv2d(input, kernels, Some(bias), *window)?.relu(),
            Self::Largest { stride, padding } => {
                // An image's edge, repeated, is in every window that it would add to.
                let input = input.pad_with_same(2, *padding, *padding)?.pad_with_same(3, *padding, *padding)?;
                input.max_pool2d_with_stride(3, *stride)
            }
            Self::Mean => {
                let (_, _, rows, columns) = input.dims4()?;
                let padded = input.pad_with_zeros(2, 1, 1)?.pad_with_zeros(3, 1, 1)?;
                padded.avg_pool2d_with_stride(3, 1)?.broadcast_mul(&shares(rows, columns, input.device())?)
            }
            Self::Chain(nodes) => nodes.iter().try_fold(input.clone(), |input, node| node.forward(&input)),
            Self::Branches(nodes) => {
                let outputs = nodes.iter().map(|node| node.forward(input)).collect::<Result<Vec<_>, _>>()?;
                Tensor::cat(&outputs, 1)
            }
        }
    }
}

/// By what the mean over 3×3, padding counted, is too small.
fn shares(rows: usize, columns: usize, device: &Device) -> candle_core::Result<Tensor> {
    let within = |index: usize, length: usize| (index.min(1) + 1 + (length - 1 - index).min(1)) as f32;
    let share = |row: usize| (0..columns).map(move |column| 9.0 / (within(row, rows) * within(column, columns)));
    Tensor::from_vec((0..rows).flat_map(share).collect(), (1, 1, rows, columns), device)
}

/// A convolution: its name, channels out, kernel, stride and padding.
type Row = (&'static str, usize, (usize, usize), usize, (usize, usize));

fn convolution(at: &VarBuilder<'_>, inputs: usize, row: Row) -> candle_core::Result<Node> {
    let (name, outputs, (height, width), stride, padding) = row;
    let at = at.pp(name);
    let kernels = at.get((outputs, inputs, height, width), "conv.weight")?;
    let numbers = |name: &str| at.get(outputs, name)?.to_dtype(DType::F64);
    let deviation = numbers("bn.running_var")?.affine(1.0, EPSILON)?.sqrt()?;
    let scale = numbers("bn.weight")?.div(&deviation)?;
    let bias = numbers("bn.bias")?.sub(&numbers("bn.running_mean")?.mul(&scale)?)?.to_dtype(DType::F32)?;
    let scaled = kernels.to_dtype(DType::F64)?.broadcast_mul(&scale.reshape((outputs, 1, 1, 1))?)?;
    let kernels = scaled.to_dtype(DType::F32)?;
    Ok(Node::Convolution { kernels, bias, window: Window { stride: (stride, stride), padding } })
}

/// Convolutions one after another.
fn chain(at: &VarBuilder<'_>, mut inputs: usize, rows: &[Row]) -> candle_core::Result<Vec<Node>> {
    let each = |row: &Row| {
        let node = convolution(at, inputs, *row)?;
        inputs = row.1;
        Ok(node)
    };
    rows.iter().map(each).collect()
}

const ONE: (usize, usize) = (1, 1);
const THREE: (usize, usize) = (3, 3);
const NONE: (usize, usize) = (0, 0);

fn network(at: &VarBuilder<'_>) -> candle_core::Result<Node> {
    let mut nodes = chain(
        at,
        3,
        &[
            ("Conv2d_1a_3x3", 32, THREE, 2, NONE),
            ("Conv2d_2a_3x3", 32, THREE, 1, NONE),
            ("Conv2d_2b_3x3", 64, THREE, 1, ONE),
        ],
    )?;
    nodes.push(Node::Largest { stride: 2, padding: 0 });
    nodes.extend(chain(at, 64, &[("Conv2d_3b_1x1", 80, ONE, 1, NONE), ("Conv2d_4a_3x3", 192, THREE, 1, NONE)])?);
    nodes.push(Node::Largest { stride: 2, padding: 0 });
    for (name, inputs, pooled) in [("Mixed_5b", 192, 32), ("Mixed_5c", 256, 64), ("Mixed_5d", 288, 64)] {
        nodes.push(block_a(&at.pp(name), inputs, pooled)?);
    }
    nodes.push(block_b(&at.pp("Mixed_6a"), 288)?);
    for (name, middle) in [("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)] {
        nodes.push(block_c(&at.pp(name), 768, middle)?);
    }
    nodes.push(block_d(&at.pp("Mixed_7a"), 768)?);
    nodes.push(block_e(&at.pp("Mixed_7b"), 1280, Node::Mean)?);
    // TensorFlow's graph has the largest here, where the paper has the mean.
    nodes.push(block_e(&at.pp("Mixed_7c"), 2048, Node::Largest { stride: 1, padding: 1 })?);
    Ok(Node::Chain(nodes))
}

/// A pool with a convolution behind it.
fn pooled(at: &VarBuilder<'_>, pool: Node, inputs: usize, outputs: usize) -> candle_core::Result<Node> {
    Ok(Node::Chain(vec![pool, convolution(at, inputs, ("branch_pool", outputs, ONE, 1, NONE))?]))
}

fn block_a(at: &VarBuilder<'_>, inputs: usize, outputs: usize) -> candle_core::Result<Node> {
    let five = [("branch5x5_1", 48, ONE, 1, NONE), ("branch5x5_2", 64, (5, 5), 1, (2, 2))];
    let twice = [
        ("branch3x3dbl_1", 64, ONE, 1, NONE),
        ("branch3x3dbl_2", 96, THREE, 1, ONE),
        ("branch3x3dbl_3", 96, THREE, 1, ONE),
    ];
    Ok(Node::Branches(vec![
        convolution(at, inputs, ("branch1x1", 64, ONE, 1, NONE))?,
        Node::Chain(chain(at, inputs, &five)?),
        Node::Chain(chain(at, inputs, &twice)?),
        pooled(at, Node::Mean, inputs, outputs)?,
    ]))
}

fn block_b(at: &VarBuilder<'_>, inputs: usize) -> candle_core::Result<Node> {
    let twice = [
        ("branch3x3dbl_1", 64, ONE, 1, NONE),
        ("branch3x3dbl_2", 96, THREE, 1, ONE),
        ("branch3x3dbl_3", 96, THREE, 2, NONE),
    ];
    Ok(Node::Branches(vec![
        convolution(at, inputs, ("branch3x3", 384, THREE, 2, NONE))?,
        Node::Chain(chain(at, inputs, &twice)?),
        Node::Largest { stride: 2, padding: 0 },
    ]))
}

/// A row of seven, and a column of seven, with what keeps the size.
const ROW: ((usize, usize), usize, (usize, usize)) = ((1, 7), 1, (0, 3));
const COLUMN: ((usize, usize), usize, (usize, usize)) = ((7, 1), 1, (3, 0));

fn block_c(at: &VarBuilder<'_>, inputs: usize, middle: usize) -> candle_core::Result<Node> {
    let with = |name, outputs, (kernel, stride, padding): ((usize, usize), usize, (usize, usize))| -> Row {
        (name, outputs, kernel, stride, padding)
    };
    let once =
        [("branch7x7_1", middle, ONE, 1, NONE), with("branch7x7_2", middle, ROW), with("branch7x7_3", 192, COLUMN)];
    let twice = [
        ("branch7x7dbl_1", middle, ONE, 1, NONE),
        with("branch7x7dbl_2", middle, COLUMN),
        with("branch7x7dbl_3", middle, ROW),
        with("branch7x7dbl_4", middle, COLUMN),
        with("branch7x7dbl_5", 192, ROW),
    ];
    Ok(Node::Branches(vec![
        convolution(at, inputs, ("branch1x1", 192, ONE, 1, NONE))?,
        Node::Chain(chain(at, inputs, &once)?),
        Node::Chain(chain(at, inputs, &twice)?),
        pooled(at, Node::Mean, inputs, 192)?,
    ]))
}

fn block_d(at: &VarBuilder<'_>, inputs: usize) -> candle_core::Result<Node> {
    let three = [("branch3x3_1", 192, ONE, 1, NONE), ("branch3x3_2", 320, THREE, 2, NONE)];
    let seven = [
        ("branch7x7x3_1", 192, ONE, 1, NONE),
        ("branch7x7x3_2", 192, (1, 7), 1, (0, 3)),
        ("branch7x7x3_3", 192, (7, 1), 1, (3, 0)),
        ("branch7x7x3_4", 192, THREE, 2, NONE),
    ];
    Ok(Node::Branches(vec![
        Node::Chain(chain(at, inputs, &three)?),
        Node::Chain(chain(at, inputs, &seven)?),
        Node::Largest { stride: 2, padding: 0 },
    ]))
}

fn block_e(at: &VarBuilder<'_>, inputs: usize, pool: Node) -> candle_core::Result<Node> {
    // A row and a column of three, side by side.
    let cross = |row, column| {
        let row = convolution(at, 384, (row, 384, (1, 3), 1, (0, 1)))?;
        Ok::<_, candle_core::Error>(Node::Branches(vec![row, convolution(at, 384, (column, 384, (3, 1), 1, (1, 0)))?]))
    };
    let mut once = chain(at, inputs, &[("branch3x3_1", 384, ONE, 1, NONE)])?;
    once.push(cross("branch3x3_2a", "branch3x3_2b")?);
    let twice = [("branch3x3dbl_1", 448, ONE, 1, NONE), ("branch3x3dbl_2", 384, THREE, 1, ONE)];
    let mut twice = chain(at, inputs, &twice)?;
    twice.push(cross("branch3x3dbl_3a", "branch3x3dbl_3b")?);
    Ok(Node::Branches(vec![
        convolution(at, inputs, ("branch1x1", 320, ONE, 1, NONE))?,
        Node::Chain(once),
        Node::Chain(twice),
        pooled(at, pool, inputs, 192)?,
    ]))
}
