//! Line charts as SVG. Colours are variables of the page, so that they follow light and dark.

use std::fmt::Write;

use qf_cli::page::Text;

/// A chart with one pair of axes.
pub(super) struct Chart<'a> {
    pub(super) title: &'a str,
    pub(super) x_name: &'a str,
    pub(super) lines: Vec<Line>,
    /// The vertical axis begins at 0.
    pub(super) from_zero: bool,
}

/// A curve. Values that are not finite leave a gap.
pub(super) struct Line {
    pub(super) name: String,
    /// Which of the page's colours, from 0.
    pub(super) colour: usize,
    pub(super) style: Style,
    pub(super) points: Vec<(f64, f64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// A line.
    Solid,
    /// A broken line with dots: figures that are few.
    Dotted,
    /// A faint line: what a smooth one was made from.
    Faint,
}

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 36.0;
/// Width of a digit at an axis, at most: three fifths of report.css's 11 px.
const TICK_LETTER: f64 = 7.0;

impl Chart<'_> {
    /// The chart with its title and legend; nothing where no line has a point.
    pub(super) fn html(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let finite = || points().filter(|(x, y)| x.is_finite() && y.is_finite());
        if finite().next().is_none() {
            return String::new();
        }
        let (left, right) = bounds(finite().map(|point| point.0));
        let (bottom, top) = self.y_bounds(finite().map(|point| point.1));
        let x_axis = Axis::new(left, right, LEFT, WIDTH - RIGHT);
        let y_axis = Axis::new(bottom, top, HEIGHT - BOTTOM, TOP);
        let mut html = format!(
            "<figure class=\"chart\"><figcaption>{}</figcaption>\n{}<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             role=\"img\" aria-label=\"{}\">\n",
            Text(self.title),
            self.legend(),
            Text(&self.summary())
        );
        self.write_axes(&mut html, &x_axis, &y_axis);
        for line in &self.lines {
            write_line(&mut html, line, &x_axis, &y_axis);
        }
        html + "</svg></figure>\n"
    }

    fn y_bounds(&self, values: impl Iterator<Item = f64>) -> (f64, f64) {
        let (low, high) = bounds(values);
        match self.from_zero && low >= 0.0 {
            // A line at 0 lies on the axis.
            true => (0.0, if high > 0.0 { high } else { 1.0 }),
            false => (low, high),
        }
    }

    /// For those who do not see it: the last value of each line.
    fn summary(&self) -> String {
        let last = |line: &Line| {
            let (_, value) = line.points.last()?;
            Some(format!("{} {}", line.name, number(*value)))
        };
        let lines = self.lines.iter().filter(|line| line.style != Style::Faint);
        let lasts: Vec<String> = lines.filter_map(last).collect();
        format!(
            "{} by {}; last: {}",
            self.title,
            self.x_name,
            lasts.join(", ")
        )
    }

    fn legend(&self) -> String {
        let mut html = String::from("<ul class=\"legend\">");
        for line in self.lines.iter().filter(|line| line.style != Style::Faint) {
            let Some((_, value)) = line.points.last() else {
                continue;
            };
            let dotted = match line.style {
                Style::Dotted => " dotted",
                _ => "",
            };
            // Formatting into a string does not fail.
            let _ = write!(
                html,
                "<li><i class=\"s{}{dotted}\"></i><bdi>{}</bdi> <b>{}</b></li>",
                line.colour,
                Text(&line.name),
                number(*value)
            );
        }
        html + "</ul>\n"
    }

    fn write_axes(&self, html: &mut String, x_axis: &Axis, y_axis: &Axis) {
        for value in y_axis.ticks(4) {
            let y = y_axis.at(value);
            let _ = writeln!(
                html,
                "<line class=\"rule\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                y + 4.0,
                number(value)
            );
        }
        for value in x_axis.ticks(5) {
            let text = number(value);
            // The last one ends within the picture.
            let half = text.len() as f64 * TICK_LETTER / 2.0;
            let _ = writeln!(
                html,
                "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
                x_axis.at(value).min(WIDTH - half),
                HEIGHT - BOTTOM + 16.0,
            );
        }
        let _ = writeln!(
            html,
            "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            HEIGHT - 4.0,
            Text(self.x_name)
        );
    }
}

fn write_line(html: &mut String, line: &Line, x_axis: &Axis, y_axis: &Axis) {
    let class = match line.style {
        Style::Solid => "",
        Style::Dotted => " dotted",
        Style::Faint => " faint",
    };
    let places = line.points.iter().map(|&(x, y)| {
        let is_finite = x.is_finite() && y.is_finite();
        is_finite.then(|| (x_axis.at(x), y_axis.at(y)))
    });
    let places: Vec<Option<(f64, f64)>> = places.collect();
    let mut path = String::new();
    let mut is_open = false;
    for place in &places {
        if let Some((x, y)) = place {
            let letter = if is_open { 'L' } else { 'M' };
            let _ = write!(path, "{letter}{x:.1} {y:.1}");
        }
        is_open = place.is_some();
    }
    let _ = writeln!(
        html,
        "<path class=\"line s{}{class}\" d=\"{path}\"/>",
        line.colour
    );
    let is_alone = places.len() == 1;
    if line.style == Style::Dotted || (is_alone && line.style == Style::Solid) {
        for ((x, y), (step, value)) in places.iter().flatten().zip(&line.points) {
            let _ = writeln!(
                html,
                "<circle class=\"s{}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\"><title>{}: {}</title></circle>",
                line.colour,
                number(*step),
                number(*value)
            );
        }
    }
}

/// Values along an edge of the chart.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    /// Of values between `low` and `high`, drawn between `from` and `to`.
    fn new(low: f64, high: f64, from: f64, to: f64) -> Axis {
        // Of a single value, some room around it.
        let room = match high - low {
            0.0 if low == 0.0 => 1.0,
            0.0 => low.abs() * 0.1,
            _ => 0.0,
        };
        Axis {
            low: low - room,
            high: high + room,
            from,
            to,
        }
    }

    fn at(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    /// Round values, about `count` of them.
    fn ticks(&self, count: usize) -> Vec<f64> {
        let rough = (self.high - self.low) / count as f64;
        let power = 10f64.powf(rough.log10().floor());
        let steps = [1.0, 2.0, 2.5, 5.0, 10.0].map(|factor| factor * power);
        let step = steps.into_iter().find(|step| *step >= rough * 0.999);
        let step = step.unwrap_or(10.0 * power);
        let first = (self.low / step).ceil();
        // A handful, whatever numbers a file holds.
        (0..2 * count + 2)
            .map(|tick| (first + tick as f64) * step)
            .take_while(|value| *value <= self.high + step * 1e-6)
            .collect()
    }
}

fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    })
}

/// A number in few characters: `12k`, `0.07`, `1e-4`.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    let trimmed = |text: String| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text,
    };
    match size {
        _ if !value.is_finite() => "–".into(),
        0.0 => "0".into(),
        _ if size >= 1e9 => trimmed(format!("{:.2}", value / 1e9)) + "G",
        _ if size >= 1e6 => trimmed(format!("{:.2}", value / 1e6)) + "M",
        _ if size >= 1e4 => trimmed(format!("{:.1}", value / 1e3)) + "k",
        _ if size >= 100.0 => trimmed(format!("{value:.0}")),
        _ if size >= 1.0 => trimmed(format!("{value:.2}")),
        _ if size >= 1e-3 => trimmed(format!("{value:.4}")),
        _ => {
            let text = format!("{value:.1e}");
            text.replace(".0e", "e")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (value, expected) in [
            (0.0, "0"),
            (12_000.0, "12k"),
            (12_340.0, "12.3k"),
            (1_500_000.0, "1.5M"),
            (512.4, "512"),
            (3.5, "3.5"),
            (0.07, "0.07"),
            (0.0001, "1e-4"),
            (-2.5, "-2.5"),
            (f64::NAN, "–"),
        ] {
            assert_eq!(number(value), expected);
        }
    }

    #[test]
    fn ticks_are_round_and_inside() {
        for (low, high) in [
            (0.0, 1.0),
            (0.07, 0.0702),
            (3.2, 9.9),
            (1.0, 120_000.0),
            (-1e-6, 1e-6),
        ] {
            let ticks = Axis::new(low, high, 0.0, 100.0).ticks(4);
            assert!((2..=9).contains(&ticks.len()), "{low} {high}: {ticks:?}");
            let slack = (high - low) * 1e-3;
            assert!(
                ticks
                    .iter()
                    .all(|t| *t >= low - slack && *t <= high + slack),
                "{ticks:?}"
            );
        }
    }

    #[test]
    fn lines_lie_where_their_values_are_and_gaps_stay_gaps() {
        let line = |points| Line {
            name: "<a>".into(),
            colour: 1,
            style: Style::Solid,
            points,
        };
        let chart = |points| Chart {
            title: "loss",
            x_name: "step",
            lines: vec![line(points)],
            from_zero: false,
        };
        let html = chart(vec![(0.0, 1.0), (5.0, f64::NAN), (10.0, 3.0), (20.0, 2.0)]).html();
        // The least value at the bottom left, a gap, the greatest at the top.
        assert!(
            html.contains("d=\"M46.0 204.0M228.0 10.0L410.0 107.0\""),
            "{html}"
        );
        assert!(html.contains("&lt;a&gt;") && !html.contains("<a>"));
        assert_eq!(chart(vec![(1.0, f64::NAN)]).html(), "");
        // A tick at the right end is not cut off, and what is 0 throughout lies on the axis.
        let html = chart(vec![(300.0, 1.0), (1200.0, 3.0)]).html();
        assert!(
            html.contains("x=\"406.0\" y=\"220.0\" text-anchor=\"middle\">1200<"),
            "{html}"
        );
        let flat = Chart {
            from_zero: true,
            ..chart(vec![(0.0, 0.0), (10.0, 0.0)])
        };
        assert!(
            flat.html().contains("d=\"M46.0 204.0L410.0 204.0\""),
            "{}",
            flat.html()
        );
        assert!(!chart(vec![(3.0, 7.0)]).html().contains("NaN"));
    }
}
