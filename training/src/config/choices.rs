//! Keys that are one of a few words.

use burn::tensor::DType;

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
    pub enum OptimizerKind {
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
    pub enum ScheduleKind {
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
        /// The ids that a row holds, as they were sampled; rows without ids are clean.
        Sampled = "sampled",
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
    /// What computes the linear layers' matrix products on a CUDA card.
    pub enum Matmul {
        /// CubeCL, until a card has shown cuBLASLt right and faster.
        Auto = "auto",
        /// CubeCL's kernels.
        Cubecl = "cubecl",
        /// NVIDIA's cuBLASLt.
        Cublaslt = "cublaslt",
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
    /// What becomes of a prompt that is too long to be answered.
    pub enum OnTooLong {
        /// The job ends before it begins, naming such prompts.
        Stop = "stop",
        /// It is left out.
        Skip = "skip",
        /// It loses its beginning, all but the token that begins a sequence.
        Cut = "cut",
    }
}

choice! {
    /// What becomes of a row that cannot be used.
    pub enum OnBadRow {
        /// The job ends before it begins, naming such rows.
        Stop = "stop",
        /// It is left out.
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

choice! {
    /// What the length of a response is counted in.
    pub enum LengthUnit {
        /// Words, split at white space.
        Words = "words",
        /// Characters.
        Characters = "characters",
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

impl OnBadRow {
    /// Whether it is left out.
    pub fn skips(self) -> bool {
        self == Self::Skip
    }

    /// What results depend on: nothing where bad rows end the job, since then there are none.
    pub fn setting(self) -> Option<(&'static str, String)> {
        self.skips().then(|| ("on_bad_row", self.to_string()))
    }
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

choice! {
    /// How the gradients of many processes become one.
    pub enum Reduce {
        /// Added by their owner in the order of the parts: the same bits for any number of processes.
        Ordered = "ordered",
        /// By NCCL, from device to device.
        Nccl = "nccl",
    }
}
