//! What transformers adds to Jinja for chat templates, for minijinja.

use std::io::{self, Write};

use chrono::NaiveDate;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind};
use serde::Serialize;
use serde_json::Value as Json;
use serde_json::ser::{CompactFormatter, Formatter, Serializer};

use super::bounded::Bounded;
use super::strftime::strftime;

/// The message of a template's own `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub String);

/// The function by which templates ask for the date.
pub(super) const STRFTIME_NOW: &str = "strftime_now";

/// Widest indentation of JSON; more only wastes memory.
const MAX_INDENT: usize = 256;

/// Longest format of a date, in bytes.
const MAX_DATE: usize = 256;

/// An environment with transformers' settings, filters and functions.
pub(super) fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    super::guard::install(&mut environment);
    environment.add_function("raise_exception", raise_exception);
    environment.add_filter("tojson", tojson);
    Ok(environment)
}

/// transformers' settings of Jinja.
pub(super) fn syntax() -> Result<SyntaxConfig, Error> {
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true).build()
}

/// Replaces the `{% generation %}` tags, which only mark the assistant's text, by tags that
/// trim blanks alike and do nothing.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else {
            break;
        };
        let (inside, after) = (&rest[start + 2..start + length], start + length + 2);
        let name = inside.trim_matches(['-', '+']).trim();
        let replacement = match name {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => name,
        };
        result.push_str(&rest[..start + 2]);
        if replacement == name {
            result.push_str(inside);
        } else {
            result.push_str(&inside.replace(name, &format!(" {replacement} ")));
        }
        result.push_str("%}");
        rest = &rest[after..];
    }
    result.push_str(rest);
    result
}

fn refuse(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail.into())
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(refuse(message.clone()).with_source(Raised(message)))
}

/// Makes `date` the day that `strftime_now` writes; the time of day is midnight, so that a text
/// does not depend on when it is made.
pub(super) fn set_date(environment: &mut Environment<'static>, date: NaiveDate) {
    let strftime_now = move |format: &str| {
        if format.len() > MAX_DATE {
            return Err(refuse(format!(
                "strftime_now: the format has {} bytes; the most accepted is {MAX_DATE}",
                format.len()
            )));
        }
        let refused = |why| {
            refuse(format!(
                "strftime_now does not take the format `{format}`: {why}"
            ))
        };
        strftime(date, format).map_err(refused)
    };
    environment.add_function(STRFTIME_NOW, strftime_now);
}

/// `json.dumps` as transformers gives it to templates: no HTML escapes, unicode kept.
fn tojson(value: Value, options: Kwargs) -> Result<String, Error> {
    let indent = match options.get::<Option<Value>>("indent")? {
        None => None,
        Some(width) => match (width.as_str(), width.as_usize()) {
            (Some(text), _) if text.len() <= MAX_INDENT => Some(text.to_owned()),
            (None, Some(width)) if width <= MAX_INDENT => Some(" ".repeat(width)),
            _ => {
                return Err(refuse(format!(
                    "tojson: indent is 0 to {MAX_INDENT} columns"
                )));
            }
        },
    };
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    let (item, key) = match separators.as_deref() {
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(refuse("tojson: separators are two strings")),
    };
    let ascii = options.get::<Option<bool>>("ensure_ascii")?;
    let sort = options.get::<Option<bool>>("sort_keys")?;
    options.assert_all_used()?;
    let style = PythonStyle {
        indent,
        item,
        key,
        ascii: ascii.unwrap_or(false),
        depth: 0,
        empty: true,
    };
    if !sort.unwrap_or(false) {
        return written(&value, style);
    }
    // A value may hold the same list many times; as bounded text it is no larger than it looks.
    let plain = written(&value, CompactFormatter)?;
    let mut sorted: Json =
        serde_json::from_str(&plain).map_err(|error| refuse(format!("tojson: {error}")))?;
    sorted.sort_all_objects();
    written(&sorted, style)
}

fn written(value: &impl Serialize, style: impl Formatter) -> Result<String, Error> {
    let mut output = Bounded::default();
    let done = value.serialize(&mut Serializer::with_formatter(&mut output, style));
    done.map_err(|error| refuse(format!("tojson: {error}")))?;
    String::from_utf8(output.bytes).map_err(|error| refuse(format!("tojson: {error}")))
}

/// How `json.dumps` writes under its options.
struct PythonStyle {
    /// Put before a line once for each level; None writes everything into one line.
    indent: Option<String>,
    /// Between the items of a list or an object.
    item: String,
    /// Between a key and its value.
    key: String,
    /// Whether characters outside ASCII are escaped.
    ascii: bool,
    depth: usize,
    /// Whether the list or object at hand has no items.
    empty: bool,
}

impl PythonStyle {
    fn begin<W: Write + ?Sized>(&mut self, bracket: &[u8], out: &mut W) -> io::Result<()> {
        self.depth += 1;
        self.empty = true;
        out.write_all(bracket)
    }

    fn next<W: Write + ?Sized>(&mut self, first: bool, out: &mut W) -> io::Result<()> {
        self.empty = false;
        if !first {
            out.write_all(self.item.as_bytes())?;
        }
        self.new_line(out)
    }

    fn end<W: Write + ?Sized>(&mut self, bracket: &[u8], out: &mut W) -> io::Result<()> {
        self.depth -= 1;
        if !self.empty {
            self.new_line(out)?;
        }
        self.empty = false;
        out.write_all(bracket)
    }

    fn new_line<W: Write + ?Sized>(&self, out: &mut W) -> io::Result<()> {
        let Some(indent) = &self.indent else {
            return Ok(());
        };
        out.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| out.write_all(indent.as_bytes()))
    }
}

impl Formatter for PythonStyle {
    fn begin_array<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin(b"[", out)
    }

    fn begin_array_value<W: Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.next(first, out)
    }

    fn end_array<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(b"]", out)
    }

    fn begin_object<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin(b"{", out)
    }

    fn begin_object_key<W: Write + ?Sized>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.next(first, out)
    }

    fn begin_object_value<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(self.key.as_bytes())
    }

    fn end_object<W: Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(b"}", out)
    }

    fn write_f64<W: Write + ?Sized>(&mut self, out: &mut W, value: f64) -> io::Result<()> {
        // `repr` has exponents of at least two digits, with a sign, below 1e-4 and from 1e16.
        match value.abs() {
            size if size == 0.0 || (1e-4..1e16).contains(&size) => write!(out, "{value:?}"),
            _ => {
                let text = format!("{value:e}");
                let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
                let (sign, exponent) = match exponent.strip_prefix('-') {
                    Some(exponent) => ('-', exponent),
                    None => ('+', exponent),
                };
                write!(out, "{digits}e{sign}{exponent:0>2}")
            }
        }
    }

    fn write_string_fragment<W: Write + ?Sized>(
        &mut self,
        out: &mut W,
        text: &str,
    ) -> io::Result<()> {
        if !self.ascii {
            return out.write_all(text.as_bytes());
        }
        for char in text.chars() {
            if matches!(char, ' '..='~') {
                write!(out, "{char}")?;
            } else {
                let mut units = [0; 2];
                for unit in char.encode_utf16(&mut units) {
                    write!(out, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}
