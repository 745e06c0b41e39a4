//! Layers and their gradients, against torch's and against candle's own.

use super::{farthest, goldens, relative, tensor, with_threads};
use crate::model::Outcome;
use candle_core::{Tensor, Var};
use ckptmerge::diffusion::nn::{Window, attention, conv2d, group_norm, upsample};
use std::collections::HashMap;

/// What a layer gives of tensors with the same gradients as torch's.
fn check(
    goldens: &HashMap<String, Tensor>,
    case: &str,
    shapes: &[(&str, &[usize])],
    layer: impl Fn(&[Tensor]) -> candle_core::Result<Tensor>,
) -> Outcome {
    let inputs: Vec<Var> =
        shapes.iter().map(|(name, shape)| Ok(Var::from_tensor(&tensor(name, shape)?)?)).collect::<Outcome<_>>()?;
    let tensors: Vec<Tensor> = inputs.iter().map(|input| input.as_tensor().clone()).collect();
    let out = layer(&tensors)?;
    assert!(relative(&out, &goldens[&format!("{case}.out")])? < 1e-5, "{case}");
    let gradients = (&out * tensor("of out", out.dims())?)?.sum_all()?.backward()?;
    for (input, (name, _)) in inputs.iter().zip(shapes) {
        let gradient = gradients.get(input).ok_or("no gradient")?;
        let off = relative(gradient, &goldens[&format!("{case}.{name}")])?;
        assert!(off < 1e-5, "{case}, gradient of {name}: off by {off}");
    }
    Ok(())
}

#[test]
fn layers_and_their_gradients_are_torchs() -> Outcome {
    let goldens = goldens("unet/expected.safetensors")?;
    let convolutions: [(&str, [usize; 4], [usize; 4], Window); 4] = [
        ("conv3", [2, 3, 7, 9], [5, 3, 3, 3], Window::SAME3),
        ("conv-stride", [2, 4, 8, 8], [3, 4, 3, 3], Window { stride: (2, 2), padding: (0, 0) }),
        ("conv-wide", [1, 4, 5, 9], [3, 4, 1, 7], Window { stride: (1, 1), padding: (0, 3) }),
        ("conv1", [3, 6, 4, 4], [8, 6, 1, 1], Window::PLAIN),
    ];
    for (case, images, kernels, window) in convolutions {
        let shapes = [("images", &images[..]), ("kernels", &kernels[..]), ("bias", &kernels[..1])];
        check(&goldens, case, &shapes, |x| conv2d(&x[0], &x[1], Some(&x[2]), window))?;
    }
    let shapes: [(&str, &[usize]); 3] = [("images", &[2, 6, 3, 5]), ("scale", &[6]), ("shift", &[6])];
    check(&goldens, "norm", &shapes, |x| group_norm(&x[0], &x[1], &x[2], 3, 1e-6, false))?;
    check(&goldens, "norm-silu", &shapes, |x| group_norm(&x[0], &x[1], &x[2], 2, 1e-5, true))?;
    let shapes: [(&str, &[usize]); 3] = [("queries", &[2, 4, 9]), ("keys", &[2, 4, 9]), ("values", &[2, 4, 9])];
    check(&goldens, "attention", &shapes, |x| attention(&x[0], &x[1], &x[2], 0.75))
}

/// Sizes over the edges of tiles and tasks, against candle's own convolution and its gradients.
#[test]
fn convolutions_of_any_size_are_candles() -> Outcome {
    let cases: [([usize; 4], [usize; 4], usize, usize); 8] = [
        ([1, 1, 1, 1], [1, 1, 1, 1], 1, 0),
        ([2, 3, 40, 41], [4, 3, 3, 3], 1, 1),
        ([1, 40, 24, 24], [7, 40, 3, 3], 1, 1),
        ([2, 150, 5, 6], [130, 150, 1, 1], 1, 0),
        ([1, 33, 23, 21], [17, 33, 3, 3], 2, 1),
        ([3, 2, 9, 9], [5, 2, 5, 5], 2, 2),
        ([1, 2, 2, 2], [3, 2, 3, 3], 1, 2),
        ([2, 5, 600, 2], [3, 5, 2, 2], 1, 0),
    ];
    for (images, kernels, stride, padding) in cases {
        let [x, w] = [("images", images), ("kernels", kernels)].map(|(name, shape)| tensor(name, &shape));
        let (x, w) = (Var::from_tensor(&x?)?, Var::from_tensor(&w?)?);
        let window = Window { stride: (stride, stride), padding: (padding, padding) };
        let ours = conv2d(&x, &w, None, window)?;
        let theirs = x.conv2d(&w, padding, stride, 1, 1)?;
        assert!(relative(&ours, &theirs)? < 1e-5, "{images:?} {kernels:?}");
        let weights = tensor("of out", ours.dims())?;
        let ours = (&ours * &weights)?.sum_all()?.backward()?;
        let theirs = (&theirs * &weights)?.sum_all()?.backward()?;
        for input in [&x, &w] {
            let [ours, theirs] = [&ours, &theirs].map(|gradients| gradients.get(input).ok_or("no gradient"));
            assert!(relative(ours?, theirs?)? < 1e-4, "{images:?} {kernels:?}");
        }
    }
    Ok(())
}

/// Each image's own bias, and inputs whose elements do not lie in order.
#[test]
fn biases_of_images_and_views_are_taken_as_they_are() -> Outcome {
    let (x, w) = (tensor("images", &[3, 6, 5, 4])?, tensor("kernels", &[7, 6, 3, 3])?);
    let bias = Var::from_tensor(&tensor("bias", &[3, 7])?)?;
    let out = conv2d(&x, &w, Some(&bias), Window::SAME3)?;
    let plain = conv2d(&x, &w, None, Window::SAME3)?.broadcast_add(&bias.reshape((3, 7, 1, 1))?)?;
    assert!(farthest(&out, &plain)? < 1e-5);
    let of_bias = out.sum_all()?.backward()?.get(&bias).ok_or("no gradient")?.to_vec2::<f32>()?;
    assert_eq!(of_bias, vec![vec![20.0; 7]; 3]);
    let view = tensor("images", &[3, 6, 4, 5])?.transpose(2, 3)?;
    let copied = view.force_contiguous()?;
    assert_eq!(farthest(&conv2d(&view, &w, None, Window::SAME3)?, &conv2d(&copied, &w, None, Window::SAME3)?)?, 0.0);
    Ok(())
}

#[test]
fn upsampling_repeats_pixels_and_adds_up_gradients() -> Outcome {
    let x = Var::from_tensor(&tensor("images", &[2, 3, 4, 5])?)?;
    let out = upsample(&x)?;
    assert_eq!(farthest(&out, &x.upsample_nearest2d(8, 10)?)?, 0.0);
    let weights = tensor("of out", out.dims())?;
    let gradients = (&out * &weights)?.sum_all()?.backward()?;
    let expected = (weights.avg_pool2d(2)? * 4.0)?;
    assert!(farthest(gradients.get(&x).ok_or("no gradient")?, &expected)? < 1e-6);
    Ok(())
}

/// An image's results are the same bits alone and among others, on one thread and on several.
#[test]
fn results_depend_on_neither_batch_nor_threads() -> Outcome {
    let layers = |batch: usize| -> Outcome<Vec<Tensor>> {
        let x = tensor("images", &[4, 24, 20, 17])?.narrow(0, 4 - batch, batch)?;
        let w = tensor("kernels", &[31, 24, 3, 3])?;
        let small = x.narrow(2, 0, 3)?.narrow(3, 0, 2)?;
        let flat = x.flatten_from(2)?;
        let scale = tensor("scale", &[24])?;
        Ok(vec![
            conv2d(&x, &w, None, Window::SAME3)?,
            conv2d(&small, &w, None, Window::SAME3)?,
            conv2d(&x, &tensor("kernels", &[31, 24, 1, 1])?, None, Window::PLAIN)?,
            group_norm(&x, &scale, &scale, 6, 1e-5, true)?,
            attention(&flat, &flat, &flat, 0.3)?,
        ])
    };
    let one = with_threads(1, || layers(1).map_err(|error| error.to_string()))??;
    let four = with_threads(3, || layers(4).map_err(|error| error.to_string()))??;
    for (one, four) in one.iter().zip(&four) {
        assert_eq!(farthest(one, &four.narrow(0, 3, 1)?)?, 0.0, "{:?}", one.shape());
    }
    Ok(())
}
