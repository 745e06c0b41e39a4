//! What is said of an output before it is written, where it is not quite what one might take it for.

use super::report::{Report, count, shortened};
use crate::checkpoint::{Checkpoint, FORMATS, by_extension};
use crate::dtype::DType;
use crate::error::{Bytes, Result};
use crate::names;
use crate::recipe::{Models, Operation, Plan, Planned, Prediction, Target, scale_of};
use crate::stream::Settings;
use std::collections::BTreeMap;

/// The key of GGUF without which llama.cpp loads no model.
const ARCHITECTURE: &str = "general.architecture";

/// Of any output.
pub(super) fn of_output(report: &Report, plan: &Plan<'_>, target: &Target) -> Result<()> {
    for (tensors, names) in kept(plan) {
        report.remark(&format!("{tensors}: {}", shortened(&names)));
    }
    let is_folder = plan.makes_folder(target)?;
    if is_folder {
        for config in plan.dequantized_configs()? {
            let config = config.display();
            report.remark(&format!(
                "{config} no longer has `quantization_config`: the weights are multiplied by their scales"
            ));
        }
    }
    plan.left_unsaid(target).iter().for_each(|unsaid| report.warn(unsaid));
    let format = target.format();
    if format.id() == "gguf" && !plan.metadata.contains_key(ARCHITECTURE) {
        report.remark(&format!(
            "the output is a container of the tensors under their names, not a model for llama.cpp: it has no `{ARCHITECTURE}`"
        ));
    }
    let ending = target.path.extension().filter(|_| !is_folder && target.format.is_none());
    if let Some(ending) = ending.filter(|_| by_extension(&target.path).is_none()) {
        let known: Vec<String> =
            FORMATS.iter().flat_map(|format| format.extensions()).map(|ending| format!(".{ending}")).collect();
        let (ending, id) = (ending.display(), format.id());
        report.remark(&format!(
            "`.{ending}` is the ending of no format, so this is {id}; there are {}",
            known.join(", ")
        ));
    }
    Ok(())
}

/// Of a run that takes more memory than it was asked to, or replaces one of its models.
pub(super) fn of_merge(report: &Report, plan: &Plan<'_>, target: &Target, predicted: Prediction, settings: &Settings) {
    if let Some(limit) = settings.memory.filter(|limit| *limit < predicted.memory.0) {
        report.warn(&format!(
            "this takes {} of memory, more than the {} of --memory: the method needs whole rows or tensors at once",
            predicted.memory,
            Bytes(limit)
        ));
    }
    if plan.replaces_input(target) {
        report.warn(&format!("{} is one of the models, and is replaced", target.path.display()));
    }
}

/// Of a conversion.
pub(super) fn of_conversion(report: &Report, plan: &Plan<'_>, target: &Target) {
    let tie = |tensor: &Planned<'_>| match &tensor.operation {
        Operation::Alias(to) => Some(format!("{} = {to}", tensor.name)),
        _ => None,
    };
    let ties: Vec<String> = plan.tensors.iter().filter_map(tie).collect();
    if !ties.is_empty() {
        let format = target.format();
        let how = if format.can_tie() {
            "tied and stored once".to_owned()
        } else {
            format!("tied and stored again, as {} ties nothing", format.id())
        };
        report.remark(&format!("{how}: {} ({})", count(ties.len() as u64, "tensor"), shortened(&ties)));
    }
    let rounds = |operation: &Operation<'_>, output: DType| match operation {
        Operation::Blend(_, views) => views.iter().any(|view| view.tensor.dtype.promote(output) != Some(output)),
        Operation::Scale(..) => true,
        _ => false,
    };
    let rounded = plan.tensors.iter().filter(|tensor| rounds(&tensor.operation, tensor.dtype)).count();
    if rounded > 0 && plan.replaces_input(target) {
        let path = target.path.display();
        let tensors = count(rounded as u64, "tensor");
        report.warn(&format!("{path} is the model itself: {tensors} of it will be there in a less exact type only"));
    }
}

/// Of a model that is looked at: that elements are taken without the scales beside them.
pub(super) fn of_scales(report: &Report, model: &Checkpoint) {
    let scaled = model.tensors().iter().filter(|tensor| scale_of(tensor, model).is_some()).count() as u64;
    if scaled > 0 {
        let (name, tensors) = (model.name(), count(scaled, "tensor"));
        let is = if scaled == 1 { "is" } else { "are" };
        report.remark(&format!(
            "{name}: {tensors} of 8-bit floats {is} taken without scales; `ckptmerge convert --dtype bf16` multiplies them in"
        ));
    }
}

/// Of models that do not fit together: that some have other names for the same.
pub(super) fn of_names(report: &Report, models: &Models) {
    let reference = models.reference();
    let label_of = |wanted: &Checkpoint| {
        let mut labelled = models.all().zip(models.labels());
        labelled.find(|(model, _)| std::ptr::eq(*model, wanted)).map_or("", |(_, label)| label.as_str())
    };
    let first = label_of(reference);
    for (model, label) in models.all().zip(models.labels()) {
        let shared = model.tensors().iter().filter(|tensor| reference.get(&tensor.name).is_some()).count();
        let all = model.tensors().len();
        if shared * 2 > all {
            continue;
        }
        let fitting = match (names::towards(model, reference), names::towards(reference, model)) {
            (Some(map), _) => format!("`ckptmerge convert --rename {map}` gives {label} the names of {first}"),
            (None, Some(map)) => format!("`ckptmerge convert --rename {map}` gives {first} the names of {label}"),
            (None, None) => "`ckptmerge convert --rename FILE` changes names by rules".to_owned(),
        };
        report.remark(&format!("{label} shares {shared} of its {all} names with {first}: {fitting}"));
    }
}

/// The tensors that are not of the type that was asked for, by why, with a sentence for each kind.
fn kept(plan: &Plan<'_>) -> Vec<(String, Vec<String>)> {
    let mut kinds: BTreeMap<(bool, bool, &str), Vec<String>> = BTreeMap::new();
    for kept in &plan.kept_as {
        let kind = (kept.dimensions < 2, kept.from == DType::F32, kept.wanted.name());
        kinds.entry(kind).or_default().push(kept.name.clone());
    }
    let sentence = |((is_vector, was_f32, wanted), names): ((bool, bool, &str), Vec<String>)| {
        let tensors = count(names.len() as u64, "tensor");
        let why = if is_vector {
            "of fewer than two dimensions, such as norms and biases,".to_owned()
        } else {
            let block = DType::parse(wanted).map_or(1, DType::block_elements);
            format!("whose rows are no whole blocks of {block} elements")
        };
        let becomes = match (was_f32, names.len()) {
            (true, 1) => "stays F32",
            (true, _) => "stay F32",
            (false, 1) => "becomes F32",
            (false, _) => "become F32",
        };
        (format!("{tensors} {why} {becomes} and not {wanted}"), names)
    };
    kinds.into_iter().map(sentence).collect()
}
