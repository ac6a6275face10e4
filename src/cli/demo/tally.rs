//! What the demo's processes claimed, and what was found: the verdict, without any waiting.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use pando_ipc::Envelope;
use serde::Serialize;

use super::fleet::{OBSERVER, Said};
use super::load::LoadLine;
use crate::cli::output::{self, Palette};
use crate::cli::up::RoleName;

/// Everything that was said so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Ids of acknowledged sessions.
    pub(super) sessions: HashSet<String>,
    /// Ids of acknowledged messages.
    pub(super) messages: HashSet<String>,
    /// Acknowledged increments, by the speaker who made them.
    uses: HashMap<usize, u64>,
    /// The counter of each speaker.
    skills: HashMap<usize, String>,
    /// Acknowledged writes by speaker.
    pub(super) acked_by: HashMap<usize, u64>,
    /// The last settled role of each speaker.
    pub(super) roles: HashMap<usize, Standing>,
    /// Speakers whose load has ended.
    pub(super) done: HashSet<usize>,
    /// The speaker that was killed.
    pub(super) killed: Option<usize>,
    /// Speakers whose process has ended.
    pub(super) ended: HashSet<usize>,
    /// Why writes failed.
    pub(super) failed: Vec<String>,
    /// When a survivor's first write was acknowledged under the new primary.
    pub(super) resumed_at: Option<Instant>,
    pub(super) events: Events,
}

/// A role that was settled, and when we heard of it.
#[derive(Debug, Clone)]
pub(super) struct Standing {
    pub(super) instance_id: String,
    pub(super) pid: u32,
    pub(super) epoch: u64,
    pub(super) leads: bool,
    pub(super) heard: Instant,
}

/// What the observer saw.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// Number of the last durable event.
    pub(super) last: u64,
    /// Durable events that came right behind their predecessor.
    in_order: u64,
    /// Durable events that did not.
    out_of_order: u64,
    /// What was lost for good.
    lost: Vec<String>,
    /// Rows whose creation was told, by topic.
    created: HashMap<String, u64>,
}

impl Events {
    fn take(&mut self, event: &Envelope) {
        let Some(seq) = event.seq else { return };
        if seq == self.last + 1 {
            self.in_order += 1;
        } else {
            self.out_of_order += 1;
        }
        self.last = self.last.max(seq);
        if event.topic.as_str().ends_with(".created") {
            *self.created.entry(event.topic.as_str().to_owned()).or_default() += 1;
        }
    }
}

impl Tally {
    /// Takes one thing that somebody said.
    pub(super) fn take(&mut self, speaker: usize, said: Said, now: Instant) {
        match said {
            Said::Role(line) if line.role != RoleName::Seeking => {
                let standing = Standing {
                    instance_id: line.instance_id,
                    pid: line.pid,
                    epoch: line.epoch.unwrap_or_default(),
                    leads: line.role == RoleName::Primary,
                    heard: now,
                };
                self.roles.insert(speaker, standing);
            }
            Said::Role(_) => {}
            Said::Load(LoadLine::Started { skill }) => drop(self.skills.insert(speaker, skill)),
            Said::Load(LoadLine::Acked { sessions, messages, uses, .. }) => {
                *self.acked_by.entry(speaker).or_default() += sessions.len() as u64 + messages.len() as u64 + uses;
                *self.uses.entry(speaker).or_default() += uses;
                self.sessions.extend(sessions);
                self.messages.extend(messages);
                let led_by_another = self.primary().is_some_and(|(number, _)| Some(number) != self.killed);
                if self.killed.is_some_and(|killed| killed != speaker) && led_by_another {
                    self.resumed_at.get_or_insert(now);
                }
            }
            Said::Load(LoadLine::Failed { error }) => self.failed.push(error),
            Said::Load(LoadLine::Done {}) => drop(self.done.insert(speaker)),
            Said::Event(event) => self.events.take(&event),
            Said::Lost(what) => self.events.lost.push(what),
            Said::Ended => {
                self.ended.insert(speaker);
                self.roles.remove(&speaker);
            }
        }
    }

    /// Returns the living primary of the newest term.
    pub(super) fn primary(&self) -> Option<(usize, &Standing)> {
        let leaders = self.roles.iter().filter(|(_, standing)| standing.leads);
        leaders.max_by_key(|(_, standing)| standing.epoch).map(|(number, standing)| (*number, standing))
    }

    /// Returns the number of acknowledged writes.
    pub(super) fn acked(&self) -> u64 {
        self.acked_by.values().sum()
    }

    /// Returns who has ended but was not killed, if anybody has.
    pub(super) fn ended_unasked(&self) -> Option<String> {
        let speaker = self.ended.iter().find(|speaker| Some(**speaker) != self.killed)?;
        Some(if *speaker == OBSERVER { "the observer".to_owned() } else { format!("instance {speaker}") })
    }
}

/// What the database holds at the end.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Ids of sessions.
    pub(super) sessions: HashSet<String>,
    /// Ids of messages.
    pub(super) messages: HashSet<String>,
    /// Counters by the id of their row.
    pub(super) uses: HashMap<String, u64>,
    /// Sessions whose own count of messages is not the number of their messages.
    pub(super) miscounted: u64,
    /// Number of the journal's last event.
    pub(super) head: u64,
}

/// What the demo showed; `--json` prints it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Verdict {
    /// Whether nothing acknowledged is missing or applied twice, and every event was seen once and in order.
    pub(super) ok: bool,
    pub(super) writes_acknowledged: u64,
    pub(super) rows_found: u64,
    pub(super) missing: u64,
    pub(super) duplicates: u64,
    /// Committed, but the answer died with the primary: allowed.
    pub(super) unacknowledged: u64,
    /// Writes that ended with an error.
    pub(super) failed: u64,
    pub(super) events: u64,
    pub(super) events_in_order: u64,
    pub(super) events_out_of_order: u64,
    pub(super) events_lost: Vec<String>,
    /// From SIGKILL to the line by which a survivor says that it is primary.
    pub(super) takeover_ms: f64,
    /// From SIGKILL to the first write acknowledged by the new primary.
    pub(super) resumed_ms: f64,
}

impl Verdict {
    /// Compares what was claimed with what was found.
    pub(super) fn new(tally: &Tally, found: &Found, takeover: Duration, resumed: Duration) -> Self {
        let count = |set: &HashSet<String>| set.len() as u64;
        let missing_rows =
            |claimed: &HashSet<String>, found: &HashSet<String>| claimed.difference(found).count() as u64;
        let extra_rows = |claimed: &HashSet<String>, found: &HashSet<String>| found.difference(claimed).count() as u64;
        let mut missing =
            missing_rows(&tally.sessions, &found.sessions) + missing_rows(&tally.messages, &found.messages);
        let mut unacknowledged =
            extra_rows(&tally.sessions, &found.sessions) + extra_rows(&tally.messages, &found.messages);
        let mut duplicates = found.miscounted;
        for (speaker, skill) in &tally.skills {
            let claimed = tally.uses.get(speaker).copied().unwrap_or_default();
            let counted = found.uses.get(skill).copied().unwrap_or_default();
            missing += claimed.saturating_sub(counted);
            let surplus = counted.saturating_sub(claimed);
            // Of a killed process, some answers were never heard; of the others, all were.
            if tally.done.contains(speaker) { duplicates += surplus } else { unacknowledged += surplus }
        }
        for (topic, rows) in [("db.session.created", &found.sessions), ("db.message.created", &found.messages)] {
            let told = tally.events.created.get(topic).copied().unwrap_or_default();
            duplicates += told.saturating_sub(count(rows));
        }
        let events = &tally.events;
        let acknowledged = tally.acked();
        let all_seen = events.in_order == found.head && events.out_of_order == 0 && events.lost.is_empty();
        Self {
            ok: acknowledged > 0 && missing == 0 && duplicates == 0 && tally.failed.is_empty() && all_seen,
            writes_acknowledged: acknowledged,
            rows_found: acknowledged - missing,
            missing,
            duplicates,
            unacknowledged,
            failed: tally.failed.len() as u64,
            events: found.head,
            events_in_order: events.in_order,
            events_out_of_order: events.out_of_order,
            events_lost: events.lost.clone(),
            takeover_ms: millis(takeover),
            resumed_ms: millis(resumed),
        }
    }

    /// Returns the table that ends the demo.
    pub(super) fn table(&self, palette: Palette) -> String {
        let of = |count: u64, all: u64| format!("{count} of {all}");
        let facts = [
            ("writes acknowledged", self.writes_acknowledged.to_string()),
            ("rows found", of(self.rows_found, self.writes_acknowledged)),
            ("missing", self.missing.to_string()),
            ("duplicates", self.duplicates.to_string()),
            ("failed writes", self.failed.to_string()),
            ("events seen in order", of(self.events_in_order, self.events)),
            ("takeover", format!("{:.1} ms", self.takeover_ms)),
            ("next write acknowledged", format!("{:.1} ms", self.resumed_ms)),
        ];
        let verdict = if self.ok {
            palette.good("nothing was lost, nothing was applied twice")
        } else {
            palette.error("something was lost or applied twice")
        };
        format!("{}\n\n{verdict}", output::facts(&facts, palette))
    }
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

#[cfg(test)]
pub(crate) mod tests {
    use pando_ipc::Topic;
    use serde_json::Value;

    use super::*;

    fn tally() -> Tally {
        let mut tally = Tally::default();
        let now = Instant::now();
        for speaker in [0, 1] {
            tally.take(speaker, Said::Load(LoadLine::Started { skill: format!("k{speaker}") }), now);
            let acked = LoadLine::Acked {
                sessions: vec![format!("s{speaker}")],
                messages: vec![format!("m{speaker}")],
                uses: 2,
                at_ns: vec![],
            };
            tally.take(speaker, Said::Load(acked), now);
        }
        tally.take(0, Said::Ended, now);
        tally.take(1, Said::Load(LoadLine::Done {}), now);
        for (seq, topic) in (1..).zip(["db.session.created", "db.message.created"].repeat(2)) {
            let mut event = Envelope::new("i", Topic::known(topic), Value::Null);
            event.seq = Some(seq);
            tally.take(OBSERVER, Said::Event(Box::new(event)), now);
        }
        tally
    }

    fn found() -> Found {
        let set = |ids: [&str; 2]| ids.map(str::to_owned).into_iter().collect();
        let uses = [("k0".to_owned(), 2), ("k1".to_owned(), 2)].into();
        Found { sessions: set(["s0", "s1"]), messages: set(["m0", "m1"]), uses, miscounted: 0, head: 4 }
    }

    fn verdict(tally: &Tally, found: &Found) -> Verdict {
        Verdict::new(tally, found, Duration::from_micros(3_040), Duration::from_millis(9))
    }

    pub(crate) fn look(palette: Palette, _columns: Option<usize>) -> String {
        verdict(&tally(), &found()).table(palette)
    }

    pub(crate) fn look_failed(palette: Palette, _columns: Option<usize>) -> String {
        verdict(&tally(), &Found { head: 9, ..found() }).table(palette)
    }

    #[test]
    fn all_found_once_and_in_order_is_a_success() {
        assert!(verdict(&tally(), &found()).ok);
    }

    #[test]
    fn a_missing_row_or_increment_is_a_failure() {
        let mut less = found();
        less.messages.remove("m0");
        less.uses.insert("k1".into(), 1);
        let verdict = verdict(&tally(), &less);
        assert_eq!((verdict.ok, verdict.missing, verdict.rows_found), (false, 2, 6));
    }

    #[test]
    fn an_increment_too_many_is_a_duplicate_unless_its_answer_died_with_the_process() {
        let mut more = found();
        more.uses.insert("k0".into(), 3);
        let killed = verdict(&tally(), &more);
        assert_eq!((killed.ok, killed.duplicates, killed.unacknowledged), (true, 0, 1));
        more.uses.insert("k1".into(), 3);
        let survivor = verdict(&tally(), &more);
        assert_eq!((survivor.ok, survivor.duplicates), (false, 1));
    }

    #[test]
    fn a_gap_in_the_events_is_a_failure() {
        let mut late = tally();
        let mut event = Envelope::new("i", Topic::known("x"), Value::Null);
        event.seq = Some(6);
        late.take(OBSERVER, Said::Event(Box::new(event)), Instant::now());
        let verdict = verdict(&late, &Found { head: 6, ..found() });
        assert_eq!((verdict.ok, verdict.events_in_order, verdict.events_out_of_order), (false, 4, 1));
    }

    #[test]
    fn a_creation_told_twice_is_a_duplicate() {
        let mut twice = tally();
        let mut event = Envelope::new("i", Topic::known("db.session.created"), Value::Null);
        event.seq = Some(5);
        twice.take(OBSERVER, Said::Event(Box::new(event)), Instant::now());
        assert_eq!(verdict(&twice, &Found { head: 5, ..found() }).duplicates, 1);
    }
}
