//! `.npy`: one array.

use crate::element;
use crate::header::{self, Header, MAGIC};
use ckptmerge_format::{
    DType, Fault, Format, FormatError, Index, Metadata, Reader, Segment, Source, TensorSpec, WritePlan,
};
use std::io::BufReader;

/// What the tensor is called, as the file has no name for it.
const NAME: &str = "array";

/// The `.npy` format: a single array, which is called `array`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Npy;

impl Format for Npy {
    fn id(&self) -> &'static str {
        "npy"
    }

    fn about(&self) -> &'static str {
        "NumPy array: one tensor, as numpy.save writes it"
    }

    fn extensions(&self) -> &'static [&'static str] {
        &["npy"]
    }

    fn recognises(&self, head: &[u8], _len: u64) -> bool {
        head.starts_with(MAGIC)
    }

    fn index(&self, source: &dyn Source) -> Result<Index, FormatError> {
        self.index_assuming(source, None)
    }

    fn index_assuming(&self, source: &dyn Source, assume: Option<DType>) -> Result<Index, FormatError> {
        let header = Header::read(&mut BufReader::new(Reader::new(source)), source.len(), assume)
            .map_err(|error| error.at(NAME))?;
        Ok(Index { tensors: vec![header.tensor(NAME, 0)], ..Index::default() })
    }

    fn leaves_unsaid(&self, dtype: DType) -> Option<String> {
        element::unsaid(dtype)
    }

    fn can_store(&self, dtype: DType) -> bool {
        element::spelling(dtype).is_some()
    }

    fn plan_write(&self, tensors: &[TensorSpec], metadata: &Metadata) -> Result<WritePlan, FormatError> {
        let [tensor] = tensors else {
            let message = format!("a .npy file holds exactly one tensor, and there are {}", tensors.len());
            return Err(FormatError::unsupported(message).hint("write an .npz file"));
        };
        if !metadata.is_empty() {
            let message = "a .npy file has no place for metadata";
            return Err(FormatError::unsupported(message).hint("write an .npz file"));
        }
        let (bytes, data) = header::write(tensor)?;
        let start = bytes.len() as u64;
        let length = start
            .checked_add(data)
            .ok_or_else(|| FormatError::new(Fault::Limit, "the file's size overflows 64 bits").at(&tensor.name))?;
        Ok(WritePlan::new(length, vec![Segment { offset: 0, bytes }], vec![Some(start)]))
    }
}
