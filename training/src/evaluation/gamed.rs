//! `df_gamed.csv` of the data set tatsu-lab/alpaca_eval: judgements of two baselines that were told
//! to be brief or long, and the difficulty of each instruction.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use csv::StringRecord;

use super::error::EvaluationError;
use super::logistic::Observation;
use crate::files::file_fingerprint;
use crate::hub::{Cache, Repository};

const FILE: &str = "df_gamed.csv";
const DATA_SET: &str = "tatsu-lab/alpaca_eval";

/// The file in the local cache of the Hub; where it was looked for, if it is not there.
pub fn find_gamed() -> Result<PathBuf, String> {
    let cache = Cache::from_env().map_err(|error| error.to_string())?;
    let repository = Repository::dataset(DATA_SET).ok_or("no data set's name")?;
    let found = cache.file(&repository, FILE);
    found.ok_or_else(|| {
        let place = cache.repository(&repository);
        format!("{} has no {FILE}", place.display())
    })
}

/// What it holds.
#[derive(Clone, Debug)]
pub struct Gamed {
    /// The file.
    pub path: PathBuf,
    /// Of its content, in hex.
    pub sha256: String,
    rows: Vec<GamedRow>,
    /// By the number of the row in which an instruction stands first, from 0: so alpaca_eval looks
    /// it up, and in the official file these are the numbers of the instructions.
    difficulties: HashMap<u64, f64>,
}

#[derive(Clone, Copy, Debug)]
struct GamedRow {
    /// From 0 to 1; none where the judge gave none.
    preference: Option<f64>,
    /// In standard deviations.
    length_difference: f64,
    difficulty: f64,
    /// Whether it is no baseline.
    own: bool,
}

const COLUMNS: [&str; 5] = [
    "index",
    "preference",
    "std_delta_len",
    "instruction_difficulty",
    "not_gamed_baseline",
];

impl Gamed {
    /// Reads the file.
    pub fn read(path: &Path) -> Result<Self, EvaluationError> {
        let problem = |problem: String| EvaluationError::content(path, problem);
        let sha256 = file_fingerprint(path)?;
        let broken = |error: csv::Error| problem(format!("is no CSV file: {error}"));
        let mut reader = csv::Reader::from_path(path).map_err(broken)?;
        let header = reader.headers().map_err(broken)?.clone();
        let places = columns(&header).map_err(problem)?;
        let mut found = Self {
            path: path.into(),
            sha256,
            rows: Vec::new(),
            difficulties: HashMap::new(),
        };
        let mut seen = HashSet::new();
        for record in reader.records() {
            let record = record.map_err(broken)?;
            let (number, row) = row(&record, places).map_err(problem)?;
            if seen.insert(number) {
                let place = found.rows.len() as u64;
                found.difficulties.insert(place, row.difficulty);
            }
            found.rows.push(row);
        }
        match found.rows.is_empty() {
            true => Err(problem(format!(
                "holds no rows; is it the {FILE} of tatsu-lab/alpaca_eval?"
            ))),
            false => Ok(found),
        }
    }

    /// Of an instruction by its number.
    pub(super) fn difficulty(&self, number: u64) -> Option<f64> {
        self.difficulties.get(&number).copied()
    }

    /// How many instructions it knows.
    pub fn instructions(&self) -> usize {
        self.difficulties.len()
    }

    /// Its judged rows for the fit; baselines have the given weight.
    pub(super) fn observations(&self, weight: f64) -> Vec<Observation<3>> {
        let judged = self.rows.iter().filter_map(|row| {
            Some(Observation {
                x: [
                    row.length_difference.tanh(),
                    row.difficulty,
                    f64::from(u8::from(row.own)),
                ],
                probability: row.preference?,
                weight: if row.own { 1.0 } else { weight },
            })
        });
        judged.collect()
    }
}

fn columns(header: &StringRecord) -> Result<[usize; 5], String> {
    let mut places = [0; 5];
    for (place, name) in places.iter_mut().zip(COLUMNS) {
        let found = header.iter().position(|column| column == name);
        *place = found.ok_or_else(|| {
            let columns: Vec<&str> = header.iter().take(12).collect();
            format!(
                "column `{name}` is missing, found {:?}; is it the {FILE} of tatsu-lab/alpaca_eval?",
                columns.join(", ")
            )
        })?;
    }
    Ok(places)
}

fn row(record: &StringRecord, places: [usize; 5]) -> Result<(u64, GamedRow), String> {
    let line = record.position().map_or(0, |position| position.line());
    let wrong = |column: usize, expected: &str| {
        let text: String = field(record, places, column).chars().take(40).collect();
        format!(
            "line {line}, column `{}` must be {expected}, found {text:?}",
            COLUMNS[column]
        )
    };
    let number = |column: usize| {
        let number = field(record, places, column).parse().ok();
        let number = number.filter(|number: &f64| number.is_finite());
        number.ok_or_else(|| wrong(column, "a finite number"))
    };
    let index = field(record, places, 0).parse();
    let index = index.map_err(|_| wrong(0, "a whole number"))?;
    let preference = match field(record, places, 1) {
        // As pandas reads and writes what is missing.
        "" | "NaN" | "nan" => None,
        _ => Some(number(1)?),
    };
    if preference.is_some_and(|preference| !(0.0..=1.0).contains(&preference)) {
        return Err(wrong(1, "a number from 0 to 1"));
    }
    let own = match field(record, places, 4).to_ascii_lowercase().as_str() {
        "true" => true,
        "false" => false,
        _ => return Err(wrong(4, "True or False")),
    };
    let row = GamedRow {
        preference,
        length_difference: number(2)?,
        difficulty: number(3)?,
        own,
    };
    Ok((index, row))
}

fn field(record: &StringRecord, places: [usize; 5], column: usize) -> &str {
    record.get(places[column]).unwrap_or_default().trim()
}
