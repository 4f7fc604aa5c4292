//! What extension headers say of the members behind them: GNU's long names and pax records.

use super::header::decimal;
use super::sparse::PaxMap;

/// What is known of the next member beside its own header.
#[derive(Clone, Debug, Default)]
pub(super) struct Extension {
    /// Its path.
    pub(super) path: Option<Vec<u8>>,
    /// Length of its data.
    pub(super) size_bytes: Option<u64>,
    /// Where its holes are, if it is sparse.
    pub(super) sparse: Option<PaxMap>,
    /// Where the first of its extension headers begins.
    pub(super) offset_bytes: Option<u64>,
}

impl Extension {
    /// This one's words, and for what it does not speak of those of `global`.
    pub(super) fn or(self, global: &Extension) -> Extension {
        Extension {
            path: self.path.or_else(|| global.path.clone()),
            size_bytes: self.size_bytes.or(global.size_bytes),
            ..self
        }
    }

    /// Takes the records of a pax header. Those that say nothing of name, length or holes are passed
    /// over, whatever bytes they hold: extended attributes are binary, comments have several lines.
    ///
    /// # Errors
    /// What is wrong with a record, and where in the header it begins.
    pub(super) fn read_pax(&mut self, records: &[u8]) -> Result<(), String> {
        let mut rest = records;
        // Some writers fill the header with zeros.
        while rest.first().is_some_and(|&byte| byte != 0) {
            let at = records.len() - rest.len();
            let bad = |what: &str| format!("a damaged pax header: its record at byte {at} {what}");
            let (key, value, after) = split_record(rest).map_err(bad)?;
            self.take(key, value).map_err(bad)?;
            rest = after;
        }
        Ok(())
    }

    /// A record without a value takes back what an earlier one said.
    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let is_set = !value.is_empty();
        match key {
            b"path" => self.path = is_set.then(|| value.to_vec()),
            b"size" => {
                self.size_bytes = match is_set {
                    true => Some(decimal(value).ok_or("has a size that is not a number")?),
                    false => None,
                }
            }
            _ => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.get_or_insert_default().take(key, value)?;
                }
            }
        }
        Ok(())
    }
}

/// A record's key and value, and what follows it.
type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// Splits `LENGTH KEY=VALUE\n` off. The length counts all of it, itself
/// and the newline included.
fn split_record(bytes: &[u8]) -> Result<Record<'_>, &'static str> {
    /// A length has fewer digits in any header that is read.
    const MAX_DIGITS: usize = 20;
    let blank = bytes
        .iter()
        .take(MAX_DIGITS + 1)
        .position(|&byte| byte == b' ');
    let blank = blank.ok_or("does not begin with a length")?;
    let length = decimal(&bytes[..blank]).ok_or("does not begin with a length")?;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let (record, rest) = bytes
        .split_at_checked(length)
        .ok_or("is longer than the header")?;
    let content = record
        .get(blank + 1..)
        .and_then(|content| content.strip_suffix(b"\n"))
        .ok_or("does not end with a newline")?;
    let equals = content.iter().position(|&byte| byte == b'=');
    let equals = equals.ok_or("has no `=`")?;
    Ok((&content[..equals], &content[equals + 1..], rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let content = key.len() + value.len() + 3;
        let digits = |length: usize| length.to_string().len();
        let mut length = content + digits(content);
        length = content + digits(length);
        [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
    }

    #[test]
    fn records_are_as_long_as_they_say() {
        let header = [
            record("SCHILY.xattr.user.a", b"\x00\n12 path=x\n=\xff"),
            record("comment", b"two\nlines"),
            record("path", "dir/\u{e9}=\n.jpg".as_bytes()),
            record("size", b"123"),
            record("mtime", b"1.5"),
            vec![0; 100],
        ]
        .concat();
        let mut extension = Extension::default();
        extension.read_pax(&header).unwrap();
        assert_eq!(
            extension.path.as_deref(),
            Some("dir/\u{e9}=\n.jpg".as_bytes())
        );
        assert_eq!(extension.size_bytes, Some(123));
        extension.read_pax(&record("size", b"")).unwrap();
        assert_eq!(extension.size_bytes, None);
        extension.read_pax(&[]).unwrap();
    }

    #[test]
    fn damaged_records_say_where() {
        let sound = record("comment", b"x");
        for (bad, expected) in [
            (&b"x path=a\n"[..], "does not begin with a length"),
            (b"path=a\n", "does not begin with a length"),
            (b"99 path=a\n", "is longer than the header"),
            (
                b"99999999999999999999999 a=b\n",
                "does not begin with a length",
            ),
            (b"18446744073709551615 a=b\n", "is longer than the header"),
            (b"8 path=a\n", "does not end with a newline"),
            (b"1 a=b\n", "does not end with a newline"),
            (b"0 a=b\n", "does not end with a newline"),
            (b"9 a path\n", "has no `=`"),
            (b"10 size=0x\n", "does not end with a newline"),
            (b"11 size=0x\n", "a size that is not a number"),
            (b"11 size=-1\n", "a size that is not a number"),
        ] {
            let header = [&sound[..], bad].concat();
            let error = Extension::default().read_pax(&header).unwrap_err();
            let at = format!("record at byte {}", sound.len());
            assert!(error.contains(expected) && error.contains(&at), "{error}");
        }
    }
}
