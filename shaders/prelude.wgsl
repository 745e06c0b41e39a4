// What all kernels share: bindings, where an element is, numbers from the host, decoding and encoding, random numbers,
// sums that are more exact than f32.
//
// params: [0] elements in the tile, [1], [2] the number of the first of them in the tensor, low and high, [3] to [10] the
// kernel's own, [11] is 0, [12 + i] where leaf i begins, in vec4<u32>; behind the leaves what `word` and `number` give.
//
// Nothing here relies on numbers below 2^-126, on infinities, or on NaN, which devices need not know: what would be one is
// found in the bits and marks the tile as strange. Multiplications and additions may be fused, and what is exact stays so.

const HEADER: u32 = 12u;
const WORKGROUP: u32 = 256u;

@group(0) @binding(0) var<storage, read> inputs: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> params: array<u32>;
@group(0) @binding(3) var<storage, read_write> status: array<atomic<u32>, 4>;

// Whether this thread met what devices need not compute as the CPU does.
var<private> strange: bool = false;

// Rounds that all loops of a thread may take together. Mesa's software device ends loops after 65535 of them, and says
// nothing; a kernel that would take more is strange.
const ROUNDS: u32 = 60000u;

fn limit_rounds(rounds: u32) {
    strange = strange || rounds > ROUNDS;
}

// Says so to the host; the last thing a thread does.
fn finish() {
    if (strange) {
        atomicOr(&status[0], 1u);
    }
}

fn count() -> u32 {
    return params[0];
}

// The workgroup's number.
fn numbered(id: vec3<u32>, groups: vec3<u32>) -> u32 {
    return id.y * groups.x + id.x;
}

// The host's words.
fn word(i: u32) -> u32 {
    return params[HEADER + LEAVES + i];
}

// The host's numbers, which are words as well.
fn number(i: u32) -> f32 {
    return bitcast<f32>(word(i));
}

// An element: its number in the tile, and the 64 bits of its number in the tensor.
struct Place {
    local: u32,
    low: u32,
    high: u32,
}

fn place(local: u32) -> Place {
    let low = params[1] + local;
    return Place(local, low, params[2] + select(0u, 1u, low < local));
}

// The bits without the sign, which sort as magnitudes do.
fn magnitude(x: f32) -> u32 {
    return bitcast<u32>(x) & 0x7fffffffu;
}

// 1 for a magnitude between the bounds, both included; else 0.
fn within(x: f32, low: u32, high: u32) -> f32 {
    let bits = magnitude(x);
    return select(1.0, 0.0, bits < low || bits > high);
}

// 1 for a number that is not above the limit, else 0.
fn below(number: u32, limit: u32) -> f32 {
    return select(0.0, 1.0, number <= limit);
}

fn mix_bits(index: u32, key: u32) -> u32 {
    var x = index;
    x = (x ^ (x >> 16u)) * 0x21f0aaadu + key;
    x = (x ^ (x >> 15u)) * 0x735a2d97u;
    return x ^ (x >> 15u);
}

// The random number of a key at an element. The index has 32 bits; those above change the key.
fn random(at: Place, key_low: u32, key_high: u32) -> u32 {
    let upper = mix_bits(at.high, 0x9e3779b9u);
    return mix_bits(at.low ^ key_low ^ upper, key_high + upper);
}

// The product of two words, low word first.
fn wide_product(a: u32, b: u32) -> vec2<u32> {
    let a_low = a & 0xffffu;
    let a_high = a >> 16u;
    let b_low = b & 0xffffu;
    let b_high = b >> 16u;
    let low = a_low * b_low;
    // Neither sum overflows: (2^16 - 1)^2 + 2 * (2^16 - 1) = 2^32 - 1.
    let middle = a_high * b_low + (low >> 16u);
    let other = a_low * b_high + (middle & 0xffffu);
    return vec2(a * b, a_high * b_high + (middle >> 16u) + (other >> 16u));
}

// Whether a is above b, of 64 bits, low word first.
fn wide_above(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.y > b.y || (a.y == b.y && a.x > b.x);
}

// Decoding, to the bits of an f32.

// Bits that a kernel may compute with, else strange: 0, or from 2^-80 up and finite. Differences of such numbers are far
// above what a device may flush to 0.
fn usable(bits: u32) -> f32 {
    let size = bits & 0x7fffffffu;
    strange = strange || (size != 0u && size - 0x17800000u >= 0x68000000u);
    return bitcast<f32>(bits);
}

// The magnitude of a type whose least normal number has the given f32 bits, its mantissa at the top of an f32's: for
// numbers that are normal add the difference of the biases; for others add one more, and subtract the power of two that this
// has put in front. The subtraction is exact.
fn widen(placed: u32, least_normal: u32) -> u32 {
    let below_normal = bitcast<u32>(bitcast<f32>(placed + least_normal) - bitcast<f32>(least_normal));
    return select(placed + least_normal - 0x800000u, below_normal, placed < 0x800000u);
}

// F32 and BF16 have an f32's exponent: all checks are left to `usable`.
fn decode_f32(code: u32) -> u32 {
    return code;
}

fn decode_bf16(code: u32) -> u32 {
    return code << 16u;
}

// The others become infinity where their exponent says infinity or NaN.
fn decode_f16(code: u32) -> u32 {
    let size = code & 0x7fffu;
    let bits = select(widen(size << 13u, 0x38800000u), 0x7f800000u, size >= 0x7c00u);
    return bits | ((code & 0x8000u) << 16u);
}

fn decode_f8e5m2(code: u32) -> u32 {
    return decode_f16(code << 8u);
}

fn decode_f8e4m3(code: u32) -> u32 {
    let size = code & 0x7fu;
    let bits = select(widen(size << 20u, 0x3c800000u), 0x7f800000u, size == 0x7fu);
    return bits | ((code & 0x80u) << 24u);
}

// Encoding, from the bits of an f32 that is finite, to nearest, ties to even.

// The inverse of `widen`, without the last `shift` bits.
fn narrow(size: u32, shift: u32, least_normal: u32) -> u32 {
    let normal = (size - (least_normal - 0x800000u) + (1u << (shift - 1u)) - 1u + ((size >> shift) & 1u)) >> shift;
    // Below the least normal number each step of the exponent takes one more bit of the mantissa.
    let more = min(shift + (least_normal >> 23u) - (size >> 23u), 31u);
    let mantissa = (size & 0x7fffffu) | 0x800000u;
    let below_normal = (mantissa + (1u << (more - 1u)) - 1u + ((mantissa >> more) & 1u)) >> more;
    return select(normal, below_normal, size < least_normal);
}

fn encode_f32(bits: u32) -> u32 {
    return bits;
}

fn encode_bf16(bits: u32) -> u32 {
    return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
}

fn encode_f16(bits: u32) -> u32 {
    let size = bits & 0x7fffffffu;
    return select(0x7c00u, narrow(size, 13u, 0x38800000u), size < 0x47800000u) | ((bits >> 16u) & 0x8000u);
}

fn encode_f8e5m2(bits: u32) -> u32 {
    let size = bits & 0x7fffffffu;
    return select(0x7cu, narrow(size, 21u, 0x38800000u), size < 0x47800000u) | ((bits >> 24u) & 0x80u);
}

fn encode_f8e4m3(bits: u32) -> u32 {
    let size = bits & 0x7fffffffu;
    return select(0x7eu, min(narrow(size, 20u, 0x3c800000u), 0x7eu), size < 0x43f00000u) | ((bits >> 24u) & 0x80u);
}

// The bits of a result, which is strange if it is not finite and counts.
fn finite(x: f32, counts: bool) -> u32 {
    let bits = bitcast<u32>(x);
    strange = strange || (counts && (bits & 0x7fffffffu) >= 0x7f800000u);
    return bits;
}

// Sums as pairs: x is the sum, y what rounding has taken from it.

// The number itself, of which a compiler cannot know that it is: (a + b) - a must not become b.
fn opaque(x: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(x) ^ params[11]);
}

fn opaque4(x: vec4<f32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(x) ^ vec4(params[11]));
}

// The rounded sum, and exactly what rounding took (Knuth).
fn two_sum(a: f32, b: f32) -> vec2<f32> {
    let sum = opaque(a + b);
    let second = opaque(sum - a);
    return vec2(sum, (a - (sum - second)) + (b - second));
}

// The first half of a mantissa; what is left has 12 bits as well, so that products of halves are exact.
fn half(x: f32) -> f32 {
    return bitcast<f32>(bitcast<u32>(x) & 0xfffff000u);
}

// The rounded product, and exactly what rounding took (Dekker): all products but the first are exact, fused or not.
fn two_product(a: f32, b: f32) -> vec2<f32> {
    let product = opaque(a * b);
    let a_high = half(a);
    let b_high = half(b);
    let a_low = a - a_high;
    let b_low = b - b_high;
    return vec2(product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low);
}

fn add(total: vec2<f32>, x: f32) -> vec2<f32> {
    let sum = two_sum(total.x, x);
    return vec2(sum.x, total.y + sum.y);
}

fn add_pairs(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    let sum = two_sum(a.x, b.x);
    return vec2(sum.x, (a.y + b.y) + sum.y);
}

// Threads that share so many elements, 8 to a thread: a power of two.
fn lanes_for(length: u32) -> u32 {
    var lanes = 1u;
    while (lanes < WORKGROUP && lanes * 8u < length) {
        lanes *= 2u;
    }
    return lanes;
}

// How a tile's elements are cut: in units of params[3], and each of these in segments of params[4] elements, which `lanes`
// threads share. The last unit may be shorter, and so may the last segment of each.
struct Cut {
    unit: u32,
    length: u32,
    of_unit: u32,
    segments: u32,
    lanes: u32,
    // Segments of a workgroup.
    together: u32,
}

fn cut() -> Cut {
    let unit = params[3];
    let length = min(params[4], unit);
    let of_unit = (unit + length - 1u) / length;
    let segments = count() / unit * of_unit + (count() % unit + length - 1u) / length;
    let lanes = lanes_for(length);
    return Cut(unit, length, of_unit, segments, lanes, WORKGROUP / lanes);
}

// The first element of a segment, and the one behind its last.
fn ends_of(cut: Cut, segment: u32) -> vec2<u32> {
    let start = segment / cut.of_unit * cut.unit;
    let first = start + segment % cut.of_unit * cut.length;
    return vec2(first, min(first + cut.length, min(start + cut.unit, count())));
}
