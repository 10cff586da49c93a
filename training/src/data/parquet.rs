//! Reading the known columns of a Parquet table as JSON objects.

use std::fs::File;
use std::path::Path;

use ::parquet::arrow::ProjectionMask;
use ::parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use ::parquet::errors::ParquetError;
use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, RecordBatch};
use arrow_schema::DataType;
use serde_json::Value;
use sppo_model::quiet::quietly;

use super::error::{DataError, Place};
use super::fields::{Object, RowProblem};
use super::format::{EachResult, EachRow};

/// Calls `each` for every row and stops at the first that cannot be read.
pub(super) fn scan(
    path: &Path,
    keys: &[&str],
    kind: &str,
    each: &mut EachRow,
) -> Result<(), DataError> {
    read(path, keys, kind, &mut |place, row| each(place, row?))
}

/// Calls `each` for every row with the columns named in `keys`, with what is wrong with those that
/// cannot be read; other columns are not read.
pub(super) fn read(
    path: &Path,
    keys: &[&str],
    kind: &str,
    each: &mut EachResult,
) -> Result<(), DataError> {
    let wrong = |detail: String| DataError::Parquet {
        path: path.to_path_buf(),
        detail,
    };
    let unreadable = |error| wrong(format!("not a readable Parquet file: {error}"));
    let file = File::open(path).map_err(|source| DataError::io(path, "open it", source))?;
    // Types by the Parquet schema alone: an Arrow schema in the file only adds other forms of them.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let reader = guarded(|| ParquetRecordBatchReaderBuilder::try_new_with_options(file, options))
        .map_err(unreadable)?;
    if reader.metadata().file_metadata().num_rows() == 0 {
        return Ok(());
    }
    let columns: Vec<&str> = reader
        .schema()
        .fields()
        .iter()
        .map(|f| f.name().as_str())
        .collect();
    let known = columns
        .iter()
        .enumerate()
        .filter(|(_, name)| keys.contains(name));
    let known: Vec<usize> = known.map(|(i, _)| i).collect();
    if known.is_empty() {
        return Err(wrong(format!(
            "none of its columns ({}) belongs to {kind}; known are {}",
            columns.join(", "),
            keys.join(", ")
        )));
    }
    let projection = ProjectionMask::roots(reader.parquet_schema(), known);
    let mut batches = guarded(|| reader.with_projection(projection).build()).map_err(unreadable)?;
    let mut number = 0;
    let mut next = || guarded(|| batches.next().transpose().map_err(ParquetError::from));
    while let Some(batch) = next().map_err(unreadable)? {
        for i in 0..batch.num_rows() {
            number += 1;
            let place = Place::Row(number);
            let object = row(&batch, i).map_err(|problem| DataError::Row {
                path: path.to_path_buf(),
                place,
                problem: Box::new(problem),
            });
            each(place, object)?;
        }
    }
    Ok(())
}

/// Runs a step of the `parquet` crate, which panics on some damaged files.
fn guarded<T>(step: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    quietly(step).unwrap_or_else(|_| Err(ParquetError::General("its data are damaged".to_string())))
}

/// Row `i` of a batch.
fn row(batch: &RecordBatch, i: usize) -> Result<Object, RowProblem> {
    let schema = batch.schema_ref();
    let columns = schema.fields().iter().zip(batch.columns());
    columns
        .map(|(field, column)| {
            let value = to_json(field.name(), column, i)?;
            Ok((field.name().clone(), value))
        })
        .collect()
}

/// Value `i` of a column; numbers that JSON cannot hold and types that no row uses are refused.
fn to_json(key: &str, column: &dyn Array, i: usize) -> Result<Value, RowProblem> {
    let float = |value: f64| {
        serde_json::Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| RowProblem::mistyped(key, "a finite number", value.to_string()))
    };
    if column.is_null(i) {
        return Ok(Value::Null);
    }
    Ok(match column.data_type() {
        DataType::Null => Value::Null,
        DataType::Boolean => column.as_boolean().value(i).into(),
        DataType::Int8 => column.as_primitive::<Int8Type>().value(i).into(),
        DataType::Int16 => column.as_primitive::<Int16Type>().value(i).into(),
        DataType::Int32 => column.as_primitive::<Int32Type>().value(i).into(),
        DataType::Int64 => column.as_primitive::<Int64Type>().value(i).into(),
        DataType::UInt8 => column.as_primitive::<UInt8Type>().value(i).into(),
        DataType::UInt16 => column.as_primitive::<UInt16Type>().value(i).into(),
        DataType::UInt32 => column.as_primitive::<UInt32Type>().value(i).into(),
        DataType::UInt64 => column.as_primitive::<UInt64Type>().value(i).into(),
        DataType::Float16 => float(column.as_primitive::<Float16Type>().value(i).to_f64())?,
        DataType::Float32 => float(column.as_primitive::<Float32Type>().value(i).into())?,
        DataType::Float64 => float(column.as_primitive::<Float64Type>().value(i))?,
        DataType::Utf8 => column.as_string::<i32>().value(i).into(),
        DataType::Binary => match std::str::from_utf8(column.as_binary::<i32>().value(i)) {
            Ok(text) => text.into(),
            Err(_) => {
                return Err(RowProblem::mistyped(
                    key,
                    "text",
                    "bytes that are not UTF-8",
                ));
            }
        },
        DataType::Struct(fields) => {
            let columns = fields.iter().zip(column.as_struct().columns());
            // A struct has the fields of all rows, null where a row's object lacks them.
            let there = columns.filter(|(_, column)| !column.is_null(i));
            let members = there.map(|(field, column)| {
                let value = to_json(&format!("{key}.{}", field.name()), column, i)?;
                Ok((field.name().clone(), value))
            });
            Value::Object(members.collect::<Result<_, _>>()?)
        }
        DataType::List(_) => {
            let items = column.as_list::<i32>().value(i);
            (0..items.len())
                .map(|j| to_json(&format!("{key}[{j}]"), &items, j))
                .collect::<Result<Vec<_>, _>>()?
                .into()
        }
        other => {
            return Err(RowProblem::mistyped(
                key,
                "text, numbers, lists or structs",
                format!("{other}, a type that no row uses"),
            ));
        }
    })
}
