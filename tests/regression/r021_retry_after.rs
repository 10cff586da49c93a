//! `Retry-After` was read as a small whole number only, and cut to a minute in silence.

use std::time::{Duration, Instant};

use super::server::{VERDICT, judge, place, start};

#[test]
fn the_server_is_given_the_time_it_asks_for() {
    // By its own clock, which is wrong.
    let dated = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\nRetry-After: Sun, 06 Nov 1994 08:49:39 GMT";
    for header in ["Retry-After: 2", "Retry-After: 1.3", dated] {
        let (port, _) = start(move |number, _| match number {
            0 => (format!("429 Slowly\r\n{header}"), "{}".into()),
            _ => ("200 OK".into(), VERDICT.into()),
        });
        let place = place(&format!("http://127.0.0.1:{port}/v1"), "");
        let begun = Instant::now();
        let (code, text) = judge(&place, "");
        assert_eq!(code, Some(0), "{text}");
        assert!(begun.elapsed() >= Duration::from_secs(2), "{header}");
    }
}

#[test]
fn a_pause_beyond_all_measure_ends_it() {
    for value in [
        "86400",
        "18446744073709551616",
        "1e300",
        "Fri, 31 Dec 9999 23:59:59 GMT",
    ] {
        let (port, _) = start(move |number, _| match number {
            0 => ("200 OK".into(), VERDICT.into()),
            _ => (
                format!("503 Busy\r\nRetry-After: {value}"),
                "come again".into(),
            ),
        });
        let place = place(&format!("http://127.0.0.1:{port}/v1"), "");
        let (code, text) = judge(&place, "");
        assert_eq!(code, Some(1), "{text}");
        for part in ["prompt_id `a`", "asks to wait", "Retry-After", "come again"] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(place.rows("judged.jsonl.cache.jsonl").len(), 1, "{text}");
    }
}
