//! How a price is written as the answer of a model, and read from what it answers.

use crate::wine::{Wine, first_number};
use clap::ValueEnum;

/// Number format of a price.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Dollars: 80
    Dollars,
    /// Dollars in four digits: 0080
    Padded,
    /// A hundred times the natural logarithm, in three digits: 438. The digits mean the same error in
    /// proportion for each price.
    Log,
}

impl Format {
    /// Text before the price.
    pub fn prompt(self, wine: &Wine) -> String {
        let (question, answer) = match self {
            Self::Dollars => ("How much does this wine cost, to the nearest dollar?", "Price is $"),
            Self::Padded => ("How much does this wine cost, in four digits?", "Price is $"),
            Self::Log => ("What is the logarithm of this wine's price?", "It is "),
        };
        format!("{question}\n\n{}\n\n{answer}", wine.text)
    }

    /// The price as text.
    pub fn write(self, price: f64) -> String {
        match self {
            Self::Dollars => format!("{price:.0}"),
            Self::Padded => format!("{price:04.0}"),
            Self::Log => format!("{:03.0}", 100.0 * price.max(1.0).ln()),
        }
    }

    /// The price in a text, if it has a number.
    pub fn read(self, text: &str) -> Option<f64> {
        let number = first_number(text)?;
        Some(match self {
            Self::Dollars | Self::Padded => number,
            // Three digits end at $21,807.
            Self::Log => (number.min(999.0) / 100.0).exp(),
        })
    }
}
