// out = encode(value(leaves, place, 0)), 8 elements a thread.
//
// Bindings: all; `out`, which the text before this declares, takes whole groups of 8, so that its last 16 bytes may have zeros
// behind the last element. Workgroups: one for 2048 elements. Limits: below 2^31 elements.
// params[7]: where factors begin, in words of `out`, for a `value` that asks for some.

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let group = numbered(id, groups) * WORKGROUP + thread;
    if (group >= (count() + 7u) / 8u) {
        return;
    }
    let first = group * 8u;
    let x = load(group);
    store(group, array<f32, 8>(
        value(x[0], place(first), 0u),
        value(x[1], place(first + 1u), 0u),
        value(x[2], place(first + 2u), 0u),
        value(x[3], place(first + 3u), 0u),
        value(x[4], place(first + 4u), 0u),
        value(x[5], place(first + 5u), 0u),
        value(x[6], place(first + 6u), 0u),
        value(x[7], place(first + 7u), 0u),
    ));
    finish();
}
