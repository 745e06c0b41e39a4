//! The pickle of a state dict, in protocol 2, as `torch.load(weights_only=True)` accepts it.
//!
//! Every tensor is a contiguous view of a storage; tied tensors are views of the same one.

use ckptmerge_format::DType;
use std::collections::HashMap;

/// A tensor of the state dict.
pub(crate) struct Item<'a> {
    pub(crate) name: &'a str,
    /// The type's name in torch and its storage class, if it has one.
    pub(crate) torch: (&'static str, Option<&'static str>),
    pub(crate) dtype: DType,
    pub(crate) shape: &'a [u64],
    /// The storage's number, and its length in elements.
    pub(crate) key: usize,
    pub(crate) elements: u64,
}

/// The pickled state dict.
pub(crate) fn state_dict(items: &[Item<'_>]) -> Vec<u8> {
    let mut out = Pickle { bytes: vec![0x80, 2], memo: HashMap::new() };
    out.ordered_dict();
    out.bytes.push(b'(');
    for item in items {
        out.fresh_text(item.name);
        out.tensor(item);
    }
    out.bytes.extend(b"u.");
    out.bytes
}

struct Pickle {
    bytes: Vec<u8>,
    /// What was written before, and under which number it is recalled.
    memo: HashMap<String, u32>,
}

impl Pickle {
    /// A reduced call: `torch._utils._rebuild_tensor_v2` for types with a storage class, `_v3` for those without.
    fn tensor(&mut self, item: &Item<'_>) {
        let (dtype, class) = item.torch;
        let (function, class, numel) = match class {
            Some(class) => ("torch._utils\n_rebuild_tensor_v2", format!("torch\n{class}"), item.elements),
            None => {
                let bytes = item.elements * item.dtype.block_bytes();
                ("torch._utils\n_rebuild_tensor_v3", "torch.storage\nUntypedStorage".to_owned(), bytes)
            }
        };
        self.global(function);
        self.bytes.extend(b"((");
        self.text("storage");
        self.global(&class);
        self.text(&item.key.to_string());
        self.text("cpu");
        self.number(numel);
        self.bytes.extend(b"tQ");
        self.number(0);
        self.numbers(item.shape);
        self.numbers(&contiguous(item.shape));
        // It requires no gradient and has no hooks.
        self.bytes.push(0x89);
        self.ordered_dict();
        if item.torch.1.is_none() {
            self.global(&format!("torch\n{dtype}"));
        }
        self.bytes.extend(b"tR");
    }

    fn ordered_dict(&mut self) {
        self.global("collections\nOrderedDict");
        self.bytes.extend(b")R");
    }

    /// A module and a name, separated by a line feed.
    fn global(&mut self, path: &str) {
        self.once(path, |bytes| {
            bytes.push(b'c');
            bytes.extend(path.bytes());
            bytes.push(b'\n');
        });
    }

    fn text(&mut self, text: &str) {
        self.once(text, |bytes| push_text(bytes, text));
    }

    fn fresh_text(&mut self, text: &str) {
        push_text(&mut self.bytes, text);
    }

    /// What `write` writes the first time; a recall of it later.
    fn once(&mut self, what: &str, write: impl FnOnce(&mut Vec<u8>)) {
        let (index, opcodes) = match self.memo.get(what) {
            Some(index) => (*index, *b"hj"),
            None => {
                let index = self.memo.len() as u32;
                self.memo.insert(what.to_owned(), index);
                write(&mut self.bytes);
                (index, *b"qr")
            }
        };
        match u8::try_from(index) {
            Ok(index) => self.bytes.extend([opcodes[0], index]),
            Err(_) => {
                self.bytes.push(opcodes[1]);
                self.bytes.extend(index.to_le_bytes());
            }
        }
    }

    fn numbers(&mut self, numbers: &[u64]) {
        self.bytes.push(b'(');
        for number in numbers {
            self.number(*number);
        }
        self.bytes.push(b't');
    }

    fn number(&mut self, number: u64) {
        match i32::try_from(number) {
            Ok(small) => {
                self.bytes.push(b'J');
                self.bytes.extend(small.to_le_bytes());
            }
            // Nine bytes, so that the sign bit is clear.
            Err(_) => {
                self.bytes.extend([0x8a, 9]);
                self.bytes.extend(number.to_le_bytes());
                self.bytes.push(0);
            }
        }
    }
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.push(b'X');
    bytes.extend((text.len() as u32).to_le_bytes());
    bytes.extend(text.bytes());
}

/// Row-major strides, in elements.
fn contiguous(shape: &[u64]) -> Vec<u64> {
    let mut strides: Vec<u64> = shape
        .iter()
        .rev()
        .scan(1u64, |step, n| {
            let stride = *step;
            *step = step.saturating_mul(*n.max(&1));
            Some(stride)
        })
        .collect();
    strides.reverse();
    strides
}
