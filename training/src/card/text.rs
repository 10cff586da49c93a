//! The text of a card.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::contents::{Contents, Settings};
use super::facts::{IterationResult, Run, dataset, named};
use super::front_matter::{list, quoted};
use super::markdown::{code, link};

use crate::config::{Config, Effective, JudgeKind, Split};
use crate::shown::duration;

const PAPER: &str = "https://arxiv.org/abs/2405.00675";

const CITATION: &str = "\
## Citation

```bibtex
@article{wu2024self,
  title={Self-Play Preference Optimization for Language Model Alignment},
  author={Wu, Yue and Sun, Zhiqing and Yuan, Huizhuo and Ji, Kaixuan and Yang, Yiming and Gu, Quanquan},
  journal={arXiv preprint arXiv:2405.00675},
  year={2024}
}
```
";

/// All of it.
pub(super) fn text(card: &Contents) -> String {
    let mut out = front_matter(card);
    let _ = write!(out, "# {}\n\n{}", card.name, description(card));
    out += &model(card);
    if let Some(run) = &card.run {
        out += &iterations(run);
    }
    let tables = card.results.tables();
    if !tables.is_empty() {
        let _ = write!(out, "## Evaluation\n\n{tables}");
    }
    out += &hyperparameters(card);
    out += &data(card);
    out += &making(card);
    out += &quick_start(card);
    out += CITATION;
    out
}

fn front_matter(card: &Contents) -> String {
    let mut out = String::from("---\n");
    let base = &card.base;
    // Of adapters the Hub wants the model that they are loaded on.
    let start = card.training.as_ref().and_then(|made| made.input("model"));
    let direct = start.is_some_and(|path| named(path).0 == base.name);
    if base.repository && (direct || !card.adapters) {
        let _ = writeln!(out, "base_model: {}", quoted(&base.name));
    }
    list(&mut out, "datasets", &datasets(card));
    if let Some(languages) = base.metadata.get("language") {
        list(&mut out, "language", languages);
    }
    let library = if card.adapters {
        "peft"
    } else {
        "transformers"
    };
    let _ = writeln!(out, "library_name: {library}");
    for key in ["license", "license_name", "license_link"] {
        if let Some(value) = base.value(key) {
            let _ = writeln!(out, "{key}: {}", quoted(value));
        }
    }
    out += "pipeline_tag: text-generation\n";
    let mut tags = vec!["sppo".to_string(), "alignment".into()];
    match &card.settings {
        Settings::Pairs(train) if !train.loss.word().starts_with("sppo") => {
            tags.push(train.loss.word().into());
        }
        Settings::Supervised(_) => tags.push("sft".into()),
        _ => {}
    }
    if card.adapters {
        tags.push("lora".into());
    }
    list(&mut out, "tags", &tags);
    out += &card.results.model_index(&card.name);
    out + "---\n\n"
}

/// Data sets of the Hub that prompts, or rows, came from.
fn datasets(card: &Contents) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(run) = &card.run {
        let fine_tuning = run
            .config
            .iter()
            .filter_map(|config| config.sft.data.as_ref());
        let files = fine_tuning.chain(prompt_files(run));
        found.extend(files.filter_map(|path| dataset(path)));
    }
    let data = card.training.as_ref().and_then(|made| made.input("data"));
    found.extend(data.and_then(dataset));
    found.sort();
    found.dedup();
    found
}

/// The files of prompts of the iterations up to the model's own.
fn prompt_files(run: &Run) -> &[PathBuf] {
    let (Some(config), Some(iteration)) = (&run.config, run.iteration) else {
        return &[];
    };
    let files = config.prompts.files();
    match config.prompts.per_iteration_files {
        Some(_) => &files[..iteration.min(files.len())],
        None => files,
    }
}

/// What it is and where it comes from.
fn description(card: &Contents) -> String {
    let began = match card.base.from_scratch {
        true => "a small Llama with random weights".into(),
        false if card.base.name.is_empty() => "a model that is not named".into(),
        false => link(&card.base.name, card.base.repository),
    };
    let rows = card.training.as_ref().and_then(|made| made.rows);
    let rows = |what: &str| match rows {
        Some(count) => format!("{count} {what}"),
        None => what.into(),
    };
    let method = format!("[Self-Play Preference Optimization]({PAPER})");
    let start = card.training.as_ref().and_then(|made| made.input("model"));
    let start = start.map_or(String::new(), |path| {
        format!(", started from {}", place(card, path))
    });
    match &card.settings {
        Settings::Pairs(train) => {
            let mut text = match card.run.as_ref().and_then(|run| run.iteration) {
                Some(number) => format!(
                    "A language model after iteration {number} of {method}, which began with {began}. In each iteration the model of the one before answers each prompt several times, a judge says how probably one answer beats another, and the model is trained on the best and the worst answer of each prompt.\n\n"
                ),
                None => format!(
                    "A language model trained on preferences between answers; all began with {began}.\n\n"
                ),
            };
            let _ = writeln!(
                text,
                "Trained on {} with the {} loss ({}){start}.{}",
                rows("pairs"),
                train.loss,
                match train.loss.word().starts_with("sppo") {
                    true => format!("eta {}", train.eta()),
                    false => format!("beta {}", train.beta),
                },
                match (card.adapters, &train.lora) {
                    (true, _) => " This folder holds LoRA adapters, to be loaded on that model.",
                    (false, Some(_)) =>
                        " LoRA adapters were trained, and `sppo merge` added them to its weights.",
                    (false, None) => "",
                }
            );
            text
        }
        Settings::Supervised(_) => format!(
            "A language model after supervised fine-tuning on {}{start}; all began with {began}.\n",
            rows("rows of prompt and answer")
        ),
        Settings::Unknown if card.made.is("merge") => {
            format!("{began} with LoRA adapters added to its weights by `sppo merge`.\n")
        }
        Settings::Unknown if card.made.is("init") => {
            "A small Llama with random weights: where a training begins, of no use by itself.\n"
                .into()
        }
        Settings::Unknown => {
            format!("A language model trained by sppo, which began with {began}.\n")
        }
    }
}

/// A model or a file: by its repository, else by its place within the run, else as it was given.
fn place(card: &Contents, path: &Path) -> String {
    let (name, repository) = named(path);
    let run = card.run.as_ref().map(|run| run.folder.as_path());
    let whole = std::path::absolute(path).unwrap_or_default();
    match run.and_then(|run| whole.strip_prefix(run).ok()) {
        Some(within) if !repository => code(&within.display().to_string()),
        _ => link(&name, repository),
    }
}

fn model(card: &Contents) -> String {
    let base = &card.base;
    let mut out =
        String::from("\n## Model\n\n- Type: a decoder of the Llama architecture for text\n");
    if let Some(languages) = base.metadata.get("language") {
        let _ = writeln!(out, "- Language: {}", languages.join(", "));
    }
    match base.value("license") {
        Some(license) => {
            let _ = writeln!(out, "- License: {license}, that of the base");
        }
        None if !base.from_scratch => out += "- License: that of the base\n",
        None => {}
    }
    if !base.from_scratch && !base.name.is_empty() {
        let _ = writeln!(out, "- Base model: {}", link(&base.name, base.repository));
    }
    out + "\n"
}

/// The run's win rates by iteration.
fn iterations(run: &Run) -> String {
    if run.results.is_empty() {
        return String::new();
    }
    let mut out = String::from(
        "## Iterations\n\n| iteration | pairs | win rate against the first model (95 %) | length-controlled | against the one before | characters an answer |\n| ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for entry in &run.results {
        let _ = writeln!(
            out,
            "| {}{} | {} | {:.1} % ± {:.1} | {:.1} % | {:.1} % | {:.0} |",
            entry.iteration,
            match run.iteration == Some(entry.iteration) {
                true => ", this model",
                false => "",
            },
            entry.pairs,
            100.0 * entry.win_rate,
            196.0 * entry.win_rate_se,
            100.0 * entry.against_first.length_controlled_win_rate,
            100.0 * entry.win_rate_previous,
            entry.mean_length
        );
    }
    if let Some(IterationResult { against_first, .. }) = run.results.last() {
        let judged = match &against_first.judge {
            Value::Null => String::new(),
            judge => format!(" Judged by {}.", code(&judge.to_string())),
        };
        let _ = writeln!(
            out,
            "\nOn {} held-out prompts, which the first model answers in {:.0} characters; a tie counts one half.{judged} The model of iteration N lies in `iteration-N/model` of the run's folder.\n",
            against_first.prompts, against_first.mean_length_against,
        );
    }
    out
}

fn hyperparameters(card: &Contents) -> String {
    let settings = match &card.settings {
        Settings::Pairs(train) => {
            let mut settings = Effective::with_defaults(train.as_ref());
            settings.insert("eta".into(), format!("{} (1/beta)", train.eta()));
            settings
        }
        Settings::Supervised(sft) => Effective::with_defaults(sft.as_ref()),
        Settings::Unknown => return String::new(),
    };
    let mut out = format!("## Hyperparameters\n\n{}", table(&settings));
    if let Some(training) = &card.training
        && let Some(steps) = training.step
    {
        let _ = writeln!(out, "\n{steps} optimizer steps were taken.");
    }
    out + "\n"
}

fn table(settings: &BTreeMap<String, String>) -> String {
    let mut out = String::from("| setting | value |\n| --- | --- |\n");
    for (name, value) in settings {
        let value = code(value.trim_matches('"')).replace('|', "\\|");
        let _ = writeln!(out, "| {name} | {value} |");
    }
    out
}

/// What it was trained on.
fn data(card: &Contents) -> String {
    let mut lines = Vec::new();
    let file = |path: &Path| match dataset(path) {
        Some(id) => format!("[{id}](https://huggingface.co/datasets/{id})"),
        None => place(card, path),
    };
    let run = card.run.as_ref();
    let run = run.and_then(|run| Some((run, run.config.as_ref()?)));
    if let (Some((run, config)), Settings::Pairs(_)) = (run, &card.settings) {
        let generate = &config.generate;
        let prompts = prompt_files(run).iter().map(|path| file(path));
        let prompts: Vec<String> = prompts.collect();
        if !prompts.is_empty() {
            lines.push(format!(
                "Prompts: {}, {}",
                prompts.join(", "),
                match (config.prompts.split, config.iterations) {
                    _ if config.prompts.per_iteration_files.is_some() =>
                        "a file for each iteration".into(),
                    (_, 1) => "all of them".into(),
                    (Split::Disjoint, rounds) =>
                        format!("one of {rounds} parts for each iteration"),
                    (Split::Reuse, _) => "all of them in each iteration".into(),
                }
            ));
        }
        lines.push(format!(
            "Answers: {} a prompt by the model that the iteration began with, temperature {}, top-p {}, at most {} tokens; all are synthetic",
            generate.samples, generate.temperature, generate.top_p, generate.max_new_tokens
        ));
        lines.push(format!("Judge: {}", judge(config)));
    }
    let made = card.training.as_ref();
    if let Some(path) = made.and_then(|made| made.input("data")) {
        let kind = match card.settings {
            Settings::Supervised(_) => "Rows",
            _ => "Pairs",
        };
        lines.push(format!("{kind}: {}", file(path)));
    }
    match lines.is_empty() {
        true => String::new(),
        false => format!("## Data\n\n- {}\n\n", lines.join("\n- ")),
    }
}

fn judge(config: &Config) -> String {
    let judge = &config.judge;
    let named = |what: &str, name: &Option<String>| match name {
        Some(name) => format!("{what} {}", code(name)),
        None => what.into(),
    };
    match judge.kind {
        JudgeKind::PairRm => named("PairRM,", &judge.model),
        JudgeKind::Reward => named("the reward model", &judge.model),
        JudgeKind::Http => named("the chat model", &judge.http.model),
        JudgeKind::Rubric => "rules (`[judge.rubric]` of the configuration)".into(),
        JudgeKind::Scores => "scores from a file".into(),
    }
}

/// How it can be made again, and what that takes.
fn making(card: &Contents) -> String {
    let mark = &card.made.mark;
    let mut lines = vec![match &mark.commit {
        Some(commit) => format!("Program: {}, commit {}", mark.program, code(commit)),
        None => format!("Program: {}", mark.program),
    }];
    let begun = card.training.as_ref().map_or(mark, |made| &made.mark);
    lines.push(format!("Begun: {}", begun.begun));
    let hash = |sha256: &str| code(sha256.get(..16).unwrap_or(sha256));
    lines.push(format!(
        "Settings and inputs: {} (SHA-256 over all that the model depends on)",
        hash(&begun.made_from.key())
    ));
    let run = card.run.as_ref();
    if let Some(sha256) = run.and_then(|run| run.config_sha256.as_deref()) {
        lines.push(format!(
            "Configuration: {} (SHA-256 of the run's config.toml)",
            hash(sha256)
        ));
    }
    if let Some(hardware) = card
        .training
        .as_ref()
        .and_then(|made| made.made_on.as_ref())
    {
        lines.push(format!("Hardware: {hardware}"));
    }
    let spent = &card.spent;
    if spent.seconds > 0.0 {
        let ranks = card
            .training
            .as_ref()
            .and_then(|made| made.made_on.as_ref());
        let ranks = ranks.map_or(1, |hardware| hardware.ranks);
        lines.push(format!(
            "Training: {} ({:.0} tokens in {} steps, {:.0} tokens a second), without sampling, judging and evaluation{}",
            duration(spent.seconds),
            spent.tokens,
            spent.steps,
            spent.tokens / spent.seconds,
            match ranks {
                1 => String::new(),
                ranks => format!("; {} of all processes", duration(spent.seconds * ranks as f64)),
            }
        ));
        lines.push(format!(
            "Peak memory: {:.2} GiB{}",
            spent.peak_memory_bytes / f64::from(1u32 << 30),
            if ranks > 1 { " a process" } else { "" }
        ));
    }
    format!("## How it was made\n\n- {}\n\n", lines.join("\n- "))
}

fn quick_start(card: &Contents) -> String {
    if card.made.is("init") {
        return String::new();
    }
    let model = Value::from(card.model.as_str()).to_string();
    let shell = shell_word(&card.model);
    let mut out = String::from("## Use\n\n");
    match card.adapters {
        true => {
            let base = card.training.as_ref().and_then(|made| made.input("model"));
            let base = base.map_or(String::new(), |path| named(path).0);
            let base_word = shell_word(&base);
            let base = Value::from(base).to_string();
            let _ = write!(
                out,
                "With transformers and PEFT:\n\n```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\nbase = AutoModelForCausalLM.from_pretrained({base}, dtype=\"auto\", device_map=\"auto\")\nmodel = PeftModel.from_pretrained(base, {model})\n{}```\n\n",
                ask(&model)
            );
            let _ = write!(
                out,
                "With vLLM, or with sppo itself:\n\n```sh\nvllm serve {base_word} --enable-lora --lora-modules sppo={shell}\nsppo merge --model {base_word} --adapter {shell} --out merged && sppo serve --model merged\n```\n\n",
            );
        }
        false => {
            let _ = write!(
                out,
                "With transformers:\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\nmodel = AutoModelForCausalLM.from_pretrained({model}, dtype=\"auto\", device_map=\"auto\")\n{}```\n\n",
                ask(&model)
            );
            let _ = write!(
                out,
                "With vLLM, or with sppo itself:\n\n```sh\nvllm serve {shell}\nsppo serve --model {shell}\n```\n\n",
            );
        }
    }
    out
}

/// The lines that ask one question, once the variable `model` is there; `name` in quotes.
fn ask(name: &str) -> String {
    format!("tokenizer = AutoTokenizer.from_pretrained({name})\n{QUESTION}")
}

const QUESTION: &str = "\
messages = [{\"role\": \"user\", \"content\": \"Which is the highest mountain in Africa?\"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors=\"pt\", return_dict=True)
answer = model.generate(**inputs.to(model.device), max_new_tokens=128)
print(tokenizer.decode(answer[0][inputs[\"input_ids\"].shape[1]:], skip_special_tokens=True))
";

/// A word of the shell that is this text.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./@:+,".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.into(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}
