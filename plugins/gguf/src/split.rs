//! Models that are split over several files: `NAME-00001-of-00003.gguf` and so on, counted from 1.

/// How the last part of a name begins and ends, without digits, and how many digits there are.
const OF: &str = "-of-";
const END: &str = ".gguf";
const DIGITS: usize = 5;

/// The file names of all parts of the model, in order, if `file_name` is that of one of them.
///
/// Each part is a file of its own whose [index](ckptmerge_format::Format::index) has the tensors it holds; the first
/// has the metadata, the others little but `split.no`, `split.count` and `split.tensors.count`.
#[must_use]
pub fn split_files(file_name: &str) -> Option<Vec<String>> {
    let number = |digits: &str| -> Option<u32> {
        let plain = digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| digits.parse().ok()).flatten()
    };
    let (rest, count) = file_name.strip_suffix(END)?.rsplit_once(OF)?;
    let (stem, part) = rest.rsplit_once('-')?;
    let (part, count) = (number(part)?, number(count)?);
    let names = (1..=count).map(|i| format!("{stem}-{i:0DIGITS$}{OF}{count:0DIGITS$}{END}"));
    (1..=count).contains(&part).then(|| names.collect())
}
