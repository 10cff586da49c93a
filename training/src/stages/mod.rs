//! The stages of the recipe as resumable jobs from files to files: what the commands and the
//! self-play loop have in common.

mod answers;
mod bench;
mod error;
mod evaluate;
mod fine_tune;
mod folder;
mod generate;
mod generation;
mod init;
mod join;
mod judge;
mod learning;
mod markdown;
mod merge;
mod prompts;
mod responses;
mod score;
mod train;
mod warm_up;

pub use answers::{AnswerFormat, Answers, ReadyAnswers};
pub use bench::{Bench, BenchReport, Half, bench};
pub use error::StageError;
pub use evaluate::{Comparison, Evaluation, compare_answers};
pub use fine_tune::{FineTuned, FineTuning, fine_tune};
pub use folder::{date_of, lock_folder, same_date};
pub use generate::generate;
pub use generation::{Generation, Sampling};
pub use init::{init_config, init_model, start_model};
pub use join::join_responses;
pub use judge::{
    Judging, MadePairs, Part, build_judge, build_judge_of, dry_run, judge_responses, make_pairs,
};
pub use learning::model_key;
pub use merge::{Merging, merge_adapters};
pub(crate) use prompts::check_prompts;
pub use prompts::{PromptCounts, PromptLimits};
pub use score::{Scoring, score};
pub use train::{PairTraining, Trained, train_pairs};
pub use warm_up::{lengths, warm_up_generation, warm_up_training};
