// Whether threads exchange numbers with those that they should: strange if not.
//
// Bindings: params, status. Workgroups: any number.

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) thread: u32) {
    let x = vec4(1.0, 2.0, 3.0, 4.0) * f32(thread + 1u);
    for (var apart = 1u; apart < SUBGROUP; apart *= 2u) {
        let expected = vec4(1.0, 2.0, 3.0, 4.0) * f32((thread ^ apart) + 1u);
        let found = exchanged(x, apart);
        strange = strange || any(found != expected);
    }
    finish();
}
