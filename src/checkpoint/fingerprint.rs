//! A digest that tells checkpoints apart without reading them whole.

use super::file::DataFile;
use crate::error::{Error, Result};
use ckptmerge_format::Source;
use xxhash_rust::xxh3::Xxh3;

/// Blocks taken of each file, evenly spaced, the first and the last included.
const BLOCKS: u64 = 256;
/// Bytes of a block.
const BLOCK: u64 = 4096;

/// `xxh3:` and 32 hexadecimal digits.
pub(super) fn of(files: &[DataFile]) -> Result<String> {
    let mut hash = Xxh3::new();
    let mut block = [0; BLOCK as usize];
    for file in files {
        let length = file.length();
        hash.update(&length.to_le_bytes());
        let last = length.saturating_sub(BLOCK);
        let count = length.div_ceil(BLOCK).min(BLOCKS);
        for i in 0..count {
            // In 128 bits, so that no length overflows; the positions do not depend on the order of reading.
            let offset = if count == 1 { 0 } else { (u128::from(last) * u128::from(i) / u128::from(count - 1)) as u64 };
            let block = &mut block[..BLOCK.min(length - offset) as usize];
            file.read_at(offset, block).map_err(|source| Error::Format { path: file.path().to_owned(), source })?;
            hash.update(block);
        }
    }
    Ok(format!("xxh3:{:032x}", hash.digest128()))
}
