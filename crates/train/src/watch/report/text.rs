//! Text and numbers of a page.

use burn_lora_io::pictured;
use indicatif::{HumanBytes, HumanCount};
use std::time::{Duration, SystemTime};

/// Escapes text for HTML, as content or in quotes. Control characters become visible.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in pictured(text).chars() {
        match char {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            _ => out.push(char),
        }
    }
    out
}

/// Formats a number with about four digits: `0.0123`, `1.235`, `12,346`, `2e-4`.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        return "—".to_owned();
    }
    if size == 0.0 {
        return "0".to_owned();
    }
    if size >= 999.5 {
        let sign = if value < 0.0 { "-" } else { "" };
        return if size < 1e15 {
            format!("{sign}{}", HumanCount(size.round() as u64))
        } else {
            format!("{value:.3e}")
        };
    }
    if size >= 1e-3 {
        // Three digits behind the first one.
        let digits = (3 - size.log10().floor() as i32).clamp(0, 6) as usize;
        return trimmed(&format!("{value:.digits$}"));
    }
    let text = format!("{value:.3e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    format!("{}e{exponent}", trimmed(digits))
}

/// Formats a count with a comma for each thousand.
pub(super) fn count(value: usize) -> String {
    HumanCount(value as u64).to_string()
}

/// Formats bytes with a binary unit: `3.00 GiB`.
pub(super) fn bytes(bytes: f64) -> String {
    HumanBytes(bytes as u64).to_string()
}

/// Formats a time span in one or two units: `45 s`, `2 min 5 s`, `12 min`, `1 h 23 min`, `2 d 3 h`.
pub(super) fn duration(seconds: f64) -> String {
    let all = seconds.max(0.0).round() as u64;
    let (days, hours, minutes, seconds) = (all / 86_400, all / 3600 % 24, all / 60 % 60, all % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, ..10) => format!("{minutes} min {seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// Seconds since 1970, UTC.
pub(super) fn now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().as_ref().map_or(0, Duration::as_secs)
}

/// Formats seconds since 1970 as date and time: `2024-02-29 23:59 UTC`.
pub(super) fn date(seconds: u64) -> String {
    let (mut days, minutes) = (seconds / 86_400, seconds / 60 % (24 * 60));
    let leap =
        |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02} {:02}:{:02} UTC", days + 1, minutes / 60, minutes % 60)
}

/// Leaves out the zeros at the end of a fraction.
fn trimmed(text: &str) -> String {
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let cases = [
            (0.0, "0"),
            (-1.5, "-1.5"),
            (1.23456, "1.235"),
            (0.0123456, "0.01235"),
            (123.456, "123.5"),
            (999.9, "1,000"),
            (1_234_567.8, "1,234,568"),
            (0.0002, "2e-4"),
            (-0.000123456, "-1.235e-4"),
            (f64::NAN, "—"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn dates() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(1_709_251_199), "2024-02-29 23:59 UTC");
        assert_eq!(date(1_735_689_600), "2025-01-01 00:00 UTC");
    }

    #[test]
    fn durations() {
        let cases = [
            (0.4, "0 s"),
            (59.6, "1 min 0 s"),
            (725.0, "12 min"),
            (4980.0, "1 h 23 min"),
            (183_600.0, "2 d 3 h"),
        ];
        for (seconds, text) in cases {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn escapes() {
        assert_eq!(escape("<a b='\"&'>\u{1b}\0"), "&lt;a b=&#39;&quot;&amp;&#39;&gt;␛␀");
    }
}
