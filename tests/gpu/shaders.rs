//! The kernels' texts, without a device.

use ckptmerge::dtype::DType;
use ckptmerge::gpu::{Features, KERNELS, Kernel, PRELUDE, is_packed, kernel, text};
use naga::Module;
use naga::back::{hlsl, msl, spv};
use naga::front::wgsl;
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use std::collections::HashSet;

const PACKED: [DType; 5] = [DType::F32, DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2];

/// A `value` that uses all that a caller may.
const BODY: &str = "
const VALUES: u32 = 6u;

fn value(l: Leaves, at: Place, k: u32) -> f32 {
    let first = l[0] - l[LEAVES - min(LEAVES, 1u)] * number(0u);
    switch k {
        case 0u: { return first * within(first, word(1u), word(2u)); }
        case 1u: { return first * below(random(at, word(3u), word(4u)), word(5u)); }
        default: { return two_product(first, f32(k)).y; }
    }
}
";

const NONE: Features = Features { f16: false, subgroup: 0 };
const ALL: Features = Features { f16: true, subgroup: 32 };
const VARIANTS: [Features; 4] = [NONE, Features { f16: true, ..NONE }, Features { subgroup: 32, ..NONE }, ALL];

/// Validates a text for a device that has no other optional features.
pub(crate) fn validate(name: &str, text: &str, features: Features) {
    let module = wgsl::parse_str(text).unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(text)));
    let mut capabilities = Capabilities::empty();
    capabilities.set(Capabilities::SHADER_FLOAT16 | Capabilities::SHADER_FLOAT16_IN_FLOAT32, features.f16);
    capabilities.set(Capabilities::SUBGROUP, features.subgroup > 1);
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    let info = match validator.validate(&module) {
        Ok(info) => info,
        Err(error) => panic!("{name}: {}", error.emit_to_string(text)),
    };
    translate(name, &module, &info);
    let entries: Vec<_> = module.entry_points.iter().map(|entry| (entry.name.as_str(), entry.workgroup_size)).collect();
    assert_eq!(entries, [("main", [256, 1, 1])], "{name}");
    let bytes: u32 = module
        .global_variables
        .iter()
        .filter(|(_, variable)| variable.space == naga::AddressSpace::WorkGroup)
        .map(|(_, variable)| module.types[variable.ty].inner.size(module.to_ctx()))
        .sum();
    assert!(bytes <= 16384, "{name} takes {bytes} bytes of a workgroup's memory, of which every device has 16384");
}

/// Writes a shader as Vulkan, Metal and DX12 take it.
fn translate(name: &str, module: &Module, info: &ModuleInfo) {
    let options = spv::Options { lang_version: (1, 3), ..spv::Options::default() };
    let vulkan = spv::write_vec(module, info, &options, None);
    assert!(vulkan.is_ok_and(|words| !words.is_empty()), "{name} for Vulkan");
    let metal = msl::write_string(module, info, &msl::Options::default(), &msl::PipelineOptions::default());
    assert!(metal.is_ok_and(|(text, _)| text.contains("kernel void main_")), "{name} for Metal");
    let mut text = String::new();
    let target = hlsl::BindTarget::default();
    let shader_model = hlsl::ShaderModel::V6_2;
    let options = hlsl::Options { special_constants_binding: Some(target), shader_model, ..hlsl::Options::default() };
    let stage = hlsl::PipelineOptions::default();
    let directx = hlsl::Writer::new(&mut text, &options, &stage).write(module, info, None);
    assert!(directx.is_ok() && text.contains("[numthreads(256, 1, 1)]"), "{name} for DX12");
}

fn is_generic(kernel: &&Kernel) -> bool {
    !kernel.name.starts_with("check") && kernel.name != "copy"
}

#[test]
fn checks_of_features_are_valid() {
    for name in ["check_f16", "check_subgroup"] {
        validate(name, &text(kernel(name), &[], None, "", ALL), ALL);
    }
}

#[test]
fn every_kernel_is_valid_for_every_type() {
    let mut lists: Vec<Vec<DType>> = PACKED.iter().map(|dtype| vec![*dtype]).collect();
    lists.extend([vec![], PACKED.to_vec(), vec![DType::BF16; 9]]);
    let mut seen = HashSet::new();
    for kernel in KERNELS.iter().filter(is_generic) {
        for leaves in &lists {
            let outputs: &[_] = if kernel.name == "blend" { &PACKED.map(Some) } else { &[None] };
            for output in outputs {
                for features in VARIANTS {
                    let name = format!("{} of {leaves:?} to {output:?} with {features:?}", kernel.name);
                    let text = text(kernel, leaves, *output, BODY, features);
                    let uses = [text.starts_with("enable f16;"), text.contains("subgroupShuffleXor(")];
                    let converts = leaves.iter().chain(output).any(|dtype| *dtype == DType::F16);
                    let exchanges = ["sums", "gram"].contains(&kernel.name);
                    assert_eq!(uses, [features.f16 && converts, features.subgroup > 1 && exchanges], "{name}");
                    if seen.insert(text.clone()) {
                        validate(&name, &text, features);
                    }
                }
            }
        }
    }
    assert!(seen.len() >= 5 * 8 + 5 * 8 + 16 + 2 * 10, "only {} shaders were seen", seen.len());
}

#[test]
fn factors_can_be_read() {
    let body = "const VALUES: u32 = 1u;
        fn value(l: Leaves, at: Place, k: u32) -> f32 { return l[0] * factor(2u, at); }";
    for name in ["columns", "gram", "histogram", "sums"] {
        validate(name, &text(kernel(name), &[DType::F16], None, body, NONE), NONE);
    }
    for output in PACKED {
        validate("blend", &text(kernel("blend"), &[DType::F16], Some(output), body, NONE), NONE);
    }
}

#[test]
fn powers_can_be_asked_for() {
    let body = "fn value(l: Leaves, at: Place, k: u32) -> f32 { return power_product(l[0], l[1], 0u, 6u); }";
    for features in [NONE, ALL] {
        let text = text(kernel("blend"), &[DType::F16, DType::F32], Some(DType::BF16), body, features);
        validate("power", &text, features);
    }
}

#[test]
fn float_types_are_packed() {
    let packed: Vec<DType> = DType::all().filter(|dtype| is_packed(*dtype)).collect();
    assert_eq!(packed.len(), PACKED.len());
    assert!(PACKED.iter().all(|dtype| packed.contains(dtype)));
    assert!(PRELUDE.starts_with("//"));
}
