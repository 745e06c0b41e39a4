//! `--device` of commands that run networks.

use crate::error::{Error, Result};
use candle_core::Device;
use clap::Args;

/// Where networks run.
#[derive(Args)]
pub(super) struct NetworkDevice {
    /// Where networks run: cpu, cuda, cuda:N or metal
    ///
    /// cuda and metal are in builds with the cargo feature of that name. Images are the same on every machine only with cpu.
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = wanted)]
    device: Wanted,
}

#[derive(Clone, Copy)]
enum Wanted {
    Cpu,
    Cuda(usize),
    Metal,
}

fn wanted(text: &str) -> Result<Wanted, String> {
    match text.split_once(':') {
        None if text == "cpu" => Ok(Wanted::Cpu),
        None if text == "cuda" => Ok(Wanted::Cuda(0)),
        None if text == "metal" => Ok(Wanted::Metal),
        Some(("cuda", number)) => number.parse().map(Wanted::Cuda).map_err(|_| "cuda:N takes a number".to_owned()),
        _ => Err("it is cpu, cuda, cuda:N or metal".to_owned()),
    }
}

impl NetworkDevice {
    /// Opens it.
    pub(super) fn open(&self) -> Result<Device> {
        let (name, is_built, open): (_, _, &dyn Fn() -> candle_core::Result<Device>) = match self.device {
            Wanted::Cpu => return Ok(Device::Cpu),
            Wanted::Cuda(number) => ("cuda", cfg!(feature = "cuda"), &move || Device::new_cuda(number)),
            Wanted::Metal => ("metal", cfg!(feature = "metal"), &|| Device::new_metal(0)),
        };
        if !is_built {
            let message =
                format!("this build cannot use {name}: build it with `cargo build --release --features {name}`");
            return Err(Error::Recipe(message));
        }
        Ok(open()?)
    }
}
