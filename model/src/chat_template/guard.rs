//! What bounds the values of a template, beside the engine's fuel.
//!
//! Held for every value on the stack, in a variable or in a namespace:
//! - it is at most [`MAX_DEPTH`] deep, so nothing that walks through it overflows the stack;
//! - lists and maps are not lazy: walking through one cannot take longer than its size;
//! - no namespace lies inside another value, so nothing holds itself;
//! - fuel was paid for all that lies in it, counted as often as it would be printed.

use minijinja::value::{DynObject, ObjectRepr, Rest, Tuple, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, filters, functions};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Filter for a value that was made just now; gives it back with lazy parts written out.
pub(super) const MADE: &str = "guard:made";
/// The same for a value that goes into a namespace.
pub(super) const KEPT: &str = "guard:kept";
/// Filter for a value that is walked through next; gives it back as it is.
pub(super) const WALKED: &str = "guard:walked";

/// Lists inside lists, and the like.
const MAX_DEPTH: usize = 200;
/// Items of a value that one unit of fuel pays for.
const ITEMS: u64 = 1;
/// Bytes of text inside a value that one unit of fuel pays for, as in the engine.
const BYTES: u64 = 64;
/// Digits of a number in a format string: of a width, a precision or an index.
const MAX_DIGITS: usize = 3;

/// Filters that compare or format what is inside their input, at no cost of their own.
pub(super) fn filter_walks(name: &str) -> bool {
    let name = name.split_whitespace().collect::<String>();
    matches!(
        name.as_str(),
        "dictsort"
            | "format"
            | "groupby"
            | "join"
            | "max"
            | "min"
            | "pprint"
            | "reject"
            | "rejectattr"
            | "select"
            | "selectattr"
            | "sort"
            | "string"
            | "sum"
            | "unique"
    )
}

/// Tests that compare their input with what they are given.
pub(super) fn test_walks(name: &str) -> bool {
    let name = name.split_whitespace().collect::<String>();
    matches!(
        name.as_str(),
        "eq" | "equalto"
            | "=="
            | "ne"
            | "!="
            | "lt"
            | "lessthan"
            | "<"
            | "le"
            | "<="
            | "gt"
            | "greaterthan"
            | ">"
            | "ge"
            | ">="
            | "in"
            | "lower"
            | "upper"
            | "sameas"
            | "startingwith"
            | "endingwith"
    )
}

/// Adds the guards, and bounded versions of what makes text of unbounded size.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.add_filter(MADE, |state: &State, value: ValueOrKwargs| {
        guard(state, value.into_value(), false)
    });
    environment.add_filter(KEPT, |state: &State, value: ValueOrKwargs| {
        guard(state, value.into_value(), true)
    });
    environment.add_filter(WALKED, |state: &State, value: ValueOrKwargs| {
        let value = value.into_value();
        let bytes = value.as_str().map_or(0, str::len);
        state.consume_fuel(bytes as u64 / BYTES / 16)?;
        guard(state, value, false)
    });
    environment.add_filter("format", format_filter);
    environment.add_function("namespace", namespace);
    // It prints every variable there is.
    environment.remove_global("debug");
    environment.set_unknown_method_callback(method);
}

fn refuse(detail: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail)
}

/// Pays for all that lies in `value` and refuses what is too deep; lazy parts are written out.
fn guard(state: &State, value: Value, kept: bool) -> Result<Value, Error> {
    let Some(object) = value.as_object() else {
        return Ok(value);
    };
    let mut walk = Walk { state, unpaid: 0 };
    if !kept && is_namespace(object) {
        // What is in it passed the guard when it went in; a list of it costs what it costs now.
        walk.pairs(object, 0)?;
        walk.pay()?;
        return Ok(value);
    }
    let written_out = walk.value(&value, 0)?;
    walk.pay()?;
    Ok(written_out.unwrap_or(value))
}

/// A way through a value, which is paid for on the way.
struct Walk<'s, 'a, 'e> {
    state: &'s State<'a, 'e>,
    /// In bytes.
    unpaid: u64,
}

impl Walk<'_, '_, '_> {
    /// The value with its lazy parts written out; none where it has no such parts.
    fn value(&mut self, value: &Value, depth: usize) -> Result<Option<Value>, Error> {
        self.unpaid += BYTES / ITEMS + value.as_str().map_or(0, str::len) as u64;
        if self.unpaid > 64 * BYTES {
            self.pay()?;
        }
        let Some(object) = value.as_object() else {
            return Ok(None);
        };
        if depth >= MAX_DEPTH {
            return Err(refuse(format!(
                "a value is more than {MAX_DEPTH} lists deep"
            )));
        }
        if is_namespace(object) {
            return Err(refuse("a namespace inside another value".into()));
        }
        let made_of_others = object.type_name().contains("merge_object");
        match object.repr() {
            ObjectRepr::Map => match self.pairs(object, depth + 1)? {
                None if !made_of_others => Ok(None),
                Some(pairs) => Ok(Some(pairs.into_iter().collect())),
                None => Ok(object.try_iter_pairs().map(Iterator::collect)),
            },
            ObjectRepr::Seq | ObjectRepr::Iterable => {
                let lazy = object.repr() == ObjectRepr::Iterable || made_of_others;
                let mut items = Vec::new();
                let mut changed = lazy;
                for item in value.try_iter()?.checked() {
                    let item = item?;
                    let written_out = self.value(&item, depth + 1)?;
                    changed |= written_out.is_some();
                    items.push(written_out.unwrap_or(item));
                }
                Ok(match (changed, value.is_tuple()) {
                    (false, _) => None,
                    (true, true) => Some(Value::from(Tuple::from(items))),
                    (true, false) => Some(Value::from(items)),
                })
            }
            _ => Ok(None),
        }
    }

    /// The pairs of a map with lazy parts written out; none where it has no such parts.
    fn pairs(
        &mut self,
        map: &DynObject,
        depth: usize,
    ) -> Result<Option<Vec<(Value, Value)>>, Error> {
        let (mut pairs, mut changed) = (Vec::new(), false);
        for (key, value) in map.try_iter_pairs().into_iter().flatten() {
            self.value(&key, depth)?;
            let written_out = self.value(&value, depth)?;
            changed |= written_out.is_some();
            pairs.push((key, written_out.unwrap_or(value)));
        }
        Ok(changed.then_some(pairs))
    }

    fn pay(&mut self) -> Result<(), Error> {
        let fuel = self.unpaid / BYTES;
        self.unpaid %= BYTES;
        self.state.consume_fuel(fuel)
    }
}

fn is_namespace(object: &DynObject) -> bool {
    object.type_name().ends_with("::Namespace")
}

/// The engine's `namespace`, whose first values go through the guard too.
fn namespace(state: &State, values: Option<ValueOrKwargs>) -> Result<Value, Error> {
    if let Some(values) = &values {
        guard(state, (**values).clone(), true)?;
    }
    functions::namespace(values)
}

/// Refuses a format string with large numbers, and pays for each argument in each field.
fn pay_for_format(state: &State, format: &str, sign: char, args: &[Value]) -> Result<(), Error> {
    let longest = format
        .split(|c: char| !c.is_ascii_digit())
        .map(str::len)
        .max();
    if longest.unwrap_or(0) > MAX_DIGITS {
        return Err(refuse(format!(
            "format: a width, precision or index has more than {MAX_DIGITS} digits"
        )));
    }
    let fields = format.matches(sign).count() as u64;
    let sizes = args.iter().map(size);
    let bytes = sizes.fold(0u64, u64::saturating_add).saturating_add(1000);
    state.consume_fuel(fields.saturating_mul(bytes) / BYTES)
}

/// Bytes of a value as text, about.
fn size(value: &Value) -> u64 {
    let inside: u64 = match value.as_object() {
        None => value.as_str().map_or(0, str::len) as u64,
        Some(object) if object.repr() == ObjectRepr::Map => {
            let pairs = object.try_iter_pairs().into_iter().flatten();
            pairs.map(|(key, value)| size(&key) + size(&value)).sum()
        }
        Some(_) => value
            .try_iter()
            .into_iter()
            .flatten()
            .map(|item| size(&item))
            .sum(),
    };
    inside + 32
}

fn format_filter(
    state: &mut State,
    format: &Value,
    args: Rest<ValueOrKwargs>,
) -> Result<Value, Error> {
    let values: Vec<Value> = args.iter().map(|arg| (**arg).clone()).collect();
    pay_for_format(state, format.as_str().unwrap_or_default(), '%', &values)?;
    filters::format(state, format, args)
}

/// Python's methods of strings, lists and dicts, paid for before they run.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str().filter(|_| value.kind() == ValueKind::String) {
        let items = match (name, args.first().and_then(Value::as_str)) {
            ("split" | "rsplit", Some(separator)) => text.matches(separator).count(),
            ("split" | "rsplit" | "splitlines", _) => text.split_whitespace().count(),
            _ => 0,
        };
        state.consume_fuel(items as u64 / 2)?;
        match name {
            "format" => pay_for_format(state, text, '{', args)?,
            "join" => state.consume_fuel(args.iter().map(size).sum::<u64>() / BYTES)?,
            _ => {}
        }
    }
    unknown_method_callback(state, value, name, args)
}
