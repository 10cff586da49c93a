//! Text from outside (answers of servers, contents of files, their names, settings) as a terminal
//! may see it: what would move the cursor, change colours or turn the line around is escaped.

use std::borrow::Cow;
use std::fmt::Write as _;

use sppo_training::shown::is_hidden;

/// `text` with control characters as `\r`, `\u{1b}` and the like. It may have several lines: all
/// but the first are indented, so that none can pass for a line of the program's own.
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.contains(|c| c == '\n' || is_hidden(c)) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    // The ends of Windows' lines are ends of lines.
    let text = text.trim_end_matches("\r\n").trim_end_matches('\n');
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\r' if letters.peek() == Some(&'\n') => {}
            '\n' => shown.push_str("\n    "),
            letter => push(&mut shown, letter),
        }
    }
    Cow::Owned(shown)
}

/// The same for the program's own results, whose lines stay lines.
pub fn visible_lines(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\n' => shown.push('\n'),
            letter => push(&mut shown, letter),
        }
    }
    shown
}

/// JSON text that means the same and shows no such character; JSON has them within strings only.
pub fn visible_json(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        if !is_hidden(letter) {
            shown.push(letter);
            continue;
        }
        for unit in letter.encode_utf16(&mut [0; 2]) {
            let _ = write!(shown, "\\u{unit:04x}");
        }
    }
    shown
}

/// The settings of the terminal at which this process reads.
#[cfg(unix)]
static SETTINGS: std::sync::OnceLock<libc::termios> = std::sync::OnceLock::new();

/// Keeps the terminal's settings for [`restore`].
#[cfg(all(unix, feature = "serve"))]
pub fn remember() {
    // SAFETY: the struct is valid when zeroed, and the call fills it or fails.
    let settings = unsafe {
        let mut settings: libc::termios = std::mem::zeroed();
        (libc::tcgetattr(libc::STDIN_FILENO, &mut settings) == 0).then_some(settings)
    };
    if let Some(settings) = settings {
        let _ = SETTINGS.set(settings);
    }
}

/// Gives the terminal its settings back, from whatever a line editor made of them.
#[cfg(unix)]
pub fn restore() {
    use std::io::Write;

    let Some(settings) = SETTINGS.get() else {
        return;
    };
    // SAFETY: the settings are those that the call of `remember` filled.
    unsafe {
        libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, settings);
    }
    // Pasted text is no longer marked.
    let _ = std::io::stdout().write_all(b"\x1b[?2004l\n");
}

#[cfg(all(not(unix), feature = "serve"))]
pub fn remember() {}

#[cfg(not(unix))]
pub fn restore() {}

fn push(shown: &mut String, letter: char) {
    match is_hidden(letter) {
        true => shown.extend(letter.escape_default()),
        false => shown.push(letter),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// r023: what a server, a file or a name holds reached the terminal as it is.
    #[test]
    fn nothing_from_outside_moves_the_terminal() {
        for (text, shown) in [
            ("plain é 漢字 👩‍👩‍👧 \t.", "plain é 漢字 👩‍👩‍👧 \t."),
            ("\u{1b}[2J\u{1b}]0;x\u{7}", "\\u{1b}[2J\\u{1b}]0;x\\u{7}"),
            (
                "a\rb\u{8}\u{7f}\u{9b}1m\0",
                "a\\rb\\u{8}\\u{7f}\\u{9b}1m\\u{0}",
            ),
            (
                "gpj.\u{202e}exe\u{2066}\u{200f}",
                "gpj.\\u{202e}exe\\u{2066}\\u{200f}",
            ),
            ("a\nerror: b\r\nc\n", "a\n    error: b\n    c"),
        ] {
            assert_eq!(visible(text), shown);
        }
        assert_eq!(visible_lines("a\u{1b}\nb\n"), "a\\u{1b}\nb\n");
    }

    #[test]
    fn json_stays_what_it_is() {
        let value = serde_json::json!({"a": "\u{202e}\u{1b}\u{9b}\u{e0041}é\n"});
        let text = visible_json(&value.to_string());
        assert!(
            text.contains("\\u202e\\u001b\\u009b\\udb40\\udc41é\\n"),
            "{text}"
        );
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&text).unwrap(),
            value
        );
    }
}
