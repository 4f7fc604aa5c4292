//! Archives of every kind that GNU tar and Python's tarfile write, against what tarfile finds in them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::test_data;
use qf_pipeline::index::{build_index, read_samples, Checksums, Found, ShardIndex};
use qf_pipeline::shard::read::{read_shard, NoObserver, ReadOptions};
use qf_pipeline::source::ShardLocation;
use qf_pipeline::stop::Stop;
use qf_pipeline::{EncodedSample, MemberData};

/// Writes archives into the working folder and prints, for each, what tarfile's own reader finds by
/// webdataset's rule for names: [archive, [[key, {extension: contents in hexadecimal digits}]]].
const MAKE: &str = r#"
import io, json, os, subprocess, tarfile
from webdataset import tariterators

LONG = "folder/" * 20 + "k" * 120
NAMES = ["a", "b.v2/c", "ünïcode", "with blank", "line\nbreak", LONG]

os.mkdir("files")
for number, name in enumerate(NAMES):
    path = os.path.join("files", name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".jpg", "wb") as file:
        file.write(bytes(range(256)) * (number * 7))
    with open(path + ".txt", "w") as file:
        file.write(f"caption {number}")
# Holes at the beginning, in the middle and at the end, many of them, and nothing but one.
for name, size, pieces in [
    ("h1", 300_000, [(0, 5), (65_536, 4096), (200_000, 777)]),
    ("h2", 1 << 20, [(at, 512) for at in range(4096, 1 << 20, 32_768)]),
    ("h3", 100_000, []),
    ("h4", 70_001, [(65_536, 4465)]),
]:
    with open(f"files/{name}.jpg", "wb") as file:
        for offset, count in pieces:
            file.seek(offset)
            file.write(b"x" * count)
        file.truncate(size)
    with open(f"files/{name}.txt", "w") as file:
        file.write(name)
os.symlink("a.jpg", "files/link.jpg")
os.link("files/a.jpg", "files/z.jpg")
os.mkfifo("files/pipe.jpg")
os.setxattr("files/a.jpg", "user.binary", b"\n12 path=x\n\x00\xff=" * 20) if hasattr(os, "setxattr") else None

def gnu(name, *options):
    files = sorted(os.listdir("files"))
    subprocess.run(["tar", "-cf", name, *options, "-C", "files", *files], check=True, capture_output=True)
    return name

archives = [
    gnu("gnu.tar", "--format=gnu"),
    gnu("oldgnu.tar", "--format=oldgnu"),
    gnu("posix.tar", "--format=posix", "--xattrs"),
    gnu("label.tar", "--format=gnu", "--label=volume one"),
    gnu("posix-label.tar", "--format=posix", "--label=volume one"),
    gnu("gnu-sparse.tar", "--format=gnu", "--sparse"),
    gnu("oldgnu-sparse.tar", "--format=oldgnu", "--sparse"),
    gnu("incremental.tar", "--format=gnu", "--listed-incremental=snapshot"),
    gnu("blocks.tar", "--format=gnu", "--blocking-factor=1"),
    gnu("deleted.tar", "--format=posix", "--pax-option=delete=mtime,comment:=two%0Alines"),
]
for version in ["0.0", "0.1", "1.0"]:
    archives.append(gnu(f"sparse-{version}.tar", "--format=posix", "--sparse", f"--sparse-version={version}"))
subprocess.run(["tar", "-cf", "ustar.tar", "--format=ustar", "-C", "files", "a.jpg", "a.txt", "b.v2", "z.jpg"], check=True)
subprocess.run(["tar", "-cf", "v7.tar", "--format=v7", "-C", "files", "a.jpg", "a.txt", "b.v2", "link.jpg"], check=True)
archives += ["ustar.tar", "v7.tar"]

def python(name, format, pax_headers={}, **fields):
    with tarfile.open(name, "w", format=format, pax_headers=pax_headers) as archive:
        for number in range(3):
            for extension, data in [("jpg", bytes([number]) * (1000 + number)), ("txt", b"text")]:
                info = tarfile.TarInfo(f"k{number}.{extension}")
                info.size = len(data)
                for field, value in fields.items():
                    setattr(info, field, value)
                archive.addfile(info, io.BytesIO(data))
    archives.append(name)

python("base256.tar", tarfile.GNU_FORMAT, mtime=-5, uid=1 << 40, gid=1 << 50)
python("global.tar", tarfile.PAX_FORMAT, pax_headers={"comment": "a\nb", "mtime": "1.5"})
python("records.tar", tarfile.PAX_FORMAT, mtime=1.25, uid=1 << 40,
       pax_headers={}, uname="ü\n", gname="g" * 70)

def edit(name, source, change):
    blocks = bytearray(open(source, "rb").read())
    change(blocks)
    open(name, "wb").write(blocks)
    archives.append(name)

def header(blocks, start, **fields):
    for at, value in fields.values():
        blocks[start + at:start + at + len(value)] = value
    blocks[start + 148:start + 156] = b" " * 8

def signed_sums(blocks):
    # Of a name with bytes above 127: as archivers summed whose characters had signs.
    name = "é.jpg".encode()
    header(blocks, 0, name=(0, name.ljust(100, b"\0")))
    total = sum(byte - 256 if byte > 127 else byte for byte in blocks[:512])
    blocks[148:156] = b"%06o\0 " % total

def blank_fields(blocks):
    # A folder whose numbers were left blank.
    folder = bytearray(512)
    folder[:4] = b"dir/"
    folder[100:148] = b" " * 48
    folder[156] = ord("5")
    header(folder, 0)
    folder[148:156] = b"%06o\0 " % sum(folder)
    blocks[0:0] = folder

def base256_size(blocks):
    header(blocks, 0, size=(124, b"\x80" + (1000).to_bytes(11, "big")))
    blocks[148:156] = b"%06o\0 " % sum(blocks[:512])

def link_with_size(blocks):
    link = bytearray(512)
    link[:8] = b"link.jpg"
    link[124:136] = b"00000001750\0"
    link[156:161] = b"1a.jp"
    header(link, 0)
    link[148:156] = b"%06o\0 " % sum(link)
    blocks[0:0] = link

python("plain.tar", tarfile.USTAR_FORMAT)
edit("signed.tar", "plain.tar", signed_sums)
edit("blank.tar", "plain.tar", blank_fields)
edit("base256-size.tar", "plain.tar", base256_size)
edit("link-size.tar", "plain.tar", link_with_size)

def pax(records):
    def record(key, value):
        content = b" " + key + b"=" + value + b"\n"
        length = len(content) + len(str(len(content)))
        length = len(content) + len(str(length))
        return b"%d" % length + content
    data = b"".join(record(*pair) for pair in records)
    block = bytearray(512)
    block[:5] = b"@PaxH"
    block[124:136] = b"%011o\0" % len(data)
    block[156] = ord("x")
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return block + data.ljust(-(-len(data) // 512) * 512, b"\0")

def with_pax(*records):
    def change(blocks):
        blocks[0:0] = pax(records)
    return change

edit("hdrcharset.tar", "plain.tar", with_pax((b"hdrcharset", b"BINARY"), (b"path", "ü.jpg".encode())))
edit("huge-xattr.tar", "plain.tar", with_pax((b"SCHILY.xattr.user.x", bytes(range(256)) * 9000)))
def wrong_size(blocks):
    # As of members above 8 GiB, whose own header cannot say how long they are.
    header(blocks, 0, size=(124, b"00000000000\0"))
    blocks[148:156] = b"%06o\0 " % sum(blocks[:512])
    blocks[0:0] = pax([(b"size", b"1000")])
edit("pax-size.tar", "plain.tar", wrong_size)

def found(path):
    samples = []
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            if not member.isreg():
                continue
            key, extension = tariterators.base_plus_ext(member.name)
            if key is None or member.name.rsplit("/", 1)[-1].startswith("."):
                continue
            if not samples or samples[-1][0] != key:
                samples.append([key, {}])
            samples[-1][1][extension.lower()] = archive.extractfile(member).read().hex()
    return samples

# tarfile takes the times in the header of an incremental archive for a part of the name; GNU tar wrote
# the same files as elsewhere, folder by folder.
stands_for = {"incremental.tar": "gnu.tar"}
print(json.dumps([[name, found(stands_for.get(name, name))] for name in archives]))
"#;

type Contents = Vec<(String, BTreeMap<String, String>)>;

fn contents(samples: &mut Contents, sample: EncodedSample) {
    let hex = |data: &MemberData| match data {
        MemberData::Bytes(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        MemberData::Text(_) => panic!("no Arrow here"),
    };
    let members = sample.members.iter();
    let members = members.map(|member| (member.name.clone(), hex(&member.data)));
    samples.push((sample.id.key.clone(), members.collect()));
}

fn streamed(shard: &ShardLocation) -> Contents {
    let mut samples = Contents::new();
    let mut visit = |sample: Result<EncodedSample, _>| {
        contents(&mut samples, sample.unwrap());
        true
    };
    let (options, stop) = (ReadOptions::default(), Stop::default());
    let notes = read_shard(shard, 0, &options, &NoObserver, &stop, &mut visit).unwrap();
    assert_eq!(notes, [], "{}", shard.name);
    samples
}

fn indexed(shard: &ShardLocation) -> Contents {
    let (options, stop) = (ReadOptions::default(), Stop::default());
    let index = build_index(shard, &options, Checksums::Taken, &stop, &|_| {}).unwrap();
    index.write_beside(shard).unwrap();
    let Found::Index(index) = ShardIndex::find(shard, &stop).unwrap() else {
        panic!("{} has an index", shard.name);
    };
    let wanted: Vec<u32> = (0..index.len()).collect();
    let mut samples = Contents::new();
    let mut visit = |_, sample: Result<EncodedSample, _>| {
        contents(&mut samples, sample.unwrap());
        true
    };
    read_samples(
        shard,
        0,
        &index,
        &wanted,
        &options,
        &NoObserver,
        &stop,
        &mut visit,
    )
    .unwrap();
    samples
}

#[test]
fn archives_of_every_kind_hold_what_python_finds() {
    let test = "archives_of_every_kind_hold_what_python_finds";
    let Some(python) = test_data::python(test) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(python)
        .current_dir(folder.path())
        .args(["-c", MAKE])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let archives: Vec<(String, Contents)> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(archives.len() > 20);
    let mut samples = 0;
    for (name, mut expected) in archives {
        let is_ordered = name != "incremental.tar";
        if !is_ordered {
            expected.sort();
        }
        let shard = ShardLocation::local(folder.path().join(&name));
        let keys = |contents: &Contents| -> Vec<String> {
            contents.iter().map(|(key, _)| key.clone()).collect()
        };
        for mut found in [streamed(&shard), indexed(&shard)] {
            if !is_ordered {
                found.sort();
            }
            assert_eq!(keys(&found), keys(&expected), "{name}");
            assert!(found == expected, "{name}");
        }
        samples += expected.len();
    }
    assert!(samples > 100, "{samples}");
}

/// Volumes of one archive are no archives.
#[test]
fn volumes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for number in 0..8 {
        std::fs::write(path(&format!("{number}.jpg")), vec![number; 7000]).unwrap();
    }
    let tar = |options: &[&str], files: &[String]| {
        let mut command = Command::new("tar");
        command.current_dir(folder.path()).args(options).args(files);
        assert!(command.output().unwrap().status.success());
    };
    let files: Vec<String> = (0..8).map(|number| format!("{number}.jpg")).collect();
    let volumes = [
        "-c", "-M", "-L", "20", "-f", "v1.tar", "-f", "v2.tar", "-f", "v3.tar", "-f", "v4.tar",
    ];
    tar(&volumes, &files);
    let error = |path: &Path| {
        let shard = ShardLocation::local(path);
        let (options, stop) = (ReadOptions::default(), Stop::default());
        let read = read_shard(&shard, 0, &options, &NoObserver, &stop, &mut |_| true);
        read.unwrap_err().to_string()
    };
    let first = error(&path("v1.tar"));
    assert!(first.contains("truncated"), "{first}");
    let second = error(&path("v2.tar"));
    assert!(second.contains("another volume"), "{second}");
}
