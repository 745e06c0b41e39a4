//! One error for all formats, split by what the reader of the message should do.

/// Whose fault it is that a file could not be indexed or planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The file breaks the rules of its own format: it is damaged or was never finished.
    Corrupt,
    /// The file is well-formed, but uses something this reader does not support.
    Unsupported,
    /// The file asks for more than the format's limits allow, honest or not.
    Limit,
    /// The bytes could not be read.
    Read,
}

/// A format's answer when it has no table to give. The host adds the file's path.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}{}{}", tensor_prefix(.tensor), printable(.message), hint_suffix(.hint))]
#[non_exhaustive]
pub struct FormatError {
    /// Whose fault it is.
    pub fault: Fault,
    /// The tensor at which it was noticed, if it was one.
    pub tensor: Option<String>,
    /// What is wrong, without path or tensor name.
    pub message: String,
    /// What to do about it, where that is known.
    pub hint: Option<String>,
}

fn tensor_prefix(tensor: &Option<String>) -> String {
    tensor.as_ref().map(|name| format!("tensor `{}`: ", printable(name))).unwrap_or_default()
}

fn hint_suffix(hint: &Option<String>) -> String {
    hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default()
}

/// How much of a text from a file is shown, in characters.
const SHOWN: usize = 300;

/// A text from a file, fit to be shown: control characters, which can command a terminal, are escaped, and long texts
/// are cut.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut shown = String::new();
    for (index, character) in text.chars().enumerate() {
        if index == SHOWN {
            shown.push('…');
            break;
        }
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

impl FormatError {
    /// An error of the given fault.
    #[must_use]
    pub fn new(fault: Fault, message: impl Into<String>) -> Self {
        Self { fault, tensor: None, message: message.into(), hint: None }
    }

    /// The file is damaged.
    #[must_use]
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(Fault::Corrupt, message)
    }

    /// The file uses something unsupported.
    #[must_use]
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(Fault::Unsupported, message)
    }

    /// The same error, naming the tensor it was noticed at.
    #[must_use]
    pub fn at(mut self, tensor: impl Into<String>) -> Self {
        self.tensor = Some(tensor.into());
        self
    }

    /// The same error, with what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_files_cannot_command_a_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb"), "a\\u{1b}[2Jb");
        assert_eq!(printable("größe"), "größe");
        assert_eq!(printable(&"x".repeat(1000)).chars().count(), SHOWN + 1);
        let error = FormatError::corrupt("is wrong").at("a\nb").hint("mend it");
        assert_eq!(error.to_string(), "tensor `a\\nb`: is wrong; mend it");
    }
}
