//! The curves of a report.

use qf_model::train::ValidationRecord;

use super::run_data::{Point, RunData};
use super::svg::{Chart, Line, Style};

/// Points that a smooth line is a mean of, as a share of all.
const SMOOTHING: f64 = 0.03;

/// Colours of the page.
const COLOURS: usize = 6;

/// A figure of the logged steps, and the same of held-out data.
struct Figure {
    title: &'static str,
    of_step: fn(&Point) -> Option<f64>,
    of_validation: fn(&ValidationRecord) -> Option<f64>,
    from_zero: bool,
    is_noisy: bool,
}

fn none(_: &ValidationRecord) -> Option<f64> {
    None
}

const FIGURES: [Figure; 8] = [
    Figure {
        title: "Loss, all three",
        of_step: |p| Some(p.loss),
        of_validation: |v| v.loss,
        from_zero: false,
        is_noisy: true,
    },
    Figure {
        title: "ITC loss (contrastive)",
        of_step: |p| Some(p.loss_itc),
        of_validation: |v| v.loss_itc,
        from_zero: false,
        is_noisy: true,
    },
    Figure {
        title: "ITM loss (matching; 0.64 is guessing)",
        of_step: |p| Some(p.loss_itm),
        of_validation: |v| v.loss_itm,
        from_zero: false,
        is_noisy: true,
    },
    Figure {
        title: "ITG loss (captions)",
        of_step: |p| Some(p.loss_lm),
        of_validation: |v| v.loss_lm,
        from_zero: false,
        is_noisy: true,
    },
    Figure {
        title: "Learning rate",
        of_step: |p| Some(p.lr),
        of_validation: none,
        from_zero: true,
        is_noisy: false,
    },
    Figure {
        title: "Temperature",
        of_step: |p| p.temperature,
        of_validation: none,
        from_zero: false,
        is_noisy: false,
    },
    Figure {
        title: "Gradient norm, before clipping",
        of_step: |p| Some(p.grad_norm),
        of_validation: none,
        from_zero: true,
        is_noisy: true,
    },
    Figure {
        title: "Memory, GB",
        of_step: |p| p.memory_gb,
        of_validation: none,
        from_zero: true,
        is_noisy: false,
    },
];

/// Losses, rate, temperature, norm and memory by step.
pub(super) fn training(runs: &[RunData]) -> String {
    let charts = FIGURES.iter().map(|figure| {
        let mut lines = Vec::new();
        for (colour, run) in runs.iter().enumerate() {
            let points = run.points.iter().filter_map(|point| {
                let value = (figure.of_step)(point)?;
                Some((point.step as f64, value))
            });
            lines.extend(smoothed(
                points.collect(),
                figure.is_noisy,
                run,
                colour,
                runs,
            ));
            let points = run.validations.iter().filter_map(|validation| {
                let value = (figure.of_validation)(validation)?;
                Some((validation.step as f64, value))
            });
            lines.extend(line(
                "held out",
                Style::Dotted,
                points.collect(),
                run,
                colour,
                runs,
            ));
        }
        let chart = Chart {
            title: figure.title,
            x_name: "step",
            lines,
            from_zero: figure.from_zero,
        };
        chart.html()
    });
    charts.collect()
}

/// Images per second and waiting for data, by the time of training.
pub(super) fn speed(runs: &[RunData]) -> String {
    type Of = fn(&Point) -> f64;
    let figures: [(&str, Of); 2] = [
        ("Images per second", |point| point.images_per_s),
        ("Waiting for data, % of the time so far", |point| {
            point.data_wait
        }),
    ];
    let has_times = |run: &RunData| run.points.iter().all(|point| point.hours.is_some());
    let is_timed = runs.iter().all(has_times);
    let most = (runs.iter().filter_map(|run| run.points.last()?.hours)).fold(0.0, f64::max);
    let (x_name, scale) = match (is_timed, most < 2.0) {
        (true, true) => ("minutes of training", 60.0),
        (true, false) => ("hours of training", 1.0),
        (false, _) => ("step", 1.0),
    };
    let charts = figures.map(|(title, of_step)| {
        let lines = runs.iter().enumerate().flat_map(|(colour, run)| {
            let x = |point: &Point| match is_timed {
                true => scale * point.hours.unwrap_or(0.0),
                false => point.step as f64,
            };
            let points = run.points.iter().map(|point| (x(point), of_step(point)));
            line("", Style::Solid, points.collect(), run, colour, runs)
        });
        let chart = Chart {
            title,
            x_name,
            lines: lines.collect(),
            from_zero: true,
        };
        chart.html()
    });
    charts.concat()
}

/// Recall on held-out images by step.
pub(super) fn retrieval(runs: &[RunData]) -> String {
    type Of = fn(&ValidationRecord) -> Option<f64>;
    let figures: [(&str, Of, Of); 2] = [
        (
            "Text retrieval, recall at 1, %",
            |v| Some(v.itc.text.r1),
            |v| Some(v.itm.as_ref()?.text.r1),
        ),
        (
            "Image retrieval, recall at 1, %",
            |v| Some(v.itc.image.r1),
            |v| Some(v.itm.as_ref()?.image.r1),
        ),
    ];
    let charts = figures.map(|(title, itc, itm)| {
        let mut lines = Vec::new();
        for (index, run) in runs.iter().enumerate() {
            // Of a single run, the two figures have colours of their own.
            let colours = if runs.len() == 1 {
                [0, 1]
            } else {
                [index, index]
            };
            let sources = [
                ("ITC", itc, colours[0]),
                ("re-ranked by ITM", itm, colours[1]),
            ];
            for (name, of, colour) in sources {
                let points = run.validations.iter().filter_map(|validation| {
                    let value = of(validation)?;
                    Some((validation.step as f64, value))
                });
                lines.extend(line(
                    name,
                    Style::Dotted,
                    points.collect(),
                    run,
                    colour,
                    runs,
                ));
            }
        }
        let chart = Chart {
            title,
            x_name: "step",
            lines,
            from_zero: true,
        };
        chart.html()
    });
    charts.concat()
}

/// A line, if it has points; named by what it shows, and by its run where there are several.
fn line(
    what: &str,
    style: Style,
    points: Vec<(f64, f64)>,
    run: &RunData,
    colour: usize,
    runs: &[RunData],
) -> Option<Line> {
    let name = match (runs.len(), what) {
        (1, "") => "training".to_string(),
        (1, what) => what.to_string(),
        (_, "") => run.name.clone(),
        (_, what) => format!("{}, {what}", run.name),
    };
    (!points.is_empty()).then_some(Line {
        name,
        colour: colour % COLOURS,
        style,
        points,
    })
}

/// A noisy curve as a faint line with a smooth one on it.
fn smoothed(
    points: Vec<(f64, f64)>,
    is_noisy: bool,
    run: &RunData,
    colour: usize,
    runs: &[RunData],
) -> Vec<Line> {
    let window = (points.len() as f64 * SMOOTHING) as usize;
    if !is_noisy || window < 2 {
        return line("", Style::Solid, points, run, colour, runs)
            .into_iter()
            .collect();
    }
    let smooth = moving_mean(&points, window);
    let faint = line("", Style::Faint, points, run, colour, runs);
    let smooth = line("", Style::Solid, smooth, run, colour, runs);
    faint.into_iter().chain(smooth).collect()
}

/// Each value as the mean of the `window` around it, of those that are finite.
fn moving_mean(points: &[(f64, f64)], window: usize) -> Vec<(f64, f64)> {
    let mean = |at: usize| {
        let (first, last) = (
            at.saturating_sub(window),
            (at + window).min(points.len() - 1),
        );
        // As many on each side, so that a slope stays one.
        let reach = (at - first).min(last - at);
        let values = points[at - reach..=at + reach].iter().map(|point| point.1);
        let values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
        values.iter().sum::<f64>() / values.len() as f64
    };
    let places = points.iter().enumerate();
    places.map(|(at, &(x, _))| (x, mean(at))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moving_mean_keeps_straight_lines_and_leaves_out_nan() {
        let mut points: Vec<(f64, f64)> =
            (0..50).map(|x| (f64::from(x), f64::from(3 * x))).collect();
        assert_eq!(moving_mean(&points, 4), points);
        points[20].1 = f64::NAN;
        let means = moving_mean(&points, 4);
        assert!((means[20].1 - 60.0).abs() < 1e-9 && means.iter().all(|mean| mean.1.is_finite()));
    }
}
