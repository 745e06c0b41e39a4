//! Writes seeds/: small valid files by the official crate. Run: cargo run --example seeds

use safetensors::tensor::{Dtype, TensorView, serialize};
use std::collections::HashMap;

fn main() {
    let text = |pairs: &[(&str, &str)]| -> Option<HashMap<String, String>> {
        Some(pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect())
    };
    let all = "BOOL F4 F6_E2M3 F6_E3M2 U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ I16 U16 F16 BF16 I32 U32 \
               F32 C64 F64 I64 U64";
    let (few, all) = (vec!["F32", "BF16", "F4"], all.split_whitespace().collect());
    type Seed<'a> = (&'a str, Vec<&'a str>, &'a [usize], Option<HashMap<String, String>>);
    let seeds: [Seed<'_>; 7] = [
        ("empty", vec![], &[], None),
        ("text", vec![], &[], text(&[("format", "pt")])),
        ("scalar", vec!["F16"], &[], None),
        ("no-elements", vec!["I64"], &[0, 3], None),
        ("few", few.clone(), &[2, 4], text(&[("format", "pt")])),
        ("tied", few, &[8], text(&[("lm_head.weight", "F32")])),
        ("every-type", all, &[4], None),
    ];
    for (name, dtypes, shape, text) in seeds {
        let elements: usize = shape.iter().product();
        let views: Vec<_> = dtypes
            .into_iter()
            .map(|name| {
                let dtype: Dtype = serde_json::from_value(name.into()).expect("a type of the crate");
                (name, dtype, (0..elements * dtype.bitsize() / 8).map(|i| i as u8).collect::<Vec<_>>())
            })
            .collect();
        let views = views.iter().map(|(name, dtype, data)| {
            (*name, TensorView::new(*dtype, shape.to_vec(), data).expect("the data has the shape's size"))
        });
        let file = serialize(views, text).expect("the crate writes its own types");
        let path = format!("{}/seeds/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
        std::fs::write(path, file).expect("seeds/ can be written");
    }
}
