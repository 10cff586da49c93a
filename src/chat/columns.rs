//! Texts that grow beside each other, written row by row.

use unicode_width::UnicodeWidthChar;

/// Between two columns.
const GAP: &str = " │ ";

/// Texts of several writers, each in a column.
pub struct Columns {
    width: usize,
    columns: Vec<Column>,
}

#[derive(Default)]
struct Column {
    /// Lines that are whole and not written yet.
    lines: std::collections::VecDeque<String>,
    open: String,
    over: bool,
}

impl Columns {
    /// So many of them on a terminal of this width; none where that is too narrow.
    pub fn new(count: usize, terminal: usize) -> Option<Self> {
        let gaps = GAP.chars().count() * count.saturating_sub(1);
        let width = terminal.checked_sub(gaps)? / count.max(1);
        (width >= 20).then(|| Self {
            width,
            columns: (0..count).map(|_| Column::default()).collect(),
        })
    }

    /// Adds to a column; a text of none ends it.
    pub fn push(&mut self, index: usize, text: Option<&str>) {
        let (width, column) = (self.width, &mut self.columns[index]);
        match text {
            Some(text) => text.chars().for_each(|letter| column.push(letter, width)),
            None => {
                column.over = true;
                let last = std::mem::take(&mut column.open);
                if !last.is_empty() {
                    column.lines.push_back(last);
                }
            }
        }
    }

    /// The rows that no column will change any more.
    pub fn rows(&mut self) -> String {
        let mut text = String::new();
        loop {
            let ready = |column: &Column| column.over || !column.lines.is_empty();
            let some = self.columns.iter().any(|column| !column.lines.is_empty());
            if !some || !self.columns.iter().all(ready) {
                return text;
            }
            let width = self.width;
            let cells = self.columns.iter_mut().map(|column| {
                let line = column.lines.pop_front().unwrap_or_default();
                let blank = width.saturating_sub(width_of(&line));
                format!("{line}{}", " ".repeat(blank))
            });
            let row = cells.collect::<Vec<_>>().join(GAP);
            text += row.trim_end();
            text.push('\n');
        }
    }
}

impl Column {
    fn push(&mut self, letter: char, width: usize) {
        match letter {
            '\n' => self.lines.push_back(std::mem::take(&mut self.open)),
            '\t' => (0..4).for_each(|_| self.push(' ', width)),
            letter => {
                self.open.push(letter);
                if width_of(&self.open) > width {
                    self.wrap();
                }
            }
        }
    }

    /// Ends the line before the word that does not fit, or within it where it is as long as a line.
    fn wrap(&mut self) {
        let last = self.open.char_indices().last().map_or(0, |(at, _)| at);
        let (end, next) = match self.open.rfind(' ') {
            Some(space) if !self.open[..space].trim().is_empty() => (space, space + 1),
            _ => (last, last),
        };
        let rest = self.open[next..].to_string();
        self.open.truncate(end);
        let line = std::mem::replace(&mut self.open, rest);
        self.lines.push_back(line);
    }
}

fn width_of(text: &str) -> usize {
    text.chars().map(|letter| letter.width().unwrap_or(0)).sum()
}

/// The text cut to a width, its end kept: of paths that tells most.
pub fn end_of(text: &str, width: usize) -> String {
    if width_of(text) <= width {
        return text.into();
    }
    let mut kept = std::collections::VecDeque::new();
    let mut left = width.saturating_sub(1);
    for letter in text.chars().rev() {
        let Some(rest) = left.checked_sub(letter.width().unwrap_or(0)) else {
            break;
        };
        left = rest;
        kept.push_front(letter);
    }
    format!("…{}", kept.into_iter().collect::<String>())
}

impl Columns {
    /// A row with the names of the columns, and a line below it.
    pub fn head(&self, names: &[String]) -> String {
        let cells = names.iter().map(|name| {
            let name = end_of(name, self.width);
            let blank = self.width.saturating_sub(width_of(&name));
            format!("{name}{}", " ".repeat(blank))
        });
        let names = cells.collect::<Vec<_>>().join(GAP);
        let line = vec!["─".repeat(self.width); self.columns.len()].join("─┼─");
        format!("{}\n{line}\n", names.trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_when_they_are_whole() {
        let mut columns = Columns::new(2, 43).unwrap();
        assert_eq!(columns.width, 20);
        columns.push(0, Some("one two three four five six"));
        // The other has nothing yet.
        assert_eq!(columns.rows(), "");
        columns.push(1, Some("a\nb"));
        assert_eq!(columns.rows(), "one two three four   │ a\n");
        columns.push(0, None);
        columns.push(1, None);
        assert_eq!(columns.rows(), "five six             │ b\n");
        assert_eq!(columns.rows(), "");
    }

    #[test]
    fn a_column_that_is_over_leaves_the_other_room() {
        let mut columns = Columns::new(2, 43).unwrap();
        columns.push(1, None);
        columns.push(0, Some("x\n\n日本語日本語日本語日本語\n"));
        assert_eq!(
            columns.rows(),
            "x                    │\n                     │\n日本語日本語日本語日 │\n本語                 │\n"
        );
    }

    #[test]
    fn names_keep_their_end() {
        let columns = Columns::new(2, 43).unwrap();
        let names = ["runs/default/iteration-1/model".into(), "b".into()];
        let head = columns.head(&names);
        let first = head.lines().next().unwrap();
        assert_eq!(first, "…t/iteration-1/model │ b");
        assert!(Columns::new(2, 30).is_none());
    }
}
