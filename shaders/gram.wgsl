// For each segment and i <= j < VALUES: sum of value(leaves, place, i) * value(leaves, place, j) * 2^80.
//
// The power of two keeps what rounding takes from a product in the range of f32: numbers are multiplied with 2^40 before.
// Products are exact and their sums compensated. Units and segments are those of sums.wgsl. out: [segment][pair i, j, row by
// row] pairs of f32, the sum and what rounding has taken from it; their order is given by params[3], params[4] and
// SUBGROUP alone.
//
// Workgroups: blocks of 4 by 4 inner products for each segment, the block being the faster index, of
// ceil(VALUES / 4) * (ceil(VALUES / 4) + 1) / 2; where segments are short one does several, and the rest return.
// Bindings: all. params[7]: where factors begin, in words of `out`. Limits: below 2^31 elements; params[4] up to 2^23;
// squares whose sum is above 2^48 are strange.

@group(0) @binding(2) var<storage, read_write> out: array<u32>;

const BLOCKS: u32 = (VALUES + 3u) / 4u;
const BLOCK_PAIRS: u32 = BLOCKS * (BLOCKS + 1u) / 2u;
const SCALE: f32 = 1099511627776.0;

var<workgroup> sums: array<vec4<f32>, 256>;
var<workgroup> rests: array<vec4<f32>, 256>;

// The inner products of four vectors with one.
struct Row {
    sum: vec4<f32>,
    rest: vec4<f32>,
}

fn factor(m: u32, at: Place) -> f32 {
    return bitcast<f32>(out[params[7] + m * count() + at.local]);
}

fn scaled(l: Leaves, at: Place, k: u32) -> f32 {
    if (k < VALUES) {
        return value(l, at, k) * SCALE;
    }
    return 0.0;
}

fn four(l: Leaves, at: Place, k: u32) -> vec4<f32> {
    return vec4(scaled(l, at, k), scaled(l, at, k + 1u), scaled(l, at, k + 2u), scaled(l, at, k + 3u));
}

// As `add` of the prelude.
fn add_four(total: Row, x: vec4<f32>, rest: vec4<f32>) -> Row {
    let sum = opaque4(total.sum + x);
    let second = opaque4(sum - total.sum);
    return Row(sum, total.rest + (((total.sum - (sum - second)) + (x - second)) + rest));
}

// As `two_product` of the prelude.
fn multiply_add(total: Row, a: vec4<f32>, a_high: vec4<f32>, b: f32) -> Row {
    let a_low = a - a_high;
    let b_high = half(b);
    let b_low = b - b_high;
    let product = opaque4(a * b);
    let rest = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low;
    return add_four(total, product, rest);
}

struct Totals {
    a: Row,
    b: Row,
    c: Row,
    d: Row,
}

// Columns are the vectors from `i` on, rows those from `j` on.
fn multiply(totals: ptr<function, Totals>, l: Leaves, at: Place, i: u32, j: u32) {
    let x = four(l, at, i);
    let y = four(l, at, j);
    let x_high = bitcast<vec4<f32>>(bitcast<vec4<u32>>(x) & vec4(0xfffff000u));
    (*totals).a = multiply_add((*totals).a, x, x_high, y.x);
    (*totals).b = multiply_add((*totals).b, x, x_high, y.y);
    (*totals).c = multiply_add((*totals).c, x, x_high, y.z);
    (*totals).d = multiply_add((*totals).d, x, x_high, y.w);
}

// Sums a row over the threads of a segment, and writes what there is of it.
fn write(row: Row, i: u32, j: u32, segment: u32, is_there: bool, lanes: u32, thread: u32) {
    let lane = thread % lanes;
    var total = row;
    for (var apart = 1u; apart < min(lanes, SUBGROUP); apart *= 2u) {
        total = add_four(total, exchanged(total.sum, apart), exchanged(total.rest, apart));
    }
    if (lanes > SUBGROUP) {
        sums[thread] = total.sum;
        rests[thread] = total.rest;
        workgroupBarrier();
        for (var apart = lanes / 2u; apart >= SUBGROUP; apart /= 2u) {
            if (lane < apart) {
                total = add_four(total, sums[thread + apart], rests[thread + apart]);
                sums[thread] = total.sum;
                rests[thread] = total.rest;
            }
            workgroupBarrier();
        }
    }
    if (lane == 0u && is_there && j < VALUES) {
        for (var column = 0u; column < 4u; column++) {
            let at = i + column;
            if (at <= j) {
                let pair = at * (2u * VALUES - at + 1u) / 2u + (j - at);
                let to = (segment * (VALUES * (VALUES + 1u) / 2u) + pair) * 2u;
                out[to] = finite(total.sum[column], true);
                out[to + 1u] = finite(total.rest[column], true);
            }
        }
    }
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let cut = cut();
    let group_of_segments = numbered(id, groups) / BLOCK_PAIRS;
    if (group_of_segments >= (cut.segments + cut.together - 1u) / cut.together) {
        return;
    }
    // Which block: those of a row of blocks are one fewer in each.
    var row = 0u;
    var along = numbered(id, groups) % BLOCK_PAIRS;
    while (along >= BLOCKS - row) {
        along -= BLOCKS - row;
        row += 1u;
    }
    let i = row * 4u;
    let j = (row + along) * 4u;
    limit_rounds(cut.length / cut.lanes + BLOCKS + 100u);
    let segment = group_of_segments * cut.together + thread / cut.lanes;
    let lane = thread % cut.lanes;
    var totals: Totals;
    if (segment < cut.segments) {
        let ends = ends_of(cut, segment);
        // An element at a time: there is much to do with each, and to do it for eight would make eight times the code.
        for (var local = ends.x + lane; local < ends.y; local += cut.lanes) {
            multiply(&totals, load_one(local), place(local), i, j);
        }
    }
    write(totals.a, i, j, segment, segment < cut.segments, cut.lanes, thread);
    write(totals.b, i, j + 1u, segment, segment < cut.segments, cut.lanes, thread);
    write(totals.c, i, j + 2u, segment, segment < cut.segments, cut.lanes, thread);
    write(totals.d, i, j + 3u, segment, segment < cut.segments, cut.lanes, thread);
    finish();
}
