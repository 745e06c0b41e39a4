// Whether a device computes as all kernels need it: f32 sums, differences and products correctly rounded, so that what
// rounding took can be told; integers modulo 2^32; atomics that lose nothing.
//
// Bindings: `inputs` holds pairs of words (x, y) in twos; params[0] is their number, params[11] is 0. `out` gets 9 words a
// pair: the bits of x + y, x - y, x * y, of the rounding errors of x + y and x * y; x * y and x >> y as integers, x >> y
// with the sign, and how many pairs the pair's workgroup has. Behind them stands the sum of all x modulo 2^32.
// Workgroups: 256 pairs each.

@group(0) @binding(0) var<storage, read> inputs: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> params: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<atomic<u32>>;
@group(0) @binding(3) var<storage, read_write> status: array<atomic<u32>, 4>;

var<workgroup> members: atomic<u32>;

// Compilers simplify sums of sums, unless they cannot tell what is added.
fn opaque(x: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(x) ^ params[11]);
}

// What rounding took from `sum`, x + y.
fn error_of_sum(x: f32, y: f32, sum: f32) -> f32 {
    let second = opaque(sum - x);
    return (x - (sum - second)) + (y - second);
}

// What rounding took from `product`, x * y, of halves whose products are exact.
fn error_of_product(x: f32, y: f32, product: f32) -> f32 {
    let x_high = bitcast<f32>(bitcast<u32>(x) & 0xfffff000u);
    let y_high = bitcast<f32>(bitcast<u32>(y) & 0xfffff000u);
    let x_low = x - x_high;
    let y_low = y - y_high;
    return ((x_high * y_high - product) + x_high * y_low + x_low * y_high) + x_low * y_low;
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let count = params[0];
    let pair = (id.y * groups.x + id.x) * 256u + thread;
    var words = vec2<u32>(0u, 0u);
    if pair < count {
        let both = inputs[pair / 2u];
        words = select(both.xy, both.zw, pair % 2u == 1u);
        atomicAdd(&members, 1u);
        atomicAdd(&out[9u * count], words.x);
    }
    workgroupBarrier();
    if pair >= count {
        return;
    }
    let x = bitcast<f32>(words.x);
    let y = bitcast<f32>(words.y);
    let sum = opaque(x + y);
    let product = opaque(x * y);
    let at = 9u * pair;
    atomicStore(&out[at], bitcast<u32>(sum));
    atomicStore(&out[at + 1u], bitcast<u32>(x - y));
    atomicStore(&out[at + 2u], bitcast<u32>(product));
    atomicStore(&out[at + 3u], bitcast<u32>(error_of_sum(x, y, sum)));
    atomicStore(&out[at + 4u], bitcast<u32>(error_of_product(x, y, product)));
    atomicStore(&out[at + 5u], words.x * words.y);
    atomicStore(&out[at + 6u], words.x >> (words.y & 31u));
    atomicStore(&out[at + 7u], bitcast<u32>(bitcast<i32>(words.x) >> (words.y & 31u)));
    atomicStore(&out[at + 8u], atomicLoad(&members));
}
