//! What a line that begins with a slash asks for.

use std::path::PathBuf;

use serde_json::Value;
use sppo_training::config::nearest;

/// A command of the conversation.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Forgets all that was said.
    Reset,
    /// Forgets the last question and its answer.
    Undo,
    /// Asks the last question again.
    Retry,
    /// Sets or, without a text, takes away what stands in front of the conversation.
    System(Option<String>),
    /// Sets a parameter of the sampling, shows all of them, or leaves one to the model.
    Set(Option<(String, Value)>),
    /// Writes the conversation to a file.
    Save(PathBuf),
    /// Takes the conversation of a file.
    Load(PathBuf),
    /// Says what there is.
    Help,
    /// Leaves.
    Quit,
}

/// Words of the commands, and what they do.
pub const COMMANDS: [(&str, &str, &str); 9] = [
    ("/reset", "", "forgets the conversation"),
    ("/undo", "", "forgets the last question and its answer"),
    ("/retry", "", "asks the last question again"),
    (
        "/system",
        "[TEXT]",
        "what stands in front of the conversation; none without TEXT",
    ),
    (
        "/set",
        "[KEY=VALUE]",
        "temperature=0.7, max_tokens=200 and the like; KEY= leaves it to the model",
    ),
    (
        "/save",
        "FILE",
        "writes the conversation, a line of messages for each model (.jsonl)",
    ),
    (
        "/load",
        "FILE",
        "goes on with the conversation of such a file",
    ),
    ("/help", "", "this list"),
    ("/quit", "", "leaves, as Ctrl-D does"),
];

/// Parameters of a request that `/set` takes.
const SETTINGS: [&str; 10] = [
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "max_tokens",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "stop",
];

impl Command {
    /// Of a line; none where it is no command. `//` begins a line of text with a slash.
    pub fn parse(line: &str) -> Option<Result<Self, String>> {
        let line = line.trim();
        if !line.starts_with('/') || line.starts_with("//") {
            return None;
        }
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        let file = || match rest {
            "" => Err(format!("{word} needs a file, such as {word} talk.jsonl")),
            path => Ok(PathBuf::from(path)),
        };
        let command = match word {
            "/reset" => Ok(Self::Reset),
            "/undo" => Ok(Self::Undo),
            "/retry" => Ok(Self::Retry),
            "/system" => Ok(Self::System((!rest.is_empty()).then(|| rest.into()))),
            "/set" if rest.is_empty() => Ok(Self::Set(None)),
            "/set" => setting(rest).map(|setting| Self::Set(Some(setting))),
            "/save" => file().map(Self::Save),
            "/load" => file().map(Self::Load),
            "/help" => Ok(Self::Help),
            "/quit" | "/exit" => Ok(Self::Quit),
            _ => Err(unknown(
                "command",
                word,
                COMMANDS.map(|(word, ..)| word).as_slice(),
            )),
        };
        let takes_more = !matches!(
            word,
            "/reset" | "/undo" | "/retry" | "/help" | "/quit" | "/exit"
        );
        Some(match command {
            Ok(_) if !rest.is_empty() && !takes_more => Err(format!(
                "{word} takes nothing behind it; a text that begins with a slash is written //"
            )),
            command => command,
        })
    }
}

/// `KEY=VALUE` of a request; null leaves the key out.
pub fn setting(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| format!("{text:?}: write KEY=VALUE, such as temperature=0.7"))?;
    let (key, value) = (key.trim(), value.trim());
    if !SETTINGS.contains(&key) {
        return Err(unknown("parameter", key, &SETTINGS));
    }
    let value = match (key, value) {
        (_, "") => Value::Null,
        ("stop", text) => text.into(),
        (_, number) => match serde_json::from_str(number) {
            Ok(Value::Number(number)) => Value::Number(number),
            _ => return Err(format!("{key} must be a number, found {number:?}")),
        },
    };
    Ok((key.into(), value))
}

fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    match nearest(name, known.iter().copied()) {
        Some(near) => format!("unknown {what} {name}; did you mean {near}?"),
        None => format!("unknown {what} {name}; known are {}", known.join(", ")),
    }
}

/// The list that `/help` shows.
pub fn help() -> String {
    let mut text = String::new();
    for (word, rest, what) in COMMANDS {
        text += &format!("  {:22} {what}\n", format!("{word} {rest}"));
    }
    text + "Text that is pasted may have several lines; a line that ends in \\ goes on in the next, and one\n\
            that begins with // begins with a slash. Ctrl-C stops an answer, twice it leaves.\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(line: &str) -> Result<Command, String> {
        Command::parse(line).unwrap_or_else(|| panic!("{line} is no command"))
    }

    #[test]
    fn commands() {
        assert_eq!(parse(" /undo "), Ok(Command::Undo));
        assert_eq!(parse("/exit"), Ok(Command::Quit));
        assert_eq!(
            parse("/system Be  brief."),
            Ok(Command::System(Some("Be  brief.".into())))
        );
        assert_eq!(parse("/system"), Ok(Command::System(None)));
        assert_eq!(
            parse("/save my talk.jsonl"),
            Ok(Command::Save("my talk.jsonl".into()))
        );
        let set = |key: &str, value| Ok(Command::Set(Some((key.into(), value))));
        assert_eq!(
            parse("/set temperature=0.7"),
            set("temperature", json!(0.7))
        );
        assert_eq!(parse("/set max_tokens = 20"), set("max_tokens", json!(20)));
        assert_eq!(parse("/set stop=a b"), set("stop", json!("a b")));
        assert_eq!(parse("/set seed="), set("seed", Value::Null));
        for text in ["hello", "//etc", "", "a /undo"] {
            assert_eq!(Command::parse(text), None, "{text}");
        }
    }

    #[test]
    fn mistakes_say_what_is_meant() {
        for (line, part) in [
            ("/rety", "did you mean /retry?"),
            ("/foo", "known are /reset"),
            ("/set temprature=1", "did you mean temperature?"),
            ("/set temperature", "write KEY=VALUE"),
            ("/set temperature=hot", "must be a number"),
            ("/save", "needs a file"),
            ("/undo it", "written //"),
        ] {
            let message = parse(line).unwrap_err();
            assert!(message.contains(part), "{line}: {message}");
        }
        assert!(COMMANDS.iter().all(|(word, ..)| help().contains(word)));
    }
}
