// For each strip of rows, column and k < VALUES: sum of value(leaves, place, k) over the strip's elements of the column.
//
// The tile is whole rows of params[3] columns; a strip is params[4] rows, the last may be shorter. out: [strip][column][k]
// pairs of f32, the sum and what rounding has taken from it.
//
// Workgroups: one for 256 pairs of strip and column, the column being the faster index. Bindings: all.
// params[7]: where factors begin, in words of `out`, for a `value` that asks for some. Limits: below 2^31 elements;
// params[4] * (VALUES + 1) up to 50000.

@group(0) @binding(2) var<storage, read_write> out: array<u32>;

fn factor(m: u32, at: Place) -> f32 {
    return bitcast<f32>(out[params[7] + m * count() + at.local]);
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let columns = params[3];
    let rows = count() / columns;
    let strips = (rows + params[4] - 1u) / params[4];
    let sum = numbered(id, groups) * WORKGROUP + thread;
    if (sum >= strips * columns) {
        return;
    }
    limit_rounds((params[4] + 1u) * (VALUES + 1u));
    let column = sum % columns;
    let first = sum / columns * params[4];
    let end = first + min(params[4], rows - first);
    var totals: array<vec2<f32>, VALUES>;
    for (var row = first; row < end; row++) {
        let local = row * columns + column;
        let x = load_one(local);
        for (var k = 0u; k < VALUES; k++) {
            totals[k] = add(totals[k], value(x, place(local), k));
        }
    }
    for (var k = 0u; k < VALUES; k++) {
        let to = (sum * VALUES + k) * 2u;
        out[to] = finite(totals[k].x, true);
        out[to + 1u] = finite(totals[k].y, true);
    }
    finish();
}
