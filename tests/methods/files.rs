//! Every method on files: threads, ways to read, memory, types and shapes make no difference to what is computed.

use super::{Setup, set, setups};
use crate::model::{Contents, Model, Outcome, Random, read};
use ckptmerge::adapter::Unplaced;
use ckptmerge::dtype::DType;
use ckptmerge::recipe::{Conversion, Models, Plan, Recipe, Setting, Target};
use ckptmerge::stream::{Control, Settings};
use ckptmerge::{Checkpoint, IoMode};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use tempfile::tempdir;

/// Three models in files, what accompanies them, and the base, which is last.
pub(super) struct Files {
    pub(super) folder: tempfile::TempDir,
    pub(super) paths: Vec<PathBuf>,
}

/// How many files that is.
pub(super) const FILES: usize = 7;

/// Numbers of one of the files, in −1..1; those of companions are not negative.
pub(super) fn numbers(random: &mut Random, file: usize, n: usize) -> Vec<f64> {
    let values = random.values(n);
    if (3..6).contains(&file) { values.iter().map(|x| x.abs()).collect() } else { values }
}

impl Files {
    pub(super) fn new(models: &[Model]) -> Outcome<Self> {
        let folder = tempdir()?;
        let write = |(index, model): (usize, &Model)| model.write(folder.path().join(format!("{index}.safetensors")));
        let paths = models.iter().enumerate().map(write).collect::<Outcome<_>>()?;
        Ok(Self { folder, paths })
    }

    /// Merges by a setup's method.
    pub(super) fn merge(
        &self,
        setup: &Setup,
        dtype: Option<DType>,
        io: IoMode,
        settings: Settings,
    ) -> Outcome<Vec<u8>> {
        merge(&self.paths, &self.folder.path().join("out.safetensors"), setup, dtype, io, settings)
    }
}

fn merge(
    paths: &[PathBuf],
    out: &Path,
    setup: &Setup,
    dtype: Option<DType>,
    io: IoMode,
    settings: Settings,
) -> Outcome<Vec<u8>> {
    let mut recipe = Recipe { dtype, ..Recipe::new(setup.name())? };
    // Something is dropped, where anything can be.
    let half = [("density", 0.5), ("select_topk", 0.5)];
    for (name, value) in half {
        if set(&mut setup.terms(&[1]), name, value) {
            recipe.parameters.insert(name.to_owned(), vec![Setting::constant(value)]);
        }
    }
    let (models, companions) = (&paths[..setup.models], &paths[3..3 + setup.companions()]);
    let base = setup.has_base.then(|| paths[FILES - 1].as_path());
    let models = Models::open_with(models, companions, base, &io.into(), Unplaced::Error)?;
    let plan = Plan::new(&recipe, &models, &settings, Control::none())?;
    plan.emit(&Target::new(out), &settings, Control::none())?;
    Ok(std::fs::read(out)?)
}

fn settings(threads: usize, memory: Option<u64>) -> Settings {
    Settings { threads: NonZeroUsize::new(threads), memory, sync: false, device: None }
}

/// The setup with the most models of each method.
pub(super) fn largest() -> Vec<Setup> {
    let mut chosen: Vec<Setup> = Vec::new();
    for setup in setups() {
        match chosen.last_mut() {
            Some(last) if last.name() == setup.name() => *last = setup,
            _ => chosen.push(setup),
        }
    }
    chosen
}

/// Tensors of several tiles and units, and of all shapes that are special to a method.
fn model(random: &mut Random, file: usize) -> Model {
    let mut model = Model::new();
    let shapes: [&[u64]; 6] = [&[675, 200], &[1400], &[3, 4, 3, 3], &[1, 9], &[9, 1], &[]];
    for shape in shapes {
        let values = numbers(random, file, shape.iter().product::<u64>() as usize);
        model = model.with(&format!("{shape:?}"), DType::BF16, shape, &values);
    }
    model.with("empty", DType::BF16, &[4, 0], &[]).with("wide", DType::F32, &[2, 5], &numbers(random, file, 10))
}

#[test]
fn threads_reading_and_memory_change_no_byte() -> Outcome {
    let mut random = Random(11);
    let models: Vec<Model> = (0..FILES).map(|file| model(&mut random, file)).collect();
    let files = Files::new(&models)?;
    for setup in largest() {
        let one = files.merge(&setup, None, IoMode::Mmap, settings(1, None))?;
        let three = files.merge(&setup, None, IoMode::Mmap, settings(3, None))?;
        assert!(one == three, "{}: three threads write other bytes than one", setup.name());
        let small = files.merge(&setup, None, IoMode::Pread, settings(2, Some(1 << 20)))?;
        assert!(one == small, "{}: little memory and pread give other bytes", setup.name());
    }
    Ok(())
}

#[test]
fn types_are_those_of_the_numbers() -> Outcome {
    let mut random = Random(12);
    let shapes: [&[u64]; 3] = [&[6, 32], &[70], &[2, 3, 2, 2]];
    for dtype in [DType::BF16, DType::F16] {
        let mut narrow = Vec::new();
        for file in 0..FILES {
            let tensor = |model: Model, shape: &&[u64]| {
                let values = numbers(&mut random, file, shape.iter().product::<u64>() as usize);
                model.with(&format!("{shape:?}"), dtype, shape, &values)
            };
            narrow.push(shapes.iter().fold(Model::new(), tensor));
        }
        let narrow = Files::new(&narrow)?;
        let wide = narrow.paths.iter().map(|path| {
            let contents = read(path)?.tensors;
            let wide = |model: Model, (name, tensor): (&String, &crate::model::Tensor)| {
                model.with(name, DType::F32, &tensor.shape, &tensor.values())
            };
            Ok(contents.iter().fold(Model::new(), wide))
        });
        let wide = Files::new(&wide.collect::<Outcome<Vec<_>>>()?)?;
        for setup in largest() {
            let run = |files: &Files, dtype| -> Outcome<Contents> {
                files.merge(&setup, Some(dtype), IoMode::Auto, settings(2, None))?;
                read(&files.folder.path().join("out.safetensors"))
            };
            let exact = run(&narrow, DType::F32)?;
            assert_eq!(exact.tensors, run(&wide, DType::F32)?.tensors, "{} of {dtype}", setup.name());
            let rounded = run(&narrow, dtype)?;
            for (name, tensor) in &rounded.tensors {
                let expected: Vec<u8> =
                    exact.values(name).iter().flat_map(|x| crate::model::encode(dtype, *x)).collect();
                assert_eq!((tensor.dtype, &tensor.bytes), (dtype, &expected), "{} of {dtype}: {name}", setup.name());
            }
        }
    }
    Ok(())
}

/// Converts a model to a file of the target's ending.
fn convert(from: &Path, to: &Path, dtype: DType) -> Outcome {
    let model = Checkpoint::open_with(from, &IoMode::Auto.into())?;
    let conversion = Conversion { dtype: Some(dtype), ..Conversion::default() };
    let renamed = conversion.rename(model)?;
    conversion.plan(&renamed)?.emit(&Target::new(to), &settings(2, None), Control::none())?;
    Ok(())
}

/// Blocks of elements and the vectors that a method needs whole may not be the same.
#[test]
fn quantized_models_merge_as_their_numbers() -> Outcome {
    let mut random = Random(13);
    let model = |file| {
        let mut values = |n| numbers(&mut random, file, n);
        let (a, b) = (values(24 * 96), values(64));
        Model::new().with("a", DType::F32, &[24, 96], &a).with("b", DType::F32, &[2, 32], &b)
    };
    let files = Files::new(&(0..FILES).map(model).collect::<Vec<_>>())?;
    let folder = files.folder.path();
    let (mut quantized, mut plain) = (Vec::new(), Vec::new());
    for (index, path) in files.paths.iter().enumerate() {
        quantized.push(folder.join(format!("q{index}.gguf")));
        plain.push(folder.join(format!("p{index}.safetensors")));
        convert(path, &quantized[index], if index == 1 { DType::Q4_0 } else { DType::Q8_0 })?;
        convert(&quantized[index], &plain[index], DType::F32)?;
    }
    for setup in largest() {
        let run = |paths: &[PathBuf]| -> Outcome<Contents> {
            let out = folder.join("out.safetensors");
            merge(paths, &out, &setup, Some(DType::F32), IoMode::Auto, settings(2, None))?;
            read(&out)
        };
        let (found, expected) = (run(&quantized)?, run(&plain)?);
        assert_eq!(found.names(), ["a", "b"]);
        assert_eq!(found.tensors, expected.tensors, "{}", setup.name());
        // And back to blocks.
        merge(&quantized, &folder.join("out.gguf"), &setup, Some(DType::Q8_0), IoMode::Auto, settings(2, None))?;
    }
    Ok(())
}
