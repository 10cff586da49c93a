//! Text as it streams: whole characters, and never a stop string or the beginning of one.

use crate::tokenizer::{StreamDecoder, Tokenizer, TokenizerError};

/// The text of one response under way.
#[derive(Clone, Debug)]
pub struct TextStream {
    decoder: StreamDecoder,
    stop: Vec<String>,
    /// Decoded, but it may be the beginning of a stop string.
    held: String,
    /// Given out.
    text: String,
    stopped: bool,
    /// Tokens that come before a stop string counts.
    before: usize,
}

impl TextStream {
    /// An empty text that ends before the first of `stop` (none of them empty) that is written after
    /// the first `min_tokens` tokens.
    pub fn new(stop: Vec<String>, min_tokens: usize) -> Self {
        Self {
            decoder: StreamDecoder::new(true),
            stop,
            held: String::new(),
            text: String::new(),
            stopped: false,
            before: min_tokens,
        }
    }

    /// Takes a token; the text that is final now.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<String, TokenizerError> {
        if self.stopped {
            return Ok(String::new());
        }
        let new = self.decoder.push(tokenizer, token)?;
        if self.before > 0 {
            self.before -= 1;
            self.text += &new;
            return Ok(new);
        }
        Ok(self.add(&new))
    }

    /// Ends the text; what was held back.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String, TokenizerError> {
        if self.stopped {
            return Ok(String::new());
        }
        let new = self.decoder.finish(tokenizer)?;
        let mut last = self.add(&new);
        let rest = std::mem::take(&mut self.held);
        self.text += &rest;
        last += &rest;
        Ok(last)
    }

    /// Whether a stop string was written.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// All text given out.
    pub fn text(&self) -> &str {
        &self.text
    }

    fn add(&mut self, new: &str) -> String {
        self.held += new;
        let found = self.stop.iter().filter_map(|s| self.held.find(s)).min();
        let end = found.unwrap_or_else(|| self.held.len() - self.possible_stop());
        let given: String = self.held.drain(..end).collect();
        if found.is_some() {
            self.stopped = true;
            self.held.clear();
        }
        self.text += &given;
        given
    }

    /// Bytes at the end that a stop string begins with.
    fn possible_stop(&self) -> usize {
        let of = |stop: &String| {
            let ends = stop.char_indices().map(|(i, _)| i).rev();
            ends.into_iter()
                .find(|&i| self.held.ends_with(&stop[..i]))
                .unwrap_or(0)
        };
        self.stop.iter().map(of).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stop: &[&str], parts: &[&str]) -> (Vec<String>, TextStream) {
        let mut stream = TextStream::new(stop.iter().map(|s| s.to_string()).collect(), 0);
        let given = parts.iter().map(|p| stream.add(p)).collect();
        (given, stream)
    }

    #[test]
    fn a_stop_string_across_parts_is_never_shown() {
        let (given, stream) = run(&["END"], &["an E", "N", "D of"]);
        assert_eq!(given, ["an ", "", ""]);
        assert!(stream.stopped() && stream.text() == "an ");
    }

    #[test]
    fn what_only_looked_like_a_stop_string_comes_later() {
        let (given, stream) = run(&["END", "é!"], &["E", "N", "x é", "?"]);
        assert_eq!(given, ["", "", "ENx ", "é?"]);
        assert!(!stream.stopped());
    }

    #[test]
    fn the_first_of_several_wins_and_overlaps_are_seen() {
        let (given, stream) = run(&["aab", "b"], &["aa", "aab"]);
        assert_eq!(given.concat(), "aa");
        assert!(stream.stopped());
    }
}
