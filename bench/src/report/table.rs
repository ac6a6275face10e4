//! The report in Markdown, which reads well on a terminal, too.

use std::fmt;

use serde_json::Value;

use super::{Report, Row, Summaries, Summary};
use crate::case::{Metrics, Rule};

/// Columns of the table, in order: metric and heading. One that no contender has is left out.
const COLUMNS: [(&str, &str); 15] = [
    ("per_s", "per s"),
    ("p50_ms", "p50 ms"),
    ("p99_ms", "p99 ms"),
    ("p99.9_ms", "p99.9 ms"),
    ("min_ms", "min ms"),
    ("max_ms", "max ms"),
    ("gap_p50_ms", "gap p50 ms"),
    ("gap_max_ms", "gap max ms"),
    ("rss_mb", "RSS MB"),
    ("peak_mb", "peak MB"),
    ("file_mb", "file MB"),
    ("cpu_us", "CPU us each"),
    ("failed", "failed"),
    ("lost", "lost"),
    ("most_to_fewest", "most:fewest"),
];

/// Returns the first figures of a run, for people who wait.
pub(super) fn glance(metrics: &Metrics) -> String {
    let known = COLUMNS.iter().filter_map(|(metric, heading)| Some((heading, metrics.get(metric)?)));
    let texts: Vec<_> = known.take(3).map(|(heading, value)| format!("{} {heading}", Figure(*value))).collect();
    texts.join(", ")
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::RatioAtLeast(bound) => write!(f, "at least {bound}x"),
            Self::RatioAtMost(bound) if bound < 0.5 => write!(f, "at most 1/{:.0}", 1.0 / bound),
            Self::RatioAtMost(bound) => write!(f, "at most {bound}x"),
            Self::AtLeast(bound) => write!(f, "at least {bound}"),
            Self::AtMost(bound) => write!(f, "at most {bound}"),
        }
    }
}

/// A figure with about three digits.
pub(super) struct Figure(pub(super) f64);

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(value) = *self;
        let digits = match value.abs() {
            100.0.. => 0,
            10.0.. => 1,
            1.0.. => 2,
            0.0 => 0,
            _ => 3,
        };
        f.pad(&format!("{value:.digits$}"))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = |of: &Value, key: &str| of[key].as_str().map_or_else(|| of[key].to_string(), str::to_owned);
        let machine = |key| field(&self.machine, key);
        writeln!(f, "## {}\n", self.subject)?;
        writeln!(
            f,
            "{} cores of {}, {}, Linux {}, {}; pando {} ({}), SQLite {}, libzmq {}",
            machine("cores"),
            machine("cpu"),
            machine("memory"),
            machine("kernel"),
            machine("file_system"),
            machine("pando"),
            machine("build"),
            machine("sqlite"),
            machine("libzmq")
        )?;
        writeln!(f, "servers: {}", machine("servers"))?;
        let setting = |key| field(&self.settings, key);
        writeln!(
            f,
            "{} interleaved repetitions of {} s each after {} s: median (min to max)\n",
            setting("repetitions"),
            setting("seconds"),
            setting("warm_up_seconds")
        )?;
        for row in &self.rows {
            writeln!(f, "### {}\n\n{}\n", row.name, row.about)?;
            row.table(f)?;
        }
        self.targets(f)?;
        for (name, why) in &self.skipped {
            writeln!(f, "skipped: {name}: {why}")?;
        }
        Ok(())
    }
}

impl Report {
    /// Writes one line for each target, or for each case that has none.
    fn targets(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| case | metric | peer, pando | ratio (min to max) | target | met |\n|---|---|---|---|---|---|")?;
        for row in &self.rows {
            for (target, measured) in &row.targets {
                let peer = row.peer_of(*target).or(row.peers.first());
                let own = cell_median(&row.own.metrics, target.metric);
                let both = peer.map_or_else(
                    || format!("-, {own}"),
                    |peer| format!("{} {}, {own}", peer.name, cell_median(&peer.metrics, target.metric)),
                );
                let ratio = peer.map_or_else(|| "-".to_owned(), |peer| cell(&peer.ratios, target.metric));
                let met = match measured.map(|measured| target.rule.is_met(measured)) {
                    Some(true) => "yes",
                    Some(false) => "**no**",
                    None => "not measured",
                };
                writeln!(f, "| {} | {} | {both} | {ratio} | {} | {met} |", row.name, target.metric, target.rule)?;
            }
        }
        writeln!(f)
    }
}

impl Row {
    fn table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sides = || self.peers.iter().chain([&self.own]);
        let has = |metric: &str| sides().any(|side| side.metrics.contains_key(metric));
        let columns: Vec<_> = COLUMNS.iter().filter(|(metric, _)| has(metric)).collect();
        let mut lines = vec![vec![String::new()]];
        lines[0].extend(columns.iter().map(|(_, heading)| (*heading).to_owned()));
        let mut add = |name: String, summaries: &Summaries| {
            let cells = columns.iter().map(|(metric, _)| cell(summaries, metric));
            lines.push([name].into_iter().chain(cells).collect());
        };
        for side in sides() {
            add(side.name.to_owned(), &side.metrics);
        }
        for peer in &self.peers {
            add(format!("ratio to {}", peer.name), &peer.ratios);
        }
        let width = |at: usize| lines.iter().map(|line| line[at].len()).max().unwrap_or(0);
        let widths: Vec<_> = (0..=columns.len()).map(width).collect();
        for (number, line) in lines.iter().enumerate() {
            let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            writeln!(f, "| {} |", cells.collect::<Vec<_>>().join(" | "))?;
            if number == 0 {
                writeln!(f, "|{}|", widths.iter().map(|width| "-".repeat(width + 2)).collect::<Vec<_>>().join("|"))?;
            }
        }
        writeln!(f)
    }
}

fn cell_median(summaries: &Summaries, metric: &str) -> String {
    summaries.get(metric).map_or_else(|| "-".to_owned(), |summary| Figure(summary.median).to_string())
}

fn cell(summaries: &Summaries, metric: &str) -> String {
    match summaries.get(metric) {
        Some(Summary { median, .. }) if median.is_nan() || median.is_infinite() => "-".to_owned(),
        Some(Summary { median, min, max }) if (max - min).abs() < f64::EPSILON => Figure(*median).to_string(),
        Some(Summary { median, min, max }) => format!("{} ({} to {})", Figure(*median), Figure(*min), Figure(*max)),
        None => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_and_figures_read_well() {
        let rules = [Rule::RatioAtLeast(0.95), Rule::RatioAtMost(0.01), Rule::RatioAtMost(2.0), Rule::AtMost(1.2)];
        let texts: Vec<_> = rules.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["at least 0.95x", "at most 1/100", "at most 2x", "at most 1.2"]);
        let figures: Vec<_> = [12_345.6, 12.34, 1.234, 0.0123, 0.0].map(|value| Figure(value).to_string()).into();
        assert_eq!(figures, ["12346", "12.3", "1.23", "0.012", "0"]);
    }
}
