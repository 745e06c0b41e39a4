//! What it costs the engine to read models and do nothing with them: `read MODEL…` passes over every element of the models'
//! tensors as `similarity` does, side by side, in the same tiles and on all cores, and adds words up.

use ckptmerge::checkpoint::Checkpoint;
use ckptmerge::stream::{self, Control, Group, Settings, TILE};

fn main() -> ckptmerge::Result<()> {
    let paths: Vec<_> = std::env::args_os().skip(1).collect();
    let models = paths.iter().map(Checkpoint::open).collect::<ckptmerge::Result<Vec<_>>>()?;
    let first = models.first().expect("usage: read MODEL…");
    let views = |name: &str| models.iter().filter_map(|model| model.get(name)).collect();
    let groups: Vec<Group<'_>> = first.tensors().iter().map(|tensor| Group::numbers(views(&tensor.name))).collect();
    let mut total = 0u64;
    stream::fold(
        &groups,
        TILE,
        1 << 12,
        &Settings::default(),
        Control::none(),
        |_, inputs| inputs.iter().map(|bytes| sum(bytes)).fold(0, u64::wrapping_add),
        |_, sum| total = total.wrapping_add(sum),
    )?;
    println!("{total:x}");
    Ok(())
}

/// Every byte is loaded: as wide words, added up.
fn sum(bytes: &[u8]) -> u64 {
    let (lines, _) = bytes.as_chunks::<64>();
    let add = |mut sums: [u64; 8], line: &[u8; 64]| {
        for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_le_bytes(*word));
        }
        sums
    };
    lines.iter().fold([0; 8], add).iter().fold(0, |a, b| a.wrapping_add(*b))
}
