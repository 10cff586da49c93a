//! Numbers and text of others as people see them, in the terminal and on a page.

/// Seconds as a person says them.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..=9 => format!("{seconds:.1} s"),
        10..=119 => format!("{whole} s"),
        120..=7199 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// Three significant digits.
pub fn digits(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if !value.is_finite() => "–".into(),
        _ if size < 1e-12 => "0".into(),
        _ if !(1e-3..1e6).contains(&size) => format!("{value:.2e}"),
        _ => {
            let places = (2.0 - size.log10().floor()).clamp(0.0, 5.0) as usize;
            format!("{value:.places$}")
        }
    }
}

/// Characters that do something to a terminal or turn a line around, or that nobody sees.
pub fn is_hidden(letter: char) -> bool {
    match letter {
        '\t' | '\n' => false,
        // Soft hyphen, Arabic letter mark, Mongolian vowel separator, zero-width space.
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' => true,
        // Direction: marks, embeddings, overrides, isolates; separators of lines and paragraphs.
        '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' => true,
        // Invisible operators, isolates, deprecated marks; byte order mark; annotations; tags.
        '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' => true,
        '\u{e0000}'..='\u{e007f}' => true,
        letter => letter.is_control(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_said_as_people_do() {
        for (seconds, said) in [
            (0.25, "0.2 s"),
            (42.4, "42 s"),
            (125.0, "2 min 05 s"),
            (7260.0, "2 h 01 min"),
        ] {
            assert_eq!(duration(seconds), said);
        }
    }

    #[test]
    fn numbers_have_three_digits() {
        for (value, shown) in [
            (0.0, "0"),
            (1234.5, "1234"),
            (0.012345, "0.0123"),
            (-12.345, "-12.3"),
            (1.5e7, "1.50e7"),
            (f64::NAN, "–"),
        ] {
            assert_eq!(digits(value), shown);
        }
    }
}
