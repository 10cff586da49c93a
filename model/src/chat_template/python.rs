//! What transformers adds to Jinja for chat templates, for minijinja.

use std::fmt::Write;

use minijinja::value::{Kwargs, Value, ViaDeserialize};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, filters};
use serde_json::Value as Json;

/// The message of a template's own `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(pub String);

/// Widest indentation that a filter may ask for; more only wastes memory.
const MAX_INDENT: usize = 256;

/// An environment with transformers' settings, filters and functions.
pub(super) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", tojson);
    environment.add_filter("indent", indent);
    // These build lists of any length asked for, outside the engine's step count.
    environment.remove_filter("batch");
    environment.remove_filter("slice");
    environment
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

/// Today's local date in a `strftime` format, as Python's `datetime.now().strftime`.
fn strftime_now(format: &str) -> Result<String, Error> {
    let mut text = String::new();
    write!(text, "{}", chrono::Local::now().format(format))
        .map_err(|_| refuse(format!("strftime_now does not know the format `{format}`")))?;
    Ok(text)
}

/// Jinja's `indent`, with a bound on the width.
fn indent(
    value: minijinja::value::StringInput<'_>,
    width: Option<usize>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let asked = width.or(kwargs.get::<Option<usize>>("width")?);
    if asked.is_some_and(|width| width > MAX_INDENT) {
        return Err(refuse(format!("indent is limited to {MAX_INDENT} columns")));
    }
    filters::indent(value, width, first, blank, kwargs)
}

/// How `tojson` writes: Python's `json.dumps` options.
struct JsonStyle {
    indent: Option<String>,
    item: String,
    key: String,
    ascii: bool,
    sort: bool,
}

/// `json.dumps` as transformers gives it to templates: no HTML escapes, unicode kept.
fn tojson(value: ViaDeserialize<Json>, options: Kwargs) -> Result<String, Error> {
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
    let style = JsonStyle {
        indent,
        item,
        key,
        ascii: options
            .get::<Option<bool>>("ensure_ascii")?
            .unwrap_or(false),
        sort: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let mut text = String::new();
    style.write(&value.0, 0, &mut text);
    Ok(text)
}

impl JsonStyle {
    fn write(&self, value: &Json, depth: usize, out: &mut String) {
        match value {
            Json::Array(items) => {
                let write = |item: &&Json, out: &mut String| self.write(item, depth + 1, out);
                self.list(['[', ']'], items.iter().collect(), depth, out, write);
            }
            Json::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                if self.sort {
                    entries.sort_by_key(|entry| entry.0);
                }
                self.list(['{', '}'], entries, depth, out, |(key, value), out| {
                    self.scalar(&Json::String((*key).clone()), out);
                    out.push_str(&self.key);
                    self.write(value, depth + 1, out);
                });
            }
            scalar => self.scalar(scalar, out),
        }
    }

    fn scalar(&self, value: &Json, out: &mut String) {
        for char in value.to_string().chars() {
            if self.ascii && !char.is_ascii() {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            } else {
                out.push(char);
            }
        }
    }

    fn list<T>(
        &self,
        brackets: [char; 2],
        items: Vec<T>,
        depth: usize,
        out: &mut String,
        write: impl Fn(&T, &mut String),
    ) {
        let newline = |depth: usize, out: &mut String| {
            if let Some(indent) = self.indent.as_ref().filter(|_| !items.is_empty()) {
                out.push('\n');
                out.push_str(&indent.repeat(depth));
            }
        };
        out.push(brackets[0]);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                out.push_str(&self.item);
            }
            newline(depth + 1, out);
            write(item, out);
        }
        newline(depth, out);
        out.push(brackets[1]);
    }
}
