//! Elements that lie apart, put together: views, boxes of several files, other byte orders, and what is refused.
//!
//! No format writes such pieces at will, so `src/checkpoint/gather.rs` is compiled here a second time and called itself.

#[path = "../../src/checkpoint/gather.rs"]
mod gather;

/// What `gather` has beside it in the library.
mod file {
    pub(super) use ckptmerge::checkpoint::DataFile;
}

use super::BOTH;
use crate::model::{Outcome, Random};
use ckptmerge::IoMode;
use ckptmerge::checkpoint::DataFile;
use ckptmerge_format::{Piece, Pieces};
use gather::Gather;
use std::path::Path;
use tempfile::tempdir;

/// A piece that begins at the tensor's first element.
fn piece(offset: u64, shape: &[u64], strides: &[u64]) -> Pieces {
    Pieces::strided(offset, shape, strides)
}

/// Two files of so many random bytes, and their content.
fn two_files(folder: &Path, bytes: usize, io: IoMode) -> Outcome<(Vec<DataFile>, [Vec<u8>; 2])> {
    let mut random = Random(5);
    let mut content = [Vec::new(), Vec::new()];
    let mut files = Vec::new();
    for (number, content) in content.iter_mut().enumerate() {
        content.extend((0..bytes.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()));
        content.truncate(bytes);
        let path = folder.join(format!("{number}.bin"));
        std::fs::write(&path, &content)?;
        files.push(DataFile::open(&path, io)?);
    }
    Ok((files, content))
}

/// What a tensor of these pieces is, from the interface's words, an element at a time.
fn by_definition(pieces: &Pieces, width: usize, big_endian: bool, content: &[Vec<u8>]) -> Vec<u8> {
    let total: u64 = pieces.grid.iter().product();
    let mut out = Vec::new();
    for number in 0..total {
        let mut rest = number;
        let mut at = vec![0; pieces.grid.len()];
        for dimension in (0..at.len()).rev() {
            at[dimension] = rest % pieces.grid[dimension];
            rest /= pieces.grid[dimension];
        }
        let within = |piece: &Piece| -> Option<u64> {
            (0..at.len()).try_fold(0, |element, i| {
                let step = at[i].checked_sub(piece.origin[i]).filter(|step| *step < piece.shape[i])?;
                Some(element + step * piece.strides[i])
            })
        };
        let mut holders = pieces.boxes.iter().filter_map(|piece| Some((piece, within(piece)?)));
        let (piece, element) = holders.next().expect("every element is in a box");
        assert!(holders.next().is_none(), "an element is in two boxes");
        let start = piece.offset as usize + element as usize * width;
        let bytes = &content[piece.file][start..start + width];
        if big_endian { out.extend(bytes.iter().rev()) } else { out.extend(bytes) }
    }
    out
}

/// Reads it whole, one element at a time and in runs of five.
#[track_caller]
fn check(gather: &Gather, files: &[DataFile], width: usize, expected: &[u8], what: &str) {
    let count = expected.len() / width;
    for run in [count, 1, 5] {
        for start in (0..count).step_by(run.max(1)) {
            let end = (start + run).min(count);
            let mut out = vec![0xee; (end - start) * width];
            gather.read(files, start as u64, &mut out).expect("the files are as long as they were");
            assert_eq!(out, expected[start * width..end * width], "{what}: elements {start}..{end}");
        }
    }
}

#[test]
fn views_by_hand_come_out_in_row_major_order() -> Outcome {
    let folder = tempdir()?;
    // A name, the pieces, and numbers of elements in the order in which they are to come.
    let cases: Vec<(&str, Pieces, Vec<usize>)> = vec![
        ("as it lies", piece(0, &[2, 3], &[3, 1]), vec![0, 1, 2, 3, 4, 5]),
        ("transposed", piece(0, &[3, 2], &[1, 3]), vec![0, 3, 1, 4, 2, 5]),
        ("every second column of three rows", piece(1, &[3, 2], &[4, 2]), vec![0, 2, 4, 6, 8, 10]),
        ("a row expanded", piece(2, &[3, 2], &[0, 1]), vec![0, 1, 0, 1, 0, 1]),
        ("a column expanded", piece(3, &[2, 3], &[1, 0]), vec![0, 0, 0, 1, 1, 1]),
        ("one element everywhere", piece(3, &[2, 2, 2], &[0, 0, 0]), vec![0; 8]),
        ("a scalar", piece(7, &[], &[]), vec![0]),
        ("one element with foolish strides", piece(7, &[1, 1], &[1 << 60, 1 << 60]), vec![0]),
        ("a diagonal", piece(0, &[3], &[4]), vec![0, 4, 8]),
        ("permuted", piece(0, &[2, 2, 3], &[1, 6, 2]), vec![0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11]),
        // N C H W of 1 2 2 2, stored as N H W C.
        ("channels last", piece(0, &[1, 2, 2, 2], &[8, 1, 4, 2]), vec![0, 2, 4, 6, 1, 3, 5, 7]),
    ];
    for io in BOTH {
        let (files, content) = two_files(folder.path(), 300, io)?;
        for (what, pieces, order) in &cases {
            for (width, big_endian) in [(1, false), (2, false), (2, true), (4, true), (8, false), (8, true)] {
                let gather = Gather::new(pieces.clone(), order.len() as u64, width as u64, big_endian, &[300, 300])?;
                assert_eq!(gather.files().collect::<Vec<_>>(), [0]);
                assert_eq!((gather.width(), gather.is_big_endian()), (width as u64, big_endian));
                let offset = pieces.boxes[0].offset as usize;
                let element = |&number: &usize| content[0][offset + number * width..][..width].iter().copied();
                let expected: Vec<u8> = match big_endian {
                    false => order.iter().flat_map(element).collect(),
                    true => order.iter().flat_map(|number| element(number).rev()).collect(),
                };
                assert_eq!(by_definition(pieces, width, big_endian, &content), expected, "{what}");
                check(&gather, &files, width, &expected, &format!("{what}, {width}, {big_endian}, {io:?}"));
            }
        }
    }
    Ok(())
}

#[test]
fn boxes_of_two_files_are_put_together() -> Outcome {
    let folder = tempdir()?;
    let boxed = |file, offset, origin: &[u64], shape: &[u64], strides: &[u64]| Piece {
        file,
        offset,
        origin: origin.to_vec(),
        shape: shape.to_vec(),
        strides: strides.to_vec(),
    };
    let flat = Pieces {
        grid: vec![11],
        boxes: vec![
            boxed(1, 3, &[4], &[5], &[1]),
            boxed(0, 64, &[9], &[2], &[1]),
            boxed(0, 0, &[0], &[4], &[2]),
            boxed(1, 0, &[9], &[0], &[1]),
        ],
    };
    // Four quarters of unequal size, one of them transposed.
    let quarters = Pieces {
        grid: vec![3, 5],
        boxes: vec![
            boxed(0, 5, &[0, 0], &[2, 3], &[3, 1]),
            boxed(1, 2, &[0, 3], &[2, 2], &[1, 2]),
            boxed(1, 90, &[2, 0], &[1, 3], &[0, 1]),
            boxed(0, 200, &[2, 3], &[1, 2], &[7, 0]),
        ],
    };
    for io in BOTH {
        let (files, content) = two_files(folder.path(), 300, io)?;
        for (pieces, count) in [(&flat, 11), (&quarters, 15)] {
            for (width, big_endian) in [(1, false), (2, true), (4, false), (4, true), (8, true)] {
                let gather = Gather::new(pieces.clone(), count, width as u64, big_endian, &[300, 300])?;
                assert_eq!(gather.files().collect::<Vec<_>>(), [0, 1], "each once");
                let expected = by_definition(pieces, width, big_endian, &content);
                check(&gather, &files, width, &expected, &format!("{count} elements, {width}, {io:?}"));
            }
        }
    }
    Ok(())
}

/// Cuts a box of the grid into some more, each with strides of its own over one of two files.
fn partition(random: &mut Random, origin: Vec<u64>, shape: Vec<u64>, depth: u32, boxes: &mut Vec<Piece>) {
    let dimension = random.below(shape.len() as u64) as usize;
    if depth > 0 && shape[dimension] > 1 {
        let left = 1 + random.below(shape[dimension] - 1);
        let (mut first, mut second, mut second_origin) = (shape.clone(), shape.clone(), origin.clone());
        first[dimension] = left;
        second[dimension] -= left;
        second_origin[dimension] += left;
        partition(random, origin, first, depth - 1, boxes);
        partition(random, second_origin, second, depth - 1, boxes);
        return;
    }
    let strides = shape.iter().map(|_| random.below(9)).collect();
    boxes.push(Piece { file: random.below(2) as usize, offset: random.below(100), origin, shape, strides });
}

#[test]
fn any_partition_of_any_grid_is_put_together() -> Outcome {
    let folder = tempdir()?;
    let mut random = Random(11);
    let mut most_boxes = 0;
    let opened = BOTH.map(|io| two_files(folder.path(), 4096, io));
    for round in 0..300 {
        let grid: Vec<u64> = (0..1 + random.below(4)).map(|_| 1 + random.below(6)).collect();
        let mut boxes = Vec::new();
        let depth = random.below(5) as u32;
        partition(&mut random, vec![0; grid.len()], grid.clone(), depth, &mut boxes);
        most_boxes = most_boxes.max(boxes.len());
        let pieces = Pieces { grid, boxes };
        let count = pieces.grid.iter().product();
        let width = [1, 2, 4, 8][random.below(4) as usize];
        let big_endian = random.below(2) == 1;
        let gather = Gather::new(pieces.clone(), count, width, big_endian, &[4096, 4096])?;
        for opened in &opened {
            let (files, content) = opened.as_ref().map_err(ToString::to_string)?;
            let expected = by_definition(&pieces, width as usize, big_endian, content);
            check(&gather, files, width as usize, &expected, &format!("round {round}: {pieces:?}"));
        }
    }
    assert!(most_boxes > 8, "at most {most_boxes} boxes");
    Ok(())
}

/// A tensor of F32 cut into `cuts` along each dimension, its boxes one behind the other in a file, in no order.
fn cut_evenly(grid: &[u64], cuts: &[u64]) -> Pieces {
    let count: u64 = cuts.iter().product();
    let shape: Vec<u64> = grid.iter().zip(cuts).map(|(size, cuts)| size / cuts).collect();
    let elements: u64 = shape.iter().product();
    let mut strides = vec![1; shape.len()];
    for d in (1..shape.len()).rev() {
        strides[d - 1] = strides[d] * shape[d];
    }
    let place = |number: u64| {
        let mut rest = number;
        let mut origin = vec![0; cuts.len()];
        for d in (0..cuts.len()).rev() {
            origin[d] = rest % cuts[d] * shape[d];
            rest /= cuts[d];
        }
        origin
    };
    // 7919 is prime and divides no count used here, so that every number comes once.
    let numbers = (0..count).map(|i| i * 7919 % count);
    let boxed = |number| Piece {
        file: 0,
        offset: number * elements * 4,
        origin: place(number),
        shape: shape.clone(),
        strides: strides.clone(),
    };
    Pieces { grid: grid.to_vec(), boxes: numbers.map(boxed).collect() }
}

#[test]
fn many_boxes_are_checked_and_found_quickly() -> Outcome {
    let folder = tempdir()?;
    let grids: [[&[u64]; 2]; 5] = [
        [&[400_000], &[100_000]],
        [&[4, 100_000], &[1, 100_000]],
        [&[800, 500], &[100, 100]],
        [&[100, 40, 100], &[50, 20, 10]],
        [&[10, 20, 20, 100], &[10, 10, 10, 10]],
    ];
    let bytes = 1_600_000;
    let (files, content) = two_files(folder.path(), bytes, IoMode::Mmap)?;
    let begun = seconds_of_this_thread();
    for [grid, cuts] in grids {
        let pieces = cut_evenly(grid, cuts);
        assert!(pieces.boxes.len() >= 10_000);
        let gather = Gather::new(pieces.clone(), 400_000, 4, false, &[bytes as u64])?;
        let mut out = vec![0; bytes];
        gather.read(&files, 0, &mut out)?;
        for number in (0..400_000u64).step_by(9973) {
            let mut rest = number;
            let mut at = vec![0; grid.len()];
            for d in (0..grid.len()).rev() {
                at[d] = rest % grid[d];
                rest /= grid[d];
            }
            let holds = |piece: &&Piece| {
                at.iter().zip(&piece.origin).zip(&piece.shape).all(|((at, from), size)| at >= from && *at < from + size)
            };
            let piece = pieces.boxes.iter().find(holds).ok_or("no box holds it")?;
            let within: u64 = (0..at.len()).map(|d| (at[d] - piece.origin[d]) * piece.strides[d]).sum();
            let (from, to) = ((piece.offset + within * 4) as usize, number as usize * 4);
            assert_eq!(out[to..to + 4], content[0][from..from + 4], "{grid:?}: element {number}");
        }
        // One box in another's place: as many elements, but not each once.
        let mut twice = pieces.clone();
        twice.boxes[5].origin = twice.boxes[7000].origin.clone();
        let error = Gather::new(twice, 400_000, 4, false, &[bytes as u64]).expect_err("a box stands twice");
        assert_eq!(error.to_string(), "its pieces do not cover it exactly once", "{grid:?}");
    }
    // Comparing all pairs of 100,000 would take minutes.
    let taken = begun.zip(seconds_of_this_thread()).map_or(0.0, |(begun, now)| now - begun);
    assert!(taken < 30.0, "{taken} s");
    Ok(())
}

/// What this thread has computed so far, whatever else runs on the machine; none where the system does not tell.
fn seconds_of_this_thread() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(text.split(' ').next()?.parse::<f64>().ok()? / 1e9)
}

#[test]
fn boxes_cut_along_many_dimensions_are_checked_as_well() {
    // Each of 12 dimensions cut once, and a box split off at a corner.
    let grid = [2; 12];
    let pieces = cut_evenly(&grid, &[2; 12]);
    assert_eq!(pieces.boxes.len(), 4096);
    Gather::new(pieces.clone(), 4096, 4, false, &[1 << 20]).expect("it is a partition");
    let mut twice = pieces;
    twice.boxes[7].origin = twice.boxes[9].origin.clone();
    Gather::new(twice, 4096, 4, false, &[1 << 20]).expect_err("a box stands twice");
    let many = cut_evenly(&[2; 13], &[2; 13]);
    let error = Gather::new(many, 8192, 4, false, &[1 << 20]).expect_err("too much to check");
    assert_eq!(error.to_string(), "it is cut along 13 dimensions into 8192 pieces; write it again in fewer pieces");
}

#[test]
fn dimensions_that_lie_together_are_joined() -> Outcome {
    let boxed = |offset, origin: &[u64], shape: &[u64], strides: &[u64]| Piece {
        file: 0,
        offset,
        origin: origin.to_vec(),
        shape: shape.to_vec(),
        strides: strides.to_vec(),
    };
    let cases: [(Pieces, &[u64]); 6] = [
        (piece(0, &[2, 3, 4], &[12, 4, 1]), &[24]),
        (piece(0, &[2, 1, 3, 4], &[24, 5, 4, 1]), &[2, 12]),
        (piece(0, &[4, 3], &[1, 4]), &[4, 3]),
        (piece(0, &[], &[]), &[]),
        // Halves along the first dimension, and along the second.
        (
            Pieces {
                grid: vec![4, 3, 2],
                boxes: vec![
                    boxed(0, &[0, 0, 0], &[1, 3, 2], &[99, 2, 1]),
                    boxed(24, &[1, 0, 0], &[3, 3, 2], &[6, 2, 1]),
                ],
            },
            &[24],
        ),
        (
            Pieces {
                grid: vec![2, 4, 2],
                boxes: vec![
                    boxed(0, &[0, 0, 0], &[2, 1, 2], &[2, 2, 1]),
                    boxed(64, &[0, 1, 0], &[2, 3, 2], &[6, 2, 1]),
                ],
            },
            &[2, 8],
        ),
    ];
    for (pieces, grid) in cases {
        let count = pieces.grid.iter().product();
        let gather = Gather::new(pieces.clone(), count, 4, false, &[1000])?;
        assert_eq!(gather.pieces().grid, grid, "{pieces:?}");
    }
    Ok(())
}

#[test]
fn elements_far_apart_are_fetched_one_by_one() -> Outcome {
    const STRIDE: u64 = 400_000;
    let folder = tempdir()?;
    for io in BOTH {
        let (files, content) = two_files(folder.path(), 3_200_008, io)?;
        let pieces = piece(3, &[2, 4], &[STRIDE / 8, 2 * STRIDE / 8]);
        let gather = Gather::new(pieces.clone(), 8, 8, true, &[3_200_008])?;
        check(&gather, &files, 8, &by_definition(&pieces, 8, true, &content), &format!("{io:?}"));
    }
    Ok(())
}

#[test]
fn pieces_that_do_not_fit_are_refused() {
    let boxed = |offset, origin: &[u64], shape: &[u64], strides: &[u64]| Piece {
        file: 0,
        offset,
        origin: origin.to_vec(),
        shape: shape.to_vec(),
        strides: strides.to_vec(),
    };
    let halves = |second: Piece| Pieces { grid: vec![4, 2], boxes: vec![boxed(0, &[0, 0], &[2, 2], &[2, 1]), second] };
    let other_file = |file| {
        let mut pieces = halves(boxed(8, &[2, 0], &[2, 2], &[2, 1]));
        pieces.boxes[1].file = file;
        pieces
    };
    let once = "its pieces do not cover it exactly once";
    let past = "its bytes reach past the end of the file";
    let out = "a piece reaches out of the tensor";
    let dimensions = "a piece has another number of dimensions";
    let cases: Vec<(&str, Pieces, &str)> = vec![
        ("an overlap of one row and a gap", halves(boxed(8, &[1, 0], &[2, 2], &[2, 1])), once),
        ("an overlap of as many elements as a gap", halves(boxed(8, &[0, 0], &[2, 2], &[2, 1])), once),
        ("a gap", halves(boxed(8, &[2, 0], &[1, 2], &[2, 1])), once),
        ("too much", halves(boxed(8, &[1, 0], &[3, 2], &[2, 1])), once),
        ("nothing at all", Pieces { grid: vec![4, 2], boxes: vec![] }, once),
        ("out of the grid", halves(boxed(8, &[2, 1], &[2, 2], &[2, 1])), out),
        ("an origin that overflows", halves(boxed(8, &[u64::MAX, 0], &[2, 2], &[2, 1])), out),
        ("past the end by a byte", halves(boxed(85, &[2, 0], &[2, 2], &[2, 1])), past),
        ("an offset past the end", halves(boxed(1 << 40, &[2, 0], &[2, 2], &[2, 1])), past),
        ("an offset that overflows", halves(boxed(u64::MAX, &[2, 0], &[2, 2], &[2, 1])), past),
        ("a stride past the end", halves(boxed(8, &[2, 0], &[2, 2], &[22, 1])), past),
        ("a stride that overflows", halves(boxed(8, &[2, 0], &[2, 2], &[u64::MAX, 1])), past),
        ("strides that overflow together", halves(boxed(8, &[2, 0], &[2, 2], &[u64::MAX, u64::MAX])), past),
        ("a width that overflows", halves(boxed(8, &[2, 0], &[2, 2], &[u64::MAX / 2, 1])), past),
        ("a file that is not there", other_file(1), past),
        ("too few dimensions", halves(boxed(8, &[2], &[4], &[1])), dimensions),
        ("too few strides", halves(boxed(8, &[2, 0], &[2, 2], &[1])), dimensions),
        (
            "another number of elements",
            Pieces { grid: vec![9], boxes: vec![boxed(0, &[0], &[9], &[1])] },
            "its pieces are laid out for another number of elements",
        ),
        (
            "a grid that overflows",
            Pieces { grid: vec![1 << 33, 1 << 33], boxes: vec![] },
            "its pieces are laid out for another number of elements",
        ),
    ];
    for (what, pieces, message) in cases {
        let error = Gather::new(pieces, 8, 4, false, &[100]).expect_err(what);
        assert_eq!(error.to_string(), message, "{what}");
    }
    let fits = halves(boxed(84, &[2, 0], &[2, 2], &[2, 1]));
    Gather::new(fits, 8, 4, false, &[100]).expect("up to the last byte is inside");
    let empty = Pieces { grid: vec![0, 3], boxes: vec![boxed(1 << 40, &[0, 0], &[0, 3], &[1, 1])] };
    let gather = Gather::new(empty, 0, 4, false, &[100]).expect("nothing lies nowhere");
    gather.read(&[], 0, &mut []).expect("nothing is read");
}
