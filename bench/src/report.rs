//! From runs to medians, ratios and targets: for people as tables and a chart, for programs as JSON.

mod chart;
mod curves;
mod svg;
mod table;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::Failure;
use crate::case::{Case, Contender, Context, Metrics, Rule, Target};
use crate::machine;

use chart::chart;
use curves::curves;

/// The file that all subjects share, for programs.
const REPORT: &str = "report.json";
/// The file with the chart.
const CHART: &str = "report.svg";

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

/// Returns the middle and the ends of some times in milliseconds.
pub(crate) fn spread(times: Vec<f64>) -> Metrics {
    let Summary { median, min, max } = Summary::of(times);
    Metrics::from([("p50_ms", median), ("min_ms", min), ("max_ms", max)])
}

type Summaries = BTreeMap<&'static str, Summary>;

/// What came out of one contender.
struct Side {
    name: &'static str,
    metrics: Summaries,
    /// Our own divided by this, run by run.
    ratios: Summaries,
}

/// What came out of one case.
struct Row {
    name: &'static str,
    about: String,
    peers: Vec<Side>,
    own: Side,
    /// What was measured of each target; nothing where its peer could not run.
    targets: Vec<(Target, Option<f64>)>,
}

/// What came out of all cases of a subject.
pub(crate) struct Report {
    subject: &'static str,
    machine: Value,
    settings: Value,
    rows: Vec<Row>,
    skipped: Vec<(String, String)>,
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
        let machine = machine::describe(context);
        let mut report = Self { subject, machine, settings, rows: Vec::new(), skipped: Vec::new() };
        for (at, case) in cases.iter().enumerate() {
            if let Some(why) = &case.skip {
                report.skipped.push((case.name.to_owned(), why.clone()));
                continue;
            }
            let mut contenders: Vec<&Contender> = Vec::new();
            for peer in &case.peers {
                match &peer.skip {
                    Some(why) => report.skipped.push((format!("{} in {}", peer.name, case.name), why.clone())),
                    None => contenders.push(peer),
                }
            }
            contenders.push(&case.own);
            let mut runs = vec![Vec::new(); contenders.len()];
            for turn in 0..context.repetitions {
                for (runs, contender) in runs.iter_mut().zip(&contenders) {
                    let metrics = run(contender, case.name, context)?;
                    let (of, turn) = (cases.len(), turn + 1);
                    let glance = table::glance(&metrics);
                    let name = format!("{subject} {}", case.name);
                    writeln!(io::stderr(), "[{}/{of}] {name} {turn} {}: {glance}", at + 1, contender.name)?;
                    runs.push(metrics);
                }
            }
            let names: Vec<_> = contenders.iter().map(|contender| contender.name).collect();
            report.rows.push(Row::of(case, &names, &runs));
        }
        Ok(report)
    }

    /// Fails when something is grossly off that no busy machine explains: something of ours failed, or nothing happened at all.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        for row in &self.rows {
            let median = |metric| row.own.metrics.get(metric).map(|summary| summary.median);
            if median("per_s").is_some_and(|rate| rate <= 0.0) {
                return Err(format!("{} {}: nothing was done", self.subject, row.name).into());
            }
            if median("failed").is_some_and(|failed| failed > 0.0) {
                return Err(format!("{} {}: {:?} failed", self.subject, row.name, median("failed")).into());
            }
        }
        Ok(())
    }

    /// Returns the report for programs.
    pub(crate) fn to_json(&self) -> Value {
        let summaries =
            |of: &Summaries| of.iter().map(|(name, it)| ((*name).to_owned(), it.to_json())).collect::<Map<_, _>>();
        let rows = self.rows.iter().map(|row| {
            let targets = row.targets.iter().map(|(target, measured)| {
                json!({
                    "metric": target.metric,
                    "peer": row.peer_of(*target).map(|peer| peer.name),
                    "rule": target.rule.to_string(),
                    "measured": measured,
                    "met": measured.map(|measured| target.rule.is_met(measured)),
                })
            });
            let peers = row.peers.iter().map(|peer| {
                json!({"name": peer.name, "metrics": summaries(&peer.metrics), "ratios": summaries(&peer.ratios)})
            });
            json!({
                "name": row.name,
                "about": row.about,
                "peers": peers.collect::<Vec<_>>(),
                "own": {"name": row.own.name, "metrics": summaries(&row.own.metrics)},
                "targets": targets.collect::<Vec<_>>(),
            })
        });
        let skipped = self.skipped.iter().map(|(name, why)| json!({"name": name, "why": why}));
        json!({
            "machine": self.machine,
            "settings": self.settings,
            "cases": rows.collect::<Vec<_>>(),
            "skipped": skipped.collect::<Vec<_>>(),
        })
    }

    /// Puts this subject into the report in `dir`, where the others stay as they were, draws the chart anew, and its curves if it has some.
    pub(crate) fn save(&self, dir: &Path) -> Result<(), Failure> {
        let path = dir.join(REPORT);
        let before = fs::read_to_string(&path).ok().and_then(|text| serde_json::from_str::<Value>(&text).ok());
        let mut subjects = match before {
            Some(Value::Object(subjects)) => subjects,
            _ => Map::new(),
        };
        let report = self.to_json();
        if let Some(figure) = curves(&report) {
            fs::write(dir.join(self.subject).with_extension("svg"), figure)?;
        }
        subjects.insert(self.subject.to_owned(), report);
        fs::write(dir.join(CHART), chart(&subjects))?;
        Ok(fs::write(path, serde_json::to_string_pretty(&subjects)? + "\n")?)
    }
}

fn run(contender: &Contender, case: &str, context: &Context) -> Result<Metrics, Failure> {
    (contender.run)(context).map_err(|failure| format!("case {case}, {}: {failure}", contender.name).into())
}

impl Row {
    /// Sums up the runs; those of our own come last.
    fn of(case: &Case, names: &[&'static str], runs: &[Vec<Metrics>]) -> Self {
        let summaries = |runs: &[Metrics]| -> Summaries {
            let names = runs.first().into_iter().flat_map(BTreeMap::keys);
            names.map(|name| (*name, Summary::of(runs.iter().map(|run| run[name]).collect()))).collect()
        };
        let own_runs = runs.last().map_or(&[][..], Vec::as_slice);
        let mut sides: Vec<Side> = names
            .iter()
            .zip(runs)
            .map(|(name, runs)| {
                let ratio = |(own, peer): (&Metrics, &Metrics)| -> Metrics {
                    let both = own.iter().filter_map(|(name, value)| Some((*name, value / peer.get(name)?)));
                    both.collect()
                };
                let ratios: Vec<Metrics> = own_runs.iter().zip(runs).map(ratio).collect();
                Side { name, metrics: summaries(runs), ratios: summaries(&ratios) }
            })
            .collect();
        let own =
            sides.pop().unwrap_or(Side { name: case.own.name, metrics: Summaries::new(), ratios: Summaries::new() });
        let mut row = Self { name: case.name, about: case.about.clone(), peers: sides, own, targets: Vec::new() };
        row.targets = case.targets.iter().map(|target| (*target, row.measured(*target))).collect();
        row
    }

    /// Returns the peer that a target is about; none where that one could not run, or there is none.
    fn peer_of(&self, target: Target) -> Option<&Side> {
        let is_it = |peer: &&Side| target.peer.is_empty() || peer.name == target.peer;
        if target.rule.is_ratio() { self.peers.iter().find(is_it) } else { None }
    }

    fn measured(&self, target: Target) -> Option<f64> {
        let of = match target.rule {
            Rule::AtLeast(_) | Rule::AtMost(_) => &self.own.metrics,
            Rule::RatioAtLeast(_) | Rule::RatioAtMost(_) => &self.peer_of(target)?.ratios,
        };
        of.get(target.metric).map(|summary| summary.median)
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
    fn a_target_is_about_its_own_peer() {
        let case = Case {
            name: "case",
            about: String::new(),
            peers: vec![],
            own: Contender::new("pando", |_| Ok(Metrics::new())),
            targets: ["", "b", "gone"].map(|peer| Target::new("per_s", Rule::RatioAtLeast(1.0)).to(peer)).into(),
            skip: None,
        };
        let rate = |rate: f64| vec![Metrics::from([("per_s", rate)])];
        let row = Row::of(&case, &["a", "b", "pando"], &[rate(1.0), rate(2.0), rate(6.0)]);
        let measured: Vec<_> = row.targets.iter().map(|(_, measured)| *measured).collect();
        assert_eq!(measured, [Some(6.0), Some(3.0), None]);
    }
}
