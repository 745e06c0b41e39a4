//! `ckptmerge diff`

use super::report::{count, shape, table};
use super::{Common, Run, remarks, without_adapters};
#[cfg(feature = "plot")]
use super::{diff_map, picture::Picture, report::check_beside};
use crate::analysis::{self, Comparison, Difference, Tolerance};
use crate::checkpoint::Checkpoint;
use clap::Args;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;

/// Tell whether and where two models differ
///
/// Exits with 0 if they are equal and 1 if they differ, in names, shapes, types or values, or cannot be compared. With a tolerance types may
/// differ. Two NaN are equal. The picture of --plot shows how far apart they are, layers down and blocks across.
#[derive(Args)]
#[command(after_help = "Example: ckptmerge diff a.safetensors b.safetensors --rtol 1e-3")]
pub(super) struct Diff {
    /// The first model
    first: PathBuf,
    /// The second model
    second: PathBuf,
    /// Elements count as equal if |a − b| ≤ ATOL + RTOL·|b|
    #[arg(long, value_name = "ATOL", default_value_t = 0.0, value_parser = tolerance, allow_negative_numbers = true)]
    atol: f64,
    /// See --atol
    #[arg(long, value_name = "RTOL", default_value_t = 0.0, value_parser = tolerance, allow_negative_numbers = true)]
    rtol: f64,
    /// List equal tensors as well
    #[arg(long)]
    all: bool,
    #[cfg(feature = "plot")]
    #[command(flatten)]
    picture: Picture,
}

fn tolerance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value >= 0.0 && value.is_finite() => Ok(value),
        _ => Err("a tolerance is a number that is not negative".to_owned()),
    }
}

impl Run for Diff {
    fn run(self, common: &Common) -> anyhow::Result<ExitCode> {
        let report = common.report();
        without_adapters(&self.first)?;
        without_adapters(&self.second)?;
        let first = Checkpoint::open_with(&self.first, &common.open())?;
        let second = Checkpoint::open_with(&self.second, &common.open())?;
        common.check_selected([&first, &second])?;
        #[cfg(feature = "plot")]
        check_beside(&[self.picture.path()], [&first, &second].into_iter())?;
        for model in [&first, &second] {
            report.about(model);
            remarks::of_scales(&report, model);
        }
        let tolerance = Tolerance { absolute: self.atol, relative: self.rtol };
        let bytes = first.file_bytes() + second.file_bytes();
        let comparison =
            report.watched(bytes, |control| analysis::diff(&first, &second, tolerance, &common.settings(), control))?;
        report.answer(|| text(&comparison, &first, &second, self.all), || document(&comparison))?;
        let is_equal = comparison.is_equal();
        #[cfg(feature = "plot")]
        if self.picture.is_wanted() {
            // Where types differ and must not, values were not looked at.
            let unseen = |(_, difference): &(String, Difference)| matches!(difference, Difference::DType(..));
            let comparison = if comparison.shared.iter().any(unseen) {
                let any = Tolerance { absolute: f64::MAX, relative: 0.0 };
                report.watched(bytes, |control| analysis::diff(&first, &second, any, &common.settings(), control))?
            } else {
                comparison
            };
            let title = format!("How far {} is from {}", first.name(), second.name());
            self.picture.draw(&report, &diff_map::map(&comparison, title))?;
        }
        Ok(if is_equal { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn text(comparison: &Comparison, first: &Checkpoint, second: &Checkpoint, all: bool) -> String {
    let mut text = String::new();
    for (names, model) in [(&comparison.only_first, first), (&comparison.only_second, second)] {
        for name in names {
            text += &format!("only in {}: {name}\n", model.name());
        }
    }
    let listed: Vec<_> = comparison.shared.iter().filter(|(_, difference)| all || !difference.is_equal()).collect();
    if !listed.is_empty() {
        let headings = ["tensor", "max abs", "max rel", "cosine", "differing", "note"];
        let rows = listed.iter().map(|(name, difference)| row(name, difference));
        text += &table(&headings, &headings[1..5], rows);
    }
    let differing = comparison.shared.iter().filter(|(_, difference)| !difference.is_equal()).count() as u64;
    let shared = comparison.shared.len() as u64;
    text += &if comparison.is_equal() {
        format!("equal: {}\n", count(shared, "tensor"))
    } else {
        let only = (comparison.only_first.len() + comparison.only_second.len()) as u64;
        let only = if only > 0 { format!(", {} in only one model", count(only, "tensor")) } else { String::new() };
        format!("different: {differing} of {} that both have{only}\n", count(shared, "tensor"))
    };
    text
}

fn row(name: &str, difference: &Difference) -> Vec<String> {
    let note = |note: String| vec![name.to_owned(), String::new(), String::new(), String::new(), String::new(), note];
    match difference {
        Difference::Shape(a, b) => note(format!("shape {} against {}", shape(a), shape(b))),
        Difference::DType(a, b) => note(format!("type {a} against {b}")),
        Difference::Bytes(equal) => note((if *equal { "same bytes" } else { "different bytes" }).to_owned()),
        Difference::Values(values) => vec![
            name.to_owned(),
            format!("{:.3e}", values.max_abs),
            format!("{:.3e}", values.max_rel),
            format!("{:.6}", values.cosine()),
            format!("{} of {}", values.beyond, values.elements),
            (if values.same_bytes { "same bytes" } else { "" }).to_owned(),
        ],
    }
}

fn document(comparison: &Comparison) -> Value {
    let describe = |(name, difference): &(String, Difference)| {
        let mut json = json!({"tensor": name, "equal": difference.is_equal()});
        match difference {
            Difference::Shape(a, b) => json["shapes"] = json!([a, b]),
            Difference::DType(a, b) => json["dtypes"] = json!([a.name(), b.name()]),
            Difference::Bytes(equal) => json["same_bytes"] = json!(equal),
            Difference::Values(values) => {
                json["max_abs"] = finite(values.max_abs);
                json["max_rel"] = finite(values.max_rel);
                json["relative_distance"] = finite(values.relative_distance());
                json["cosine"] = finite(values.cosine());
                json["differing"] = json!(values.beyond);
                json["elements"] = json!(values.elements);
                json["same_bytes"] = json!(values.same_bytes);
            }
        }
        json
    };
    json!({
        "equal": comparison.is_equal(),
        "only_first": comparison.only_first,
        "only_second": comparison.only_second,
        "tensors": comparison.shared.iter().map(describe).collect::<Vec<_>>(),
    })
}

/// JSON has no infinity: as text.
fn finite(value: f64) -> Value {
    if value.is_finite() { json!(value) } else { json!(value.to_string()) }
}
