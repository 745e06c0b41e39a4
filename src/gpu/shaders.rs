//! The kernels of `shaders/`, and how one is put together with what it is to compute.
//!
//! A shader's text is [`PRELUDE`], what is generated here for the types that it reads and writes, the caller's
//! definition of `VALUES` and `value`, and the kernel. What it takes of optional [`Features`] is `shaders/native_f16.wgsl`,
//! where there is F16 to convert, and `exchanged`, where threads add up what each has. Generated are
//!
//! ```wgsl
//! const LEAVES: u32 = …;                            // inputs
//! alias Leaves = array<f32, …>;                     // an element of each, one at least
//! fn load(group: u32) -> array<Leaves, 8>           // elements from 8 · group on; behind the last, the first of these
//! fn load_one(local: u32) -> Leaves
//! fn store(group: u32, x: array<f32, 8>)            // if there is an output, with the declaration of `out`
//! fn factor(m: u32, at: Place) -> f32               // likewise; other kernels have it by themselves
//! const SUBGROUP: u32 = …;                          // for kernels that ask for it, and 1 where there are no subgroups
//! fn exchanged(x: vec4<f32>, apart: u32) -> vec4<f32>   // x of the thread whose number differs in the bit `apart`
//! ```

use super::Features;
use crate::dtype::DType;
use std::fmt::Write as _;
use std::sync::Arc;

/// A kernel: `shaders/NAME.wgsl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The file's name without its ending.
    pub name: &'static str,
    text: &'static str,
}

impl Kernel {
    /// Its own text, of which those that stand alone are a shader.
    #[must_use]
    pub fn source(&self) -> &'static str {
        self.text
    }
}

macro_rules! kernels {
    ($($name:literal),* $(,)?) => {
        &[$(Kernel { name: $name, text: include_str!(concat!("../../shaders/", $name, ".wgsl")) }),*]
    };
}

/// Every kernel.
pub static KERNELS: &[Kernel] =
    kernels!["blend", "check", "check_f16", "check_subgroup", "columns", "copy", "gram", "histogram", "ranks", "sums"];

/// What all of them share.
pub static PRELUDE: &str = include_str!("../../shaders/prelude.wgsl");

/// Words of [`Job::params`](super::Job::params) before the inputs' offsets: those of the tile, then the kernel's own. The
/// last is 0.
pub const HEADER: usize = 12;

/// What `gram` multiplies every inner product with.
pub const GRAM_SCALE: f64 = (1u128 << 80) as f64;

/// What `shaders/power.wgsl` defines, for a `value` that calls it.
static POWER: &str = include_str!("../../shaders/power.wgsl");

/// What converts F16 where the device does.
static NATIVE_F16: &str = include_str!("../../shaders/native_f16.wgsl");

/// The kernel of a name.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn kernel(name: &str) -> &'static Kernel {
    KERNELS.iter().find(|kernel| kernel.name == name).unwrap_or_else(|| panic!("there is no kernel {name}"))
}

/// Exponents for `power_product` from these on are more than its numbers hold.
const LARGEST_EXPONENT: f64 = 16.0;
/// Logarithms of factors from this on, likewise.
const LARGEST_LOGARITHM: f64 = 512.0;
/// The units of numbers in `shaders/power.wgsl`: their bits behind the point.
const LOGARITHM_BITS: u32 = 48;
const POWER_BITS: u32 = 62;

/// The words with which `power_product(a, b, exponents, table)` gives `|a|^p · |b|^q · |factor|`: to stand among the caller's, the
/// first at `exponents`. None for what its numbers do not hold.
#[must_use]
pub fn power_words(p: f64, q: f64, factor: f64) -> Option<[u32; 6]> {
    let unit = (1u64 << LOGARITHM_BITS) as f64;
    let exponent = |x: f64| {
        let bits = (x.abs() * unit).round() as u64;
        (x.abs() < LARGEST_EXPONENT).then_some([bits as u32, (bits >> 32) as u32 | (u32::from(x < 0.0) << 31)])
    };
    let logarithm = factor.abs().log2();
    let bits = (logarithm * unit).round() as i64;
    let ([p, p_high], [q, q_high]) = (exponent(p)?, exponent(q)?);
    (logarithm.abs() < LARGEST_LOGARITHM).then_some([p, p_high, q, q_high, bits as u32, (bits >> 32) as u32])
}

/// The words of `power_product`'s `table`, which are always the same.
#[must_use]
pub fn power_table() -> Vec<u32> {
    let words = |x: f64, bits: u32| {
        let x = (x * (1u64 << bits) as f64).round() as u64;
        [x as u32, (x >> 32) as u32]
    };
    let reciprocals = (0..64u32).flat_map(|part| {
        // About 1 / m in the middle of the part; exactly 1 where m may be.
        let m = 1.0 + (f64::from(part) + 0.5) / 64.0;
        let reciprocal = if part == 0 { 256 } else { (256.0 / m).round() as u32 };
        let [low, high] = words(-(f64::from(reciprocal) / 256.0).log2(), LOGARITHM_BITS);
        [reciprocal, low, high]
    });
    reciprocals.chain((0..64u32).flat_map(|part| words((f64::from(part) / 64.0).exp2(), POWER_BITS))).collect()
}

/// How elements of a type lie in words.
struct Packing {
    /// Elements in a word.
    elements: usize,
    /// What its functions in the prelude are called, or those for F16 where the device converts.
    name: &'static str,
}

fn packing(dtype: DType, features: Features) -> Option<Packing> {
    let (elements, name) = match dtype {
        DType::F32 => (1, "f32"),
        DType::F16 if features.f16 => (2, "native_f16"),
        DType::F16 => (2, "f16"),
        DType::BF16 => (2, "bf16"),
        DType::F8E4M3 => (4, "f8e4m3"),
        DType::F8E5M2 => (4, "f8e5m2"),
        _ => return None,
    };
    Some(Packing { elements, name })
}

/// Whether kernels read and write elements of a type as they are in files.
#[must_use]
pub fn is_packed(dtype: DType) -> bool {
    packing(dtype, Features::default()).is_some()
}

/// The text of a shader that reads elements of `leaves` and, for `blend`, writes those of `output`, with what there is of
/// `features`.
///
/// # Panics
/// If a type is not packed.
#[must_use]
pub fn text(kernel: &Kernel, leaves: &[DType], output: Option<DType>, body: &str, features: Features) -> Arc<str> {
    let packed = |dtype: &DType| packing(*dtype, features).unwrap_or_else(|| panic!("{} is not packed", dtype.name()));
    let leaves: Vec<Packing> = leaves.iter().map(packed).collect();
    let mut text = PRELUDE.to_owned();
    generate_loads(&mut text, &leaves);
    if let Some(output) = &output {
        generate_store(&mut text, &packed(output));
    }
    text.extend(["\n", body, "\n", kernel.text]);
    if body.contains("power_product(") {
        text.extend(["\n", POWER]);
    }
    if kernel.text.contains("exchanged(") {
        generate_exchange(&mut text, features.subgroup.max(1));
    }
    if text.contains("native_f16(") {
        text.extend(["\n", NATIVE_F16]);
        text.insert_str(0, "enable f16;\n\n");
    }
    text.into()
}

fn generate_exchange(text: &mut String, subgroup: u32) {
    let exchanged = if subgroup > 1 { "subgroupShuffleXor(x, apart)" } else { "x" };
    let _ = writeln!(text, "\nconst SUBGROUP: u32 = {subgroup}u;\n");
    let _ = writeln!(text, "fn exchanged(x: vec4<f32>, apart: u32) -> vec4<f32> {{\n    return {exchanged};\n}}");
}

const COMPONENTS: [&str; 4] = ["x", "y", "z", "w"];

/// The code of element `index` of the `elements` in a word.
fn code(word: &str, index: usize, elements: usize) -> String {
    match (elements, index % elements) {
        (1, _) => word.to_owned(),
        (2, 0) => format!("{word} & 0xffffu"),
        (2, _) => format!("{word} >> 16u"),
        (_, 3) => format!("{word} >> 24u"),
        (_, byte) => format!("({word} >> {}u) & 0xffu", 8 * byte),
    }
}

fn generate_loads(text: &mut String, leaves: &[Packing]) {
    let count = leaves.len();
    let mut say = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    say(format!("\nconst LEAVES: u32 = {count}u;\nalias Leaves = array<f32, {}>;\n", count.max(1)));
    say("fn load(group: u32) -> array<Leaves, 8> {\n    let left = count() - group * 8u;".to_owned());
    for (leaf, packing) in leaves.iter().enumerate() {
        let start = format!("params[HEADER + {leaf}u]");
        match packing.elements {
            1 => {
                say(format!("    let a{leaf} = inputs[{start} + group * 2u];"));
                say(format!("    let b{leaf} = inputs[{start} + group * 2u + 1u];"));
            }
            2 => say(format!("    let a{leaf} = inputs[{start} + group];")),
            _ => {
                say(format!("    let b{leaf} = inputs[{start} + group / 2u];"));
                say(format!("    let a{leaf} = select(b{leaf}.xy, b{leaf}.zw, group % 2u == 1u);"));
            }
        }
    }
    say("    return array<Leaves, 8>(".to_owned());
    for element in 0..8 {
        let mut values = String::new();
        for (leaf, Packing { elements, name }) in leaves.iter().enumerate() {
            let half = if *elements == 1 && element >= 4 { "b" } else { "a" };
            let word = format!("{half}{leaf}.{}", COMPONENTS[element / elements % 4]);
            let code = code(&word, element, *elements);
            let comma = if leaf == 0 { "" } else { ", " };
            let first = self::code(&format!("a{leaf}.x"), 0, *elements);
            // Behind the last element there may be another input's.
            let code = if element == 0 { code } else { format!("select({first}, {code}, left > {element}u)") };
            let _ = write!(values, "{comma}usable(decode_{name}({code}))");
        }
        if leaves.is_empty() {
            values.push_str("0.0");
        }
        say(format!("        Leaves({values}),"));
    }
    say("    );\n}\n\nfn load_one(local: u32) -> Leaves {".to_owned());
    let mut values = Vec::new();
    for (leaf, Packing { elements, name }) in leaves.iter().enumerate() {
        let start = format!("params[HEADER + {leaf}u]");
        say(format!("    let a{leaf} = inputs[{start} + local / {}u][local / {elements}u % 4u];", 4 * elements));
        let code = match elements {
            1 => format!("a{leaf}"),
            2 => format!("(a{leaf} >> (local % 2u * 16u)) & 0xffffu"),
            _ => format!("(a{leaf} >> (local % 4u * 8u)) & 0xffu"),
        };
        values.push(format!("usable(decode_{name}({code}))"));
    }
    if leaves.is_empty() {
        values.push("0.0".to_owned());
    }
    say(format!("    return Leaves({});\n}}", values.join(", ")));
}

fn generate_store(text: &mut String, Packing { elements, name }: &Packing) {
    // Threads write whole elements of `out`, so that none reads what another writes.
    let width = if *elements == 4 { 2 } else { 4 };
    let mut say = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    say(&format!("\n@group(0) @binding(2) var<storage, read_write> out: array<vec{width}<u32>>;\n"));
    say("fn factor(m: u32, at: Place) -> f32 {\n    let i = params[7] + m * count() + at.local;");
    say(&format!("    return bitcast<f32>(out[i / {width}u][i % {width}u]);\n}}\n"));
    say("fn store(group: u32, x: array<f32, 8>) {\n    let left = count() - group * 8u;");
    for element in 0..8 {
        // Behind the last element are zeros, whatever was computed.
        say(&format!("    let is{element} = left > {element}u;"));
        say(&format!(
            "    let c{element} = encode_{name}(select(0u, finite(x[{element}], is{element}), is{element}));"
        ));
    }
    let bits = 32 / elements;
    let words: Vec<String> = (0..8 / elements)
        .map(|word| {
            let part = |index: usize| match index {
                0 => format!("c{}", word * elements),
                _ => format!("(c{} << {}u)", word * elements + index, index * bits),
            };
            (0..*elements).map(part).collect::<Vec<_>>().join(" | ")
        })
        .collect();
    match elements {
        1 => {
            say(&format!("    out[group * 2u] = vec4({});", words[..4].join(", ")));
            say("    if (left > 4u) {");
            say(&format!("        out[group * 2u + 1u] = vec4({});\n    }}", words[4..].join(", ")));
        }
        _ => say(&format!("    out[group] = vec{width}({});", words.join(", "))),
    }
    say("}");
}
