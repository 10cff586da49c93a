//! Arguments that several commands share. Structs that are flattened have plain comments: clap
//! would take a doc comment as the text of the whole command.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use sppo_training::config::{
    COUNT, COUNT_OR_NONE, Config, Date, Generate, NOT_NEGATIVE, OnBadRow, OnTooLong, PROBABILITY,
    Precision, Prompts, RANK, Range, SAMPLES,
};
use sppo_training::files::Existing;
use sppo_training::stages::PromptLimits;

use crate::backend::Device;
use crate::errors::user;

// `--config`, `--set`, `--date` and `--device` of the commands that a configuration drives.
#[derive(clap::Args)]
pub struct ConfigArgs {
    /// Configuration file; `sppo config` documents its keys.
    #[arg(long, value_name = "FILE", default_value = "config.toml")]
    pub config: PathBuf,
    /// Overrides a key, e.g. train.learning_rate=1e-6.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Overrides on_bad_row: stop (nothing begins) or skip (rows that cannot be used are left out).
    #[arg(long, value_name = "WHAT")]
    pub on_bad_row: Option<OnBadRow>,
    #[command(flatten)]
    pub date: DateArg,
    /// Overrides the device: cpu, flex, ndarray, wgpu[:N] or cuda[:N].
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
}

impl ConfigArgs {
    /// The resolved configuration and the device to run on.
    pub fn load(&self) -> anyhow::Result<(Config, Device)> {
        let (config, name) = self.load_without_device()?;
        #[cfg(any(feature = "wgpu", feature = "cuda"))]
        crate::device_memory::reckon_with(&config);
        Ok((config, name.parse()?))
    }

    /// The resolved configuration and the device's name; this build need not have it.
    pub fn load_without_device(&self) -> anyhow::Result<(Config, String)> {
        let bad = bad_row_override(self.on_bad_row);
        let overrides = [&self.set[..], &self.date.overrides(), &bad].concat();
        let mut config = Config::load(Some(&self.config), &overrides)?;
        if let Some(device) = &self.device {
            config.device = device.clone();
        }
        let name = config.device.clone();
        Ok((config, name))
    }
}

/// Refuses bf16 weights on a device that cannot hold them.
pub fn refuse_bf16(section: &str, precision: Precision, device: Device) -> anyhow::Result<()> {
    if precision == Precision::Bf16 && !device.has_bf16() {
        return Err(user(format!(
            "{section}.precision = \"bf16\": this device has no bf16; use flex or cuda, or set {section}.precision = \"f32\"",
        )));
    }
    Ok(())
}

/// The same for the flag `--precision`.
pub fn refuse_bf16_flag(precision: Precision, device: Device) -> anyhow::Result<()> {
    match precision == Precision::Bf16 && !device.has_bf16() {
        true => Err(user("--precision bf16: this device has no bf16")),
        false => Ok(()),
    }
}

// `--overwrite` of the commands that make one output.
#[derive(clap::Args)]
pub struct OverwriteArg {
    /// Replaces an output that was made from something else, or is damaged.
    #[arg(long)]
    pub overwrite: bool,
}

impl OverwriteArg {
    /// Outputs of other makings are refused unless the flag is given.
    pub fn existing(&self) -> Existing<'static> {
        match self.overwrite {
            true => Existing::Overwrite,
            false => Existing::Keep,
        }
    }

    /// Trainings of other makings in `folder` are set aside unless the flag is given.
    pub fn or_set_aside<'a>(&self, folder: &'a Path) -> Existing<'a> {
        match self.overwrite {
            true => Existing::Overwrite,
            false => Existing::SetAside(folder),
        }
    }
}

// `--chat-template` of the commands that read a model folder's text.
#[derive(clap::Args)]
pub struct TemplateArg {
    /// Chat template, a Jinja file, to use instead of the model folder's.
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
}

// `--device` of the commands that run without a configuration.
#[derive(clap::Args)]
pub struct DeviceArg {
    /// Where the model runs: cpu, flex, ndarray, wgpu[:N] or cuda[:N].
    #[arg(long, default_value = "cpu")]
    pub device: Device,
}

// `--date` of the commands that render chat templates.
#[derive(clap::Args)]
pub struct DateArg {
    /// The day that chat templates see; today, or model.date of a configuration, unless given.
    #[arg(long, value_name = "YYYY-MM-DD")]
    pub date: Option<Date>,
}

impl DateArg {
    /// The same as overrides of a configuration.
    pub fn overrides(&self) -> Vec<String> {
        let date = self.date.iter();
        date.map(|date| format!("model.date={date}")).collect()
    }
}

/// `--on-bad-row` as an override of a configuration.
pub fn bad_row_override(given: Option<OnBadRow>) -> Vec<String> {
    let given = given.iter();
    given.map(|word| format!("on_bad_row={word}")).collect()
}

// `--on-bad-row` of the commands that run without a configuration.
#[derive(clap::Args)]
pub struct BadRowArg {
    /// What becomes of rows that cannot be used: stop (nothing begins) or skip (left out and counted).
    #[arg(long, value_name = "WHAT", default_value_t = OnBadRow::Stop)]
    pub on_bad_row: OnBadRow,
}

// The limits on prompts that `[prompts]` has, as flags.
#[derive(clap::Args)]
pub struct PromptArgs {
    /// Longest prompt, in tokens; what the model's context leaves room for unless given.
    #[arg(long, value_name = "N", value_parser = length)]
    pub max_prompt_length: Option<usize>,
    /// What becomes of a longer one: stop (nothing begins), skip (left out) or cut (loses its beginning).
    #[arg(long, default_value_t = Prompts::default().on_too_long)]
    pub on_too_long: OnTooLong,
    #[command(flatten)]
    pub bad: BadRowArg,
}

impl From<&PromptArgs> for PromptLimits {
    fn from(args: &PromptArgs) -> Self {
        Self {
            max_length: args.max_prompt_length,
            on_too_long: args.on_too_long,
            on_bad_row: args.bad.on_bad_row,
        }
    }
}

// Sampling as `[generate]` has it, as flags.
#[derive(clap::Args)]
pub struct SamplingArgs {
    /// Responses a prompt: 5 unless given, and 1 for the files of other programs.
    #[arg(long, value_name = "K", value_parser = samples)]
    pub samples: Option<usize>,
    /// 0 is greedy.
    #[arg(long, value_name = "T", default_value_t = Generate::default().temperature, value_parser = not_negative)]
    pub temperature: f64,
    /// Samples from the most likely tokens that together have this probability.
    #[arg(long, value_name = "P", default_value_t = Generate::default().top_p, value_parser = probability)]
    pub top_p: f64,
    /// Samples from this many most likely tokens; 0 is off.
    #[arg(long, value_name = "N", default_value_t = Generate::default().top_k, value_parser = count_or_none)]
    pub top_k: usize,
    /// Longest response, in tokens.
    #[arg(long, value_name = "N", default_value_t = Generate::default().max_new_tokens, value_parser = count)]
    pub max_new_tokens: usize,
    /// Token ids that end a response; the model's own unless given.
    #[arg(long, value_name = "ID,…", value_delimiter = ',')]
    pub stop_token_ids: Option<Vec<usize>>,
    /// Seed of the samples.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Sequences generated together; does not change the result.
    #[arg(long, value_name = "N", default_value_t = Generate::default().batch, value_parser = count)]
    pub batch: usize,
    /// Most memory for keys and values; fewer sequences are generated together where it is short.
    #[arg(long, value_name = "MIB", value_parser = count)]
    pub cache_memory_mib: Option<usize>,
    /// Number format of weights, activations and cache: f32 or bf16.
    #[arg(long, default_value_t = Precision::F32)]
    pub precision: Precision,
}

impl From<&SamplingArgs> for Generate {
    fn from(args: &SamplingArgs) -> Self {
        Self {
            samples: args.samples.unwrap_or(Self::default().samples),
            temperature: args.temperature,
            top_p: args.top_p,
            top_k: args.top_k,
            max_new_tokens: args.max_new_tokens,
            stop_token_ids: args.stop_token_ids.clone(),
            batch: args.batch,
            cache_memory_mib: args.cache_memory_mib,
            precision: args.precision,
        }
    }
}

/// One part of the rows, `I/N`: those whose number modulo N is I.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// From 0 to `of` − 1.
    pub index: usize,
    /// Number of parts.
    pub of: usize,
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(index, of)| {
            Some((index.parse::<usize>().ok()?, of.parse::<usize>().ok()?))
        });
        match numbers {
            Some((index, of)) if index < of => Ok(Self { index, of }),
            _ => Err("write I/N with I from 0 to N-1, e.g. 0/4".into()),
        }
    }
}

/// A whole number above 0.
pub fn count(text: &str) -> Result<usize, String> {
    whole(text, COUNT)
}

/// A whole number, which may be 0.
pub fn count_or_none(text: &str) -> Result<usize, String> {
    whole(text, COUNT_OR_NONE)
}

/// A number of responses a prompt.
pub fn samples(text: &str) -> Result<usize, String> {
    whole(text, SAMPLES)
}

/// The rank of an adapter.
pub fn rank(text: &str) -> Result<usize, String> {
    whole(text, RANK)
}

fn whole(text: &str, range: Range) -> Result<usize, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // Whatever does not fit into a usize is out of every range, but is a number.
    let number = text.parse::<f64>().ok().filter(|_| digits);
    match number.map(|number| range.broken_by(number)) {
        Some(None) => text.parse().map_err(|_| format!("expected {range}")),
        Some(Some(expected)) => Err(format!("expected a whole number, {expected}")),
        None => Err(format!("expected {range}")),
    }
}

/// A whole number above 1.
fn length(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|&n: &usize| n > 1);
    number.ok_or_else(|| "expected a whole number above 1".into())
}

/// A finite number that is 0 or more.
pub fn not_negative(text: &str) -> Result<f64, String> {
    real(text, NOT_NEGATIVE)
}

/// A number above 0 that is at most 1.
pub fn probability(text: &str) -> Result<f64, String> {
    real(text, PROBABILITY)
}

fn real(text: &str, range: Range) -> Result<f64, String> {
    let number = text.parse().ok();
    let number = number.filter(|x: &f64| x.is_finite() && range.admits(*x));
    number.ok_or_else(|| format!("expected {range}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards() {
        assert_eq!("1/4".parse(), Ok(Shard { index: 1, of: 4 }));
        for bad in ["4/4", "1", "a/2", "1/0", "-1/2", ""] {
            assert!(bad.parse::<Shard>().is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_out_of_range() {
        assert!(count("0").is_err() && count("-1").is_err() && count("8") == Ok(8));
        assert!(count("").is_err() && count("1.5").is_err() && count("1e3").is_err());
        assert_eq!(count_or_none("0"), Ok(0));
        assert!(not_negative("-0.1").is_err() && not_negative("nan").is_err());
        assert!(not_negative("inf").is_err() && not_negative("0") == Ok(0.0));
        assert!(probability("0").is_err() && probability("1.1").is_err());
        for most in [
            "17592186044416",
            "18446744073709551615",
            "99999999999999999999999",
        ] {
            assert_eq!(
                count(most),
                Err("expected a whole number, at most 10000000".into())
            );
            assert_eq!(count_or_none(most), count(most));
            let fewer = "expected a whole number, at most 65536";
            assert_eq!(samples(most), Err(fewer.into()));
            assert!(rank(most).unwrap_err().ends_with("from 1 to 65536"));
        }
        assert!(probability("NaN").is_err() && probability("1") == Ok(1.0));
    }
}
