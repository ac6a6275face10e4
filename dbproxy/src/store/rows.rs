//! Rows of the agent store. Times are Unix seconds, set by the store; flags are 0 or 1.

use super::record;

record! {
    /// A conversation.
    Session {
        id: String,
        parent_session_id: Option<String>,
        title: String,
        message_count: i64,
        prompt_tokens: i64,
        completion_tokens: i64,
        cost: f64,
        updated_at: i64,
        created_at: i64,
        summary_message_id: Option<String>,
    }
}

record! {
    /// A message of a session; `parts` is JSON text.
    Message {
        id: String,
        session_id: String,
        role: String,
        parts: String,
        model: Option<String>,
        created_at: i64,
        updated_at: i64,
        finished_at: Option<i64>,
    }
}

record! {
    /// A version of a file that a session touched.
    File {
        id: String,
        session_id: String,
        path: String,
        content: String,
        version: String,
        created_at: i64,
        updated_at: i64,
    }
}

record! {
    /// A project.
    Project {
        id: String,
        name: String,
        path: String,
        status: String,
        initialized: i64,
        acp_pid: Option<i64>,
        acp_port: Option<i64>,
        last_opened: Option<i64>,
        created_at: i64,
        updated_at: i64,
    }
}

record! {
    /// A section of a prompt.
    PromptTemplate {
        id: String,
        name: String,
        section: String,
        content: String,
        version: i64,
        is_active: i64,
        is_default: i64,
        created_at: i64,
        updated_at: i64,
    }
}

record! {
    /// A judgement of a session.
    SessionScore {
        id: String,
        session_id: String,
        template_id: Option<String>,
        reward: f64,
        success_score: f64,
        efficiency_score: f64,
        judge_analysis: Option<String>,
        judge_model: Option<String>,
        prompt_tokens: i64,
        completion_tokens: i64,
        message_count: i64,
        user_corrections: i64,
        evaluated_at: i64,
        created_at: i64,
    }
}

record! {
    /// Something learnt.
    Skill {
        id: String,
        title: String,
        content: String,
        source_session_id: Option<String>,
        source_template_id: Option<String>,
        task_type: String,
        usage_count: i64,
        success_rate: f64,
        is_active: i64,
        created_at: i64,
        updated_at: i64,
    }
}
