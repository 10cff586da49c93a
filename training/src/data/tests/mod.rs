use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sppo_model::chat_template::Message;
use tempfile::TempDir;

use super::*;
use crate::files::{Existing, MadeFrom};

mod formats;
mod rows;

fn write_one<T: Row>(path: &Path, row: &T) {
    let _ = fs::remove_file(path);
    let (mut writer, _) = RowWriter::open(path).unwrap();
    writer.append(row).unwrap();
    writer.finish().unwrap();
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn write(folder: &TempDir, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn read<T: Row>(text: &str) -> Result<Vec<T>, DataError> {
    let folder = folder();
    read_rows(&write(&folder, "rows.jsonl", text))
}

/// The message without the folder in front.
fn message<T: Row>(text: impl AsRef<[u8]>) -> String {
    let folder = folder();
    let path = write(&folder, "rows.jsonl", text);
    let Err(error) = read_rows::<T>(&path) else {
        panic!("accepted");
    };
    error
        .to_string()
        .replace(&format!("{}/", folder.path().display()), "")
}

fn user(text: &str) -> Message {
    Message::new("user", text)
}

fn assistant(text: &str) -> Message {
    Message::new("assistant", text)
}

fn responses(id: &str, texts: &[&str]) -> ResponseRow {
    ResponseRow {
        prompt_id: id.into(),
        prompt: Prompt::Messages(vec![user("Hi, 東京 🙂\n")]),
        reference: None,
        responses: texts.iter().map(|text| text.to_string()).collect(),
        finish_reasons: Some(vec!["stop".into(); texts.len()]),
        tokens: Some(vec![3; texts.len()]),
        logprobs: None,
        prompt_ids: None,
        response_ids: None,
    }
}

fn judged(id: &str, scores: &[f64]) -> JudgedRow {
    JudgedRow {
        responses: responses(id, &vec!["a\t\"b\""; scores.len()]),
        rm_scores: scores.to_vec(),
        probability: crate::preference::probabilities(scores, 1.0),
        comparison_logits: None,
        judge: Some(serde_json::json!({"kind": "rubric", "hash": "00"})),
    }
}

fn fixture(name: &str) -> PathBuf {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/parquet");
    Path::new(folder).join(name)
}

#[test]
fn lines_are_read_as_users_write_them() {
    let bytes = "\u{feff}{\"prompt\": \"A\"}\r\n\r\n  \n{\"prompt\": \"B\"}";
    let rows: Vec<PromptRow> = read(bytes).unwrap();
    assert_eq!(rows.len(), 2);
    // A torn last line is dropped, even within a character.
    for torn in [&b"{\"prom"[..], b"{\"prompt\": \"\xf0\x9f", b"{"] {
        let folder = folder();
        let bytes = [b"{\"prompt\": \"A\"}\n", torn].concat();
        let rows: Vec<PromptRow> = read_rows(&write(&folder, "x.jsonl", bytes)).unwrap();
        assert_eq!(rows.len(), 1);
    }
}

#[test]
fn wrong_files_are_refused() {
    let row = "{\"prompt\": \"A\"}\n";
    let says = |bytes: &[u8], part: &str| {
        let message = message::<PromptRow>(bytes);
        assert!(message.contains(part), "{message}");
    };
    says(b"", "rows.jsonl: holds no rows (prompts expected)");
    says(b"\n \n", "holds no rows");
    says(b"{\"pro", "holds no rows");
    says(
        format!("{row}{{\"pro\n{row}").as_bytes(),
        "rows.jsonl, line 2: not a JSON object",
    );
    says(
        format!("{row}{{\"pro\n").as_bytes(),
        "line 2: not a JSON object",
    );
    says(b"[1]", "line 1: not a JSON object: found a list");
    says(b"\"x\"\n", "found a string");
    says(
        b"{\"prompt\": \"\xff\"}\n",
        "line 1: not a JSON object: it is not UTF-8",
    );
    says(b"{\"prompt\": NaN}\n", "(JSON has no NaN or Infinity)");
    says(
        b"{\"text\": \"A\"}\n",
        "key `prompt` is missing; a prompt row needs",
    );
    says(
        b"{\"prompt\": 3}\n",
        "key `prompt` must be a string or a list of messages, found the number 3",
    );
    says(
        b"{\"messages\": [{\"role\": \"system\", \"content\": \"x\"}]}",
        "key `messages` must be a conversation with a user turn",
    );
    says(
        b"{\"prompt\": \"A\", \"prompt_id\": \"q\"}\n\n{\"prompt\": \"B\", \"prompt_id\": \"q\"}",
        "prompt_id `q` stands at line 1 and again at line 3; ids must be unique",
    );
    let error = read_rows::<PromptRow>(Path::new("rows.csv")).unwrap_err();
    let text = error.to_string();
    let start =
        "rows.csv: unknown kind of row file: the name must end in .jsonl or .parquet; to convert";
    assert!(text.starts_with(start), "{text}");
    let error = read_rows::<PromptRow>(Path::new("/nonexistent/x.jsonl")).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("/nonexistent/x.jsonl: cannot read it")
    );
}

#[test]
fn pyarrow_tables_are_read() {
    let rows: Vec<PairRow> = read_rows(&fixture("official.snappy.parquet")).unwrap();
    assert_eq!(rows.len(), 2);
    let expected = PairContent::Text {
        prompt: vec![user("Why is the sky blue? 東京")],
        chosen: "Rayleigh.".into(),
        rejected: "".into(),
    };
    assert_eq!(rows[0].content, expected);
    assert_eq!(rows[1].probabilities.lose, Some(0.0));

    let rows: Vec<JudgedRow> = read_rows(&fixture("judged.zstd.parquet")).unwrap();
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[0].responses.responses, ["p", "", "q\n"]);
    assert_eq!(rows[0].responses.tokens, Some(vec![1, 0, 2]));
    assert_eq!(rows[0].rm_scores, [1.5, -2.0, 0.25]);
    assert_eq!(rows[0].probability[1], [0.03, 0.5, 0.1]);
    assert_eq!(rows[1].responses.tokens, None);
    assert_eq!(rows[1].responses.reference.as_deref(), Some("blue"));
    assert_eq!(rows[1].responses.prompt.messages().len(), 3);
    assert_eq!(rows[2].responses.prompt_id, "c");
    assert_eq!(rows[2].probability, [[0.5, 0.5], [0.5, 0.5]]);
}

#[test]
fn every_codec_is_read() {
    for codec in ["none", "snappy", "gzip", "brotli", "zstd", "lz4"] {
        let path = fixture(&format!("codecs/{codec}.parquet"));
        let rows: Vec<PromptRow> = read_rows(&path).unwrap();
        assert_eq!(rows[0].prompt, Prompt::Text("x".repeat(200)), "{codec}");
        let asked = vec![user("Why is the sky blue? 東京")];
        assert_eq!(rows[1].prompt, Prompt::Messages(asked), "{codec}");
    }
}

#[test]
fn wrong_tables_are_refused() {
    let says = |error: DataError, part: &str| {
        let message = error.to_string();
        assert!(message.contains(part), "{message}");
    };
    let error = read_rows::<LogpRow>(&fixture("nan.parquet")).unwrap_err();
    says(
        error,
        "row 2: key `chosen_logps` must be a finite number, found NaN",
    );
    let error = read_rows::<ResponseRow>(&fixture("nan.parquet")).unwrap_err();
    says(
        error,
        "none of its columns (chosen_logps, rejected_logps) belongs to responses",
    );
    let folder = folder();
    let whole = fs::read(fixture("official.snappy.parquet")).unwrap();
    for length in [0, 3, whole.len() / 2, whole.len() - 1] {
        let path = write(&folder, "cut.parquet", &whole[..length]);
        says(
            read_rows::<PairRow>(&path).unwrap_err(),
            "not a readable Parquet file",
        );
    }
}

/// Flips every byte of a table in turn: reading it may go well or fail, but never panics.
#[test]
fn damaged_tables_do_not_panic() {
    let folder = folder();
    let whole = fs::read(fixture("judged.zstd.parquet")).unwrap();
    let mut refused = 0;
    for i in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[i] ^= 0x7f;
        let path = write(&folder, "damaged.parquet", &bytes);
        refused += usize::from(read_rows::<JudgedRow>(&path).is_err());
    }
    assert!(refused > whole.len() / 10, "{refused}");
}

/// Writes, kills, resumes and reads back, in both formats.
#[test]
fn writers_go_on_where_they_were() {
    let folder = folder();
    for name in ["deep/er/x.jsonl", "deep/er/x.parquet"] {
        let path = folder.path().join(name);
        let rows = [
            judged("a", &[1.0, -2.5, 1e-300]),
            judged("b", &[0.1]),
            judged("c", &[3.0, 2.0]),
        ];
        let (mut writer, done) = RowWriter::open(&path).unwrap();
        assert!(done.is_empty());
        writer.append(&rows[0]).unwrap();
        drop(writer);
        // The next run finds half a row behind the first.
        let journal = if name.ends_with("parquet") {
            folder.path().join("deep/er/x.parquet.partial.jsonl")
        } else {
            path.clone()
        };
        let mut bytes = fs::read(&journal).unwrap();
        bytes.extend(b"{\"prompt_id\": \"b\", \"pro");
        fs::write(&journal, bytes).unwrap();
        let (mut writer, done) = RowWriter::open(&path).unwrap();
        assert_eq!(done, rows[..1]);
        writer.append(&rows[1]).unwrap();
        writer.finish().unwrap();
        assert_eq!(read_rows::<JudgedRow>(&path).unwrap(), rows[..2]);
        assert_eq!(journal.exists(), journal == path);
        // A finished file can be extended, and finishing without news changes nothing.
        let (mut writer, done) = RowWriter::open(&path).unwrap();
        assert_eq!(done, rows[..2]);
        writer.append(&rows[2]).unwrap();
        writer.finish().unwrap();
        let bytes = fs::read(&path).unwrap();
        let (writer, done) = RowWriter::<JudgedRow>::open(&path).unwrap();
        assert_eq!(done, rows);
        writer.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), bytes);
        let left: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(left.len(), if journal == path { 1 } else { 2 }, "{left:?}");
    }
}

#[test]
fn a_last_row_without_its_newline_is_kept() {
    let folder = folder();
    let path = write(
        &folder,
        "x.jsonl",
        "{\"chosen_logps\": 1, \"rejected_logps\": 2}",
    );
    let (mut writer, done) = RowWriter::<LogpRow>::open(&path).unwrap();
    assert_eq!(done.len(), 1);
    writer.append(&done[0]).unwrap();
    writer.finish().unwrap();
    assert_eq!(read_rows::<LogpRow>(&path).unwrap().len(), 2);
}

#[test]
fn rows_that_could_not_be_read_back_are_not_written() {
    let folder = folder();
    let path = folder.path().join("x.jsonl");
    let (mut writer, _) = RowWriter::open(&path).unwrap();
    let error = writer.append(&judged("a", &[f64::NAN, 1.0])).unwrap_err();
    assert!(
        error.to_string().contains("row 1: key `rm_scores[0]`"),
        "{error}"
    );
    assert!(!path.exists(), "nothing is made before the first row");
}

#[test]
fn a_column_has_one_type() {
    let folder = folder();
    let path = folder.path().join("x.parquet");
    let (mut writer, _) = RowWriter::open(&path).unwrap();
    let mut row = responses("a", &["x"]);
    writer.append(&row).unwrap();
    row.prompt_id = "b".into();
    row.prompt = Prompt::Text("text".into());
    let error = writer.append(&row).unwrap_err().to_string();
    assert!(
        error.ends_with("column `prompt` holds a list and now a string, but a Parquet column has one type; write to a .jsonl file instead"),
        "{error}"
    );
    row.prompt = Prompt::Messages(vec![user("x")]);
    writer.append(&row).unwrap();
    writer.finish().unwrap();
    assert_eq!(read_rows::<ResponseRow>(&path).unwrap().len(), 2);
}

#[test]
fn an_empty_table_can_be_finished() {
    let folder = folder();
    let path = folder.path().join("x.parquet");
    let (writer, _) = RowWriter::<PairRow>::open(&path).unwrap();
    writer.finish().unwrap();
    let error = read_rows::<PairRow>(&path).unwrap_err().to_string();
    assert!(error.contains("holds no rows"), "{error}");
    let (_, done) = RowWriter::<PairRow>::open(&path).unwrap();
    assert!(done.is_empty());
}

#[test]
fn unwritable_places_are_refused() {
    let folder = folder();
    let file = write(&folder, "file", "");
    let open = |path: &Path| {
        RowOutput::<PairRow>::open(path, MadeFrom::new("pairs"), Existing::Keep)
            .err()
            .map(|error| error.to_string())
            .unwrap()
    };
    let error = open(&file.join("x.jsonl"));
    assert!(error.starts_with("cannot make "), "{error}");
    fs::create_dir(folder.path().join("taken.jsonl")).unwrap();
    let error = open(&folder.path().join("taken.jsonl"));
    assert!(error.contains("is not this program's"), "{error}");
}

#[test]
fn pairs_round_trip_in_both_formats() {
    let folder = folder();
    let text = PairRow {
        prompt_id: "a".into(),
        content: PairContent::Text {
            prompt: vec![user("A"), assistant("B"), user("C")],
            chosen: "D".into(),
            rejected: "".into(),
        },
        sampled: Some(SampledIds {
            prompt_ids: vec![1, 2],
            chosen_ids: vec![3, 4],
            rejected_ids: vec![5],
            chosen_ended: Some(true),
            rejected_ended: Some(false),
        }),
        probabilities: PairProbabilities {
            chosen: Some(0.75),
            win: Some(0.625),
            lose: None,
        },
    };
    let ids = PairRow {
        content: PairContent::Ids {
            prompt: vec![1],
            chosen: vec![4_000_000_000, 2],
            rejected: vec![0],
        },
        sampled: None,
        ..text.clone()
    };
    for name in ["x.jsonl", "x.parquet"] {
        let path = folder.path().join(name);
        let (mut writer, _) = RowWriter::open(&path).unwrap();
        writer.append(&text).unwrap();
        writer.append(&ids).unwrap();
        writer.finish().unwrap();
        assert_eq!(
            read_rows::<PairRow>(&path).unwrap(),
            [text.clone(), ids.clone()]
        );
    }
}
