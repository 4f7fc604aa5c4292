//! Shards on a plain web server: the commands print and write what they do of the same shards on disk.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use crate::{complaint, photographs, run};

/// Serves the files of a folder until the test ends; where from.
fn serve(folder: &Path) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let folder = folder.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let folder = folder.clone();
            std::thread::spawn(move || answer(stream.unwrap(), &folder));
        }
    });
    format!("http://127.0.0.1:{port}")
}

/// GET and HEAD of files, whole or a range. Folders are not listed.
fn answer(mut stream: TcpStream, folder: &Path) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mut request = String::new();
    let mut range = None;
    while let Some(Ok(line)) = lines.next() {
        match line.split_once(": ") {
            _ if line.is_empty() => break,
            Some((name, value)) if name.eq_ignore_ascii_case("range") => {
                range = value.strip_prefix("bytes=").map(str::to_owned);
            }
            Some(_) => {}
            None => request = line,
        }
    }
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let path: PathBuf = folder.join(path.trim_start_matches('/'));
    let Ok(content) = fs::read(path) else {
        return stream.write_all(
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        );
    };
    let last = content.len() - 1;
    let (status, begin, end) = match &range {
        None => ("200 OK", 0, last),
        Some(range) => {
            let (begin, end) = range.split_once('-').unwrap();
            let end = end.parse().unwrap_or(last).min(last);
            ("206 Partial Content", begin.parse().unwrap(), end)
        }
    };
    let part = &content[begin..=end];
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Range: bytes {begin}-{end}/{}\r\n\
         Accept-Ranges: bytes\r\nConnection: close\r\n\r\n",
        part.len(),
        content.len()
    )?;
    if method != "HEAD" {
        stream.write_all(part)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.read_to_end(&mut Vec::new()).map(|_| ())
}

#[test]
fn commands_read_shards_of_a_web_server() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let formats = ["tar", "tar.zst", "arrow"];
    for format in formats {
        if photographs("commands_read_shards_of_a_web_server", folder, 12, format).is_none() {
            return;
        }
    }
    let server = serve(folder);
    for format in formats {
        let names = format!("s-{{000000..000001}}.{format}");
        let remote = format!("{server}/{names}");
        for command in [
            &["ls", "--long"][..],
            &["ls", "--json"],
            &["head", "-n", "11"],
            &["cat", "--member", "*.txt", "--member", "*.caption"],
            &["stats"],
            &["verify", "--json"],
            &["index", "--check"],
        ] {
            let code = if command[0] == "cat" && format == "arrow" {
                None
            } else {
                Some(0)
            };
            let of = |shards: &str| {
                let output = crate::qfdata(folder, &[command, &[shards]].concat());
                if let Some(code) = code {
                    assert_eq!(output.status.code(), Some(code), "{command:?}: {output:?}");
                }
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                // Seconds differ.
                let lines = text
                    .lines()
                    .map(|line| line.split(" in 0.").next().unwrap());
                lines.collect::<Vec<_>>().join("\n")
            };
            let local = of(&names);
            assert!(!local.is_empty() || code.is_none(), "{command:?}");
            let found = of(&remote).replace(&format!("{server}/"), "");
            assert!(found == local, "{command:?} of {format}:\n{found}\n{local}");
        }
        // What is written of them is the same, too.
        for (command, target, written) in [
            (&["convert", "--format", "tar"][..], "c", "c/s-000001.tar"),
            (
                &["split", "--max-count", "4", "--format", "tar"],
                "p",
                "p-000002.tar",
            ),
            (&["merge"], "m.tar", "m.tar"),
            (&["extract"], "x", "x/000011.txt"),
            (&["view"], "v.html", "v.html"),
        ] {
            let of = |shards: &str| {
                run(folder, 0, &[command, &[shards, "--out", target]].concat());
                let content = fs::read(folder.join(written));
                for path in [target, "c", "x"] {
                    let _ = fs::remove_dir_all(folder.join(path));
                }
                for path in [
                    "p-000000.tar",
                    "p-000001.tar",
                    "p-000002.tar",
                    "m.tar",
                    "v.html",
                ] {
                    let _ = fs::remove_file(folder.join(path));
                    let _ = fs::remove_file(folder.join(format!("{path}.qfidx")));
                }
                String::from_utf8_lossy(&content.unwrap()).replace(&format!("{server}/"), "")
            };
            let (local, found) = (of(&names), of(&remote));
            assert!(found == local, "{command:?} of {format}");
        }
    }
    // A web server lists nothing.
    for pattern in ["s-*.tar", ""] {
        let message = complaint(folder, 1, &["ls", &format!("{server}/{pattern}")]);
        assert!(
            message.contains("has no listing; name every shard"),
            "{message}"
        );
    }
    let message = complaint(folder, 1, &["verify", &format!("{server}/none.tar")]);
    assert!(message.contains("404 Not Found"), "{message}");
}
