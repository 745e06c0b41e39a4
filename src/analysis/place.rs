//! Where in a network a tensor is, read from its name alone.

/// The layer a tensor belongs to, and what it is in that layer.
///
/// The layer ends with the last number in the name: `model.layers.7.mlp.up_proj.weight` is `mlp.up_proj.weight` in
/// `model.layers.7`. A name without a number is its last part in the rest: `weight` in `model.norm`.
#[must_use]
pub fn layer_and_block(name: &str) -> (&str, &str) {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
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

#[cfg(test)]
mod tests {
    use super::layer_and_block;

    #[test]
    fn names_of_the_field_split_where_people_would() {
        assert_eq!(layer_and_block("model.layers.7.mlp.up_proj.weight"), ("model.layers.7", "mlp.up_proj.weight"));
        assert_eq!(layer_and_block("down_blocks.0.resnets.1.conv1.bias"), ("down_blocks.0.resnets.1", "conv1.bias"));
        assert_eq!(layer_and_block("model.norm.weight"), ("model.norm", "weight"));
        assert_eq!(layer_and_block("blocks.3"), ("blocks", "3"));
        assert_eq!(layer_and_block("scale"), ("scale", ""));
        assert_eq!(layer_and_block(""), ("", ""));
    }
}
