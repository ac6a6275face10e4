//! Which sessions have an agent running, learned from the events that agents publish.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use pando_bridge::{Delivery, HubSubscription};
use pando_ipc::rpc::Raw;
use pando_ipc::{Envelope, topic};

use super::Shared;

/// Most sessions whose agent is remembered; further ones are taken as having none.
const MAX_RUNNING: usize = 10_000;

/// The sessions whose agent has said `llm.start` and not yet `llm.end`, and the instance it runs in.
///
/// Every instance keeps it, so that it is warm when one becomes the primary.
#[derive(Debug, Default)]
pub(crate) struct Agents(Mutex<HashMap<String, String>>);

impl Agents {
    /// Returns the instance whose agent works on a session.
    pub(crate) fn running(&self, session_id: &str) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(session_id).cloned()
    }

    fn take(&self, event: &Envelope) {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match event.topic.as_str() {
            topic::LLM_START if running.len() < MAX_RUNNING => {
                running.insert(event.session_id.clone(), event.instance_id.clone());
            }
            topic::LLM_END => drop(running.remove(&event.session_id)),
            topic::LEFT => {
                let gone = event.payload.raw().member("instance_id").and_then(Raw::text);
                running.retain(|_, instance| Some(instance.as_str()) != gone.as_deref());
            }
            _ => {}
        }
    }
}

/// Follows the events that concern the instance itself until the hub closes: agents that start and end, and requests to leave.
pub(super) async fn watch(shared: Arc<Shared>, mut events: HubSubscription) {
    while let Some(delivery) = events.recv().await {
        let Delivery::Event(event) = delivery else { continue };
        if event.topic.as_str() == topic::STOP {
            let asked = event.payload.raw().member("instances").and_then(Raw::elements).unwrap_or_default();
            if shared.options.headless && asked.into_iter().filter_map(Raw::text).any(|id| *id == *shared.id) {
                shared.stop_requested.cancel();
            }
        } else {
            shared.agents.take(&event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pando_ipc::Topic;
    use serde_json::json;

    #[test]
    fn an_agent_runs_from_its_start_to_its_end_or_its_instance_s() {
        let agents = Agents::default();
        let tell = |topic, session: &str, payload| {
            let mut event = Envelope::new("inst-1", Topic::known(topic), payload);
            event.session_id = session.to_owned();
            agents.take(&event);
        };
        tell(topic::LLM_START, "a", json!(null));
        tell(topic::LLM_START, "b", json!(null));
        tell(topic::LLM_END, "a", json!(null));
        assert_eq!((agents.running("a"), agents.running("b").as_deref()), (None, Some("inst-1")));
        tell(topic::LEFT, "", json!({"instance_id": "inst-1"}));
        assert_eq!(agents.running("b"), None);
    }
}
