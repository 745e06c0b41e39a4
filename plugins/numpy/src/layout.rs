//! Zip archives that are written: members stored without compression, aligned, with 64-bit sizes where they are needed.
//!
//! As `numpy.savez` does, every member's own header leaves its sizes to the zip64 field. Padding in front of a member
//! is a field of the kind that Android's zipalign uses (0xD935).

use crate::header::ALIGNMENT;
use ckptmerge_format::{Fault, FormatError, Segment};

/// Bytes of a local header before the name.
const LOCAL: u64 = 30;
/// Bytes of the zip64 field in a local header.
const LOCAL_ZIP64: u64 = 20;
/// Bytes that the smallest padding field takes: identifier, length, alignment.
const SMALLEST_PADDING: u64 = 6;
/// The version of the zip format that is needed: 4.5, for 64-bit sizes.
const VERSION: u16 = 45;
/// Bit 11 of the flags: the name is UTF-8. Without it, it is ASCII here.
const UTF8: u16 = 1 << 11;
/// 1 January 1980, the earliest date there is: files do not depend on when they are written.
const DATE: u16 = (1 << 5) | 1;
/// A regular file that all may read, as Unix has it, in the upper half of the attributes.
const ATTRIBUTES: u32 = 0o100_644 << 16;

/// A member to be written: bytes that are known, and behind them bytes that are not yet.
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) head: Vec<u8>,
    /// How many bytes follow the head.
    pub(crate) data: u64,
}

impl Member {
    fn size(&self) -> u64 {
        self.head.len() as u64 + self.data
    }

    fn flags(&self) -> u16 {
        if self.name.is_ascii() { 0 } else { UTF8 }
    }
}

/// Where the members of an archive go.
pub(crate) struct Layout {
    /// Each member with where its local header starts and how long that is.
    members: Vec<(Member, u64, u64)>,
    /// Where the directory starts.
    directory: u64,
    /// The directory and the end of the archive, with all checksums 0.
    tail: u64,
}

impl Layout {
    /// Places members one behind the other, their heads aligned to [`ALIGNMENT`].
    pub(crate) fn new(members: Vec<Member>) -> Result<Self, FormatError> {
        let mut end = 0u64;
        let mut placed = Vec::with_capacity(members.len());
        for member in members {
            let limit = |message: &str| FormatError::new(Fault::Limit, message).at(&member.name);
            if u16::try_from(member.name.len()).is_err() {
                return Err(limit("the name is longer than the 65535 bytes that archives allow"));
            }
            let plain = LOCAL + member.name.len() as u64 + LOCAL_ZIP64;
            let padding = |from: u64| from.next_multiple_of(ALIGNMENT) - from;
            let header = match padding(end + plain) {
                0 => plain,
                _ => plain + SMALLEST_PADDING + padding(end + plain + SMALLEST_PADDING),
            };
            let next = (end + header).checked_add(member.head.len() as u64).and_then(|at| at.checked_add(member.data));
            // Half of what 64 bits hold leaves room for every header.
            let next = next.filter(|&next| next < u64::MAX / 2);
            let next = next.ok_or_else(|| limit("the archive's size overflows 64 bits"))?;
            placed.push((member, end, header));
            end = next;
        }
        let mut layout = Self { members: placed, directory: end, tail: 0 };
        layout.tail = layout.directory(|_| 0).len() as u64;
        Ok(layout)
    }

    /// The length of the archive.
    pub(crate) fn length(&self) -> u64 {
        self.directory + self.tail
    }

    /// Where what follows each member's head goes.
    pub(crate) fn data_offsets(&self) -> impl Iterator<Item = u64> {
        self.members.iter().map(|(member, start, header)| start + header + member.head.len() as u64)
    }

    /// All that is not data. `crc32` has the checksum of each member's data; those that are missing count as 0.
    pub(crate) fn segments(&self, crc32: &[u32]) -> Vec<Segment> {
        let checksums: Vec<u32> = self
            .members
            .iter()
            .enumerate()
            .map(|(number, (member, ..))| {
                let mut hasher = crc32fast::Hasher::new();
                hasher.update(&member.head);
                let data = crc32.get(number).copied().unwrap_or_default();
                hasher.combine(&crc32fast::Hasher::new_with_initial_len(data, member.data));
                hasher.finalize()
            })
            .collect();
        let mut segments: Vec<Segment> = self
            .members
            .iter()
            .zip(&checksums)
            .map(|((member, start, header), &checksum)| {
                let mut bytes = local_header(member, *header, checksum);
                bytes.extend(&member.head);
                Segment { offset: *start, bytes }
            })
            .collect();
        segments.push(Segment { offset: self.directory, bytes: self.directory(|number| checksums[number]) });
        segments
    }

    /// The directory of all members, and the end of the archive.
    fn directory(&self, checksum: impl Fn(usize) -> u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (number, (member, start, _)) in self.members.iter().enumerate() {
            let mut large = Vec::new();
            let size = narrow(member.size(), &mut large);
            let offset = narrow(*start, &mut large);
            // The two sizes are equal, and so are both large or neither.
            if size == u32::MAX {
                large.splice(0..0, member.size().to_le_bytes());
            }
            if !large.is_empty() {
                let length = large.len() as u16;
                large.splice(0..0, [1u16.to_le_bytes(), length.to_le_bytes()].concat());
            }
            bytes.extend(b"PK\x01\x02");
            // Made on Unix (3), so that the attributes are understood.
            put16(&mut bytes, &[(3 << 8) | VERSION, VERSION, member.flags(), 0, 0, DATE]);
            put32(&mut bytes, &[checksum(number), size, size]);
            put16(&mut bytes, &[member.name.len() as u16, large.len() as u16, 0, 0, 0]);
            put32(&mut bytes, &[ATTRIBUTES, offset]);
            bytes.extend(member.name.bytes());
            bytes.extend(large);
        }

        let length = bytes.len() as u64;
        let count = self.members.len() as u64;
        let mut large = Vec::new();
        let (length32, directory32) = (narrow(length, &mut large), narrow(self.directory, &mut large));
        let count16 = u16::try_from(count).unwrap_or(u16::MAX);
        if count16 == u16::MAX || !large.is_empty() {
            bytes.extend(b"PK\x06\x06");
            // The length of this record, from here on.
            put64(&mut bytes, &[44]);
            put16(&mut bytes, &[(3 << 8) | VERSION, VERSION]);
            put32(&mut bytes, &[0, 0]);
            put64(&mut bytes, &[count, count, length, self.directory]);
            bytes.extend(b"PK\x06\x07");
            put32(&mut bytes, &[0]);
            put64(&mut bytes, &[self.directory + length]);
            put32(&mut bytes, &[1]);
        }
        bytes.extend(b"PK\x05\x06");
        put16(&mut bytes, &[0, 0, count16, count16]);
        put32(&mut bytes, &[length32, directory32]);
        put16(&mut bytes, &[0]);
        bytes
    }
}

/// What stands in front of a member, padded to `length` bytes.
fn local_header(member: &Member, length: u64, checksum: u32) -> Vec<u8> {
    let padding = (length - LOCAL - LOCAL_ZIP64) as usize - member.name.len();
    let mut bytes = b"PK\x03\x04".to_vec();
    put16(&mut bytes, &[VERSION, member.flags(), 0, 0, DATE]);
    put32(&mut bytes, &[checksum, u32::MAX, u32::MAX]);
    put16(&mut bytes, &[member.name.len() as u16, LOCAL_ZIP64 as u16 + padding as u16]);
    bytes.extend(member.name.bytes());
    put16(&mut bytes, &[1, 16]);
    put64(&mut bytes, &[member.size(), member.size()]);
    if padding > 0 {
        put16(&mut bytes, &[0xD935, padding as u16 - 4, ALIGNMENT as u16]);
        bytes.resize(length as usize, 0);
    }
    bytes
}

/// The value in 32 bits, or all ones and the value at the end of `large` if it does not fit.
fn narrow(value: u64, large: &mut Vec<u8>) -> u32 {
    match u32::try_from(value) {
        Ok(value) if value < u32::MAX => value,
        _ => {
            large.extend(value.to_le_bytes());
            u32::MAX
        }
    }
}

fn put16(bytes: &mut Vec<u8>, values: &[u16]) {
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

fn put32(bytes: &mut Vec<u8>, values: &[u32]) {
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

fn put64(bytes: &mut Vec<u8>, values: &[u64]) {
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}
