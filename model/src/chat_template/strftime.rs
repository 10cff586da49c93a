//! Dates as Python's `strftime` writes them on Linux, in the C locale: what transformers gives to
//! chat templates as `strftime_now`.

use chrono::{Datelike, NaiveDate};

/// Widest field; more only wastes memory.
const MAX_WIDTH: usize = 256;
/// Longest text that one format may give.
const MAX_TEXT: usize = 1 << 16;

/// One directive: `%`, flags, a width, a modifier and its letter.
struct Directive {
    flag: Option<char>,
    upper: bool,
    swap: bool,
    width: usize,
    letter: char,
}

/// `date`, at midnight and without a time zone, in a `strftime` format. What Python does not know
/// stays as it is written, as there; an error is a text that would be too long.
pub(super) fn strftime(date: NaiveDate, format: &str) -> Result<String, String> {
    let mut text = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        text += &rest[..at];
        rest = &rest[at..];
        let (directive, length) = Directive::read(rest);
        let written = match directive {
            Some(directive) => directive.write(date)?,
            None => None,
        };
        match written {
            Some(written) => text += &written,
            None => text += &rest[..length],
        }
        rest = &rest[length..];
        if text.len() > MAX_TEXT {
            return Err(format!("it writes more than {MAX_TEXT} bytes"));
        }
    }
    text += rest;
    Ok(text)
}

impl Directive {
    /// The directive at the start of `text`, which begins with `%`, and its length in bytes; none
    /// where the text ends before its letter.
    fn read(text: &str) -> (Option<Self>, usize) {
        let mut found = Self {
            flag: None,
            upper: false,
            swap: false,
            width: 0,
            letter: '%',
        };
        let mut flags_over = false;
        for (at, letter) in text.char_indices().skip(1) {
            match letter {
                '_' | '-' | '0' | '+' if !flags_over => found.flag = Some(letter),
                '^' if !flags_over => found.upper = true,
                '#' if !flags_over => found.swap = true,
                '0'..='9' => {
                    flags_over = true;
                    let digit = letter.to_digit(10).unwrap_or(0) as usize;
                    found.width = found.width.saturating_mul(10).saturating_add(digit);
                }
                'E' | 'O' => flags_over = true,
                _ => {
                    found.letter = letter;
                    return (Some(found), at + letter.len_utf8());
                }
            }
        }
        (None, text.len())
    }

    /// Its text; none for a letter that is no directive.
    fn write(&self, date: NaiveDate) -> Result<Option<String>, String> {
        if self.width > MAX_WIDTH {
            return Err(format!("its width {} is above {MAX_WIDTH}", self.width));
        }
        let whole = |format: &str| strftime(date, format).map(|text| self.text(text, ' '));
        let week = date.iso_week();
        let weekday = date.weekday();
        let (sunday, monday) = (
            weekday.num_days_from_sunday(),
            weekday.num_days_from_monday(),
        );
        let of_weeks = |day: u32| i64::from((date.ordinal() + 6 - day) / 7);
        let year = i64::from(date.year());
        let written = match self.letter {
            '%' => "%".into(),
            'n' => "\n".into(),
            't' => "\t".into(),
            'a' => self.name(date, "%a"),
            'A' => self.name(date, "%A"),
            'b' | 'h' => self.name(date, "%b"),
            'B' => self.name(date, "%B"),
            'd' => self.number(date.day().into(), 2, '0'),
            'e' => self.number(date.day().into(), 2, ' '),
            'm' => self.number(date.month().into(), 2, '0'),
            'j' => self.number(date.ordinal().into(), 3, '0'),
            'y' => self.number(year.rem_euclid(100), 2, '0'),
            'Y' => self.number(year, 1, '0'),
            'C' => self.number(year.div_euclid(100), 2, '0'),
            'G' => self.number(week.year().into(), 1, '0'),
            'g' => self.number(i64::from(week.year()).rem_euclid(100), 2, '0'),
            'V' => self.number(week.week().into(), 2, '0'),
            'U' => self.number(of_weeks(sunday), 2, '0'),
            'W' => self.number(of_weeks(monday), 2, '0'),
            'u' => self.number(i64::from(monday) + 1, 1, '0'),
            'w' => self.number(sunday.into(), 1, '0'),
            'H' | 'M' | 'S' => self.number(0, 2, '0'),
            'k' => self.number(0, 2, ' '),
            'I' => self.number(12, 2, '0'),
            'l' => self.number(12, 2, ' '),
            'p' if self.swap => self.text("am".into(), ' '),
            'p' => self.text("AM".into(), ' '),
            'P' => self.text("am".into(), ' '),
            // Python's own: microseconds, and nothing for the zone of a time that has none.
            'f' => "000000".into(),
            'z' | 'Z' => String::new(),
            's' => {
                let seconds = date.and_time(chrono::NaiveTime::MIN).and_utc().timestamp();
                self.number(seconds, 1, '0')
            }
            'c' => whole("%a %b %e %H:%M:%S %Y")?,
            'D' | 'x' => whole("%m/%d/%y")?,
            'F' => whole("%Y-%m-%d")?,
            'r' => whole("%I:%M:%S %p")?,
            'R' => whole("%H:%M")?,
            'T' | 'X' => whole("%H:%M:%S")?,
            _ => return Ok(None),
        };
        Ok(Some(written))
    }

    /// The name of a day or a month; `format` is one that chrono knows.
    fn name(&self, date: NaiveDate, format: &str) -> String {
        let name = date.format(format).to_string();
        match self.swap {
            true => self.text(name.to_uppercase(), ' '),
            false => self.text(name, ' '),
        }
    }

    fn number(&self, number: i64, digits: usize, pad: char) -> String {
        let pad = match self.flag {
            Some('-') => return padded(number.to_string(), self.width, ' '),
            Some('_') => ' ',
            Some(_) => '0',
            None => pad,
        };
        padded(number.to_string(), digits.max(self.width), pad)
    }

    fn text(&self, text: String, pad: char) -> String {
        let text = match self.upper {
            true => text.to_uppercase(),
            false => text,
        };
        let pad = match self.flag {
            Some('0' | '+') => '0',
            _ => pad,
        };
        padded(text, self.width, pad)
    }
}

fn padded(text: String, width: usize, pad: char) -> String {
    let missing = width.saturating_sub(text.chars().count());
    let mut padded: String = std::iter::repeat_n(pad, missing).collect();
    padded += &text;
    padded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(date: (i32, u32, u32), format: &str) -> String {
        let date = NaiveDate::from_ymd_opt(date.0, date.1, date.2).unwrap();
        strftime(date, format).unwrap()
    }

    /// r060: Python's `strftime`, not chrono's. What it writes was taken from CPython 3.11 on Linux.
    #[test]
    fn dates_are_written_as_python_writes_them() {
        for (format, expected) in PYTHON {
            assert_eq!(written((2024, 7, 6), format), *expected, "{format}");
        }
        for (date, expected) in WEEKS {
            assert_eq!(written(*date, "%G %V %U %W %u %w %j %y %C"), *expected);
        }
    }

    #[test]
    fn giant_fields_are_refused() {
        let date = NaiveDate::from_ymd_opt(2024, 7, 6).unwrap();
        for format in ["%999999999999999999999d", "%257Y"] {
            assert!(strftime(date, format).unwrap_err().contains("above 256"));
        }
        let long = "%256d".repeat(1000);
        assert!(strftime(date, &long).unwrap_err().contains("more than"));
    }

    const PYTHON: &[(&str, &str)] = &[
        ("%d %b %Y", "06 Jul 2024"),
        ("%d %B %Y", "06 July 2024"),
        ("%A, %B %d, %Y", "Saturday, July 06, 2024"),
        ("%Y-%m-%d", "2024-07-06"),
        ("%-d %b %Y", "6 Jul 2024"),
        ("%e|%_d|%0e", " 6| 6|06"),
        ("%a %^a %#a %^B", "Sat SAT SAT JULY"),
        (
            "%j %-j %U %W %V %G %g %u %w",
            "188 188 26 27 27 2024 24 6 6",
        ),
        ("%H:%M:%S %I %p %P %k %l", "00:00:00 12 AM am  0 12"),
        ("%f|%z|%Z|", "000000|||"),
        (
            "%c|%x|%X|%D|%F|%T|%r|%R",
            "Sat Jul  6 00:00:00 2024|07/06/24|00:00:00|07/06/24|2024-07-06|00:00:00|12:00:00 AM|00:00",
        ),
        ("%Q %i %L", "%Q %i %L"),
        ("100%", "100%"),
        ("%%d", "%d"),
        (
            "%5Y|%_5d|%-5d|%05m|%10B|%010b",
            "02024|    6|    6|00007|      July|0000000Jul",
        ),
        ("%n%t%h %C %y", "\n\tJul 20 24"),
        ("%Ey %Od %EQ", "24 06 %EQ"),
        ("%#p %^p %s", "am AM 1720224000"),
        ("%é", "%é"),
        ("%-", "%-"),
    ];

    const WEEKS: &[((i32, u32, u32), &str)] = &[
        ((2024, 1, 1), "2024 01 00 01 1 1 001 24 20"),
        ((2024, 12, 30), "2025 01 52 53 1 1 365 24 20"),
        ((2021, 1, 3), "2020 53 01 00 7 0 003 21 20"),
        ((2023, 1, 1), "2022 52 01 00 7 0 001 23 20"),
        ((2020, 2, 29), "2020 09 08 08 6 6 060 20 20"),
        ((1999, 12, 31), "1999 52 52 52 5 5 365 99 19"),
        ((2026, 11, 27), "2026 48 47 47 5 5 331 26 20"),
    ];
}
