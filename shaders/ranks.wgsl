// For each mask: what each element of value(leaves, place, k) is multiplied with, by its rank in its row.
//
// Rows of params[5] elements, params[6] apart; the tile is whole slices of params[5] * params[6] elements. params[8] masks;
// params[9]: where their table begins in `word`, of 8 words each: k, low and high of a key, low, high, whether what is kept
// is divided by its probability, density - epsilon, 2 epsilon (f32). out: from word params[7] on, for each mask and element an f32, 0 for
// what is dropped.
//
// An element with the random number n and the magnitude m, of which `less` in its row are less and `equal` equal, is kept if
//     n < low, or n < high and (2 less + equal - 1) (high - low) > 2 (n - low) (params[5] - 1),
// that is, if its mean rank is above the place of n between low and high. For an only element: n < (low + high) / 2. Its
// probability is density - epsilon + 2 epsilon rank / (params[5] - 1), the rank of an only one being the middle.
// The factor of an element that is 0 may be either.
//
// Rows of more than 256 elements go into buckets by magnitude, in memory behind the factors. Ranks in a bucket lie between the
// number of elements before it and that of those up to its end, which decides most; for others their bucket is
// counted through.
//
// Workgroups: one for each row and mask, the mask being the faster index; where rows are short one does several, and the rest
// return. Bindings: all; behind the factors, `out` has as many words again. Limits: below 2^31 elements; densities with their
// spread are below 1. Where `out` is too short the tile is strange, and where many of a long row's elements are in a bucket.

@group(0) @binding(2) var<storage, read_write> out: array<u32>;

const BUCKETS: u32 = 1024u;
// Elements of a bucket that a round of the loop through it counts.
const TOGETHER: u32 = 16u;

// First how many elements a bucket has, then where they begin, then where they end.
var<workgroup> ends: array<atomic<u32>, BUCKETS>;
// The magnitudes in a bucket: if they are one there is nothing to count.
var<workgroup> least: array<atomic<u32>, BUCKETS>;
var<workgroup> most: array<atomic<u32>, BUCKETS>;
var<workgroup> smallest: atomic<u32>;
var<workgroup> largest: atomic<u32>;
var<workgroup> zeros: atomic<u32>;
// The most elements of a bucket that has several magnitudes.
var<workgroup> widest: atomic<u32>;
var<workgroup> chunk: array<u32, WORKGROUP>;

// Text for kernels that read what this one writes may stand before it.
fn factor(m: u32, at: Place) -> f32 {
    return bitcast<f32>(out[params[7] + m * count() + at.local]);
}

struct Mask {
    number: u32,
    k: u32,
    key_low: u32,
    key_high: u32,
    low: u32,
    high: u32,
    by_probability: bool,
    probability: f32,
    more: f32,
}

fn mask(m: u32) -> Mask {
    let at = params[9] + m * 8u;
    return Mask(
        m, word(at), word(at + 1u), word(at + 2u), word(at + 3u), word(at + 4u), word(at + 5u) != 0u, number(at + 6u),
        number(at + 7u),
    );
}

// An element of a row, as a number in the tile.
fn along(row: u32, i: u32) -> u32 {
    let stride = params[6];
    return row / stride * stride * params[5] + row % stride + i * stride;
}

fn size_at(mask: Mask, local: u32) -> u32 {
    return magnitude(value(load_one(local), place(local), mask.k));
}

// Whether a rank, here its double, is above the place of a number.
fn is_above(mask: Mask, doubled: u32, drawn: u32) -> bool {
    let spread = max(mask.high - mask.low, 1u);
    return wide_above(wide_product(doubled, spread), wide_product(drawn - mask.low, 2u * (params[5] - 1u)));
}

// Writes what an element is multiplied with; the rank is doubled.
fn settle(mask: Mask, local: u32, doubled: u32, is_kept: bool) {
    var scale = 1.0;
    if (mask.by_probability) {
        let place = select(f32(doubled) / f32(2u * (params[5] - 1u)), 0.5, params[5] == 1u);
        let probability = mask.probability + mask.more * place;
        // Division may be off by a few units; a step of Newton's method makes up for it.
        let rough = 1.0 / probability;
        let product = two_product(probability, rough);
        scale = rough + rough * ((1.0 - product.x) - product.y);
    }
    out[params[7] + mask.number * count() + local] = finite(select(0.0, scale, is_kept), true);
}

// Decides an element whose rank is known.
fn decide(mask: Mask, local: u32, less: u32, equal: u32) {
    let drawn = random(place(local), mask.key_low, mask.key_high);
    let doubled = 2u * less + equal - 1u;
    var is_kept = drawn < mask.low || (drawn < mask.high && is_above(mask, doubled, drawn));
    if (params[5] == 1u) {
        is_kept = drawn < (mask.low & mask.high) + ((mask.low ^ mask.high) >> 1u);
    }
    settle(mask, local, doubled, is_kept);
}

// Rows of up to 256 elements, several to a workgroup: each thread counts for an element. `lanes` threads share a row.
fn short_rows(mask: Mask, first: u32, rows: u32, lanes: u32, thread: u32) {
    let row = first + thread / lanes;
    let lane = thread % lanes;
    let is_there = row < rows && lane < params[5];
    var local = 0u;
    if (is_there) {
        local = along(row, lane);
        chunk[thread] = size_at(mask, local);
    }
    workgroupBarrier();
    if (is_there) {
        let size = chunk[thread];
        var less = 0u;
        var equal = 0u;
        for (var i = thread - lane; i < thread - lane + params[5]; i++) {
            less += select(0u, 1u, chunk[i] < size);
            equal += select(0u, 1u, chunk[i] == size);
        }
        decide(mask, local, less, equal);
    }
}

// Where the row's bucketed magnitudes are in `out`.
fn bucketed(mask: Mask, row: u32) -> u32 {
    return params[7] + (params[8] + mask.number) * count() + row * params[5];
}

// Turns the counts of buckets into where each begins, behind the elements that are 0; four buckets a thread.
fn begin_buckets(thread: u32) {
    let first = thread * 4u;
    var counts = vec4<u32>();
    var wide = 0u;
    for (var i = 0u; i < 4u; i++) {
        let n = atomicLoad(&ends[first + i]);
        counts[i] = n;
        if (atomicLoad(&least[first + i]) != atomicLoad(&most[first + i])) {
            wide = max(wide, n);
        }
    }
    atomicMax(&widest, wide);
    chunk[thread] = counts.x + counts.y + counts.z + counts.w;
    workgroupBarrier();
    // Sixteen threads sum sixteen each, in place; then each adds the sums before its own.
    if (thread < 16u) {
        for (var i = thread * 16u + 1u; i < thread * 16u + 16u; i++) {
            chunk[i] += chunk[i - 1u];
        }
    }
    workgroupBarrier();
    var begin = atomicLoad(&zeros);
    for (var i = 15u; i < thread / 16u * 16u; i += 16u) {
        begin += chunk[i];
    }
    if (thread % 16u > 0u) {
        begin += chunk[thread - 1u];
    }
    for (var i = 0u; i < 4u; i++) {
        atomicStore(&ends[first + i], begin);
        begin += counts[i];
    }
    workgroupBarrier();
}

// How many of the bucketed magnitudes from `begin` to `end` are less and equal.
fn count_through(begin: u32, end: u32, size: u32) -> vec2<u32> {
    var less = vec4(0u);
    var equal = vec4(0u);
    for (var at = begin; at < end; at += TOGETHER) {
        count_four(at, end, size, &less, &equal);
        count_four(at + 4u, end, size, &less, &equal);
        count_four(at + 8u, end, size, &less, &equal);
        count_four(at + 12u, end, size, &less, &equal);
    }
    return vec2(less.x + less.y + less.z + less.w, equal.x + equal.y + equal.z + equal.w);
}

fn count_four(at: u32, end: u32, size: u32, less: ptr<function, vec4<u32>>, equal: ptr<function, vec4<u32>>) {
    let i = vec4(at) + vec4(0u, 1u, 2u, 3u);
    // Behind the bucket stands what is larger than any magnitude.
    let others = vec4(out[i.x], out[i.y], out[i.z], out[i.w]) | select(vec4(0xffffffffu), vec4(0u), i < vec4(end));
    *less += select(vec4(0u), vec4(1u), others < vec4(size));
    *equal += select(vec4(0u), vec4(1u), others == vec4(size));
}

fn long_row(mask: Mask, row: u32, thread: u32) {
    let length = params[5];
    let factors = params[7] + mask.number * count();
    let sorted = bucketed(mask, row);
    for (var i = thread; i < BUCKETS; i += WORKGROUP) {
        atomicStore(&ends[i], 0u);
        atomicStore(&least[i], 0xffffffffu);
        atomicStore(&most[i], 0u);
    }
    if (thread == 0u) {
        atomicStore(&smallest, 0xffffffffu);
        atomicStore(&largest, 0u);
        atomicStore(&zeros, 0u);
        atomicStore(&widest, 0u);
    }
    workgroupBarrier();

    // The magnitudes wait where the factors will be.
    var own_smallest = 0xffffffffu;
    var own_largest = 0u;
    var own_zeros = 0u;
    for (var i = thread; i < length; i += WORKGROUP) {
        let local = along(row, i);
        let size = size_at(mask, local);
        out[factors + local] = size;
        own_largest = max(own_largest, size);
        own_smallest = min(own_smallest, select(size, 0xffffffffu, size == 0u));
        own_zeros += select(0u, 1u, size == 0u);
    }
    atomicMin(&smallest, own_smallest);
    atomicMax(&largest, own_largest);
    atomicAdd(&zeros, own_zeros);
    workgroupBarrier();

    // Buckets as narrow as may be, so that all magnitudes but 0 have one.
    let floor = atomicLoad(&smallest);
    let range = max(atomicLoad(&largest), floor) - floor;
    var shift = 0u;
    while (range >> shift >= BUCKETS) {
        shift += 1u;
    }
    for (var i = thread; i < length; i += WORKGROUP) {
        let size = out[factors + along(row, i)];
        if (size != 0u) {
            let bucket = (size - floor) >> shift;
            atomicAdd(&ends[bucket], 1u);
            atomicMin(&least[bucket], size);
            atomicMax(&most[bucket], size);
        }
    }
    workgroupBarrier();
    begin_buckets(thread);
    limit_rounds((length / WORKGROUP + 1u) * (atomicLoad(&widest) / TOGETHER + 6u) + 200u);
    for (var i = thread; i < length; i += WORKGROUP) {
        let size = out[factors + along(row, i)];
        if (size != 0u) {
            out[sorted + atomicAdd(&ends[(size - floor) >> shift], 1u)] = size;
        }
    }
    workgroupBarrier();
    storageBarrier();

    for (var i = thread; i < length; i += WORKGROUP) {
        let local = along(row, i);
        let size = out[factors + local];
        if (size == 0u) {
            settle(mask, local, 0u, false);
            continue;
        }
        let bucket = (size - floor) >> shift;
        let end = atomicLoad(&ends[bucket]);
        var begin = atomicLoad(&zeros);
        if (bucket > 0u) {
            begin = atomicLoad(&ends[bucket - 1u]);
        }
        let drawn = random(place(local), mask.key_low, mask.key_high);
        let is_kept = drawn < mask.low || (drawn < mask.high && is_above(mask, 2u * begin, drawn));
        let is_dropped = drawn >= mask.high || (drawn >= mask.low && !is_above(mask, 2u * (end - 1u), drawn));
        if (is_dropped || (is_kept && !mask.by_probability)) {
            settle(mask, local, 2u * begin, is_kept);
        } else if (atomicLoad(&least[bucket]) == atomicLoad(&most[bucket])) {
            decide(mask, local, begin, end - begin);
        } else {
            let counts = count_through(sorted + begin, sorted + end, size);
            decide(mask, local, begin + counts.x, counts.y);
        }
    }
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let masks = params[8];
    let rows = count() / params[5];
    var lanes = 1u;
    while (lanes < WORKGROUP && lanes < params[5]) {
        lanes *= 2u;
    }
    let together = WORKGROUP / lanes;
    let first = numbered(id, groups) / masks * together;
    if (first >= rows) {
        return;
    }
    strange = arrayLength(&out) < params[7] + 2u * masks * count();
    let own = mask(numbered(id, groups) % masks);
    if (params[5] <= WORKGROUP) {
        short_rows(own, first, rows, lanes, thread);
    } else {
        long_row(own, first, thread);
    }
    finish();
}
