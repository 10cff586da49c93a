//! Rotary tables were made for `max_position_embeddings`: a model of four million positions aborted
//! when it was loaded.

use serde_json::json;

use super::r040_names_of_tensors::scored;
use crate::cli::Place;

#[test]
fn tables_follow_the_sequences_in_use() {
    let plain = scored(&Place::with_model());
    for positions in [4_194_304u64, 10_485_760, 2_000_000_000] {
        let place = Place::with_model();
        place.edit("llama/config.json", |c| {
            c["max_position_embeddings"] = positions.into()
        });
        assert_eq!(scored(&place), plain, "{positions}");
        place.write_rows("p.jsonl", &[json!({"prompt": "a"})]);
        place.ok(
            "generate --model llama --prompts p.jsonl --samples 2 --max-new-tokens 9 --out r.jsonl",
        );
    }
}
