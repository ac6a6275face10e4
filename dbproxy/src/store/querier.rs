//! The agent store's reads and writes by name and type.

use pando_ipc::Fault;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::params::{
    CreateFile, CreateMessage, CreateProject, CreateSession, InsertPromptTemplate, InsertSessionScore, InsertSkill,
    UpdateFile, UpdateMessage, UpdateProjectLastOpened, UpdateProjectStatus, UpdateSession,
};
use super::rows::{File, Message, Project, PromptTemplate, Session, SessionScore, Skill};
use crate::db::Db;
use crate::deliver::WriteError;
use crate::params::Params;
use crate::readers::ReadError;

/// Why a call of the agent store failed.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// The write has no acknowledgement.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The read failed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A row has not the shape that this build knows: the schema is another one.
    #[error("a row of the agent store has another shape: {0}")]
    Shape(#[from] serde_json::Error),
}

impl DbError {
    /// Returns what was refused and why, if that is what happened.
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Write(WriteError::Refused(fault)) | Self::Read(ReadError::Refused(fault)) => Some(fault),
            _ => None,
        }
    }
}

/// The agent store: reads are local, writes go to the primary, on every instance alike.
///
/// Deleting or changing what does not exist succeeds, unless a row is to be returned: then it is `E_NOT_FOUND`.
pub trait Querier {
    /// Returns a session, or none.
    fn get_session(&self, id: &str) -> impl Future<Output = Result<Option<Session>, DbError>> + Send;
    /// Returns a message, or none.
    fn get_message(&self, id: &str) -> impl Future<Output = Result<Option<Message>, DbError>> + Send;
    /// Returns a stored file, or none.
    fn get_file(&self, id: &str) -> impl Future<Output = Result<Option<File>, DbError>> + Send;
    /// Returns a project, or none.
    fn get_project(&self, id: &str) -> impl Future<Output = Result<Option<Project>, DbError>> + Send;
    /// Returns a prompt template, or none.
    fn get_prompt_template(&self, id: &str) -> impl Future<Output = Result<Option<PromptTemplate>, DbError>> + Send;
    /// Returns a skill, or none.
    fn get_skill(&self, id: &str) -> impl Future<Output = Result<Option<Skill>, DbError>> + Send;
    /// Returns sessions, the latest changed first.
    fn list_sessions(&self, limit: u32, offset: u32) -> impl Future<Output = Result<Vec<Session>, DbError>> + Send;
    /// Returns the messages of a session, in order.
    fn list_messages_by_session(&self, session_id: &str) -> impl Future<Output = Result<Vec<Message>, DbError>> + Send;
    /// Returns the stored files of a session, in order.
    fn list_files_by_session(&self, session_id: &str) -> impl Future<Output = Result<Vec<File>, DbError>> + Send;
    /// Returns all projects, the latest opened first.
    fn list_projects(&self) -> impl Future<Output = Result<Vec<Project>, DbError>> + Send;
    /// Returns all prompt templates, by name, the newest version first.
    fn list_prompt_templates(&self) -> impl Future<Output = Result<Vec<PromptTemplate>, DbError>> + Send;
    /// Returns the judgements of a session, in order.
    fn list_session_scores(&self, session_id: &str) -> impl Future<Output = Result<Vec<SessionScore>, DbError>> + Send;
    /// Returns the active skills, the most successful first.
    fn list_skills(&self) -> impl Future<Output = Result<Vec<Skill>, DbError>> + Send;
    /// Creates a session.
    fn create_session(&self, params: CreateSession) -> impl Future<Output = Result<Session, DbError>> + Send;
    /// Changes a session.
    fn update_session(&self, params: UpdateSession) -> impl Future<Output = Result<Session, DbError>> + Send;
    /// Deletes a session with its messages and files.
    fn delete_session(&self, id: &str) -> impl Future<Output = Result<(), DbError>> + Send;
    /// Appends a message to its session.
    fn create_message(&self, params: CreateMessage) -> impl Future<Output = Result<Message, DbError>> + Send;
    /// Changes a message.
    fn update_message(&self, params: UpdateMessage) -> impl Future<Output = Result<(), DbError>> + Send;
    /// Deletes a message.
    fn delete_message(&self, id: &str) -> impl Future<Output = Result<(), DbError>> + Send;
    /// Deletes all messages of a session.
    fn delete_session_messages(&self, id: &str) -> impl Future<Output = Result<(), DbError>> + Send;
    /// Stores a version of a file.
    fn create_file(&self, params: CreateFile) -> impl Future<Output = Result<File, DbError>> + Send;
    /// Changes a stored file.
    fn update_file(&self, params: UpdateFile) -> impl Future<Output = Result<File, DbError>> + Send;
    /// Deletes a stored file.
    fn delete_file(&self, id: &str) -> impl Future<Output = Result<(), DbError>> + Send;
    /// Deletes all stored files of a session.
    fn delete_session_files(&self, id: &str) -> impl Future<Output = Result<(), DbError>> + Send;
    /// Stores a prompt template.
    fn insert_prompt_template(
        &self,
        params: InsertPromptTemplate,
    ) -> impl Future<Output = Result<PromptTemplate, DbError>> + Send;
    /// Stores a judgement of a session.
    fn insert_session_score(
        &self,
        params: InsertSessionScore,
    ) -> impl Future<Output = Result<SessionScore, DbError>> + Send;
    /// Stores a skill.
    fn insert_skill(&self, params: InsertSkill) -> impl Future<Output = Result<Skill, DbError>> + Send;
    /// Deactivates the active skill with the lowest success rate, then usage.
    fn deactivate_lowest_skill(&self) -> impl Future<Output = Result<(), DbError>> + Send;
    /// Counts one more use of a skill.
    fn increment_skill_usage(&self, id: &str) -> impl Future<Output = Result<(), DbError>> + Send;
    /// Creates a project.
    fn create_project(&self, params: CreateProject) -> impl Future<Output = Result<Project, DbError>> + Send;
    /// Changes a project's status.
    fn update_project_status(&self, params: UpdateProjectStatus) -> impl Future<Output = Result<(), DbError>> + Send;
    /// Notes when a project was opened.
    fn update_project_last_opened(
        &self,
        params: UpdateProjectLastOpened,
    ) -> impl Future<Output = Result<(), DbError>> + Send;
    /// Marks a project as initialized.
    fn mark_project_initialized(&self, id: &str) -> impl Future<Output = Result<(), DbError>> + Send;
    /// Deletes a project.
    fn delete_project(&self, id: &str) -> impl Future<Output = Result<(), DbError>> + Send;
}

impl Querier for Db {
    async fn get_session(&self, id: &str) -> Result<Option<Session>, DbError> {
        one(self, "SELECT * FROM sessions WHERE id = ?1", id).await
    }

    async fn get_message(&self, id: &str) -> Result<Option<Message>, DbError> {
        one(self, "SELECT * FROM messages WHERE id = ?1", id).await
    }

    async fn get_file(&self, id: &str) -> Result<Option<File>, DbError> {
        one(self, "SELECT * FROM files WHERE id = ?1", id).await
    }

    async fn get_project(&self, id: &str) -> Result<Option<Project>, DbError> {
        one(self, "SELECT * FROM projects WHERE id = ?1", id).await
    }

    async fn get_prompt_template(&self, id: &str) -> Result<Option<PromptTemplate>, DbError> {
        one(self, "SELECT * FROM prompt_templates WHERE id = ?1", id).await
    }

    async fn get_skill(&self, id: &str) -> Result<Option<Skill>, DbError> {
        one(self, "SELECT * FROM skills WHERE id = ?1", id).await
    }

    async fn list_sessions(&self, limit: u32, offset: u32) -> Result<Vec<Session>, DbError> {
        many(self, "SELECT * FROM sessions ORDER BY updated_at DESC, id LIMIT ?1 OFFSET ?2", [limit, offset]).await
    }

    async fn list_messages_by_session(&self, session_id: &str) -> Result<Vec<Message>, DbError> {
        many(self, "SELECT * FROM messages WHERE session_id = ?1 ORDER BY created_at, rowid", [session_id]).await
    }

    async fn list_files_by_session(&self, session_id: &str) -> Result<Vec<File>, DbError> {
        many(self, "SELECT * FROM files WHERE session_id = ?1 ORDER BY created_at, rowid", [session_id]).await
    }

    async fn list_projects(&self) -> Result<Vec<Project>, DbError> {
        many(self, "SELECT * FROM projects ORDER BY last_opened DESC NULLS LAST, name, id", ()).await
    }

    async fn list_prompt_templates(&self) -> Result<Vec<PromptTemplate>, DbError> {
        many(self, "SELECT * FROM prompt_templates ORDER BY name, version DESC, id", ()).await
    }

    async fn list_session_scores(&self, session_id: &str) -> Result<Vec<SessionScore>, DbError> {
        many(self, "SELECT * FROM session_scores WHERE session_id = ?1 ORDER BY evaluated_at, rowid", [session_id])
            .await
    }

    async fn list_skills(&self) -> Result<Vec<Skill>, DbError> {
        many(self, "SELECT * FROM skills WHERE is_active = 1 ORDER BY success_rate DESC, usage_count DESC, id", ())
            .await
    }

    async fn create_session(&self, params: CreateSession) -> Result<Session, DbError> {
        row(self, "CreateSession", &params).await
    }

    async fn update_session(&self, params: UpdateSession) -> Result<Session, DbError> {
        row(self, "UpdateSession", &params).await
    }

    async fn delete_session(&self, id: &str) -> Result<(), DbError> {
        done(self, "DeleteSession", id).await
    }

    async fn create_message(&self, params: CreateMessage) -> Result<Message, DbError> {
        row(self, "CreateMessage", &params).await
    }

    async fn update_message(&self, params: UpdateMessage) -> Result<(), DbError> {
        done(self, "UpdateMessage", &params).await
    }

    async fn delete_message(&self, id: &str) -> Result<(), DbError> {
        done(self, "DeleteMessage", id).await
    }

    async fn delete_session_messages(&self, id: &str) -> Result<(), DbError> {
        done(self, "DeleteSessionMessages", id).await
    }

    async fn create_file(&self, params: CreateFile) -> Result<File, DbError> {
        row(self, "CreateFile", &params).await
    }

    async fn update_file(&self, params: UpdateFile) -> Result<File, DbError> {
        row(self, "UpdateFile", &params).await
    }

    async fn delete_file(&self, id: &str) -> Result<(), DbError> {
        done(self, "DeleteFile", id).await
    }

    async fn delete_session_files(&self, id: &str) -> Result<(), DbError> {
        done(self, "DeleteSessionFiles", id).await
    }

    async fn insert_prompt_template(&self, params: InsertPromptTemplate) -> Result<PromptTemplate, DbError> {
        row(self, "InsertPromptTemplate", &params).await
    }

    async fn insert_session_score(&self, params: InsertSessionScore) -> Result<SessionScore, DbError> {
        row(self, "InsertSessionScore", &params).await
    }

    async fn insert_skill(&self, params: InsertSkill) -> Result<Skill, DbError> {
        row(self, "InsertSkill", &params).await
    }

    async fn deactivate_lowest_skill(&self) -> Result<(), DbError> {
        done(self, "DeactivateLowestSkill", &()).await
    }

    async fn increment_skill_usage(&self, id: &str) -> Result<(), DbError> {
        done(self, "IncrementSkillUsage", id).await
    }

    async fn create_project(&self, params: CreateProject) -> Result<Project, DbError> {
        row(self, "CreateProject", &params).await
    }

    async fn update_project_status(&self, params: UpdateProjectStatus) -> Result<(), DbError> {
        done(self, "UpdateProjectStatus", &params).await
    }

    async fn update_project_last_opened(&self, params: UpdateProjectLastOpened) -> Result<(), DbError> {
        done(self, "UpdateProjectLastOpened", &params).await
    }

    async fn mark_project_initialized(&self, id: &str) -> Result<(), DbError> {
        done(self, "MarkProjectInitialized", id).await
    }

    async fn delete_project(&self, id: &str) -> Result<(), DbError> {
        done(self, "DeleteProject", id).await
    }
}

async fn many<T: DeserializeOwned>(db: &Db, sql: &str, params: impl Into<Params>) -> Result<Vec<T>, DbError> {
    let rows = db.query(sql, params, |row| Ok(row.to_json())).await?;
    rows.into_iter().map(|row| Ok(serde_json::from_value(row)?)).collect()
}

async fn one<T: DeserializeOwned>(db: &Db, sql: &str, id: &str) -> Result<Option<T>, DbError> {
    Ok(many(db, sql, [id]).await?.pop())
}

async fn done(db: &Db, method: &str, params: &(impl Serialize + Sync + ?Sized)) -> Result<(), DbError> {
    db.named(method, &serde_json::to_value(params)?).await?;
    Ok(())
}

async fn row<T: DeserializeOwned>(db: &Db, method: &str, params: &(impl Serialize + Sync)) -> Result<T, DbError> {
    Ok(serde_json::from_value(db.named(method, &serde_json::to_value(params)?).await?)?)
}
