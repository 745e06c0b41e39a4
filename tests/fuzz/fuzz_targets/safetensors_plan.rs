//! Arbitrary tensors to be written: the plan is an error, or the official crate and our reader find what was asked for.

#![no_main]

use ckptmerge_format::{DType, Format, Metadata, TensorSpec};
use ckptmerge_format_safetensors::Safetensors;
use ckptmerge_fuzz::{Table, checked_index, table, written};
use libfuzzer_sys::arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;

/// The longest file, in bytes, that is written out and read again.
const FILE: u64 = 1 << 20;

/// Names that collide often, and some that mean something.
const NAMES: [&str; 8] = ["a", "b", "c", "", "__metadata__", "DCP_SHARDING_INFO", "format", "weight\n\"\u{1f}"];

#[derive(Debug)]
struct Request {
    tensors: Vec<TensorSpec>,
    metadata: Metadata,
}

fn name(u: &mut Unstructured<'_>) -> Result<String> {
    if u.ratio(3, 4)? { Ok((*u.choose(&NAMES)?).to_owned()) } else { String::arbitrary(u) }
}

fn tensor(u: &mut Unstructured<'_>) -> Result<TensorSpec> {
    let dtypes: Vec<_> = DType::all().collect();
    let size = |u: &mut Unstructured<'_>| if u.ratio(7, 8)? { u.int_in_range(0..=9) } else { u64::arbitrary(u) };
    let shape = (0..u.int_in_range(0..=4)?).map(|_| size(u)).collect::<Result<_>>()?;
    let alias_of = if u.ratio(1, 4)? { Some(name(u)?) } else { None };
    Ok(TensorSpec { name: name(u)?, dtype: *u.choose(&dtypes)?, shape, alias_of })
}

impl<'a> Arbitrary<'a> for Request {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let tensors = (0..u.int_in_range(0..=12)?).map(|_| tensor(u)).collect::<Result<_>>()?;
        let metadata = (0..u.int_in_range(0..=3)?).map(|_| Ok((name(u)?, name(u)?))).collect::<Result<_>>()?;
        Ok(Self { tensors, metadata })
    }
}

fuzz_target!(|request: Request| {
    let Request { tensors, metadata } = request;
    let Ok(plan) = Safetensors.plan_write(&tensors, &metadata) else { return };
    let Some(file) = written(&plan, &tensors, FILE) else { return };
    let index = checked_index(&file).expect("what was planned cannot be read");
    let wanted: Table = tensors.into_iter().map(|t| (t.name, (t.dtype, t.shape, t.alias_of))).collect();
    assert_eq!((table(&index), index.metadata), (wanted, metadata));
});
