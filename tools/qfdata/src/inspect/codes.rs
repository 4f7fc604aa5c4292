//! What can be found in shards: each kind of finding has a code that stays what it is.
//!
//! The letter says what it is about: T tar and other containers, C captions, I images, D doubles, X indices,
//! A Arrow. `docs/reference/findings.md` is made of this table; a test compares the two.

use serde::{Serialize, Serializer};

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// The sample, the shard or the rest of it is not used.
    Error,
    /// It is used, and probably not as it was meant.
    Warning,
    /// Worth knowing.
    Note,
}

impl Severity {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        }
    }
}

/// A kind of finding.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Code {
    pub(crate) id: &'static str,
    pub(crate) severity: Severity,
    /// What is found.
    pub(crate) title: &'static str,
    pub(crate) cause: &'static str,
    pub(crate) remedy: &'static str,
}

impl Serialize for &'static Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.id)
    }
}

/// The code of this name, in any case.
pub(crate) fn find(id: &str) -> Option<&'static Code> {
    ALL.iter()
        .find(|code| code.id.eq_ignore_ascii_case(id))
        .copied()
}

macro_rules! codes {
    ($($name:ident = $id:literal $severity:ident $title:literal, $cause:literal, $remedy:literal;)*) => {
        $(pub(crate) static $name: Code = Code {
            id: $id,
            severity: Severity::$severity,
            title: $title,
            cause: $cause,
            remedy: $remedy,
        };)*

        /// All codes, in the order of the documentation.
        pub(crate) static ALL: &[&Code] = &[$(&$name),*];
    };
}

codes! {
    UNREADABLE = "QF-T01" Error "shard cannot be read",
        "The file or object is missing, or the system or server refuses it.",
        "Check path, permissions and credentials.";
    EMPTY_SHARD = "QF-T02" Error "shard is empty",
        "The file has 0 bytes: a download or copy failed.",
        "Fetch it again, or remove it.";
    NOT_A_SHARD = "QF-T03" Error "neither tar nor Arrow",
        "Another kind of file matched the pattern, or an error page was saved as a shard.",
        "Leave it out of the pattern, or fetch it again.";
    TRUNCATED = "QF-T04" Error "shard is truncated",
        "A download, copy or writer was interrupted. Samples before the end are sound.",
        "Fetch it again, or keep what is there with `--repair`.";
    DAMAGED = "QF-T05" Error "shard is damaged",
        "A header or its checksum makes no sense: bytes were changed or lost.",
        "Fetch it again, or keep what is there with `--repair`.";
    DAMAGED_COMPRESSION = "QF-T06" Error "compressed data are damaged",
        "gzip or zstd data do not decompress, or their checksum does not match.",
        "Fetch it again, or keep what is there with `--repair`.";
    WINDOW = "QF-T07" Error "zstd window is too large",
        "The shard was compressed with `--long`; decompressing takes that much memory.",
        "Pass `--max-zstd-window-log`, or compress it again without `--long`.";
    NO_END_MARKER = "QF-T08" Warning "no end-of-archive marker",
        "The writer was interrupted or never closed the archive; members may be missing at the end.",
        "Write the shard again if it lacks samples; `--repair` adds the marker.";
    CONCATENATED = "QF-T09" Warning "several archives in one file",
        "Archives were joined with `cat`. webdataset and GNU tar read only the first.",
        "Join shards with `qfdata merge`, or rewrite this one with `--repair`.";
    TRAILING = "QF-T10" Warning "bytes behind the archive",
        "Something that is no archive follows the end of the archive. It is passed over.",
        "Rewrite the shard with `--repair`.";
    NOT_COMPRESSED = "QF-T11" Warning "bytes behind the compressed data",
        "Something that is not compressed follows the compressed data. It is passed over.",
        "Rewrite the shard with `--repair`.";
    WRONG_ENDING = "QF-T12" Warning "name does not say what the shard is",
        "The ending of the file name promises another container or compression. Readers that go by the name fail.",
        "Rename the file.";
    NO_SAMPLE = "QF-T13" Warning "shard without a sample",
        "The archive is empty, or no file in it has a key and an extension.",
        "Remove it, or check how it was written.";
    NO_KEY = "QF-T14" Note "file that belongs to no sample",
        "Its name has no extension, begins with a dot, or lies below a folder `__NAME__`: WebDataset passes over it.",
        "Nothing, if that is what it is for; else name it KEY.EXTENSION.";
    REPEATED_MEMBER = "QF-T15" Error "extension twice in one sample",
        "Two files of a sample have the same extension, often in upper and lower case.",
        "Rename one of them.";
    SCATTERED = "QF-T16" Error "members of a sample are not adjacent",
        "A key came back after another key had begun: the archive is not sorted by name.",
        "Write the shard again with sorted names (`tar --sort=name`).";
    TOO_LARGE_SAMPLE = "QF-T17" Error "sample is too large",
        "Its members together are longer than max_sample_bytes.",
        "Raise data.max_sample_bytes, or leave the sample out.";
    UNSAFE_PATH = "QF-T18" Warning "path leads out of the folder",
        "The path is absolute or has `..` in it; unpacking it may overwrite other files.",
        "Do not unpack it with tools that obey it; `--repair` leaves it out.";
    CONTROL_CHARACTERS = "QF-T19" Warning "control characters in a name",
        "The name holds characters that terminals obey or that cannot be seen.",
        "Rename the file.";
    NOT_UTF8_NAME = "QF-T20" Warning "name is not UTF-8",
        "The name was written in another encoding.",
        "Rename the file.";
    EMPTY_MEMBER = "QF-T21" Warning "file without content",
        "A member has 0 bytes: writing it failed.",
        "Write it again.";
    SPARSE = "QF-T22" Note "sparse file",
        "The file is stored without its holes. webdataset reads it through tarfile; simple readers do not.",
        "Pack without `--sparse`.";
    UNEVEN_MEMBERS = "QF-T23" Note "samples have different members",
        "Some samples of the shard lack a member that most have.",
        "Check how the samples were made.";

    NO_CAPTION = "QF-C01" Error "no caption",
        "No member, JSON field or column with a caption was found.",
        "Name it with `--caption-column`, or add one.";
    EMPTY_CAPTION = "QF-C02" Error "caption is empty",
        "The caption holds nothing but white space and punctuation.",
        "Add a caption, or leave the sample out.";
    NOT_UTF8_CAPTION = "QF-C03" Error "caption cannot be read",
        "It is not UTF-8, or its JSON does not parse or holds no caption.",
        "Convert it to UTF-8, or mend the JSON.";
    REPLACEMENT_CHARACTER = "QF-C04" Warning "replacement character in a caption",
        "U+FFFD stands where a character was lost in conversion.",
        "Take the caption from its source again.";
    MOJIBAKE = "QF-C05" Warning "caption was decoded with a wrong encoding",
        "UTF-8 was read as Latin-1 and written again: `Ã©` for `é`.",
        "Convert the captions back before packing.";
    CONTROL_IN_CAPTION = "QF-C06" Warning "control characters in a caption",
        "The caption holds characters without a shape.",
        "Remove them before packing.";
    MARKUP = "QF-C07" Warning "markup in a caption",
        "HTML tags or entities were not resolved when the caption was collected.",
        "Strip tags and resolve entities before packing.";
    URL_CAPTION = "QF-C08" Warning "caption is an address or a file name",
        "The alt text of the page was a URL or the name of the file.",
        "Leave the sample out.";
    REPEATED_CAPTION = "QF-C09" Note "the same caption twice in one sample",
        "A caption of the sample is there more than once.",
        "Remove it, unless it is meant to count twice.";
    LONG_CAPTION = "QF-C10" Note "caption is longer than what is used",
        "Words beyond max_words, or tokens beyond text_len, are cut off.",
        "Raise data.max_words and data.text_len, or shorten it.";

    NO_IMAGE = "QF-I01" Error "no image",
        "No member of the sample is an image, or the image is null.",
        "Name it with `--image-column`, or leave the sample out.";
    BROKEN_IMAGE = "QF-I02" Error "image does not decode",
        "Its header or data are damaged.",
        "Fetch it again, or leave it out.";
    TRUNCATED_IMAGE = "QF-I03" Error "image is truncated",
        "Its data end before the picture does: a download was interrupted.",
        "Fetch it again, leave it out, or take what is there with data.on_truncated = \"grey\".";
    NOT_AN_IMAGE = "QF-I04" Error "content is no image",
        "An error page, a video or something unknown was saved under the name of an image.",
        "Leave it out.";
    AVIF = "QF-I05" Error "AVIF image",
        "AVIF is not decoded.",
        "Convert it to JPEG, PNG or WebP.";
    HEIC = "QF-I06" Error "HEIC image",
        "HEIC, what telephones store, is not decoded.",
        "Convert it to JPEG, PNG or WebP.";
    UNSUPPORTED_IMAGE = "QF-I07" Error "image of a kind that is not decoded",
        "JPEG XL, PSD, SVG, floating-point TIFF and the like.",
        "Convert it to JPEG, PNG or WebP.";
    HUGE_IMAGE = "QF-I08" Error "image beyond the limits",
        "It has more pixels, or takes more memory to decode, than the settings allow.",
        "Resize it, or raise data.max_image_pixels and data.decode_memory_bytes.";
    WRONG_EXTENSION = "QF-I09" Warning "extension contradicts content",
        "A file named .jpg is a PNG, say. This reader goes by content; others go by the name.",
        "Rename the file.";
    SMALL_IMAGE = "QF-I10" Warning "image is small",
        "Its shorter side is below `--min-side`; it is enlarged for training.",
        "Leave it out, or set data.filters.min_side.";
    EXTREME_ASPECT = "QF-I11" Warning "extreme aspect ratio",
        "The longer side is more than `--max-aspect` times the shorter: a banner or a divider.",
        "Leave it out, or set data.filters.max_aspect.";
    TURNED = "QF-I12" Note "orientation in EXIF or XMP",
        "The picture is stored turned or mirrored. This reader turns it upright; OpenCV's and many others do not.",
        "Nothing here; turn the pixels if other readers use the shard.";
    ANIMATED = "QF-I13" Note "animated image",
        "Only the first frame is used.",
        "Nothing, or leave it out.";
    CMYK = "QF-I14" Note "CMYK image",
        "Colours are converted without a profile, as by Pillow.",
        "Convert it to RGB with its profile if colours matter.";
    ALPHA = "QF-I15" Note "image with transparency",
        "Transparency is dropped, not composited, as by Pillow's convert(\"RGB\"): what lies below shows.",
        "Composite it onto a background before packing.";
    DEEP = "QF-I16" Note "more than 8 bits per channel",
        "The high 8 bits are used.",
        "Nothing, or convert it with the tone curve you want.";
    GREY = "QF-I17" Note "greyscale image",
        "Grey is copied to the three channels.",
        "Nothing.";
    BLANK = "QF-I18" Warning "image of a single colour",
        "All pixels are alike: a placeholder or a failed download.",
        "Leave it out.";
    PROFILE = "QF-I19" Note "colour profile other than sRGB",
        "Profiles are not applied: an Adobe RGB or Display P3 picture looks pale.",
        "Convert it to sRGB before packing if colours matter.";
    SEVERAL_IMAGES = "QF-I20" Note "several images in one sample",
        "One is used: a plain extension before a compound one, in stored order.",
        "Name it with `--image-column`.";

    DOUBLE_KEY = "QF-D01" Warning "key of another shard",
        "Two shards have a sample of the same key.",
        "Nothing for training; make keys unique if anything looks samples up by key.";
    DOUBLE_IMAGE = "QF-D02" Warning "the same image again",
        "Two samples hold the same image, byte for byte, with different captions.",
        "Put the captions into one sample.";
    DOUBLE_SAMPLE = "QF-D03" Warning "the same sample again",
        "Two samples hold the same image and the same captions, byte for byte.",
        "`--repair` leaves out the later one.";
    NEAR_DOUBLE = "QF-D04" Note "nearly the same image",
        "The perceptual hashes of two images differ in at most `--near` bits: the same picture resized, compressed again or cropped a little.",
        "Look at both, and leave one out.";

    DAMAGED_INDEX = "QF-X01" Error "index cannot be read",
        "The .qfidx beside the shard is damaged, cut short or no index.",
        "Write it again: `qfdata index --overwrite`.";
    WRONG_INDEX = "QF-X02" Error "checksum differs from the index",
        "The shard has changed since it was indexed, or the index is that of another one.",
        "Fetch the shard again if it should not have changed, else write the index again: `qfdata index --overwrite`.";
    OUTDATED_INDEX = "QF-X03" Warning "index of an older format",
        "It is not used; the shard is read in order.",
        "Write it again: `qfdata index`.";
    NO_INDEX = "QF-X04" Note "shard without an index",
        "Others of the data set have one; a full shuffle and fast resumption need all.",
        "Write it: `qfdata index`.";
    NO_ACCESS = "QF-X05" Note "samples cannot be reached one by one",
        "gzip, or zstd in one large frame, is read in order only; a full shuffle is not possible.",
        "Write it as .tar or as .tar.zst of many frames: `qfdata convert`.";
    NO_CHECKSUMS = "QF-X06" Note "index without checksums",
        "It was written with `qfdata index --no-checksum`: bytes that change later are not noticed when samples are read.",
        "Write them: `qfdata index`.";

    ARROW_COLUMNS = "QF-A01" Error "image or caption column not found",
        "No column has a name or type that is known, or several have.",
        "Name them with `--image-column` and `--caption-column`.";
    ARROW_DAMAGED = "QF-A02" Error "Arrow shard is damaged",
        "Messages, offsets or lengths make no sense, or the file ends early.",
        "Fetch it again, or write it again.";
    ARROW_UNSUPPORTED = "QF-A03" Error "Arrow feature that is not read",
        "Big-endian data, a version before 0.8, or a column type without images or text.",
        "Write it again with plain string, binary and list columns.";
    NULL_IMAGE = "QF-A04" Error "image is null or only a path",
        "The row has no image bytes: the data set was saved without embedding them.",
        "Embed the images: `datasets` does with `embed_external_files=True`.";
    NULL_CAPTION = "QF-A05" Error "caption is null",
        "The row has no caption.",
        "Add one, or leave the row out.";
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> String {
        let rows = ALL.iter().map(|code| {
            let Code {
                id,
                severity,
                title,
                cause,
                remedy,
            } = code;
            format!(
                "| `{id}` | {} | {title} | {cause} | {remedy} |\n",
                severity.name()
            )
        });
        rows.collect()
    }

    #[test]
    fn the_page_lists_every_code() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/reference/findings.md"
        );
        let page = std::fs::read_to_string(path).expect("the page");
        let listed: Vec<&str> = page
            .lines()
            .filter(|line| line.starts_with("| `QF-"))
            .collect();
        let table = table();
        let expected: Vec<&str> = table.lines().collect();
        assert_eq!(listed, expected, "the table should be:\n{table}");
    }

    #[test]
    fn codes_are_unique_and_numbered() {
        assert!(ALL.len() >= 40, "{}", ALL.len());
        let mut last = ("", 0);
        for code in ALL {
            let (group, number) = code.id.split_at(4);
            let number: u32 = number.parse().expect("a number");
            let expected = if group == last.0 { last.1 + 1 } else { 1 };
            assert_eq!(number, expected, "{}", code.id);
            assert!(
                code.cause.ends_with('.') && code.remedy.ends_with('.'),
                "{}",
                code.id
            );
            last = (group, number);
        }
        assert_eq!(find("qf-t03"), Some(&NOT_A_SHARD));
        assert_eq!(find("QF-T3"), None);
    }
}
