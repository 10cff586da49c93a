//! What ends an assistant's turn.

/// What ends an assistant's turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndOfTurn {
    /// What training puts behind a response: what the template writes behind it, through the token
    /// that ends the turn.
    pub ids: Vec<u32>,
    /// How many of them, from the first, stand before that token (a space or a line break).
    pub lead: usize,
    /// At which generation stops.
    pub stop: Stop,
    /// Whether the template writes it; else it is the tokenizer's or the configs' end of sequence.
    pub from_template: bool,
}

/// What generation stops at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A token.
    Token(u32),
    /// A text of several ordinary tokens.
    Text(String),
}

impl EndOfTurn {
    /// A token alone, which the template does not write.
    pub fn of_token(id: u32) -> Self {
        Self {
            ids: vec![id],
            lead: 0,
            stop: Stop::Token(id),
            from_template: false,
        }
    }

    /// The token that generation stops at, where it is one.
    pub fn token(&self) -> Option<u32> {
        match self.stop {
            Stop::Token(id) => Some(id),
            Stop::Text(_) => None,
        }
    }

    /// What is missing behind a response of `ids` that ends its turn: nothing where it holds the
    /// end already, all but the lead where it holds that.
    pub fn missing(&self, ids: &[u32]) -> &[u32] {
        let (lead, end) = self.ids.split_at(self.lead);
        match (ids.ends_with(end), ids.ends_with(lead)) {
            (true, _) => &[],
            (false, true) => end,
            (false, false) => &self.ids,
        }
    }
}
