//! What `pando up` says of its role, for people and for programs.

use pando::Role;
use pando_ipc::{Timestamp, Workdir};
use serde::{Deserialize, Serialize};

use crate::cli::context::Context;
use crate::cli::failure::{Failure, Kind};
use crate::cli::output::{self, Palette};

/// Name of a role in `--json` lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RoleName {
    Seeking,
    Secondary,
    Primary,
}

/// TCP ports in `--json` lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PortsLine {
    #[serde(rename = "pub")]
    publish: u16,
    rpc: u16,
}

/// One line of `pando up --json`: a change of role. Documented; more keys may follow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RoleLine {
    /// The new role.
    pub(crate) role: RoleName,
    /// Who has it.
    pub(crate) instance_id: String,
    /// The term; none while seeking.
    pub(crate) epoch: Option<u64>,
    /// Our process.
    pub(crate) pid: u32,
    /// The primary's own TCP ports; none for others, or when TCP is closed.
    pub(crate) ports: Option<PortsLine>,
    /// Whom a secondary follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) primary: Option<String>,
    /// When.
    pub(crate) at: Timestamp,
}

impl RoleLine {
    fn new(role: &Role, instance_id: &str) -> Self {
        let (name, epoch, ports, primary) = match role {
            Role::Seeking => (RoleName::Seeking, None, None, None),
            Role::Secondary { primary, epoch, .. } => (RoleName::Secondary, Some(*epoch), None, Some(primary.clone())),
            Role::Primary { epoch, ports, .. } => {
                let ports = ports.map(|ports| PortsLine { publish: ports.publish, rpc: ports.rpc });
                (RoleName::Primary, Some(*epoch), ports, None)
            }
        };
        let instance_id = instance_id.to_owned();
        Self { role: name, instance_id, epoch, pid: std::process::id(), ports, primary, at: Timestamp::now() }
    }

    /// Returns the line for people.
    pub(crate) fn human(&self, workdir: &Workdir, palette: Palette) -> String {
        let place = workdir.path().display();
        let term = self.epoch.map(|epoch| format!(" · epoch {epoch}")).unwrap_or_default();
        let name = match self.role {
            RoleName::Seeking => return format!("{} a primary in {place}", palette.heading("seeking")),
            RoleName::Secondary => palette.heading("secondary"),
            RoleName::Primary => palette.good("primary"),
        };
        let follows = self.primary.as_ref().map(|primary| format!(" · follows {primary}")).unwrap_or_default();
        let ports = self.ports.map(|ports| format!(" · ports {}, {}", ports.publish, ports.rpc)).unwrap_or_default();
        format!("{name} in {place} · {}{term} · pid {}{follows}{ports}", self.instance_id, self.pid)
    }
}

/// Prints each change of role.
pub(super) struct Reporter {
    json: bool,
    background: bool,
    palette: Palette,
    workdir: Workdir,
    instance_id: String,
    last: Option<Role>,
}

impl Reporter {
    pub(super) fn new(context: &Context, workdir: &Workdir, instance_id: &str, background: bool) -> Self {
        Self {
            json: context.json(),
            background,
            palette: context.palette(),
            workdir: workdir.clone(),
            instance_id: instance_id.to_owned(),
            last: None,
        }
    }

    /// Prints `role` unless it was the last one printed.
    pub(super) fn report(&mut self, role: &Role) -> Result<(), Failure> {
        let told = told(self.last.as_ref(), role);
        self.last = Some(role.clone());
        told.into_iter().try_for_each(|role| self.print(role))
    }

    fn print(&self, role: &Role) -> Result<(), Failure> {
        let line = RoleLine::new(role, &self.instance_id);
        if self.background {
            tracing::info!("{}", line.human(&self.workdir, Palette::plain()));
        }
        let printed =
            if self.json { output::json(&line) } else { output::line(&line.human(&self.workdir, self.palette)) };
        match printed {
            // Who started us in the background has heard the first role and gone.
            Err(failure) if failure.kind == Kind::ReaderGone && self.background => Ok(()),
            printed => printed,
        }
    }
}

/// Returns what there is to tell of a role after the last one: between two others an instance seeks, maybe for too short a time to be seen.
fn told<'r>(last: Option<&Role>, role: &'r Role) -> Vec<&'r Role> {
    match last {
        Some(last) if last == role => vec![],
        Some(Role::Secondary { .. } | Role::Primary { .. }) if *role != Role::Seeking => vec![&Role::Seeking, role],
        _ => vec![role],
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use pando_ipc::Ports;

    use super::*;

    fn primary_line() -> RoleLine {
        let ports = Some(Ports { publish: 45337, rpc: 45338 });
        let role = Role::Primary { epoch: 3, ports, endpoints: pando_ipc::Endpoints::default() };
        let mut line = RoleLine::new(&role, "inst-A");
        line.pid = 12;
        line.at = serde_json::from_str("\"2026-11-21T02:52:48.5Z\"").unwrap();
        line
    }

    #[test]
    fn a_role_line_has_the_documented_keys() {
        insta::assert_snapshot!(serde_json::to_string(&primary_line()).unwrap(), @r#"{"role":"primary","instance_id":"inst-A","epoch":3,"pid":12,"ports":{"pub":45337,"rpc":45338},"at":"2026-11-21T02:52:48.5Z"}"#);
        let mut seeking = RoleLine::new(&Role::Seeking, "inst-A");
        (seeking.pid, seeking.at) = (12, primary_line().at);
        insta::assert_snapshot!(serde_json::to_string(&seeking).unwrap(), @r#"{"role":"seeking","instance_id":"inst-A","epoch":null,"pid":12,"ports":null,"at":"2026-11-21T02:52:48.5Z"}"#);
    }

    #[test]
    fn between_two_roles_an_instance_seeks_whether_that_was_seen_or_not() {
        let follows = |epoch| Role::Secondary { primary: "inst-A".into(), epoch };
        assert_eq!(told(None, &follows(1)), [&follows(1)]);
        assert_eq!(told(Some(&follows(1)), &follows(1)), Vec::<&Role>::new());
        assert_eq!(told(Some(&follows(1)), &follows(2)), [&Role::Seeking, &follows(2)]);
        assert_eq!(told(Some(&follows(1)), &Role::Seeking), [&Role::Seeking]);
        assert_eq!(told(Some(&Role::Seeking), &follows(2)), [&follows(2)]);
    }

    pub(crate) fn look(palette: Palette, _columns: Option<usize>) -> String {
        let workdir = Workdir::open("/").unwrap();
        let role = Role::Secondary { primary: "inst-A".into(), epoch: 3 };
        let others = [&Role::Seeking, &role].map(|role| RoleLine { pid: 13, ..RoleLine::new(role, "inst-B") });
        let lines = [&primary_line(), &others[0], &others[1]].map(|line| line.human(&workdir, palette));
        lines.join("\n")
    }
}
