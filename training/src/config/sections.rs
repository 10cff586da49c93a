//! Every section and key of the configuration, each defined once.

use std::path::PathBuf;

use burn::tensor::DType;
use sppo_model::llama::Lora;
use toml::Table;

choice! {
    /// How a preference pair becomes a loss.
    pub enum Loss {
        /// Squared distance to the win probabilities of both responses (arXiv 2405.00675).
        Sppo = "sppo",
        /// As `sppo`, with the probability of chosen beating rejected as both targets.
        SppoSingle = "sppo_single",
        /// TRL's form: chosen always wins, no factor of one half.
        SppoHard = "sppo_hard",
        /// Direct preference optimization.
        Dpo = "dpo" alias "sigmoid",
        /// Hinge on the margin.
        Hinge = "hinge",
        /// Identity preference optimization.
        Ipo = "ipo",
        /// Kahneman-Tversky optimization of pairs.
        KtoPair = "kto_pair",
    }
}

choice! {
    /// Optimizer.
    pub enum Optimizer {
        /// torch.optim.RMSprop's form.
        RmsProp = "rmsprop",
        /// Adam with decoupled weight decay.
        AdamW = "adamw",
        /// Plain gradient descent.
        Sgd = "sgd",
    }
}

choice! {
    /// Learning rate after the warmup.
    pub enum Schedule {
        /// Falls in a straight line to 0.
        Linear = "linear",
        /// Falls along half a cosine to 0.
        Cosine = "cosine",
        /// Stays.
        Constant = "constant",
    }
}

choice! {
    /// How a preference row becomes tokens.
    pub enum Rows {
        /// Prompt with generation prompt; response once with its end-of-turn token.
        Clean = "clean",
        /// Token for token as the published trainer does it.
        Official = "official",
    }
}

choice! {
    /// Number format of the weights and activations; master weights are always f32.
    pub enum Precision {
        /// 32 bits.
        F32 = "f32",
        /// bfloat16.
        Bf16 = "bf16",
    }
}

choice! {
    /// What the backward pass computes again instead of keeping.
    pub enum Recompute {
        /// Nothing: fastest, most memory.
        None = "none",
        /// Each layer's inside: about a third more time, far less memory.
        Layer = "layer",
    }
}

choice! {
    /// A linear layer that can have a LoRA adapter.
    pub enum LoraTarget {
        /// Queries.
        Q = "q_proj",
        /// Keys.
        K = "k_proj",
        /// Values.
        V = "v_proj",
        /// Output of attention.
        O = "o_proj",
        /// Gate of the feed-forward layer.
        Gate = "gate_proj",
        /// Its input.
        Up = "up_proj",
        /// Its output.
        Down = "down_proj",
    }
}

choice! {
    /// What a step with a loss or gradient that is not finite does.
    pub enum OnNonFinite {
        /// Ends the run with an error.
        Stop = "stop",
        /// Leaves the weights as they are and goes on.
        Skip = "skip",
    }
}

choice! {
    /// How the iterations share the training prompts.
    pub enum Split {
        /// Each iteration gets its own part.
        Disjoint = "disjoint",
        /// Each iteration gets all of them.
        Reuse = "reuse",
    }
}

choice! {
    /// What scores the responses.
    pub enum JudgeKind {
        /// PairRM, which compares pairs of responses.
        PairRm = "pairrm",
        /// A Llama with a score head, which scores one response at a time.
        Reward = "reward",
        /// Rules of `[judge.rubric]`.
        Rubric = "rubric",
        /// A chat model behind an OpenAI-compatible address, asked to compare pairs.
        Http = "http",
        /// Scores from a file.
        Scores = "scores",
    }
}

choice! {
    /// Which logits become win probabilities.
    pub enum Probability {
        /// Differences of the responses' scores, as the published pipeline does it.
        Scores = "scores",
        /// The comparison of the two responses, averaged over both orders, as the paper has it.
        Comparisons = "comparisons",
    }
}

section! {
    /// Relative paths are relative to the folder that the command is started in.
    pub struct Config "" {
        /// Folder that receives everything a run writes.
        output_dir: PathBuf = "runs/default".into();
        /// Seed of model initialisation, sampling and supervised fine-tuning.
        seed: u64 = 42;
        /// Where the model runs: cpu, flex, ndarray, wgpu, wgpu:N, cuda or cuda:N.
        device: String = "cpu".into();
        /// Rounds of self-play.
        iterations: usize = 3;
    } {
        /// The model to start from.
        model: Model,
        /// Supervised fine-tuning.
        sft: Sft,
        /// Prompt files.
        prompts: Prompts,
        /// Sampling.
        generate: Generate,
        /// Scoring.
        judge: Judge,
        /// Choice of pairs.
        pairs: Pairs,
        /// Preference training.
        train: Train,
        /// Held-out evaluation.
        eval: Eval,
    }
}

section! {
    /// The model to start from: either `path` or the table `[model.init]`.
    pub struct Model "model" {
        /// Checkpoint folder, or a Hugging Face repository id that is already in the local cache
        /// ($HF_HUB_CACHE, $HF_HOME/hub or ~/.cache/huggingface/hub).
        path: Option<String> = None => "\"meta-llama/Meta-Llama-3-8B-Instruct\"";
    } {
        /// A small Llama from scratch.
        init: Option<Init>,
    }
}

section! {
    /// A small Llama with random weights.
    pub struct Init "model.init" {
        /// Folder with the tokenizer and its chat template.
        tokenizer: PathBuf = PathBuf::new() => "\"data/tokenizer\"";
        /// Width of the hidden states.
        hidden_size: usize = 64;
        /// Width of the feed-forward layers.
        intermediate_size: usize = 192;
        /// Number of layers.
        layers: usize = 2;
        /// Attention heads; they divide hidden_size.
        heads: usize = 4;
        /// Key and value heads; they divide heads.
        kv_heads: usize = 2;
        /// Longest sequence, in tokens.
        context: usize = 256;
        /// Base of the rotary embedding.
        rope_theta: f64 = 10000.0;
        /// Whether the output projection is the embedding table.
        tie_word_embeddings: bool = true;
        /// Standard deviation of the random weights.
        initializer_range: f64 = 0.02;
    } {}
}

section! {
    /// Supervised fine-tuning on prompt/response rows before the first iteration; off unless
    /// `data` is given.
    pub struct Sft "sft" {
        /// Rows of prompt and response, .jsonl or .parquet.
        data: Option<PathBuf> = None => "\"data/sft.jsonl\"";
        /// Highest learning rate.
        learning_rate: f64 = 2e-5;
        /// Optimizer.
        optimizer: Optimizer = Optimizer::AdamW;
        /// Learning rate after the warmup.
        schedule: Schedule = Schedule::Cosine;
        /// Part of the steps over which the learning rate rises from 0.
        warmup_ratio: f64 = 0.1;
        /// Passes over the rows.
        epochs: usize = 1;
        /// Rows a device takes at a time.
        batch_size: usize = 8;
        /// Batches that make one optimizer step; their gradients are averaged.
        gradient_accumulation: usize = 1;
        /// Bound on the global norm of the gradient; off unless given.
        max_grad_norm: Option<f64> = None => "1.0";
        /// Longest row, in tokens.
        max_length: usize = 1024;
        /// Steps between checkpoints; 0 writes only the fine-tuned model.
        checkpoint_every: usize = 0;
    } {}
}

section! {
    /// Prompts of the self-play loop.
    pub struct Prompts "prompts" {
        /// Prompts to train on, .jsonl or .parquet.
        train: Option<PathBuf> = None => "\"data/prompts.jsonl\"";
        /// Prompts to measure the win rate on.
        heldout: Option<PathBuf> = None => "\"data/heldout.jsonl\"";
        /// Whether each iteration gets its own part of the prompts or all of them.
        split: Split = Split::Disjoint;
        /// Most prompts an iteration uses; all of its part unless given.
        per_iteration: Option<usize> = None => "1000";
    } {}
}

section! {
    /// Sampling of the responses to be judged.
    pub struct Generate "generate" {
        /// Responses a prompt.
        samples: usize = 5;
        /// 0 is greedy.
        temperature: f64 = 0.7;
        /// Samples from the most likely tokens that together have this probability.
        top_p: f64 = 0.9;
        /// Samples from this many most likely tokens; 0 is off.
        top_k: usize = 0;
        /// Longest response, in tokens.
        max_new_tokens: usize = 2048;
        /// Sequences generated together; does not change the result.
        batch: usize = 32;
        /// Most memory for keys and values, in MiB; fewer sequences are generated together where
        /// it is short. Without it, `batch` alone is the bound.
        cache_memory_mib: Option<usize> = None => "16384";
        /// Number format of weights, activations and cache: f32 or bf16.
        precision: Precision = Precision::F32;
    } {}
}

section! {
    /// What scores the responses.
    pub struct Judge "judge" {
        /// pairrm: a PairRM folder compares every pair; reward: a Llama with a score head scores
        /// each response; rubric: the rules of [judge.rubric]; http: a chat model behind an
        /// OpenAI-compatible address, [judge.http], compares every pair; scores: scores from a file.
        kind: JudgeKind = JudgeKind::Rubric;
        /// Folder of the judge's model (or Hugging Face repository id in the local cache), for
        /// pairrm and reward.
        model: Option<String> = None => "\"llm-blender/PairRM-hf\"";
        /// Folder whose chat template renders prompts that are message lists for pairrm; a run
        /// takes the policy's.
        chat_template: Option<PathBuf> = None => "\"meta-llama/Meta-Llama-3-8B-Instruct\"";
        /// File with the scores of every response, for scores.
        scores: Option<PathBuf> = None => "\"scores.jsonl\"";
        /// Tokens that the judge's model takes at a time; does not change the result.
        batch_tokens: usize = 8192;
        /// Precision of the judge's model: f32 or bf16.
        precision: Precision = Precision::F32;
        /// scores: P_ij = sigmoid((s_i - s_j) / temperature); comparisons: the mean over both
        /// orders of sigmoid(logit / temperature), for judges that compare pairs.
        probability: Probability = Probability::Scores;
        /// Divides score differences and comparison logits; the rubric has its own.
        temperature: f64 = 1.0;
        /// Responses, from the first, against which mean win probabilities are estimated; all of
        /// them unless given.
        samples: Option<usize> = None => "5";
        /// Rules of the rubric judge.
        rubric: Table = Table::new();
    } {
        /// The chat model that compares responses.
        http: JudgeHttp,
    }
}

choice! {
    /// What becomes of a comparison whose answer makes no sense after all retries.
    pub enum OnInvalid {
        /// Judging ends.
        Error = "error",
        /// It counts as a tie.
        Tie = "tie",
    }
}

section! {
    /// A chat model behind an OpenAI-compatible address, for kind = "http".
    pub struct JudgeHttp "judge.http" {
        /// Address without /chat/completions.
        base_url: Option<String> = None => "\"http://localhost:8000/v1\"";
        /// Name of the model, as the server knows it.
        model: Option<String> = None => "\"Qwen/Qwen3-32B\"";
        /// Environment variable that holds the API key; without it no key is sent.
        api_key_env: String = "OPENAI_API_KEY".into();
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
        text_logit: f64 = 3.0;
        /// Longest answer, in tokens.
        max_tokens: usize = 16;
        /// Questions under way at a time.
        concurrency: usize = 8;
        /// Seconds after which an attempt has failed.
        timeout_seconds: f64 = 120.0;
        /// Attempts after the first, on status 429 and 5xx, time-outs, dropped connections and
        /// answers that make no sense.
        retries: usize = 6;
        /// Seconds before the second attempt; the pause about doubles each time.
        retry_seconds: f64 = 0.5;
        /// error: judging ends at an answer that makes no sense; tie: it counts as a tie.
        on_invalid: OnInvalid = OnInvalid::Error;
        /// File of the answers so far, so that none is paid for twice; beside the output unless given.
        cache: Option<PathBuf> = None => "\"judge-cache.jsonl\"";
    } {}
}

section! {
    /// Choice of the pair to train on.
    pub struct Pairs "pairs" {
        /// Keeps prompts whose best and worst response have the same score.
        keep_ties: bool = false;
    } {}
}

section! {
    /// Preference training; the defaults are those of the published Llama-3-8B run.
    pub struct Train "train" {
        /// Pairs to train on, for `sppo train`.
        data: Option<PathBuf> = None => "\"pairs.jsonl\"";
        /// Loss.
        loss: Loss = Loss::Sppo;
        /// Strength of the pull to the reference model: 1/eta.
        beta: f64 = 0.001;
        /// 1/beta, may be given instead of it.
        eta: Option<f64> = None => "1000.0";
        /// Highest learning rate.
        learning_rate: f64 = 5e-7;
        /// Optimizer.
        optimizer: Optimizer = Optimizer::RmsProp;
        /// RMSProp: decay of the squared gradients' mean.
        alpha: f64 = 0.99;
        /// RMSProp and AdamW: added to the root.
        eps: f64 = 1e-8;
        /// AdamW: decay of the gradients' mean.
        beta1: f64 = 0.9;
        /// AdamW: decay of the squared gradients' mean.
        beta2: f64 = 0.999;
        /// Decay of the weights.
        weight_decay: f64 = 0.0;
        /// Learning rate after the warmup.
        schedule: Schedule = Schedule::Linear;
        /// Part of the steps over which the learning rate rises from 0.
        warmup_ratio: Option<f64> = Some(0.1);
        /// Steps over which the learning rate rises from 0, may be given instead of warmup_ratio.
        warmup_steps: Option<usize> = None => "100";
        /// Passes over the pairs that the schedule is made for.
        epochs: usize = 1;
        /// Ends the training after this many passes, at the learning rate of that point.
        stop_at_epoch: Option<usize> = None => "1";
        /// Pairs a device takes at a time.
        batch_size: usize = 8;
        /// Batches that make one optimizer step; their gradients are averaged.
        gradient_accumulation: usize = 1;
        /// Most memory that training may take by `sppo plan`'s reckoning, in MiB: where a batch
        /// needs more, it goes through the model in parts, to the same update but for rounding.
        memory_mib: Option<usize> = None => "131072";
        /// Bound on the global norm of the gradient; off unless given.
        max_grad_norm: Option<f64> = None => "1.0";
        /// Longest prompt with response, in tokens.
        max_length: usize = 1024;
        /// Longest prompt, in tokens, where prompt and response are too long together.
        max_prompt_length: usize = 512;
        /// clean: one template, one end of turn; official: as the published trainer does it.
        rows: Rows = Rows::Clean;
        /// Takes the pairs in a random order.
        shuffle: bool = true;
        /// Seed of that order, and of new adapters.
        seed: u64 = 42;
        /// Number format of weights and activations; master weights are always f32.
        precision: Precision = Precision::F32;
        /// layer: keeps only the layers' inputs and computes the rest again.
        recompute: Recompute = Recompute::None;
        /// Steps between checkpoints; 0 writes one only where the run is interrupted.
        checkpoint_every: usize = 0;
        /// Checkpoints kept, the newest ones.
        keep_checkpoints: usize = 2;
        /// Steps between evaluations of the loss on `eval_data`; 0 is off.
        eval_every: usize = 0;
        /// Held-out pairs for them.
        eval_data: Option<PathBuf> = None => "\"heldout-pairs.jsonl\"";
        /// What a step with a loss or gradient that is not finite does.
        on_non_finite: OnNonFinite = OnNonFinite::Stop;
    } {
        /// Adapters instead of full training.
        lora: Option<TrainLora>,
    }
}

section! {
    /// LoRA: the model stays as it is, and low-rank adapters beside its linear layers are trained
    /// in f32; all weights are trained unless this section is given. Adapters start at zero and
    /// want a higher learning rate than the default.
    pub struct TrainLora "train.lora" {
        /// Rank of each adapter.
        rank: usize = 16;
        /// Strength: what an adapter adds is multiplied by alpha / rank.
        alpha: f64 = 32.0;
        /// Layers that get an adapter.
        targets: Vec<LoraTarget> = LoraTarget::ALL.to_vec();
    } {}
}

section! {
    /// Answers to the held-out prompts.
    pub struct Eval "eval" {
        /// Answers a prompt.
        samples: usize = 1;
        /// 0 is greedy.
        temperature: f64 = 0.0;
        /// Samples from the most likely tokens that together have this probability.
        top_p: f64 = 1.0;
        /// Longest answer, in tokens.
        max_new_tokens: usize = 2048;
        /// Most held-out prompts used; all unless given.
        prompts: Option<usize> = None => "200";
    } {}
}

impl Precision {
    /// The dtype of that name.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

impl Generate {
    /// The settings that the result depends on, the others at a fixed value.
    pub fn that_matters(&self) -> Self {
        Self {
            batch: 1,
            cache_memory_mib: None,
            ..self.clone()
        }
    }
}

impl Sft {
    /// The settings that the result depends on, the others at a fixed value.
    pub fn that_matters(&self) -> Self {
        Self {
            data: None,
            checkpoint_every: 0,
            ..self.clone()
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
    /// The settings that the result depends on, the others at a fixed value.
    pub fn that_matters(&self) -> Self {
        Self {
            data: None,
            checkpoint_every: 0,
            keep_checkpoints: 1,
            eval_every: 0,
            eval_data: None,
            // All steps behind a checkpoint are the same under both.
            on_non_finite: OnNonFinite::Stop,
            ..self.clone()
        }
    }

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
