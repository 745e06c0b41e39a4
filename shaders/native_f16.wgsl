// F16 converted by the device, for those that do so as the prelude does: shaders/check_f16.wgsl.
//
// There is no way from bits to the type f16 but through pairs of f32. That way down may cut digits off, so that the type rounds
// first and the way is exact.

fn decode_native_f16(code: u32) -> u32 {
    return bitcast<u32>(unpack2x16float(code & 0xffffu).x);
}

// Of bits that the compiler does not know, lest it rounds what they are computed from, once instead of twice.
fn encode_native_f16(bits: u32) -> u32 {
    let rounded = f16(bitcast<f32>(bits ^ params[11]));
    return pack2x16float(vec2(f32(rounded), 0.0)) & 0xffffu;
}
