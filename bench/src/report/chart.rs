//! The chart: one bar for each case and peer, how many times better than the peer Pando is, on a logarithmic scale.

use serde_json::{Map, Value};

use super::svg::{Anchor, BLUE, GRID, ORANGE, Svg};

/// What a bar shows, in order of preference, and whether more is better.
const METRICS: [(&str, bool); 4] = [("per_s", true), ("p50_ms", false), ("cpu_us", false), ("rss_mb", false)];
/// Where the bars begin, how wide a factor of ten is, and how high a line is; in pixels.
const LEFT: f64 = 420.0;
const DECADE: f64 = 170.0;
const LINE: f64 = 16.0;
/// Bars end here, in decades to each side.
const MOST: f64 = 2.0;

/// One line of the chart.
struct Bar {
    label: String,
    /// How many times better than the peer; below 1: worse.
    better: f64,
    is_missed: bool,
}

/// Returns the chart of all subjects of a report as SVG.
pub(super) fn chart(subjects: &Map<String, Value>) -> String {
    let mut lines = Vec::new();
    for (subject, report) in subjects {
        let bars: Vec<_> = report["cases"].as_array().into_iter().flatten().flat_map(bars).collect();
        if !bars.is_empty() {
            lines.push((subject.as_str(), bars));
        }
    }
    let count: usize = lines.iter().map(|(_, bars)| bars.len() + 2).sum();
    let height = LINE * (f64::from(u32::try_from(count).unwrap_or(u32::MAX)) + 3.0);
    let middle = LEFT + MOST * DECADE;
    let mut svg = Svg::new(LEFT + 2.0 * MOST * DECADE + 60.0, height);
    for (at, text) in [(-2.0, "1/100"), (-1.0, "1/10"), (0.0, "as its peer"), (1.0, "10x better"), (2.0, "100x")] {
        let x = middle + at * DECADE;
        svg.line((x, LINE), (x, height), GRID);
        svg.text((x, 12.0), Anchor::Middle, text);
    }
    let mut y = 2.0 * LINE;
    for (subject, bars) in lines {
        y += LINE;
        svg.heading((8.0, y), subject);
        for bar in bars {
            y += LINE;
            let end = middle + bar.better.log10().clamp(-MOST, MOST) * DECADE;
            let (x, length) = (middle.min(end), (end - middle).abs().max(1.0));
            svg.text((LEFT - 4.0, y), Anchor::End, &bar.label);
            svg.rect((x, y - LINE + 5.0), (length, 11.0), if bar.is_missed { ORANGE } else { BLUE });
            let (beside, anchor) = if end < middle { (end - 3.0, Anchor::End) } else { (end + 3.0, Anchor::Start) };
            svg.text((beside, y), anchor, &format!("{:.2}x", bar.better));
        }
        y += LINE;
    }
    svg.finish()
}

/// Returns the bars of a case: one for each peer. One whose target is missed is marked.
fn bars(case: &Value) -> Vec<Bar> {
    let targets: Vec<_> = case["targets"].as_array().into_iter().flatten().collect();
    let mut bars = Vec::new();
    for peer in case["peers"].as_array().into_iter().flatten() {
        let is_missed = targets.iter().any(|target| target["met"] == false && target["peer"] == peer["name"]);
        // What a target is about is what is worth looking at.
        let aimed = targets.iter().find(|target| target["peer"] == peer["name"]).and_then(|it| it["metric"].as_str());
        let known = METRICS.into_iter().filter(|(metric, _)| aimed.is_none_or(|aimed| aimed == *metric));
        let shown = known.chain(METRICS).find_map(|(metric, is_more)| {
            let ratio = peer["ratios"][metric]["median"].as_f64().filter(|ratio| *ratio > 0.0)?;
            Some((metric, if is_more { ratio } else { 1.0 / ratio }))
        });
        if let Some((metric, better)) = shown {
            let name = |of: &Value| of.as_str().unwrap_or_default().to_owned();
            let label = format!("{} ({metric}) beside {}", name(&case["name"]), name(&peer["name"]));
            bars.push(Bar { label, better, is_missed });
        }
    }
    bars
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_longer_latency_is_a_bar_to_the_left_and_a_missed_target_is_marked() {
        let ratio = |value: f64| json!({"median": value});
        let subjects = json!({"rpc": {"cases": [{
            "name": "one",
            "targets": [{"metric": "p50_ms", "peer": "<raw>", "met": false}],
            "peers": [
                {"name": "<raw>", "ratios": {"per_s": ratio(0.4), "p50_ms": ratio(2.0)}},
                {"name": "slow", "ratios": {"per_s": ratio(5.0)}},
            ],
        }]}});
        let svg = chart(subjects.as_object().unwrap());
        assert!(svg.contains("one (p50_ms) beside &lt;raw&gt;") && svg.contains(">0.50x<"), "{svg}");
        assert!(svg.contains("one (per_s) beside slow") && svg.contains(">5.00x<"), "{svg}");
        assert_eq!(svg.matches(ORANGE).count(), 1, "{svg}");
    }
}
