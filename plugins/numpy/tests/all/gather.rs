//! Fetches a tensor's elements one by one, as the interface describes them; the host has code of its own for this.

use ckptmerge_format::{Data, Fault, Format, FormatError, HEAD, Source, TensorInfo};
use ckptmerge_format_numpy::{Npy, Npz};
use flate2::read::DeflateDecoder;
use std::io::Read;

/// A file in memory.
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Source for Bytes {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), FormatError> {
        let start = usize::try_from(offset).expect("tests have small files");
        let bytes = self.0.get(start..start + buffer.len());
        let bytes = bytes.ok_or_else(|| FormatError::new(Fault::Read, "beyond the end"))?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

/// The one format that recognises the file.
pub(crate) fn format(file: &Bytes) -> Option<&'static dyn Format> {
    let head = &file.0[..HEAD.min(file.0.len())];
    let formats: [&'static dyn Format; 2] = [&Npy, &Npz];
    let mut found = formats.into_iter().filter(|format| format.recognises(head, file.len()));
    let first = found.next();
    assert!(found.next().is_none(), "both formats recognise the file");
    first
}

/// The elements in row-major order, little-endian.
pub(crate) fn elements(file: &Bytes, tensor: &TensorInfo) -> Vec<u8> {
    let width = tensor.dtype.bytes().expect("NumPy has no packed types");
    let count = tensor.elements().expect("it is small") as usize;
    let mut out = match &tensor.data {
        Data::Dense(extent) => file.0[extent.offset as usize..][..extent.length as usize].to_vec(),
        Data::Deflated { extent, skip } => {
            let deflated = &file.0[extent.offset as usize..][..extent.length as usize];
            let mut inflated = Vec::new();
            DeflateDecoder::new(deflated).read_to_end(&mut inflated).expect("it is deflated");
            inflated.split_off(*skip as usize)
        }
        Data::Pieces(pieces) => {
            let [piece] = &pieces.boxes[..] else { panic!("an array is one piece") };
            assert_eq!((&pieces.grid, &piece.shape, piece.file), (&tensor.shape, &tensor.shape, 0));
            assert!(piece.origin.iter().all(|&origin| origin == 0));
            let mut out = Vec::new();
            for number in 0..count as u64 {
                let (mut rest, mut element) = (number, 0);
                for (&size, &stride) in piece.shape.iter().zip(&piece.strides).rev() {
                    element += rest % size * stride;
                    rest /= size;
                }
                out.extend(&file.0[piece.offset as usize + element as usize * width..][..width]);
            }
            out
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(out.len(), count * width, "{}", tensor.name);
    if tensor.big_endian {
        out.chunks_exact_mut(width).for_each(<[u8]>::reverse);
    }
    out
}
