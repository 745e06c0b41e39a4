//! `ckptmerge devices`

use super::report::grouped;
use super::{Common, Run};
use crate::error::{Bytes, Error};
use crate::gpu::{Adapter, Choice, Compute, Device, Lost, NONE, Rates, adapters, open};
use crate::merge::blend_rate;
use crate::stream::Offloading;
use clap::Args;
use serde_json::{Value, json};
use std::process::ExitCode;
use std::sync::Arc;

/// List the graphics processors, and how fast they are
///
/// `--device gpu` takes the first: cards come before graphics in the processor, and software last. A merge uploads its models and
/// downloads its output, at rates that are measured here, which takes a moment; so is how fast a card copies and blends what it has.
/// A card is worth it where a method computes for longer than that takes. The blend is that of three models in F16 that are there already.
#[derive(Args)]
#[command(after_help = "Example: ckptmerge devices")]
pub(super) struct Devices {}

impl Run for Devices {
    fn run(self, common: &Common) -> anyhow::Result<ExitCode> {
        let measured: Vec<_> = adapters()
            .into_iter()
            .enumerate()
            .map(|(number, adapter)| {
                let rates = measured(number).map_err(|error| error.to_string());
                (number, adapter, rates)
            })
            .collect();
        let text = || {
            if measured.is_empty() {
                return format!("no graphics processor can be used: {NONE}\n");
            }
            measured
                .iter()
                .map(|(number, adapter, rates)| described(*number, adapter, rates))
                .collect::<Vec<_>>()
                .join("\n")
        };
        let json = || measured.iter().map(|(number, adapter, rates)| in_json(*number, adapter, rates)).collect();
        common.report().answer(text, json)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Elements of each of the models that are blended for the time it takes.
const ELEMENTS: u64 = 1 << 21;

fn measured(number: usize) -> Result<(Rates, f64), Error> {
    let device = open(&Choice::Named(number.to_string()), None)?;
    let device = Arc::new(device);
    let fail = || Error::Gpu(device.failure().unwrap_or_default());
    let rates = device.rates().map_err(|Lost| fail())?;
    let blend = blend_rate(&Offloading::new(Arc::<Device>::clone(&device)), ELEMENTS).ok_or_else(fail)?;
    Ok((rates, blend))
}

fn described(number: usize, adapter: &Adapter, rates: &Result<(Rates, f64), String>) -> String {
    let Adapter { name, kind, backend, driver, limits } = adapter;
    let rates = match rates {
        Ok((Rates { upload, copy, download }, blend)) => {
            let [upload, copy, blend, download] = [upload, copy, blend, download].map(|rate| Bytes(*rate as u64));
            format!("upload {upload}/s, copy {copy}/s, blend {blend}/s, download {download}/s")
        }
        Err(reason) => reason.clone(),
    };
    let (binding, groups) = (Bytes(limits.binding), grouped(limits.groups.into()));
    format!(
        "{number}: {name}\n    {}, by {backend}: {driver}\n    buffers of {binding}, {groups} workgroups in a dimension\n    {rates}\n",
        kind.name()
    )
}

fn in_json(number: usize, adapter: &Adapter, rates: &Result<(Rates, f64), String>) -> Value {
    let mut entry = json!({
        "number": number,
        "name": adapter.name,
        "type": adapter.kind.name(),
        "backend": adapter.backend,
        "driver": adapter.driver,
        "limits": {"binding": adapter.limits.binding, "memory": adapter.limits.memory, "workgroups": adapter.limits.groups},
    });
    match rates {
        Ok((Rates { upload, copy, download }, blend)) => {
            let whole = |rate: &f64| *rate as u64;
            entry["bytes_per_second"] = json!({"upload": whole(upload), "copy": whole(copy), "blend": whole(blend), "download": whole(download)});
        }
        Err(reason) => entry["error"] = json!(reason),
    }
    entry
}
