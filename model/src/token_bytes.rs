//! What a single token of a vocabulary stands for, in bytes: a token need not be whole characters.

use serde_json::Value;

/// How a vocabulary writes bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alphabet {
    /// GPT-2's: each byte is a printable character.
    ByteLevel,
    /// SentencePiece's: `▁` is a space, `<0x0A>` a byte.
    Pieces,
}

impl Alphabet {
    /// That of a tokenizer.json's decoder.
    pub(crate) fn of(decoder: &Value) -> Self {
        match decoder.to_string().contains("\"ByteLevel\"") {
            true => Self::ByteLevel,
            false => Self::Pieces,
        }
    }

    /// The bytes of a token that is no added one.
    pub(crate) fn bytes(self, token: &str) -> Vec<u8> {
        match self {
            Self::ByteLevel => {
                let bytes = token.chars().map(byte_of).collect::<Option<Vec<u8>>>();
                bytes.unwrap_or_else(|| token.as_bytes().to_vec())
            }
            Self::Pieces => match written_byte(token) {
                Some(byte) => vec![byte],
                None => token.replace('\u{2581}', " ").into_bytes(),
            },
        }
    }
}

/// The byte that a character of GPT-2's alphabet stands for: printable ones of Latin-1 for
/// themselves, the others for those from 256 on, in order.
fn byte_of(letter: char) -> Option<u8> {
    let printable = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let code = u32::from(letter);
    match u8::try_from(code) {
        Ok(byte) => printable(byte).then_some(byte),
        Err(_) => {
            let mut others = (0..=255u8).filter(|&byte| !printable(byte));
            others.nth((code - 256) as usize)
        }
    }
}

/// Reads `<0x0A>`.
fn written_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let two = hex.len() == 2 && hex.bytes().all(|digit| digit.is_ascii_hexdigit());
    u8::from_str_radix(hex, 16).ok().filter(|_| two)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_letter() {
        let letters = (0..1000).filter_map(char::from_u32);
        let mut bytes: Vec<u8> = letters.filter_map(byte_of).collect();
        bytes.sort();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(Alphabet::ByteLevel.bytes("ĠaĊâĤ"), b" a\n\xe2\x82");
    }

    #[test]
    fn pieces() {
        assert_eq!(Alphabet::Pieces.bytes("\u{2581}the"), b" the");
        assert_eq!(Alphabet::Pieces.bytes("<0xE2>"), b"\xe2");
        assert_eq!(Alphabet::Pieces.bytes("<0x+1>"), b"<0x+1>");
    }
}
