//! `qfdata view --serve`: all samples, page by page, with search and filters.

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;

use qf_cli::output::{remark, say};
use qf_cli::page::{Images, Page, Text};
use qf_cli::serve::{Handler, Request, Response, Server};
use qf_pipeline::augment::SampleRng;
use qf_pipeline::config::Processing;
use qf_pipeline::image_stage::ImageSettings;
use qf_pipeline::source::ShardLocation;
use qf_pipeline::stop::Stop;
use qf_pipeline::words::counted;
use qf_pipeline::LoaderConfig;

use super::fetch;
use super::page::{write_sample, Shown, STYLE};
use super::picture::{in_aspect, SHEET_SIDE};
use super::store::{Filter, Found, Record, Store};
use crate::inspect::codes;
use crate::inspect::{inspect, Event, InspectOptions};
use crate::interrupt::Interrupt;
use crate::stats::Tally;

/// Samples on a page.
const PAGE: usize = 48;

/// What requests are answered from.
struct Site {
    shards: Vec<ShardLocation>,
    config: LoaderConfig,
    settings: ImageSettings,
    store: Store,
    stop: Stop,
}

/// Serves pages until the user interrupts; shards are read meanwhile.
pub(super) fn run(
    address: SocketAddr,
    shards: Vec<ShardLocation>,
    (config, threads): (LoaderConfig, Option<u16>),
    mut tally: Tally,
    interrupt: &Interrupt,
) -> anyhow::Result<()> {
    let server = Server::bind(address)?;
    if !server.address().ip().is_loopback() {
        remark(format_args!(
            "everyone who reaches {} can look at the data set",
            server.address()
        ));
    }
    say(format_args!(
        "http://{}/ (Ctrl-C ends it)",
        server.address()
    ))?;
    // Headers only: a large set is listed as fast as it is read.
    let options = InspectOptions {
        decode: false,
        ..InspectOptions::new(config.clone(), threads)
    };
    let whole = LoaderConfig {
        processing: Processing::Eval,
        image_size: SHEET_SIDE,
        ..config.clone()
    };
    let site = Arc::new(Site {
        shards,
        settings: ImageSettings::new(&whole)?,
        config,
        store: Store::new()?,
        stop: interrupt.stop(),
    });
    let reading = site.clone();
    let stop = interrupt.stop();
    let reader = std::thread::Builder::new()
        .name("qf-look".into())
        .spawn(move || {
            let read = inspect(&reading.shards, &options, &stop, &mut |event| {
                match event {
                    Event::Sample(facts) => {
                        let place = (facts.id.shard_index, facts.id.sample_index);
                        let shown = Shown::of(&facts, &mut tally)?;
                        reading.store.push(&Record::new(place, shown))?;
                    }
                    Event::ShardEnd(end) if !end.is_whole => {
                        for finding in end.findings {
                            log::warn!(
                                "{} {}: {}",
                                finding.code.id,
                                finding.shard,
                                finding.message
                            );
                        }
                    }
                    Event::ShardEnd(_) => {}
                }
                Ok(true)
            });
            if let Err(error) = read {
                log::error!("{error:#}");
            }
            reading.store.close();
        })?;
    let answering = site.clone();
    let handler: Handler = Arc::new(move |request: &Request| {
        let answered = answering.answer(request);
        answered.unwrap_or_else(|error| Response::plain(500, &format!("{error:#}")))
    });
    server.run(handler, &|| interrupt.check().is_err());
    site.stop.set();
    // It ends at the next sample.
    let _ = reader.join();
    Ok(())
}

impl Site {
    fn answer(&self, request: &Request) -> anyhow::Result<Response> {
        if request.path == "/" {
            return self.page(request);
        }
        let number = request.path.strip_prefix("/image/");
        match number.and_then(|number| number.parse().ok()) {
            Some(number) => self.image(number),
            None => Ok(Response::plain(404, "there is / and /image/NUMBER")),
        }
    }

    fn image(&self, number: u64) -> anyhow::Result<Response> {
        let gone = || Ok(Response::plain(404, "there is no such picture"));
        let Some(record) = self.store.get(number)? else {
            return gone();
        };
        let samples = fetch::samples(&self.shards, &[record.place], &self.config, &self.stop);
        let column = self.config.image_column.as_deref();
        let image = samples
            .get(&record.place)
            .and_then(|sample| sample.image(column));
        let mut stage = self.settings.stage();
        let Some(Ok(opened)) = image
            .and_then(|member| member.bytes())
            .map(|bytes| stage.open(bytes))
        else {
            return gone();
        };
        let mut pixels = stage.blank();
        // The evaluation transform draws nothing.
        let mut rng = SampleRng::new(0, 0, 0, 0);
        if stage.render(&opened, &mut rng, pixels.as_mut()).is_err() {
            return gone();
        }
        let picture = in_aspect(&pixels, (opened.width(), opened.height()))?;
        Ok(Response {
            status: 200,
            content_type: "image/jpeg",
            body: picture.jpeg,
        })
    }

    fn page(&self, request: &Request) -> anyhow::Result<Response> {
        let number = |name: &str| {
            request
                .value(name)
                .and_then(|value| value.parse::<u64>().ok())
        };
        let side = |name| number(name).and_then(|side| u32::try_from(side).ok());
        let words = request.value("words").unwrap_or_default().to_lowercase();
        let filter = Filter {
            words: words.split_whitespace().map(str::to_owned).collect(),
            problem: request.value("problem").map(str::to_owned),
            min_side: side("min_side"),
            max_side: side("max_side"),
            format: request.value("format").map(str::to_owned),
        };
        let from = number("from").unwrap_or(0);
        let found = self.store.find(from, PAGE, &filter)?;
        let (count, is_whole) = self.store.len();
        let shards = counted(self.shards.len() as u64, "shard", "shards");
        let samples = counted(count, "sample", "samples");
        let lede = match is_whole {
            true => format!("{samples} in {shards}"),
            false => format!("{samples} so far, {shards} are being read: reload for more"),
        };
        let mut page = Page::new(
            ("Data set", "Data set"),
            &lede,
            &[],
            STYLE,
            Images::SameOrigin,
        );
        write_form(&mut page, request)?;
        write_links(&mut page, request, from, &found)?;
        writeln!(page, "<main class=\"grid sheet\">")?;
        for (number, record) in &found.records {
            let shown = record.shown();
            let source = shown.picture.map(|_| format!("/image/{number}"));
            write_sample(&mut page, &shown, source.as_deref())?;
        }
        writeln!(page, "</main>")?;
        if found.records.is_empty() {
            writeln!(page, "<p class=\"none\">nothing is like that</p>")?;
        }
        write_links(&mut page, request, from, &found)?;
        Ok(Response::html(page.finish()))
    }
}

fn write_form(page: &mut Page, request: &Request) -> std::fmt::Result {
    let value = |name: &str| request.value(name).unwrap_or_default();
    writeln!(
        page,
        "<form method=\"get\" action=\"/\">\n<label class=\"words\">words in captions or keys\
         <input name=\"words\" type=\"search\" value=\"{}\"></label>",
        Text(value("words"))
    )?;
    writeln!(page, "<label>problem<select name=\"problem\">")?;
    let problems = [
        ("", "any"),
        ("none", "no error or warning"),
        ("error", "errors"),
        ("warning", "warnings"),
        ("note", "notes"),
    ];
    let of_samples = codes::ALL.iter().filter(|code| {
        ["C", "I", "T", "A"]
            .iter()
            .any(|group| code.id[3..].starts_with(group))
    });
    let codes = of_samples.map(|code| (code.id, code.title));
    for (name, title) in problems.into_iter().chain(codes) {
        write_option(page, name, title, value("problem"))?;
    }
    writeln!(
        page,
        "</select></label>\n<label>format<select name=\"format\">"
    )?;
    for name in ["", "JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF"] {
        let title = if name.is_empty() { "any" } else { name };
        write_option(page, name, title, value("format"))?;
    }
    writeln!(page, "</select></label>")?;
    for (name, label) in [
        ("min_side", "shorter side from"),
        ("max_side", "to, pixels"),
    ] {
        let value = Text(value(name));
        writeln!(page, "<label>{label}<input name=\"{name}\" type=\"number\" min=\"0\" value=\"{value}\"></label>")?;
    }
    writeln!(page, "<button>Search</button>\n</form>")
}

fn write_option(page: &mut Page, name: &str, title: &str, chosen: &str) -> std::fmt::Result {
    let selected = if name == chosen { " selected" } else { "" };
    writeln!(
        page,
        "<option value=\"{name}\"{selected}>{}</option>",
        Text(title)
    )
}

/// To the first page and the next one.
fn write_links(page: &mut Page, request: &Request, from: u64, found: &Found) -> std::fmt::Result {
    let kept: String = request
        .query
        .iter()
        .filter(|(name, value)| name != "from" && !value.is_empty())
        .map(|(name, value)| format!("{}={}&", encoded(name), encoded(value)))
        .collect();
    writeln!(page, "<nav>")?;
    if from > 0 {
        writeln!(page, "<a href=\"/?{}\">first page</a>", Text(&kept))?;
    }
    if let (Some((first, _)), Some((last, _))) = (found.records.first(), found.records.last()) {
        writeln!(page, "<span>numbers {first} to {last}</span>")?;
    }
    if let Some(next) = found.next {
        writeln!(
            page,
            "<a href=\"/?{}from={next}\">next page</a>",
            Text(&kept)
        )?;
    }
    writeln!(page, "</nav>")
}

/// A text as a part of a URL's query.
fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
            char::from(byte).to_string()
        }
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}
