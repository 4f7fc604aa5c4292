//! Who watches a run: the terminal and train.log, alerts, TensorBoard's event files, the report.

mod alerts;
mod metrics_server;
mod prometheus;
mod screen;
mod smooth;
mod tensorboard;

use std::time::{Duration, Instant};

use qf_model::run_dir::RunDir;
use qf_model::train::{MetricsLine, MetricsRecord, Observer, RunView};
use qf_model::Blip2Qformer;
use qftrain::args::{EventLevel, TrainArgs};
use tch::Kind;

use self::alerts::Alerts;
pub(crate) use self::metrics_server::MetricsServer;
use self::screen::Screen;
use self::tensorboard::{EventFile, Histogram, Picture};
use crate::gallery::{Gallery, GalleryMaker};
use crate::report::Refresh;
use crate::session::write_file;
use qf_cli::output::say_data;

/// Time between two looks at held-out images, at least.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// A look takes this share of the time at most.
const LOOK_SHARE: u32 = 20;

/// Bins of a histogram.
const BINS: i64 = 64;

/// Sees all of a run on rank 0.
pub(crate) struct Watcher {
    run_dir: RunDir,
    screen: Screen,
    alerts: Alerts,
    level: EventLevel,
    first_step: u64,
    events: Option<EventFile>,
    prints_json: bool,
    gallery: Option<GalleryMaker>,
    /// When the images are looked at again, unless the run ends before.
    next_look: Instant,
    refresh: Refresh,
    metrics: Option<MetricsServer>,
}

impl Watcher {
    /// Of a run in `run_dir` that goes on after `step`, as `args` say; `gallery` looks at held-out images, and
    /// `metrics` serves figures.
    pub(crate) fn new(
        run_dir: &RunDir,
        (step, steps): (u64, u64),
        args: &TrainArgs,
        gallery: Option<GalleryMaker>,
        metrics: Option<MetricsServer>,
    ) -> Watcher {
        Watcher {
            run_dir: run_dir.clone(),
            screen: Screen::new(step, steps),
            alerts: Alerts::new(),
            level: args.tensorboard,
            first_step: step,
            events: None,
            prints_json: args.json,
            gallery,
            next_look: Instant::now() + LOOK_INTERVAL,
            refresh: Refresh::new(run_dir),
            metrics,
        }
    }

    /// Ends what is shown, and waits for the report that is being written.
    pub(crate) fn finish(&mut self) {
        self.screen.finish();
        self.refresh.wait();
    }

    /// Writes to the event file, as long as that works. There is one from the first record on.
    fn write_events(&mut self, write: impl FnOnce(&mut EventFile) -> anyhow::Result<()>) {
        if self.level == EventLevel::Off {
            return;
        }
        let written = match &mut self.events {
            Some(events) => write(events),
            none => EventFile::create(&self.run_dir.tensorboard(), self.first_step)
                .and_then(|events| write(none.insert(events))),
        };
        if let Err(error) = written {
            log::warn!("{error:#}; no more is written for TensorBoard");
            self.level = EventLevel::Off;
        }
    }

    fn look_at_images(&mut self, model: &Blip2Qformer, step: u64) {
        let Some(maker) = &mut self.gallery else {
            return;
        };
        let started = Instant::now();
        let made = maker.make(model, step);
        self.next_look = Instant::now() + LOOK_INTERVAL.max(LOOK_SHARE * started.elapsed());
        let gallery = match made {
            Ok(gallery) => gallery,
            Err(error) => {
                log::warn!("no held-out images are shown: {error:#}");
                self.gallery = None;
                return;
            }
        };
        let path = self.run_dir.gallery();
        let _: Option<()> = or_warn(gallery.write(&path));
        if self.level >= EventLevel::Images {
            self.write_events(|events| write_gallery(events, &gallery));
        }
    }
}

impl Observer for Watcher {
    fn record(&mut self, record: &MetricsRecord) {
        if let Some(metrics) = &self.metrics {
            metrics.record(record);
        }
        match record {
            MetricsRecord::Train(step) => {
                self.screen.step(step);
                let alerts = self.alerts.look_at(step);
                if !alerts.is_empty() {
                    self.screen
                        .above(|| alerts.iter().for_each(|line| log::warn!("{line}")));
                }
            }
            MetricsRecord::Validation(validation) => self.screen.validation(validation),
            // Told where it happens.
            MetricsRecord::Skipped(_) => {}
        }
        if self.prints_json {
            let json = serde_json::to_string(&MetricsLine::now(record));
            let json = json.map_err(anyhow::Error::from);
            let _: Option<()> = or_warn(json.and_then(|json| say_data(&json)));
        }
        self.write_events(|events| events.record(record));
        self.refresh.now_and_then();
    }

    fn view(&mut self, view: &RunView<'_>) {
        let profile = serde_json::to_string_pretty(&view.profile).map_err(anyhow::Error::from);
        let profile_path = self.run_dir.profile();
        let written = profile.and_then(|json| write_file(&profile_path, json.as_bytes()));
        let _: Option<()> = or_warn(written);
        if view.is_last || Instant::now() >= self.next_look {
            self.look_at_images(view.model, view.step);
        }
        if self.level >= EventLevel::Histograms {
            let histograms = weight_histograms(view.model);
            self.write_events(|events| {
                for (name, histogram) in histograms? {
                    events.histogram(view.step, &format!("weights/{name}"), &histogram)?;
                }
                Ok(())
            });
        }
        if !view.is_last {
            self.refresh.now();
        }
    }
}

/// What came of it; a failure is warned of, for no run ends because of it.
fn or_warn<T>(result: anyhow::Result<T>) -> Option<T> {
    result.map_err(|error| log::warn!("{error:#}")).ok()
}

/// The captioned images of a gallery, and a table of their captions.
fn write_gallery(events: &mut EventFile, gallery: &Gallery) -> anyhow::Result<()> {
    let mut table = String::from("| image | captions | the model's |\n|---|---|---|\n");
    for image in &gallery.images {
        let Some(generated) = &image.generated else {
            continue;
        };
        let own: Vec<String> = (image.captions.iter())
            .map(|&at| in_markdown(&gallery.captions[at].text))
            .collect();
        let (key, own, generated) = (
            in_markdown(&image.key),
            own.join("<br>"),
            in_markdown(generated),
        );
        table += &format!("| {key} | {own} | {generated} |\n");
        events.picture(
            gallery.step,
            &Picture {
                tag: format!("held_out/{}", image.key),
                encoded: &image.jpeg,
                side: image.side,
                description: format!("{own}\n\nThe model: **{generated}**"),
            },
        )?;
    }
    events.text(gallery.step, "held_out/captions", &table)
}

/// A text that is neither markup nor the end of a cell.
fn in_markdown(text: &str) -> String {
    let mut plain = String::new();
    for character in text.chars() {
        match character {
            '<' => plain += "&lt;",
            '&' => plain += "&amp;",
            '|' | '*' | '_' | '`' | '\\' | '[' | ']' => {
                plain.push('\\');
                plain.push(character);
            }
            character if character.is_control() => plain.push(' '),
            character => plain.push(character),
        }
    }
    plain
}

/// Of every parameter, by its name.
fn weight_histograms(model: &Blip2Qformer) -> anyhow::Result<Vec<(String, Histogram)>> {
    let trained = model
        .params()
        .trainable()
        .filter(|param| param.tensor.numel() > 1);
    let histogram = |tensor: &tch::Tensor| -> anyhow::Result<Histogram> {
        let values = tensor
            .f_detach()?
            .f_to_kind(Kind::Float)?
            .f_flatten(0, -1)?;
        let number = |tensor: tch::Tensor| tensor.f_double_value(&[]);
        let (min, max) = (number(values.f_min()?)?, number(values.f_max()?)?);
        let counts = values.f_histc(BINS)?;
        Ok(Histogram {
            min,
            max,
            sum: number(values.f_sum(Kind::Double)?)?,
            sum_squares: number(values.f_square()?.f_sum(Kind::Double)?)?,
            counts: Vec::<f64>::try_from(counts.f_to_kind(Kind::Double)?)?,
        })
    };
    trained
        .map(|param| Ok((param.name.clone(), histogram(&param.tensor)?)))
        .collect()
}
