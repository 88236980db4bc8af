//! JSON as Python's `json.dumps(value, ensure_ascii=False)` writes it.
//!
//! Qwen learned its tools' parameters in this spelling: a blank behind every comma and colon, and
//! Python's numbers. What it is not: a parser, or a place for any other spelling.

use std::io;

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{CompactFormatter, Formatter, Serializer};

/// `value` in Python's spelling.
pub(super) fn dumps(value: &Value) -> String {
    let mut bytes = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut bytes, Spelling);
    // Writing a JSON value into memory has nothing that could fail.
    let written = value.serialize(&mut serializer);
    debug_assert!(written.is_ok());
    String::from_utf8_lossy(&bytes).into_owned()
}

struct Spelling;

impl Formatter for Spelling {
    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, number: f64) -> io::Result<()> {
        writer.write_all(float(number).as_bytes())
    }

    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        CompactFormatter.begin_object_value(writer)?;
        writer.write_all(b" ")
    }
}

/// The fewest digits that read back as `number`, as Python's `repr` sets them: with an exponent of at
/// least two digits below 1e-4 and from 1e16 on.
fn float(number: f64) -> String {
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>().unwrap_or(0) {
        -4..=15 => format!("{number:?}"),
        exponent => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_python_writes_it() {
        // By CPython 3.11: json.dumps(json.loads(text), ensure_ascii=False).
        let pairs = [
            (r#"{"a":[1,-2,"x"],"b":{}}"#, r#"{"a": [1, -2, "x"], "b": {}}"#),
            (
                r#"[1.0,0.1,1e10,1e16,1e15,0.0001,0.00001]"#,
                "[1.0, 0.1, 10000000000.0, 1e+16, 1000000000000000.0, 0.0001, 1e-05]",
            ),
            (r#"[1.5e300,-2.5e-7,0.0,-0.0]"#, "[1.5e+300, -2.5e-07, 0.0, -0.0]"),
            (
                r#"["\u4f60\u007f\u0001\b\f\n\r\t\"\\\/"]"#,
                "[\"你\u{7f}\\u0001\\b\\f\\n\\r\\t\\\"\\\\/\"]",
            ),
            (
                "[true,false,null,[],18446744073709551615]",
                "[true, false, null, [], 18446744073709551615]",
            ),
        ];
        for (text, expected) in pairs {
            assert_eq!(dumps(&serde_json::from_str(text).unwrap()), expected);
        }
    }
}
