//! Images read, resized and written.

use super::{difference, golden, pictures};
use crate::model::{Outcome, fixture, names_in, snapshot};
use ckptmerge::Checkpoint;
use ckptmerge::images::{self, Image, Images, Set, resize};
use tempfile::tempdir;

fn all(set: &Set, batch: usize) -> Outcome<Vec<Image>> {
    let mut all = Vec::new();
    for batch in set.batches(batch) {
        all.extend(batch?);
    }
    Ok(all)
}

/// Red, green and blue of each pixel.
fn in_rgb(image: &Image) -> Vec<u8> {
    let repeats = 3 / image.channels;
    image.samples.iter().flat_map(|&sample| std::iter::repeat_n(sample, repeats)).collect()
}

#[test]
fn pictures_decode_as_pillow_decodes_them() -> Outcome {
    let set = Set::of_folder(&fixture("eval/decode"))?;
    let expected = Checkpoint::open(fixture("eval/decode.npz"))?;
    let pictures = all(&set, 4)?;
    let names = names_in(&fixture("eval/decode"));
    assert_eq!([names.len(), pictures.len(), expected.tensors().len()], [10; 3]);
    for (name, picture) in names.iter().zip(&pictures) {
        assert!(picture.origin.ends_with(name), "{} is not {name}: they are sorted by name", picture.origin);
        let view = expected.get(name).ok_or(name.to_owned())?;
        let mut buffer = Vec::new();
        let bytes = view.read(0..view.tensor.bytes, &mut buffer)?;
        assert_eq!(view.tensor.shape, [picture.height as u64, picture.width as u64, 3], "{name}");
        let is_grey = ["grey.png", "grey-alpha.png", "one-bit.png"].contains(&name.as_str());
        assert_eq!(picture.channels, if is_grey { 1 } else { 3 }, "{name}");
        // JPEG leaves the last bits of its transforms, and of colours at half the resolution, to the decoder.
        let bound = match name.as_str() {
            "rgb.JPG" => 2.0,
            "chroma.jpg" => 6.0,
            _ => 0.0,
        };
        let samples = in_rgb(picture);
        assert!(difference(&samples, bytes) <= bound, "{name}");
        let sum: i32 = samples.iter().zip(bytes).map(|(a, b)| (i32::from(*a) - i32::from(*b)).abs()).sum();
        assert!(f64::from(sum) <= 0.5 * samples.len() as f64, "{name}");
    }
    Ok(())
}

#[test]
fn arrays_of_numpy_are_images() -> Outcome {
    let read = |name: &str| -> Outcome<Vec<Image>> {
        let checkpoint = Checkpoint::open(fixture(&format!("eval/{name}")))?;
        let array = Set::array_in(&checkpoint)?.ok_or("there is no array of images")?.to_owned();
        all(&Set::of_array(checkpoint, &array)?, 3)
    };
    let (plain, compressed, grey) = (read("images.npz")?, read("images-compressed.npz")?, read("grey.npy")?);
    assert_eq!(plain.len(), 4);
    for ((plain, compressed), grey) in plain.iter().zip(&compressed).zip(&grey) {
        assert_eq!([plain.height, plain.width, plain.channels], [6, 5, 3]);
        assert_eq!([grey.height, grey.width, grey.channels], [6, 5, 1]);
        assert_eq!(plain.samples, compressed.samples);
        assert!(plain.samples.iter().step_by(3).eq(&grey.samples));
    }
    Ok(())
}

#[test]
fn images_resize_as_torch_and_pillow_resize_them() -> Outcome {
    let contents = golden("resize.safetensors")?;
    let cases: Vec<&str> = contents.names().into_iter().filter_map(|name| name.strip_suffix(".image")).collect();
    assert_eq!(cases.len(), 7);
    for case in cases {
        let image = pictures(&contents, &format!("{case}.image"))?.iter().next().ok_or("no image")?;
        for (way, bound) in [("pytorch", 2e-7), ("clean", 2e-5)] {
            let name = format!("{case}.{way}");
            let shape = &contents.tensors[&name].shape;
            let (height, width) = (shape[1] as usize, shape[2] as usize);
            let found = match way {
                "pytorch" => resize::bilinear(&image, 3, height, width),
                _ => resize::bicubic(&image, 3, height, width),
            };
            let off = difference(&found, &contents.values(&name));
            assert!(off <= bound, "{name} is off by {off}");
        }
    }
    Ok(())
}

#[test]
fn a_grid_is_torchvisions() -> Outcome {
    let contents = golden("grid.safetensors")?;
    for count in [1, 2, 5, 9] {
        let grid = images::grid(&pictures(&contents, &format!("{count}.images"))?)?;
        assert_eq!(grid, pictures(&contents, &format!("{count}.grid"))?, "of {count}");
    }
    Ok(())
}

#[test]
fn what_is_written_is_read_again() -> Outcome {
    let contents = golden("grid.safetensors")?;
    let folder = tempdir()?;
    for (count, channels) in [(5, 3), (9, 1)] {
        let written = pictures(&contents, &format!("{count}.images"))?;
        let expected: Vec<Vec<u8>> = written.iter().map(|image| image.samples).collect();
        let samples = |set: &Set| -> Outcome<Vec<Vec<u8>>> {
            let images = all(set, 2)?;
            assert!(images.iter().all(|image| image.channels == channels));
            Ok(images.into_iter().map(|image| image.samples).collect())
        };
        let pngs = folder.path().join(format!("samples-{count}"));
        images::write(&pngs, &written, 0)?;
        assert_eq!(names_in(&pngs)[1], "00001.png");
        assert_eq!(samples(&Set::of_folder(&pngs)?)?, expected);
        // Again, over the old ones.
        images::write(&pngs, &written, 0)?;
        let npz = folder.path().join("samples.npz");
        images::write(&npz, &written, 0)?;
        let checkpoint = Checkpoint::open(&npz)?;
        assert_eq!(Set::array_in(&checkpoint)?, Some("arr_0"));
        assert_eq!(checkpoint.tensors()[0].shape[3], channels as u64);
        assert_eq!(samples(&Set::of_array(checkpoint, "arr_0")?)?, expected);
        images::write(&folder.path().join("grid.png"), &written, 0)?;
        let grid = folder.path().join("of-the-grid");
        std::fs::create_dir(&grid)?;
        std::fs::rename(folder.path().join("grid.png"), grid.join("grid.png"))?;
        assert_eq!(samples(&Set::of_folder(&grid)?)?, [images::grid(&written)?.samples]);
        std::fs::remove_dir_all(&grid)?;
    }
    Ok(())
}

#[test]
fn nothing_is_lost_or_left_half_written() -> Outcome {
    let folder = tempdir()?;
    let one = Images { count: 1, height: 1, width: 2, channels: 1, samples: vec![1, 2] };
    let said = |path: &str, images: &Images| match images::write(&folder.path().join(path), images, 0) {
        Ok(()) => String::new(),
        Err(error) => error.to_string(),
    };
    std::fs::create_dir(folder.path().join("photos"))?;
    std::fs::write(folder.path().join("photos/00000.png.xmp"), "notes")?;
    let before = snapshot(folder.path());
    assert!(said("photos", &one).contains("`00000.png.xmp`, which would be lost"));
    assert!(said("images.jpg", &one).contains("NAME.png is one picture"));
    assert!(said("missing/images.npz", &one).contains("does not exist"));
    assert!(said("images.npz", &Images { samples: vec![1], ..one.clone() }).contains("1 samples"));
    assert!(
        said("images.npz", &Images { count: 0, samples: Vec::new(), ..one.clone() }).contains("one image at least")
    );
    assert_eq!(snapshot(folder.path()), before);
    Ok(())
}

#[test]
fn folders_without_images_say_so() -> Outcome {
    let folder = tempdir()?;
    let said = || Set::of_folder(folder.path()).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(said().contains("holds no images (png, jpg"));
    std::fs::create_dir(folder.path().join("class-1"))?;
    assert!(said().contains("images in folders below it are not read"));
    std::fs::write(folder.path().join("scan.tiff"), "II")?;
    assert!(said().contains("scan.tiff") && said().contains("convert it"));
    std::fs::remove_file(folder.path().join("scan.tiff"))?;

    let broken = |name: &str, bytes: &[u8]| -> Outcome<String> {
        std::fs::write(folder.path().join(name), bytes)?;
        let set = Set::of_folder(folder.path())?;
        let error = all(&set, 8).err().map(|error| error.to_string()).unwrap_or_default();
        std::fs::remove_file(folder.path().join(name))?;
        assert!(error.contains(name), "{error}");
        Ok(error)
    };
    let png = std::fs::read(fixture("eval/decode/rgb.png"))?;
    assert!(broken("cut.png", &png[..png.len() / 2])?.contains("cannot be decoded"));
    assert!(broken("empty.png", b"")?.contains("cannot be decoded"));
    assert!(broken("text.jpg", b"no picture")?.contains("cannot be decoded"));
    let huge = std::fs::read(fixture("eval/huge.png"))?;
    assert!(broken("huge.png", &huge)?.contains("cannot be decoded"));
    let deep = std::fs::read(fixture("eval/sixteen-bit.png"))?;
    assert!(broken("deep.png", &deep)?.contains("more than 8 bits"));
    Ok(())
}
