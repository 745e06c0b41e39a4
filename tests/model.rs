//! Small models to test with, made and read by hand, and the binary to run on them.
//!
//! Nothing here uses the code under test: files are written byte by byte and read by the `safetensors` crate, and
//! numbers are decoded from the definitions of their types.

use ckptmerge::dtype::DType;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// What a test returns.
pub(crate) type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// A tensor on its own.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<u64>,
    pub(crate) bytes: Vec<u8>,
}

impl Tensor {
    pub(crate) fn values(&self) -> Vec<f64> {
        decode(self.dtype, &self.bytes)
    }
}

/// A safetensors file in the making.
#[derive(Clone, Default)]
pub(crate) struct Model {
    tensors: Vec<(String, Tensor)>,
    metadata: BTreeMap<String, String>,
    unaligned: bool,
}

impl Model {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds a tensor of the given numbers, which are rounded to the type.
    pub(crate) fn with(self, name: &str, dtype: DType, shape: &[u64], values: &[f64]) -> Self {
        self.raw(name, dtype, shape, values.iter().flat_map(|value| encode(dtype, *value)).collect())
    }

    /// Adds a vector of F32.
    pub(crate) fn f32(self, name: &str, values: &[f64]) -> Self {
        self.with(name, DType::F32, &[values.len() as u64], values)
    }

    /// Adds a tensor of the given bytes.
    pub(crate) fn raw(mut self, name: &str, dtype: DType, shape: &[u64], bytes: Vec<u8>) -> Self {
        let elements: u64 = shape.iter().product();
        assert_eq!(dtype.size_of(elements), Some(bytes.len() as u64), "{name} {dtype} {shape:?}");
        self.tensors.push((name.to_owned(), Tensor { dtype, shape: shape.to_vec(), bytes }));
        self
    }

    /// Adds text; by the convention of `save_model`, a tensor's name under another name ties the two.
    pub(crate) fn text(mut self, key: &str, value: &str) -> Self {
        self.metadata.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Makes the data start at an odd byte of the file.
    pub(crate) fn unaligned(mut self) -> Self {
        self.unaligned = true;
        self
    }

    pub(crate) fn data_bytes(&self) -> u64 {
        self.tensors.iter().map(|(_, tensor)| tensor.bytes.len() as u64).sum()
    }

    /// The file.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut header = Map::new();
        if !self.metadata.is_empty() {
            header.insert("__metadata__".to_owned(), json!(self.metadata));
        }
        let mut end = 0;
        for (name, tensor) in &self.tensors {
            let start = end;
            end += tensor.bytes.len();
            let entry = json!({"dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": [start, end]});
            header.insert(name.clone(), entry);
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        let length = header.len().next_multiple_of(8) + usize::from(self.unaligned);
        header.resize(length, b' ');
        let mut file = (length as u64).to_le_bytes().to_vec();
        file.extend(header);
        self.tensors.iter().for_each(|(_, tensor)| file.extend(&tensor.bytes));
        file
    }

    /// Writes the file, making its folder, and gives the path back.
    pub(crate) fn write(&self, path: impl AsRef<Path>) -> Outcome<PathBuf> {
        write(path.as_ref(), self.to_bytes())?;
        Ok(path.as_ref().to_owned())
    }
}

/// Writes a file, making its folder.
pub(crate) fn write(path: &Path, content: impl AsRef<[u8]>) -> Outcome {
    std::fs::create_dir_all(path.parent().ok_or("a file is in a folder")?)?;
    Ok(std::fs::write(path, content)?)
}

/// Writes models as the shards of one, with their index.
pub(crate) fn write_shards(folder: &Path, stem: &str, shards: &[Model]) -> Outcome {
    let mut map = Map::new();
    for (number, shard) in shards.iter().enumerate() {
        let name = format!("{stem}-{:05}-of-{:05}.safetensors", number + 1, shards.len());
        shard.write(folder.join(&name))?;
        map.extend(shard.tensors.iter().map(|(tensor, _)| (tensor.clone(), Value::from(name.as_str()))));
    }
    let total: u64 = shards.iter().map(Model::data_bytes).sum();
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    write(&folder.join(format!("{stem}.safetensors.index.json")), index.to_string())
}

/// What is in a file, by the reference implementation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Contents {
    pub(crate) tensors: BTreeMap<String, Tensor>,
    pub(crate) metadata: BTreeMap<String, String>,
}

impl Contents {
    /// The numbers of a tensor that must be there.
    pub(crate) fn values(&self, name: &str) -> Vec<f64> {
        self.tensors.get(name).unwrap_or_else(|| panic!("{name} is not among {:?}", self.names())).values()
    }

    pub(crate) fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }
}

/// Reads a file whole.
pub(crate) fn read(path: &Path) -> Outcome<Contents> {
    let bytes = std::fs::read(path)?;
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes)?;
    let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
    let mut tensors = BTreeMap::new();
    for (name, view) in safetensors::SafeTensors::deserialize(&bytes)?.tensors() {
        let dtype = DType::from_name(&view.dtype().to_string()).ok_or("a type that we do not know")?;
        let shape = view.shape().iter().map(|&n| n as u64).collect();
        tensors.insert(name, Tensor { dtype, shape, bytes: view.data().to_vec() });
    }
    Ok(Contents { tensors, metadata })
}

/// Significant bits and the smallest normal exponent of a float type.
pub(crate) fn precision(dtype: DType) -> (i32, i32) {
    match dtype {
        DType::F64 => (53, -1022),
        DType::F32 => (24, -126),
        DType::BF16 => (8, -126),
        DType::F16 => (11, -14),
        DType::F8E5M2 => (3, -14),
        DType::F8E4M3 => (4, -6),
        other => panic!("{other} is no float"),
    }
}

/// A number of one of the 8-bit floats, from its definition: sign, exponent, `bits - 1` digits of mantissa.
fn eight_bits(dtype: DType, code: u8) -> f64 {
    let (bits, lowest) = precision(dtype);
    let digits = bits - 1;
    let mantissa = i32::from(code) & ((1 << digits) - 1);
    let exponent = (i32::from(code) & 0x7f) >> digits;
    let size = match (dtype, code & 0x7f) {
        (DType::F8E4M3, 0x7f) | (DType::F8E5M2, 0x7d..) => f64::NAN,
        (DType::F8E5M2, 0x7c) => f64::INFINITY,
        _ if exponent == 0 => f64::from(mantissa) * 2f64.powi(lowest - digits),
        _ => f64::from(mantissa + (1 << digits)) * 2f64.powi(exponent - 1 + lowest - digits),
    };
    if code & 0x80 == 0 { size } else { -size }
}

/// The numbers that elements of a type are.
pub(crate) fn decode(dtype: DType, bytes: &[u8]) -> Vec<f64> {
    fn each<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        bytes.as_chunks().0.iter().map(|element| number(*element)).collect()
    }
    match dtype {
        DType::F64 => each(bytes, f64::from_le_bytes),
        DType::F32 => each(bytes, |b| f64::from(f32::from_le_bytes(b))),
        DType::F16 => each(bytes, |b| half::f16::from_le_bytes(b).to_f64()),
        DType::BF16 => each(bytes, |b| half::bf16::from_le_bytes(b).to_f64()),
        DType::F8E4M3 | DType::F8E5M2 => each(bytes, |[code]| eight_bits(dtype, code)),
        DType::I64 => each(bytes, |b| i64::from_le_bytes(b) as f64),
        DType::U8 | DType::Bool => each(bytes, |[byte]| f64::from(byte)),
        other => panic!("no test needs numbers of {other}"),
    }
}

/// The element of a type that is nearest to a number, of the 16-bit types to the number as an F32.
///
/// `half` 2.7 drops the lower half of an f64 before it rounds, so ties would go the wrong way.
pub(crate) fn encode(dtype: DType, value: f64) -> Vec<u8> {
    match dtype {
        DType::F64 => value.to_le_bytes().to_vec(),
        DType::F32 => (value as f32).to_le_bytes().to_vec(),
        DType::F16 => half::f16::from_f32(value as f32).to_le_bytes().to_vec(),
        DType::BF16 => half::bf16::from_f32(value as f32).to_le_bytes().to_vec(),
        DType::I64 => (value as i64).to_le_bytes().to_vec(),
        DType::U8 | DType::Bool => vec![value as u8],
        DType::F8E4M3 | DType::F8E5M2 => {
            static CODES: [OnceLock<Vec<f64>>; 2] = [const { OnceLock::new() }; 2];
            let numbers = CODES[usize::from(dtype == DType::F8E4M3)]
                .get_or_init(|| (0..=u8::MAX).map(|code| eight_bits(dtype, code)).collect());
            let distance = |code: &u8| (numbers[usize::from(*code)] - value).abs();
            let finite = (0..=u8::MAX).filter(|code| distance(code).is_finite());
            finite.min_by(|a, b| distance(a).total_cmp(&distance(b))).into_iter().collect()
        }
        other => panic!("no test makes numbers of {other}"),
    }
}

/// `SplitMix64`: the same numbers on every machine.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of `n` numbers from 0.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// Uniform in −1..1.
    pub(crate) fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    pub(crate) fn values(&mut self, count: usize) -> Vec<f64> {
        (0..count).map(|_| self.uniform()).collect()
    }
}

/// A file or folder of `fixtures/`.
pub(crate) fn fixture(path: &str) -> PathBuf {
    root().join("fixtures").join(path)
}

/// The repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The names in a folder, hidden ones included, sorted.
pub(crate) fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("a folder can be listed").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Every file below a folder with its bytes, by its path within.
pub(crate) fn snapshot(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for name in names_in(folder) {
        let path = folder.join(&name);
        if path.is_dir() {
            files.extend(snapshot(&path).into_iter().map(|(below, bytes)| (format!("{name}/{below}"), bytes)));
        } else {
            files.insert(name, std::fs::read(path).expect("a file that was listed can be read"));
        }
    }
    files
}

/// What a run of the binary came to.
#[derive(Debug)]
pub(crate) struct Ran {
    /// None if a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Its JSON, which must be all that stdout holds.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// That it went well.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}{}", self.stdout, self.stderr);
        self
    }

    /// That it failed with this code and said all of this on stderr, and did not panic.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, says: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{}{}", self.stdout, self.stderr);
        for part in says {
            assert!(self.stderr.contains(part), "stderr lacks {part:?}: {}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the binary prints UTF-8");
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// The binary, with nothing to read on stdin.
pub(crate) fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ckptmerge"));
    command.stdin(Stdio::null());
    command
}

/// Runs the binary with arguments that stand in one text, apart by spaces, in `folder`.
pub(crate) fn run(folder: &Path, arguments: &str) -> Ran {
    let arguments = arguments.split_whitespace();
    binary().args(arguments).current_dir(folder).output().expect("the binary can be started").into()
}
