//! Rows of a CSV or TSV file, as Python's `csv` module tells them apart.
//!
//! Own code rather than the `csv` crate's because a manifest's errors need what that does not tell:
//! whether the last quote was closed (without which the rest of a file becomes one caption), and the
//! line that a row begins in where blank lines or `\r\n` come before it.

use std::io::{BufRead, BufReader, Read};

use anyhow::bail;

/// How rows are written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dialect {
    pub(super) delimiter: u8,
    /// Whether a field that begins with `"` goes to the next single `"`.
    pub(super) quoting: bool,
}

/// Reads rows from front to back.
pub(super) struct Table<R> {
    reader: BufReader<R>,
    dialect: Dialect,
    max_row_bytes: usize,
    /// The line of the next byte, from 1.
    line: u64,
    is_at_start: bool,
    /// The last byte was `\r`: a `\n` that follows belongs to it.
    after_cr: bool,
    row: Row,
}

/// The fields of a row.
#[derive(Default)]
pub(super) struct Row {
    /// The line it begins in, from 1.
    pub(super) line: u64,
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Row {
    /// How many fields it has.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// A field, if there are that many.
    pub(super) fn get(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)?;
        let start = match index.checked_sub(1) {
            Some(before) => *self.ends.get(before)?,
            None => 0,
        };
        self.bytes.get(start..end)
    }

    fn end_field(&mut self) {
        self.ends.push(self.bytes.len());
    }
}

/// Where in a row the reader is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    RowStart,
    FieldStart,
    Field,
    Quoted,
    /// Behind a quote within quotes: the end of them, or the first half of a `""`.
    QuoteInQuoted,
}

impl<R: Read> Table<R> {
    /// A row of more than `max_row_bytes` is an error.
    pub(super) fn new(reader: R, dialect: Dialect, max_row_bytes: usize) -> Self {
        Table {
            reader: BufReader::new(reader),
            dialect,
            max_row_bytes,
            line: 1,
            is_at_start: true,
            after_cr: false,
            row: Row::default(),
        }
    }

    /// The next row that is not blank; `None` after the last.
    ///
    /// # Errors
    /// Those of the file; a quote that is not closed, and a row that is too long, naming their line.
    pub(super) fn next_row(&mut self) -> anyhow::Result<Option<&Row>> {
        if std::mem::take(&mut self.is_at_start) {
            self.skip_byte_order_mark()?;
        }
        self.row.bytes.clear();
        self.row.ends.clear();
        let mut at = At::RowStart;
        let mut quote_line = self.line;
        loop {
            let Some(&byte) = self.reader.fill_buf()?.first() else {
                return self.at_end(at, quote_line);
            };
            self.reader.consume(1);
            if std::mem::take(&mut self.after_cr) && byte == b'\n' {
                if at == At::Quoted {
                    self.row.bytes.push(byte);
                }
                continue;
            }
            let ends_line = matches!(byte, b'\n' | b'\r');
            if at == At::RowStart {
                self.row.line = self.line;
                if !ends_line {
                    at = At::FieldStart;
                }
            }
            if ends_line {
                self.line += 1;
                self.after_cr = byte == b'\r';
                match at {
                    At::RowStart => continue,
                    At::Quoted => self.row.bytes.push(byte),
                    At::FieldStart | At::Field | At::QuoteInQuoted => {
                        self.row.end_field();
                        return Ok(Some(&self.row));
                    }
                }
            } else {
                if at == At::FieldStart {
                    quote_line = self.line;
                }
                at = self.take(byte, at);
            }
            if self.row.bytes.len() > self.max_row_bytes {
                bail!(
                    "the row that begins in line {} is over {} bytes; is a quote (\") in it not \
                     closed?",
                    self.row.line,
                    self.max_row_bytes
                );
            }
        }
    }

    /// Takes in a byte that ends no line.
    fn take(&mut self, byte: u8, at: At) -> At {
        let Dialect { delimiter, quoting } = self.dialect;
        match at {
            At::Quoted if byte == b'"' => At::QuoteInQuoted,
            At::Quoted => {
                self.row.bytes.push(byte);
                At::Quoted
            }
            _ if byte == delimiter => {
                self.row.end_field();
                At::FieldStart
            }
            At::FieldStart if quoting && byte == b'"' => At::Quoted,
            At::QuoteInQuoted if byte == b'"' => {
                self.row.bytes.push(byte);
                At::Quoted
            }
            At::RowStart | At::FieldStart | At::Field | At::QuoteInQuoted => {
                self.row.bytes.push(byte);
                At::Field
            }
        }
    }

    fn at_end(&mut self, at: At, quote_line: u64) -> anyhow::Result<Option<&Row>> {
        match at {
            At::RowStart => Ok(None),
            At::Quoted => bail!(
                "the quote (\") that line {quote_line} opens is not closed, so that nothing behind it \
                 can be told apart; close it, or write a quote within quotes twice (\"\")"
            ),
            At::FieldStart | At::Field | At::QuoteInQuoted => {
                self.row.end_field();
                Ok(Some(&self.row))
            }
        }
    }

    fn skip_byte_order_mark(&mut self) -> anyhow::Result<()> {
        let start = self.reader.fill_buf()?;
        if start.starts_with(&[0xff, 0xfe]) || start.starts_with(&[0xfe, 0xff]) {
            bail!("it is UTF-16; save it as UTF-8");
        }
        if start.starts_with(b"\xef\xbb\xbf") {
            self.reader.consume(3);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CSV: Dialect = Dialect {
        delimiter: b',',
        quoting: true,
    };

    fn rows(text: &str, dialect: Dialect) -> Result<Vec<(u64, Vec<String>)>, String> {
        let mut table = Table::new(text.as_bytes(), dialect, 1000);
        let mut rows = Vec::new();
        while let Some(row) = table.next_row().map_err(|error| error.to_string())? {
            let field = |index| String::from_utf8_lossy(row.get(index).unwrap()).into_owned();
            rows.push((row.line, (0..row.len()).map(field).collect()));
        }
        Ok(rows)
    }

    #[test]
    fn rows_as_python_reads_them() {
        let check = |text: &str, expected: &[(u64, &[&str])]| {
            let expected = expected
                .iter()
                .map(|(line, fields)| (*line, fields.iter().map(|f| f.to_string()).collect()))
                .collect();
            assert_eq!(rows(text, CSV), Ok(expected), "{text:?}");
        };
        check("a,b\nc,d\n", &[(1, &["a", "b"]), (2, &["c", "d"])]);
        check("a,b\r\n\r\n\r\nc,d", &[(1, &["a", "b"]), (4, &["c", "d"])]);
        check("a\rb\r", &[(1, &["a"]), (2, &["b"])]);
        check("\u{feff}\"a\",b\n", &[(1, &["a", "b"])]);
        check("a,\"x, y\",\nb\n", &[(1, &["a", "x, y", ""]), (2, &["b"])]);
        check(
            "\"1\r\n2\n3\",b\nc",
            &[(1, &["1\r\n2\n3", "b"]), (4, &["c"])],
        );
        check(
            "\"say \"\"hi\"\"\"x,5\"\",\"\"\n",
            &[(1, &["say \"hi\"x", "5\"\"", ""])],
        );
        check(",\n \n", &[(1, &["", ""]), (2, &[" "])]);
        check("", &[]);
        check("\n\n", &[]);
        check("a,", &[(1, &["a", ""])]);
    }

    #[test]
    fn tab_separated_fields_are_taken_as_they_are() {
        let tsv = Dialect {
            delimiter: b'\t',
            quoting: false,
        };
        let found = rows("a\t\"x, y\r\nb\t5\" nail\n", tsv).unwrap();
        assert_eq!(found[0].1, ["a", "\"x, y"]);
        assert_eq!(found[1], (2, vec!["b".to_string(), "5\" nail".to_string()]));
    }

    #[test]
    fn what_would_swallow_rows_is_refused() {
        let open = rows("a,b\n\nc,\"d\ne,f\n", CSV).unwrap_err();
        assert!(
            open.contains("line 3") && open.contains("not closed"),
            "{open}"
        );
        let long = rows(&format!("a,b\nc,{}\n", "x".repeat(2000)), CSV).unwrap_err();
        assert!(long.contains("line 2") && long.contains("1000"), "{long}");
        assert!(rows("a\n\"b", CSV).unwrap_err().contains("line 2"));
        let mut table = Table::new(&[0xff, 0xfe, b'a', 0][..], CSV, 10);
        assert!(table
            .next_row()
            .is_err_and(|error| error.to_string().contains("UTF-16")));
    }

    /// The csv crate tells neither lines nor open quotes, but the fields of what is sound.
    #[test]
    fn fields_are_those_of_the_csv_crate() {
        let mut state = 1u64;
        let mut alike = 0;
        for _ in 0..20_000 {
            let mut text = String::new();
            for _ in 0..state % 14 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                text.push_str(
                    ["a", ",", "\"", "\n", "\r\n", "b c", "\"\""][(state >> 33) as usize % 7],
                );
            }
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let Ok(ours) = rows(&text, CSV) else {
                continue;
            };
            let mut reader = csv::ReaderBuilder::new()
                .flexible(true)
                .has_headers(false)
                .from_reader(text.as_bytes());
            let theirs = reader.records().map(|record| {
                record
                    .unwrap()
                    .iter()
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            });
            let ours: Vec<_> = ours.into_iter().map(|(_, fields)| fields).collect();
            assert_eq!(ours, theirs.collect::<Vec<_>>(), "{text:?}");
            alike += 1;
        }
        assert!(alike > 10_000, "{alike}");
    }
}
