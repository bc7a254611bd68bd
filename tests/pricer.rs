//! What the example `pricer` computes beside this library.

#[path = "../examples/support/tfidf.rs"]
mod tfidf;
#[allow(dead_code)]
#[path = "../examples/support/wine.rs"]
mod wine;

use tfidf::Ridge;
use wine::{Score, Wine, first_number};

#[test]
fn numbers_of_answers() {
    for (answer, number) in [
        ("80", Some(80.0)),
        (" $1,234.50 a bottle", Some(1234.5)),
        ("80.", Some(80.0)),
        ("19.99.5", Some(19.99)),
        ("20, 30 or 40", Some(20.0)),
        ("20,30", Some(20.0)),
        ("1,2345", Some(1.0)),
        ("about 1,234,567é", Some(1_234_567.0)),
        ("I cannot say.", None),
        ("", None),
    ] {
        assert_eq!(first_number(answer), number, "{answer}");
    }
}

#[test]
fn scores() {
    let wines = [10.0, 30.0].map(|price| Wine { text: String::new(), price });
    let score = Score::new(&wines, &[20.0, 30.0]);
    assert_eq!(score.mae, 5.0);
    assert!((score.rmsle - (21f64 / 11.0).ln() / 2f64.sqrt()).abs() < 1e-12);
}

/// The guesses of scikit-learn 1.9.1's `TfidfVectorizer(token_pattern=r"\w+", ngram_range=..)` and
/// `Ridge(penalty, fit_intercept=False)` on `y - y.mean()`.
#[test]
fn ridge_is_that_of_scikit_learn() {
    let texts = ["A red wine", "a white wine, a dry one", "red port", "White port 10 years"];
    let y = [1.0, 2.0, 4.0, 5.5];
    let unseen = ["dry red port", "an old wine", "gin"];
    for (pairs, penalty, expected) in [
        (false, 1.0, [3.325109706619417, 2.3989738974656385, 3.125]),
        (true, 0.1, [3.6700238706357604, 2.195569199193873, 3.125]),
    ] {
        let ridge = Ridge::fit(&texts, &y, pairs, penalty);
        for (text, expected) in unseen.iter().zip(expected) {
            let guess = ridge.guess(text);
            assert!((guess - expected).abs() < 1e-5, "{text}: {guess} instead of {expected}");
        }
    }
}
