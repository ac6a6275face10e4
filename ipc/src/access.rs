//! Who may do what: a method says what it needs, and a verifier decides, call by call, whether a peer may.

use std::borrow::Cow;
use std::fmt;

use serde::Serialize;

use crate::fault::{Code, Fault};
use crate::hello::{HELLO, Kind, PING};
use crate::methods::{Caller, Door};
use crate::rpc::Json;
use crate::topic::Pattern;

/// What a call needs, and what a connection may. Each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Capability {
    /// Look: state, rows, events.
    Read,
    /// Change rows, publish events.
    Write,
    /// Make somebody else do something: leave, stop, interrupt.
    Control,
    /// Change what others may, or end them without asking.
    Admin,
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Control => "control",
            Self::Admin => "admin",
        })
    }
}

/// What a method needs of its callers.
#[derive(Debug, Clone, Copy)]
pub enum Needs {
    /// The same for every call.
    Always(Capability),
    /// What the params ask for decides.
    ByParams(fn(&Json) -> Capability),
}

impl Needs {
    /// Returns what a call with these params needs.
    pub fn of(self, params: &Json) -> Capability {
        match self {
            Self::Always(capability) => capability,
            Self::ByParams(of) => of(params),
        }
    }
}

impl From<Capability> for Needs {
    fn from(capability: Capability) -> Self {
        Self::Always(capability)
    }
}

/// Why a call is refused, for the caller and the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule(Cow<'static, str>);

impl Rule {
    /// Returns the rule that reads so, such as "an observer may only read".
    pub fn new(text: impl Into<Cow<'static, str>>) -> Self {
        Self(text.into())
    }

    /// Returns the answer to a call that this rule refuses: `E_PEER_UNAUTHORIZED` with `method`, `needs` and `rule`.
    pub fn refuse(self, method: &str, needs: Capability) -> Fault {
        let message = format!("ipc: {method} is refused: {}", self.0);
        let fault = Fault::new(Code::PeerUnauthorized, message).with("method", method);
        fault.with("needs", needs.to_string()).with("rule", self.0)
    }
}

/// Decides which calls of a peer are answered. It is asked on every call, before anything of it is done.
///
/// This process itself is no peer: nobody is asked about its own calls.
pub trait PeerVerifier: fmt::Debug + Send + Sync {
    /// Returns the rule that refuses the call of `method`, if one does. Called in the peer's reader: it must not block.
    fn verify(&self, caller: &Caller, method: &str, needs: Capability) -> Result<(), Rule>;
}

/// Returns what a connection may by what is known of it: this process everything, an observer read, anyone else of our
/// uid all but admin.
pub fn capability_of(caller: &Caller) -> Capability {
    match (caller.door, caller.hello().map(|hello| hello.kind)) {
        (Door::Local, _) => Capability::Admin,
        (_, Some(Kind::Observer)) => Capability::Read,
        (_, Some(Kind::Instance | Kind::Client) | None) => Capability::Control,
    }
}

/// Trusts every process of our uid, which the doors let in alone, as [`capability_of`] says.
#[derive(Debug, Clone, Copy, Default)]
pub struct LocalTrust;

impl PeerVerifier for LocalTrust {
    fn verify(&self, caller: &Caller, _method: &str, needs: Capability) -> Result<(), Rule> {
        let may = capability_of(caller);
        if needs <= may {
            return Ok(());
        }
        Err(match may {
            Capability::Read => Rule::new("an observer may only read"),
            _ => Rule::new(format!("no peer has {needs}")),
        })
    }
}

/// One line of an [`AllowList`].
#[derive(Debug, Clone)]
pub struct Allow {
    /// Which peers, by the instance id that they gave in hello. One that said none is selected by `*` alone.
    pub instance: Pattern,
    /// What they may call.
    pub methods: Vec<Pattern>,
    /// The most they may by it.
    pub up_to: Capability,
}

/// Allows what one of its lines allows, and to observers no more than reading. An empty list allows nothing.
///
/// `instance.hello` and `instance.ping` always pass. The instance id is what the peer says of itself: among processes of
/// one user this list keeps from mistakes, not from malice.
#[derive(Debug, Clone, Default)]
pub struct AllowList(pub Vec<Allow>);

impl PeerVerifier for AllowList {
    fn verify(&self, caller: &Caller, method: &str, needs: Capability) -> Result<(), Rule> {
        if method == HELLO || method == PING {
            return Ok(());
        }
        let hello = caller.hello();
        let instance = hello.map_or("", |hello| hello.instance_id.as_str());
        if hello.is_some_and(|hello| hello.kind == Kind::Observer) && needs > Capability::Read {
            return Err(Rule::new("an observer may only read"));
        }
        let allows = |line: &Allow| {
            needs <= line.up_to
                && line.instance.matches(instance)
                && line.methods.iter().any(|pattern| pattern.matches(method))
        };
        if self.0.iter().any(allows) {
            return Ok(());
        }
        Err(Rule::new(format!("no line of the allow list gives {needs} on it to {instance:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hello::{Hello, PROTOCOL};

    fn peer(id: &str, kind: Option<Kind>) -> Caller {
        let caller = Caller::new(1, Door::Native, Some(0), None);
        if let Some(kind) = kind {
            caller.introduce(Hello {
                instance_id: id.into(),
                kind,
                pid: 1,
                version: String::new(),
                protocol: PROTOCOL,
                headless: false,
            });
        }
        caller
    }

    fn check(verifier: &dyn PeerVerifier, caller: &Caller, method: &str, needs: Capability, rule: Option<&str>) {
        let verdict = verifier.verify(caller, method, needs);
        assert_eq!(verdict.err(), rule.map(|text| Rule::new(text.to_owned())), "{caller:?} {method} {needs}");
    }

    #[test]
    fn our_own_user_has_all_but_admin_and_an_observer_reads() {
        use Capability::{Admin, Control, Read, Write};
        for caller in [peer("", None), peer("a", Some(Kind::Client)), peer("a", Some(Kind::Instance))] {
            check(&LocalTrust, &caller, "m", Control, None);
            check(&LocalTrust, &caller, "m", Admin, Some("no peer has admin"));
        }
        let observer = peer("o", Some(Kind::Observer));
        check(&LocalTrust, &observer, "m", Read, None);
        for needs in [Write, Control, Admin] {
            check(&LocalTrust, &observer, "m", needs, Some("an observer may only read"));
        }
    }

    #[test]
    fn an_allow_list_selects_by_instance_and_method() {
        use Capability::{Admin, Control, Read, Write};
        let pattern = |text| Pattern::new(text).unwrap();
        let list = AllowList(vec![
            Allow { instance: pattern("*"), methods: vec![pattern("session.*")], up_to: Read },
            Allow { instance: pattern("boss"), methods: vec![pattern("*")], up_to: Admin },
        ]);
        let (boss, other, unnamed) = (peer("boss", Some(Kind::Client)), peer("b", Some(Kind::Client)), peer("", None));
        check(&list, &boss, "anything", Admin, None);
        for caller in [&other, &unnamed] {
            check(&list, caller, "session.list", Read, None);
            check(&list, caller, HELLO, Read, None);
        }
        let refused = "no line of the allow list gives control on it to \"b\"";
        check(&list, &other, "session.interrupt", Control, Some(refused));
        check(&list, &unnamed, "db.exec", Write, Some("no line of the allow list gives write on it to \"\""));
        check(&list, &peer("boss", Some(Kind::Observer)), "db.exec", Write, Some("an observer may only read"));
        check(
            &AllowList::default(),
            &boss,
            "db.query",
            Read,
            Some("no line of the allow list gives read on it to \"boss\""),
        );
    }

    #[test]
    fn the_first_hello_of_a_connection_stands() {
        let observer = peer("o", Some(Kind::Observer));
        let second = Hello { kind: Kind::Instance, ..observer.hello().unwrap().clone() };
        assert_eq!(observer.introduce(second).kind, Kind::Observer);
        assert_eq!(capability_of(&observer), Capability::Read);
        assert_eq!(capability_of(&Caller::local()), Capability::Admin);
    }
}
