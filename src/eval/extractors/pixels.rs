//! The pixels themselves, divided by 255.

use super::{Extractor, Kind};
use crate::error::{Error, Result};
use crate::eval::features::MOST_NUMBERS;
use crate::images::Image;
use std::path::Path;
use std::sync::OnceLock;

pub(super) static KIND: Kind = Kind {
    name: "pixels",
    argument: None,
    about: "the samples of images of one size, divided by 255",
    open: |_, resize| match resize {
        None => Ok(Box::new(Pixels { first: OnceLock::new() })),
        Some(_) => {
            Err(Error::Recipe("pixels are taken as they are: leave --resize out, or resize the images".to_owned()))
        }
    },
};

struct Pixels {
    /// The first image seen, whose size all others must have.
    first: OnceLock<(String, [usize; 3])>,
}

impl Pixels {
    fn check(&self, image: &Image) -> Result<()> {
        let size = [image.height, image.width, image.channels];
        let (first, expected) = self.first.get_or_init(|| (image.origin.clone(), size));
        if *expected != size {
            let of_first = Image {
                origin: String::new(),
                height: expected[0],
                width: expected[1],
                channels: expected[2],
                samples: Vec::new(),
            };
            let message = format!("is {}, but {first} is {}", image.size(), of_first.size());
            let remedy =
                "pixels compare only between images of one size and kind: convert them, or use another extractor";
            return Err(Error::model(Path::new(&image.origin), format!("{message}; {remedy}")));
        }
        if image.samples.len() > MOST_NUMBERS {
            let message = format!("has {} samples; pixels are compared of at most {MOST_NUMBERS}", image.samples.len());
            return Err(Error::model(
                Path::new(&image.origin),
                format!("{message}: make the images smaller, or use another extractor"),
            ));
        }
        Ok(())
    }
}

impl Extractor for Pixels {
    fn name(&self) -> &str {
        "pixels"
    }

    fn id(&self) -> String {
        match self.first.get() {
            Some((_, [height, width, channels])) => format!("pixels of {width}×{height}×{channels}"),
            None => "pixels".to_owned(),
        }
    }

    fn features(&self, images: &[Image]) -> Result<Vec<f32>> {
        images.iter().try_for_each(|image| self.check(image))?;
        Ok(images.iter().flat_map(|image| &image.samples).map(|&sample| f32::from(sample) / 255.0).collect())
    }
}
