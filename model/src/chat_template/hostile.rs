//! Templates that want time, memory or stack without end.

use std::sync::mpsc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::*;

/// What a hostile value is made by; each leaves it in `v`.
const SHAPES: [(&str, &str); 24] = [
    (
        "text doubled",
        "{% set n = namespace(s='xy') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}{% set v = n.s %}",
    ),
    (
        "text doubled by ~",
        "{% set n = namespace(s='xy') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{% set v = n.s %}",
    ),
    (
        "text doubled by capture",
        "{% set n = namespace(s='xy') %}{% for i in range(60) %}{% set n.s %}{{ n.s }}{{ n.s }}{% endset %}{% endfor %}{% set v = n.s %}",
    ),
    (
        "text doubled by replace",
        "{% set n = namespace(s='xy') %}{% for i in range(60) %}{% set n.s = n.s.replace('x', 'xyx') %}{% endfor %}{% set v = n.s %}",
    ),
    (
        "text doubled by join",
        "{% set n = namespace(s='xy') %}{% for i in range(60) %}{% set n.s = [n.s, n.s]|join(n.s) %}{% endfor %}{% set v = n.s %}",
    ),
    (
        "text doubled by format",
        "{% set n = namespace(s='xy') %}{% for i in range(60) %}{% set n.s = '{0}{0}{0}'.format(n.s) %}{% endfor %}{% set v = n.s %}",
    ),
    (
        "list doubled",
        "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% endfor %}{% set v = n.s %}",
    ),
    (
        "list doubled a little",
        "{% set n = namespace(s=[1]) %}{% for i in range(15) %}{% set n.s = [n.s, n.s] %}{% endfor %}{% set v = n.s %}",
    ),
    (
        "tuple doubled",
        "{% set n = namespace(s=(1,)) %}{% for i in range(60) %}{% set n.s = (n.s, n.s) %}{% endfor %}{% set v = n.s %}",
    ),
    (
        "map doubled",
        "{% set n = namespace(s={}) %}{% for i in range(60) %}{% set n.s = {'a': n.s, 'b': n.s} %}{% endfor %}{% set v = n.s %}",
    ),
    (
        "list added to itself",
        "{% set n = namespace(s=[1, 2]) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}{% set v = n.s %}",
    ),
    (
        "chain doubled",
        "{% set n = namespace(s=[1, 2]) %}{% for i in range(60) %}{% set n.s = n.s|chain(n.s) %}{% endfor %}{% set v = n.s %}",
    ),
    (
        "chain of maps doubled",
        "{% set n = namespace(s={'a': 1}) %}{% for i in range(60) %}{% set n.s = n.s|chain(n.s) %}{% endfor %}{% set v = n.s %}",
    ),
    (
        "zip doubled",
        "{% set n = namespace(s=[1, 2]) %}{% for i in range(60) %}{% set n.s = n.s|zip(n.s) %}{% endfor %}{% set v = n.s %}",
    ),
    (
        "deep list",
        "{% set n = namespace(s=[]) %}{% for i in range(90000) %}{% set n.s = [n.s] %}{% endfor %}{% set v = n.s %}",
    ),
    (
        "deep map",
        "{% set n = namespace(s={}) %}{% for i in range(90000) %}{% set n.s = {'a': n.s} %}{% endfor %}{% set v = n.s %}",
    ),
    (
        "deep batches",
        "{% set n = namespace(s=[1]) %}{% for i in range(90000) %}{% set n.s = n.s|batch(1)|list %}{% endfor %}{% set v = n.s %}",
    ),
    (
        "deep macro",
        "{% macro f(x) %}{% set n.s = x %}{{ f([x, x]) }}{% endmacro %}{% set n = namespace(s=1) %}{{ f([1]) }}{% set v = n.s %}",
    ),
    ("itself", "{% set v = namespace() %}{% set v.s = v %}"),
    (
        "itself in a list",
        "{% set v = namespace() %}{% set v.s = [v] %}",
    ),
    (
        "itself by values",
        "{% set v = namespace(a=1) %}{% set v.s = v.values() %}{% set v.t = v.items() %}",
    ),
    (
        "two that hold each other",
        "{% set v = namespace() %}{% set w = namespace(v=v) %}{% set v.w = w %}",
    ),
    ("repeated list", "{% set v = [0, 1] * 49999999 %}"),
    ("repeated ranges", "{% set v = [range(100000)] * 10000 %}"),
];

/// What is done with it.
const USES: [(&str, &str); 40] = [
    ("printed", "{{ v }}"),
    ("in a text", "{% set t = v ~ '' %}"),
    (
        "in a text many times",
        "{% for i in range(100000) %}{% set t = [v, v, v, v, v, v, v, v] ~ 'x' %}{% endfor %}",
    ),
    (
        "compared",
        "{% for i in range(100000) %}{% if [v, 1] == [v, 2] or [v] == [[v]] %}{% endif %}{% endfor %}",
    ),
    (
        "compared with another",
        "{% set w = [v, v]|list %}{% for i in range(100000) %}{% if [v, v, i] == w or w < [v, v] %}{% endif %}{% endfor %}",
    ),
    (
        "looked for",
        "{% for i in range(100000) %}{% if i in v or [v] in [v, [v]] %}{% endif %}{% endfor %}",
    ),
    ("a key", "{% set d = {v: v} %}{{ d[v] }}"),
    ("string", "{{ v|string|length }}"),
    ("tojson", "{{ v|tojson }}"),
    (
        "tojson sorted",
        "{{ v|tojson(sort_keys=true, indent=200) }}",
    ),
    ("joined", "{{ v|join(', ')|length }}"),
    ("joined by a method", "{% set t = ','.join(v) %}"),
    ("joined by nothing", "{% set t = ''.join(v) %}"),
    ("counted", "{{ v|length }}"),
    (
        "counted by a method",
        "{% for i in range(100000) %}{% set t = v.count(v) %}{% endfor %}",
    ),
    ("a list", "{% set t = v|list|list %}"),
    (
        "sorted",
        "{% for i in range(100000) %}{% set t = [v, [v], v, [v], v, [v]]|sort %}{% endfor %}",
    ),
    (
        "made unique",
        "{% for i in range(100000) %}{% set t = [v, [v], v, [v], v, [v]]|unique %}{% endfor %}",
    ),
    (
        "grouped",
        "{% set t = [{'a': v}, {'a': [v]}]|groupby('a') %}",
    ),
    (
        "least",
        "{% for i in range(100000) %}{% set t = [v, [v], v]|min %}{% endfor %}",
    ),
    ("summed", "{% set t = v|sum %}"),
    ("pprint", "{% set t = v|pprint %}"),
    ("formatted", "{% set t = '{0} {0} {0} {0}'.format(v) %}"),
    (
        "formatted by printf",
        "{% set t = '%s %s %s %s'|format(v, v, v, v) %}",
    ),
    ("starts", "{% set t = 'abc'.startswith(v) %}"),
    (
        "equal by a test",
        "{% for i in range(100000) %}{% if [v, 1] is eq([v, 2]) %}{% endif %}{% endfor %}",
    ),
    (
        "selected",
        "{% set t = [v, v, v]|select('equalto', [v])|list %}",
    ),
    (
        "mapped",
        "{% set t = [v, v]|map('string')|map('length')|list %}",
    ),
    (
        "sliced",
        "{% for i in range(100000) %}{% set t = v[::-1] %}{% endfor %}",
    ),
    ("batched", "{% set t = v|batch(2)|list|tojson %}"),
    (
        "reversed",
        "{% for i in range(100000) %}{% set t = v|reverse|list %}{% endfor %}",
    ),
    (
        "last",
        "{% for i in range(100000) %}{% set t = v|last %}{% endfor %}",
    ),
    ("indented", "{{ v|string|indent(200)|length }}"),
    (
        "repeated",
        "{% set t = v * 1000 * 1000 * 1000 %}{{ t|string|length }}",
    ),
    (
        "split",
        "{% set t = (v|string).split('x') %}{% set t = (v|string).split() %}",
    ),
    (
        "split to letters",
        "{% set t = (v|string).split('')|list %}{% set t = v|string|list|tojson %}",
    ),
    (
        "handed to macros",
        "{% macro f(x) %}{{ x }}{{ f(x) }}{% endmacro %}{{ f(v) }}",
    ),
    (
        "looped over",
        "{% for x in v recursive %}{{ x }}{{ loop(v) }}{% endfor %}",
    ),
    (
        "escaped",
        "{% autoescape 'json' %}{{ v }}{% endautoescape %}{% autoescape 'html' %}{{ v }}{% endautoescape %}",
    ),
    (
        "spread",
        "{% macro f() %}{{ varargs }}{% endmacro %}{{ f(*v) }}{{ dict(*v) }}",
    ),
];

/// Hostile by themselves: these must be refused, whatever they do on the way.
fn whole() -> Vec<(String, String)> {
    let nested = |open: &str, close: &str, n: usize| {
        format!("{{{{ {}1{} }}}}", open.repeat(n), close.repeat(n))
    };
    let mut sources = Vec::new();
    let mut add = |name: &str, source: String| sources.push((name.to_owned(), source));
    for n in [1_000, 100_000, 300_000] {
        add("brackets", nested("[", "]", n));
        add("round brackets", nested("(", ")", n));
        add("maps", nested("{1:", "}", n));
        add("nots", nested("not ", "", n));
        add("signs", nested("- ", "", n));
        add("open brackets", format!("{{{{ {}", "[".repeat(n)));
        add("ifs", "{% if 1 %}".repeat(n));
        add(
            "closed ifs",
            format!(
                "{}x{}",
                "{% if 1 %}".repeat(n / 3),
                "{% endif %}".repeat(n / 3)
            ),
        );
        add("loops", format!("{}x", "{% for a in [1] %}".repeat(n / 3)));
        add(
            "conditions",
            format!("{{{{ {}1 }}}}", "1 if 0 else ".repeat(n / 3)),
        );
    }
    for n in [60_000, 200_000] {
        add("a long sum", format!("{{{{ 1{} }}}}", "+1".repeat(n)));
        add("a long power", format!("{{{{ 1{} }}}}", "**1".repeat(n)));
        add("a long or", format!("{{{{ 0{} }}}}", " or 0".repeat(n)));
        add("a long text", format!("{{{{ 1{} }}}}", "~1".repeat(n)));
        add(
            "a long comparison",
            format!("{{{{ 1{} }}}}", "<1".repeat(n)),
        );
        add("filters", format!("{{{{ 1{} }}}}", "|int".repeat(n)));
        add(
            "batches",
            format!("{{{{ [1]{} }}}}", "|batch(1)".repeat(n / 3)),
        );
        add("attributes", format!("{{{{ a{} }}}}", ".b".repeat(n)));
        add("items", format!("{{{{ a{} }}}}", "[0]".repeat(n)));
        add("calls", format!("{{{{ a{} }}}}", "()".repeat(n)));
        add(
            "elif",
            format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(n / 3)),
        );
    }
    for source in [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f() %}{{ caller() }}{% endmacro %}{% macro g() %}{% call f() %}{{ g() }}{% endcall %}{% endmacro %}{{ g() }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{% for i in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% for i in range(99999) %}{% set t = range(99999)|list %}{% endfor %}",
        "{% for i in range(99999) %}{% set t = range(99999)|sort|join %}{% endfor %}",
        "{{ range(99999999999)|list }}",
        "{{ 'x' * 999999999999 }}",
        "{{ 'x' * 99999999 }}",
        "{{ ('x' * 9999999) * 9999 }}",
        "{{ (1,) * 99999999 }}",
        "{{ ([1] * 99999999)|tojson }}",
        "{{ ([1] * 99999999)|join }}",
        "{{ ','.join([1] * 99999999) }}",
        "{{ ([[1]] * 9999999) == ([[1]] * 9999999) }}",
        "{{ '%1000000000d'|format(1) }}",
        "{{ '%.1000000000f'|format(1.5) }}",
        "{{ '%0999999999d'|format(1) }}",
        "{{ '%-999999999s'|format('x') }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ '{:0999999999}'.format(1) }}",
        "{{ '{:.999999999f}'.format(1.5) }}",
        "{{ '{:99999999999999999999999999}'.format(1) }}",
        "{{ '{99999999999999999999}'.format(1) }}",
        "{{ '{:x^999999999}'.format('x') }}",
        "{{ '{:,>999999999}'.format(1) }}",
        "{{ ('{0}' * 100000).format('x' * 100000) }}",
        "{{ ('%(a)s' * 100000)|format(a='x' * 100000) }}",
        "{{ 'x\n' * 1000000 | indent(1000000) }}",
        "{{ ('x\n' * 1000000)|indent(1000000) }}",
        "{{ ('x' * 100000).replace('x', 'x' * 100000) }}",
        "{{ ('x' * 100000)|replace('x', 'x' * 100000) }}",
        "{{ ('x' * 100000).join(range(99999)) }}",
        "{{ range(99999)|join('x' * 100000) }}",
        "{{ [1]|batch(999999999999, 0)|list }}",
        "{{ [1]|slice(999999999999, 0)|list }}",
        "{{ [1]|tojson(indent=999999999999) }}",
        "{{ 'x'|center(999999999) }}",
        "{% for i in range(99999) %}{{ messages|tojson(indent=250)|length }}{{ ('x' * 9999)|tojson }}{% endfor %}",
        "{% for i in range(99999) %}{% set a = ('ab' * 99999)|upper|lower|title|trim %}{% endfor %}",
        "{% set t = ('a ' * 9999999).split() %}{{ t|length }}{% set t = ('a ' * 9999999).split(' ') %}",
        "{% set t = ('a\n' * 9999999).splitlines() %}{% set t = ('a\n' * 9999999)|lines|list %}{{ t|length + 1/0 }}",
        "{% include 'chat' %}",
        "{% extends 'chat' %}",
        "{% import 'chat' as x %}{{ x }}",
        "{% block a %}{{ self.a() }}{% endblock %}",
        "{{ debug() }}",
        "{{ 9 ** 9 ** 9 ** 9 }}",
        "{% filter indent(9999) %}{% for i in range(9999) %}{{ 'x\n' * 99 }}{% endfor %}{% endfilter %}",
        "{{ strftime_now('%c' * 9999999) }}",
        "{{ strftime_now('%9999999999d') }}",
        "{% set x = 'x' * 9999999 %}{% for i in range(99999) %}{% if x ~ 'a' == x ~ 'b' %}{% endif %}{% endfor %}",
        "{% set x = 'x' * 9999999 %}{% set y = x ~ '' %}{% for i in range(99999) %}{% if x == y or y < x %}{% endif %}{% endfor %}",
        "{% set x = 'x' * 9999999 %}{% for i in range(99999) %}{% if 'xy' in x %}{% endif %}{% endfor %}",
        "{% set x = 'x' * 9999999 %}{{ [x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x]|string }}",
        "{% set x = 'x' * 9999999 %}{% for i in range(99999) %}{% set t = x.count('y') + x.find('y') + x.rfind('y') %}{% endfor %}",
        "{% set x = 'x' * 9999999 %}{% for i in range(99999) %}{% set t = x[i:][:9] ~ x[-1] ~ x[::-1][0] %}{% endfor %}",
    ] {
        add("whole", source.into());
    }
    sources
}

/// Whether rendering ends, and how; `None` where it is still under way after a minute.
fn end_of(source: String) -> Option<Result<String, TemplateError>> {
    let (sender, receiver) = mpsc::channel();
    // The stack of a thread that a library makes: the least that rendering meets.
    std::thread::spawn(move || {
        let tokens = BTreeMap::from([("bos_token", "<s>".to_owned())]);
        let rendered = ChatTemplate::compile("hostile/chat_template.jinja".into(), source, tokens)
            .and_then(|template| template.render(&[Message::new("user", "hi")], true));
        let _ = sender.send(rendered);
    });
    receiver.recv_timeout(Duration::from_secs(60)).ok()
}

/// r030: templates hung, overflowed the stack, ran out of memory or panicked.
#[test]
fn hostile_templates_are_refused() {
    let sources = whole();
    assert!(sources.len() > 100);
    for (name, source) in sources {
        let shown: String = source.chars().take(100).collect();
        let end = end_of(source).unwrap_or_else(|| panic!("{name} does not end: {shown}"));
        match end {
            Err(error) => assert!(
                error.to_string().contains("hostile/chat_template.jinja"),
                "{name}: {error}"
            ),
            // A thousand signs are many, but do no harm.
            Ok(_) => assert!(
                ["nots", "signs", "conditions"].contains(&name.as_str()),
                "{name}: {shown}"
            ),
        }
    }
}

/// As deep as is let through: none overflows the stack of a thread.
#[test]
fn sources_at_the_limits_end() {
    let chains = [
        "+1", "**1", "~1", " or 0", " and 1", "|int", ".b", "[0]", "()", "<1", " if 1",
    ];
    for chain in chains {
        for n in [2040, 1360, 1020, 800] {
            assert!(end_of(format!("{{{{ 1{} }}}}", chain.repeat(n))).is_some());
            assert!(end_of(format!("{{% set a = 1{} %}}", chain.repeat(n))).is_some());
        }
    }
    let elif = "{% elif 0 %}".repeat(1000);
    assert!(
        end_of(format!("{{% if 0 %}}{elif}{{% endif %}}"))
            .unwrap()
            .is_ok()
    );
}

/// r031: values that hold themselves, or one another many times, in every use.
#[test]
fn hostile_values_end_in_every_use() {
    let all = SHAPES
        .iter()
        .flat_map(|shape| USES.iter().map(move |used| (shape, used)));
    let all: Vec<_> = all.collect();
    let rounds = std::env::var("SPPO_FUZZ_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let mut random = StdRng::seed_from_u64(31);
    let chosen: Vec<_> = match rounds {
        None => all.sample(&mut random, 120).collect(),
        Some(_) => all.iter().collect(),
    };
    for ((shape, make), (used, text)) in chosen {
        let end = end_of(format!("{make}{text}"));
        assert!(end.is_some(), "{shape}, {used}: does not end");
    }
    for _ in 0..rounds.unwrap_or(20) {
        let source = mixture(&mut random);
        let end = end_of(source.clone());
        assert!(end.is_some(), "does not end: {source}");
    }
}

/// Shapes and uses at random, some inside loops or macros.
fn mixture(random: &mut StdRng) -> String {
    let mut source = String::new();
    for _ in 0..random.random_range(1..4) {
        let (_, make) = SHAPES.choose(random).unwrap();
        let (_, used) = USES.choose(random).unwrap();
        let times = random.random_range(1..5000);
        source += &match random.random_range(0..4) {
            0 => format!("{{% for k in range({times}) %}}{make}{used}{{% endfor %}}"),
            1 => format!("{{% macro m() %}}{make}{used}{{% endmacro %}}{{{{ m() ~ m() }}}}"),
            2 => format!("{make}{{% for k in range({times}) %}}{used}{{% endfor %}}"),
            _ => format!("{make}{used}"),
        };
    }
    source
}
