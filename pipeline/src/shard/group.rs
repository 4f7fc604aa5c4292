//! WebDataset's grouping rule: consecutive members of one key form a sample.
//!
//! The rule is that of `webdataset/tariterators.py` (`base_plus_ext`, `group_by_keys`), made strict:
//! a repeated extension or a key that comes back is an error of that sample, not of the stream.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use crate::error::{SampleError, SkipReason};
use crate::sample::{EncodedSample, InFile, Member, MemberData, SampleId};
use crate::shard::tar::{MemberContent, TarMember};

/// Splits a member's path into key (up to the first dot of the base name) and lower-cased
/// extension; `None` for names without either, dot-files, and members below a `__meta__` folder,
/// which WebDataset passes over (`skip_meta` in `tariterators.py` looks at the first folder alone).
pub fn split_key(path: &str) -> Option<(&str, String)> {
    let base_at = path.rfind('/').map_or(0, |slash| slash + 1);
    let base = &path[base_at..];
    let dot = base.find('.')?;
    let first = path.split('/').next().unwrap_or_default();
    let is_meta = first.len() >= 4 && first.starts_with("__") && first.ends_with("__");
    if dot == 0 || is_meta {
        return None;
    }
    Some((&path[..base_at + dot], base[dot + 1..].to_lowercase()))
}

/// What one sample may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SampleLimits {
    /// Bytes of all its members together.
    pub(crate) bytes: u64,
    /// Members that are loaded.
    pub(crate) members: usize,
}

impl SampleLimits {
    /// Whatever there is.
    pub(crate) const NONE: SampleLimits = SampleLimits {
        bytes: u64::MAX,
        members: usize::MAX,
    };
}

/// Groups the members of one shard.
pub(crate) struct Grouper {
    shard: Arc<str>,
    shard_index: u32,
    limits: SampleLimits,
    next_index: u32,
    current: Option<Group>,
    /// Hashes of all keys seen; 16 bytes a sample, so a shard of a million samples costs 16 MB.
    seen: HashSet<[u64; 2]>,
    /// Whether the index knows that the only key was seen earlier in the shard.
    is_repeated_key: bool,
    /// Whether offsets in the tar stream are those in the shard's file.
    is_plain_file: bool,
}

struct Group {
    sample: EncodedSample,
    bytes: u64,
    problem: Option<(SkipReason, String)>,
}

impl Grouper {
    pub(crate) fn new(shard: Arc<str>, shard_index: u32, limits: SampleLimits) -> Self {
        Grouper {
            shard,
            shard_index,
            limits,
            next_index: 0,
            current: None,
            seen: HashSet::new(),
            is_repeated_key: false,
            is_plain_file: false,
        }
    }

    /// For a shard that is not compressed and read from its beginning: members know where they lie.
    pub(crate) fn of_plain_file(self, is_plain_file: bool) -> Self {
        Grouper {
            is_plain_file,
            ..self
        }
    }

    /// For the members of this one sample alone, which cannot tell whether its key is a repeated one.
    pub(crate) fn of_sample(
        shard: Arc<str>,
        shard_index: u32,
        limits: SampleLimits,
        sample_index: u32,
        is_repeated_key: bool,
    ) -> Self {
        Grouper {
            next_index: sample_index,
            is_repeated_key,
            ..Grouper::new(shard, shard_index, limits)
        }
    }

    /// Adds a member; returns the sample that it ends, if it begins a new one.
    pub(crate) fn push(&mut self, member: TarMember) -> Option<Result<EncodedSample, SampleError>> {
        let (key, extension) = split_key(&member.path)?;
        let same_key = self
            .current
            .as_ref()
            .is_some_and(|group| group.sample.id.key == key);
        let finished = if same_key {
            None
        } else {
            self.begin(key, member.offset_bytes)
        };
        // The bytes of a sparse member are nowhere in the file.
        let lies_in_file = self.is_plain_file && !member.is_sparse;
        let in_file = lies_in_file.then_some(InFile {
            offset_bytes: member.data_offset_bytes,
            left_bytes: match member.content {
                MemberContent::Left => Some(member.size_bytes),
                _ => None,
            },
        });
        if let Some(group) = &mut self.current {
            group.add(extension, member.content, in_file, self.limits);
        }
        finished
    }

    /// The last sample of the shard.
    pub(crate) fn finish(&mut self) -> Option<Result<EncodedSample, SampleError>> {
        self.current.take().map(Group::into_result)
    }

    fn begin(&mut self, key: &str, offset: u64) -> Option<Result<EncodedSample, SampleError>> {
        let id = SampleId {
            shard: self.shard.clone(),
            shard_index: self.shard_index,
            sample_index: self.next_index,
            key: key.to_string(),
            offset_bytes: offset,
        };
        self.next_index = self.next_index.saturating_add(1);
        let is_new = self.seen.insert(key_hash(key)) && !self.is_repeated_key;
        let problem = (!is_new).then(|| {
            let message = "its key was seen earlier in the shard, so its members are not \
                           adjacent; rewrite the shard with sorted names";
            (SkipReason::RepeatedKey, message.to_string())
        });
        let group = Group {
            sample: EncodedSample {
                id,
                members: Vec::new(),
            },
            bytes: 0,
            problem,
        };
        self.current.replace(group).map(Group::into_result)
    }
}

impl Group {
    fn add(
        &mut self,
        extension: String,
        content: MemberContent,
        in_file: Option<InFile>,
        limits: SampleLimits,
    ) {
        if self.problem.is_some() {
            return;
        }
        let bytes = match content {
            MemberContent::PassedOver => return,
            MemberContent::TooLarge(size) => {
                self.fail_too_large(&extension, size, limits.bytes);
                return;
            }
            MemberContent::Left => Vec::new(),
            MemberContent::Bytes(bytes) => bytes,
        };
        if self.sample.members.len() >= limits.members {
            let message = format!(
                "it has more than {} members; max_sample_members is {0}",
                limits.members
            );
            self.fail(SkipReason::SampleTooLarge, message);
            return;
        }
        if self.sample.member(&extension).is_some() {
            let message = format!("two members with the extension `{extension}`");
            self.fail(SkipReason::RepeatedMember, message);
            return;
        }
        let left = in_file.and_then(|in_file| in_file.left_bytes);
        self.bytes = self
            .bytes
            .saturating_add(left.unwrap_or(bytes.len() as u64));
        if self.bytes > limits.bytes {
            self.fail_too_large(&extension, self.bytes, limits.bytes);
            return;
        }
        self.sample.members.push(Member {
            name: extension,
            data: MemberData::Bytes(bytes),
            in_file,
        });
    }

    fn fail_too_large(&mut self, extension: &str, size: u64, limit: u64) {
        self.fail(
            SkipReason::SampleTooLarge,
            format!("with member `{extension}` it has {size} bytes; max_sample_bytes is {limit}"),
        );
    }

    fn fail(&mut self, reason: SkipReason, message: String) {
        self.sample.members.clear();
        self.problem = Some((reason, message));
    }

    fn into_result(self) -> Result<EncodedSample, SampleError> {
        match self.problem {
            None => Ok(self.sample),
            Some((reason, message)) => Err(SampleError {
                id: Box::new(self.sample.id),
                reason,
                message,
            }),
        }
    }
}

/// 128 bits that tell keys apart, within one process.
pub(crate) fn key_hash(key: &str) -> [u64; 2] {
    let hash = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, key).hash(&mut hasher);
        hasher.finish()
    };
    [hash(0), hash(1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_extensions() {
        let check = |path: &str, expected: Option<(&str, &str)>| {
            let got = split_key(path);
            let got = got
                .as_ref()
                .map(|(key, extension)| (*key, extension.as_str()));
            assert_eq!(got, expected, "{path}");
        };
        check("000.jpg", Some(("000", "jpg")));
        check("a/b.c/000.seg.PNG", Some(("a/b.c/000", "seg.png")));
        check("./000.JPG", Some(("./000", "jpg")));
        check("a.b/readme", None);
        check("dir/.hidden", None);
        check("._000.jpg", None);
        check("__index__/000.jpg", None);
        check("a/__b__/000.jpg", Some(("a/__b__/000", "jpg")));
        check("000.", Some(("000", "")));
        check("", None);
    }

    fn run(members: &[(&str, &str)]) -> Vec<String> {
        let mut grouper = Grouper::new(
            "s".into(),
            0,
            SampleLimits {
                bytes: 10,
                members: 3,
            },
        );
        let mut results = Vec::new();
        for (path, data) in members {
            let content = MemberContent::Bytes(data.as_bytes().to_vec());
            let member = TarMember {
                path: path.to_string(),
                is_utf8: true,
                offset_bytes: 0,
                data_offset_bytes: 512,
                stored_bytes: data.len() as u64,
                size_bytes: data.len() as u64,
                is_sparse: false,
                content,
            };
            results.extend(grouper.push(member));
        }
        results.extend(grouper.finish());
        let describe = |result: Result<EncodedSample, SampleError>| match result {
            Ok(sample) => {
                let names: Vec<_> = sample.members.iter().map(|m| m.name.as_str()).collect();
                format!("{}:{}", sample.id.key, names.join("+"))
            }
            Err(error) => format!("{}!{}", error.id.key, error.reason),
        };
        results.into_iter().map(describe).collect()
    }

    #[test]
    fn groups_and_their_errors() {
        assert_eq!(
            run(&[
                ("1.jpg", ""),
                ("1.txt", ""),
                ("x", ""),
                ("2.txt", ""),
                ("2.jpg", "")
            ]),
            ["1:jpg+txt", "2:txt+jpg"]
        );
        assert_eq!(
            run(&[("1.a", ""), ("1.b", ""), ("1.c", ""), ("2.a", "")]),
            ["1:a+b+c", "2:a"]
        );
        assert_eq!(
            run(&[("1.a", ""), ("1.b", ""), ("1.c", ""), ("1.d", "")]),
            ["1!sample_too_large"]
        );
        assert_eq!(
            run(&[("1.jpg", ""), ("1.JPG", ""), ("2.jpg", "")]),
            ["1!repeated_member", "2:jpg"]
        );
        assert_eq!(
            run(&[
                ("1.jpg", ""),
                ("2.jpg", ""),
                ("1.txt", ""),
                ("1.cls", ""),
                ("3.txt", "")
            ]),
            ["1:jpg", "2:jpg", "1!repeated_key", "3:txt"]
        );
        assert_eq!(
            run(&[("1.jpg", "123456"), ("1.txt", "78901")]),
            ["1!sample_too_large"]
        );
        assert_eq!(run(&[]), Vec::<String>::new());
    }
}
