//! The header `Retry-After` of RFC 9110: seconds, or a date of HTTP.

use std::time::{Duration, SystemTime};

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// The pause that a server asks for; none where the header says nothing that can be read. A date
/// counts from `date`, the server's own clock, where it tells it.
pub fn retry_after(value: &str, date: Option<&str>) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<f64>() {
        // Some servers send fractions; a number of any size is a long time.
        return (seconds >= 0.0)
            .then(|| Duration::try_from_secs_f64(seconds.ceil()).unwrap_or(Duration::MAX));
    }
    let until = seconds_of(value)?;
    let now = date.and_then(seconds_of).unwrap_or_else(|| {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        since.map_or(0, |since| since.as_secs())
    });
    Some(Duration::from_secs(until.saturating_sub(now)))
}

/// Seconds since 1970 of a date in any of HTTP's three forms:
/// `Sun, 06 Nov 1994 08:49:37 GMT`, `Sunday, 06-Nov-94 08:49:37 GMT`, `Sun Nov  6 08:49:37 1994`.
fn seconds_of(text: &str) -> Option<u64> {
    let parts: Vec<&str> = text
        .split([' ', ',', '-'])
        .filter(|part| !part.is_empty())
        .collect();
    let (day, month, year, time) = match parts.as_slice() {
        [_, day, month, year, time, "GMT"] => (day, month, year, time),
        [_, month, day, time, year] => (day, month, year, time),
        _ => return None,
    };
    let month = MONTHS.iter().position(|name| name == month)? as u64 + 1;
    let day = number(day, 1, 31)?;
    let year = match (year.len(), number(year, 0, 9999)?) {
        // The second form's years: of the last or the present century, whichever is nearer.
        (2, year) => year + if year < 70 { 2000 } else { 1900 },
        (_, year) => year,
    };
    let mut clock = time.split(':');
    let mut next = |most| number(clock.next()?, 0, most);
    // A leap second is the one before.
    let (hour, minute, second) = (next(23)?, next(59)?, next(60)?.min(59));
    let days = days_before(year, month)? + day - 1;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

fn number(text: &str, least: u64, most: u64) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|_| digits)?;
    (least..=most).contains(&number).then_some(number)
}

/// Days from 1970 to the first of a month; none before 1970.
fn days_before(year: u64, month: u64) -> Option<u64> {
    // Years that begin in March have the leap day at their end.
    let (year, month) = match month {
        1 | 2 => (year.checked_sub(1)?, month + 9),
        _ => (year, month - 3),
    };
    let leap_days = year / 4 - year / 100 + year / 400;
    let days = year * 365 + leap_days + (153 * month + 2) / 5;
    // 0000-03-01 to 1970-01-01.
    days.checked_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// r021: only whole seconds below 2^32 were read, and a longer pause than a minute was cut.
    #[test]
    fn every_form_of_retry_after() {
        let seconds = |value: &str, date: Option<&str>| {
            let pause = retry_after(value, date)?;
            Some(pause.as_secs())
        };
        assert_eq!(seconds("120", None), Some(120));
        assert_eq!(seconds(" 1.2 ", None), Some(2));
        assert_eq!(retry_after("1e300", None), Some(Duration::MAX));
        assert_eq!(
            retry_after("99999999999999999999999", None),
            Some(Duration::MAX)
        );
        let now = Some("Sun, 06 Nov 1994 08:49:07 GMT");
        for date in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(seconds(date, now), Some(30), "{date}");
            assert_eq!(seconds(date, None), Some(0), "{date} is past");
        }
        assert!(seconds("Fri, 31 Dec 9999 23:59:59 GMT", None) > Some(1 << 32));
        for none in [
            "",
            "soon",
            "-1",
            "NaN",
            "Sun, 06 Nov 1994",
            "Sun, 06 Foo 1994 08:49:37 GMT",
            "Sun, 00 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 24:00:00 GMT",
            "Sun, 06 Nov 0000 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49 GMT",
        ] {
            assert_eq!(retry_after(none, None), None, "{none}");
        }
    }

    #[test]
    fn dates_count_from_1970() {
        assert_eq!(seconds_of("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(
            seconds_of("Tue, 29 Feb 2000 12:00:00 GMT"),
            Some(951_825_600)
        );
        assert_eq!(
            seconds_of("Sun, 06 Nov 1994 08:49:37 GMT"),
            Some(784_111_777)
        );
        assert_eq!(
            seconds_of("Mon, 01 Mar 2100 00:00:00 GMT"),
            Some(4_107_542_400)
        );
    }
}
