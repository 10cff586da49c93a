//! Reading the known columns of a Parquet table as JSON objects.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::Field;
use ::parquet::record::reader::RowIter;
use ::parquet::schema::types::Type;
use serde_json::Value;

use super::{DataError, EachRow, Object, Place, RowProblem};

/// Calls `each` for every row with the columns named in `keys`; other columns are not read.
pub(super) fn scan(
    path: &Path,
    keys: &[&str],
    kind: &str,
    each: &mut EachRow,
) -> Result<(), DataError> {
    let wrong = |detail: String| DataError::Parquet {
        path: path.to_path_buf(),
        detail,
    };
    let unreadable = |error| wrong(format!("not a readable Parquet file: {error}"));
    let file = File::open(path).map_err(|source| DataError::io(path, "open it", source))?;
    let reader = guarded(|| SerializedFileReader::new(file)).map_err(unreadable)?;
    let metadata = reader.metadata().file_metadata();
    if metadata.num_rows() == 0 {
        return Ok(());
    }
    let schema = metadata.schema_descr().root_schema();
    let known = known_columns(schema, keys);
    if known.is_empty() {
        let columns: Vec<&str> = schema.get_fields().iter().map(|c| c.name()).collect();
        return Err(wrong(format!(
            "none of its columns ({}) belongs to {kind}; known are {}",
            columns.join(", "),
            keys.join(", ")
        )));
    }
    let projection = Type::group_type_builder(schema.name())
        .with_fields(known)
        .build()
        .map_err(unreadable)?;
    let mut number = 0;
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group).map_err(unreadable)?;
        let projection = Some(projection.clone());
        let rows = guarded(|| RowIter::from_row_group(projection, &*group));
        let mut rows = rows.map_err(unreadable)?;
        while let Some(row) = guarded(|| rows.next().transpose()).map_err(unreadable)? {
            number += 1;
            let place = Place::Row(number);
            let mut object = Object::new();
            for (key, field) in row.into_columns() {
                let value = to_json(&key, field).map_err(|problem| DataError::Row {
                    path: path.to_path_buf(),
                    place,
                    problem,
                })?;
                object.insert(key, value);
            }
            each(place, object)?;
        }
    }
    Ok(())
}

/// Runs a step of the `parquet` crate, whose record reader panics on some damaged files.
fn guarded<T>(step: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    catch_unwind(AssertUnwindSafe(step))
        .unwrap_or_else(|_| Err(ParquetError::General("its data are damaged".to_string())))
}

fn known_columns(schema: &Type, keys: &[&str]) -> Vec<Arc<Type>> {
    schema
        .get_fields()
        .iter()
        .filter(|column| keys.contains(&column.name()))
        .cloned()
        .collect()
}

/// One value; numbers that JSON cannot hold and types that no row uses are refused.
fn to_json(key: &str, field: Field) -> Result<Value, RowProblem> {
    let float = |value: f64| {
        serde_json::Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| RowProblem::mistyped(key, "a finite number", value.to_string()))
    };
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(value) => value.into(),
        Field::Byte(value) => value.into(),
        Field::Short(value) => value.into(),
        Field::Int(value) => value.into(),
        Field::Long(value) => value.into(),
        Field::UByte(value) => value.into(),
        Field::UShort(value) => value.into(),
        Field::UInt(value) => value.into(),
        Field::ULong(value) => value.into(),
        Field::Float16(value) => float(value.to_f64())?,
        Field::Float(value) => float(f64::from(value))?,
        Field::Double(value) => float(value)?,
        Field::Str(text) => text.into(),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.into(),
            Err(_) => {
                return Err(RowProblem::mistyped(
                    key,
                    "text",
                    "bytes that are not UTF-8",
                ));
            }
        },
        Field::Group(row) => {
            let mut object = Object::new();
            for (name, field) in row.into_columns() {
                let value = to_json(&format!("{key}.{name}"), field)?;
                object.insert(name, value);
            }
            Value::Object(object)
        }
        Field::ListInternal(list) => {
            let items = list.elements().iter().enumerate();
            items
                .map(|(i, item)| to_json(&format!("{key}[{i}]"), item.clone()))
                .collect::<Result<Vec<_>, _>>()?
                .into()
        }
        other => {
            return Err(RowProblem::mistyped(
                key,
                "text, numbers, lists or structs",
                format!("{other} of a type that no row uses"),
            ));
        }
    })
}
