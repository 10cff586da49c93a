//! What the chat model's answer says: a logit that response A is the better one.

use serde_json::Value;

/// The words that stand for A better, B better, and a tie, and what a word without
/// log-probabilities is worth.
#[derive(Clone, Debug, PartialEq)]
pub struct Words {
    pub first: String,
    pub second: String,
    pub tie: String,
    /// Logit of a verdict that is read from the text.
    pub text_logit: f64,
}

impl Words {
    /// The logit of a response of the chat completions API: from the log-probabilities of the
    /// verdict's token where they are given, from the text otherwise. What an error quotes of the
    /// answer goes through `hide` before it is cut.
    pub fn read(&self, body: &str, hide: &dyn Fn(&str) -> String) -> Result<f64, String> {
        let body: Value = serde_json::from_str(body)
            .map_err(|error| format!("the answer is no JSON: {error}"))?;
        let choice = &body["choices"][0];
        if choice.is_null() {
            return Err("the answer has no choices".into());
        }
        if let Some(tokens) = choice["logprobs"]["content"].as_array()
            && let Some(logit) = self.read_logprobs(tokens)?
        {
            return Ok(logit);
        }
        match choice["message"]["content"].as_str() {
            Some(text) => self.read_text(text, hide),
            None => Err("the answer has no message content".into()),
        }
    }

    /// From the first token that is one of the words, if any is.
    fn read_logprobs(&self, tokens: &[Value]) -> Result<Option<f64>, String> {
        let is_word = |token: &Value| {
            let token = token["token"].as_str().map(bare);
            token.is_some_and(|token| {
                [&self.first, &self.second, &self.tie].contains(&&token.to_string())
            })
        };
        let Some(token) = tokens.iter().find(|token| is_word(token)) else {
            return Ok(None);
        };
        let listed = token["top_logprobs"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        let (mut first, mut second, mut tie) = (0.0, 0.0, 0.0);
        let mut least = 0.0f64;
        for entry in listed {
            let logprob = entry["logprob"].as_f64().unwrap_or(f64::NAN);
            // Rounding may lift a certain token a little above 0.
            if logprob.is_nan() || logprob > 1e-3 {
                return Err(format!("a log-probability is {}", entry["logprob"]));
            }
            least = least.min(logprob);
            match entry["token"].as_str().map(bare) {
                Some(word) if word == self.first => first += logprob.exp(),
                Some(word) if word == self.second => second += logprob.exp(),
                Some(word) if word == self.tie => tie += logprob.exp(),
                _ => {}
            }
        }
        if first + second + tie == 0.0 {
            return Ok(None);
        }
        // A word that is not listed is at most as likely as the last one that is.
        let floor = least.exp().max(1e-9);
        let half = tie / 2.0;
        Ok(Some(
            ((first + half).max(floor) / (second + half).max(floor)).ln(),
        ))
    }

    /// From a text that is one of the words, or holds one as `[[word]]`.
    fn read_text(&self, text: &str, hide: &dyn Fn(&str) -> String) -> Result<f64, String> {
        let value = |word: &str| match word {
            word if word == self.first => Some(self.text_logit),
            word if word == self.second => Some(-self.text_logit),
            word if word == self.tie => Some(0.0),
            _ => None,
        };
        if let Some(logit) = value(bare(text)) {
            return Ok(logit);
        }
        let marked = text
            .split("[[")
            .skip(1)
            .filter_map(|part| part.split_once("]]"));
        let mut verdicts: Vec<f64> = marked.filter_map(|(word, _)| value(word.trim())).collect();
        verdicts.dedup();
        match verdicts.as_slice() {
            [one] => Ok(*one),
            _ => {
                let start: String = hide(text).chars().take(80).collect();
                Err(format!(
                    "the answer {start:?} is none of {:?}, {:?} and {:?}",
                    self.first, self.second, self.tie
                ))
            }
        }
    }
}

/// A word without the spaces, brackets, quotes and stops around it.
fn bare(token: &str) -> &str {
    token.trim_matches(|c: char| c.is_whitespace() || "[]()\"'`*.:▁".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn words() -> Words {
        Words {
            first: "A".into(),
            second: "B".into(),
            tie: "C".into(),
            text_logit: 3.0,
        }
    }

    fn read(body: &str) -> Result<f64, String> {
        words().read(body, &str::to_string)
    }

    fn text(text: &str) -> Result<f64, String> {
        read(&json!({"choices": [{"message": {"content": text}}]}).to_string())
    }

    fn listed(entries: &[(&str, f64)]) -> Result<f64, String> {
        let top: Vec<Value> = entries
            .iter()
            .map(|(token, logprob)| json!({"token": token, "logprob": logprob}))
            .collect();
        let token = json!({"token": entries[0].0, "logprob": entries[0].1, "top_logprobs": top});
        let choice =
            json!({"message": {"content": "B"}, "logprobs": {"content": [{"token": "\n"}, token]}});
        read(&json!({ "choices": [choice] }).to_string())
    }

    #[test]
    fn words_in_the_text() {
        for (answer, logit) in [
            ("A", 3.0),
            (" b.", f64::NAN),
            ("\n**B**", -3.0),
            ("C", 0.0),
            ("Both are fine, but [[A]] is shorter.", 3.0),
            ("[[A]] or [[B]]", f64::NAN),
            ("A good answer would be B", f64::NAN),
            ("", f64::NAN),
        ] {
            match text(answer) {
                Ok(found) => assert_eq!(found, logit, "{answer}"),
                Err(error) => assert!(logit.is_nan() && error.contains("is none of"), "{error}"),
            }
        }
    }

    #[test]
    fn log_probabilities_come_first() {
        let found = listed(&[("A", -0.5), (" B", -1.5), ("B", -2.5), ("x", -3.0)]).unwrap();
        let expected = -0.5 - ((-1.5f64).exp() + (-2.5f64).exp()).ln();
        assert!((found - expected).abs() < 1e-12);
        let alone = listed(&[("A", -0.01), ("x", -5.0)]).unwrap();
        assert!((alone - 4.99).abs() < 1e-12);
        let tie = listed(&[("C", -0.1), ("A", -4.0), ("B", -4.0)]).unwrap();
        assert!(tie.abs() < 1e-12);
        // No verdict among them: the text decides.
        assert_eq!(listed(&[("x", -0.1)]).unwrap(), -3.0);
    }

    #[test]
    fn lies_are_refused() {
        assert!(
            listed(&[("A", 2.0)])
                .unwrap_err()
                .contains("log-probability is 2")
        );
        assert!(read("<html>").unwrap_err().contains("no JSON"));
        let none = read("{\"choices\": []}").unwrap_err();
        assert!(none.contains("no choices"));
        let empty = read("{\"choices\": [{}]}").unwrap_err();
        assert!(empty.contains("no message content"));
    }
}
