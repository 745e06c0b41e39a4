//! Zip archives for mutators: taken apart, and put together again with sizes, places and checksums that are right.

use flate2::Compression;
use flate2::read::{DeflateDecoder, DeflateEncoder};
use std::io::{Cursor, Read};
use zip::{CompressionMethod, ZipArchive};

/// The longest member, in bytes, that is taken apart.
const LONGEST: u64 = 1 << 20;

/// A member of an archive.
pub struct Member {
    pub name: Vec<u8>,
    /// Its bytes, decompressed.
    pub bytes: Vec<u8>,
    pub deflated: bool,
}

/// The members of an archive, if all of them are sound.
pub fn members(file: &[u8]) -> Option<Vec<Member>> {
    let mut archive = ZipArchive::new(Cursor::new(file)).ok()?;
    let mut members = Vec::new();
    for number in 0..archive.len() {
        let mut entry = archive.by_index_raw(number).ok()?;
        let name = entry.name_raw().to_vec();
        let deflated = match entry.compression() {
            CompressionMethod::Stored => false,
            CompressionMethod::DEFLATE => true,
            _ => return None,
        };
        let mut bytes = Vec::new();
        if deflated {
            DeflateDecoder::new(&mut entry).take(LONGEST).read_to_end(&mut bytes).ok()?;
        } else {
            entry.by_ref().take(LONGEST).read_to_end(&mut bytes).ok()?;
        }
        members.push(Member { name, bytes, deflated });
    }
    Some(members)
}

/// The archive of the members, as plain as can be.
pub fn archive(members: &[Member]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for member in members {
        let mut packed = Vec::new();
        let method = if member.deflated {
            let mut encoder = DeflateEncoder::new(&member.bytes[..], Compression::fast());
            encoder.read_to_end(&mut packed).expect("it is compressed in memory");
            8u16
        } else {
            packed.extend(&member.bytes);
            0
        };
        let name = &member.name[..member.name.len().min(u16::MAX.into())];
        let mut common = Vec::new();
        [20, 0, method, 0, 0x21].iter().for_each(|n: &u16| common.extend(n.to_le_bytes()));
        let sizes = [crc32fast::hash(&member.bytes), packed.len() as u32, member.bytes.len() as u32];
        sizes.iter().for_each(|n| common.extend(n.to_le_bytes()));
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        let offset = file.len() as u32;
        file.extend([&b"PK\x03\x04"[..], &common, name, &packed].concat());
        directory.extend([&b"PK\x01\x02\x14\0"[..], &common, &[0; 10], &offset.to_le_bytes(), name].concat());
    }
    let (start, length) = (file.len() as u32, directory.len() as u32);
    file.extend(directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    [members.len() as u16; 2].iter().for_each(|n| file.extend(n.to_le_bytes()));
    [length, start].iter().for_each(|n| file.extend(n.to_le_bytes()));
    file.extend([0, 0]);
    file
}
