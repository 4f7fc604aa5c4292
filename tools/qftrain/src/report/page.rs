//! The page of a report, section by section.

use std::collections::BTreeSet;
use std::fmt::Write;

use qf_cli::page::{Images, Page, Text};
use qf_model::train::RunProfile;
use qf_pipeline::loader::StageReport;

use super::run_data::RunData;
use super::svg::number;
use super::{charts, images};

const STYLE: &str = include_str!("report.css");

/// The runs as one page.
pub(super) fn html(runs: &[RunData]) -> String {
    let title = match runs {
        [run] => run.name.clone(),
        runs => format!("{} runs", runs.len()),
    };
    let lede = match runs {
        [run] => run.path.clone(),
        runs => {
            let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
            names.join(", ")
        }
    };
    let facts = match runs {
        [run] => facts(run),
        _ => Vec::new(),
    };
    let mut style = STYLE.to_string();
    for (at, run) in runs.iter().enumerate() {
        style += &run
            .gallery
            .as_ref()
            .map_or(String::new(), |g| images::style(g, at));
    }
    let mut page = Page::new((&title, &title), &lede, &facts, &style, Images::Embedded);
    let mut body = String::from("<main>\n");
    body += &differences(runs);
    body += &section("Training", &grid(&charts::training(runs)));
    body += &section(
        "Retrieval of held-out images",
        &grid(&charts::retrieval(runs)),
    );
    for (at, run) in runs.iter().enumerate() {
        if let Some(gallery) = &run.gallery {
            let heading = of_run("Held-out images", run, runs);
            body += &section(&heading, &images::html(gallery, at));
        }
    }
    body += &section("Speed", &grid(&charts::speed(runs)));
    for run in runs {
        if let Some(profile) = &run.profile {
            body += &section(&of_run("Where the time went", run, runs), &time(profile));
        }
        body += &section(&of_run("Skipped samples", run, runs), &skips(run));
        body += &section(&of_run("Updates left out", run, runs), &left_out(run));
    }
    body += "</main>\n";
    // Formatting into a page does not fail.
    let _ = page.write_str(&body);
    page.finish()
}

fn of_run(heading: &str, run: &RunData, runs: &[RunData]) -> String {
    match runs.len() {
        1 => heading.to_string(),
        _ => format!("{heading}: {}", run.name),
    }
}

/// A section with a heading, unless there is nothing in it.
fn section(heading: &str, content: &str) -> String {
    match content {
        "" => String::new(),
        content => format!("<section><h2>{}</h2>\n{content}</section>\n", Text(heading)),
    }
}

fn grid(charts: &str) -> String {
    match charts {
        "" => String::new(),
        charts => format!("<div class=\"charts\">\n{charts}</div>\n"),
    }
}

fn facts(run: &RunData) -> Vec<(&'static str, String)> {
    let setting = |name: &str| run.settings.get(name).cloned();
    let mut facts = Vec::new();
    if let Some(last) = &run.last {
        let steps = setting("steps").map_or(String::new(), |steps| format!(" of {steps}"));
        facts.push(("step", format!("{}{steps}", last.step)));
        facts.push(("epoch", last.epoch.to_string()));
        facts.push(("loss", format!("{:.3}", last.loss)));
        facts.push(("images/s", number(last.images_per_s)));
        facts.push(("samples read", last.samples_read.to_string()));
    }
    if let Some(validation) = run.validations.last() {
        facts.push(("held-out TR@1", format!("{:.1} %", validation.itc.text.r1)));
        facts.push(("IR@1", format!("{:.1} %", validation.itc.image.r1)));
    }
    facts.extend(setting("data.batch_size").map(|size| ("batch size", size)));
    let precision = setting("precision").map(|text| text.replace('"', ""));
    facts.extend(precision.map(|precision| ("precision", precision)));
    facts
}

/// The settings that are not the same in all runs.
fn differences(runs: &[RunData]) -> String {
    if runs.len() < 2 {
        return String::new();
    }
    let names: BTreeSet<&String> = runs.iter().flat_map(|run| run.settings.keys()).collect();
    let mut rows = String::new();
    for name in names {
        let values: Vec<Option<&String>> = runs.iter().map(|run| run.settings.get(name)).collect();
        if values.windows(2).all(|two| two[0] == two[1]) {
            continue;
        }
        let _ = write!(rows, "<tr><td>{}</td>", Text(name));
        for value in values {
            let _ = write!(rows, "<td>{}</td>", Text(value.map_or("–", String::as_str)));
        }
        rows += "</tr>\n";
    }
    if rows.is_empty() {
        return section(
            "Settings",
            "<p class=\"note\">All settings are the same.</p>\n",
        );
    }
    let names: String = (runs.iter())
        .map(|run| format!("<th>{}</th>", Text(&run.name)))
        .collect();
    let table = format!(
        "<div class=\"scroll\"><table class=\"settings\"><tr><th>setting</th>{names}</tr>\n{rows}</table></div>\n"
    );
    section("Settings that differ", &table)
}

/// Phases of the training thread, stages of the loader, its queues.
fn time(profile: &RunProfile) -> String {
    let mut html = format!("<p>Bottleneck: {}.</p>\n", Text(&profile.bottleneck));
    let wall = profile.wall_secs.max(1e-9);
    html += "<h3>The training thread</h3>\n<div class=\"scroll\"><table class=\"bars\">\
             <tr><th>phase</th><th class=\"number\">s</th><th class=\"number\">%</th><th></th></tr>\n";
    let accounted: f64 = profile.phases.iter().map(|phase| phase.busy_secs).sum();
    let rest = (wall - accounted).max(0.0);
    let phases = profile
        .phases
        .iter()
        .map(|phase| (phase.name.as_str(), phase.busy_secs));
    for (name, secs) in phases.chain([("rest, first batch included", rest)]) {
        if secs > 0.0 {
            html += &bar_row(name, &format!("{secs:.1}"), secs / wall, name == "wait");
        }
    }
    html += "</table></div>\n<h3>Stages of the loader, of the time of their threads</h3>\n\
             <div class=\"scroll\"><table class=\"bars\">\
             <tr><th>stage</th><th class=\"number\">items/s a thread</th><th class=\"number\">%</th><th></th></tr>\n";
    let stages = profile.loader.stages.iter().filter(|stage| stage.items > 0);
    for StageReport {
        name,
        items_per_busy_sec,
        busy_share,
        ..
    } in stages
    {
        html += &bar_row(name, &number(*items_per_busy_sec), *busy_share, false);
    }
    html += "</table></div>\n<h3>Queues</h3>\n<div class=\"scroll\"><table class=\"bars\">\
             <tr><th>queue</th><th class=\"number\">mean of</th><th class=\"number\">full, s</th>\
             <th class=\"number\">empty, s</th><th>filled</th></tr>\n";
    for queue in &profile.loader.queues {
        let (of, share) = match queue.capacity_items {
            Some(capacity) => (
                format!("{:.1} of {capacity}", queue.mean_items),
                queue.mean_items / capacity.max(1) as f64,
            ),
            None => (format!("{:.1}, by bytes", queue.mean_items), 0.0),
        };
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td class=\"number\">{of}</td><td class=\"number\">{:.1}</td><td class=\"number\">{:.1}</td><td>\
             <span class=\"bar\" style=\"width:{:.1}%\"></span></td></tr>",
            Text(&queue.name),
            queue.full_wait_secs,
            queue.empty_wait_secs,
            100.0 * share.clamp(0.0, 1.0)
        );
    }
    html + "</table></div>\n<p class=\"note\">A queue that is full waits for the model, an empty one for the loader.</p>\n"
}

fn bar_row(name: &str, figure: &str, share: f64, is_waiting: bool) -> String {
    let class = if is_waiting { "bar waiting" } else { "bar" };
    format!(
        "<tr><td>{}</td><td class=\"number\">{figure}</td><td class=\"number\">{:.1}</td><td>\
         <span class=\"{class}\" style=\"width:{:.1}%\"></span></td></tr>\n",
        Text(name),
        100.0 * share,
        100.0 * share.clamp(0.0, 1.0)
    )
}

/// Skipped samples by reason, the first of each by name.
fn skips(run: &RunData) -> String {
    let mut html = String::new();
    for (reason, skips) in &run.skips {
        let _ = write!(
            html,
            "<div class=\"bad\"><h2>{} <span class=\"reason\">{}</span></h2><ul>",
            skips.count,
            Text(reason)
        );
        for (place, message) in &skips.named {
            let _ = write!(
                html,
                "<li><code>{}</code><br>{}</li>",
                Text(place),
                Text(message)
            );
        }
        let more = skips.count - skips.named.len() as u64;
        if more > 0 {
            let _ = write!(html, "<li class=\"note\">{more} more in skipped.jsonl</li>");
        }
        html += "</ul></div>\n";
    }
    if run.unnamed > 0 {
        let _ = writeln!(
            html,
            "<p class=\"note\">{} more have no name.</p>",
            run.unnamed
        );
    }
    let filtered = run.last.as_ref().map_or(0, |last| {
        last.samples_skipped.saturating_sub(last.samples_bad)
    });
    if filtered > 0 {
        let _ = writeln!(
            html,
            "<p class=\"note\">Filters left out {filtered} samples.</p>"
        );
    }
    html
}

/// Steps whose update was left out.
fn left_out(run: &RunData) -> String {
    /// Rows, at most.
    const SHOWN: usize = 20;
    if run.left_out.is_empty() {
        return String::new();
    }
    let mut html = String::from(
        "<div class=\"scroll\"><table><tr><th class=\"number\">step</th><th>first tensor that was not finite</th></tr>\n",
    );
    for (step, tensor) in run.left_out.iter().take(SHOWN) {
        let _ = writeln!(
            html,
            "<tr><td class=\"number\">{step}</td><td><code>{}</code></td></tr>",
            Text(tensor)
        );
    }
    html += "</table></div>\n";
    if let Some(more) = run
        .left_out
        .len()
        .checked_sub(SHOWN)
        .filter(|more| *more > 0)
    {
        let _ = writeln!(html, "<p class=\"note\">{more} more in metrics.jsonl</p>");
    }
    html
}
