//! Views of tensors: rows, joins, transposes and other shapes of whatever lies in files, against the same done to bytes.

use super::BOTH;
use crate::model::{Model, Outcome, Random, fixture, names_in};
use ckptmerge::checkpoint::{Checkpoint, Elements, View};
use ckptmerge::dtype::DType;
use ckptmerge::{IoMode, OpenOptions};
use std::path::{Path, PathBuf};
use tempfile::tempdir;

/// A tensor of whole blocks: their bytes in row-major order, and the shape they are in.
#[derive(Clone, Debug, PartialEq)]
struct Blocks {
    shape: Vec<u64>,
    blocks: Vec<Vec<u8>>,
}

impl Blocks {
    fn rows(&self, start: u64, end: u64) -> Self {
        let row: u64 = self.shape[1..].iter().product();
        let blocks = self.blocks[(start * row) as usize..(end * row) as usize].to_vec();
        Self { shape: [vec![end - start], self.shape[1..].to_vec()].concat(), blocks }
    }

    fn joined(&self, other: &Self) -> Self {
        let blocks = [&self.blocks[..], &other.blocks[..]].concat();
        Self { shape: [vec![self.shape[0] + other.shape[0]], self.shape[1..].to_vec()].concat(), blocks }
    }

    fn transposed(&self) -> Self {
        let (rows, columns) = (self.shape[0], self.shape[1]);
        let at = |column: u64| (0..rows).map(move |row| (row * columns + column) as usize);
        let blocks = (0..columns).flat_map(at).map(|number| self.blocks[number].clone()).collect();
        Self { shape: vec![columns, rows], blocks }
    }
}

fn blocks(model: &Checkpoint, name: &str) -> Outcome<Blocks> {
    let view = model.get(name).ok_or("no such tensor")?;
    let (dtype, mut shape) = (view.tensor.dtype, view.tensor.shape.clone());
    if let Some(last) = shape.last_mut() {
        *last /= dtype.block_elements();
    }
    let mut buffer = Vec::new();
    let bytes = view.read(0..view.tensor.bytes, &mut buffer)?.to_vec();
    // In pieces of any size it is the same.
    for start in (0..view.tensor.bytes).step_by(7) {
        let end = view.tensor.bytes.min(start + 7);
        assert_eq!(view.read(start..end, &mut buffer)?, &bytes[start as usize..end as usize], "{name} {start}");
    }
    let blocks = bytes.chunks(dtype.block_bytes() as usize).map(<[u8]>::to_vec).collect();
    Ok(Blocks { shape, blocks })
}

/// The model under views that are all in its first part.
fn mapped(model: Checkpoint, views: Vec<(&str, Vec<u64>, Elements)>) -> ckptmerge::Result<Checkpoint> {
    let layout = model.layout().clone();
    let view =
        |(name, shape, elements): (&str, Vec<u64>, Elements)| View { name: name.to_owned(), part: 0, shape, elements };
    model.mapped(layout, views.into_iter().map(view).collect())
}

/// Tensors with more elements than this are not looked at one by one.
const LARGE: u64 = 10_000;

/// Everything that views can do to each tensor, and once more to what came out.
fn check(path: &Path, io: IoMode, random: &mut Random) -> Outcome<usize> {
    let open = || Checkpoint::open_with(path, &OpenOptions { io, assume: Some(DType::BF16), ..OpenOptions::default() });
    let mut checked = 0;
    let names: Vec<String> = open()?.tensors().iter().map(|tensor| tensor.name.clone()).collect();
    for name in &names {
        let model = open()?;
        let tensor = model.get(name).ok_or("it was there")?.tensor.clone();
        let block = tensor.dtype.block_elements();
        if tensor.shape.is_empty() || tensor.elements == 0 || tensor.elements > LARGE {
            continue;
        }
        let original = blocks(&model, name)?;
        let height = original.shape[0];
        let start = random.below(height);
        let end = start + 1 + random.below(height - start);
        let step = if tensor.shape.len() == 1 { block } else { 1 };
        let inner = tensor.shape[1..].to_vec();
        let shaped = |rows: u64| [vec![rows], inner.clone()].concat();
        let views = vec![
            ("rows", shaped((end - start) * step), Elements::Rows(name.clone(), start * step..end * step)),
            ("none", shaped(0), Elements::Rows(name.clone(), step..step)),
            ("twice", shaped(2 * height * step), Elements::Joined(vec![name.clone(), name.clone()])),
            ("whole", tensor.shape.clone(), Elements::Whole(name.clone())),
        ];
        let is_matrix = tensor.shape.len() == 2 && block == 1;
        let first = mapped(model, views)?;
        assert_eq!(blocks(&first, "rows")?, original.rows(start, end), "{name}");
        assert_eq!(blocks(&first, "twice")?, original.joined(&original), "{name}");
        assert_eq!(blocks(&first, "none")?.blocks.len(), 0, "{name}");
        assert_eq!(first.get("rows").ok_or("it is there")?.tensor.inputs(), std::slice::from_ref(name));
        assert_eq!(first.get("twice").ok_or("it is there")?.tensor.inputs(), [name.clone(), name.clone()]);

        // Rows across the seam of a join, joined with rows; then the other way round.
        let seam = height - 1..height + 1;
        let mut views =
            vec![("seam", shaped(2 * step), Elements::Rows("twice".to_owned(), seam.start * step..seam.end * step))];
        let both = Elements::Joined(vec!["twice".to_owned(), "rows".to_owned()]);
        views.push(("more", shaped((2 * height + end - start) * step), both));
        if is_matrix {
            let turned = vec![tensor.shape[1], 2 * height];
            views.push(("turned", turned, Elements::Transposed("twice".to_owned())));
        }
        let second = mapped(first, views)?;
        let twice = original.joined(&original);
        let seam = twice.rows(seam.start, seam.end);
        assert_eq!(blocks(&second, "seam")?, seam, "{name}");
        assert_eq!(blocks(&second, "more")?, twice.joined(&original.rows(start, end)), "{name}");
        assert_eq!(second.get("seam").ok_or("it is there")?.tensor.inputs(), [name.clone(), name.clone()]);
        if is_matrix {
            assert_eq!(blocks(&second, "turned")?, twice.transposed(), "{name}");
            let width = tensor.shape[1];
            let column = random.below(width);
            let views = vec![
                ("column", vec![1, 2 * height], Elements::Rows("turned".to_owned(), column..column + 1)),
                ("back", vec![2 * height, width], Elements::Transposed("turned".to_owned())),
                ("flat", vec![2 * height * width], Elements::Whole("turned".to_owned())),
            ];
            let third = mapped(second, views)?;
            assert_eq!(blocks(&third, "column")?, twice.transposed().rows(column, column + 1), "{name}");
            assert_eq!(blocks(&third, "back")?, twice, "{name}");
            assert_eq!(blocks(&third, "flat")?.blocks, twice.transposed().blocks, "{name}");
        }
        checked += 1;
    }
    Ok(checked)
}

#[test]
fn views_of_every_kind_of_layout_are_what_they_say() -> Outcome {
    let folder = tempdir()?;
    let mut random = Random(17);
    let mut dense = Model::new();
    for (number, dtype) in [DType::F32, DType::BF16, DType::I64, DType::U8].into_iter().enumerate() {
        for (rank, shape) in [&[5][..], &[3, 4], &[4, 1, 1], &[2, 3, 2, 2], &[1, 7]].into_iter().enumerate() {
            let bytes = dtype.size_of(shape.iter().product()).ok_or("it fits")?;
            let bytes = (0..bytes).map(|_| random.next() as u8).collect();
            dense = dense.raw(&format!("{number}.{rank}"), dtype, shape, bytes);
        }
    }
    let dense = dense.unaligned().write(folder.path().join("dense.st"))?;
    let fixtures = [
        "convert/strided.ckpt",
        "pytorch/big-endian.pt",
        "pytorch/views.pt",
        "numpy/fortran-big-endian.npy",
        "numpy/compressed.npz",
        "gguf/files/types.gguf",
        "dcp/sharded",
        "dcp/mesh",
    ];
    let all: Vec<PathBuf> = fixtures.into_iter().map(fixture).chain([dense]).collect();
    for path in all {
        for io in BOTH {
            let checked = check(&path, io, &mut random).map_err(|error| format!("{}: {error}", path.display()))?;
            assert!(checked > 0, "{} has nothing to view", path.display());
        }
    }
    Ok(())
}

#[test]
fn views_of_odd_strides_are_what_they_say() -> Outcome {
    let (mut random, mut checked) = (Random(19), 0);
    for name in names_in(&fixture("pytorch")) {
        // Most of these are to be refused when they are opened, which is tested elsewhere.
        let path = fixture("pytorch").join(&name);
        if Checkpoint::open(&path).is_ok() {
            checked += check(&path, IoMode::Mmap, &mut random).map_err(|error| format!("{name}: {error}"))?;
        }
    }
    assert!(checked > 100, "only {checked} tensors");
    Ok(())
}

#[test]
fn what_is_one_run_of_bytes_stays_mapped() -> Outcome {
    let folder = tempdir()?;
    let model = Model::new().with("w", DType::F32, &[4, 3], &Random(1).values(12)).write(folder.path().join("m.st"))?;
    let w = || "w".to_owned();
    let model = mapped(
        Checkpoint::open_with(model, &IoMode::Mmap.into())?,
        vec![
            ("rows", vec![2, 3], Elements::Rows(w(), 1..3)),
            ("conv", vec![4, 3, 1, 1], Elements::Whole(w())),
            ("turned", vec![3, 4], Elements::Transposed(w())),
        ],
    )?;
    let is_mapped = |name: &str| model.get(name).is_some_and(|view| view.is_mapped());
    assert_eq!(["rows", "conv", "turned"].map(is_mapped), [true, true, false]);
    // A column is one again.
    let model = mapped(model, vec![("column", vec![4, 1], Elements::Transposed("row".to_owned()))]);
    assert!(model.is_err(), "there is no `row`");
    Ok(())
}

#[test]
fn views_that_cannot_be_are_refused() -> Outcome {
    let folder = tempdir()?;
    let path = Model::new()
        .with("w", DType::F32, &[4, 3], &[0.0; 12])
        .with("h", DType::F16, &[4, 3], &[0.0; 12])
        .with("v", DType::F32, &[3], &[0.0; 3])
        .with("s", DType::F32, &[], &[0.0])
        .write(folder.path().join("m.st"))?;
    let of = |name: &str| name.to_owned();
    let cases: Vec<(Vec<u64>, Elements, &str)> = vec![
        (vec![5, 3], Elements::Whole(of("w")), "tensor `w`: has another number of elements than its view"),
        (vec![1, 3], Elements::Rows(of("w"), 4..5), "tensor `w`: has 4 rows, and not those from 4 to 5"),
        (vec![2, 3], Elements::Rows(of("w"), 0..1), "tensor `w`: has another number of elements than its view"),
        (vec![1], Elements::Rows(of("s"), 0..1), "tensor `s`: has no dimensions and so no rows"),
        (vec![3], Elements::Transposed(of("v")), "tensor `v`: has the shape [3], but only matrices are transposed"),
        (
            vec![5, 3],
            Elements::Joined(vec![of("w"), of("v")]),
            "tensor `w`: cannot be joined with what has other dimensions",
        ),
        (vec![8, 3], Elements::Joined(vec![of("w"), of("h")]), "tensor `w`: has another type"),
        (vec![2], Elements::Joined(vec![of("s"), of("s")]), "tensor `s`: cannot be joined"),
        (vec![0], Elements::Joined(vec![]), "is made of nothing"),
        (vec![1], Elements::Whole(of("ww")), "no tensor `ww`"),
        (vec![u64::MAX, 3], Elements::Whole(of("w")), "tensor `w`"),
    ];
    for (shape, elements, message) in cases {
        let error = mapped(Checkpoint::open(&path)?, vec![("x", shape, elements.clone())]).expect_err(message);
        assert!(error.to_string().contains(message), "{elements:?}: {error}");
    }
    let twice = vec![("x", vec![3], Elements::Whole(of("v"))), ("x", vec![4, 3], Elements::Whole(of("w")))];
    let error = mapped(Checkpoint::open(&path)?, twice).expect_err("two of a name");
    assert!(error.to_string().contains("two tensors would be called `x`"), "{error}");
    let model = Checkpoint::open(&path)?;
    let layout = model.layout().clone();
    let view = View { name: of("x"), part: 1, shape: vec![3], elements: Elements::Whole(of("v")) };
    assert!(model.mapped(layout, vec![view]).is_err(), "there is no second part");

    // Blocks of ggml lie along rows.
    let types = fixture("gguf/files/types.gguf");
    let open = || Checkpoint::open(&types);
    let is_matrix =
        |tensor: &&ckptmerge::checkpoint::Tensor| tensor.dtype.block_elements() > 1 && tensor.shape.len() == 2;
    let model = open()?;
    let tensor = model.tensors().iter().find(is_matrix).ok_or("there are matrices")?.clone();
    let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
    let error = mapped(model, vec![("x", vec![shape[1], shape[0]], Elements::Transposed(name.clone()))])
        .expect_err("blocks cannot be transposed");
    assert!(error.to_string().contains(&format!("tensor `{name}`: is {}, whose blocks", tensor.dtype)), "{error}");
    assert!(error.to_string().contains("--dtype"), "{error}");
    let thin = vec![shape[0] * shape[1], 1];
    let error = mapped(open()?, vec![("x", thin, Elements::Whole(name.clone()))]).expect_err("blocks are wider");
    assert!(error.to_string().contains("do not fit into rows of the shape"), "{error}");
    Ok(())
}

#[test]
fn ties_last_while_both_are_viewed_alike() -> Outcome {
    let folder = tempdir()?;
    let path = Model::new()
        .with("embed", DType::F32, &[4, 2], &Random(3).values(8))
        .text("head", "embed")
        .text("third", "embed")
        .write(folder.path().join("m.st"))?;
    let of = |name: &str| name.to_owned();
    let open = || Checkpoint::open(&path);
    let views = || {
        vec![
            ("h", vec![4, 2], Elements::Whole(of("head"))),
            ("e", vec![4, 2], Elements::Whole(of("embed"))),
            ("e top", vec![2, 2], Elements::Rows(of("embed"), 0..2)),
            ("h top", vec![2, 2], Elements::Rows(of("head"), 0..2)),
            ("h end", vec![2, 2], Elements::Rows(of("head"), 2..4)),
            ("t flat", vec![8], Elements::Whole(of("third"))),
            ("e turned", vec![2, 4], Elements::Transposed(of("embed"))),
            ("t turned", vec![2, 4], Elements::Transposed(of("third"))),
        ]
    };
    let model = mapped(open()?, views())?;
    let ties: Vec<(&str, &str)> =
        model.tensors().iter().filter_map(|tensor| Some((tensor.name.as_str(), tensor.alias_of.as_deref()?))).collect();
    assert_eq!(ties, [("h", "e"), ("h top", "e top"), ("t turned", "e turned")]);
    for (tied, target) in ties {
        assert_eq!(blocks(&model, tied)?, blocks(&model, target)?);
    }
    let alone = mapped(open()?, vec![("h", vec![4, 2], Elements::Whole(of("head")))])?;
    assert_eq!(alone.tensors()[0].alias_of, None);
    assert_eq!(blocks(&alone, "h")?, blocks(&open()?, "embed")?);
    Ok(())
}
