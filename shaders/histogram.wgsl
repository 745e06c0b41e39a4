// For each search: how many elements have a magnitude of value(leaves, place, k) in which bucket.
//
// params[3] searches; params[4]: where their table begins in `word`, of 4 words each: k, low, high, shift. Magnitudes are the
// bits of an f32 without its sign. out: per search the number of elements whose magnitude m is below low, then of 1024 buckets,
// (m - low) >> shift of those with low <= m <= high.
//
// Workgroups: any number; they share the elements, 2048 at a time, but one for each 16384 at most, for its counts are to be
// added to the output's when it is done. Bindings: all. Limits: below 2^31 elements;
// (high - low) >> shift is at most 1023; elements for each workgroup, times searches, up to 2^26.

@group(0) @binding(2) var<storage, read_write> out: array<atomic<u32>>;

const COUNTS: u32 = 1025u;
// Searches that a workgroup counts for at once: 12 KiB of the 16 KiB that every device has.
const BATCH: u32 = 3u;
// Elements for which a workgroup is worth its counts.
const ELEMENTS: u32 = 16384u;
const NOWHERE: u32 = 0xffffffffu;

var<workgroup> counts: array<atomic<u32>, 3075>;

fn factor(m: u32, at: Place) -> f32 {
    return bitcast<f32>(atomicLoad(&out[params[7] + m * count() + at.local]));
}

// Neighbours in the same bucket are counted together: many elements may be equal, such as those that are 0.
struct Run {
    to: u32,
    length: u32,
}

fn add_run(run: Run) {
    if (run.length > 0u && run.to != NOWHERE) {
        atomicAdd(&counts[run.to], run.length);
    }
}

// The element's place in `counts`; `search` is the number in the batch, `table` the search's first word.
fn slot(l: Leaves, local: u32, search: u32, table: u32) -> u32 {
    if (local >= count()) {
        return NOWHERE;
    }
    let m = magnitude(value(l, place(local), word(table)));
    let low = word(table + 1u);
    if (m > word(table + 2u)) {
        return NOWHERE;
    }
    return search * COUNTS + select(1u + ((m - low) >> word(table + 3u)), 0u, m < low);
}

fn lengthen(run: ptr<function, Run>, to: u32) {
    if ((*run).to != to) {
        add_run(*run);
        *run = Run(to, 0u);
    }
    (*run).length += 1u;
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let searches = params[3];
    let used = min(groups.x * groups.y, (count() + ELEMENTS - 1u) / ELEMENTS);
    if (numbered(id, groups) >= used) {
        return;
    }
    let apart = used * WORKGROUP;
    limit_rounds((searches + 2u) / BATCH * ((count() / 8u / apart + 1u) * (BATCH + 1u) + 30u));
    for (var first = 0u; first < searches; first += BATCH) {
        let batch = min(BATCH, searches - first);
        for (var i = thread; i < batch * COUNTS; i += WORKGROUP) {
            atomicStore(&counts[i], 0u);
        }
        workgroupBarrier();
        for (var group = numbered(id, groups) * WORKGROUP + thread; group < (count() + 7u) / 8u; group += apart) {
            let x = load(group);
            let local = group * 8u;
            for (var search = 0u; search < batch; search++) {
                let table = params[4] + (first + search) * 4u;
                var run = Run(NOWHERE, 0u);
                lengthen(&run, slot(x[0], local, search, table));
                lengthen(&run, slot(x[1], local + 1u, search, table));
                lengthen(&run, slot(x[2], local + 2u, search, table));
                lengthen(&run, slot(x[3], local + 3u, search, table));
                lengthen(&run, slot(x[4], local + 4u, search, table));
                lengthen(&run, slot(x[5], local + 5u, search, table));
                lengthen(&run, slot(x[6], local + 6u, search, table));
                lengthen(&run, slot(x[7], local + 7u, search, table));
                add_run(run);
            }
        }
        workgroupBarrier();
        for (var i = thread; i < batch * COUNTS; i += WORKGROUP) {
            let n = atomicLoad(&counts[i]);
            if (n > 0u) {
                atomicAdd(&out[first * COUNTS + i], n);
            }
        }
        workgroupBarrier();
    }
    finish();
}
