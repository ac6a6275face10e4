//! From runs to medians, ratios and targets: for people as tables, for programs as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};

use serde_json::{Value, json};

use crate::Failure;
use crate::case::{Case, Contender, Context, Metrics, Rule, Target};
use crate::machine;

/// Columns of the table, in order: metric and heading.
const COLUMNS: [(&str, &str); 8] = [
    ("per_s", "per s"),
    ("p50_ms", "p50 ms"),
    ("p99_ms", "p99 ms"),
    ("p99.9_ms", "p99.9 ms"),
    ("max_ms", "max ms"),
    ("cpu_us", "CPU us each"),
    ("failed", "failed"),
    ("most_to_fewest", "most:fewest"),
];

/// The middle of several runs, and how far they lie apart.
#[derive(Debug, Clone, Copy)]
struct Summary {
    median: f64,
    min: f64,
    max: f64,
}

impl Summary {
    fn of(mut runs: Vec<f64>) -> Self {
        runs.sort_by(f64::total_cmp);
        let middle = runs.len() / 2;
        let median = match runs.len() {
            0 => f64::NAN,
            odd if odd % 2 == 1 => runs[middle],
            _ => f64::midpoint(runs[middle - 1], runs[middle]),
        };
        let (min, max) = (runs.first().copied(), runs.last().copied());
        Self { median, min: min.unwrap_or(f64::NAN), max: max.unwrap_or(f64::NAN) }
    }

    fn to_json(self) -> Value {
        json!({"median": self.median, "min": self.min, "max": self.max})
    }
}

type Summaries = BTreeMap<&'static str, Summary>;

/// What came out of one case.
struct Row {
    name: &'static str,
    about: String,
    peer: (&'static str, Summaries),
    own: (&'static str, Summaries),
    /// Own divided by peer, run by run.
    ratios: Summaries,
    targets: Vec<(Target, f64)>,
}

/// What came out of all cases of a subject.
pub(crate) struct Report {
    subject: &'static str,
    machine: Value,
    settings: Value,
    rows: Vec<Row>,
    skipped: Vec<(&'static str, String)>,
}

impl Report {
    /// Runs the cases, the contenders of each in turns, and tells on stderr how it goes.
    pub(crate) fn of(subject: &'static str, cases: &[Case], context: &Context) -> Result<Self, Failure> {
        let settings = json!({
            "quick": context.quick,
            "repetitions": context.repetitions,
            "seconds": context.time.as_secs_f64(),
            "warm_up_seconds": context.warm_up.as_secs_f64(),
        });
        let machine = machine::describe(&context.dir);
        let mut report = Self { subject, machine, settings, rows: Vec::new(), skipped: Vec::new() };
        for (at, case) in cases.iter().enumerate() {
            if let Some(why) = &case.skip {
                report.skipped.push((case.name, why.clone()));
                continue;
            }
            let mut runs = [Vec::new(), Vec::new()];
            for turn in 0..context.repetitions {
                for (runs, contender) in runs.iter_mut().zip([&case.peer, &case.own]) {
                    let metrics = run(contender, case.name, context)?;
                    let (rate, max) = (metrics["per_s"], metrics["max_ms"]);
                    writeln!(
                        io::stderr(),
                        "[{}/{}] {} {} {}: {rate:.0}/s, max {max:.1} ms",
                        at + 1,
                        cases.len(),
                        case.name,
                        turn + 1,
                        contender.name
                    )?;
                    runs.push(metrics);
                }
            }
            report.rows.push(Row::of(case, &runs));
        }
        Ok(report)
    }

    /// Returns the report for programs.
    pub(crate) fn to_json(&self) -> Value {
        let summaries = |of: &Summaries| {
            of.iter().map(|(name, summary)| ((*name).to_owned(), summary.to_json())).collect::<Value>()
        };
        let rows = self.rows.iter().map(|row| {
            let targets = row.targets.iter().map(|(target, measured)| {
                json!({
                    "metric": target.metric, "rule": target.rule.to_string(), "measured": measured,
                    "met": target.rule.is_met(*measured),
                })
            });
            json!({
                "name": row.name,
                "about": row.about,
                "peer": {"name": row.peer.0, "metrics": summaries(&row.peer.1)},
                "own": {"name": row.own.0, "metrics": summaries(&row.own.1)},
                "ratios": summaries(&row.ratios),
                "targets": targets.collect::<Vec<_>>(),
            })
        });
        let skipped = self.skipped.iter().map(|(name, why)| json!({"name": name, "why": why}));
        json!({
            "subject": self.subject,
            "machine": self.machine,
            "settings": self.settings,
            "cases": rows.collect::<Vec<_>>(),
            "skipped": skipped.collect::<Vec<_>>(),
        })
    }
}

fn run(contender: &Contender, case: &str, context: &Context) -> Result<Metrics, Failure> {
    (contender.run)(context).map_err(|failure| format!("case {case}, {}: {failure}", contender.name).into())
}

impl Row {
    fn of(case: &Case, [peer, own]: &[Vec<Metrics>; 2]) -> Self {
        let summaries = |runs: &[Metrics]| -> Summaries {
            let names = runs.first().into_iter().flat_map(BTreeMap::keys);
            names.map(|name| (*name, Summary::of(runs.iter().map(|run| run[name]).collect()))).collect()
        };
        let ratios: Vec<Metrics> = own
            .iter()
            .zip(peer)
            .map(|(own, peer)| own.iter().map(|(name, value)| (*name, value / peer[name])).collect())
            .collect();
        let (peer, own, ratios) = (summaries(peer), summaries(own), summaries(&ratios));
        let targets = case.targets.iter().map(|target| {
            let measured = if matches!(target.rule, Rule::AtMost(_)) { &own } else { &ratios };
            (*target, measured[target.metric].median)
        });
        let targets = targets.collect();
        let (peer, own) = ((case.peer.name, peer), (case.own.name, own));
        Self { name: case.name, about: case.about.clone(), peer, own, ratios, targets }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::RatioAtLeast(bound) => write!(f, "at least {bound}x"),
            Self::RatioAtMost(bound) if bound < 0.5 => write!(f, "at most 1/{:.0}", 1.0 / bound),
            Self::RatioAtMost(bound) => write!(f, "at most {bound}x"),
            Self::AtMost(bound) => write!(f, "at most {bound}"),
        }
    }
}

/// A figure with about three digits.
struct Figure(f64);

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

/// The report in Markdown, which reads well on a terminal, too.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = |of: &Value, key: &str| of[key].as_str().map_or_else(|| of[key].to_string(), str::to_owned);
        let machine = |key| field(&self.machine, key);
        writeln!(
            f,
            "{} cores of {}, {}, Linux {}, {}; pando {} ({}), SQLite {}",
            machine("cores"),
            machine("cpu"),
            machine("memory"),
            machine("kernel"),
            machine("file_system"),
            machine("pando"),
            machine("build"),
            machine("sqlite")
        )?;
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
        writeln!(f, "### Targets\n\n| case | metric | target | measured | met |\n|---|---|---|---|---|")?;
        for row in &self.rows {
            for (target, measured) in &row.targets {
                let met = if target.rule.is_met(*measured) { "yes" } else { "**no**" };
                let unit = if matches!(target.rule, Rule::AtMost(_)) { "" } else { "x" };
                writeln!(
                    f,
                    "| {} | {} | {} | {}{unit} | {met} |",
                    row.name,
                    target.metric,
                    target.rule,
                    Figure(*measured)
                )?;
            }
        }
        for (name, why) in &self.skipped {
            writeln!(f, "\nskipped: {name}: {why}")?;
        }
        Ok(())
    }
}

impl Row {
    fn table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = vec![vec![String::new()]];
        lines[0].extend(COLUMNS.map(|(_, heading)| heading.to_owned()));
        for (name, summaries) in [&self.peer, &self.own, &("ratio", self.ratios.clone())] {
            let mut line = vec![(*name).to_owned()];
            line.extend(COLUMNS.map(|(metric, _)| cell(summaries, metric)));
            lines.push(line);
        }
        let width = |at: usize| lines.iter().map(|line| line[at].len()).max().unwrap_or(0);
        let widths: Vec<_> = (0..=COLUMNS.len()).map(width).collect();
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
    fn the_median_of_an_even_number_lies_between() {
        let summary = Summary::of(vec![4.0, 1.0, 2.0, 3.0]);
        assert_eq!((summary.median, summary.min, summary.max), (2.5, 1.0, 4.0));
    }

    #[test]
    fn rules_and_figures_read_well() {
        let rules = [Rule::RatioAtLeast(0.95), Rule::RatioAtMost(0.01), Rule::RatioAtMost(2.0), Rule::AtMost(1.2)];
        let texts: Vec<_> = rules.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["at least 0.95x", "at most 1/100", "at most 2x", "at most 1.2"]);
        let figures: Vec<_> = [12_345.6, 12.34, 1.234, 0.0123, 0.0].map(|value| Figure(value).to_string()).into();
        assert_eq!(figures, ["12346", "12.3", "1.23", "0.012", "0"]);
    }
}
