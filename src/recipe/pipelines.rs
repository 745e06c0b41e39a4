//! Models of one network, of which some are alone and others in a pipeline's folder.
//!
//! A pipeline whose only network is in `unet/` has its tensors under `unet/…`; a copy that was trained from it is the network
//! alone. They are the same tensors: all models take the reference's prefix, whose layout the output gets.

use crate::adapter::Adapters;
use crate::checkpoint::Checkpoint;

/// Gives models of one part the prefix of the reference, which is the last if that is a base and else the first, where
/// most of their tensors have its names then. Models with adapters stay: those go by the names in the files.
pub(super) fn align(models: &mut [Checkpoint], adapters: &[Adapters], has_base: bool) {
    let place = if has_base { models.len().saturating_sub(1) } else { 0 };
    let Some(reference) = models.get(place).filter(|reference| reference.layout().is_folder) else { return };
    let Some(wanted) = prefix(reference) else { return };
    let fits = |model: &Checkpoint| {
        let Some(of) = prefix(model).filter(|of| *of != wanted && (of.is_empty() || wanted.is_empty())) else {
            return false;
        };
        let names = model.tensors().iter().filter_map(|tensor| tensor.name.strip_prefix(of.as_str()));
        names.filter(|name| reference.get(&format!("{wanted}{name}")).is_some()).count() * 2 > model.tensors().len()
    };
    let aligned: Vec<bool> =
        models.iter().zip(adapters).map(|(model, adapters)| adapters.is_empty() && fits(model)).collect();
    for (model, _) in models.iter_mut().zip(aligned).filter(|(_, aligned)| *aligned) {
        model.set_prefix(&wanted);
    }
}

/// What the names of a model of one part begin with.
fn prefix(model: &Checkpoint) -> Option<String> {
    match &model.layout().parts[..] {
        [part] => Some(part.prefix()),
        _ => None,
    }
}
