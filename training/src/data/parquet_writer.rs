//! Writing JSON rows as a Parquet table whose column types come from the rows.
//!
//! Every column may be null and lists have the three levels of the Parquet specification, so
//! that pyarrow and `datasets` read back the same objects.

use std::io::Write;
use std::sync::Arc;

use ::parquet::basic::{Compression, ConvertedType, LogicalType, Repetition, Type as Physical};
use ::parquet::data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, Int64Type};
use ::parquet::errors::ParquetError;
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use ::parquet::schema::types::Type;
use serde_json::Value;

use super::Object;

const ROWS_PER_GROUP: usize = 2048;

/// The type of a column or of a part of one, as far as the rows seen tell.
#[derive(Clone, Debug, PartialEq)]
enum ColumnType {
    /// Only nulls so far; written as text.
    Unknown,
    Bool,
    Int,
    Float,
    Text,
    List(Box<ColumnType>),
    Struct(Vec<(String, ColumnType)>),
}

/// Two values of one column whose types exclude each other.
#[derive(Debug, PartialEq)]
pub(super) struct Clash {
    pub column: String,
    pub before: &'static str,
    pub now: &'static str,
}

/// The columns of a table, in the order in which the rows bring them.
#[derive(Clone, Debug, Default)]
pub(super) struct Table(Vec<(String, ColumnType)>);

impl Table {
    /// Widens the columns so that they hold this row too; a refused row leaves no trace.
    pub fn admit(&mut self, row: &Object) -> Result<(), Clash> {
        let mut columns = self.0.clone();
        admit_fields(&mut columns, "", row)?;
        self.0 = columns;
        Ok(())
    }
}

fn admit_fields(
    fields: &mut Vec<(String, ColumnType)>,
    column: &str,
    object: &Object,
) -> Result<(), Clash> {
    for (key, value) in object {
        let name = if column.is_empty() {
            key.clone()
        } else {
            format!("{column}.{key}")
        };
        let known = fields.iter().position(|(field, _)| field == key);
        let index = known.unwrap_or(fields.len());
        if known.is_none() {
            fields.push((key.clone(), ColumnType::Unknown));
        }
        fields[index].1.admit(&name, value)?;
    }
    Ok(())
}

impl ColumnType {
    fn name(&self) -> &'static str {
        match self {
            ColumnType::Unknown => "nothing",
            ColumnType::Bool => "a truth value",
            ColumnType::Int | ColumnType::Float => "a number",
            ColumnType::Text => "a string",
            ColumnType::List(_) => "a list",
            ColumnType::Struct(_) => "an object",
        }
    }

    /// Widens the type so that it holds `value` too; `column` is the value's name for the error.
    fn admit(&mut self, column: &str, value: &Value) -> Result<(), Clash> {
        match (&mut *self, value) {
            (_, Value::Null) => {}
            (ColumnType::Unknown, _) => {
                *self = match value {
                    Value::Null => ColumnType::Unknown,
                    Value::Bool(_) => ColumnType::Bool,
                    Value::Number(number) if number.is_i64() => ColumnType::Int,
                    Value::Number(_) => ColumnType::Float,
                    Value::String(_) => ColumnType::Text,
                    Value::Array(_) => ColumnType::List(Box::new(ColumnType::Unknown)),
                    Value::Object(_) => ColumnType::Struct(Vec::new()),
                };
                if value.is_array() || value.is_object() {
                    self.admit(column, value)?;
                }
            }
            (ColumnType::Bool, Value::Bool(_)) | (ColumnType::Text, Value::String(_)) => {}
            (ColumnType::Float, Value::Number(_)) => {}
            (ColumnType::Int, Value::Number(number)) => {
                if !number.is_i64() {
                    *self = ColumnType::Float;
                }
            }
            (ColumnType::List(inner), Value::Array(items)) => {
                for item in items {
                    inner.admit(column, item)?;
                }
            }
            (ColumnType::Struct(fields), Value::Object(object)) => {
                admit_fields(fields, column, object)?;
            }
            (before, value) => {
                let mut now = ColumnType::Unknown;
                now.admit(column, value)?;
                return Err(Clash {
                    column: column.to_string(),
                    before: before.name(),
                    now: now.name(),
                });
            }
        }
        Ok(())
    }

    /// Parquet has no group without fields, so an object without keys counts as nothing.
    fn is_empty_struct(&self) -> bool {
        matches!(self, ColumnType::Struct(fields) if fields.is_empty())
    }

    fn leaves(&self) -> usize {
        match self {
            ColumnType::List(inner) => inner.leaves(),
            ColumnType::Struct(fields) if !fields.is_empty() => {
                fields.iter().map(|(_, field)| field.leaves()).sum()
            }
            _ => 1,
        }
    }

    fn add_leaves(&self, leaves: &mut Vec<Leaf>) {
        match self {
            ColumnType::List(inner) => inner.add_leaves(leaves),
            ColumnType::Struct(fields) if !fields.is_empty() => {
                fields
                    .iter()
                    .for_each(|(_, field)| field.add_leaves(leaves));
            }
            ColumnType::Bool => leaves.push(Leaf::new(Values::Bool(Vec::new()))),
            ColumnType::Int => leaves.push(Leaf::new(Values::Int(Vec::new()))),
            ColumnType::Float => leaves.push(Leaf::new(Values::Float(Vec::new()))),
            _ => leaves.push(Leaf::new(Values::Text(Vec::new()))),
        }
    }

    fn schema(&self, name: &str) -> Result<Type, ParquetError> {
        let leaf = |physical| {
            Type::primitive_type_builder(name, physical).with_repetition(Repetition::OPTIONAL)
        };
        match self {
            ColumnType::Bool => leaf(Physical::BOOLEAN).build(),
            ColumnType::Int => leaf(Physical::INT64).build(),
            ColumnType::Float => leaf(Physical::DOUBLE).build(),
            ColumnType::List(inner) => {
                let element = inner.schema("element")?;
                let list = Type::group_type_builder("list")
                    .with_repetition(Repetition::REPEATED)
                    .with_fields(vec![Arc::new(element)])
                    .build()?;
                Type::group_type_builder(name)
                    .with_repetition(Repetition::OPTIONAL)
                    .with_logical_type(Some(LogicalType::List))
                    .with_converted_type(ConvertedType::LIST)
                    .with_fields(vec![Arc::new(list)])
                    .build()
            }
            ColumnType::Struct(fields) if !fields.is_empty() => Type::group_type_builder(name)
                .with_repetition(Repetition::OPTIONAL)
                .with_fields(columns(fields)?)
                .build(),
            _ => leaf(Physical::BYTE_ARRAY)
                .with_logical_type(Some(LogicalType::String))
                .with_converted_type(ConvertedType::UTF8)
                .build(),
        }
    }
}

fn columns(fields: &[(String, ColumnType)]) -> Result<Vec<Arc<Type>>, ParquetError> {
    fields
        .iter()
        .map(|(name, field)| field.schema(name).map(Arc::new))
        .collect()
}

/// Writes the rows as one table, snappy-compressed. `table` must have admitted every row.
pub(super) fn write<W: Write + Send>(
    out: W,
    table: &Table,
    rows: &[Object],
) -> Result<(), ParquetError> {
    let fields = &table.0;
    let root = Type::group_type_builder("schema")
        .with_fields(columns(fields)?)
        .build()?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .build();
    let mut writer = SerializedFileWriter::new(out, Arc::new(root), Arc::new(properties))?;
    for rows in rows.chunks(ROWS_PER_GROUP) {
        let mut leaves = shred(fields, rows).into_iter();
        let mut group = writer.next_row_group()?;
        while let (Some(column), Some(leaf)) = (group.next_column()?, leaves.next()) {
            leaf.write(column)?;
        }
        group.close()?;
    }
    writer.close()?;
    Ok(())
}

/// Splits rows into leaf columns (Dremel's record shredding).
fn shred(fields: &[(String, ColumnType)], rows: &[Object]) -> Vec<Leaf> {
    let mut leaves = Vec::new();
    fields
        .iter()
        .for_each(|(_, field)| field.add_leaves(&mut leaves));
    for row in rows {
        shred_fields(fields, row, Levels::default(), &mut leaves);
    }
    leaves
}

/// Where a value stands: optional and repeated parts present above it, the list it goes on with,
/// and how many lists lie around it.
#[derive(Clone, Copy, Default)]
struct Levels {
    definition: i16,
    repetition: i16,
    depth: i16,
}

fn shred_fields(
    fields: &[(String, ColumnType)],
    object: &Object,
    levels: Levels,
    mut leaves: &mut [Leaf],
) {
    for (name, field) in fields {
        let (own, rest) = leaves.split_at_mut(field.leaves());
        shred_value(field, object.get(name).unwrap_or(&Value::Null), levels, own);
        leaves = rest;
    }
}

fn shred_value(column: &ColumnType, value: &Value, levels: Levels, leaves: &mut [Leaf]) {
    let present = Levels {
        definition: levels.definition + 1,
        ..levels
    };
    match (column, value) {
        (ColumnType::List(inner), Value::Array(items)) if !items.is_empty() => {
            for (i, item) in items.iter().enumerate() {
                let item_levels = Levels {
                    definition: levels.definition + 2,
                    repetition: if i == 0 {
                        levels.repetition
                    } else {
                        levels.depth + 1
                    },
                    depth: levels.depth + 1,
                };
                shred_value(inner, item, item_levels, leaves);
            }
        }
        (ColumnType::Struct(fields), Value::Object(object)) if !column.is_empty_struct() => {
            shred_fields(fields, object, present, leaves);
        }
        (ColumnType::List(_), Value::Array(_)) => {
            leaves.iter_mut().for_each(|leaf| leaf.end(present))
        }
        (_, value) => {
            for leaf in leaves {
                if leaf.values.push(value) {
                    leaf.end(present);
                } else {
                    leaf.end(levels);
                }
            }
        }
    }
}

/// One leaf column of a row group.
struct Leaf {
    definitions: Vec<i16>,
    repetitions: Vec<i16>,
    values: Values,
}

enum Values {
    Bool(Vec<bool>),
    Int(Vec<i64>),
    Float(Vec<f64>),
    Text(Vec<ByteArray>),
}

impl Values {
    /// Whether the value was one of this column's; a null is not.
    fn push(&mut self, value: &Value) -> bool {
        match (self, value) {
            (Values::Bool(values), Value::Bool(value)) => values.push(*value),
            (Values::Text(values), Value::String(text)) => values.push(text.as_str().into()),
            (Values::Int(values), Value::Number(number)) => match number.as_i64() {
                Some(number) => values.push(number),
                None => return false,
            },
            (Values::Float(values), Value::Number(number)) => match number.as_f64() {
                Some(number) => values.push(number),
                None => return false,
            },
            _ => return false,
        }
        true
    }
}

impl Leaf {
    fn new(values: Values) -> Self {
        Leaf {
            definitions: Vec::new(),
            repetitions: Vec::new(),
            values,
        }
    }

    fn end(&mut self, levels: Levels) {
        self.definitions.push(levels.definition);
        self.repetitions.push(levels.repetition);
    }

    fn write(self, mut column: SerializedColumnWriter<'_>) -> Result<(), ParquetError> {
        let definitions = Some(self.definitions.as_slice());
        let repetitions = Some(self.repetitions.as_slice());
        match &self.values {
            Values::Bool(values) => {
                column
                    .typed::<BoolType>()
                    .write_batch(values, definitions, repetitions)?
            }
            Values::Int(values) => {
                column
                    .typed::<Int64Type>()
                    .write_batch(values, definitions, repetitions)?
            }
            Values::Float(values) => {
                column
                    .typed::<DoubleType>()
                    .write_batch(values, definitions, repetitions)?
            }
            Values::Text(values) => {
                column
                    .typed::<ByteArrayType>()
                    .write_batch(values, definitions, repetitions)?
            }
        };
        column.close()
    }
}
