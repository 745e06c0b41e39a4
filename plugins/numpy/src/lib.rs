//! NumPy arrays: `.npy`, one array behind a header, and `.npz`, a zip archive of such members.
//!
//! Sources: the format's description in `numpy/lib/_format_impl.py`
//! (<https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>), which is NEP 1, and for archives
//! PKWARE's APPNOTE 6.3.10 (<https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT>).
//!
//! NumPy has no bfloat16 and no 8-bit floats. The `ml_dtypes` package adds them, but `numpy.save` writes all of them as
//! raw bytes (`<V2`, `<V1`), and what they were is not in the file: reading them takes
//! [`index_assuming`](ckptmerge_format::Format::index_assuming).

mod element;
mod header;
mod layout;
mod literal;
mod npy;
mod npz;

pub use npy::Npy;
pub use npz::Npz;
