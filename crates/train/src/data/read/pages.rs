//! A Parquet file whose counts are checked against its size: the `parquet` crate allocates as much
//! as a file announces, and repeated rows and nulls take next to no bytes.

use super::thrift::{skim_footer, skim_pages};
use parquet::{
    bloom_filter::Sbbf,
    column::page::{Page, PageMetadata, PageReader},
    errors::{ParquetError, Result},
    file::{
        metadata::{ParquetMetaData, RowGroupMetaData},
        reader::{FileReader, RowGroupReader, SerializedFileReader},
    },
    record::reader::RowIter,
    schema::types::Type,
};
use std::fs::File;

/// Maximum number of values of a column: a constant for any file, and a number for each of its
/// bytes. Examples to train on have text in them, which gives far fewer values per byte.
const VALUES: u64 = 1 << 20;
const VALUES_OF_A_BYTE: u64 = 1 << 10;

pub(super) struct Bounded {
    file: File,
    reader: SerializedFileReader<File>,
}

impl Bounded {
    /// # Errors
    /// An error if the file is not Parquet, or announces more than its bytes can be examples of.
    pub(super) fn open(file: File) -> Result<Self> {
        let bytes = file.metadata()?.len();
        let most = bytes.saturating_mul(VALUES_OF_A_BYTE).saturating_add(VALUES);
        skim_footer(&file)?;
        let reader = SerializedFileReader::new(file.try_clone()?)?;
        let groups = reader.metadata().row_groups();
        for column in 0..reader.metadata().file_metadata().schema_descr().num_columns() {
            let values = groups.iter().filter_map(|group| group.columns().get(column));
            bounded(values.map(|chunk| chunk.num_values()), most)?;
        }
        bounded(groups.iter().map(RowGroupMetaData::num_rows), most)?;
        Ok(Self { file, reader })
    }
}

fn bounded(counts: impl Iterator<Item = i64>, most: u64) -> Result<()> {
    let mut all = 0u64;
    for count in counts {
        let count = u64::try_from(count).map_err(|_| error("a negative count"))?;
        all = all.saturating_add(count);
    }
    if all > most {
        return Err(error(&format!("it announces {all} rows or values, too many for its size")));
    }
    Ok(())
}

fn error(reason: &str) -> ParquetError {
    ParquetError::General(reason.into())
}

impl FileReader for Bounded {
    fn metadata(&self) -> &ParquetMetaData {
        self.reader.metadata()
    }

    fn num_row_groups(&self) -> usize {
        self.reader.num_row_groups()
    }

    fn get_row_group(&self, i: usize) -> Result<Box<dyn RowGroupReader + '_>> {
        Ok(Box::new(Group { file: &self.file, group: self.reader.get_row_group(i)? }))
    }

    fn get_row_iter(&self, projection: Option<Type>) -> Result<RowIter<'_>> {
        RowIter::from_file(projection, self)
    }
}

struct Group<'a> {
    file: &'a File,
    group: Box<dyn RowGroupReader + 'a>,
}

impl RowGroupReader for Group<'_> {
    fn metadata(&self) -> &RowGroupMetaData {
        self.group.metadata()
    }

    fn num_columns(&self) -> usize {
        self.group.num_columns()
    }

    fn get_column_page_reader(&self, i: usize) -> Result<Box<dyn PageReader>> {
        let chunk = self.metadata().column(i);
        let (start, length) = chunk.byte_range();
        skim_pages(self.file, start, length)?;
        let left = chunk.num_values().try_into().unwrap_or(0);
        Ok(Box::new(Pages { pages: self.group.get_column_page_reader(i)?, left }))
    }

    fn get_column_bloom_filter(&self, i: usize) -> Option<&Sbbf> {
        self.group.get_column_bloom_filter(i)
    }

    fn get_row_iter(&self, projection: Option<Type>) -> Result<RowIter<'_>> {
        RowIter::from_row_group(projection, self)
    }
}

/// Pages of a column, and the number of values left in it.
struct Pages {
    pages: Box<dyn PageReader>,
    left: u64,
}

/// Subtracts the values of a page from those left in its column.
fn take(left: &mut u64, page: &Page) -> Result<()> {
    let values = u64::from(page.num_values());
    if let Page::DictionaryPage { buf, .. } = page {
        // Each takes a byte at least.
        return if values <= buf.len() as u64 {
            Ok(())
        } else {
            Err(error("a dictionary announces more values than it has bytes"))
        };
    }
    *left = left
        .checked_sub(values)
        .ok_or_else(|| error("a page announces more values than its column has"))?;
    Ok(())
}

impl Iterator for Pages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.pages.get_next_page()?;
        page.iter().try_for_each(|page| take(&mut self.left, page))?;
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.pages.skip_next_page()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::basic::Encoding;

    #[test]
    fn a_dictionary_has_a_byte_for_each_value() {
        let page = |num_values| {
            let (encoding, is_sorted) = (Encoding::PLAIN, false);
            Page::DictionaryPage { buf: vec![0; 8].into(), num_values, encoding, is_sorted }
        };
        let mut left = 2;
        take(&mut left, &page(8)).unwrap();
        assert!(take(&mut left, &page(9)).unwrap_err().to_string().contains("dictionary"));
        assert_eq!(left, 2);
    }

    #[test]
    fn pages_have_no_more_values_than_their_column() {
        let page = |num_values| Page::DataPage {
            buf: vec![0; 8].into(),
            num_values,
            encoding: Encoding::PLAIN,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        };
        let mut left = 100;
        take(&mut left, &page(60)).unwrap();
        take(&mut left, &page(40)).unwrap();
        assert!(take(&mut left, &page(1)).unwrap_err().to_string().contains("column"));
    }

    #[test]
    fn counts_are_bounded_in_their_sum() {
        bounded([3, 7].into_iter(), 10).unwrap();
        for counts in [[3, 8], [i64::MAX, i64::MAX], [-1, 0]] {
            assert!(bounded(counts.into_iter(), 10).is_err(), "{counts:?}");
        }
    }
}
