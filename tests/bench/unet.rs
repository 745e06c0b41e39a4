//! The forward pass of google/ddpm-cifar10-32's network, and its backward pass, of 16 images on two threads.
//!
//! `cargo run --release --bin unet` prints the median of rounds in seconds; `torch_unet.py` does the same with diffusers
//! and torch. Weights are small numbers, as they do not change the time.

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::var_builder::{SimpleBackend, VarBuilder};
use ckptmerge::diffusion::unet::{Config, UNet2D};
use std::time::Instant;

const ROUNDS: usize = 7;

struct Small {
    trained: bool,
}

impl SimpleBackend for Small {
    fn get(
        &self,
        shape: candle_core::Shape,
        _: &str,
        _: candle_nn::Init,
        _: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let values = (0..shape.elem_count()).map(|i| ((i * 7919 % 1009) as f32 / 1009.0 - 0.5) * 0.1).collect::<Vec<_>>();
        let var = Var::from_vec(values, shape, device)?;
        Ok(if self.trained { var.as_tensor().clone() } else { var.as_detached_tensor() })
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("{name} has no shape")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        name.contains("to_q")
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let batch = std::env::args().nth(1).map_or(Ok(16), |text| text.parse())?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build()?;
    let network = |trained| {
        let builder = VarBuilder::from_backend(Box::new(Small { trained }), DType::F32, Device::Cpu);
        UNet2D::new(&Config::cifar10(), &builder)
    };
    let (network, trained) = (network(false)?, network(true)?);
    let images = Tensor::zeros((batch, 3, 32, 32), DType::F32, &Device::Cpu)?;
    let timesteps = Tensor::full(500f32, batch, &Device::Cpu)?;
    let measure = |name: &str, run: &(dyn Fn() -> candle_core::Result<()> + Sync)| -> candle_core::Result<()> {
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            let start = Instant::now();
            pool.install(run)?;
            times.push(start.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        println!("{name}: {:.3} s ({:.3}..{:.3})", times[ROUNDS / 2], times[0], times[ROUNDS - 1]);
        Ok(())
    };
    measure("forward", &|| network.forward(&images, &timesteps).map(drop))?;
    measure("forward and backward", &|| trained.forward(&images, &timesteps)?.sqr()?.mean_all()?.backward().map(drop))?;
    Ok(())
}
