//! Log-probabilities in the forms of completions and of chat.

use serde_json::{Map, Value, json};
use sppo_model::generate::TokenScore;
use sppo_model::tokenizer::{StreamDecoder, Tokenizer};

use super::tokens::{text_of, token_text};

/// JSON has no infinity; clients know this number for it.
const NEVER: f64 = -9999.0;

/// A log-probability as JSON: the same bits, the same text.
pub fn number(logprob: f32) -> Value {
    match logprob.is_finite() {
        true => f64::from(logprob).into(),
        false => NEVER.into(),
    }
}

/// A place of a text: its token and what is known of it.
pub struct Place {
    /// The token that stands there.
    pub token: u32,
    /// None for a text's first token, which nothing comes before.
    pub score: Option<TokenScore>,
    /// Characters of the text before it.
    pub offset: usize,
}

/// `logprobs` of a completion: four lists of one length; `likeliest` bounds each dictionary.
pub fn of_completion(places: &[Place], likeliest: usize, tokenizer: &Tokenizer) -> Value {
    let tops = places.iter().map(|place| match &place.score {
        Some(score) => top(score, likeliest, tokenizer),
        None => Value::Null,
    });
    let logprob = |place: &Place| place.score.as_ref().map(|score| number(score.logprob));
    json!({
        "tokens": places.iter().map(|place| token_text(tokenizer, place.token)).collect::<Vec<_>>(),
        "token_logprobs": places.iter().map(logprob).collect::<Vec<_>>(),
        "top_logprobs": tops.collect::<Vec<_>>(),
        "text_offset": places.iter().map(|place| place.offset).collect::<Vec<_>>(),
    })
}

/// The likeliest tokens by their texts, and the token itself in any case. Where another one has its
/// text, that one is named by its id: a key holds one value, and both have to be there for a reader
/// who compares the token's value with the largest.
fn top(score: &TokenScore, likeliest: usize, tokenizer: &Tokenizer) -> Value {
    let own = token_text(tokenizer, score.token);
    let mut top = Map::new();
    for &(token, logprob) in score.likeliest.iter().take(likeliest) {
        let text = match token == score.token {
            true => own.clone(),
            false => token_text(tokenizer, token),
        };
        let taken = top.contains_key(&text) || (token != score.token && text == own);
        let key = if taken {
            format!("token_id:{token}")
        } else {
            text
        };
        top.insert(key, number(logprob));
    }
    top.entry(own).or_insert_with(|| number(score.logprob));
    Value::Object(top)
}

/// `logprobs.content` of a chat: one entry a token.
pub fn of_chat(places: &[Place], likeliest: usize, tokenizer: &Tokenizer) -> Value {
    let entry = |token: u32, logprob: Value| {
        let bytes = tokenizer.token_bytes(token);
        json!({"token": text_of(&bytes), "logprob": logprob, "bytes": bytes})
    };
    let content = places.iter().map(|place| {
        let score = place.score.as_ref();
        let logprob = score.map_or(Value::Null, |score| number(score.logprob));
        let mut content = entry(place.token, logprob);
        let likeliest = score.map_or(&[][..], |score| {
            &score.likeliest[..likeliest.min(score.likeliest.len())]
        });
        let top = likeliest
            .iter()
            .map(|&(token, logprob)| entry(token, number(logprob)));
        content["top_logprobs"] = top.collect();
        content
    });
    json!({"content": content.collect::<Vec<_>>(), "refusal": null})
}

/// `prompt_logprobs` in vLLM's form: null, then for each token a dictionary by id. A rank stands
/// where it is known: among the likeliest that were asked for.
pub fn of_prompt(scores: &[TokenScore], likeliest: usize, tokenizer: &Tokenizer) -> Value {
    let entry = |token: u32, logprob: f32, rank: Option<usize>| {
        let mut entry = json!({"logprob": number(logprob)});
        if let Some(rank) = rank {
            entry["rank"] = rank.into();
        }
        entry["decoded_token"] = token_text(tokenizer, token).into();
        entry
    };
    let place = |score: &TokenScore| {
        let rank_of = |token| {
            score
                .likeliest
                .iter()
                .position(|(id, _)| *id == token)
                .map(|at| at + 1)
        };
        let mut ids = Map::new();
        let own = entry(score.token, score.logprob, rank_of(score.token));
        ids.insert(score.token.to_string(), own);
        for (rank, &(token, logprob)) in score.likeliest.iter().take(likeliest).enumerate() {
            ids.insert(token.to_string(), entry(token, logprob, Some(rank + 1)));
        }
        Value::Object(ids)
    };
    let places = std::iter::once(Value::Null).chain(scores.iter().map(place));
    places.collect()
}

/// Characters before each token of a text that grows.
pub struct Offsets {
    decoder: StreamDecoder,
    characters: usize,
}

impl Offsets {
    /// From this many characters on; special tokens are skipped where they make no text.
    pub fn new(characters: usize, skip_special_tokens: bool) -> Self {
        Self {
            decoder: StreamDecoder::new(skip_special_tokens),
            characters,
        }
    }

    /// Where the next token begins.
    pub fn next(&mut self, tokenizer: &Tokenizer, token: u32) -> usize {
        let before = self.characters;
        // Text that cannot be decoded takes no place; the answer's own decoding says why.
        let text = self.decoder.push(tokenizer, token).unwrap_or_default();
        let text = text.chars().count();
        self.characters += text;
        // A token of whole characters stands at the end of what came with it, behind parts of a
        // character that it showed to be no one's.
        let own = String::from_utf8(tokenizer.token_bytes(token));
        let own = own.map_or(text, |own| own.chars().count());
        before + text.saturating_sub(own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn tokenizer() -> Tokenizer {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/llama");
        Tokenizer::from_dir(&folder).unwrap()
    }

    fn place(score: TokenScore) -> Place {
        Place {
            token: score.token,
            score: Some(score),
            offset: 0,
        }
    }

    /// What lm-evaluation-harness does with an entry.
    fn greedy(logprobs: &Value, at: usize) -> bool {
        let top = logprobs["top_logprobs"][at].as_object().unwrap();
        let most = top
            .values()
            .map(|x| x.as_f64().unwrap())
            .fold(f64::MIN, f64::max);
        logprobs["token_logprobs"][at].as_f64() == Some(most)
    }

    #[test]
    fn the_token_itself_is_always_there_and_greedy_is_what_it_is() {
        let tokenizer = tokenizer();
        let score = |token, logprob, likeliest: &[(u32, f32)]| {
            place(TokenScore {
                token,
                logprob,
                likeliest: likeliest.to_vec(),
            })
        };
        let logprobs = of_completion(
            &[
                score(64, -0.1, &[(64, -0.1)]),
                score(65, -3.3, &[(64, -0.1)]),
                score(65, f32::NEG_INFINITY, &[(64, 0.0)]),
            ],
            1,
            &tokenizer,
        );
        assert_eq!(
            [0, 1, 2].map(|at| greedy(&logprobs, at)),
            [true, false, false]
        );
        assert_eq!(
            logprobs["top_logprobs"][1],
            json!({"a": f64::from(-0.1f32), "b": f64::from(-3.3f32)})
        );
        assert_eq!(logprobs["token_logprobs"][2], json!(-9999.0));
    }

    /// Ids without a token share a text, the empty one.
    #[test]
    fn two_ids_of_one_text_keep_both_values() {
        let tokenizer = tokenizer();
        let score = TokenScore {
            token: 9998,
            logprob: -2.0,
            likeliest: vec![(9999, -1.0), (9998, -2.0)],
        };
        let logprobs = of_completion(&[place(score)], 2, &tokenizer);
        assert_eq!(
            logprobs["top_logprobs"][0],
            json!({"token_id:9999": -1.0, "": -2.0})
        );
        assert!(!greedy(&logprobs, 0));
    }

    #[test]
    fn half_characters_are_named_by_their_bytes() {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode("🙂", false).unwrap();
        assert!(ids.len() > 1);
        let bytes: Vec<u8> = ids
            .iter()
            .flat_map(|&id| tokenizer.token_bytes(id))
            .collect();
        assert_eq!(bytes, "🙂".as_bytes());
        assert!(token_text(&tokenizer, ids[0]).starts_with("bytes:\\xf0"));
        let mut offsets = Offsets::new(2, true);
        let found: Vec<usize> = ids.iter().map(|&id| offsets.next(&tokenizer, id)).collect();
        assert!(found.iter().all(|&at| at == 2), "{found:?}");
        assert_eq!(offsets.next(&tokenizer, 64), 3);
        // A part of a character that never ends is one character, once that is certain.
        let found = [ids[0], 64, 65].map(|id| offsets.next(&tokenizer, id));
        assert_eq!(found, [4, 5, 6]);
    }

    #[test]
    fn prompts_begin_with_null() {
        let score = TokenScore {
            token: 65,
            logprob: -3.0,
            likeliest: vec![(64, -1.0)],
        };
        let found = of_prompt(&[score], 1, &tokenizer());
        assert_eq!(
            found,
            json!([null, {
                "65": {"logprob": -3.0, "decoded_token": "b"},
                "64": {"logprob": -1.0, "rank": 1, "decoded_token": "a"},
            }])
        );
    }
}
