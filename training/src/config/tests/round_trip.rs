//! Configurations of random values are printed and read again.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

/// Numbers and text of which a value of any type can be made.
type Raw = (Index, f64, u32, String);

fn raw() -> impl Strategy<Value = Raw> {
    let float = prop_oneof![0.0..1.0, 1e-9..1e4, any::<f64>()];
    (any::<Index>(), float, 0..3000u32, any::<String>())
}

/// A value of the type of `shape`, the key's default or example.
fn value(shape: &Value, key: &KeyDoc, (index, float, whole, text): &Raw) -> Value {
    let words = key.expected.rsplit("one of ").next().unwrap_or_default();
    let words: Vec<&str> = words.split(", ").collect();
    match shape {
        Value::Float(_) => Value::Float(*float),
        Value::Integer(_) => Value::Integer((*whole).into()),
        Value::Boolean(_) => Value::Boolean(whole % 2 == 0),
        Value::Array(_) if !key.entries.is_empty() => {
            let weight = ("weight".to_string(), Value::Float(*float));
            let pattern = ("pattern".to_string(), regex::escape(text).into());
            Value::Array(vec![Value::Table([weight, pattern].into_iter().collect())])
        }
        Value::Array(_) => Value::Array(vec![(*index.get(&words)).into()]),
        _ if words.len() > 1 => (*index.get(&words)).into(),
        _ => text.as_str().into(),
    }
}

/// Puts a value into nested tables.
fn put(table: &mut Table, path: &str, value: Value) {
    match path.split_once('.') {
        None => drop(table.insert(path.into(), value)),
        Some((section, rest)) => {
            let below = table.entry(section).or_insert(Table::new().into());
            put(below.as_table_mut().unwrap(), rest, value);
        }
    }
}

proptest! {
    #[test]
    fn every_configuration_loads_back_equal(
        beside in 0..4usize,
        given in proptest::collection::vec((any::<Index>(), raw()), 1..40),
    ) {
        let sections = Config::sections();
        let keys: Vec<_> = sections.iter().flat_map(|section| &section.keys).collect();
        let beside: &[&str] = [
            &[][..],
            &HTTP,
            &["judge.kind=pairrm", "judge.model=m"],
            &["judge.kind=scores", "judge.scores=s", "model.init.tokenizer=t"],
        ][beside];
        let mut table = Table::new();
        let mut config = parse("", beside).unwrap();
        for (index, raw) in given {
            let key = index.get(&keys);
            let shape = key.default.as_deref().or(key.example).unwrap();
            let shape = format!("x = {shape}").parse::<Table>().unwrap()["x"].clone();
            let mut next = table.clone();
            put(&mut next, &key::join(&key.section, key.key), value(&shape, key, &raw));
            // What is out of range or in conflict is for other tests.
            if let Ok(found) = parse(&next.to_string(), beside) {
                (table, config) = (next, found);
            }
        }
        let written = config.to_toml();
        let again = parse(&written, &[]).map_err(|error| error.to_string());
        prop_assert_eq!(again, Ok(config), "{}", written);
    }
}
