//! Where in a network a tensor is, read from its name alone.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};

/// The layer a tensor belongs to, and what it is in that layer.
///
/// The layer ends with the last number in the name: `model.layers.7.mlp.up_proj.weight` is `mlp.up_proj.weight` in
/// `model.layers.7`. A name without a number is its last part in the rest: `weight` in `model.norm`.
#[must_use]
pub fn layer_and_block(name: &str) -> (&str, &str) {
    let mut end = None;
    let mut start = 0;
    for part in name.split('.') {
        start += part.len() + 1;
        if is_number(part) && start <= name.len() {
            end = Some(start - 1);
        }
    }
    match end.or_else(|| name.rfind('.')) {
        Some(dot) => (&name[..dot], &name[dot + 1..]),
        None => (name, ""),
    }
}

/// The parts of a name, and the name up to each of them with its numbers left out: `a.*.b` for the last of `a.7.b.2`.
fn parts(name: &str) -> impl Iterator<Item = (&str, String)> {
    let mut before = String::new();
    name.split('.').map(move |part| {
        let place = before.clone();
        before += if is_number(part) { "*" } else { part };
        before.push('.');
        (part, place)
    })
}

fn is_number(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())
}

/// Splits names into layers and blocks of them behind the last number that counts layers: one of a place that has two
/// numbers in a row. The numbers of `to_out.0.weight`, `net.2.weight` and `in_layers.2.weight` in diffusion models do not.
fn split_where_counted<'a>(names: &[&'a str]) -> Vec<(&'a str, &'a str)> {
    let mut numbers: HashMap<String, BTreeSet<u64>> = HashMap::new();
    for (part, place) in names.iter().flat_map(|name| parts(name)) {
        // Those that are too large for it count nothing.
        if let (true, Ok(number)) = (is_number(part), part.parse()) {
            numbers.entry(place).or_default().insert(number);
        }
    }
    let counts = |numbers: &BTreeSet<u64>| numbers.iter().zip(numbers.iter().skip(1)).any(|(a, b)| a + 1 == *b);
    let counting: BTreeSet<String> =
        numbers.into_iter().filter(|(_, numbers)| counts(numbers)).map(|(place, _)| place).collect();
    let split = |name: &&'a str| {
        let (mut end, mut start) = (None, 0);
        for (part, place) in parts(name) {
            start += part.len() + 1;
            if is_number(part) && start <= name.len() && counting.contains(&place) {
                end = Some(start - 1);
            }
        }
        match end.or_else(|| name.rfind('.')).and_then(|dot| Some((name.get(..dot)?, name.get(dot + 1..)?))) {
            Some(split) => split,
            None => (*name, ""),
        }
    };
    names.iter().map(split).collect()
}

/// Splits names into layers and what tensors are in them: as [`layer_and_block`] does, or where the table of that is large
/// and hardly filled, where layers count, if that is better. Even so of a diffusion model's cells hardly a third have a tensor.
#[must_use]
pub fn layers_and_blocks<'a>(names: &[&'a str]) -> Vec<(&'a str, &'a str)> {
    let size = |split: &Vec<(&str, &str)>| {
        let (layers, blocks): (BTreeSet<_>, BTreeSet<_>) = split.iter().copied().unzip();
        layers.len() * blocks.len()
    };
    let plain: Vec<_> = names.iter().map(|name| layer_and_block(name)).collect();
    if size(&plain) <= 4 * names.len() {
        return plain;
    }
    let counted = split_where_counted(names);
    if size(&counted) < size(&plain) { counted } else { plain }
}

/// The order of names in which numbers within them count as numbers: `layers.2` is before `layers.10`.
#[must_use]
pub fn natural(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let digits = |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (left, right) = (digits(a), digits(b));
        if left > 0 && right > 0 {
            let (x, y) = (a[..left].trim_start_matches('0'), b[..right].trim_start_matches('0'));
            let order = x.len().cmp(&y.len()).then_with(|| x.cmp(y)).then_with(|| left.cmp(&right));
            if order.is_ne() {
                return order;
            }
            (a, b) = (&a[left..], &b[right..]);
            continue;
        }
        match (a.chars().next(), b.chars().next()) {
            (Some(x), Some(y)) if x == y => (a, b) = (&a[x.len_utf8()..], &b[y.len_utf8()..]),
            (x, y) => return x.cmp(&y),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_count_as_numbers() {
        let mut names = ["b", "layers.10.x", "layers.2.x", "layers.2", "layers.02", "a", "layers", "layers.2.é", ""];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["", "a", "b", "layers", "layers.2", "layers.2.x", "layers.2.é", "layers.02", "layers.10.x"]);
    }

    #[test]
    fn names_of_the_field_split_where_people_would() {
        assert_eq!(layer_and_block("model.layers.7.mlp.up_proj.weight"), ("model.layers.7", "mlp.up_proj.weight"));
        assert_eq!(layer_and_block("down_blocks.0.resnets.1.conv1.bias"), ("down_blocks.0.resnets.1", "conv1.bias"));
        assert_eq!(layer_and_block("model.norm.weight"), ("model.norm", "weight"));
        assert_eq!(layer_and_block("blocks.3"), ("blocks", "3"));
        assert_eq!(layer_and_block("scale"), ("scale", ""));
        assert_eq!(layer_and_block(""), ("", ""));
    }

    #[test]
    fn names_split_where_layers_are_counted() {
        let unet = [
            "unet.down.0.attn.0.blocks.0.to_out.0.weight",
            "unet.down.0.attn.0.blocks.0.net.0.proj.weight",
            "unet.down.0.attn.0.blocks.0.net.2.weight",
            "unet.down.1.attn.0.blocks.0.to_out.0.weight",
            "unet.down.1.attn.1.blocks.0.to_out.0.weight",
            "unet.conv_in.weight",
        ];
        let expected = [
            ("unet.down.0.attn.0", "blocks.0.to_out.0.weight"),
            ("unet.down.0.attn.0", "blocks.0.net.0.proj.weight"),
            ("unet.down.0.attn.0", "blocks.0.net.2.weight"),
            ("unet.down.1.attn.0", "blocks.0.to_out.0.weight"),
            ("unet.down.1.attn.1", "blocks.0.to_out.0.weight"),
            ("unet.conv_in", "weight"),
        ];
        assert_eq!(split_where_counted(&unet), expected);
        // A table of a few is filled well enough as it is; one of many is not.
        assert_ne!(layers_and_blocks(&unet), expected);
        let number = |name: &str, n: usize| {
            name.replace("down.0", &format!("down.{}", n / 2)).replace("attn.0", &format!("attn.{}", n % 2))
        };
        let many: BTreeSet<String> = (0..16).flat_map(|n| unet.map(|name| number(name, n))).collect();
        let blocks = (0..40).flat_map(|n| ["q", "k"].map(|block| format!("text.layers.{n}.{block}{n}.weight")));
        let many: Vec<String> = many.into_iter().chain(blocks).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(layers_and_blocks(&many), split_where_counted(&many));
        // One layer alone counts nothing, but is one all the same.
        let one = ["m.layers.0.q.weight", "m.layers.0.k.weight", "m.norm.weight"];
        assert_eq!(layers_and_blocks(&one)[0], ("m.layers.0", "q.weight"));
    }

    #[test]
    fn odd_names_stay_whole() {
        let odd = ["", ".", "..", "0", "1", "0.", "1.", ".0", ".1", "a.0", "a.1", "norm.weight", "0.0", "1.1", "é.0.é"];
        for ((layer, block), name) in split_where_counted(&odd).into_iter().zip(odd) {
            let whole = if name.contains('.') { format!("{layer}.{block}") } else { layer.to_owned() };
            assert_eq!(whole, name);
        }
        assert!(layers_and_blocks(&[]).is_empty());
        assert!(natural("layers.9", "layers.10").is_lt() && natural("layers.9.b", "layers.9.a").is_gt());
        assert!(natural("a.99999999999999999999", "a.x").is_lt() && natural("a", "a.b").is_lt());
    }
}
