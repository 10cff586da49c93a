//! Texts that nobody may see, in whatever form the other side sends them back.

use std::collections::HashSet;
use std::ops::Range;

/// Stands where something was hidden.
const HIDDEN: &str = "[key]";
/// Characters of a secret that are hidden wherever they stand together.
const PIECE: usize = 5;
/// As a word of its own, so short a piece is hidden too: the end of `sk-…wxyz`.
const WORD: usize = 4;
/// Bytes of a message that are looked at; no more of it is ever shown.
const MOST_BYTES: usize = 16 << 10;
/// How often escapes within escapes are undone.
const LAYERS: usize = 4;

/// Keys and passwords, as they are and as other forms of text have them. No `Debug`.
#[derive(Default)]
pub struct Secrets {
    forms: Vec<Form>,
}

/// One way to write a secret.
struct Form {
    whole: String,
    /// Every run of its characters that is hidden anywhere.
    pieces: HashSet<Vec<char>>,
    /// Length of each.
    piece: usize,
    /// Whether capitals are the same as small letters.
    folds: bool,
}

impl Form {
    fn new(text: &str, least: usize) -> Option<Self> {
        let folds = text.len() >= 16;
        let whole = fold(text, folds);
        let letters: Vec<char> = whole.chars().collect();
        let piece = least.min(letters.len());
        (piece > 0).then(|| Form {
            pieces: letters.windows(piece).map(<[char]>::to_vec).collect(),
            piece,
            folds,
            whole,
        })
    }
}

/// A character of a message and the bytes that it stands for.
type Unit = (char, Range<usize>);

impl Secrets {
    /// Adds a secret with the forms that it can come back in: itself, base64, hexadecimal. What
    /// escapes characters one by one (JSON, addresses, HTML) is undone in the message instead.
    pub fn add(&mut self, secret: &str) {
        let plain = [secret.to_string(), unescaped(secret)];
        for text in &plain[..if plain[0] == plain[1] { 1 } else { 2 }] {
            self.forms.extend(Form::new(text, PIECE));
            let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
            self.forms.extend(Form::new(&hex, 2 * PIECE));
            for offset in 0..3 {
                let standard = base64(text.as_bytes(), offset);
                let for_addresses = standard.replace('+', "-").replace('/', "_");
                // Five bytes take seven characters at least.
                self.forms.extend(Form::new(&standard, PIECE + 2));
                self.forms.extend(Form::new(&for_addresses, PIECE + 2));
            }
        }
    }

    /// The start of `message` without the secrets and without pieces of them.
    pub fn hide(&self, message: &str) -> String {
        let mut end = message.len().min(MOST_BYTES);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        let message = &message[..end];
        let units = message.char_indices();
        let mut units: Vec<Unit> = units.map(|(at, c)| (c, at..at + c.len_utf8())).collect();
        let mut hidden = vec![false; message.len()];
        for _ in 0..LAYERS {
            self.forms
                .iter()
                .for_each(|form| mark(form, &units, &mut hidden));
            let fewer = undo_escapes(&units);
            if fewer.len() == units.len() {
                break;
            }
            units = fewer;
        }
        let mut shown = String::with_capacity(message.len());
        for (at, letter) in message.char_indices() {
            match hidden[at] {
                false => shown.push(letter),
                true if at > 0 && hidden[at - 1] => {}
                true => shown.push_str(HIDDEN),
            }
        }
        shown
    }
}

/// Marks the bytes of `units` that show a piece of a secret.
fn mark(form: &Form, units: &[Unit], hidden: &mut [bool]) {
    let letters: Vec<char> = units
        .iter()
        .map(|(c, _)| {
            if form.folds {
                c.to_ascii_lowercase()
            } else {
                *c
            }
        })
        .collect();
    let mut hide = |units: &[Unit]| {
        for (_, bytes) in units {
            hidden[bytes.clone()].fill(true);
        }
    };
    for (at, window) in letters.windows(form.piece).enumerate() {
        // What is shorter than a word would be found everywhere.
        if form.piece >= WORD && form.pieces.contains(window) {
            hide(&units[at..at + form.piece]);
        }
    }
    let mut at = 0;
    for word in letters.split(|c| !c.is_ascii_alphanumeric()) {
        let text: String = word.iter().collect();
        let piece = word.len() >= WORD && form.piece <= PIECE && form.whole.contains(&text);
        if piece || (!text.is_empty() && text == form.whole) {
            hide(&units[at..at + word.len()]);
        }
        at += word.len() + 1;
    }
}

fn fold(text: &str, folds: bool) -> String {
    match folds {
        true => text.to_ascii_lowercase(),
        false => text.to_string(),
    }
}

/// `text` with its escapes undone.
fn unescaped(text: &str) -> String {
    let units = text.char_indices();
    let units: Vec<Unit> = units.map(|(at, c)| (c, at..at + c.len_utf8())).collect();
    undo_escapes(&units).into_iter().map(|(c, _)| c).collect()
}

/// One layer of escapes undone: `\/`, `\u002d`, `\x2d`, `%2D`, `&#45;`, `&#x2d;`, `&amp;`.
fn undo_escapes(units: &[Unit]) -> Vec<Unit> {
    let mut found = Vec::with_capacity(units.len());
    let mut at = 0;
    while at < units.len() {
        // The longest escape has ten characters.
        let ahead: String = units[at..].iter().take(10).map(|(c, _)| c).collect();
        let (letter, length) = escape(&ahead).unwrap_or((units[at].0, 1));
        let bytes = units[at].1.start..units[at + length - 1].1.end;
        found.push((letter, bytes));
        at += length;
    }
    found
}

/// The character that an escape at the start of `text` stands for, and the escape's length; only
/// for ASCII, which keys are made of.
fn escape(text: &str) -> Option<(char, usize)> {
    let code = |digits: &str, radix| {
        let code = u32::from_str_radix(digits, radix).ok()?;
        char::from_u32(code).filter(char::is_ascii)
    };
    let hex = |from: usize, digits: usize| {
        let letter = code(text.get(from..from + digits)?, 16)?;
        Some((letter, from + digits))
    };
    match text.as_bytes() {
        [b'\\', b'u', ..] => hex(2, 4),
        [b'\\', b'x', ..] => hex(2, 2),
        [b'\\', letter @ (b'"' | b'\\' | b'/' | b'\''), ..] => Some((char::from(*letter), 2)),
        [b'%', ..] => hex(1, 2),
        [b'&', ..] => {
            let name = text[1..].split_once(';')?.0;
            let letter = match name {
                "amp" => '&',
                "lt" => '<',
                "gt" => '>',
                "quot" => '"',
                "apos" => '\'',
                _ => match name.strip_prefix('#')?.strip_prefix(['x', 'X']) {
                    Some(digits) => code(digits, 16)?,
                    None => code(&name[1..], 10)?,
                },
            };
            Some((letter, name.len() + 2))
        }
        _ => None,
    }
}

/// The characters of base64 that `text` alone decides where `offset` other bytes stand before it.
fn base64(text: &[u8], offset: usize) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bit = |number: usize| {
        let byte = text[number / 8 - offset];
        usize::from(byte >> (7 - number % 8) & 1)
    };
    let (first, last) = ((8 * offset).div_ceil(6), 8 * (offset + text.len()) / 6);
    let digit = |number: usize| {
        let value = (6 * number..6 * number + 6).fold(0, |value, at| value << 1 | bit(at));
        char::from(DIGITS[value])
    };
    (first..last).map(digit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "sk-test/Zx9+Qw&7rTy_u2LmN\"pV";

    fn secrets() -> Secrets {
        let mut secrets = Secrets::default();
        secrets.add(KEY);
        secrets
    }

    /// Whether any five characters of the key stand in `text`.
    fn shows(text: &str) -> bool {
        let pieces = (0..=KEY.len() - PIECE).map(|at| &KEY[at..at + PIECE]);
        pieces.into_iter().any(|piece| text.contains(piece))
    }

    /// r022: the key was hidden only where a server sent the whole of it back as it is.
    #[test]
    fn a_key_is_hidden_in_every_form() {
        let each = |write: &dyn Fn(u8) -> String| KEY.bytes().map(write).collect::<String>();
        let json = serde_json::json!(KEY).to_string();
        let twice = serde_json::json!(json).to_string();
        for text in [
            KEY.to_string(),
            KEY.to_uppercase(),
            json.clone(),
            json.replace('/', "\\/"),
            twice,
            each(&|b| format!("\\u{b:04X}")),
            each(&|b| format!("%{b:02x}")),
            each(&|b| format!("%25{b:02X}")),
            each(&|b| format!("&#{b};")),
            each(&|b| format!("&#x{b:x};")),
            each(&|b| format!("{b:02x}")),
            KEY.replace('&', "&amp;").replace('"', "&quot;"),
        ] {
            let shown = secrets().hide(&format!("the key {text} is wrong"));
            // JSON's own quotes stay.
            let shown = shown.replace(['"', '\\'], "");
            assert_eq!(shown, "the key [key] is wrong", "{text}");
        }
        for from in 0..KEY.len() - PIECE {
            let shown = secrets().hide(&format!("<{}>", &KEY[from..from + PIECE + 1]));
            assert_eq!(shown, "<[key]>");
        }
        let masked = secrets().hide("Incorrect API key provided: sk-*****u2LmN and ******u2Lm.");
        assert!(!masked.contains("u2L"), "{masked}");
        // Nothing of it, nothing hidden.
        let plain = "the model `m` is unknown, see \\u0041 100%25 &amp; https://a/b?c=d é";
        assert_eq!(secrets().hide(plain), plain);
    }

    #[test]
    fn base64_is_found_behind_any_bytes() {
        assert_eq!(base64(b"Man", 0), "TWFu");
        assert_eq!(base64(b"light work", 0), "bGlnaHQgd29ya");
        for before in ["", "u", "Bearer ", "user:"] {
            let bytes = format!("{before}{KEY}==");
            let text = base64(bytes.as_bytes(), 0);
            for text in [text.clone(), text.replace('+', "-").replace('/', "_")] {
                let shown = secrets().hide(&text);
                // What is left holds no whole character of the key beside its neighbours.
                let left = shown.replace(HIDDEN, "").len();
                assert!(
                    left <= before.len() * 4 / 3 + 5 && shown.contains(HIDDEN),
                    "{shown}"
                );
            }
        }
    }

    #[test]
    fn short_and_odd_secrets() {
        let mut short = Secrets::default();
        short.add("a");
        short.add("EMPTY");
        short.add("");
        assert_eq!(
            short.hide("a bad key EMPTY, empty"),
            "[key] bad key [key], empty"
        );
        let mut escaped = Secrets::default();
        escaped.add("p%40ssw%C3%B6rd");
        assert!(!escaped.hide("found p@ssw and p%40ssw").contains("ssw"));
        let long = format!("{}{KEY}", "é".repeat(MOST_BYTES));
        assert!(!shows(&secrets().hide(&long)));
        assert_eq!(Secrets::default().hide(KEY), KEY);
    }
}
