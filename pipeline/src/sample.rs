//! One type per arrow of the flow: [`EncodedSample`] → [`DecodedSample`](crate::batch::DecodedSample) → [`Batch`](crate::batch::Batch).

use std::fmt;
use std::sync::Arc;

use crate::image_format::is_image_extension;
use crate::json;
use crate::printable::Printable;

/// Where a sample comes from: enough to find it again with any tar or Arrow tool.
///
/// Displayed as `cc3m-00017.tar#000170042@1536` (shard, key, byte offset), [printable](Printable).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SampleId {
    /// Path or URL of the shard, as it was given.
    pub shard: Arc<str>,
    /// Position of the shard in the resolved shard list.
    pub shard_index: u32,
    /// Position of the sample in its shard, bad samples included.
    pub sample_index: u32,
    /// WebDataset key; in an Arrow shard the stem of `image.path`, or the row number.
    pub key: String,
    /// Offset of the sample's first header in the uncompressed tar stream, or of the record batch
    /// in an Arrow shard, in bytes.
    pub offset_bytes: u64,
}

impl fmt::Display for SampleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shard, key) = (Printable(&self.shard), Printable(&self.key));
        write!(f, "{shard}#{key}@{}", self.offset_bytes)
    }
}

/// A sample as it lies in a shard: compressed image, raw captions, whatever else the key has.
#[derive(Clone, Debug, PartialEq)]
pub struct EncodedSample {
    /// Where it comes from.
    pub id: SampleId,
    /// Its members, in shard order; names are unique within a sample.
    pub members: Vec<Member>,
}

impl EncodedSample {
    /// The member of this name (an extension such as `jpg`, or an Arrow column).
    pub fn member(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.name == name)
    }

    /// The image: the member of this name where it has one, else a plain image extension (`jpg`) before
    /// a compound one (`seg.png`).
    pub fn image(&self, name: Option<&str>) -> Option<&Member> {
        let images = || {
            let members = self.members.iter();
            members.filter(|member| is_image_extension(&member.name))
        };
        let named =
            name.and_then(|name| images().find(|member| member.name.eq_ignore_ascii_case(name)));
        let plain = || images().find(|member| !member.name.contains('.'));
        named.or_else(plain).or_else(|| images().next())
    }

    /// Whether data of it were left in the shard.
    pub(crate) fn is_left(&self) -> bool {
        let is_left = |member: &Member| {
            member
                .in_file
                .is_some_and(|place| place.left_bytes.is_some())
        };
        self.members.iter().any(is_left)
    }

    /// Bytes that the members hold: what a queue's byte budget counts.
    pub fn payload_bytes(&self) -> usize {
        self.members
            .iter()
            .map(|member| member.data.len_bytes())
            .sum()
    }
}

/// One member of an [`EncodedSample`].
#[derive(Clone, Debug)]
pub struct Member {
    /// Lower-cased extension (everything after the first dot of the base name) in a tar shard, the
    /// column name in an Arrow shard.
    pub name: String,
    /// What it holds.
    pub data: MemberData,
    /// Where its bytes stand in the shard's file, if they stand there as they are.
    pub(crate) in_file: Option<InFile>,
}

/// Where a member's bytes are to be found again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InFile {
    pub(crate) offset_bytes: u64,
    /// Of a member that was left there, and has no data yet: how long it is.
    pub(crate) left_bytes: Option<u64>,
}

/// Where it lies does not count.
impl PartialEq for Member {
    fn eq(&self, other: &Member) -> bool {
        (&self.name, &self.data) == (&other.name, &other.data)
    }
}

impl Member {
    /// A member of this name.
    pub fn new(name: impl Into<String>, data: MemberData) -> Member {
        Member {
            name: name.into(),
            data,
            in_file: None,
        }
    }

    /// The bytes; `None` for text of an Arrow shard.
    pub fn bytes(&self) -> Option<&[u8]> {
        match &self.data {
            MemberData::Bytes(bytes) => Some(bytes),
            MemberData::Text(_) => None,
        }
    }

    /// The member as JSON, in [Python's](json::parse) widest sense.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn json(&self) -> Result<serde_json::Value, String> {
        let parsed = match &self.data {
            MemberData::Bytes(bytes) => json::parse(bytes),
            MemberData::Text(texts) => match texts.as_slice() {
                [text] => json::parse(text.as_bytes()),
                texts => return Err(format!("{} texts where one is JSON", texts.len())),
            },
        };
        parsed.map_err(|error| format!("member `{}` is not JSON ({error})", self.name))
    }

    /// The member as a class label: a whole number as text, as in `.cls`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn class_label(&self) -> Result<i64, String> {
        let text = match &self.data {
            MemberData::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            MemberData::Text(texts) => texts.first().map(String::as_str),
        };
        let label = text.and_then(|text| text.trim().parse().ok());
        label.ok_or_else(|| format!("member `{}` is not a whole number", self.name))
    }
}

/// Content of a [`Member`].
#[derive(Clone, Debug, PartialEq)]
pub enum MemberData {
    /// A file's bytes: every member of a tar shard, an Arrow binary or image column.
    Bytes(Vec<u8>),
    /// An Arrow `string` (one entry) or `list<string>` column.
    Text(Vec<String>),
}

impl MemberData {
    /// Length of the content in bytes.
    pub fn len_bytes(&self) -> usize {
        match self {
            MemberData::Bytes(bytes) => bytes.len(),
            MemberData::Text(texts) => texts.iter().map(String::len).sum(),
        }
    }
}
