use super::*;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/golden/llama")
}

fn template(source: &str) -> ChatTemplate {
    let tokens = [
        ("bos_token", "<s>"),
        ("eos_token", "</s>"),
        ("pad_token", "<pad>"),
    ];
    let tokens = tokens.map(|(key, token)| (key, token.to_owned()));
    ChatTemplate::new(source, tokens.into_iter().collect()).unwrap()
}

fn render(source: &str) -> Result<String, TemplateError> {
    template(source).render(&[Message::new("user", "hi")], true)
}

fn messages(value: &serde_json::Value) -> Vec<Message> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn golden_chats() {
    let template = ChatTemplate::from_dir(&golden()).unwrap().unwrap();
    let expected = read_json(&golden().join("expected.json")).unwrap().unwrap();
    let cases = expected["chat"].as_array().unwrap();
    assert!(cases.len() > 2);
    for case in cases {
        let messages = messages(&case["messages"]);
        assert_eq!(template.render(&messages, true).unwrap(), case["prompt"]);
        assert_eq!(template.render(&messages, false).unwrap(), case["full"]);
    }
}

/// cases.json: templates with the constructs of well-known models and what transformers
/// 5.23 (jinja2 3.1.6) renders from them.
#[test]
fn renders_as_transformers() {
    let cases: serde_json::Value = serde_json::from_str(include_str!("cases.json")).unwrap();
    for (index, case) in cases["cases"].as_array().unwrap().iter().enumerate() {
        let name = case["template"].as_str().unwrap();
        let template = template(cases["templates"][name].as_str().unwrap());
        let add = case["add_generation_prompt"].as_bool().unwrap();
        let rendered = template.render(&messages(&case["messages"]), add);
        match case["raises"].as_str() {
            None => assert_eq!(
                rendered.unwrap(),
                case["expected"].as_str().unwrap(),
                "{name}, case {index}"
            ),
            Some(expected) => match rendered.unwrap_err() {
                TemplateError::Raised { message, .. } => assert_eq!(message, expected),
                other => panic!("{other}"),
            },
        }
    }
}

#[test]
fn raise_is_the_templates_own_words() {
    let error = render("{{ raise_exception('no system here') }}").unwrap_err();
    let expected = "the chat template of <chat template> refuses these messages: no system here";
    assert_eq!(error.to_string(), expected);
    let inside = "{% macro f() %}{{ raise_exception('deep') }}{% endmacro %}{{ f() }}";
    assert!(
        matches!(render(inside), Err(TemplateError::Raised { message, .. }) if message == "deep")
    );
}

/// r060: the date is today's, read once, unless one is given; only templates that ask for it
/// depend on it.
#[test]
fn the_date_is_todays_or_a_given_one() {
    let dated = template("{{ strftime_now('%d %b %Y') }}");
    let day = NaiveDate::from_ymd_opt(2024, 7, 6).unwrap();
    let write = |template: &ChatTemplate| template.render(&[], false).unwrap();
    assert_eq!(write(&dated), today().format("%d %b %Y").to_string());
    assert_eq!(dated.date(), today());
    assert!(dated.uses_date());
    let then = dated.clone().with_date(day);
    assert_eq!((write(&then), then.date()), ("06 Jul 2024".into(), day));
    assert_ne!(then.identity(), dated.identity());
    // A clone made before keeps its own.
    assert_eq!(write(&dated), today().format("%d %b %Y").to_string());

    let plain = template("{# strftime_now #}{{ messages }}");
    assert!(!plain.uses_date() && !plain.clone().with_date(day).uses_date());
    assert_eq!(plain.identity(), plain.clone().with_date(day).identity());

    // Llama 3.1's own default stays, as in transformers, unless a date is given.
    let default = "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }}";
    let default = template(default);
    assert!(!default.uses_date());
    assert_eq!(write(&default), "26 Jul 2024");
    let given = default.with_date(day);
    assert!(given.uses_date());
    assert_eq!(write(&given), "06 Jul 2024");

    // Llama 3.2's: a date from the mark of an output writes what the first day wrote.
    let both = "{% if not date_string is defined %}{% if strftime_now is defined %}{% set date_string = strftime_now('%Y-%m-%d') %}{% endif %}{% endif %}{{ date_string }}";
    let both = template(both);
    let first = write(&both);
    assert!(both.uses_date());
    assert_eq!(write(&both.with_date(today())), first);
}

#[test]
fn hostile_templates_end() {
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    assert!(matches!(
        render(endless),
        Err(TemplateError::TooMuchWork { .. })
    ));
    let inside = format!("{{% macro f() %}}{endless}{{% endmacro %}}{{{{ f() }}}}");
    assert!(matches!(
        render(&inside),
        Err(TemplateError::TooMuchWork { .. })
    ));
    let long = "{% set x = 'x' * 1000000 %}{% for a in range(17) %}{{ x }}{% endfor %}";
    assert!(matches!(render(long), Err(TemplateError::TooLong { .. })));
    for source in [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ [1] | tojson(indent=999999999999) }}",
        "{{ ([1] * 999999999999) | tojson }}",
    ] {
        let error = render(source).unwrap_err();
        assert!(
            matches!(error, TemplateError::Render { .. }),
            "{source}: {error}"
        );
    }
    let doubling = "{% set n = namespace(s='x') %}{% for i in range(50) %}{% set n.s = n.s + n.s %}\
        {% endfor %}{{ n.s | length }}";
    for source in [
        doubling,
        // Small in memory, since each list is in the next one twice, and 2^50 long as text.
        "{% set n = namespace(s=[1]) %}{% for i in range(50) %}{% set n.s = [n.s, n.s] %}\
            {% endfor %}{{ n.s | tojson(sort_keys=true) }}",
        "{{ 'x' * 999999999999 }}",
        "{{ 'x\n' | indent(999999999999) }}",
        "{{ [1] | batch(999999999999, 0) | length }}",
        "{{ [1] | slice(999999999999, 0) | length }}",
    ] {
        let error = render(source).unwrap_err();
        assert!(
            matches!(error, TemplateError::TooMuchWork { .. }),
            "{source}: {error}"
        );
    }
    let large = " ".repeat(MAX_SOURCE + 1);
    let error = ChatTemplate::new(&large, BTreeMap::new()).unwrap_err();
    assert!(matches!(error, TemplateError::TooLarge { .. }));
}

#[test]
fn long_conversations_fit_the_bounds() {
    let template = ChatTemplate::from_dir(&golden()).unwrap().unwrap();
    let messages = vec![Message::new("user", "word ".repeat(100)); 2000];
    assert!(template.render(&messages, true).unwrap().len() > 1_000_000);
}

#[test]
fn where_the_template_lies() {
    let dir = tempfile::tempdir().unwrap();
    let load = || ChatTemplate::from_dir(dir.path());
    let text = || load().unwrap().unwrap().render(&[], false).unwrap();
    let config =
        |text: &str| std::fs::write(dir.path().join("tokenizer_config.json"), text).unwrap();

    assert!(load().unwrap().is_none());
    config(r#"{"chat_template": null}"#);
    assert!(load().unwrap().is_none());
    config(r#"{"chat_template": "string {{ bos_token }}", "bos_token": {"content": "<b>"}}"#);
    assert_eq!(text(), "string <b>");
    config(
        r#"{"chat_template": [{"name": "rag", "template": "no"}, {"name": "default", "template": "list"}]}"#,
    );
    assert_eq!(text(), "list");
    std::fs::write(dir.path().join("chat_template.jinja"), "file\n").unwrap();
    assert_eq!(text(), "file");
}

#[test]
fn bad_templates_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer_config.json");
    let message = |text: &str| {
        std::fs::write(&path, text).unwrap();
        ChatTemplate::from_dir(dir.path()).unwrap_err().to_string()
    };
    let text = message(r#"{"chat_template": [{"name": "rag", "template": "x"}]}"#);
    assert!(
        text.ends_with(r#"no entry named `default`; found "rag""#),
        "{text}"
    );
    let text = message(r#"{"chat_template": 3}"#);
    assert!(
        text.contains("tokenizer_config.json: `chat_template` is 3"),
        "{text}"
    );
    let text = message(r#"{"chat_template": "a\n{% if %}"}"#);
    assert!(
        text.contains("not valid Jinja") && text.contains("line 2"),
        "{text}"
    );
    let error = render("{{ nothing.at.all }}").unwrap_err().to_string();
    assert!(error.contains("the chat template failed"), "{error}");
}

/// r057: `tools`, `tool_calls`, `tool_call_id` and `name` never reached the template.
/// tools_case.json: what jinja2 3.1 renders under transformers' settings.
#[test]
fn tools_and_their_calls_are_rendered() {
    let case: serde_json::Value = serde_json::from_str(include_str!("tools_case.json")).unwrap();
    let template = template(case["template"].as_str().unwrap());
    let mut messages = messages(&case["messages"]);
    assert_eq!(messages[2].content, None);
    assert_eq!(template.render(&messages, true).unwrap(), case["without"]);
    messages[0].tools = Some(case["tools"].clone());
    assert_eq!(template.render(&messages, true).unwrap(), case["expected"]);
}

/// Expected: what json.dumps of Python 3.11 writes under the same options.
#[test]
fn json_is_pythons() {
    let cases = [
        (
            r#"{{ [0.0, -0.0, 1.0, 0.1, 0.0001, 0.00009999, 0.00000015] | tojson }}"#,
            "[0.0, -0.0, 1.0, 0.1, 0.0001, 9.999e-05, 1.5e-07]",
        ),
        (
            "{{ [123456789012345680.0, 1e15, -1e22, 5e-324, 1.7976931348623157e308] | tojson }}",
            "[1.2345678901234568e+17, 1000000000000000.0, -1e+22, 5e-324, 1.7976931348623157e+308]",
        ),
        (
            "{{ 'a\x7f\x1f/é🙂\u{2028}' | tojson(ensure_ascii=true) }}",
            r#""a\u007f\u001f/\u00e9\ud83d\ude42\u2028""#,
        ),
        (
            "{{ {'b': [], 'a': {}, 'c': [[1], {'x': none}]} | tojson(indent=2) }}",
            "{\n  \"b\": [],\n  \"a\": {},\n  \"c\": [\n    [\n      1\n    ],\n    {\n      \"x\": null\n    }\n  ]\n}",
        ),
        (
            "{{ {'b': [], 'a': {'d': 1, 'c': 2}} \
                | tojson(indent=0, sort_keys=true, separators=(' ; ', ' = ')) }}",
            "{\n\"a\" = {\n\"c\" = 2 ; \n\"d\" = 1\n} ; \n\"b\" = []\n}",
        ),
        (
            "{{ [[], {}, [[]]] | tojson(indent='\t') }}",
            "[\n\t[],\n\t{},\n\t[\n\t\t[]\n\t]\n]",
        ),
    ];
    for (source, expected) in cases {
        assert_eq!(render(source).unwrap(), expected, "{source}");
    }
}

/// Judged rows carry a hash of it.
#[test]
fn identities_are_those_of_version_0_1() {
    let tokens = [("bos_token", "<|é'\"\n\u{1f}🙂|>"), ("eos_token", "</s>")];
    let tokens = tokens.map(|(key, token)| (key, token.to_owned()));
    let template = ChatTemplate::new("{{ x }}\n", tokens.into_iter().collect()).unwrap();
    let expected =
        "{{ x }}\n\n{\"bos_token\": \"<|é'\\\"\\n\\u{1f}🙂|>\", \"eos_token\": \"</s>\"}";
    assert_eq!(template.identity(), expected);
}
