//! A checkpoint with tensors beside those of its files: elements that follow from what the model is.

use super::spill::Spill;
use super::{Checkpoint, IoMode, Location, Tensor};
use crate::error::{Error, Result};
use ckptmerge_format::{Data, Index, TensorInfo};

impl Checkpoint {
    /// Adds tensors by their full names, with their elements as [`Data::Inline`]. They are kept in a temporary file that
    /// has no name, and are then like those of the model's own files; the fingerprint stays that of the model's files.
    ///
    /// # Errors
    /// [`Error::Recipe`] if a name is taken, or elements are not given or not as many as the shape says;
    /// [`Error::Model`] if there is no room for them.
    pub fn add_tensors(&mut self, tensors: Vec<TensorInfo>, io: IoMode) -> Result<()> {
        let path = self.layout.root.clone();
        let index = Index { tensors, ..Index::default() };
        let mut spill = Spill::new(&path, &index)?;
        let file = self.files.len();
        for info in &index.tensors {
            let name = info.name.as_str();
            let (Data::Inline(values), Some(elements)) = (&info.data, info.elements()) else {
                return Err(Error::Recipe(format!("`{name}` cannot be added without its elements")));
            };
            let bytes = values.len() as u64;
            if info.dtype.size_of(elements) != Some(bytes) {
                return Err(Error::Recipe(format!("{bytes} bytes are not what `{name}` of {:?} takes", info.shape)));
            }
            let prefixes = || self.layout.parts.iter().map(|part| part.prefix()).enumerate();
            let named = prefixes().find(|(_, prefix)| !prefix.is_empty() && name.starts_with(prefix.as_str()));
            // An only part may have been given another prefix than its folder's.
            let is_part = |prefix: &str| prefix.is_empty() || self.layout.parts.len() == 1;
            let Some((part, _)) = named.or_else(|| prefixes().find(|(_, prefix)| is_part(prefix))) else {
                return Err(Error::Recipe(format!("`{name}` is in no part of {}", self.name)));
            };
            if self.by_name.insert(name.to_owned(), self.tensors.len()).is_some() {
                return Err(Error::Recipe(format!("two tensors would be called `{name}`")));
            }
            let location = Location::Dense { file, offset: spill.inline(&path, values)? };
            self.tensors.push(Tensor {
                name: name.to_owned(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                elements,
                bytes,
                alias_of: None,
                part,
                location,
                inputs: Vec::new(),
            });
        }
        self.files.push(spill.finish(&path, io)?);
        self.added += 1;
        Ok(())
    }
}
