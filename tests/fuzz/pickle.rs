//! Pickles for mutators: cut into instructions, which are left whole as they are moved, copied, removed and replaced.

/// Instructions that change what a pickle makes, and parts of torch's own.
const PARTS: [&[u8]; 40] = [
    b"}",
    b"]",
    b")",
    b"(",
    b"0",
    b"2",
    b"t",
    b"\x85",
    b"\x86",
    b"\x87",
    b"u",
    b"s",
    b"a",
    b"e",
    b"b",
    b"R",
    b"\x81",
    b"Q",
    b"\x94",
    b"h\x00",
    b"h\x05",
    b"q\x03",
    b"K\x00",
    b"K\x02",
    b"J\xff\xff\xff\xff",
    b"\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x80\x00",
    b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x00",
    b"\x8a\x05\x00\x00\x00\x00\x01",
    b"N",
    b"\x88",
    b"\x8c\x00",
    b"\x8c\x010",
    b"\x8c\x01a",
    b"\x8c\x0astate_dict",
    b"\x8c\x03ema",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch\nFloatStorage\n",
    b"ccollections\nOrderedDict\n)R",
    b"cnumpy._core.multiarray\n_reconstruct\n",
];

/// How long the first instruction is, with its argument.
fn length(pickle: &[u8]) -> Option<usize> {
    let line = |from: usize| Some(from + pickle.get(from..)?.iter().position(|byte| *byte == b'\n')? + 1);
    let counted = |digits: usize| {
        let mut count = [0; 8];
        count[..digits].copy_from_slice(pickle.get(1..=digits)?);
        usize::try_from(u64::from_le_bytes(count)).ok()?.checked_add(1 + digits)
    };
    let length = match pickle.first()? {
        0x80 | 0x82 | b'h' | b'q' | b'K' => 2,
        0x83 | b'M' => 3,
        0x84 | b'j' | b'r' | b'J' => 5,
        0x95 | b'G' => 9,
        b'g' | b'p' | b'P' | b'I' | b'L' | b'F' | b'S' | b'V' => line(1)?,
        b'c' | b'i' => line(line(1)?)?,
        0x8a | 0x8c | b'U' | b'C' => counted(1)?,
        0x8b | b'T' | b'X' | b'B' => counted(4)?,
        0x8d | 0x8e | 0x96 => counted(8)?,
        _ => 1,
    };
    (length <= pickle.len()).then_some(length)
}

/// The pickle with a few of its instructions changed, as `seed` decides.
pub fn mutate(pickle: &[u8], seed: u32) -> Vec<u8> {
    let (mut parts, mut rest) = (Vec::new(), pickle);
    while let Some(length) = length(rest) {
        let (part, tail) = rest.split_at(length);
        parts.push(part.to_vec());
        rest = tail;
    }
    parts.push(rest.to_vec());

    // What an instruction may be replaced by without the stack being another: one that pushes the same kind of thing.
    let kind = |part: &[u8]| match part.first().copied().unwrap_or_default() {
        b'J' | b'K' | b'M' | b'I' | b'L' | 0x8a => b'K',
        b'X' | b'U' | b'T' | b'S' | b'V' | 0x8c => b'X',
        b'h' | b'j' | b'g' => b'h',
        b'}' | b']' | b')' | b'N' | 0x88 | 0x89 => b'N',
        other => other,
    };
    let mut state = u64::from(seed) << 8 | 1;
    let mut below = |limit: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % limit.max(1)
    };
    for _ in 0..=below(8) / 5 {
        let count = parts.len();
        let (from, to) = (below(count), below(count));
        match below(12) {
            0 => drop(parts.remove(from)),
            1 => drop(parts.drain(from..(from + below(12)).min(count))),
            2 => parts.swap(from, to),
            3 => {
                let copy = parts[from..(from + 1 + below(40)).min(count)].to_vec();
                parts.splice(to..to, copy);
            }
            4 => parts[from] = PARTS[below(PARTS.len())].to_vec(),
            5 => parts.insert(from, PARTS[below(PARTS.len())].to_vec()),
            6..=9 => {
                let wanted = kind(&parts[from]);
                let mut same: Vec<_> = parts.iter().filter(|part| kind(part) == wanted).cloned().collect();
                same.extend(PARTS.iter().filter(|part| kind(part) == wanted).map(|part| part.to_vec()));
                parts[from] = same.swap_remove(below(same.len()));
            }
            _ => {
                let part = &mut parts[from];
                let place = 1 + below(part.len().saturating_sub(1));
                if let Some(byte) = part.get_mut(place) {
                    *byte = [0, 1, 2, 4, 0x7f, 0x80, 0xff, byte.wrapping_add(1), byte.wrapping_sub(1)][below(9)];
                }
            }
        }
        if parts.is_empty() {
            parts.push(Vec::new());
        }
    }
    parts.concat()
}
