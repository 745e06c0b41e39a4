// Copies the inputs to the output: the yardstick of a device's memory.
//
// Bindings: `inputs`, `out`; params[0] is their number of vec4<u32>.
// Workgroups: 256 of them each, one a thread.

@group(0) @binding(0) var<storage, read> inputs: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> params: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<u32>>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = (id.y * groups.x + id.x) * 256u + thread;
    if at < params[0] {
        out[at] = inputs[at];
    }
}
