// For each segment and k < VALUES: sum of value(leaves, place, k).
//
// The tile's elements are units of params[3], of which it holds whole ones, each cut into segments of params[4]; the last of a
// unit may be shorter. out: [segment][k] pairs of f32, the sum and what rounding has taken from it. Their order is given by
// params[3], params[4] and SUBGROUP alone, wherever a tile begins.
//
// Workgroups: one a segment; where segments are short one does several, and the rest return. Bindings: all.
// params[7]: where factors begin, in words of `out`, for a `value` that asks for some. Limits: below 2^31 elements;
// params[4] * (VALUES + 1) up to 2^23.

@group(0) @binding(2) var<storage, read_write> out: array<u32>;

var<workgroup> partial: array<vec2<f32>, 256>;

fn factor(m: u32, at: Place) -> f32 {
    return bitcast<f32>(out[params[7] + m * count() + at.local]);
}

fn add_values(totals: ptr<function, array<vec2<f32>, VALUES>>, l: Leaves, at: Place) {
    for (var k = 0u; k < VALUES; k++) {
        (*totals)[k] = add((*totals)[k], value(l, at, k));
    }
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let cut = cut();
    if (numbered(id, groups) >= (cut.segments + cut.together - 1u) / cut.together) {
        return;
    }
    limit_rounds((cut.length / cut.lanes + 16u) * (VALUES + 1u));
    let segment = numbered(id, groups) * cut.together + thread / cut.lanes;
    let lane = thread % cut.lanes;
    var totals: array<vec2<f32>, VALUES>;
    if (segment < cut.segments) {
        let ends = ends_of(cut, segment);
        var rest = ends.x;
        if ((cut.unit | cut.length) % 8u == 0u) {
            rest = ends.y / 8u * 8u;
            for (var group = ends.x / 8u + lane; group < ends.y / 8u; group += cut.lanes) {
                let x = load(group);
                let local = group * 8u;
                add_values(&totals, x[0], place(local));
                add_values(&totals, x[1], place(local + 1u));
                add_values(&totals, x[2], place(local + 2u));
                add_values(&totals, x[3], place(local + 3u));
                add_values(&totals, x[4], place(local + 4u));
                add_values(&totals, x[5], place(local + 5u));
                add_values(&totals, x[6], place(local + 6u));
                add_values(&totals, x[7], place(local + 7u));
            }
        }
        for (var local = rest + lane; local < ends.y; local += cut.lanes) {
            add_values(&totals, load_one(local), place(local));
        }
    }
    for (var k = 0u; k < VALUES; k++) {
        var total = totals[k];
        for (var apart = 1u; apart < min(cut.lanes, SUBGROUP); apart *= 2u) {
            total = add_pairs(total, exchanged(vec4(total, 0.0, 0.0), apart).xy);
        }
        if (cut.lanes > SUBGROUP) {
            partial[thread] = total;
            workgroupBarrier();
            for (var apart = cut.lanes / 2u; apart >= SUBGROUP; apart /= 2u) {
                if (lane < apart) {
                    total = add_pairs(total, partial[thread + apart]);
                    partial[thread] = total;
                }
                workgroupBarrier();
            }
        }
        if (lane == 0u && segment < cut.segments) {
            let to = (segment * VALUES + k) * 2u;
            out[to] = finite(total.x, true);
            out[to + 1u] = finite(total.y, true);
        }
    }
    finish();
}
