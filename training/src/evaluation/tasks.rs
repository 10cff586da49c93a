//! What the tables of the Open LLM Leaderboard consist of, in lm-evaluation-harness' names.

/// One column of a table.
pub(super) struct Benchmark {
    pub name: &'static str,
    /// Examples before each question.
    pub shots: u64,
    /// What it is measured by, for readers.
    pub metric: &'static str,
    /// Measures that are averaged; each by the keys that versions of the harness gave it.
    pub measures: &'static [&'static [&'static str]],
    pub tasks: Vec<Task>,
    /// The harness' group of these tasks whose value is shown too, with its key.
    pub group: Option<(&'static str, &'static str)>,
}

/// A task of the harness.
pub(super) struct Task {
    /// Its name now, then older ones.
    pub names: Vec<String>,
    /// What a guess gets.
    pub guess: f64,
}

impl Benchmark {
    fn new(
        name: &'static str,
        shots: u64,
        (metric, measures): (&'static str, &'static [&'static [&'static str]]),
        tasks: Vec<Task>,
    ) -> Self {
        Self {
            name,
            shots,
            metric,
            measures,
            tasks,
            group: None,
        }
    }
}

fn task(names: &[&str], guess: f64) -> Task {
    Task {
        names: names.iter().map(|name| (*name).to_string()).collect(),
        guess,
    }
}

const ACC: (&str, &[&[&str]]) = ("acc", &[&["acc,none", "acc"]]);
const ACC_NORM: (&str, &[&[&str]]) = ("acc_norm", &[&["acc_norm,none", "acc_norm"]]);
/// Old harnesses call it mc2.
const MC2: (&str, &[&[&str]]) = ("mc2", &[&["acc,none", "acc", "mc2"]]);
/// The old leaderboard counted answers behind `####` only, which is now the filter strict-match.
const GSM8K: (&str, &[&[&str]]) = (
    "exact_match, strict-match",
    &[&["exact_match,strict-match", "exact_match,get-answer", "acc"]],
);
const EXACT: (&str, &[&[&str]]) = ("exact_match", &[&["exact_match,none", "exact_match"]]);
const STRICT: (&str, &[&[&str]]) = (
    "mean of prompt_level_strict_acc and inst_level_strict_acc",
    &[
        &["prompt_level_strict_acc,none", "prompt_level_strict_acc"],
        &["inst_level_strict_acc,none", "inst_level_strict_acc"],
    ],
);

/// The first leaderboard (2023 to June 2024): scores as they are.
pub(super) fn v1() -> Vec<Benchmark> {
    let mmlu = SUBJECTS.iter().map(|subject| {
        let names = [
            format!("mmlu_{subject}"),
            format!("hendrycksTest-{subject}"),
        ];
        Task {
            names: names.to_vec(),
            guess: 0.0,
        }
    });
    let one = |names: &[&str]| vec![task(names, 0.0)];
    vec![
        Benchmark::new("ARC-c", 25, ACC_NORM, one(&["arc_challenge"])),
        Benchmark::new("HellaSwag", 10, ACC_NORM, one(&["hellaswag"])),
        Benchmark::new("MMLU", 5, ACC, mmlu.collect()),
        Benchmark::new(
            "TruthfulQA",
            0,
            MC2,
            one(&["truthfulqa_mc2", "truthfulqa_mc"]),
        ),
        Benchmark::new("Winogrande", 5, ACC, one(&["winogrande"])),
        Benchmark::new("GSM8K", 5, GSM8K, one(&["gsm8k"])),
    ]
}

/// The second (June 2024 to March 2025): each task's score above what a guess gets.
pub(super) fn v2() -> Vec<Benchmark> {
    let prefixed = |prefix: &str, tasks: &[(&str, u32)]| -> Vec<Task> {
        let tasks = tasks.iter();
        tasks
            .map(|(name, choices)| {
                task(
                    &[&format!("leaderboard_{prefix}{name}")],
                    1.0 / f64::from(*choices),
                )
            })
            .collect()
    };
    let math = MATH.map(|name| task(&[&format!("leaderboard_math_{name}_hard")], 0.0));
    let math = Benchmark::new("MATH Lvl 5", 4, EXACT, math.into());
    let gpqa = Benchmark::new("GPQA", 0, ACC_NORM, prefixed("gpqa_", &GPQA));
    vec![
        Benchmark::new(
            "IFEval",
            0,
            STRICT,
            vec![task(&["leaderboard_ifeval"], 0.0)],
        ),
        Benchmark::new("BBH", 3, ACC_NORM, prefixed("bbh_", &BBH)),
        Benchmark {
            group: Some(("leaderboard_math_hard", "exact_match,none")),
            ..math
        },
        Benchmark {
            group: Some(("leaderboard_gpqa", "acc_norm,none")),
            ..gpqa
        },
        Benchmark::new("MuSR", 0, ACC_NORM, prefixed("musr_", &MUSR)),
        Benchmark::new("MMLU-Pro", 5, ACC, prefixed("", &[("mmlu_pro", 10)])),
    ]
}

/// Sub-tasks with their number of choices.
const BBH: [(&str, u32); 24] = [
    ("boolean_expressions", 2),
    ("causal_judgement", 2),
    ("date_understanding", 6),
    ("disambiguation_qa", 3),
    ("formal_fallacies", 2),
    ("geometric_shapes", 11),
    ("hyperbaton", 2),
    ("logical_deduction_five_objects", 5),
    ("logical_deduction_seven_objects", 7),
    ("logical_deduction_three_objects", 3),
    ("movie_recommendation", 6),
    ("navigate", 2),
    ("object_counting", 19),
    ("penguins_in_a_table", 5),
    ("reasoning_about_colored_objects", 18),
    ("ruin_names", 6),
    ("salient_translation_error_detection", 6),
    ("snarks", 2),
    ("sports_understanding", 2),
    ("temporal_sequences", 4),
    ("tracking_shuffled_objects_five_objects", 5),
    ("tracking_shuffled_objects_seven_objects", 7),
    ("tracking_shuffled_objects_three_objects", 3),
    ("web_of_lies", 2),
];
const GPQA: [(&str, u32); 3] = [("diamond", 4), ("extended", 4), ("main", 4)];
const MUSR: [(&str, u32); 3] = [
    ("murder_mysteries", 2),
    ("object_placements", 5),
    ("team_allocation", 3),
];
const MATH: [&str; 7] = [
    "algebra",
    "counting_and_prob",
    "geometry",
    "intermediate_algebra",
    "num_theory",
    "prealgebra",
    "precalculus",
];
const SUBJECTS: [&str; 57] = [
    "abstract_algebra",
    "anatomy",
    "astronomy",
    "business_ethics",
    "clinical_knowledge",
    "college_biology",
    "college_chemistry",
    "college_computer_science",
    "college_mathematics",
    "college_medicine",
    "college_physics",
    "computer_security",
    "conceptual_physics",
    "econometrics",
    "electrical_engineering",
    "elementary_mathematics",
    "formal_logic",
    "global_facts",
    "high_school_biology",
    "high_school_chemistry",
    "high_school_computer_science",
    "high_school_european_history",
    "high_school_geography",
    "high_school_government_and_politics",
    "high_school_macroeconomics",
    "high_school_mathematics",
    "high_school_microeconomics",
    "high_school_physics",
    "high_school_psychology",
    "high_school_statistics",
    "high_school_us_history",
    "high_school_world_history",
    "human_aging",
    "human_sexuality",
    "international_law",
    "jurisprudence",
    "logical_fallacies",
    "machine_learning",
    "management",
    "marketing",
    "medical_genetics",
    "miscellaneous",
    "moral_disputes",
    "moral_scenarios",
    "nutrition",
    "philosophy",
    "prehistory",
    "professional_accounting",
    "professional_law",
    "professional_medicine",
    "professional_psychology",
    "public_relations",
    "security_studies",
    "sociology",
    "us_foreign_policy",
    "virology",
    "world_religions",
];
