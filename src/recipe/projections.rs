//! Channel-wise projections, `adapter_list.i.weight`: matrices behind the blocks of a denoising network (Ma et al. 2025),
//! which begin as identities. A model that lacks one has the identity there, so that identities stand for those that
//! other models have: merged = I + Σ wᵢ·(Wᵢ − I).

use super::fold::Names;
use crate::checkpoint::{Checkpoint, IoMode};
use crate::dtype::{self, DType, Simd};
use crate::error::Result;
use ckptmerge_format::{Data, TensorInfo};
use std::collections::BTreeMap;

/// What stands before a projection's number, and behind it.
const NAME: (&str, &str) = ("adapter_list.", ".weight");

/// More channels than this no block has.
const MOST: u64 = 1 << 13;

/// What stands before a projection's name, and its number.
pub(super) fn numbered(name: &str) -> Option<(&str, usize)> {
    let at = name.rfind(NAME.0)?;
    let number = name[at + NAME.0.len()..].strip_suffix(NAME.1)?;
    let prefix = &name[..at];
    let is_number = !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit());
    let stands_alone = prefix.is_empty() || prefix.ends_with(['.', '/']);
    (is_number && stands_alone).then_some((prefix, number.parse().ok()?))
}

/// The channels of a projection of this shape: of a matrix, or of a convolution of one pixel.
pub(super) fn channels(shape: &[u64]) -> Option<u64> {
    match *shape {
        [rows, columns] | [rows, columns, 1, 1] if rows == columns && (1..=MOST).contains(&rows) => Some(rows),
        _ => None,
    }
}

/// Gives networks the identity for each projection that another of the models has and they lack, and tells of it by the
/// models' labels.
///
/// # Errors
/// As [`Checkpoint::add_tensors`].
pub(super) fn complete(models: &mut [(&mut Checkpoint, &str)], io: IoMode) -> Result<Vec<String>> {
    // None for those that are not of the same shape everywhere: what stands for them could be one of several.
    let mut known: BTreeMap<String, Option<(Vec<u64>, DType)>> = BTreeMap::new();
    for tensor in models.iter().flat_map(|(model, _)| model.tensors()) {
        if numbered(&tensor.name).is_none() || channels(&tensor.shape).is_none() || !tensor.dtype.is_real() {
            continue;
        }
        let same = known.entry(tensor.name.clone()).or_insert_with(|| Some((tensor.shape.clone(), tensor.dtype)));
        if same.as_ref().is_some_and(|(shape, _)| *shape != tensor.shape) {
            *same = None;
        }
    }
    let mut notes = Vec::new();
    for (model, label) in models {
        // How many the network has room for: what is numbered beyond is none of its projections, and stays missing.
        let room = |prefix: &str| {
            let names = model.tensors().iter().filter_map(|tensor| tensor.name.strip_prefix(prefix));
            Names(names.collect()).projections()
        };
        let mut rooms: BTreeMap<&str, usize> = BTreeMap::new();
        let lacking = known.iter().filter_map(|(name, same)| {
            let (shape, dtype) = same.as_ref().filter(|_| model.get(name).is_none())?;
            let (prefix, number) = numbered(name)?;
            let room = *rooms.entry(prefix).or_insert_with(|| room(prefix));
            if number >= room {
                return None;
            }
            Some(((prefix, number), identity(name, shape, *dtype)))
        });
        let mut lacking: Vec<_> = lacking.collect();
        lacking.sort_by_key(|(place, _)| *place);
        let added: Vec<TensorInfo> = lacking.into_iter().map(|(_, tensor)| tensor).collect();
        let Some(first) = added.first().map(|tensor| tensor.name.clone()) else { continue };
        let (count, s) = (added.len(), if added.len() == 1 { "" } else { "s" });
        model.add_tensors(added, io)?;
        notes.push(format!(
            "{label} lacks {count} channel-wise projection{s}, such as `{first}`: there it has the identity"
        ));
    }
    Ok(notes)
}

/// The identity of this shape: in the type if that holds single numbers, which 0 and 1 are in any, else in F32.
fn identity(name: &str, shape: &[u64], dtype: DType) -> TensorInfo {
    let plain = dtype.bytes().filter(|_| dtype::can_encode(dtype));
    let (dtype, width) = plain.map_or((DType::F32, size_of::<f32>()), |width| (dtype, width));
    let mut one = vec![0; width];
    dtype::encode(Simd::detect(), dtype, &[1.0], &mut one);
    let channels = channels(shape).unwrap_or(0) as usize;
    let mut bytes = vec![0; channels * channels * width];
    bytes.chunks_exact_mut(width).step_by(channels + 1).for_each(|place| place.copy_from_slice(&one));
    TensorInfo::new(name, dtype, shape.to_vec(), Data::Inline(bytes))
}

#[cfg(test)]
mod tests {
    use super::{channels, numbered};

    #[test]
    fn names_and_shapes_of_projections() {
        assert_eq!(numbered("adapter_list.12.weight"), Some(("", 12)));
        assert_eq!(numbered("unet/adapter_list.0.weight"), Some(("unet/", 0)));
        for name in ["adapter_list.weight", "adapter_list.x.weight", "my_adapter_list.0.weight", "adapter_list.0.bias"]
        {
            assert_eq!(numbered(name), None, "{name}");
        }
        assert_eq!(channels(&[8, 8, 1, 1]), Some(8));
        assert_eq!(channels(&[8, 8]), Some(8));
        for shape in [&[8, 4, 1, 1][..], &[8, 8, 3, 3], &[8], &[0, 0]] {
            assert_eq!(channels(shape), None, "{shape:?}");
        }
    }
}
