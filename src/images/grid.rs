//! Images side by side in one.

use super::Images;
use crate::error::Result;

/// Pixels of black around and between images.
const PADDING: usize = 2;

/// One image of all, as torchvision's `make_grid` puts them together with its default padding: row by row, as many in a
/// row as make the grid a square in numbers of images. One image alone stays as it is.
///
/// # Errors
/// [`crate::Error::Recipe`] if there are none.
pub fn grid(images: &Images) -> Result<Images> {
    images.check()?;
    if images.count == 1 {
        return Ok(images.clone());
    }
    let columns = (1..).find(|columns| columns * columns >= images.count).unwrap_or(images.count);
    let rows = images.count.div_ceil(columns);
    let (down, across) = (images.height + PADDING, images.width + PADDING);
    let (height, width, channels) = (rows * down + PADDING, columns * across + PADDING, images.channels);
    let mut samples = vec![0; height * width * channels];
    let length = images.width * channels;
    // Row by row of all images, each of which lies where its image does.
    for (number, row) in images.samples.chunks_exact(length).enumerate() {
        let (image, line) = (number / images.height, number % images.height);
        let top = PADDING + image / columns * down + line;
        let left = PADDING + image % columns * across;
        let start = (top * width + left) * channels;
        if let Some(place) = samples.get_mut(start..start + length) {
            place.copy_from_slice(row);
        }
    }
    Ok(Images { count: 1, height, width, channels, samples })
}
