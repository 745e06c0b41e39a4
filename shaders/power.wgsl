// power_product(a, b, exponents, table) = |a|^p * |b|^q * 2^c, before the last rounding within (|p| + |q| + 2) * 2^-36 of itself.
//
// It is 2^(p log2|a| + q log2|b| + c) in integers. Logarithms have 48 bits behind the point: a mantissa m in [1, 2) is
// multiplied with the 9 bits r that the table has for its first 6, which is exact and leaves 1 + t with |t| < 2^-6; log2(m) is
// the table's -log2(r) and t times a polynomial. A power of two is the table's for the first 6 bits of its fraction, times
// 1 and a polynomial of the rest.
//
// The words at `exponents`: |p| in units of 2^-48 (low, high; the sign in the highest bit), q alike, and c (low, high; signed, in
// the same units). Those at `table`: 64 times r in units of 2^-8, -log2(r) in units of 2^-48 (low, high); then 64 times
// 2^(i/64) in units of 2^-62 (low, high). Limits: |p| and |q| are below 16, |c| below 2^9.
//
// 0^p is 0 for positive p, 1 for p = 0, and strange for others; so are results of 2^128, and others than 0 below 2^-126.

// Numbers of 64 bits are vec2: low, high.
fn wide_add(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = a.x + b.x;
    return vec2(low, a.y + b.y + select(0u, 1u, low < a.x));
}

fn wide_signed(a: vec2<u32>, is_negative: bool) -> vec2<u32> {
    return select(a, wide_add(~a, vec2(1u, 0u)), is_negative);
}

fn wide_words(at: u32) -> vec2<u32> {
    return vec2(word(at), word(at + 1u));
}

// a * b / 2^32.
fn high_product(a: u32, b: u32) -> u32 {
    return wide_product(a, b).y;
}

// a * b / 2^16.
fn middle_product(a: u32, b: u32) -> vec2<u32> {
    let product = wide_product(a, b);
    return vec2((product.y << 16u) | (product.x >> 16u), product.y >> 16u);
}

// log2 of the bits of a positive number, in units of 2^-48, signed.
fn log2_of(bits: u32, table: u32) -> vec2<u32> {
    let at = table + ((bits >> 17u) & 63u) * 3u;
    // In units of 2^-31.
    let t = ((bits & 0x7fffffu) | 0x800000u) * word(at) - 0x80000000u;
    let is_negative = t >= 0x80000000u;
    // |t| in units of 2^-38: as a fraction of 2^32 it is 2^6 as large.
    let x = select(t, 0u - t, is_negative) << 7u;
    // log2(1 + t) / t = (1 - t/2 + t^2/3 - ...) / ln 2, in units of 2^-31.
    var p = 516360668u;
    p = 619632802u + signed_word(high_product(p, x) >> 6u, is_negative);
    p = 774541002u + signed_word(high_product(p, x) >> 6u, is_negative);
    p = 1032721336u + signed_word(high_product(p, x) >> 6u, is_negative);
    p = 1549082005u + signed_word(high_product(p, x) >> 6u, is_negative);
    p = 3098164009u + signed_word(high_product(p, x) >> 6u, is_negative);
    let product = wide_product(x, p);
    let log_t = vec2((product.y << 11u) | (product.x >> 21u), product.y >> 21u);
    let exponent = vec2(0u, ((bits >> 23u) - 127u) << 16u);
    return wide_add(exponent, wide_add(wide_words(at + 1u), wide_signed(log_t, is_negative)));
}

// Added where t is negative, else subtracted.
fn signed_word(x: u32, is_added: bool) -> u32 {
    return select(0u - x, x, is_added);
}

// A number in units of 2^-48 times the exponent at `at`, in the same units.
fn times_exponent(a: vec2<u32>, at: u32) -> vec2<u32> {
    let is_negative = a.y >= 0x80000000u;
    let x = wide_signed(a, is_negative);
    let p = wide_words(at) & vec2(0xffffffffu, 0x7fffffffu);
    let high = wide_product(p.y, x.y);
    let middle = wide_add(middle_product(p.y, x.x), middle_product(p.x, x.y));
    let low = vec2(high_product(p.x, x.x) >> 16u, 0u);
    let product = wide_add(vec2(high.x << 16u, (high.y << 16u) | (high.x >> 16u)), wide_add(middle, low));
    return wide_signed(product, is_negative != (word(at + 1u) >= 0x80000000u));
}

fn power_product(a: f32, b: f32, exponents: u32, table: u32) -> f32 {
    let p = wide_words(exponents);
    let q = wide_words(exponents + 2u);
    var sum = wide_words(exponents + 4u);
    var is_zero = false;
    if ((p.x | (p.y & 0x7fffffffu)) != 0u) {
        let size = magnitude(a);
        strange = strange || size >= 0x7f800000u || (size < 0x800000u && p.y >= 0x80000000u);
        is_zero = size < 0x800000u;
        sum = wide_add(sum, times_exponent(log2_of(size, table), exponents));
    }
    if ((q.x | (q.y & 0x7fffffffu)) != 0u) {
        let size = magnitude(b);
        strange = strange || size >= 0x7f800000u || (size < 0x800000u && q.y >= 0x80000000u);
        is_zero = is_zero || size < 0x800000u;
        sum = wide_add(sum, times_exponent(log2_of(size, table), exponents + 2u));
    }
    let exponent = bitcast<i32>(sum.y) >> 16u;
    if (is_zero || exponent < -126) {
        strange = strange || !is_zero;
        return 0.0;
    }
    // The rest of the fraction in units of 2^-38, and (2^rest - 1) / rest in units of 2^-32.
    let rest = ((sum.y & 0x3ffu) << 22u) | (sum.x >> 10u);
    var e = 5726720u;
    e = 41309550u + (high_product(e, rest) >> 6u);
    e = 238388332u + (high_product(e, rest) >> 6u);
    e = 1031764991u + (high_product(e, rest) >> 6u);
    e = 2977044472u + (high_product(e, rest) >> 6u);
    let more = high_product(e, rest);
    let power = wide_words(table + 192u + ((sum.y >> 10u) & 63u) * 2u);
    // power * more / 2^38.
    let product = wide_add(wide_product(power.y, more), vec2(high_product(power.x, more), 0u));
    let result = wide_add(power, vec2((product.x >> 6u) | (product.y << 26u), product.y >> 6u));
    // Of 63 bits, 24 stay: nearest, ties to even.
    let last = (result.y >> 7u) & 1u;
    let up = select(0u, 1u, (result.y & 127u) > 64u || ((result.y & 127u) == 64u && (result.x != 0u || last == 1u)));
    let bits = (u32(exponent + 126) << 23u) + (result.y >> 7u) + up;
    strange = strange || exponent >= 128 || bits >= 0x7f800000u;
    return bitcast<f32>(bits);
}
