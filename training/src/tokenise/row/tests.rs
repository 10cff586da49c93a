use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sppo_model::chat_template::ChatTemplate;
use sppo_model::end_of_turn::Stop;
use sppo_model::tokenizer::Tokenizer;

use super::*;

const BOS: u32 = 420;
const EOT: u32 = 424;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/golden")
}

fn rows(mode: Rows, max_length: usize, max_prompt_length: usize) -> RowTokeniser {
    let text = ChatText::open(&golden().join("llama")).unwrap();
    let end = text.end_of_turn().unwrap().unwrap();
    RowTokeniser::new(text, end, mode, max_length, max_prompt_length).unwrap()
}

fn with_template(source: &str, mode: Rows) -> RowTokeniser {
    let tokens = BTreeMap::from([("bos_token", "<|begin_of_text|>".to_owned())]);
    let template = ChatTemplate::new(source, tokens).unwrap();
    let folder = golden().join("llama");
    let text = ChatText::new(&folder, Tokenizer::from_dir(&folder).unwrap(), template);
    let end = text.end_of_turn().unwrap().unwrap();
    RowTokeniser::new(text, end, mode, 64, 32).unwrap()
}

fn pair(
    rows: &RowTokeniser,
    prompt: &[Message],
    chosen: &str,
    rejected: &str,
) -> (TokenisedSequence, TokenisedSequence) {
    let mut lost = Truncation::default();
    rows.pair(prompt, chosen, rejected, &mut lost).unwrap()
}

fn single(
    rows: &RowTokeniser,
    prompt: &[Message],
    response: &str,
) -> Result<TokenisedSequence, TokeniseError> {
    rows.single(prompt, response, &mut Truncation::default())
}

fn user(text: &str) -> Vec<Message> {
    vec![Message::new("user", text)]
}

fn count(ids: &[u32], id: u32) -> usize {
    ids.iter().filter(|&&other| other == id).count()
}

#[derive(serde::Deserialize)]
struct Official {
    max_length: usize,
    max_prompt_length: usize,
    user: String,
    chosen: String,
    rejected: String,
    chosen_input_ids: Vec<u32>,
    chosen_labels: Vec<i64>,
    rejected_input_ids: Vec<u32>,
    rejected_labels: Vec<i64>,
}

fn labels(sequence: &TokenisedSequence) -> Vec<i64> {
    let prompt = sequence.prompt().iter().map(|_| -100);
    let response = sequence.response().iter().map(|&id| i64::from(id));
    prompt.chain(response).collect()
}

#[test]
fn official_rows_are_the_published_trainers() {
    let text = std::fs::read_to_string(golden().join("official_rows.json")).unwrap();
    let cases: Vec<Official> = serde_json::from_str(&text).unwrap();
    assert_eq!(cases.len(), 24);
    for case in &cases {
        let rows = rows(Rows::Official, case.max_length, case.max_prompt_length);
        let prompt = user(&case.user);
        let (chosen, rejected) = pair(&rows, &prompt, &case.chosen, &case.rejected);
        assert_eq!(chosen.ids, case.chosen_input_ids);
        assert_eq!(labels(&chosen), case.chosen_labels);
        assert_eq!(rejected.ids, case.rejected_input_ids);
        assert_eq!(labels(&rejected), case.rejected_labels);
    }
}

#[test]
fn official_seam_gives_a_merged_token_to_the_response() {
    // "p" and "please" begin with different tokens.
    let source = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}";
    let rows = with_template(source, Rows::Official);
    let alone = rows.text.encode("maybe p").unwrap();
    let whole = rows.text.encode("maybe please").unwrap();
    assert!(
        !whole.starts_with(&alone),
        "the case must merge at the seam"
    );
    let sequence = single(&rows, &user("maybe p"), "lease").unwrap();
    assert_eq!(sequence.prompt()[..2], [BOS, BOS]);
    let kept = alone.len() - 1;
    assert_eq!(sequence.prompt()[2..], alone[..kept]);
    assert_eq!(sequence.response(), [&whole[kept..], &[EOT]].concat());
    // "rive" + "r" is two tokens, "rive" alone three: there is no seam to cut at.
    let error = single(&rows, &user("maybe rive"), "r").unwrap_err();
    assert!(matches!(error, TokeniseError::Seam));
}

#[test]
fn official_refuses_a_template_that_rewrites_the_prompt() {
    let source = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}";
    let rows = with_template(source, Rows::Official);
    let error = single(&rows, &user("hi"), "hello").unwrap_err();
    assert!(matches!(error, TokeniseError::PromptChanged));
}

#[test]
fn clean_rows_have_each_special_token_once() {
    let rows = rows(Rows::Clean, 512, 256);
    let prompt = user("why seven?");
    let (chosen, rejected) = pair(&rows, &prompt, "a river", "rain<|eot_id|>");
    for sequence in [&chosen, &rejected] {
        assert_eq!(count(&sequence.ids, BOS), 1);
        assert_eq!(sequence.ids[0], BOS);
        assert_eq!(count(sequence.response(), EOT), 1);
        assert_eq!(sequence.ids.last(), Some(&EOT));
        assert_eq!(sequence.prompt(), rows.text.prompt_ids(&prompt).unwrap());
    }
    assert_eq!(single(&rows, &prompt, "a river").unwrap(), chosen);
    let text = rows.text.tokenizer().decode(&chosen.ids, false).unwrap();
    let expected = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nwhy seven?<|eot_id|>\
                    <|start_header_id|>assistant<|end_header_id|>\n\na river<|eot_id|>";
    assert_eq!(text, expected);
}

#[test]
fn clean_seam_stays_where_generation_has_it() {
    // "\n\n" and "\n" would merge if they were encoded together.
    let rows = rows(Rows::Clean, 512, 256);
    let sequence = single(&rows, &user("hi"), "\nhello").unwrap();
    assert_eq!(
        sequence.prompt(),
        rows.text.prompt_ids(&user("hi")).unwrap()
    );
    let response = rows.text.encode("\nhello").unwrap();
    assert_eq!(sequence.response(), [&response[..], &[EOT]].concat());
}

#[test]
fn clean_cuts_the_prompts_beginning_behind_its_bos() {
    let rows = rows(Rows::Clean, 40, 16);
    let prompt = user(&"river rain ".repeat(20));
    let full = rows.text.prompt_ids(&prompt).unwrap();
    let (chosen, rejected) = pair(&rows, &prompt, &"play ".repeat(40), "yes");
    assert_eq!(chosen.ids.len(), 40);
    assert_eq!(chosen.prompt().len(), 16);
    assert_eq!(chosen.prompt()[0], BOS);
    assert_eq!(chosen.prompt()[1..], full[full.len() - 15..]);
    assert_eq!(rejected.prompt(), chosen.prompt());
    assert_eq!(rejected.response().last(), Some(&EOT));
}

/// r056: what the limits cut was trained on without a word.
#[test]
fn what_the_limits_cut_is_counted() {
    let count = |mode: Rows, prompt: &str, chosen: &str| {
        let rows = rows(mode, 40, 16);
        let prompt = user(&prompt.repeat(20));
        let whole = rows.text.prompt_ids(&prompt).unwrap().len();
        let mut lost = Truncation::default();
        let pair = rows.pair(&prompt, chosen, "yes", &mut lost).unwrap();
        assert_eq!(lost.rows, usize::from(lost.tokens > 0));
        (lost, whole, pair)
    };
    for mode in [Rows::Clean, Rows::Official] {
        let (lost, ..) = count(mode, "", "yes");
        assert_eq!(lost, Truncation::default(), "{mode:?}");
        let (lost, ..) = count(mode, "river rain ", "yes");
        assert!(lost.tokens > 0, "{mode:?}");
        assert_eq!(lost.responses_without_end, 0, "{mode:?}");
    }
    let (lost, prompt, (chosen, _)) = count(Rows::Clean, "river rain ", &"play ".repeat(40));
    assert_eq!(chosen.ids.len(), 40);
    let rows = rows(Rows::Clean, 40, 16);
    let response = rows.text.encode(&"play ".repeat(40)).unwrap().len() + 1;
    assert_eq!(lost.tokens, prompt + response - 40);
    assert_eq!(lost.responses_without_end, 1);
    // The same row by itself, and one that fits behind it.
    let mut lost = Truncation::default();
    let long = user(&"river rain ".repeat(20));
    let cut = rows.single(&long, &"play ".repeat(40), &mut lost).unwrap();
    rows.single(&user("hi"), "yes", &mut lost).unwrap();
    assert_eq!(lost.tokens, prompt + response - cut.ids.len());
    assert_eq!((lost.rows, lost.responses_without_end), (1, 1));
}

#[test]
fn clean_keeps_a_long_prompt_that_fits() {
    let rows = rows(Rows::Clean, 512, 8);
    let prompt = user("a river and rain and a river");
    let sequence = single(&rows, &prompt, "yes").unwrap();
    assert!(sequence.response_start > 8);
    assert_eq!(sequence.prompt(), rows.text.prompt_ids(&prompt).unwrap());
}

/// r062: what ends a turn is what the template writes, whatever is special or the EOS.
#[test]
fn end_of_turn_comes_from_the_template_then_eos() {
    let chat = "{% for m in messages %}{{ m.role }}: {{ m.content }}END\n{% endfor %}";
    let rows = |end: &str| with_template(&chat.replace("END", end), Rows::Clean);
    let end = |end: &str| rows(end).end_of_turn;
    assert_eq!(end("<|end_of_text|>").ids, [421]);
    // Nothing, or blanks alone, end no turn: the tokenizer's EOS does.
    for blank in ["", "\n\n", "  "] {
        assert_eq!(end(blank), EndOfTurn::of_token(EOT));
    }
    // What is rendered before the token is trained on with it, once.
    let led = rows("\n<|eot_id|> and more");
    let blank = led.text.encode("\n").unwrap();
    assert_eq!(led.end_of_turn.ids, [&blank[..], &[EOT]].concat());
    assert_eq!(led.end_of_turn.token(), Some(EOT));
    let response = |text: &str| {
        led.single(&user("hi"), text, &mut Truncation::default())
            .unwrap()
            .response()
            .to_vec()
    };
    let whole = led.text.encode("rain\n<|eot_id|>").unwrap();
    for text in ["rain", "rain\n", "rain\n<|eot_id|>"] {
        assert_eq!(response(text), whole, "{text:?}");
    }
    // Several ordinary tokens.
    let words = rows("\n### End\n");
    let written = words.text.encode("\n### End").unwrap();
    assert!(written.len() > 1);
    assert_eq!(words.end_of_turn.ids, written);
    assert_eq!(words.end_of_turn.stop, Stop::Text("\n### End".into()));
    let sequence = words
        .single(&user("hi"), "rain", &mut Truncation::default())
        .unwrap();
    let rain = words.text.encode("rain").unwrap();
    assert_eq!(sequence.response(), [&rain[..], &written].concat());
    // A template that refuses an answer says nothing.
    let prompts = "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ raise_exception('no') }}{% endif %}{{ m.content }}{% endfor %}";
    let prompts = with_template(prompts, Rows::Clean);
    assert_eq!(prompts.end_of_turn, EndOfTurn::of_token(EOT));
}

#[test]
fn pre_tokenised_rows_are_taken_as_they_are() {
    let probabilities = PairProbabilities::new(0.9, 0.7, 0.2);
    let pair = TokenisedPair::from_ids(&[1, 2], &[3, 4], &[5], probabilities, 4).unwrap();
    assert_eq!(pair.chosen.ids, [1, 2, 3, 4]);
    assert_eq!(pair.rejected.response(), [5]);
    assert_eq!(pair.rejected.prompt(), [1, 2]);
    assert_eq!(pair.probabilities, probabilities);
    let message = |prompt: &[u32], chosen: &[u32], rejected: &[u32]| {
        TokenisedPair::from_ids(prompt, chosen, rejected, probabilities, 4)
            .unwrap_err()
            .to_string()
    };
    assert!(message(&[], &[1], &[1]).contains("prompt is empty"));
    assert!(message(&[1], &[1], &[]).contains("rejected response is empty"));
    let text = message(&[1, 2, 3], &[1], &[1, 2]);
    assert!(text.contains("rejected response have 5 ids") && text.contains("max_length is 4"));
}

#[test]
fn limits_are_checked() {
    let text = ChatText::open(&golden().join("llama")).unwrap();
    for (length, prompt) in [(10, 10), (10, 1), (0, 0)] {
        let end = EndOfTurn::of_token(EOT);
        let made = RowTokeniser::new(text.clone(), end, Rows::Clean, length, prompt);
        assert!(matches!(made, Err(TokeniseError::Limits { .. })));
    }
}
