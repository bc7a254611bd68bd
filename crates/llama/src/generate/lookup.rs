//! Drafts of a text's next tokens, looked up in the text itself: prompt lookup decoding (Saxena, 2023).

/// Longest run of last tokens that is looked up.
const LONGEST: usize = 3;

/// At most `count` tokens that once followed what the text ends with: the last three tokens, or else two, or one, where they
/// stand for the last time before the end.
pub(super) fn draft(text: &[u32], count: usize) -> &[u32] {
    if count == 0 {
        return &[];
    }
    for length in (1..=LONGEST.min(text.len().saturating_sub(1))).rev() {
        let (before, end) = (&text[..text.len() - 1], &text[text.len() - length..]);
        if let Some(at) = before.windows(length).rposition(|run| run == end) {
            let rest = &text[at + length..];
            return &rest[..rest.len().min(count)];
        }
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::draft;

    #[test]
    fn what_followed_the_last_tokens_is_the_draft() {
        assert_eq!(draft(&[1, 2, 3, 4, 5, 9, 2, 3], 2), [4, 5]);
        // The longest run decides, and of several the last one.
        assert_eq!(draft(&[7, 2, 3, 8, 1, 2, 3, 4, 6, 3, 5, 1, 2, 3], 3), [4, 6, 3]);
        assert_eq!(draft(&[2, 3, 4, 2, 3, 5, 2, 3], 4), [5, 2, 3]);
        // A run that repeats itself.
        assert_eq!(draft(&[5, 5, 5], 4), [5]);
        for text in [&[][..], &[1], &[1, 2, 3]] {
            assert!(draft(text, 3).is_empty(), "{text:?}");
        }
        assert!(draft(&[1, 1], 0).is_empty());
    }
}
