//! The Python literal in a header: `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`.
//!
//! NumPy evaluates it with `ast.literal_eval`. This is the part of that grammar which NumPy's writers use: exactly these
//! three keys, in any order, and plain strings, truth values and tuples of whole numbers as values.

use ckptmerge_format::{Fault, FormatError};

/// The most dimensions of an array, as in NumPy 2.
pub(crate) const MAX_DIMENSIONS: usize = 64;

/// What a header says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Description {
    /// The type, as NumPy spells it.
    pub(crate) descr: String,
    /// Whether the first index, rather than the last, runs fastest.
    pub(crate) fortran_order: bool,
    /// Elements along each dimension.
    pub(crate) shape: Vec<u64>,
}

/// The description that `text` is, with nothing but space around it.
pub(crate) fn parse(text: &[u8]) -> Result<Description, FormatError> {
    let mut parser = Parser { text, position: 0 };
    let (mut descr, mut fortran_order, mut shape) = (None, None, None);
    parser.expect(b'{')?;
    while !parser.accept(b'}') {
        let key = parser.string()?;
        parser.expect(b':')?;
        let repeated = match key.as_str() {
            "descr" => descr.replace(parser.descr()?).is_some(),
            "fortran_order" => fortran_order.replace(parser.truth()?).is_some(),
            "shape" => shape.replace(parser.shape()?).is_some(),
            _ => return Err(FormatError::corrupt(format!("the header has an unknown key `{key}`"))),
        };
        if repeated {
            return Err(FormatError::corrupt(format!("`{key}` stands twice in the header")));
        }
        if !parser.accept(b',') {
            parser.expect(b'}')?;
            break;
        }
    }
    parser.end()?;
    let missing = |key: &str| FormatError::corrupt(format!("the header has no `{key}`"));
    Ok(Description {
        descr: descr.ok_or_else(|| missing("descr"))?,
        fortran_order: fortran_order.ok_or_else(|| missing("fortran_order"))?,
        shape: shape.ok_or_else(|| missing("shape"))?,
    })
}

struct Parser<'a> {
    text: &'a [u8],
    position: usize,
}

impl Parser<'_> {
    /// The next byte that is not space, which is not consumed.
    fn peek(&mut self) -> Option<u8> {
        let rest = self.text.get(self.position..)?;
        self.position += rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        self.text.get(self.position).copied()
    }

    /// The error that something else was expected here.
    fn wrong(&self, expected: &str) -> FormatError {
        let at = self.position;
        match self.text.get(at) {
            Some(&byte) => FormatError::corrupt(format!(
                "the header has `{}` at byte {at} where {expected} is expected",
                byte.escape_ascii()
            )),
            None => FormatError::corrupt(format!("the header ends where {expected} is expected")),
        }
    }

    fn accept(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.position += usize::from(found);
        found
    }

    fn expect(&mut self, byte: u8) -> Result<(), FormatError> {
        if self.accept(byte) { Ok(()) } else { Err(self.wrong(&format!("`{}`", char::from(byte)))) }
    }

    fn end(&mut self) -> Result<(), FormatError> {
        if self.peek().is_none() { Ok(()) } else { Err(self.wrong("nothing more")) }
    }

    /// A string in either kind of quotes, without escapes.
    fn string(&mut self) -> Result<String, FormatError> {
        let quote = self.peek().filter(|byte| b"'\"".contains(byte)).ok_or_else(|| self.wrong("a string"))?;
        self.position += 1;
        let start = self.position;
        loop {
            match self.text.get(self.position) {
                Some(&byte) if byte == quote => break,
                None | Some(b'\\' | b'\n') => return Err(self.wrong("the end of a string")),
                Some(_) => self.position += 1,
            }
        }
        let string = String::from_utf8_lossy(&self.text[start..self.position]).into_owned();
        self.position += 1;
        Ok(string)
    }

    /// The type: a string for one number per element, a list or tuple for several.
    fn descr(&mut self) -> Result<String, FormatError> {
        match self.peek() {
            Some(b'[' | b'(') => {
                Err(FormatError::unsupported("its elements are structured: records of several fields")
                    .hint("save each field as an array of its own"))
            }
            _ => self.string(),
        }
    }

    fn truth(&mut self) -> Result<bool, FormatError> {
        self.peek();
        for (word, value) in [("True", true), ("False", false)] {
            if self.text[self.position..].starts_with(word.as_bytes()) {
                self.position += word.len();
                return Ok(value);
            }
        }
        Err(self.wrong("`True` or `False`"))
    }

    /// A tuple of whole numbers: `()`, `(3,)`, `(3, 4)`.
    fn shape(&mut self) -> Result<Vec<u64>, FormatError> {
        let mut shape = Vec::new();
        self.expect(b'(')?;
        while !self.accept(b')') {
            if shape.len() == MAX_DIMENSIONS {
                let message =
                    format!("the array has more than {MAX_DIMENSIONS} dimensions, the most that NumPy allows");
                return Err(FormatError::new(Fault::Limit, message));
            }
            shape.push(self.number()?);
            if !self.accept(b',') {
                if shape.len() == 1 {
                    return Err(self.wrong("the comma of a tuple of one"));
                }
                self.expect(b')')?;
                break;
            }
        }
        Ok(shape)
    }

    /// A whole number, with the `L` that Python 2 put behind some.
    fn number(&mut self) -> Result<u64, FormatError> {
        self.peek();
        let rest = &self.text[self.position..];
        let digits = &rest[..rest.iter().take_while(|byte| byte.is_ascii_digit()).count()];
        if digits.is_empty() {
            return Err(self.wrong("a size"));
        }
        let number =
            digits.iter().try_fold(0u64, |number, digit| number.checked_mul(10)?.checked_add(u64::from(digit - b'0')));
        let number = number.ok_or_else(|| FormatError::corrupt("a size in the header's shape does not fit 64 bits"))?;
        self.position += digits.len();
        self.position += usize::from(self.text.get(self.position) == Some(&b'L'));
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_numpy_writes_is_read() {
        for (text, descr, fortran_order, shape) in [
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }   \n", "<f4", false, &[3, 4][..]),
            ("{'descr': '|b1', 'fortran_order': True, 'shape': (), }\n", "|b1", true, &[]),
            ("{\"shape\":(7,),\"fortran_order\":False,\"descr\":\">i2\"}", ">i2", false, &[7]),
            ("{'descr': '<f8', 'fortran_order': False, 'shape': (2L, 5L), }", "<f8", false, &[2, 5]),
        ] {
            let expected = Description { descr: descr.to_owned(), fortran_order, shape: shape.to_vec() };
            assert_eq!(parse(text.as_bytes()).ok(), Some(expected), "{text}");
        }
    }

    #[test]
    fn other_literals_are_refused_by_name() {
        for (text, reason) in [
            ("", "ends where `{`"),
            ("{'descr': '<f4'", "ends where `}`"),
            ("{'descr': '<f4", "ends where the end of a string"),
            ("{}", "no `descr`"),
            ("{'descr': '<f4', 'shape': (1,)}", "no `fortran_order`"),
            ("{'descr': '<f4', 'descr': '<f4'}", "`descr` stands twice"),
            ("{'other': '<f4'}", "unknown key `other`"),
            ("{'descr': '\\x3cf4'}", "the end of a string"),
            ("{'fortran_order': 1}", "`True` or `False`"),
            ("{'shape': (3)}", "the comma of a tuple of one"),
            ("{'shape': (3 4)}", "`4` at byte"),
            ("{'shape': (-1,)}", "a size"),
            ("{'shape': (99999999999999999999,)}", "64 bits"),
            ("{'shape': [3]}", "`(`"),
            ("{'descr': [('a', '<f4')]}", "structured"),
            ("{'descr': ('<f4', (2,))}", "structured"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': ()} x", "nothing more"),
            ("{,}", "a string"),
        ] {
            let error = parse(text.as_bytes()).expect_err(text).to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        let many = format!("{{'shape': ({})}}", "1,".repeat(65));
        assert_eq!(parse(many.as_bytes()).expect_err("65 dimensions").fault, Fault::Limit);
    }
}
