//! A trace read back, and checked against the format.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::PipelineError;

/// What a trace holds, by track.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TraceFile {
    /// Tracks with a span or a name, in the order that viewers show.
    pub tracks: Vec<TraceTrackFile>,
    /// Values of counters, in the order of the file.
    pub counters: Vec<CounterEvent>,
    /// What the writer says of the trace as a whole.
    pub other_data: Map<String, Value>,
}

/// A track of a [`TraceFile`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TraceTrackFile {
    /// Process and thread (or whatever the track is).
    pub id: (u64, u64),
    /// Its name.
    pub name: String,
    /// Its place among the tracks of its process.
    pub sort_index: f64,
    /// Its spans by beginning, outer ones first; they nest.
    pub spans: Vec<SpanEvent>,
}

/// A span of a track.
#[derive(Clone, Debug, PartialEq)]
pub struct SpanEvent {
    /// What was done.
    pub name: String,
    /// When it began, ns on the trace's clock.
    pub start_ns: u64,
    /// How long it took, ns.
    pub duration_ns: u64,
    /// What else is said of it.
    pub args: Map<String, Value>,
}

impl SpanEvent {
    /// When it was over, ns.
    pub fn end_ns(&self) -> u64 {
        self.start_ns.saturating_add(self.duration_ns)
    }
}

/// A value of a counter.
#[derive(Clone, Debug, PartialEq)]
pub struct CounterEvent {
    /// Which counter.
    pub name: String,
    /// From when on, ns on the trace's clock.
    pub at_ns: u64,
    /// The value.
    pub value: f64,
}

impl TraceFile {
    /// Reads a trace that [`Trace`](super::Trace) wrote.
    ///
    /// # Errors
    /// [`PipelineError::Io`] naming the file, also where [`TraceFile::parse`] fails.
    pub fn read(path: impl AsRef<Path>) -> Result<TraceFile, PipelineError> {
        let path = path.as_ref();
        let parsed = std::fs::read(path).and_then(|bytes| {
            Self::parse(&bytes)
                .map_err(|message| std::io::Error::new(std::io::ErrorKind::InvalidData, message))
        });
        parsed.map_err(|source| PipelineError::Io {
            path: path.to_path_buf(),
            source,
        })
    }

    /// Takes the JSON object form of the Trace Event Format, of events complete (`X`), counter (`C`) with
    /// one value, and metadata (`M`).
    ///
    /// # Errors
    /// What does not fit the format and, where it is an event, its number: a field that is missing or of
    /// another type, a time that is no finite number from 0 on, spans of a track that overlap in part, a
    /// span on a track without a name.
    pub fn parse(bytes: &[u8]) -> Result<TraceFile, String> {
        let root: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let events = root.get("traceEvents").and_then(Value::as_array);
        let events = events.ok_or("no array `traceEvents`")?;
        match root.get("displayTimeUnit").and_then(Value::as_str) {
            Some("ms" | "ns") => {}
            _ => return Err("`displayTimeUnit` is neither `ms` nor `ns`".into()),
        }
        let mut file = TraceFile::default();
        if let Some(other) = root.get("otherData").and_then(Value::as_object) {
            file.other_data = other.clone();
        }
        let mut tracks = BTreeMap::new();
        for (number, event) in events.iter().enumerate() {
            file.add(event, &mut tracks)
                .map_err(|error| format!("event {number}: {error}: {event}"))?;
        }
        file.tracks = tracks.into_values().collect();
        for track in &mut file.tracks {
            track.check()?;
        }
        file.tracks.sort_by(|a, b| {
            let process = a.id.0.cmp(&b.id.0);
            process.then(a.sort_index.total_cmp(&b.sort_index))
        });
        Ok(file)
    }

    /// Tracks of this name: threads that followed one another may share one.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a TraceTrackFile> {
        self.tracks.iter().filter(move |track| track.name == name)
    }

    /// Spans of this name on all tracks.
    pub fn spans<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a SpanEvent> {
        let all = self.tracks.iter().flat_map(|track| &track.spans);
        all.filter(move |span| span.name == name)
    }

    fn add(
        &mut self,
        event: &Value,
        tracks: &mut BTreeMap<(u64, u64), TraceTrackFile>,
    ) -> Result<(), String> {
        let whole = |name: &str| {
            let number = event.get(name).and_then(Value::as_u64);
            number.ok_or_else(|| format!("`{name}` is no whole number"))
        };
        let text = |name: &str| {
            let text = event.get(name).and_then(Value::as_str);
            text.ok_or_else(|| format!("`{name}` is no text"))
        };
        let time = |name: &str| {
            let micros = event.get(name).and_then(Value::as_f64);
            match micros.filter(|micros| micros.is_finite() && *micros >= 0.0) {
                Some(micros) => Ok((micros * 1000.0).round() as u64),
                None => Err(format!("`{name}` is no time in µs")),
            }
        };
        let args = match event.get("args") {
            None => Map::new(),
            Some(Value::Object(args)) => args.clone(),
            Some(_) => return Err("`args` is no object".into()),
        };
        let id = (whole("pid")?, whole("tid")?);
        let name = text("name")?;
        let new_track = || TraceTrackFile {
            id,
            ..TraceTrackFile::default()
        };
        match text("ph")? {
            "X" => {
                let span = SpanEvent {
                    name: name.to_string(),
                    start_ns: time("ts")?,
                    duration_ns: time("dur")?,
                    args,
                };
                tracks.entry(id).or_insert_with(new_track).spans.push(span);
            }
            "C" => {
                let mut values = args.values();
                let (Some(value), None) = (values.next().and_then(Value::as_f64), values.next())
                else {
                    return Err("a counter without exactly one number".into());
                };
                self.counters.push(CounterEvent {
                    name: name.to_string(),
                    at_ns: time("ts")?,
                    value,
                });
            }
            "M" => {
                let value = |arg: &str| {
                    let value = args.get(arg);
                    value.ok_or_else(|| format!("`{name}` without `args.{arg}`"))
                };
                let not_text = || format!("the {name} is no text");
                match name {
                    "thread_name" => {
                        let value = value("name")?.as_str().ok_or_else(not_text)?;
                        tracks.entry(id).or_insert_with(new_track).name = value.to_string();
                    }
                    "thread_sort_index" => {
                        let value = value("sort_index")?.as_f64();
                        let value = value.ok_or("the sort index is not a number")?;
                        tracks.entry(id).or_insert_with(new_track).sort_index = value;
                    }
                    "process_name" => {
                        value("name")?.as_str().ok_or_else(not_text)?;
                    }
                    "process_labels" => {
                        value("labels")?.as_str().ok_or_else(not_text)?;
                    }
                    _ => return Err(format!("metadata `{name}` is unknown")),
                }
            }
            phase => return Err(format!("phase `{phase}` is not X, C or M")),
        }
        Ok(())
    }
}

impl TraceTrackFile {
    /// Sorts the spans and looks whether they nest.
    fn check(&mut self) -> Result<(), String> {
        let TraceTrackFile {
            id, name, spans, ..
        } = self;
        if name.is_empty() {
            return Err(format!("track {id:?} has no name"));
        }
        spans.sort_by_key(|span| (span.start_ns, std::cmp::Reverse(span.duration_ns)));
        let mut open: Vec<&SpanEvent> = Vec::new();
        for span in spans.iter() {
            while open
                .last()
                .is_some_and(|outer| outer.end_ns() <= span.start_ns)
            {
                open.pop();
            }
            if let Some(outer) = open.last().filter(|outer| outer.end_ns() < span.end_ns()) {
                return Err(format!(
                    "on track `{name}`, `{}` ({} to {} ns) overlaps `{}` ({} to {} ns) in part",
                    span.name,
                    span.start_ns,
                    span.end_ns(),
                    outer.name,
                    outer.start_ns,
                    outer.end_ns()
                ));
            }
            open.push(span);
        }
        Ok(())
    }
}
