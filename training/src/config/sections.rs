//! Every section and key of the configuration, each defined once.

use std::path::PathBuf;

use sppo_model::llama::Lora;

use super::address::Address;
use super::choices::{
    JudgeKind::{self, Http, PairRm, Reward, Rubric, Scores},
    LengthUnit, LoraTarget, Loss, Matmul, OnBadRow, OnInvalid, OnNonFinite, OnTooLong,
    OptimizerKind, Precision, Probability, Recompute, Reduce, Rows, ScheduleKind, Split,
};
use super::key::{Date, Pattern};
use super::range::{
    COUNT, COUNT_OR_NONE, DECAY, INVERTIBLE, NOT_NEGATIVE, POSITIVE, PROBABILITY, RANK, RATIO,
    Range, SAMPLES, SECONDS,
};

section! {
    /// Relative paths are relative to the folder that the command is started in.
    pub struct Config {
        /// Folder that receives everything a run writes.
        output_dir: PathBuf = "runs/default".into(), affects Nothing;
        /// Seed of model initialisation, sampling and supervised fine-tuning.
        seed: u64 = 42;
        /// Where the model runs: cpu, flex, ndarray, wgpu, wgpu:N, cuda or cuda:N.
        device: String = "cpu".into(), affects Speed;
        /// Rounds of self-play.
        iterations: usize = 3, range COUNT;
        /// What becomes of a row of any input file that cannot be used (not JSON, a key that is
        /// missing or of another type, an empty prompt, a prompt_id that was there before, text
        /// that makes no tokens): stop: nothing begins; skip: it is left out, warned of and counted.
        on_bad_row: OnBadRow = OnBadRow::Stop;
    } {
        /// The model to start from.
        model: Model;
        /// Supervised fine-tuning.
        sft: Sft;
        /// Prompt files.
        prompts: Prompts;
        /// Sampling.
        generate: Generate;
        /// Scoring.
        judge: JudgeConfig;
        /// Choice of pairs.
        pairs: Pairs;
        /// Preference training.
        train: Train;
        /// Held-out evaluation.
        eval: Eval;
        /// Runs of many processes.
        cluster: Cluster;
        /// What is logged beside metrics.jsonl.
        logging: Logging;
    }
}

section! {
    /// The model to start from: either `path` or the table `[model.init]`.
    pub struct Model {
        /// Checkpoint folder, or a Hugging Face repository id (org/name or org/name@revision), which
        /// is downloaded into the Hub's cache ($HF_HUB_CACHE, $HF_HOME/hub or
        /// ~/.cache/huggingface/hub) unless it is there.
        path: Option<String> = None => "\"meta-llama/Meta-Llama-3-8B-Instruct\"", affects Nothing;
        /// Chat template (a Jinja file) to use instead of the folder's; trained models carry it.
        chat_template: Option<PathBuf> = None => "\"template.jinja\"", affects Nothing;
        // Only templates that use it make results depend on it; what they made says so.
        /// The day that chat templates see, as YYYY-MM-DD; today unless given.
        date: Option<Date> = None => "\"2024-07-26\"", affects Nothing;
    } {
        /// A small Llama from scratch.
        init: Option<Init>;
    }
}

section! {
    /// A small Llama with random weights.
    pub struct Init {
        /// Folder with the tokenizer and its chat template.
        tokenizer: PathBuf = PathBuf::new() => "\"data/tokenizer\"", affects Nothing;
        /// Width of the hidden states.
        hidden_size: usize = 64, range Range::UpTo(1, 1 << 20);
        /// Width of the feed-forward layers.
        intermediate_size: usize = 192, range Range::UpTo(1, 1 << 22);
        /// Number of layers.
        layers: usize = 2, range Range::UpTo(1, 1 << 12);
        /// Attention heads; they divide hidden_size.
        heads: usize = 4, range Range::UpTo(1, 1 << 14);
        /// Key and value heads; they divide heads.
        kv_heads: usize = 2, range Range::UpTo(1, 1 << 14);
        /// Longest sequence, in tokens.
        context: usize = 256, range Range::UpTo(1, 1 << 22);
        /// Base of the rotary embedding.
        rope_theta: f64 = 10000.0, range POSITIVE;
        /// Whether the output projection is the embedding table.
        tie_word_embeddings: bool = true;
        /// Standard deviation of the random weights.
        initializer_range: f64 = 0.02, range POSITIVE;
    } {}
}

section! {
    /// Supervised fine-tuning on prompt/response rows before the first iteration; off unless
    /// `data` is given.
    pub struct Sft {
        /// Rows of prompt and response, .jsonl or .parquet.
        data: Option<PathBuf> = None => "\"data/sft.jsonl\"", affects Nothing;
        /// Highest learning rate.
        learning_rate: f64 = 2e-5, range POSITIVE;
        /// Optimizer.
        optimizer: OptimizerKind = OptimizerKind::AdamW;
        /// Learning rate after the warmup.
        schedule: ScheduleKind = ScheduleKind::Cosine;
        /// Part of the steps over which the learning rate rises from 0.
        warmup_ratio: f64 = 0.1, range RATIO;
        /// Passes over the rows.
        epochs: usize = 1, range COUNT;
        /// Rows a device takes at a time.
        batch_size: usize = 8, range COUNT;
        /// Batches that make one optimizer step; their gradients are averaged.
        gradient_accumulation: usize = 1, range COUNT;
        /// Bound on the global norm of the gradient; off unless given.
        max_grad_norm: Option<f64> = None => "1.0", range POSITIVE;
        /// Longest row, in tokens.
        max_length: usize = 1024, range Range::AtLeast(4);
        /// Steps between checkpoints; 0 writes only the fine-tuned model.
        checkpoint_every: usize = 0, range COUNT_OR_NONE, affects Nothing;
    } {}
}

section! {
    /// Prompts of the self-play loop.
    pub struct Prompts {
        /// Prompts to train on, .jsonl or .parquet, or rows of the Hub
        /// (hf://datasets/org/name or …/name@revision, then a file of it or a split), as for all row files.
        train: Option<PathBuf> = None => "\"data/prompts.jsonl\"", affects Nothing;
        /// A file of prompts for each iteration instead, as the published recipe has them.
        per_iteration_files: Option<Vec<PathBuf>> = None
            => "[\"iter1.jsonl\", \"iter2.jsonl\", \"iter3.jsonl\"]", affects Nothing;
        /// Prompts to measure the win rate on.
        heldout: Option<PathBuf> = None => "\"data/heldout.jsonl\"", affects Nothing;
        /// Whether each iteration gets its own part of `train` or all of it.
        split: Split = Split::Disjoint, when |p| p.per_iteration_files.is_none();
        /// Most prompts an iteration uses; all of its part unless given.
        per_iteration: Option<usize> = None => "1000", range COUNT;
        /// Longest prompt, in tokens; what the model's context leaves room for unless given.
        max_length: Option<usize> = None => "1024", range Range::AtLeast(2);
        /// What becomes of a longer one: stop: nothing begins; skip: it is left out; cut: it loses
        /// its beginning.
        on_too_long: OnTooLong = OnTooLong::Stop;
    } {}
}

section! {
    /// Sampling of the responses to be judged.
    pub struct Generate {
        /// Responses a prompt.
        samples: usize = 5, range Range::UpTo(2, 1 << 16);
        /// 0 is greedy.
        temperature: f64 = 0.7, range NOT_NEGATIVE;
        /// Samples from the most likely tokens that together have this probability.
        top_p: f64 = 0.9, range PROBABILITY, when |g| g.temperature > 0.0;
        /// Samples from this many most likely tokens; 0 is off.
        top_k: usize = 0, range COUNT_OR_NONE, when |g| g.temperature > 0.0;
        /// Longest response, in tokens.
        max_new_tokens: usize = 2048, range COUNT;
        /// Token ids that end a response; those of the model's configs and the one that its chat
        /// template ends a turn with unless given.
        stop_token_ids: Option<Vec<usize>> = None => "[128001, 128009]";
        /// Sequences generated together.
        batch: usize = 32, range COUNT, affects Speed;
        /// Most memory for keys and values, in MiB; fewer sequences are generated together where
        /// it is short. Without it, `batch` alone is the bound.
        cache_memory_mib: Option<usize> = None => "16384", range COUNT, affects Speed;
        /// Number format of weights, activations and cache.
        precision: Precision = Precision::F32;
    } {}
}

section! {
    /// What scores the responses.
    pub struct JudgeConfig {
        /// pairrm: a PairRM folder compares every pair; reward: a Llama with a score head scores
        /// each response; rubric: the rules of [judge.rubric]; http: a chat model behind an
        /// OpenAI-compatible address, [judge.http], compares every pair; scores: scores from a file.
        kind: JudgeKind = JudgeKind::Rubric;
        /// Folder of the judge's model, or a Hugging Face repository id as for model.path, for pairrm
        /// and reward.
        model: Option<String> = None => "\"llm-blender/PairRM-hf\"",
            affects Nothing, when |j| matches!(j.kind, PairRm | Reward);
        /// Folder whose chat template renders prompts that are message lists for pairrm; a run
        /// takes the policy's. Or a Jinja file, with the special tokens of the folder it lies in;
        /// reward takes such a file instead of its folder's template.
        chat_template: Option<PathBuf> = None => "\"meta-llama/Meta-Llama-3-8B-Instruct\"",
            affects Nothing;
        /// File with the scores of every response, for scores.
        scores: Option<PathBuf> = None => "\"scores.jsonl\"",
            affects Nothing, when |j| j.kind == Scores;
        /// Tokens that the judge's model takes at a time.
        batch_tokens: usize = 8192, range COUNT, affects Speed;
        /// Precision of the judge's model.
        precision: Precision = Precision::F32, when |j| matches!(j.kind, PairRm | Reward);
        /// scores: P_ij = sigmoid((s_i - s_j) / temperature); comparisons: the mean over both
        /// orders of sigmoid(logit / temperature), for judges that compare pairs.
        probability: Probability = Probability::Scores,
            when |j| matches!(j.kind, PairRm | Http | Scores);
        /// Divides score differences and comparison logits; the rubric has its own.
        temperature: f64 = 1.0, range POSITIVE, when |j| j.kind != Rubric;
        /// Responses, from the first, against which mean win probabilities are estimated; all of
        /// them unless given.
        samples: Option<usize> = None => "5", range COUNT;
    } {
        /// Rules of the rubric judge.
        rubric: RubricConfig, when |j| j.kind == Rubric;
        /// The chat model that compares responses.
        http: JudgeHttp, when |j| j.kind == Http;
    }
}

section! {
    /// Rules for kind = "rubric". Each gives a value from 0 to 1; a response's score is the sum of
    /// weight times value of those that reward (ending, length, required, similarity), less that
    /// of those that punish (repetition, forbidden). A blank response gets the lowest score.
    pub struct RubricConfig {
        /// Divides score differences before the sigmoid that makes win probabilities of them.
        temperature: f64 = 1.0, range POSITIVE;
        /// Weight of ending properly: half for a finish reason of stop, half for a text that ends
        /// as a sentence does. Rows without finish reasons are judged by the text alone.
        ending_weight: f64 = 1.0, range NOT_NEGATIVE;
        /// Weight of a length near the target: exp(-((length - target) / tolerance)^2 / 2).
        length_weight: f64 = 1.0, range NOT_NEGATIVE;
        /// The length that is best, in `length_unit`.
        length_target: f64 = 120.0, range POSITIVE, when |r| r.length_weight > 0.0;
        /// How far from the target the value has fallen to 0.61; at twice this to 0.14.
        length_tolerance: f64 = 80.0, range POSITIVE, when |r| r.length_weight > 0.0;
        /// What lengths are counted in: words (split at white space) or characters.
        length_unit: LengthUnit = LengthUnit::Words, when |r| r.length_weight > 0.0;
        /// Expressions that a response should match somewhere.
        required: Vec<WeightedPattern> = Vec::new();
        /// Expressions that a response should not match.
        forbidden: Vec<WeightedPattern> = Vec::new();
        /// Weight of repetition: the share of word n-grams that occurred before in the response.
        repetition_weight: f64 = 1.0, range NOT_NEGATIVE;
        /// The n of these n-grams, in words without regard to case.
        repetition_ngram: usize = 3, range COUNT, when |r| r.repetition_weight > 0.0;
        /// Weight of similarity to the row's `reference`: F1 of their words, counted with repeats,
        /// without regard to case and to punctuation around words.
        similarity_weight: f64 = 0.0, range NOT_NEGATIVE;
    } {}
}

section! {
    /// A regular expression and what a match is worth.
    pub struct WeightedPattern {
        /// In the syntax of the `regex` crate.
        pattern: Option<Pattern> = None => "'(?i)because'";
        /// What a match is worth.
        weight: f64 = 1.0, range NOT_NEGATIVE;
    } {}
}

section! {
    /// A chat model behind an OpenAI-compatible address, for kind = "http".
    pub struct JudgeHttp {
        /// Address without /chat/completions. A query is sent along; its values are shown nowhere.
        base_url: Option<Address> = None => "\"http://localhost:8000/v1\"";
        /// Name of the model, as the server knows it.
        model: Option<String> = None => "\"Qwen/Qwen3-32B\"";
        /// Environment variable that holds the API key; without it no key is sent.
        api_key_env: String = "OPENAI_API_KEY".into(), affects Nothing;
        /// System message; none unless given.
        system: Option<String> = None => "\"You are a fair judge.\"";
        /// The question, with {prompt}, {response_a} and {response_b}; a built-in one unless given.
        template: Option<String> = None => "\"{prompt} A: {response_a} B: {response_b} Which is better, A or B?\"";
        /// The answer that response A is better.
        first: String = "A".into();
        /// The answer that response B is better.
        second: String = "B".into();
        /// The answer that neither is.
        tie: String = "C".into();
        /// Asks for log-probabilities, which give graded verdicts; the text is read where the
        /// server sends none.
        logprobs: bool = true;
        /// Logit of a verdict that is read from the text.
        text_logit: f64 = 3.0, range POSITIVE;
        /// Longest answer, in tokens.
        max_tokens: usize = 16, range COUNT;
        /// Questions under way at a time.
        concurrency: usize = 8, range Range::UpTo(1, 1024), affects Speed;
        /// Seconds after which an attempt has failed.
        timeout_seconds: f64 = 120.0, range SECONDS, affects Speed;
        /// Attempts after the first, on status 429 and 5xx, time-outs, dropped connections and
        /// answers that make no sense.
        retries: usize = 6, range COUNT_OR_NONE, affects Speed;
        /// Seconds before the second attempt; the pause about doubles each time, up to a minute (or
        /// this, if it is more). Where the server asks for a longer one, that is kept.
        retry_seconds: f64 = 0.5, range SECONDS, affects Speed;
        // All rows before such an answer are the same under both.
        /// error: judging ends at an answer that makes no sense; tie: it counts as a tie.
        on_invalid: OnInvalid = OnInvalid::Error, affects Nothing;
        /// File of the answers so far, so that none is paid for twice; beside the output unless given.
        cache: Option<PathBuf> = None => "\"judge-cache.jsonl\"", affects Nothing;
    } {}
}

section! {
    /// Choice of the pair to train on.
    pub struct Pairs {
        /// Keeps prompts whose best and worst response have the same score.
        keep_ties: bool = false;
    } {}
}

section! {
    /// Preference training; the defaults are those of the published Llama-3-8B run.
    pub struct Train {
        /// Pairs to train on, for `sppo train`.
        data: Option<PathBuf> = None => "\"pairs.jsonl\"", affects Nothing;
        /// Loss.
        loss: Loss = Loss::Sppo;
        /// Strength of the pull to the reference model: 1/eta.
        beta: f64 = 0.001, range POSITIVE;
        /// 1/beta, may be given instead of it.
        eta: Option<f64> = None => "1000.0", range INVERTIBLE;
        /// Highest learning rate.
        learning_rate: f64 = 5e-7, range POSITIVE;
        /// Optimizer.
        optimizer: OptimizerKind = OptimizerKind::RmsProp;
        /// RMSProp: decay of the squared gradients' mean.
        alpha: f64 = 0.99, range DECAY, when |t| t.optimizer == OptimizerKind::RmsProp;
        /// RMSProp and AdamW: added to the root.
        eps: f64 = 1e-8, range POSITIVE, when |t| t.optimizer != OptimizerKind::Sgd;
        /// AdamW: decay of the gradients' mean.
        beta1: f64 = 0.9, range DECAY, when |t| t.optimizer == OptimizerKind::AdamW;
        /// AdamW: decay of the squared gradients' mean.
        beta2: f64 = 0.999, range DECAY, when |t| t.optimizer == OptimizerKind::AdamW;
        /// Decay of the weights.
        weight_decay: f64 = 0.0, range NOT_NEGATIVE;
        /// Learning rate after the warmup.
        schedule: ScheduleKind = ScheduleKind::Linear;
        /// Part of the steps over which the learning rate rises from 0.
        warmup_ratio: Option<f64> = Some(0.1), range RATIO, when |t| t.warmup_steps.is_none();
        /// Steps over which the learning rate rises from 0, may be given instead of warmup_ratio.
        warmup_steps: Option<usize> = None => "100", range COUNT_OR_NONE;
        /// Passes over the pairs that the schedule is made for.
        epochs: usize = 1, range COUNT;
        /// Ends the training after this many passes, at the learning rate of that point.
        // The steps that are taken are the same; how many is seen by itself.
        stop_at_epoch: Option<usize> = None => "1", affects Nothing;
        /// Pairs a device takes at a time.
        batch_size: usize = 8, range COUNT;
        /// Batches that make one optimizer step; their gradients are averaged.
        gradient_accumulation: usize = 1, range COUNT;
        /// Most memory that training may take by `sppo plan`'s reckoning, in MiB: where a batch
        /// needs more, it goes through the model in parts, to the same update but for rounding.
        memory_mib: Option<usize> = None => "131072", range COUNT, affects Speed;
        /// Bound on the global norm of the gradient; off unless given.
        max_grad_norm: Option<f64> = None => "1.0", range POSITIVE;
        /// Longest prompt with response, in tokens.
        max_length: usize = 1024, range Range::AtLeast(2);
        /// Longest prompt, in tokens, where prompt and response are too long together.
        max_prompt_length: usize = 512, range COUNT;
        /// sampled: the ids that a row holds, without an end that was not sampled, and clean where it
        /// holds none; clean: one template, one end of turn; official: as the published trainer does it.
        rows: Rows = Rows::Sampled;
        /// Takes the pairs in a random order.
        shuffle: bool = true;
        /// Seed of that order, and of new adapters.
        seed: u64 = 42, when |t| t.shuffle || t.lora.is_some();
        /// Number format of weights and activations; master weights are always f32.
        precision: Precision = Precision::F32;
        /// layer: keeps only the layers' inputs and computes the rest again.
        recompute: Recompute = Recompute::None, affects Speed;
        /// Matrix products of linear layers, in generation and judging too: cublaslt needs a CUDA card
        /// and NVIDIA's library, auto is cubecl; the results differ by rounding.
        matmul: Matmul = Matmul::Auto, affects Speed;
        /// Steps between checkpoints; 0 writes one only where the run is interrupted.
        checkpoint_every: usize = 0, range COUNT_OR_NONE, affects Nothing;
        /// Checkpoints kept, the newest ones.
        keep_checkpoints: usize = 2, range COUNT, affects Nothing;
        /// Steps between evaluations of the loss on `eval_data`; 0 is off.
        eval_every: usize = 0, range COUNT_OR_NONE, affects Nothing;
        /// Held-out pairs for them.
        eval_data: Option<PathBuf> = None => "\"heldout-pairs.jsonl\"", affects Nothing;
        // All steps behind a checkpoint are the same under both.
        /// What a step with a loss or gradient that is not finite does.
        on_non_finite: OnNonFinite = OnNonFinite::Stop, affects Nothing;
    } {
        /// Adapters instead of full training.
        lora: Option<TrainLora>;
    }
}

section! {
    /// LoRA: the model stays as it is, and low-rank adapters beside its linear layers are trained
    /// in f32; all weights are trained unless this section is given. Adapters start at zero and
    /// want a higher learning rate than the default.
    pub struct TrainLora {
        /// Rank of each adapter.
        rank: usize = 16, range RANK;
        /// Strength: what an adapter adds is multiplied by alpha / rank.
        alpha: f64 = 32.0, range POSITIVE;
        /// Layers that get an adapter.
        targets: Vec<LoraTarget> = LoraTarget::ALL.to_vec();
    } {}
}

section! {
    /// Answers to the held-out prompts.
    pub struct Eval {
        /// Answers a prompt.
        samples: usize = 1, range SAMPLES;
        /// 0 is greedy.
        temperature: f64 = 0.0, range NOT_NEGATIVE;
        /// Samples from the most likely tokens that together have this probability.
        top_p: f64 = 1.0, range PROBABILITY, when |e| e.temperature > 0.0;
        /// Longest answer, in tokens.
        max_new_tokens: usize = 2048, range COUNT;
        /// Most held-out prompts used; all unless given.
        prompts: Option<usize> = None => "200", range COUNT;
    } {}
}

section! {
    /// One run of many processes, started by mpirun or srun (docs/cluster.md); without a launcher
    /// it has nothing to do.
    pub struct Cluster {
        /// How gradients are added up; nccl on CUDA and ordered elsewhere unless given.
        reduce: Option<Reduce> = None => "\"ordered\"", affects Nothing;
        /// The library NCCL; $SPPO_NCCL, libnccl.so.2 or libnccl.so unless given.
        nccl: Option<PathBuf> = None => "\"/usr/lib/x86_64-linux-gnu/libnccl.so.2\"", affects Nothing;
        /// Seconds without progress of a process that others wait for, before the job is ended.
        stall_seconds: usize = 300, range COUNT, affects Nothing;
    } {}
}

section! {
    /// What is logged of trainings and runs.
    pub struct Logging {
        /// Writes event files for TensorBoard: in tensorboard/ of each training what metrics.jsonl
        /// has, in that of a run what each iteration came to, with answers and distributions.
        tensorboard: bool = false, affects Nothing;
        /// Adds to metrics.jsonl entropy, mean_token_accuracy, logits/chosen and logits/rejected,
        /// as TRL has them. One more pass over the logits of each step.
        token_metrics: bool = false, affects Speed;
    } {}
}

impl Prompts {
    /// The files of prompts to train on.
    pub fn files(&self) -> &[PathBuf] {
        match &self.per_iteration_files {
            Some(files) => files,
            None => self.train.as_slice(),
        }
    }
}

impl From<&TrainLora> for Lora {
    fn from(config: &TrainLora) -> Self {
        let targets = config.targets.iter().map(|target| target.word().into());
        Self {
            rank: config.rank,
            alpha: config.alpha,
            targets: targets.collect(),
            rank_stabilised: false,
        }
    }
}

impl Train {
    /// η of the SPPO loss, 1/β.
    pub fn eta(&self) -> f64 {
        1.0 / self.beta
    }

    /// Warmup steps of a schedule of `total` steps: ⌈ratio·total⌉ as transformers rounds.
    pub fn warmup(&self, total: usize) -> usize {
        match self.warmup_steps {
            Some(steps) => steps,
            None => (self.warmup_ratio.unwrap_or(0.0) * total as f64).ceil() as usize,
        }
    }
}
