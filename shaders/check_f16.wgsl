// Whether the device converts F16 as the prelude does: strange if not.
//
// Of every code: its number, and back again; the numbers next to it, the middle between it and the next code, those next to
// that, and a number at random. Bindings: params, status. Workgroups: 256, a thread for each code.

// What is not finite need not be known: it is strange to all kernels.
fn is_decoded(code: u32) -> bool {
    let native = decode_native_f16(code);
    let right = decode_f16(code);
    return native == right || min(native & 0x7fffffffu, right & 0x7fffffffu) >= 0x7f800000u;
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let code = numbered(id, groups) * WORKGROUP + thread;
    let sign = (code & 0x8000u) << 16u;
    let size = code & 0x7fffu;
    strange = !is_decoded(code);
    let x = decode_f16(size);
    // Behind the last number 2^16 would be next.
    let next = select(decode_f16(size + 1u), 0x47800000u, size >= 0x7bffu);
    let middle = bitcast<u32>((bitcast<f32>(x) + bitcast<f32>(next)) * 0.5);
    // A loop is compiled sooner than what it does seven times.
    for (var i = 0u; i < 7u; i++) {
        let near = max(select(x, middle, i >= 3u) + i % 3u, 1u) - 1u;
        let bits = select(near | sign, mix_bits(code, 0u), i == 6u);
        let is_finite = (bits & 0x7f800000u) != 0x7f800000u;
        strange = strange || (is_finite && encode_native_f16(bits) != encode_f16(bits));
    }
    finish();
}
