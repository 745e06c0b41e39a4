//! Sets of images: from folders and arrays, to files, and from one size to another.

mod grid;
mod read;
pub mod resize;
mod write;

pub use grid::grid;
pub use read::{ENDINGS, Set};
pub(crate) use read::{array_in, instead_of_images};
pub use write::{WRITTEN, check_target, write};

use crate::error::{Error, Result};

/// Images of one size, 8 bits a sample: image by image, row by row, the channels of a pixel side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// How many.
    pub count: usize,
    /// Rows of an image.
    pub height: usize,
    /// Pixels of a row.
    pub width: usize,
    /// 1 for grey, 3 for red, green and blue.
    pub channels: usize,
    /// `count · height · width · channels` samples.
    pub samples: Vec<u8>,
}

impl Images {
    /// Samples of an image.
    #[must_use]
    pub fn stride(&self) -> usize {
        self.height * self.width * self.channels
    }

    /// The images one by one.
    pub fn iter(&self) -> impl Iterator<Item = Image> {
        let images = self.samples.chunks_exact(self.stride().max(1)).take(self.count).enumerate();
        images.map(|(index, samples)| Image {
            origin: format!("image {index}"),
            height: self.height,
            width: self.width,
            channels: self.channels,
            samples: samples.to_vec(),
        })
    }

    /// The same with each pixel `factor` by `factor` times.
    #[must_use]
    pub fn zoomed(&self, factor: usize) -> Self {
        let Self { count, height, width, channels, samples } = self;
        let mut out = Vec::with_capacity(samples.len() * factor * factor);
        for row in samples.chunks_exact((width * channels).max(1)) {
            let wide: Vec<u8> = row.chunks_exact((*channels).max(1)).flat_map(|pixel| pixel.repeat(factor)).collect();
            (0..factor).for_each(|_| out.extend(&wide));
        }
        Self { count: *count, height: height * factor, width: width * factor, channels: *channels, samples: out }
    }

    /// Puts others of the same size behind them.
    ///
    /// # Panics
    /// If they are of another size.
    pub fn append(&mut self, others: Self) {
        let size = |images: &Self| (images.height, images.width, images.channels);
        assert_eq!(size(self), size(&others));
        self.count += others.count;
        self.samples.extend(others.samples);
    }

    /// That there are as many samples as the sizes say, and something to see.
    ///
    /// # Errors
    /// [`Error::Recipe`] if not.
    fn check(&self) -> Result<()> {
        let Self { count, height, width, channels, samples } = self;
        let is_whole = self.stride().checked_mul(*count) == Some(samples.len());
        if self.stride() == 0 || *count == 0 || !matches!(channels, 1 | 3) || !is_whole {
            let held = samples.len();
            return Err(Error::Recipe(format!(
                "{count} images of {width}×{height} pixels and {channels} channels cannot be written ({held} samples): there must be one image at least, of 1 or 3 channels"
            )));
        }
        Ok(())
    }
}

/// An image, 8 bits a sample: row by row, the channels of a pixel side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Where it is from, for messages: a path, or a number within one.
    pub origin: String,
    /// Rows.
    pub height: usize,
    /// Pixels of a row.
    pub width: usize,
    /// 1 for grey, 3 for red, green and blue.
    pub channels: usize,
    /// `height · width · channels` samples.
    pub samples: Vec<u8>,
}

impl Image {
    /// The samples of a channel; of a grey image each channel is the only one.
    pub(crate) fn plane(&self, channel: usize) -> impl Iterator<Item = u8> + '_ {
        let channel = channel.min(self.channels.saturating_sub(1));
        self.samples.iter().skip(channel).step_by(self.channels.max(1)).copied()
    }

    /// Its size, for messages.
    #[must_use]
    pub fn size(&self) -> String {
        let kind = if self.channels == 1 { "grey" } else { "RGB" };
        format!("{}×{} {kind}", self.width, self.height)
    }
}
