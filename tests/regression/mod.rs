//! Faults that were found in the field, one numbered test each.

#[cfg(feature = "ndarray")]
mod r001_reciprocals_are_not_estimates;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r002_outputs_of_another_making;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r003_foreign_files;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r004_two_processes;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r005_damage;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r006_settings_and_trainings;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r007_joined_judgements;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r008_outputs_while_they_are_written;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r009_signals_that_come_twice;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r010_what_was_sampled_is_trained_on;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r011_the_date_of_an_output;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r012_mutated_inputs;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r013_commands_of_the_documents;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r020_foreign_judge_caches;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r021_retry_after;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r022_keys_sent_back;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r023_text_from_outside;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r025_bounds;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r034_hostile_templates_and_tokenizers;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r040_names_of_tensors;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r042_harmless_settings;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r043_head_of_its_own;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r044_other_formats;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r045_texts_without_a_template;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r047_long_contexts;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r048_memory_of_score;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r049_tokens_without_embeddings;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r050_what_a_prompt_consists_of;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r055_all_bad_rows_are_named;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r056_truncation_is_said;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r058_formats_people_have;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r063_end_of_turn_of_the_template;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r064_the_date_is_fixed;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r065_one_row_that_is_not_finite;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod r066_all_bad_prompts_at_once;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod server;
