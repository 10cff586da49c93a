//! Writing JSON rows as a Parquet table whose column types come from the rows.
//!
//! Every column may be null and lists have the three levels of the Parquet specification, so
//! that pyarrow and `datasets` read back the same objects.

use std::io::Write;
use std::sync::Arc;

use ::parquet::arrow::ArrowWriter;
use ::parquet::basic::Compression;
use ::parquet::errors::ParquetError;
use ::parquet::file::properties::WriterProperties;
use arrow_json::ReaderBuilder;
use arrow_schema::{DataType, Field, Fields, Schema};
use serde_json::Value;

use super::fields::Object;

/// Rows that are turned into columns at a time.
const BATCH: usize = 2048;

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

    fn data_type(&self) -> DataType {
        match self {
            ColumnType::Bool => DataType::Boolean,
            ColumnType::Int => DataType::Int64,
            ColumnType::Float => DataType::Float64,
            ColumnType::List(inner) => {
                let item = Field::new("element", inner.data_type(), true);
                DataType::List(Arc::new(item))
            }
            ColumnType::Struct(fields) if !fields.is_empty() => DataType::Struct(columns(fields)),
            _ => DataType::Utf8,
        }
    }

    /// Replaces objects that no column can hold by null.
    fn prune(&self, value: &mut Value) {
        match (self, value) {
            (ColumnType::List(inner), Value::Array(items)) => {
                items.iter_mut().for_each(|item| inner.prune(item));
            }
            (ColumnType::Struct(_), value) if self.is_empty_struct() => *value = Value::Null,
            (ColumnType::Struct(fields), Value::Object(object)) => prune(fields, object),
            _ => {}
        }
    }
}

fn prune(fields: &[(String, ColumnType)], object: &mut Object) {
    for (name, field) in fields {
        if let Some(value) = object.get_mut(name) {
            field.prune(value);
        }
    }
}

fn columns(fields: &[(String, ColumnType)]) -> Fields {
    let column = |(name, field): &(String, ColumnType)| Field::new(name, field.data_type(), true);
    fields.iter().map(column).collect()
}

/// Writes the rows as one table, snappy-compressed. `table` must have admitted every row.
pub(super) fn write<W: Write + Send>(
    out: W,
    table: &Table,
    mut rows: Vec<Object>,
) -> Result<(), ParquetError> {
    let schema = Arc::new(Schema::new(columns(&table.0)));
    rows.iter_mut().for_each(|row| prune(&table.0, row));
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY);
    let mut writer = ArrowWriter::try_new(out, schema.clone(), Some(properties.build()))?;
    let mut decoder = ReaderBuilder::new(schema)
        .with_batch_size(BATCH)
        .build_decoder()?;
    for rows in rows.chunks(BATCH) {
        decoder.serialize(rows)?;
        if let Some(batch) = decoder.flush()? {
            writer.write(&batch)?;
        }
    }
    writer.close()?;
    Ok(())
}
