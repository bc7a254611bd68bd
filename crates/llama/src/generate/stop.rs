//! Detection of stop strings in text that arrives in parts.

/// Filter that holds text back while it may be the beginning of a stop string.
#[derive(Default)]
pub(super) struct StopText {
    pub stops: Vec<String>,
    held: String,
}

/// Result of pushing text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Text that can be released.
    Go(String),
    /// A stop string was found; the text before it.
    Stop(String),
}

impl StopText {
    /// Adds text.
    pub fn push(&mut self, text: &str) -> Found {
        self.held.push_str(text);
        let first = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = first {
            self.held.truncate(at);
            return Found::Stop(std::mem::take(&mut self.held));
        }
        // The first place from which the text may be the beginning of a stop string.
        let open = |(at, _): &(usize, char)| {
            self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]))
        };
        let at = self.held.char_indices().find(open).map_or(self.held.len(), |(at, _)| at);
        let rest = self.held.split_off(at);
        Found::Go(std::mem::replace(&mut self.held, rest))
    }

    /// Takes the text still held back.
    pub fn take(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginnings_are_held_back() {
        let stops = ["</end>".to_owned(), "\n\n".to_owned()];
        let stopping = |stops: &[String]| StopText { stops: stops.to_vec(), held: String::new() };
        let mut text = stopping(&stops);
        let go = |text: &str| Found::Go(text.into());
        assert_eq!(text.push("a </e"), go("a "));
        assert_eq!(text.push("x\n"), go("</ex"));
        assert_eq!(text.push("b</en"), go("\nb"));
        assert_eq!(text.push("d>c"), Found::Stop(String::new()));
        let mut text = stopping(&stops);
        assert_eq!(text.push("é</"), go("é"));
        assert_eq!(text.take(), "</");
        assert_eq!(stopping(&[]).push("a"), go("a"));
    }
}
