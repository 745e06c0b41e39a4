//! A digest that tells checkpoints apart without reading them whole.

use super::file::DataFile;
use crate::error::Result;
use xxhash_rust::xxh3::Xxh3;

/// Blocks taken of each file, evenly spaced, the first and the last included.
const BLOCKS: u64 = 256;
/// Bytes of a block.
const BLOCK: u64 = 4096;

/// `xxh3:` and 32 hexadecimal digits.
pub(super) fn of(files: &[DataFile]) -> Result<String> {
    let mut hash = Xxh3::new();
    let mut buffer = Vec::new();
    for file in files {
        let length = file.length();
        hash.update(&length.to_le_bytes());
        let last = length.saturating_sub(BLOCK);
        let count = length.div_ceil(BLOCK).min(BLOCKS);
        for i in 0..count {
            // In 128 bits, so that no length overflows; the positions do not depend on the order of reading.
            let offset = if count == 1 { 0 } else { (u128::from(last) * u128::from(i) / u128::from(count - 1)) as u64 };
            hash.update(file.read(offset..length.min(offset + BLOCK), &mut buffer)?);
            file.check_fault()?;
        }
    }
    Ok(format!("xxh3:{:032x}", hash.digest128()))
}
