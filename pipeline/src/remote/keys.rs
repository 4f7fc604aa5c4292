//! Keys that the `object_store` crate does not take: with empty segments, `a//b`, as uploads to
//! `prefix/` + `/name` leave them.
//!
//! [`Path::parse`] refuses them, and one such key fails the whole page of a listing that holds it. So
//! the pages are changed before they are parsed: a segment that would be refused becomes one that begins
//! with [`MARK`], and [`unmask`] turns it back.

use object_store::path::{Path, PathPart};

/// A character for private use, the beginning of a segment that stands for another.
const MARK: char = '\u{F8FE}';

/// Elements of a listing that hold keys: of S3 and Google, of Azure.
const ELEMENTS: [&str; 3] = ["Key", "Prefix", "Name"];

/// Masks the keys of a page of a listing, which is XML.
pub(super) fn mask_page(page: &str) -> String {
    let mut masked = String::with_capacity(page.len());
    let mut rest = page;
    while let Some(open) = rest.find('<') {
        let (before, tag) = rest.split_at(open + 1);
        masked.push_str(before);
        rest = tag;
        let element = ELEMENTS.iter().find_map(|name| {
            let content = tag.strip_prefix(name)?.strip_prefix('>')?;
            Some((name.len() + 1, content.find("</")?))
        });
        if let Some((content, length)) = element {
            masked.push_str(&rest[..content]);
            masked.push_str(&mask(&rest[content..content + length]));
            rest = &rest[content + length..];
        }
    }
    masked.push_str(rest);
    masked
}

/// A key, in the text of an XML element.
fn mask(key: &str) -> String {
    let segment = |segment: &str| {
        // A character by its number, or raw: control characters cannot be asked for.
        let is_odd = segment.contains("&#") || segment.chars().any(|c| c.is_ascii_control());
        match segment {
            "" => format!("{MARK}e"),
            "." => format!("{MARK}1"),
            ".." => format!("{MARK}2"),
            _ if is_odd => {
                let plain: String = segment.chars().filter(|c| !c.is_ascii_control()).collect();
                format!("{MARK}c{}", plain.replace("&#", "&amp;#"))
            }
            _ if segment.starts_with(MARK) => format!("{MARK}s{segment}"),
            _ => segment.to_string(),
        }
    };
    let segments: Vec<String> = key.split('/').map(segment).collect();
    segments.join("/")
}

/// A listed key as it is in the store; `Err` with its text if no request can name it.
pub(super) fn unmask(path: &Path) -> Result<String, String> {
    let mut can_be_named = true;
    let segments = path.as_ref().split('/').map(|segment| {
        let Some(masked) = segment.strip_prefix(MARK) else {
            return segment.to_string();
        };
        let mut rest = masked.chars();
        let kind = rest.next();
        can_be_named &= matches!(kind, Some('e' | 's'));
        match kind {
            Some('1') => ".".into(),
            Some('2') => "..".into(),
            _ => rest.as_str().to_string(),
        }
    });
    let key = segments.collect::<Vec<_>>().join("/");
    match can_be_named && !key.starts_with('/') {
        true => Ok(key),
        false => Err(key),
    }
}

/// The path of a key.
///
/// # Errors
/// Why no request can name it.
pub(super) fn path_of(key: &str) -> Result<Path, String> {
    let cannot = |what: &str| format!("{what}; copy the object to another key");
    if key.starts_with('/') {
        return Err(cannot("a key that begins with a slash cannot be read"));
    }
    let mut segments = key.split('/');
    let first = segments.next().unwrap_or_default();
    let parse = |segment: &str| {
        let part = PathPart::parse(segment);
        let refuse =
            |_| cannot("a key with a segment `.` or `..`, or a control character, cannot be read");
        part.map(|part| part.as_ref().to_string()).map_err(refuse)
    };
    parse(first)?;
    let mut path = Path::parse(first).map_err(|error| error.to_string())?;
    for segment in segments {
        parse(segment)?;
        // Unlike `parse` it takes empty ones.
        path = path.join(PathPart::parse(segment).map_err(|error| error.to_string())?);
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masked_keys_parse_and_come_back() {
        let keys = [
            "plain/x.tar",
            "dbl//x.tar",
            "a///b//c.tar",
            "odd name #1+ä%20.tar",
            "\u{F8FE}e/x.tar",
        ];
        for key in keys {
            let parsed = Path::parse(mask(key)).unwrap();
            assert_eq!(unmask(&parsed).unwrap(), key);
            assert_eq!(path_of(key).unwrap().as_ref(), key);
        }
        for key in ["a/../b.tar", "./x.tar", "/x.tar", "a/b\nc.tar", "x&#1;.tar"] {
            let parsed = Path::parse(mask(key)).unwrap();
            assert!(unmask(&parsed).is_err(), "{key}");
        }
        for key in ["a/../b.tar", "./x.tar", "/x.tar", "a/b\nc.tar"] {
            assert!(
                path_of(key).unwrap_err().contains("cannot be read"),
                "{key}"
            );
        }
    }

    #[test]
    fn pages_change_in_their_keys_alone() {
        let page = "<?xml version='1.0'?><R><Name>b</Name><Prefix></Prefix><Contents>\
                    <Key>dbl//x&amp;y.tar</Key><Size>1</Size></Contents><CommonPrefixes>\
                    <Prefix>a//</Prefix></CommonPrefixes><KeyCount>2</KeyCount></R>";
        let masked = mask_page(page);
        let expected = page
            .replace("dbl//", "dbl/\u{F8FE}e/")
            .replace("a//<", "a/\u{F8FE}e/\u{F8FE}e<")
            .replace("<Prefix></Prefix>", "<Prefix>\u{F8FE}e</Prefix>");
        assert_eq!(masked, expected);
        let odd = "<Key>unfinished";
        assert_eq!(mask_page(odd), odd);
    }
}
