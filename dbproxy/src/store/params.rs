//! Params of the agent store's writes. The caller gives the ids; time-ordered ones (`UUIDv7`) are fastest.

use super::record;

record! {
    /// Params of `CreateSession`.
    CreateSession {
        id: String,
        parent_session_id: Option<String>,
        title: String,
        message_count: i64,
        prompt_tokens: i64,
        completion_tokens: i64,
        cost: f64,
    }
}

record! {
    /// Params of `UpdateSession`.
    UpdateSession {
        title: String,
        prompt_tokens: i64,
        completion_tokens: i64,
        summary_message_id: Option<String>,
        cost: f64,
        id: String,
    }
}

record! {
    /// Params of `CreateMessage`.
    CreateMessage {
        id: String,
        session_id: String,
        role: String,
        parts: String,
        model: Option<String>,
    }
}

record! {
    /// Params of `UpdateMessage`.
    UpdateMessage {
        parts: String,
        finished_at: Option<i64>,
        id: String,
    }
}

record! {
    /// Params of `CreateFile`.
    CreateFile {
        id: String,
        session_id: String,
        path: String,
        content: String,
        version: String,
    }
}

record! {
    /// Params of `UpdateFile`.
    UpdateFile {
        content: String,
        version: String,
        id: String,
    }
}

record! {
    /// Params of `CreateProject`.
    CreateProject {
        id: String,
        name: String,
        path: String,
        status: String,
        initialized: i64,
        acp_pid: Option<i64>,
        acp_port: Option<i64>,
        last_opened: Option<i64>,
    }
}

record! {
    /// Params of `UpdateProjectStatus`.
    UpdateProjectStatus {
        status: String,
        acp_pid: Option<i64>,
        acp_port: Option<i64>,
        id: String,
    }
}

record! {
    /// Params of `UpdateProjectLastOpened`.
    UpdateProjectLastOpened {
        last_opened: Option<i64>,
        id: String,
    }
}

record! {
    /// Params of `InsertPromptTemplate`.
    InsertPromptTemplate {
        id: String,
        name: String,
        section: String,
        content: String,
        version: i64,
        is_active: i64,
        is_default: i64,
    }
}

record! {
    /// Params of `InsertSessionScore`.
    InsertSessionScore {
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
    }
}

record! {
    /// Params of `InsertSkill`.
    InsertSkill {
        id: String,
        title: String,
        content: String,
        source_session_id: Option<String>,
        source_template_id: Option<String>,
        task_type: String,
    }
}
