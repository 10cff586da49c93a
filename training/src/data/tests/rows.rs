use super::*;

#[test]
fn prompts_in_all_spellings() {
    let rows: Vec<PromptRow> = read(concat!(
        r#"{"prompt": "A", "prompt_id": 7}"#,
        "\n",
        r#"{"instruction": "B", "input": "", "prompt": null}"#,
        "\n",
        r#"{"instruction": "B", "input": "C", "reference": "D"}"#,
        "\n",
        r#"{"messages": [{"role": "user", "content": "E"}, {"role": "assistant", "content": "F"}]}"#,
        "\n",
        r#"{"prompt": [{"content": "G", "role": "user", "extra": 1}], "prompt_id": "g"}"#,
        "\n",
    ))
    .unwrap();
    assert_eq!(rows[0].prompt_id, "7");
    assert_eq!(rows[0].prompt, Prompt::Text("A".into()));
    assert_eq!(rows[1].prompt, Prompt::Text("B".into()));
    assert_eq!(rows[2].prompt, Prompt::Text("B\n\nC".into()));
    assert_eq!(rows[2].reference.as_deref(), Some("D"));
    assert_eq!(rows[3].prompt, Prompt::Messages(vec![user("E")]));
    let Prompt::Messages(turns) = &rows[4].prompt else {
        panic!("not messages");
    };
    // What else a turn has is for the template to look at.
    assert_eq!(turns[0].text(), "G");
    assert_eq!(turns[0].further["extra"], 1);
    // SHA-256 of the three bytes `"B"`, made with sha256sum.
    assert_eq!(rows[1].prompt_id, stable_hash(&"B"));
    assert_eq!(stable_hash(&"B"), "955cca1ceba45052");
}

#[test]
fn equal_prompts_without_ids_are_told_apart() {
    let rows: Vec<PromptRow> =
        read("{\"prompt\": \"A\"}\n{\"prompt\": \"A\"}\n{\"prompt\": \"A\"}\n").unwrap();
    let hash = stable_hash(&"A");
    let ids: Vec<&str> = rows.iter().map(|row| row.prompt_id.as_str()).collect();
    assert_eq!(ids, [&hash, &format!("{hash}-2"), &format!("{hash}-3")]);
}

#[test]
fn sft_rows_in_all_spellings() {
    let rows: Vec<SftRow> = read(concat!(
        r#"{"prompt": "A", "response": "B", "messages": [], "instruction": "no"}"#,
        "\n",
        r#"{"instruction": "A", "input": "x", "output": "B"}"#,
        "\n",
        r#"{"messages": [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]}"#,
    ))
    .unwrap();
    let prompts: Vec<_> = rows.iter().map(|row| row.prompt.clone()).collect();
    assert_eq!(prompts, [[user("A")], [user("A\n\nx")], [user("A")]]);
    assert!(rows.iter().all(|row| row.response == "B"));
    assert_eq!(
        message::<SftRow>(r#"{"messages": [{"role": "user", "content": "A"}]}"#),
        "rows.jsonl, line 1: key `messages` must be a conversation that ends in an assistant turn, found a last turn of role `user`"
    );
    assert!(message::<SftRow>(r#"{"prompt": "A"}"#).contains("key `response` is missing"));
    assert!(message::<SftRow>(r#"{"instruction": "A"}"#).contains("key `output` is missing"));
}

#[test]
fn pairs_in_all_layouts() {
    let turn = |role: &str, text: &str| format!(r#"{{"role": "{role}", "content": "{text}"}}"#);
    let (u, c, r) = (
        turn("user", "A"),
        turn("assistant", "B"),
        turn("assistant", "C"),
    );
    let text = [
        format!(r#"{{"prompt": [{u}], "chosen": [{c}], "rejected": [{r}], "chosen_probs": 1}}"#),
        format!(r#"{{"prompt": "templated", "chosen": [{u}, {c}], "rejected": [{u}, {r}]}}"#),
        format!(r#"{{"chosen": [{u}, {c}], "rejected": [{u}, {r}]}}"#),
        format!(r#"{{"prompt": [{u}], "chosen": [{u}, {c}], "rejected": [{r}]}}"#),
        r#"{"prompt": "A", "chosen": "B", "rejected": "C"}"#.to_string(),
    ];
    let rows: Vec<PairRow> = read(&text.join("\n")).unwrap();
    for row in &rows {
        let expected = PairContent::Text {
            prompt: vec![user("A")],
            chosen: "B".into(),
            rejected: "C".into(),
        };
        assert_eq!(row.content, expected);
    }
    assert_eq!(rows[0].probabilities.chosen, Some(1.0));
    assert_eq!(rows[1].probabilities.chosen, None);
    let ids: Vec<PairRow> =
        read(r#"{"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5]}"#).unwrap();
    let expected = PairContent::Ids {
        prompt: vec![1, 2],
        chosen: vec![3],
        rejected: vec![4, 5],
    };
    assert_eq!(ids[0].content, expected);
}

#[test]
fn wrong_pairs_are_refused() {
    let refused = |text: &str, part: &str| {
        let message = message::<PairRow>(text);
        assert!(message.contains(part), "{message}");
    };
    refused(
        r#"{"chosen": "B", "rejected": "C"}"#,
        "key `prompt` is missing",
    );
    refused(
        r#"{"prompt": "A", "rejected": "C"}"#,
        "key `chosen` is missing",
    );
    refused(
        r#"{"prompt": "A", "chosen": "B", "rejected": "C", "chosen_probs": 1.5}"#,
        "key `chosen_probs` must be a number from 0 to 1, found 1.5",
    );
    refused(
        r#"{"prompt": "A", "chosen": [{"role": "user", "content": "B"}], "rejected": "C"}"#,
        "key `chosen` must be a conversation that ends in an assistant turn",
    );
    refused(
        r#"{"chosen": [{"role": "user", "content": "A"}, {"role": "assistant", "content": ""}],
            "rejected": [{"role": "user", "content": "B"}, {"role": "assistant", "content": ""}]}"#
            .replace('\n', "")
            .as_str(),
        "key `rejected` must be a conversation that begins with the same turns",
    );
    refused(
        r#"{"prompt_ids": [1], "chosen_ids": [1]}"#,
        "key `rejected_ids` is missing",
    );
    refused(
        r#"{"prompt_ids": [-1], "chosen_ids": [1], "rejected_ids": [1]}"#,
        "key `prompt_ids[0]` must be an integer from 0 to 4294967295, found the number -1",
    );
    refused(
        r#"{"prompt_ids": [1], "chosen_ids": [], "rejected_ids": [1]}"#,
        "key `chosen_ids` must be a list of at least one token id",
    );
}

#[test]
fn losses_name_the_probability_they_miss() {
    let rows: Vec<PairRow> = read(concat!(
        r#"{"prompt": "A", "chosen": "B", "rejected": "C", "chosen_probs": 1, "chosen_probs_win": 0}"#,
        "\n",
        r#"{"prompt_id": "z", "prompt": "A", "chosen": "B", "rejected": "C", "chosen_probs": 1}"#,
    ))
    .unwrap();
    let mut file = RowFile::of(Path::new("pairs.jsonl"), rows);
    let chosen = [ProbabilityKey::Chosen];
    assert!(check_probabilities(&mut file, "sppo_single", &chosen).is_ok());
    let error = check_probabilities(&mut file, "sppo", &[ProbabilityKey::Win]).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("pairs.jsonl, row 2: key `chosen_probs_win` is missing; the loss `sppo` needs it (prompt_id `z`)"),
        "{text}"
    );
}

#[test]
fn judged_rows_are_checked() {
    let good = serde_json::to_value(judged("a", &[1.0, 2.0])).unwrap();
    let refused = |key: &str, value: Value, part: &str| {
        let mut row = good.clone();
        row[key] = value;
        let message = message::<JudgedRow>(row.to_string());
        assert!(message.contains(part), "{message}");
    };
    use serde_json::json;
    refused(
        "rm_scores",
        json!([1.0]),
        "key `rm_scores` must be 2 long, one for each response, found 1",
    );
    refused(
        "rm_scores",
        json!([1.0, null]),
        "key `rm_scores[1]` must be a finite number, found null",
    );
    refused("rm_scores", json!([1.0, "x"]), "found the string \"x\"");
    refused("probability", json!(null), "key `probability` is missing");
    refused(
        "probability",
        json!([[0.5, 0.5], [0.5]]),
        "`probability[1]` must be 2 numbers long",
    );
    refused(
        "probability",
        json!([[0.5, 1.1], [0.5, 0.5]]),
        "`probability[0][1]` must be a number from 0 to 1, found 1.1",
    );
    refused(
        "comparison_logits",
        json!([[0.0]]),
        "key `comparison_logits` must be 2 long",
    );
    refused(
        "responses",
        json!([]),
        "at least one response, found an empty list",
    );
    refused(
        "responses",
        json!("text"),
        "key `responses` must be a list of strings, found the string \"text\"",
    );
    refused("tokens", json!([1, 2, 3]), "key `tokens` must be 2 long");
    refused(
        "finish_reasons",
        json!([1, 2]),
        "key `finish_reasons[0]` must be a string, found the number 1",
    );
    refused("prompt", json!([]), "at least one message");
    refused(
        "prompt",
        json!([{"role": "user"}]),
        "key `prompt[0].content` must be a string, found nothing",
    );
    refused("prompt", json!(""), "a prompt that is not empty");
    refused(
        "prompt_id",
        json!([]),
        "key `prompt_id` must be a string that is not empty, or an integer",
    );
}
